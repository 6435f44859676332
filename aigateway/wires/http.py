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

The direct lane takes connections and the parser of answers from aiohttp, and writes its requests
itself: aiohttp's own way of a call costs four times the CPU. Requests through a proxy, and those
with headers of the transport, go that way all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import math
import os
import ssl
import threading
import weakref
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, cast
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from aiohttp import ClientPayloadError, ClientRequest, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import EMPTY_BODY_STATUS_CODES
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser, RawResponseMessage
from aiohttp.http_writer import _serialize_headers
from aiohttp.streams import EMPTY_PAYLOAD
from yarl import URL

from aigateway.version import __version__
from aigateway.wires.wire import Received

__all__ = [
    "LONGEST_CALL",
    "ConnectionPool",
    "LoopEnd",
    "SharedSession",
    "VendorAnswer",
    "close_socket",
    "drop_session",
    "environment_proxy",
    "tls_context",
]

LONGEST_CALL = 600.0
"""Seconds after which a call without any other bound ends."""

_KEEP_ALIVE = 60.0
"""Seconds an idle connection is kept."""

_STALE = 1.0
"""Seconds in which a kept connection ends whose server had closed it before the request came. One
that ends later may have been asked."""

_SWEEPS = 1.0
"""Seconds that are at least between two looks for connections whose time is over."""

_lock = threading.Lock()
_ends: weakref.WeakSet[LoopEnd] = weakref.WeakSet()


class ConnectionPool:
    """A session of the running event loop, closed with it at the latest.

    It has no limit of connections, no cookies and no short timeout. Connections that are lent out
    carry requests of the direct lane, one after another, and are not seen by the session.

    Attributes:
        idle: Those that carry none, by the server's address.
        opening: aiohttp's request, from which it knows where to connect, and whom to trust.
    """

    __slots__ = ("__weakref__", "_end", "_lent", "_sweep", "idle", "loop", "opening", "session")

    def __init__(self, **options: Any) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
        self.loop = loop = asyncio.get_running_loop()
        make: Any = partial(_VendorConnection, loop=loop)
        connector._factory = make  # noqa: SLF001 - there is no public way
        self.session = session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=LONGEST_CALL),
            **options,
        )
        self._lent: set[_VendorConnection] = set()
        self.idle: defaultdict[object, list[_VendorConnection]] = defaultdict(list)
        self.opening: dict[object, ClientRequest] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._end = LoopEnd(
            partial(_close_session, session, self._lent), partial(drop_session, session, self._lent)
        )

    async def connect(self, request: ClientRequest) -> _VendorConnection:
        """Open a connection, which the session leaves alone."""
        connector = self.session.connector
        assert connector is not None  # noqa: S101 - else the session is closed, and not used
        with _closing_is_no_cancellation(self.session):
            async with asyncio.timeout(LONGEST_CALL):
                lent = await connector.connect(request, [], _UNBOUNDED)
        connection = cast("_VendorConnection", lent.protocol)
        connection.lent, connection.pool = lent, weakref.ref(self)
        connection.is_lent = True
        self._lent.add(connection)
        if self._sweep is None:
            self._sweep_after(_KEEP_ALIVE)
        return connection

    def forget(self, connection: _VendorConnection) -> None:
        """Look no longer after a connection, which is closed."""
        self._lent.discard(connection)

    def _sweep_after(self, seconds: float) -> None:
        # The timer must not keep the pool.
        self._sweep = self.loop.call_later(seconds, _sweep, weakref.ref(self))

    def sweep(self) -> None:
        """Close what was idle for too long, and end calls that take too long."""
        self._sweep = None
        if self.session.closed:
            return
        now = self.loop.time()
        earliest = now + _KEEP_ALIVE
        try:
            for kept in self.idle.values():
                # The longest idle comes first.
                while kept and kept[0].until <= now:
                    kept.pop(0).discard()
            for connection in tuple(self._lent):
                earliest = min(earliest, connection.until)
                if connection.until <= now:
                    connection.set_exception(TimeoutError())
        finally:  # an error with one connection must not end the bounds of the others
            if self._lent:
                self._sweep_after(max(_SWEEPS, earliest - now))

    async def aclose(self) -> None:
        """Close every connection. May be called twice."""
        if self._sweep is not None:
            self._sweep.cancel()
        await self._end.close()


