"""Bounds on bodies and on time, for one request and its answer.

`connections` bounds heads: here a request has one already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from aigateway.clock import Clock, Timeout
from aigateway.server.http.cancel import CONNECTION, CallerGoneError, watch_caller
from aigateway.server.http.cycle import RequestCycle
from aigateway.server.http.errors import Refusal, answer_error
from aigateway.server.http.json_responses import JSONAnswer
from aigateway.settings import ServerSettings

__all__ = ["LimitedRequest"]

_SLOWEST = 64_000.0
"""Bytes per second at which a body may arrive for longer than `header_timeout`."""

_SILENCE, _LINGER = 2.0, 30.0
"""Seconds between pieces, and altogether, for which the rest of a refused body is read and dropped.
A connection that is closed while bytes arrive is reset, and the sender may never see the answer."""

_NEVER = 1e9
"""Seconds."""

_MOST_DIGITS = 18
"""Of a length. Python reads no number of some thousand digits."""

_CLOSE = (b"connection", b"close")

Answering = Callable[[Scope, Receive, Send], Awaitable[Response | None]]
"""An application, or what returns a response in its place."""


class LimitedRequest:
    """One request and its answer: bounds the size and the time of the body, and the whole time.

    One timeout serves both times: it is due when the body should be there, and extended then.

    Args:
        scope: Of ASGI, as the others.
        receive: Receives the request.
        send: Sends the answer.
        settings: `max_body_bytes`, `header_timeout`, `request_timeout`.
        clock: Time.

    Attributes:
        scope: As given.
        fields: The headers; of those with the same name the first.
        until: When the request is given up, on the clock's scale.
        begun: Its answer has begun.
        body_bytes: Bytes of the body that have arrived.
        added: Headers of its answer, whatever that is.
    """

    __slots__ = (
        "_arrived",
        "_began",
        "_clock",
        "_closing",
        "_deadline",
        "_direct",
        "_flows",
        "_is_left",
        "_receive",
        "_refusal",
        "_send",
        "_settings",
        "_silence",
        "_unwatch",
        "_waits",
        "added",
        "begun",
        "body_bytes",
        "fields",
        "scope",
        "until",
    )

    _deadline: Timeout

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: ServerSettings, clock: Clock
    ) -> None:
        self.scope = scope
        self.fields: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.begun = False
        self.body_bytes = 0
        self.added: Sequence[tuple[bytes, bytes]] = ()
        self._receive = receive
        self._send = send
        self._settings = settings
        self._clock = clock
        self._began = clock.now()
        self.until = self._began + settings.request_timeout
        fields = self.fields
        self._arrived = (
            fields.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in fields
        )
        self._waits = False  # for a piece of the body
        self._flows = False  # a stream has begun, which may take any time
        self._refusal: Refusal | None = None
        self._closing = False
        self._silence = _SILENCE
        self._is_left = False  # by the caller
        self._unwatch: Callable[[], object] | None = None
        extensions = scope.get("extensions")
        cycle = extensions.get(CONNECTION) if extensions else None
        # Without anything between, which may look at every message, there need not be any.
        is_direct = (
            type(cycle) is RequestCycle
            and getattr(send, "__self__", None) is cycle
            and getattr(receive, "__self__", None) is cycle
        )
        self._direct: RequestCycle | None = cycle if is_direct else None

    async def run(self, app: Answering) -> None:
        """Let the application answer, unless the request is refused before that or meanwhile.

        A response that it returns is sent.

        Raises:
            CallerGoneError: The caller has closed the connection; see `watch_caller`.
        """
        refusal = self._check_head()
        if refusal is None:
            settings = self._settings
            seconds = settings.request_timeout
            seconds = seconds if self._arrived else min(seconds, settings.header_timeout)
            direct = self._direct
            try:
                async with self._clock.timeout(
                    seconds, more=self._seconds_left, task=None if direct is None else direct.task
                ) as self._deadline:
                    response = await app(self.scope, self.receive, self.send)
                    if response is not None and not self.respond_at_once(response):
                        await self.respond(response)
            except TimeoutError:
                if not self._deadline.expired():
                    raise
                refusal = self._timed_out()
            except Refusal as given:
                if given is not self._refusal:
                    raise
            finally:
                if direct is not None:
                    direct.on_disconnect = None
                if self._unwatch is not None:
                    self._unwatch()
            refusal = self._refusal or refusal
        if refusal is not None and not self.begun:
            self._refusal = None
            await answer_error(self.scope, refusal)(self.scope, self._receive, self.send)

    def watch_caller(self) -> None:
        """End the work when the caller closes the connection. The body has been read."""
        direct = self._direct
        if direct is not None and not direct.disconnected:
            direct.on_disconnect = self._leave
        elif self._unwatch is None:
            self._unwatch = watch_caller(self.scope, self._receive, self._leave)

    def _leave(self) -> None:
        """End the work through the timeout, which is due at once."""
        if not self._deadline.expired():
            self._is_left = True
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def _seconds_left(self, seconds: float, began: float, looked: float) -> float:  # noqa: ARG002
        """Return the seconds by which the timeout that is due is extended."""
        if self._is_left:
            return 0.0
        if self._flows:
            return _NEVER
        due = self.until
        if not self._arrived:
            # An application that has not asked for the body yet has some time when it does.
            wait = self._body_due() if self._waits else self._clock.now() + seconds
            due = min(due, wait)
        return due - self._clock.now()

    def _body_due(self) -> float:
        allowed = self._settings.header_timeout + self.body_bytes / _SLOWEST
        return self._began + allowed

    async def receive(self) -> Message:
        """Receive the next piece of the request, for the application.

        Raises:
            Refusal: The body is too long. The caller gets this refusal whatever the application
                answers, unless an answer has begun.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._arrived:
            return await self._receive()
        self._waits = True
        message = await self._receive()
        self._waits = False
        self.body_bytes += len(message.get("body", b""))
        self._arrived = not message.get("more_body", False)
        if self.body_bytes > self._settings.max_body_bytes:
            self._refusal = self._too_large()
            raise self._refusal
        return message

    def take_body(self) -> bytes | None:
        """Return the body if all of it is here; None if it has to be received.

        Raises:
            Refusal: As `receive`.
        """
        if self._direct is None or self._arrived or self.body_bytes or self._refusal is not None:
            return None
        body = self._direct.take_body()
        if body is not None:
            self._arrived = True
            self.body_bytes = len(body)
            if len(body) > self._settings.max_body_bytes:
                self._refusal = self._too_large()
                raise self._refusal
        return body

    async def send(self, message: Message) -> None:
        """Send the next piece of the answer, from the application."""
        if self._refusal is not None and not self.begun:
            return  # the application's answer to the refusal; ours follows
        if message["type"] == "http.response.start":
            # The rest of the body must not be read as the next request.
            self._closing = not self._arrived
            close = (_CLOSE,) if self._closing else ()
            headers = [*message.get("headers", ()), *self.added, *close]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            if message.get("more_body", False):
                self._flows = self._flows or bool(message.get("body"))
            elif self._closing:
                await self._send_and_drain(message.get("body", b""))
                return
        await self._send_on(message)

    async def _send_on(self, message: Message) -> None:
        """Send a message. A start that fails has begun no answer: an error can still be sent."""
        await self._send(message)
        self.begun = True

    def respond_at_once(self, response: Response) -> bool:
        """Send a whole answer without waiting; return whether that is possible, else `respond`."""
        direct = self._direct
        if direct is None or not self._arrived or type(response) is not JSONAnswer:
            return False
        lines = response.lines
        if lines is None:
            return False
        for added in self.added:
            lines += b"%b: %b\r\n" % added
        if not direct.answer(lines, response.body):
            return False
        self.begun = True
        return True

    async def respond(self, response: Response) -> None:
        """Send an answer of the service's own, as directly as possible."""
        if not self._arrived:
            await response(self.scope, self.receive, self.send)
            return
        self._flows = True
        response.raw_headers.extend(self.added)
        await response(self.scope, self._receive, self._send_on)

    def _check_head(self) -> Refusal | None:
        """Check the head."""
        fields = self.fields
        length = fields.get(b"content-length", b"0")
        if (
            b"content-encoding" not in fields
            and b"transfer-encoding" not in fields
            and length.isdigit()
            and len(length) <= _MOST_DIGITS
            and int(length) <= self._settings.max_body_bytes
        ):
            return None
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            return Refusal(
                415,
                "Compressed bodies are not accepted: send it without Content-Encoding.",
                code="unsupported_content_encoding",
            )
        if b"transfer-encoding" in fields and (
            b"content-length" in fields or self.scope["http_version"] == "1.0"
        ):
            # Two servers could disagree about where it ends (RFC 9112, 6.1).
            return Refusal(400, "A request has Content-Length or Transfer-Encoding, not both.")
        if not length.isdigit():
            return Refusal(400, "Content-Length must be a number.")
        if len(length) > _MOST_DIGITS or int(length) > self._settings.max_body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        most = self._settings.max_body_bytes
        return Refusal(413, f"The body is longer than {most} bytes.", code="request_too_large")

    def _timed_out(self) -> Refusal:
        if self._is_left:
            raise CallerGoneError from None
        if self._waits and self._body_due() <= self.until:
            self._silence = 0.0  # it has had its time
            return Refusal(
                408, "The body of the request did not arrive in time.", code="request_timeout"
            )
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
        # A client that waits for 100 Continue sends nothing.
        silence = 0.0 if b"expect" in self.fields else self._silence
        end = self._clock.now() + _LINGER
        with contextlib.suppress(TimeoutError):
            while not self._arrived and self._clock.now() < end:
                async with self._clock.timeout(silence):
                    message = await self._receive()
                self._arrived = not message.get("more_body", False)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
