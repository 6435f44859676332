"""Pools of connections that end with their event loop, however it ends.

A gateway outlives the loops it is used on: one `asyncio.run` after another uses a module-level
gateway, and nothing tells it that a loop is about to close. What is open is closed by

- the end of the loop: `asyncio.run` closes the asynchronous generators of a loop before it closes
  the loop, so each pool waits in such a generator;
- the next pool, if a loop was closed by hand. A transport closes its socket in a callback, which a
  closed loop does not run, so the socket is closed without it;
- the garbage collector or the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["LONGEST_CALL", "ConnectionPool", "close_litellms_pools_with_the_loop"]

LONGEST_CALL = 600.0
"""Seconds after which a call that nobody bounds ends."""

_KEEP_ALIVE = 60.0
"""Seconds an idle connection is kept."""

_lock = threading.Lock()
_ends: weakref.WeakSet[_LoopEnd] = weakref.WeakSet()
_litellms: dict[int, _LoopEnd] = {}


class ConnectionPool:
    """Connections of the running event loop, closed with it at the latest.

    As both lanes want them: without a limit of connections, cookies or a short timeout.

    Args:
        **options: For `aiohttp.ClientSession`.

    Attributes:
        session: Sends requests.
    """

    __slots__ = ("_end", "session")

    def __init__(self, **options: Any) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
        make: Any = partial(_Connection, loop=asyncio.get_running_loop())
        connector._factory = make  # noqa: SLF001 - there is no public way
        self.session = session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=LONGEST_CALL),
            **options,
        )
        self._end = _LoopEnd(partial(_close_session, session), partial(_drop_session, session))

    async def aclose(self) -> None:
        """Close every connection. May be called twice."""
        await self._end.bring_about()


class _Connection(ResponseHandler):
    """One that tells the reader of a body at once that what came is no HTTP.

    aiohttp closes the connection then, and lets the reader wait until its time is over.
    """

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Note why the connection is of no use."""
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof():
            body.set_exception(exc)


class _LoopEnd:
    """Closes something before the running event loop closes, or after it has.

    Args:
        close: Closes on the running loop. It and `drop` must not refer to the owner of this object.
        drop: Closes without the loop, which is closed or does not run.
    """

    __slots__ = ("__weakref__", "_drop", "_waiting", "loop")

    def __init__(self, close: Callable[[], Awaitable[Any]], drop: Callable[[], None]) -> None:
        _drop_what_closed_loops_left()
        self.loop = asyncio.get_running_loop()
        self._waiting = _waiting_for_the_end(close)
        _step(self._waiting.__anext__())
        self._drop = weakref.finalize(self, _drop, self.loop, self._waiting, drop, os.getpid())
        with _lock:
            _ends.add(self)

    async def bring_about(self) -> None:
        """Close now, on the loop."""
        # The loop's own end may be under way in the same generator.
        with contextlib.suppress(RuntimeError):
            await self._waiting.aclose()
        self._drop.detach()

    def drop(self) -> None:
        """Close what a closed loop has left. May be called twice."""
        self._drop()


async def _waiting_for_the_end(close: Callable[[], Awaitable[Any]]) -> AsyncGenerator[None, None]:
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
    _take_back(acquired)


def _acquired(connector: aiohttp.BaseConnector | None) -> list[Any]:
    """The protocols of connections that are in use."""
    return [] if connector is None else list(connector._acquired)  # noqa: SLF001 - nothing public lists them


def _take_back(acquired: list[Any]) -> None:
    """Take back from a closed connector what is in use: it complains when it is collected.

    A loop seldom ends while calls are out, so they are looked for then, and not noted for each.
    """
    if acquired:
        for connection in [each for each in gc.get_objects() if type(each) is Connection]:
            if connection.protocol in acquired:
                connection.release()


def _drop_session(session: aiohttp.ClientSession) -> None:
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
    _take_back(acquired)


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


def close_litellms_pools_with_the_loop(litellm: ModuleType) -> None:
    """See that what litellm opens on the running event loop is closed with it.

    litellm keeps its clients for an hour, a set for each loop. The connections below them are
    closed, which would be opened again where a caller of litellm has such a client, too, and
    litellm forgets the clients, which would keep the loop.
    """
    loop = asyncio.get_running_loop()
    if id(loop) in _litellms:
        return

    async def close() -> None:
        _litellms.pop(id(loop), None)
        for transport in _litellms_transports(litellm, loop):
            with contextlib.suppress(Exception):
                await transport.aclose()
        _forget_litellms_clients(litellm, loop)

    def drop() -> None:
        _litellms.pop(id(loop), None)
        for transport in _litellms_transports(litellm, loop):
            session = getattr(transport, "client", None)
            if isinstance(session, aiohttp.ClientSession):
                _drop_session(session)
        _forget_litellms_clients(litellm, loop)

    # Not kept by a client: litellm's connections stay open when ours is closed.
    _litellms[id(loop)] = _LoopEnd(close, drop)


def _litellms_transports(litellm: ModuleType, loop: asyncio.AbstractEventLoop) -> list[Any]:
    """What litellm's own clients send through on this loop."""
    cached = dict(getattr(litellm.in_memory_llm_clients_cache, "cache_dict", {}))
    transports = []
    for key, client in (*cached.items(), ("", getattr(litellm, "module_level_aclient", None))):
        http = getattr(client, "_client", None) or getattr(client, "client", None)
        for transport in (
            getattr(http, "_transport", None),
            *getattr(http, "_mounts", {}).values(),
        ):
            session = getattr(transport, "client", None)
            if isinstance(session, aiohttp.ClientSession):
                is_of_the_loop = session._loop is loop  # noqa: SLF001 - its public name is deprecated
            else:
                is_of_the_loop = str(key).endswith(f"-{id(loop)}")
            if transport is not None and is_of_the_loop:
                transports.append(transport)
    return transports


def _forget_litellms_clients(litellm: ModuleType, loop: asyncio.AbstractEventLoop) -> None:
    cache = litellm.in_memory_llm_clients_cache
    for key in tuple(getattr(cache, "cache_dict", ())):
        if str(key).endswith(f"-{id(loop)}"):
            with contextlib.suppress(Exception):
                cache.delete_cache(key)