@contextlib.contextmanager
def _closing_is_no_cancellation(session: aiohttp.ClientSession) -> Iterator[None]:
    """Fail a call whose look-up of its vendor ends with the session; aiohttp cancels it."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not session.closed or task is None or task.cancelling():
            raise
        raise aiohttp.ClientConnectionError("The connection was closed here.") from None


def _sweep(pool: weakref.ref[ConnectionPool]) -> None:
    alive = pool()
    if alive is not None:
        alive.sweep()


class _VendorConnection(ResponseHandler):
    """One that tells the reader of a body at once that what came is no HTTP, or that it is closed.

    aiohttp closes the connection then, and lets the reader wait until its time is over.

    Attributes:
        is_lent: The direct lane has it, which sets no timeout for reading, and asks by `ask`.
        lent: aiohttp's record of it then.
        pool: Its pool then. The loop keeps the connection, which must not keep the pool.
        until: When it is no longer kept, or the call has taken too long, on the loop's scale.
        is_silent: Nothing has come since it was asked.
    """

    is_lent = is_silent = False
    lent: Connection
    pool: weakref.ref[ConnectionPool]
    until = math.inf
    _head: asyncio.Future[tuple[RawResponseMessage, StreamReader]] | None = None

    def ask(
        self, head: bytes, added: Mapping[str, str], body: bytes
    ) -> asyncio.Future[tuple[RawResponseMessage, StreamReader]]:
        """Send a request, and return what gets the head of its answer and the reader of its body.

        aiohttp's own queue takes four calls for that. Raises `ValueError` for a header with a line
        break.
        """
        if self._exception is not None:  # it is closed already
            raise self._exception
        if added:
            length = f"Content-Length: {len(body)}"
            head += _serialize_headers(length, added)  # type: ignore[arg-type]
        else:
            head += b"Content-Length: %d\r\n\r\n" % len(body)
        answer: asyncio.Future[tuple[RawResponseMessage, StreamReader]]
        self._head = answer = self._loop.create_future()
        self.is_silent = True
        if self._tail:  # it has spoken before it was asked
            self.set_response_params(read_until_eof=True)
        else:
            self._parser = HttpResponseParser(
                self,
                self._loop,
                self._read_bufsize,
                payload_exception=ClientPayloadError,
                read_until_eof=True,
            )
        transport: asyncio.Transport = self.transport  # type: ignore[assignment]  # it is connected
        if len(body) < _COPIED:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        return answer

    def data_received(self, data: bytes) -> None:
        """Take what came, as aiohttp does, but for its timers, of which none is set here."""
        parser = self._parser
        if parser is None or self._upgraded or not self.is_lent:
            super().data_received(data)
            return
        self.is_silent = False
        try:
            messages, self._upgraded, tail = parser.feed_data(data)
        except BaseException as error:  # noqa: BLE001 - `_refuse` raises what is no `Exception`
            self._refuse(error)
            return
        for message, body in messages:
            if message.should_close:
                self._should_close = True
            self._payload = body
            code, head = message.code, self._head
            answer = (message, EMPTY_PAYLOAD if code in EMPTY_BODY_STATUS_CODES else body)
            if head is None:  # nothing was asked
                self.feed_data(answer, 0)
            elif code >= 200 or code == 101:  # those before it (`103 Early Hints`) say nothing
                self._head = None
                if not head.done():
                    head.set_result(answer)
        if self._upgraded and tail:
            self.data_received(tail)

    def was_closed_before(self, error: BaseException, asked: float) -> bool:
        """Return whether its server has closed it before it had the request, as far as it seems.

        Servers close what was idle for long enough, and a request may cross that on its way.

        Args:
            error: What the request failed with.
            asked: When it was sent, on the loop's scale.
        """
        ended = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        return ended and self.is_silent and self._loop.time() - asked < _STALE

    def _refuse(self, error: BaseException) -> None:
        """Close the connection: what came is no HTTP."""
        if self.transport is not None:
            self.transport.close()
        if not isinstance(error, Exception):
            raise error
        refused = HttpProcessingError()
        if isinstance(error, HttpProcessingError):
            code, message, headers = error.code, error.message, error.headers
            refused = HttpProcessingError(code=code, message=message, headers=headers)
        self.set_exception(refused, error)

    def keep(self, key: object) -> None:
        """Keep it for another request after a whole answer, if it can carry one.

        aiohttp asks for the same, in several calls. And a vendor that answers before it has the
        request may never read the rest of it.
        """
        pool, transport, body = self.pool(), self.transport, self._payload
        if (
            pool is None
            or transport is None
            or transport.is_closing()
            or self._should_close
            or self._tail
            or self._exception is not None
            or self._upgraded
            or self._buffer
            or (body is not None and not body.is_eof())
            or transport.get_write_buffer_size()
        ):
            self.discard()
            return
        self._parser = None  # what comes now makes it useless, see `_tail`
        self._payload = None  # its body has been read
        self.until = pool.loop.time() + _KEEP_ALIVE
        pool.idle[key].append(self)

    def resume_reading(self, *options: Any, **more: Any) -> None:
        """Read on, if reading has been paused: aiohttp asks for it with every piece of a body."""
        if self._reading_paused:
            super().resume_reading(*options, **more)

    def discard(self) -> None:
        """Close it at once, whatever is still to be written. Its share may be closed already."""
        if self.transport is not None:
            self.transport.abort()
        pool = self.pool()
        if pool is not None:
            pool.forget(self)
        self.lent.close()

    def close(self) -> None:
        """Close it, and let no reader of a body wait."""
        body = self._payload
        super().close()
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientConnectionError("The connection was closed here."))

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Pass the error on to the reader."""
        body, head = self._payload, self._head
        super().set_exception(exc, *cause)
        if head is not None:
            self._head = None
            if not head.done():
                head.set_exception(exc)
        ends = isinstance(exc, HttpProcessingError | TimeoutError)
        if ends and body is not None and not body.is_eof():
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


