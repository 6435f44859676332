"""Send a stream as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aigateway.clock import Clock
from aigateway.server.http.cancel import (
    StoppingError,
    cancel_on_disconnect,
    cancel_on_shutdown,
)

__all__ = ["EventStream", "Turns"]

_TURN_SECONDS = 0.004
"""Time in one turn of the event loop for all streams together."""

_AT_ONCE = 8
"""Waiting streams that send an event in one turn. Each event takes 0.03 to 1 ms."""


class Turns:
    """Shares out the event loop's time, so that fast streams hold up nothing else.

    A stream whose vendor is faster than the service never waits, and two hundred of them make one
    turn of the loop take seconds. Each takes a turn here before its next event. Those that have to
    wait go on in their order, some in each turn of the loop.

    Args:
        clock: Time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait until there is time for one more event."""
        if self._ends is None:
            self._begin()
        elif self._waiting or self._clock.now() > self._ends:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def _begin(self) -> None:
        self._ends = self._clock.now() + _TURN_SECONDS
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Let the first of the waiting streams go on: a turn of the loop is over."""
        self._ends = None
        let_go = 0
        while self._waiting and let_go < _AT_ONCE:
            future = self._waiting.popleft()
            if not future.done():  # its stream has ended
                future.set_result(None)
                let_go += 1
        if let_go:
            self._begin()


class EventStream(Response):
    """Sends events as they come, and comments during silence.

    When the caller closes the connection, `events` is closed at once.

    Args:
        events: Each is sent as it is.
        closing: Is left when the response is over, however it ends.
        headers: Headers of the response.
        ping: The comment.
        ping_seconds: Silence before each comment.
        last_event: Sent as the last when the service stops; or a function that returns it.
        stopping: Is set then.
        turns: Bounds the events of all streams together.
        clock: Time.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        closing: contextlib.AbstractAsyncContextManager[object],
        headers: Mapping[str, str],
        *,
        ping: bytes,
        ping_seconds: float,
        last_event: bytes | Callable[[], bytes],
        stopping: asyncio.Event,
        turns: Turns,
        clock: Clock,
    ) -> None:
        self.status_code = 200
        self.background = None
        # Otherwise proxies would collect the pieces.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self._events = events
        self._closing = closing
        self._ping = ping
        self._ping_seconds = ping_seconds
        self._last_event = last_event
        self._stopping = stopping
        self._turns = turns
        self._clock = clock
        self._quiet = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the whole stream."""
        async with (
            self._closing,
            cancel_on_disconnect(receive),
            contextlib.aclosing(self._events) as events,
        ):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            pings = asyncio.create_task(self._send_pings(send), name="aigateway-pings")
            try:
                async with cancel_on_shutdown(self._stopping):
                    async for event in events:
                        self._quiet = False
                        await _send(send, event)
                        await self._turns.take()
            except StoppingError:
                last = self._last_event
                await _send(send, last if isinstance(last, bytes) else last())
            finally:
                pings.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_pings(self, send: Send) -> None:
        while True:
            self._quiet = True
            await self._clock.sleep(self._ping_seconds)
            if self._quiet:
                await _send(send, self._ping)


async def _send(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})
