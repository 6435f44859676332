"""Send a stream as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aigateway.clock import Clock, Timer
from aigateway.request.sse import PING_SECONDS
from aigateway.server.http.cancel import CancellableBlock, StoppingError

if TYPE_CHECKING:
    from aigateway.messages import Opening
    from aigateway.protocols.protocol import ProtocolStream
    from aigateway.request.stream import ChatStream
    from aigateway.server.http.call import AdmittedRequest, GatewayUse
    from aigateway.server.http.json_responses import RawHeaders

    AnyStream = ChatStream[Any] | ProtocolStream

__all__ = ["EventStream", "Turns"]

_TURN_SECONDS = 0.004
"""Time in one turn of the event loop for all streams together."""

_AT_ONCE = 8
"""Waiting streams that go on in one turn. Each event takes 0.03 to 1 ms, each beginning 0.5 ms."""

_BEGIN_AT_ONCE = 6
"""Of these, the streams that begin while others wait too: their callers wait for a first piece.
Pieces that wait are sent together later, which costs less."""


_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # Otherwise proxies would collect the pieces.
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Turns:
    """Shares out the event loop's time, so that fast streams hold up nothing else.

    A stream whose vendor is faster than the service never waits, and two hundred of them make one
    turn of the loop take seconds. Each takes a turn here before it begins and before its next
    event. Those that have to wait go on in their order, some in each turn of the loop, and most of
    these are streams that begin.

    Args:
        clock: Time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: float | None = None
        self._beginning: deque[asyncio.Future[None]] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_over(self) -> bool:
        """Whether a further event has to wait; if not, it is in this turn."""
        if self._ends is None:
            self._begin()
            return False
        return bool(self._waiting or self._beginning) or self._clock.now() > self._ends

    async def take(self, *, begins: bool = False) -> None:
        """Wait until there is time for one more event, or for one more stream that begins."""
        if self.is_over:
            future = asyncio.get_running_loop().create_future()
            (self._beginning if begins else self._waiting).append(future)
            await future

    def _begin(self) -> None:
        self._ends = self._clock.now() + _TURN_SECONDS
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Let the first of the waiting streams go on: a turn of the loop is over."""
        self._ends = None
        if not (self._beginning or self._waiting):
            return
        let_go = _let_go(self._beginning, _BEGIN_AT_ONCE if self._waiting else _AT_ONCE)
        let_go += _let_go(self._waiting, _AT_ONCE - let_go)
        if let_go:
            self._begin()


def _let_go(waiting: deque[asyncio.Future[None]], most: int) -> int:
    let_go = 0
    while waiting and let_go < most:
        future = waiting.popleft()
        if not future.done():  # its stream has ended
            future.set_result(None)
            let_go += 1
    return let_go


class EventStream(Response):
    """Sends events as they come, and comments during silence.

    When the caller closes the connection, `events` is closed at once.

    Args:
        request: What is answered.
        use: The gateway; it is left when the response is over, however it ends.
        events: Each is sent as it is.
        headers: Headers of the response.
        ping: The comment.
        last_event: Returns what is sent as the last when the service stops.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: AdmittedRequest,
        use: GatewayUse,
        events: AsyncGenerator[bytes, None],
        headers: RawHeaders,
        *,
        ping: bytes,
        last_event: Callable[[], bytes],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = [*_HEADERS, *headers]
        self._request = request
        self._use = use
        self._events = events
        self._ping = ping
        self._last_event = last_event

    @classmethod
    async def begin(
        cls,
        request: AdmittedRequest,
        use: GatewayUse,
        begin: Callable[[], AnyStream],
        *,
        sse: Callable[[Any], AsyncGenerator[bytes, None]],
        headers: Callable[[Opening], RawHeaders],
        ping: bytes,
        last_event: Callable[[Any], bytes],
    ) -> EventStream:
        """Wait for the first content, so that a failure before it gets an HTTP status.

        Args:
            request: What is answered.
            use: The gateway, which is left if the stream does not begin.
            begin: Returns the stream.
            sse: Returns the events of the stream.
            headers: Returns the headers of the response.
            ping: See `EventStream`.
            last_event: Likewise; it gets the stream.
        """
        try:
            await request.service.turns.take(begins=True)
            async with begin() as stream:
                await stream.start()
                opening = stream.opening
                assert opening is not None  # noqa: S101 - its first content is here
                return cls(
                    request,
                    use,
                    sse(stream),
                    headers(opening),
                    ping=ping,
                    last_event=lambda: last_event(stream),
                )
        except BaseException:
            use.end(is_answered=False)
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the whole stream."""
        request, events = self._request, self._events
        stopping, turns = request.service.stopping, request.service.turns
        pings = _Pings(send, self._ping, request.service.clock)
        with self._use:
            async with contextlib.aclosing(events):
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                try:
                    async with CancellableBlock() as block:
                        stopping.add(block)
                        pings.begin()
                        async for event in events:
                            pings.quiet = False
                            await send(
                                {"type": "http.response.body", "body": event, "more_body": True}
                            )
                            if turns.is_over:
                                await turns.take()
                except StoppingError:
                    await send(
                        {
                            "type": "http.response.body",
                            "body": self._last_event(),
                            "more_body": True,
                        }
                    )
                finally:
                    stopping.discard(block)
                    pings.end()
                await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pings:
    """Sends a comment after each silence of a stream.

    Attributes:
        quiet: Nothing has been sent since the last look.
    """

    __slots__ = ("_clock", "_ping", "_send", "_task", "_timer", "quiet")

    _timer: Timer

    def __init__(self, send: Send, ping: bytes, clock: Clock) -> None:
        self._send = send
        self._ping = ping
        self._clock = clock
        self._task: asyncio.Task[None] | None = None  # while it sends

    def begin(self) -> None:
        """Wait for silence."""
        self.quiet = True
        self._timer = self._clock.call_later(PING_SECONDS, self._look)

    def end(self) -> None:
        """Send no more."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        if self.quiet and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._send_ping(), name="aigateway-ping")
        self.begin()

    async def _send_ping(self) -> None:
        await self._send({"type": "http.response.body", "body": self._ping, "more_body": True})