async def _close_session(
    session: aiohttp.ClientSession, lent: Collection[_VendorConnection]
) -> None:
    acquired = _acquired(session.connector)
    try:
        await session.close()
    finally:  # also where the loop ends before the sockets have closed
        _release(acquired, lent)


def _acquired(connector: aiohttp.BaseConnector | None) -> list[Any]:
    """Return the protocols of connections that are in use."""
    return [] if connector is None else list(connector._acquired)  # noqa: SLF001 - nothing public lists them


def _release(acquired: list[Any], lent: Collection[_VendorConnection]) -> None:
    """Release the connections of a closed connector, which complains when it is collected.

    A loop seldom ends while calls of the session are out, so they are looked for then, and not
    noted for each.
    """
    for each in lent:
        each.lent.release()
    if not set(lent).issuperset(acquired):
        for connection in [seen for seen in gc.get_objects() if type(seen) is Connection]:
            if connection.protocol in acquired:
                connection.release()


def drop_session(session: aiohttp.ClientSession, lent: Collection[_VendorConnection] = ()) -> None:
    """Close a session without its event loop, which is closed or does not run."""
    connector = session.connector
    if connector is None or connector.closed:
        return
    acquired = _acquired(connector)
    if session._loop.is_closed():  # noqa: SLF001 - its public name is deprecated
        idle = [protocol for pooled in connector._conns.values() for protocol, _ in pooled]  # noqa: SLF001
        for protocol in (*idle, *acquired):
            if getattr(protocol, "transport", None) is not None:
                close_socket(protocol.transport)
    connector._close()  # noqa: SLF001 - the public way needs a loop that runs
    _release(acquired, lent)


def close_socket(transport: Any) -> None:
    """Close the socket of a transport whose loop is closed."""
    with contextlib.suppress(RuntimeError):  # it cannot tell its protocol
        transport.abort()
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        close_socket(below)
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


class VendorAnswer:
    """The head of an answer, and what its body is read from."""

    __slots__ = ("connection", "content", "headers", "status")

    def __init__(
        self, connection: _VendorConnection, message: RawResponseMessage, content: StreamReader
    ) -> None:
        self.connection = connection
        self.status = message.code
        self.headers: Mapping[str, str] = message.headers
        self.content = content

    async def read(self) -> bytes:
        """Return the whole body."""
        content = self.content
        return content.read_nowait() if content.is_eof() else await content.read()


