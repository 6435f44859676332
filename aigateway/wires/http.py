"""Connections of both lanes, which end with their event loop, however it ends.

A gateway outlives the loops it is used on: one `asyncio.run` after another uses a module-level
gateway, without notice before a loop closes. What is open is closed by

- the end of the loop: `asyncio.run` closes the asynchronous generators of a loop before it closes
  the loop, so each pool waits in such a generator;
- the next pool, if a loop was closed by hand. A transport closes its socket in a callback, which a
  closed loop does not run, so the socket is closed without it;
- the garbage collector or the end of the process.

All providers of the direct lane share one pool for each event loop. The gateway's limiter bounds
the connections, and the caller the time. No redirect is followed and no cookie kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from aigateway.version import __version__

__all__ = [
    "LONGEST_CALL",
    "ConnectionPool",
    "LoopEnd",
    "SharedSession",
    "drop_session",
    "environment_proxy",
    "tls_context",
]

LONGEST_CALL = 600.0
"""Seconds after which a call without any other bound ends."""

_KEEP_ALIVE = 60.0
"""Seconds an idle connection is kept."""

_lock = threading.Lock()
_ends: weakref.WeakSet[LoopEnd] = weakref.WeakSet()


class ConnectionPool:
    """A session of the running event loop, closed with it at the latest.

    It has no limit of connections, no cookies and no short timeout.
    """

    __slots__ = ("_end", "session")

    def __init__(self, **options: Any) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
        make: Any = partial(_VendorConnection, loop=asyncio.get_running_loop())
        connector._factory = make  # noqa: SLF001 - there is no public way
        self.session = session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=LONGEST_CALL),
            **options,
        )
        self._end = LoopEnd(partial(_close_session, session), partial(drop_session, session))

    async def aclose(self) -> None:
        """Close every connection. May be called twice."""
        await self._end.close()


class _VendorConnection(ResponseHandler):
    """One that tells the reader of a body at once that what came is no HTTP.

    aiohttp closes the connection then, and lets the reader wait until its time is over.
    """

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Pass the error on to the reader."""
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof():
            body.set_exception(exc)


class LoopEnd:
    """Closes a resource before the running event loop closes, or after it has (`drop`).

    `close` and `drop` must not refer to the owner of this object.
    """

    __slots__ = ("__weakref__", "_drop", "_waiting", "loop")

    def __init__(self, close: Callable[[], Awaitable[Any]], drop: Callable[[], None]) -> None:
        _drop_what_closed_loops_left()
        self.loop = asyncio.get_running_loop()
        self._waiting = _close_at_the_end(close)
        _step(self._waiting.__anext__())
        self._drop = weakref.finalize(self, _drop, self.loop, self._waiting, drop, os.getpid())
        with _lock:
            _ends.add(self)

    async def close(self) -> None:
        """Close now, on the loop."""
        # The loop's own end may be under way in the same generator.
        with contextlib.suppress(RuntimeError):
            await self._waiting.aclose()
        self._drop.detach()

    def drop(self) -> None:
        """Close what a closed loop has left. May be called twice."""
        self._drop()


