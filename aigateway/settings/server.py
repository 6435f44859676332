"""The settings of the service: where it listens, which keys may use it, and its limits."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from aigateway.settings.fields import (
    Count,
    Frozen,
    Label,
    Positive,
    Seconds,
    SecondsOrZero,
    explain,
    unknown_name,
)
from aigateway.settings.sources import SERVER_PREFIX, TableSettings, expanded, settings_file

__all__ = ["AUTO", "DECIDED_BY_SERVICE", "IN_MEMORY", "ApiKey", "ServerSettings", "decides_route"]

AUTO = "auto"
"""The model of a client that has to name one and means any."""

IN_MEMORY = ":memory:"
"""As `state_dir`: nothing is kept."""

DECIDED_BY_SERVICE = (
    "api_base",
    "api_key",
    "api_version",
    "base_url",
    "custom_llm_provider",
    "extra_body",
    "extra_headers",
    "fallbacks",
    "headers",
    "hedge",
    "max_retries",
    "model_list",
    "num_retries",
)
"""Parameters that would decide where a request goes, with which key, and how often."""

_NEVER_PASSED = re.compile(
    rf"{'|'.join(DECIDED_BY_SERVICE)}|(api|aws|azure|base|litellm|vertex|watsonx)_.*|.*cost_per_.*"
    r"|.*(api_key|auth|base_url|credentials|endpoint|headers|password|proxy|secret|url)"
    r"|access_token|fallback_models|models|provider|route|token"  # of OpenRouter and the like
    r"|cache(_ttl)?|caching|(http_)?client|extra_query|mock_.*|(organization|project|deployment)(_id)?|(request_|stream_)?timeout"
)
"""These, their like in litellm and in clients, and what headers of a request decide."""


_OWN = frozenset({"authorization", "bearer", "input", "messages", "model", "prompt", "stream"})
"""What a request itself says, by its own fields and headers alone."""


def decides_route(name: str) -> bool:
    """Return whether a field of a request may decide where it goes, or with which key."""
    return _NEVER_PASSED.fullmatch(name.lower()) is not None


def _passable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        raise ValueError("is no name of a parameter: letters, digits and underscores")
    if decides_route(name) or name.lower() in _OWN:
        raise ValueError("may decide where a request goes or with which key; it is never passed on")
    return name


def _digest(text: str) -> str:
    if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
        raise ValueError("must be the 64 hexadecimal digits that `aigateway key` prints")
    return text.lower()


def _not_admin(name: str) -> str:
    if name == "admin":
        raise ValueError("is the name of the key in admin_sha256; choose another name")
    return name


def _directory(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError('must be a directory, or ":memory:"')
    return name


Digest = Annotated[str, AfterValidator(_digest)]
"""The SHA-256 of a key, in hexadecimal digits, so that the key itself is stored nowhere."""


class ApiKey(Frozen):
    """One key of the service, and its limits.

    Attributes:
        name: Names the key's owner, also in `/metrics`.
        sha256: The SHA-256 of the key.
        budget_usd: US dollars that its requests may cost in a day (UTC); None is no limit.
        rpm: Requests that it may begin in any 60 seconds; None is no limit.
        models: Models, names and aliases that it may request; None is all.
        monitor: Whether it sees what every key has used, as the admin's key does: for Prometheus.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[Label, AfterValidator(_not_admin)]
    sha256: Digest
    budget_usd: Positive | None = None
    rpm: Count | None = None
    models: tuple[Label, ...] | None = None
    monitor: bool = False


