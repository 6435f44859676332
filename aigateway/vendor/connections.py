"""Our own connections under litellm's calls, and a witness of what really went over them.

litellm and the SDKs below it re-send requests in places that no option reaches, and report
statuses that never came. So they get a transport of ours to send through: it lets exactly one
request out per call, follows no redirect, keeps no cookie, and writes down for the caller what
was sent and what came back.

It carries on aiohttp, because httpx's own pool is scanned at every request, which at a hundred
connections costs more than the call. The number of connections has no limit here: the gateway's
own limiter rules. Time has no limit here either, but for one that only keeps a forgotten call
from living for ever: the caller bounds it.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from yarl import URL

__all__ = [
    "LONGEST_CALL",
    "WITNESS",
    "OneShotTransport",
    "WireError",
    "Witness",
    "environment_proxy",
    "open_session",
    "tls_context",
]

LONGEST_CALL = 600.0
"""Seconds after which a call that nobody bounds ends."""

_KEEP_ALIVE = 60.0
"""Seconds an idle connection is kept."""

_NOT_FORWARDED = frozenset({"connection", "content-length", "transfer-encoding"})
"""Request headers that belong to the connection, which is aiohttp's."""


class WireError(httpx.TransportError):
    """The request did not get an answer. httpx's siblings of this class would be re-sent."""


class Witness:
    """What really happened on the wire during one call."""

    __slots__ = ("barred", "error", "requests", "response")

    def __init__(self) -> None:
        self.barred = False
        """Whether a request would be turned back: one has left, or nobody wants it any more."""
        self.response: httpx.Response | None = None
        """What came back, complete with its body."""
        self.error: BaseException | None = None
        """Why nothing (or not all of it) came back."""
        self.requests = 0
        """How many requests left; never more than one."""

    def bar(self) -> None:
        """Let no request out from now on."""
        self.barred = True


WITNESS: ContextVar[Witness | None] = ContextVar("aigateway_witness", default=None)
"""The witness of the call that runs in this context."""


class OneShotTransport(httpx.AsyncBaseTransport):
    """Connections of one provider on one event loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._proxies: dict[str, str | None] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, unless this call has sent one already."""
        witness = WITNESS.get() or Witness()
        if witness.barred:
            raise WireError("One call sends one request.", request=request)
        session = self._open_session(request)
        witness.bar()
        witness.requests += 1
        try:
            response = await self._exchange(session, request)
        except (aiohttp.ClientError, httpx.DecodingError, OSError, ValueError) as error:
            witness.error = error
            # Its words may quote what was sent.
            raise WireError(type(error).__name__, request=request) from error
        response.request = request
        witness.response = response
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open_session(self, request: httpx.Request) -> aiohttp.ClientSession:
        if self._closed:
            raise WireError("The client is closed.", request=request)
        if self._session is None:
            # httpx decompresses, where the headers still say so.
            self._session = open_session(auto_decompress=False)
        return self._session

    async def _exchange(
        self, session: aiohttp.ClientSession, request: httpx.Request
    ) -> httpx.Response:
        secure = request.url.scheme == "https"
        async with session.request(
            request.method,
            URL(str(request.url), encoded=True),
            headers=[(k, v) for k, v in request.headers.items() if k not in _NOT_FORWARDED],
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            data=await request.aread(),
            allow_redirects=False,
            proxy=self._proxy(request.url),
            ssl=tls_context() if secure else True,
        ) as answer:
            body = await answer.read()
            headers = [
                (name, value) for name, value in answer.raw_headers if name.lower() != b"set-cookie"
            ]
            return httpx.Response(answer.status, headers=headers, content=body)

    def _proxy(self, url: httpx.URL) -> str | None:
        """The proxy that the environment asks for, found once per server."""
        origin = f"{url.scheme}://{url.netloc.decode()}"
        if origin not in self._proxies:
            self._proxies[origin] = environment_proxy(url.scheme, url.host, url.port)
        return self._proxies[origin]


def open_session(**options: Any) -> aiohttp.ClientSession:
    """A pool as both lanes want it: without a limit of connections, cookies or a short timeout."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=LONGEST_CALL),
        **options,
    )


def environment_proxy(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy that the environment asks for on the way to this server, if any."""
    proxies: Mapping[str, str] = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host if port is None else f"{host}:{port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The view of httpx of whom to trust: certifi, or what SSL_CERT_FILE and SSL_CERT_DIR say."""
    return httpx.create_ssl_context()
