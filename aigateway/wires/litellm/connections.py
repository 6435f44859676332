"""The transport under litellm's calls, and a witness of what really went over it.

litellm and the SDKs below it re-send requests in places that no option reaches, and report statuses
that never came. So they send through a transport of ours: it lets one request out per call, follows
no redirect, keeps no cookie, and records for the caller what was sent and what came back.

It uses aiohttp, because httpx's own pool is scanned at every request, which at a hundred
connections costs more than the call. The gateway's limiter bounds the connections, and the caller
the time.

litellm's behaviour is governed by globals, which are not ours to set. Context variables (`WITNESS`,
`SILENT`) reach exactly the calls that we make.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any, TypeVar

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from aigateway.wires.anthropic import InputKeeper, server_calls_in
from aigateway.wires.http import LONGEST_CALL, ConnectionPool, environment_proxy, tls_context
from aigateway.wires.json_bodies import mend_usage, parsed, with_extra_body
from aigateway.wires.loading import SILENT
from aigateway.wires.stream_reading import EventParser
from aigateway.wires.tool_calls import unify

__all__ = [
    "WITNESS",
    "OneShotTransport",
    "StreamedBody",
    "WireError",
    "Witness",
    "callbacks_of",
    "has_callbacks",
    "own_call",
]

_NOT_FORWARDED = frozenset({"connection", "content-length", "transfer-encoding"})
"""Request headers that belong to the connection, which is aiohttp's."""

_END_OF_BODY = 0.05
"""Seconds that the end of a body may take behind the last event, so that the connection is kept."""

_NO_EVENT = 64 * 1024
"""Bytes kept of a body without events, for a look at what it is instead."""

_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""A character that may be half of one, escaped or not."""

_BREAKS = (aiohttp.ClientError, httpx.DecodingError, HttpProcessingError, OSError, ValueError)
"""How a request, or the reading of its answer, fails."""


class WireError(httpx.TransportError):
    """The request did not get an answer. httpx's siblings of this class would be re-sent."""


class StreamedBody(httpx.AsyncByteStream):
    """The body of a streamed answer, handed on event by event as it comes.

    litellm leaves out an event that it cannot read, makes an answer of a comment, and tells an
    error in its own words. So it is given only events that are JSON, each on one line, and at
    anything else the body breaks.

    It belongs to the stream that is read from it, not to httpx: only `close` and `end` close it.
    `event` is the one handed on last. `instead` is what came where an event should be: an error of
    the vendor's, or the beginning of a body without events.
    """

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        # What is compressed in spite of the request is left to httpx.
        compressed = answer.headers.get("Content-Encoding", "identity") != "identity"
        self._parser = None if compressed else EventParser()
        self._has_events = False
        self.error: BaseException | None = None
        self.event: Any = None
        self.instead = b""
        self.is_over = False
        self.server_calls: frozenset[str] = frozenset()
        self._inputs = InputKeeper()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what comes. Raises `WireError` if the connection breaks or sends no event."""
        try:
            while received := await self._answer.content.readany():
                for event in self._events(received):
                    yield event
            for event in self._events(b""):
                yield event
        except ValueError as error:  # no JSON, or too long
            raise WireError("An event cannot be read.") from error
        except _BREAKS as error:
            self.error = error
            raise WireError(type(error).__name__) from error

    async def end(self) -> None:
        """Let the connection be used again if the body ends now; else close it."""
        try:
            with contextlib.suppress(TimeoutError, *_BREAKS):
                async with asyncio.timeout(_END_OF_BODY):
                    while not self._answer.content.at_eof():
                        await self._answer.content.readany()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection at once, unless the body has been read to its end."""
        self._answer.close()

    def _events(self, received: bytes) -> Iterator[bytes]:
        """Yield the events that are whole now; nothing received is the end."""
        if self._parser is None:
            yield received
            return
        if not self._has_events:
            self.instead = (self.instead + received)[:_NO_EVENT]
        for name, data in self._parser.feed(received) if received else self._parser.end():
            if not self._has_events:
                self._has_events, self.instead = True, b""
            line = self._on_one_line(data)
            missing = self._inputs.before(self.event) if isinstance(self.event, Mapping) else None
            if missing is not None:
                yield b"data: " + json.dumps(missing).encode() + b"\n\n"
            if name:
                yield b"event: " + name + b"\n"
            yield b"data: " + line + b"\n\n"

    def _on_one_line(self, data: bytes) -> bytes:
        if data.startswith(b"[DONE]"):
            self.is_over = True
            return data
        try:
            event = json.loads(data)
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", "", 0) from None
        if _is_error(event):
            self.instead = data
            raise WireError("The vendor sent an error.")
        self.event = event
        self.is_over = isinstance(event, Mapping) and event.get("type") == "message_stop"
        self.server_calls |= server_calls_in(event)
        changed = unify(event) | mend_usage(event)
        # httpx ends lines at characters that are nothing special in JSON.
        plain = data.isascii() and b"\n" not in data and not changed
        return data if plain else json.dumps(event).encode()


