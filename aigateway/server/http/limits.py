"""Bounds on bodies and on time: ASGI middleware around the whole application.

`connections` bounds heads: here a request has one already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aigateway.clock import Clock, Timeout
from aigateway.server.http.errors import Refusal, answer_error
from aigateway.settings import ServerSettings

__all__ = ["UNTIL", "RequestLimits"]

UNTIL = "aigateway.until"
"""The key of the scope for when the request is given up, on the clock's scale."""

_SLOWEST = 64_000.0
"""Bytes per second at which a body may arrive for longer than `header_timeout`."""

_SILENCE, _LINGER = 2.0, 30.0
"""Seconds between pieces, and altogether, for which the rest of a refused body is read and dropped.
A connection that is closed while bytes arrive is reset, and the sender may never see the answer."""

_NEVER = 1e9
"""Seconds."""


class RequestLimits:
    """Bounds the size of a body, the time until it has arrived, and the time of the whole request.

    Args:
        app: The application within.
        settings: Returns the current settings: `max_body_bytes`, `header_timeout`,
            `request_timeout`.
        clock: Time.
    """

    def __init__(self, app: ASGIApp, settings: Callable[[], ServerSettings], clock: Clock) -> None:
        self._app = app
        self._settings = settings
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited = _LimitedRequest(scope, receive, send, self._settings(), self._clock)
        await limited.run(self._app)


class _LimitedRequest:
    """One request and its answer, within the limits."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: ServerSettings, clock: Clock
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        self._clock = clock
        self._headers = Headers(scope=scope)
        self._began = clock.now()
        self._arrived = not _has_body(self._headers)
        self._bytes = 0
        self._refusal: Refusal | None = None
        self._started = False
        self._closing = False
        # A client that waits for 100 Continue sends nothing.
        self._silence = 0.0 if "expect" in self._headers else _SILENCE
        self._deadline: Timeout | None = None

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer, unless the request is refused before that or meanwhile."""
        refusal = self._check_head() or await self._run_within_time(app)
        if refusal is not None and not self._started:
            self._refusal = None
            await answer_error(self._scope, refusal)(self._scope, self._receive, self.send)

    async def _run_within_time(self, app: ASGIApp) -> Refusal | None:
        self._scope[UNTIL] = self._began + self._settings.request_timeout
        try:
            async with self._clock.timeout(self._settings.request_timeout) as deadline:
                self._deadline = deadline
                await app(self._scope, self.receive, self.send)
        except TimeoutError:
            if not deadline.expired():
                raise
            return self._refusal or self._timed_out()
        except Refusal as refusal:
            if refusal is not self._refusal:
                raise
        return self._refusal

    async def receive(self) -> Message:
        """Receive the next piece of the request, for the application.

        Raises:
            Refusal: The body is too long, or too slow. The caller gets this refusal whatever the
                application answers, unless an answer has begun.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._arrived:
            return await self._receive()
        self._refusal = await self._next_piece()
        if self._refusal is not None:
            raise self._refusal
        return self._message

    async def send(self, message: Message) -> None:
        """Send the next piece of the answer, from the application."""
        if self._refusal is not None and not self._started:
            return  # the application's answer to the refusal; ours follows
        if message["type"] == "http.response.start":
            self._started = True
            if not self._arrived:
                # The rest of the body must not be read as the next request.
                self._closing = True
                MutableHeaders(raw=message.setdefault("headers", [])).update(
                    {"connection": "close"}
                )
        elif message["type"] == "http.response.body":
            if self._deadline is not None and message.get("body") and message.get("more_body"):
                self._deadline.reschedule(asyncio.get_running_loop().time() + _NEVER)
                self._deadline = None
            if self._closing and not message.get("more_body", False):
                await self._send_and_drain(message.get("body", b""))
                return
        await self._send(message)

    def _check_head(self) -> Refusal | None:
        """Check the head."""
        headers = self._headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            return Refusal(
                415,
                "Compressed bodies are not accepted: send it without Content-Encoding.",
                code="unsupported_content_encoding",
            )
        if "transfer-encoding" in headers and (
            "content-length" in headers or self._scope["http_version"] == "1.0"
        ):
            # Two servers could disagree about where it ends (RFC 9112, 6.1).
            return Refusal(400, "A request has Content-Length or Transfer-Encoding, not both.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return Refusal(400, "Content-Length must be a number.")
        if int(length) > self._settings.max_body_bytes:
            return self._too_large()
        return None

    async def _next_piece(self) -> Refusal | None:
        """Wait for the next piece of the body, no longer than it may take."""
        allowed = self._settings.header_timeout + self._bytes / _SLOWEST
        try:
            async with self._clock.timeout(self._began + allowed - self._clock.now()):
                self._message = await self._receive()
        except TimeoutError:
            self._silence = 0.0  # it has had its time
            return Refusal(
                408, "The body of the request did not arrive in time.", code="request_timeout"
            )
        self._bytes += len(self._message.get("body", b""))
        self._arrived = not self._message.get("more_body", False)
        return self._too_large() if self._bytes > self._settings.max_body_bytes else None

    def _too_large(self) -> Refusal:
        most = self._settings.max_body_bytes
        return Refusal(413, f"The body is longer than {most} bytes.", code="request_too_large")

    def _timed_out(self) -> Refusal:
        seconds = self._settings.request_timeout
        return Refusal(
            504,
            f"There was no answer within {seconds:g} seconds, the longest that this service waits.",
            "server_error",
            "request_timeout",
        )

    async def _send_and_drain(self, body: bytes) -> None:
        """Send the answer, drop the rest of the body for a moment, and then end the answer."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        end = self._clock.now() + _LINGER
        with contextlib.suppress(TimeoutError):
            while not self._arrived and self._clock.now() < end:
                async with self._clock.timeout(self._silence):
                    message = await self._receive()
                self._arrived = not message.get("more_body", False)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