_TRANSPORTS = frozenset(
    {"connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say how a request is sent. aiohttp knows what follows from them."""

_MOST_HEADS = 64
"""Sets of headers whose bytes are kept. Those of a provider seldom change."""

_COPIED = 65_536
"""Bytes of a body up to which it is copied behind its head, and sent in one go."""

_NONE: Mapping[str, str] = {}


class SharedSession:
    """A provider's share in the running loop's pool. The last to be closed closes the pool."""

    __slots__ = (
        "__weakref__",
        "_heads",
        "_key",
        "_open",
        "_proxy",
        "_shared",
        "_stream_heads",
        "_stream_url",
        "_tls",
        "_url",
    )

    def __init__(self, url: str, stream_url: str | None = None) -> None:
        self._url = URL(url, encoded=True)
        self._stream_url = URL(stream_url or url, encoded=True)
        self._open: set[aiohttp.ClientResponse | VendorAnswer] = set()
        self._tls = tls_context() if self._url.scheme == "https" else True
        self._proxy = environment_proxy(self._url.scheme, self._url.host or "", self._url.port)
        self._key = (self._url.scheme, self._url.raw_host, self._url.port)
        self._heads: dict[object, bytes] = {}
        self._stream_heads = self._heads if self._stream_url == self._url else {}
        loop = asyncio.get_running_loop()
        shared = _shared.setdefault(id(loop), _Shared(loop))
        shared.users.add(self)
        self._shared: _Shared | None = shared

    async def post(
        self,
        headers: Mapping[str, str],
        body: bytes,
        note: Callable[[Mapping[str, str]], object],
        added: Mapping[str, str] = _NONE,
    ) -> Received:
        """Send one request and return the status, the headers and the body of its answer.

        `note` gets the headers as soon as they came.

        `added` are headers that differ from call to call, and are none of `headers`.

        Raises `RuntimeError` if this share is closed.
        """
        shared = self._shared
        pool = None if shared is None else shared.pool
        if pool is None:
            pool = self._pool()
        head = self._heads.get(tuple(headers.items()))
        if head is None:
            head = self._head(pool, self._url, headers)
        if not head:
            headers = {**headers, **added}
            sent = self._through_aiohttp(self._pool(), self._url, headers, body)
            async with await sent as response:
                note(response.headers)
                return response.status, response.headers, await response.read()
        now = pool.loop.time()
        connection = kept = self._kept(pool, now)
        while True:
            if connection is None:
                connection = await self._connect(pool, self._url)
            try:
                connection.until = now + LONGEST_CALL
                message, content = await connection.ask(head, added, body)
                note(message.headers)
                # What came in one go is at hand; aiohttp takes six calls to hand it over.
                if (
                    type(content) is StreamReader
                    and content._eof  # noqa: SLF001
                    and content._exception is None  # noqa: SLF001
                    and not connection._reading_paused  # noqa: SLF001
                ):
                    received = b"".join(content._buffer)  # noqa: SLF001
                else:
                    received = await content.read()
                connection.keep(self._key)
            except BaseException as error:
                connection.discard()
                if connection is not kept or not connection.was_closed_before(error, now):
                    raise
                connection = None  # again, on a new one
            else:
                return message.code, message.headers, received

    async def stream(
        self, headers: Mapping[str, str], body: bytes, added: Mapping[str, str] = _NONE
    ) -> aiohttp.ClientResponse | VendorAnswer:
        """Send one request, and return its response as soon as it begins; `leave` it afterwards."""
        pool = self._pool()
        url = self._stream_url
        head = self._stream_heads.get(tuple(headers.items()))
        if head is None:
            head = self._head(pool, url, headers)
        response: aiohttp.ClientResponse | VendorAnswer
        if head:
            response = await self._begun(pool, url, head, added, body)
        else:
            headers = {**headers, **added}
            response = await self._through_aiohttp(pool, url, headers, body, timeout=_UNBOUNDED)
        self._open.add(response)
        return response

    async def _begun(
        self, pool: ConnectionPool, url: URL, head: bytes, added: Mapping[str, str], body: bytes
    ) -> VendorAnswer:
        """Send one request over a connection of our own, as `post` does."""
        now = pool.loop.time()
        connection = kept = self._kept(pool, now)
        while True:
            if connection is None:
                connection = await self._connect(pool, url)
            try:
                connection.until = math.inf
                return VendorAnswer(connection, *await connection.ask(head, added, body))
            except BaseException as error:
                connection.discard()
                if connection is not kept or not connection.was_closed_before(error, now):
                    raise
                connection = None

    def leave(self, response: aiohttp.ClientResponse | VendorAnswer, *, kept: bool) -> None:
        """Finish with a stream's response; `kept` if the connection can be used again."""
        if kept and not response.content.is_eof():
            asyncio.get_running_loop().call_later(_LAST_BYTES, self._close, response)
            if isinstance(response, VendorAnswer):
                response.content.on_eof(partial(self._close, response))
        else:
            self._close(response)

    def _close(self, response: aiohttp.ClientResponse | VendorAnswer) -> None:
        if response not in self._open:
            return
        self._open.discard(response)
        if not isinstance(response, VendorAnswer):
            # At the end of a body aiohttp has taken the connection back by itself.
            response.close()
            return
        if response.content.is_eof():
            response.connection.keep(self._key)
        else:
            response.connection.discard()

    def _kept(self, pool: ConnectionPool, now: float) -> _VendorConnection | None:
        """Return an open connection that carries no request, if there is one."""
        kept = pool.idle[self._key]
        while kept:
            connection = kept.pop()
            transport = connection.transport
            # It could carry a request when it was kept. It may have ended, or spoken, since then.
            if (
                connection.until > now
                and transport is not None
                and not transport.is_closing()
                and not connection._should_close  # noqa: SLF001
                and not connection._tail  # noqa: SLF001
            ):
                return connection
            connection.discard()
        return None

    async def _connect(self, pool: ConnectionPool, url: URL) -> _VendorConnection:
        if pool.session.closed:  # its loop has closed what it had, and goes on all the same
            pool = self._pool()
        key = (self._key, self._tls)
        opening = pool.opening.get(key)
        if opening is None:  # aiohttp takes longer to make a request than to connect
            opening = pool.opening[key] = self._request(pool, url, {})
        return await pool.connect(opening)

    def _head(self, pool: ConnectionPool, url: URL, headers: Mapping[str, str]) -> bytes:
        """Return the head of a request but for its length; empty to leave the request to aiohttp.

        Raises `ValueError` for a header with a line break.
        """
        head = b""
        if self._proxy is None and _TRANSPORTS.isdisjoint(map(str.lower, headers)):
            request = self._request(pool, url, headers)
            written = request.headers.copy()
            written.popall("Content-Length")
            line = f"{request.method} {request.url.raw_path_qs} HTTP/1.1"
            head = _serialize_headers(line, written)[:-2]
        heads = self._heads if url is self._url else self._stream_heads
        if len(heads) >= _MOST_HEADS:
            heads.clear()
        heads[tuple(headers.items())] = head
        return head

    def _request(self, pool: ConnectionPool, url: URL, headers: Mapping[str, str]) -> ClientRequest:
        """Return aiohttp's request, with the headers that it adds."""
        given = pool.session.headers.copy()
        given.update(headers)
        return ClientRequest(
            "POST",
            url,
            headers=given,
            data=b"{}",
            ssl=self._tls,
            loop=pool.loop,
            session=pool.session,
        )

    async def _through_aiohttp(
        self,
        pool: ConnectionPool,
        url: URL,
        headers: Mapping[str, str],
        body: bytes,
        **options: Any,
    ) -> aiohttp.ClientResponse:
        with _closing_is_no_cancellation(pool.session):
            return await pool.session.post(
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                proxy=self._proxy,
                ssl=self._tls,
                **options,
            )

    def _pool(self) -> ConnectionPool:
        shared = self._shared
        if shared is None:
            raise RuntimeError("This vendor client is closed.")
        pool = shared.pool
        if pool is None or pool.session.closed:
            pool = ConnectionPool(headers={"User-Agent": f"aigateway/{__version__}"})
            shared.pool = pool
        return pool

    async def aclose(self) -> None:
        """Give up the share. May be called twice."""
        shared = self._shared
        if shared is None:
            return
        for response in tuple(self._open):
            self._close(response)
        self._shared = None
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