def _readable(content: bytes) -> bytes:
    """Return a body in whole characters, with calls and counts in the form that litellm knows."""
    halves = _HALF.search(content) is not None
    if not halves and b'"embedding' in content[:1000]:
        return content  # it is long
    try:
        body = parsed(content, whole=True)
    except ValueError:
        return content
    changed = unify(body) | mend_usage(body, whole=True) | halves
    return json.dumps(body).encode() if changed else content


def _is_error(event: object) -> bool:
    if isinstance(event, list):  # Google wraps errors of streams in a list
        event = event[0] if event else None
    return isinstance(event, Mapping) and bool(event.get("error"))


@dataclass(slots=True, repr=False)
class Witness:
    """What really happened on the wire during one call."""

    streamed: bool = False
    """Whether the body of a success is handed on as it comes."""
    extra: Mapping[str, Any] | None = None
    """What is put over the body of the request: litellm hands it on at some vendors only."""
    barred: bool = False
    """Whether a request would be refused: one has left, or the call was cancelled."""
    response: httpx.Response | None = None
    """What came back, complete with its body unless that is streamed."""
    body: StreamedBody | None = None
    error: BaseException | None = None
    """Why nothing (or not all of it) came back."""
    requests: int = 0
    """How many requests left; never more than one."""

    @property
    def status(self) -> int | None:
        """The HTTP status that came back, if one did."""
        return None if self.response is None else self.response.status_code

    def bar(self) -> None:
        """Let no request out from now on."""
        self.barred = True

    def close(self) -> None:
        """Close the connection under a streamed body."""
        if self.body is not None:
            self.body.close()


WITNESS: ContextVar[Witness | None] = ContextVar("aigateway_witness", default=None)
"""The witness of the call that runs in this context."""


