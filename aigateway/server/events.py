"""A stream of answers on its way out, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aigateway.clock import Clock
from aigateway.server.presence import WhilePresent

__all__ = ["EventStream"]


class EventStream(Response):
    """Sends events while they come, and comments while none does.

    When the caller closes the connection, `events` is closed at once.

    Args:
        events: Each is sent as it is.
        closing: Is left when the response is over, however it ends.
        headers: Of the response.
        ping: Sent when nothing else was for `ping_seconds`.
        ping_seconds: How long a silence may be.
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
        clock: Clock,
    ) -> None:
        self.status_code = 200
        self.background = None
        # Proxies would collect the pieces otherwise.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self._events = events
        self._closing = closing
        self._ping = ping
        self._ping_seconds = ping_seconds
        self._clock = clock
        self._quiet = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all of it."""
        async with (
            self._closing,
            WhilePresent(receive),
            contextlib.aclosing(self._events) as events,
        ):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            pings = asyncio.create_task(self._send_pings(send), name="aigateway-pings")
            try:
                async for event in events:
                    self._quiet = False
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            finally:
                pings.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_pings(self, send: Send) -> None:
        while True:
            self._quiet = True
            await self._clock.sleep(self._ping_seconds)
            if self._quiet:
                await send({"type": "http.response.body", "body": self._ping, "more_body": True})