def _read_key(place: int, given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    problem = unknown_name("setting", given, ApiKey.model_fields)
    if problem is None:
        try:
            return ApiKey(**given)
        except ValidationError as error:
            problem = explain(error)
    name = given.get("name")
    which = f"the key {name!r}" if isinstance(name, str) else f"key number {place + 1}"
    raise ValueError(f"{which}: {problem}")


class ServerSettings(TableSettings):
    """Everything about the service that is not the gateway. Durations are seconds.

    Each field may be given by keyword, as `AIGATEWAY_SERVER_<FIELD>` in the environment or `.env`,
    or under `[server]` in `aigateway.toml`; keys also as `[[server.keys]]`.

    Raises:
        ConfigurationError: A value cannot work, or a name is not known.
    """

    table = "server"
    _broken_json = f"{SERVER_PREFIX}KEYS, _CORS_ORIGINS and _PASS_PARAMS must be JSON lists"
    model_config = SettingsConfigDict(env_prefix=SERVER_PREFIX)

    host: str = "127.0.0.1"
    """The address to listen on. An address other than loopback needs `keys`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port to listen on; 0 takes a free one."""
    workers: Count = 1
    """Worker processes."""
    keys: tuple[ApiKey, ...] = ()
    """Keys that may use the service; in the environment a JSON list. Without keys, every process on
    this machine may."""
    admin_sha256: Digest | None = None
    """SHA-256 of the key that may also force circuits open and closed."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the service from a browser; "*" is all."""
    state_dir: Annotated[str, AfterValidator(_directory)] | None = None
    """The directory of `aigateway-state.sqlite`, which keeps accounts, usage, forced circuits and
    what was learned of prices and latencies over a restart; on a local disk. Default: that of
    `aigateway.toml`. ":memory:" keeps nothing."""
    max_body_bytes: Count = 20_000_000
    """Longest body of a request in bytes; a longer one is rejected with 413."""
    request_timeout: Seconds = 120.0
    """Seconds for one request, its arrival included, whatever timeout it asks for; for a stream,
    until its first content."""
    header_timeout: Seconds = 10.0
    """Seconds for a request to arrive: its head, and then its body. A body that keeps coming at
    64 kB/s or more may take longer."""
    max_connections: Count = 4096
    """Open connections of one worker; more are rejected with 503."""
    max_connections_per_address: Count = 2048
    """Open connections of one client address (with IPv6, of one /64); more are rejected with 429.
    Behind a proxy all connections have its address."""
    keep_alive_timeout: Seconds = 75.0
    """Seconds a connection stays open without a request. Clients should close first: configure a
    shorter time in a proxy in front."""
    stream_resume: Literal["none", "continue", "restart"] = "none"
    """What happens to a stream that breaks after its first content, unless the request's header
    `x-aigateway-resume` decides. "none" ends it with an error. "continue" lets another provider
    continue the partial text, if its model can. "restart" starts over at another provider, after a
    chunk with `aigateway.restarted`."""
    pass_params: tuple[Annotated[str, AfterValidator(_passable)], ...] = ()
    """Parameters of a chat or a completion that go to the provider as they are, although this
    release does not know them: those of local servers (`min_p`, `chat_template_kwargs`), and newer
    ones. Any other unknown parameter is rejected."""
    drain_seconds: SecondsOrZero = 30.0
    """Seconds that requests in flight may take after a stop signal; then streams get an error and
    are closed."""
    drain_notice_seconds: SecondsOrZero = 1.0
    """The first part of `drain_seconds`: `/ready` reports 503 and new requests are still answered,
    until a load balancer has noticed."""
    otel: bool = False
    """Whether requests and attempts become spans and metrics of OpenTelemetry (extra `[otel]`). The
    process needs OpenTelemetry providers: run it as `opentelemetry-instrument aigateway serve`."""

    @property
    def state_directory(self) -> Path | None:
        """Return the directory of the state; None if nothing is kept."""
        if self.state_dir == IN_MEMORY:
            return None
        beside = settings_file().parent
        return beside if self.state_dir is None else beside / expanded(self.state_dir)

    @property
    def is_local(self) -> bool:
        """Return whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @field_validator("keys", mode="before")
    @classmethod
    def _read_keys(cls, given: object) -> object:
        """Name the key that is wrong: of several, the place does not say which that is."""
        if not isinstance(given, list | tuple):
            return given
        return [_read_key(place, key) for place, key in enumerate(given)]

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/]+", origin):
                raise ValueError('an origin is "https://host" (with :port, without a path), or "*"')
        return origins

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.drain_notice_seconds > self.drain_seconds:
            raise ValueError("drain_notice_seconds: is part of drain_seconds; lower it to that")
        return self

    @model_validator(mode="after")
    def _check_otel(self) -> Self:
        if self.otel and importlib.util.find_spec("opentelemetry") is None:
            raise ValueError('otel: needs packages that are missing; pip install "aigateway[otel]"')
        return self

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if not self.keys and not self.is_local:
            raise ValueError(
                "host: without keys everybody who can reach this address could spend your money;"
                " make a key with `aigateway key` and put it under [[server.keys]], or leave host"
                " out to listen on 127.0.0.1"
            )
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"keys: two have the same {what}; give each its own")
        if any(key.sha256 == self.admin_sha256 for key in self.keys):
            raise ValueError("admin_sha256: is also one of keys; make a separate key for it")
        return self