class OneShotTransport(httpx.AsyncBaseTransport):
    """Connections of one provider on one event loop."""

    def __init__(self) -> None:
        self._pool: ConnectionPool | None = None
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
            response = await self._exchange(session, request, witness)
        except _BREAKS as error:
            witness.error = error
            # Its words may quote what was sent.
            raise WireError(type(error).__name__, request=request) from error
        response.request = request
        witness.response = response
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    def _open_session(self, request: httpx.Request) -> aiohttp.ClientSession:
        if self._closed:
            raise WireError("The client is closed.", request=request)
        if self._pool is None or self._pool.session.closed:
            # httpx decompresses, where the headers still say so.
            self._pool = ConnectionPool(auto_decompress=False)
        return self._pool.session

    async def _exchange(
        self, session: aiohttp.ClientSession, request: httpx.Request, witness: Witness
    ) -> httpx.Response:
        secure = request.url.scheme == "https"
        headers = {k: v for k, v in request.headers.items() if k not in _NOT_FORWARDED}
        timeout = aiohttp.ClientTimeout(total=LONGEST_CALL)
        if witness.streamed:
            headers["accept-encoding"] = "identity"  # else pieces may wait in a compressor
            timeout = aiohttp.ClientTimeout(total=None, sock_read=LONGEST_CALL)
        sent = await request.aread()
        if witness.extra:
            sent = json.dumps(with_extra_body(json.loads(sent), witness.extra)).encode()
        answer = await session.request(
            request.method,
            URL(str(request.url), encoded=True),
            headers=headers,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            data=sent,
            allow_redirects=False,
            proxy=self._proxy(request.url),
            ssl=tls_context() if secure else True,
            timeout=timeout,
        )
        received = [
            (name, value) for name, value in answer.raw_headers if name.lower() != b"set-cookie"
        ]
        if witness.streamed and 200 <= answer.status < 300:
            witness.body = StreamedBody(answer)
            return httpx.Response(answer.status, headers=received, stream=witness.body)
        async with answer:
            content = _readable(await answer.read())
            return httpx.Response(answer.status, headers=received, content=content)

    def _proxy(self, url: httpx.URL) -> str | None:
        origin = f"{url.scheme}://{url.netloc.decode()}"
        if origin not in self._proxies:
            self._proxies[origin] = environment_proxy(url.scheme, url.host, url.port)
        return self._proxies[origin]


_S = TypeVar("_S")
_T = TypeVar("_T")

_CALLBACKS = (
    "callbacks",
    "failure_callback",
    "input_callback",
    "success_callback",
    "_async_failure_callback",
    "_async_success_callback",
)


@contextlib.contextmanager
def own_call(litellm: ModuleType, *, streamed: bool = False) -> Iterator[Witness]:
    """Mark the calls inside as ours, and watch what they send.

    What is read later of a stream has to run in a copy of the context inside.
    """
    witness = Witness(streamed=streamed)
    internal = _internal_flag(litellm)
    with _value(WITNESS, witness), _value(SILENT, True):
        if internal is None:
            yield witness
        else:
            with _value(internal, True):
                yield witness


@contextlib.contextmanager
def _value(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    token = _without_collection(variable.set, value)
    try:
        yield
    finally:
        _without_collection(variable.reset, token)


def _without_collection(change: Callable[[_S], _T], value: _S) -> _T:
    """Change a context variable while no garbage is collected.

    A collection may close an abandoned call, which changes a variable, too. CPython 3.11 crashes if
    that happens in the middle of a change (https://github.com/python/cpython/issues/148891).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return change(value)
    finally:
        if collects:
            gc.enable()


def callbacks_of(litellm: ModuleType) -> Callable[[], tuple[Any, ...]]:
    """Return a function that returns what may hold callbacks: if all is empty, there are none."""
    if not all(hasattr(litellm, name) for name in _CALLBACKS):
        return lambda: (True,)  # `has_callbacks` looks at those that are there
    return partial(attrgetter(*_CALLBACKS), litellm)


def has_callbacks(litellm: ModuleType) -> bool:
    """Return whether the user has callbacks registered with litellm, which must see our calls."""
    for name in _CALLBACKS:  # at every call, so without a generator
        callbacks = getattr(litellm, name, None)
        if callbacks and _users(callbacks):
            return True
    return False


def _users(callbacks: Any) -> bool:
    """Return whether the user registered one. litellm's cache and its Router register their own."""
    return any(
        entry != "cache" and not str(getattr(entry, "__module__", "")).startswith("litellm.router")
        for entry in callbacks or ()
    )


def _internal_flag(litellm: ModuleType) -> ContextVar[bool] | None:
    """Find litellm's own mark for calls whose outcome it need not log.

    Logging is for callbacks. Where there are none it costs time, and its worker outlives the loop
    it was started on. Where the user has registered some with litellm, they see our calls too.
    """
    if has_callbacks(litellm):
        return None
    try:
        from litellm._internal_context import is_internal_call  # noqa: PLC0415 - loaded by now
    except ImportError:
        return None
    flag: ContextVar[bool] = is_internal_call
    return flag
