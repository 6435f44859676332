"""The address of Redis or Valkey, taken apart and checked without redis-py."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from aigateway.settings.fields import Key

__all__ = ["RedisAddress", "RedisUrl", "redis_address"]

RedisKind = Literal["server", "cluster", "sentinel"]

_EXAMPLES = (
    '"redis://host:6379/0", "rediss://user:password@host:6379" (TLS), "unix:///path/to/socket",'
    ' "redis+cluster://host:port,host:port" or "redis+sentinel://host:port,host:port/service";'
    " percent-encode special characters of a password"
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is.

    Attributes:
        kind: One server, a cluster, or servers that sentinels watch.
        hosts: Host and port of the server, of nodes to begin with, or of the sentinels; none for
            a Unix domain socket.
        service: The name of the service that sentinels watch.
        url: A URL as redis-py takes it, with the first host.
    """

    kind: RedisKind
    hosts: tuple[tuple[str, int], ...]
    service: str
    url: str = field(repr=False)

    def __str__(self) -> str:
        """Return it for messages: without user and password."""
        if not self.hosts:
            return urlsplit(self.url).path
        return ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts)


def redis_address(url: str) -> RedisAddress:
    """Take a URL apart.

    Raises:
        ValueError: It is none; the message does not quote it.
    """
    try:
        parts = urlsplit(url)
        scheme, _, given = parts.scheme.partition("+")
        kind: RedisKind = {"": "server", "cluster": "cluster", "sentinel": "sentinel"}[given]  # type: ignore[assignment]
        if parts.fragment or (scheme not in {"redis", "rediss"} and parts.scheme != "unix"):
            raise ValueError  # noqa: TRY301 - one message for all
        if scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError  # noqa: TRY301
            return RedisAddress("server", (), "", url)
        return _over_network(kind, scheme, url)
    except (ValueError, KeyError):  # their texts would quote the URL
        raise ValueError(f"must be a URL like {_EXAMPLES}") from None


def _over_network(kind: RedisKind, scheme: str, url: str) -> RedisAddress:
    parts = urlsplit(url)
    user, at, listed = parts.netloc.rpartition("@")
    default = 26379 if kind == "sentinel" else 6379
    hosts = []
    for text in listed.split(","):
        each = urlsplit(f"//{text}")
        if not each.hostname or each.port == 0:
            raise ValueError
        hosts.append((each.hostname, each.port or default))
    if kind == "server" and len(hosts) > 1:
        raise ValueError
    path = [part for part in parts.path.split("/") if part]
    service = path.pop(0) if kind == "sentinel" and path else ""
    database = path.pop(0) if path else "0"
    if path or not database.isdigit() or (kind == "sentinel" and not service):
        raise ValueError
    if kind == "cluster" and database != "0":
        raise ValueError
    query = f"?{parts.query}" if parts.query else ""
    first = listed.split(",")[0]
    return RedisAddress(
        kind, tuple(hosts), service, f"{scheme}://{user}{at}{first}/{database}{query}"
    )


def _checked(url: SecretStr) -> SecretStr:
    redis_address(url.get_secret_value())
    if importlib.util.find_spec("redis") is None:
        raise ValueError('needs redis-py: pip install "aigateway[redis]"')
    return url


RedisUrl = Annotated[Key, AfterValidator(_checked)]