async def _close_at_the_end(close: Callable[[], Awaitable[Any]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await close()


def _step(awaitable: Awaitable[Any]) -> None:
    """Run an awaitable that does not really wait."""
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        awaitable.__await__().__next__()


def _drop(
    loop: asyncio.AbstractEventLoop,
    waiting: AsyncGenerator[None, None],
    drop: Callable[[], None],
    process: int,
) -> None:
    """Close what is collected, or is open at the end of the process."""
    if loop.is_running():
        return  # it closes the generator itself, as soon as that is collected
    # A forked child must not touch a loop that its parent may go on with.
    if loop.is_closed() or process == os.getpid():
        drop()
        _step(waiting.aclose())


def _drop_what_closed_loops_left() -> None:
    with _lock:
        ends = [end for end in _ends if end.loop.is_closed()]
    for end in ends:
        end.drop()


async def _close_session(session: aiohttp.ClientSession) -> None:
    acquired = _acquired(session.connector)
    await session.close()
    _release(acquired)


def _acquired(connector: aiohttp.BaseConnector | None) -> list[Any]:
    """Return the protocols of connections that are in use."""
    return [] if connector is None else list(connector._acquired)  # noqa: SLF001 - nothing public lists them


def _release(acquired: list[Any]) -> None:
    """Release the connections of a closed connector, which complains when it is collected.

    A loop seldom ends while calls are out, so they are looked for then, and not noted for each.
    """
    if acquired:
        for connection in [each for each in gc.get_objects() if type(each) is Connection]:
            if connection.protocol in acquired:
                connection.release()


def drop_session(session: aiohttp.ClientSession) -> None:
    """Close a session without its event loop, which is closed or does not run."""
    connector = session.connector
    if connector is None or connector.closed:
        return
    acquired = _acquired(connector)
    if session._loop.is_closed():  # noqa: SLF001 - its public name is deprecated
        idle = [protocol for pooled in connector._conns.values() for protocol, _ in pooled]  # noqa: SLF001
        for protocol in (*idle, *acquired):
            if getattr(protocol, "transport", None) is not None:
                _close_socket(protocol.transport)
    connector._close()  # noqa: SLF001 - the public way needs a loop that runs
    _release(acquired)


def _close_socket(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed."""
    with contextlib.suppress(RuntimeError):  # it cannot tell its protocol
        transport.abort()
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        _close_socket(below)
    # asyncio's closes its socket here, in a callback. Others' (uvloop's) are closed by the loop.
    close = getattr(transport, "_call_connection_lost", None)
    if close is not None and transport.get_protocol() is not None:
        transport.set_protocol(asyncio.Protocol())  # the real one would wake tasks on the loop
        close(None)


_LAST_BYTES = 0.25
"""Seconds that the end of a body may take once its content is whole. A connection that ends its
body in time is used again; opening another takes two or three journeys to the vendor."""

_UNBOUNDED = aiohttp.ClientTimeout(total=None)


class _Shared:
    __slots__ = ("__weakref__", "loop", "pool", "users")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop  # kept, so that no other loop has its id
        self.pool: ConnectionPool | None = None
        self.users: weakref.WeakSet[SharedSession] = weakref.WeakSet()


_shared: weakref.WeakValueDictionary[int, _Shared] = weakref.WeakValueDictionary()
"""By the id of the event loop. The users keep an entry, which keeps its loop."""


class SharedSession:
    """A provider's share in the running loop's pool. The last to be closed closes the pool."""

    __slots__ = ("__weakref__", "_open", "_proxy", "_shared", "_stream_url", "_tls", "_url")

    def __init__(self, url: str, stream_url: str | None = None) -> None:
        self._url = URL(url, encoded=True)
        self._stream_url = URL(stream_url or url, encoded=True)
        self._open: set[aiohttp.ClientResponse] = set()
        self._tls = tls_context() if self._url.scheme == "https" else True
        self._proxy = environment_proxy(self._url.scheme, self._url.host or "", self._url.port)
        loop = asyncio.get_running_loop()
        shared = _shared.setdefault(id(loop), _Shared(loop))
        shared.users.add(self)
        self._shared: _Shared | None = shared

    def post(
        self, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send one request. Raises `RuntimeError` if this share is closed."""
        return self._session().post(
            self._url,
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=self._proxy,
            ssl=self._tls,
        )

    async def stream(self, headers: Mapping[str, str], body: bytes) -> aiohttp.ClientResponse:
        """Send one request, and return its response as soon as it begins; `leave` it afterwards."""
        response = await self._session().post(
            self._stream_url,
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=self._proxy,
            ssl=self._tls,
            timeout=_UNBOUNDED,
        )
        self._open.add(response)
        return response

    def leave(self, response: aiohttp.ClientResponse, *, kept: bool) -> None:
        """Finish with a stream's response; `kept` if the connection can be used again."""
        if kept and not response.content.at_eof():
            asyncio.get_running_loop().call_later(_LAST_BYTES, self._close, response)
        else:
            self._close(response)

    def _close(self, response: aiohttp.ClientResponse) -> None:
        # At the end of a body aiohttp has taken the connection back by itself.
        self._open.discard(response)
        response.close()

    def _session(self) -> aiohttp.ClientSession:
        shared = self._shared
        if shared is None:
            raise RuntimeError("This vendor client is closed.")
        if shared.pool is None or shared.pool.session.closed:
            shared.pool = ConnectionPool(headers={"User-Agent": f"aigateway/{__version__}"})
        return shared.pool.session

    async def aclose(self) -> None:
        """Give up the share. May be called twice."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        for response in tuple(self._open):
            self._close(response)
        shared.users.discard(self)
        if not shared.users and shared.pool is not None:
            pool, shared.pool = shared.pool, None
            await pool.aclose()


def environment_proxy(scheme: str, host: str, port: int | None) -> str | None:
    """Return the proxy that the environment sets for this server, if any."""
    proxies: Mapping[str, str] = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host if port is None else f"{host}:{port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the certificates that httpx trusts: certifi, or SSL_CERT_FILE and SSL_CERT_DIR."""
    return httpx.create_ssl_context()
