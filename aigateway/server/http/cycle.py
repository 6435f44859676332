"""One request and its answer, between the protocol and the application: `receive` and `send`."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from aigateway.errors import stopping
from aigateway.server.http.errors import written_refusal

__all__ = ["App", "RequestCycle", "written_defaults"]

_JOINED = 65_536
"""Bytes of a body that is copied behind its head; a longer one is written on its own."""

_TEXT = bytes([9, *range(32, 127), *range(128, 256)])
"""What a header may have in its value."""

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAMES: dict[bytes, bytes] = {}
"""Names of headers that were sent, and how they are written."""

_MOST_NAMES = 500
_OK = STATUS_LINE[200]
_LENGTH, _CODING, _CLOSING = b"content-length: ", b"transfer-encoding: ", b"connection: "
_FRAMING = {_LENGTH, _CODING, _CLOSING}

Message = MutableMapping[str, Any]
App = Callable[..., Any]


class Connection(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    flow: Any
    logger: logging.Logger
    server_state: ServerState
    tasks: set[asyncio.Task[None]]
    under_way: set[RequestCycle]
    closing: bool
    recognized: tuple[Any, bytes, Any] | None

    def on_response_complete(self) -> None:
        """Wait for the next request."""


class RequestCycle:
    """One request and its answer: `receive` and `send` of ASGI, and the task that runs them.

    The head of an answer is kept until the first piece of its body, and written with it.

    Attributes:
        connection: Its connection.
        on_disconnect: Called once if the caller is gone before its answer is complete.
        disconnected: It is.
        started: Some of the answer has been written.
        response_complete: All of it has.
        cut: The task was cancelled by `stop`.
    """

    __slots__ = (
        "_awaits_continue",
        "_body",
        "_chunked",
        "_ended",
        "_event",
        "_flow",
        "_has_no_body",
        "_head",
        "_is_head",
        "_left",
        "_minor",
        "_transport",
        "connection",
        "cut",
        "disconnected",
        "keep_alive",
        "more_body",
        "on_disconnect",
        "response_complete",
        "started",
        "task",
    )

    _chunked: bool  # this and the next ones since the head was encoded
    _has_no_body: bool
    _left: int | None

    def __init__(
        self,
        connection: Connection,
        method: bytes,
        minor: bytes,
        keeps: bool,
        expects: bool,
    ) -> None:
        self.connection = connection
        self._transport = connection.transport
        self._flow = connection.flow
        self._is_head = method == b"HEAD"
        self._minor = minor
        self.keep_alive = keeps
        self._awaits_continue = expects
        self._body: bytes | bytearray = b""
        self._event: asyncio.Event | None = None
        self._head: bytes | None = None
        self._ended = False
        self.more_body = True
        self.on_disconnect: Callable[[], object] | None = None
        self.disconnected = self.started = self.response_complete = self.cut = False
        self.task: asyncio.Task[None] | None = None

    async def run(self, app: App, scope: Message) -> None:
        """Let the application answer."""
        connection = self.connection
        connection.under_way.add(self)
        task = self.task
        try:
            await app(scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                connection.logger.error("ASGI callable returned without completing response.")
                await self._fail()
        except BaseException as error:
            if self.cut and isinstance(error, asyncio.CancelledError) and task is not None:
                task.uncancel()
                await self._answer_stopping(scope)
            else:
                connection.logger.exception("Exception in ASGI application")
                await self._fail()
        finally:
            connection.under_way.discard(self)
            connection.tasks.discard(task)
            self.task = None  # which refers to this

    def stop(self) -> None:
        """Cancel the application; the caller hears that the service stops, if it can."""
        self.cut = True
        if self.task is not None:
            self.task.cancel()

    async def _fail(self) -> None:
        text = (b"content-type", b"text/plain; charset=utf-8")
        await self._answer_instead(500, [text, (b"connection", b"close")], b"Internal Server Error")

    async def _answer_stopping(self, scope: Message) -> None:
        refusal = stopping()
        status, written = written_refusal(scope, refusal)
        headers = {**refusal.headers, "content-type": "application/json"}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._answer_instead(status, raw, json.dumps(written).encode())

    async def _answer_instead(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Answer in place of the application, or end the connection if it has begun to."""
        if self.started:
            self._transport.close()
            return
        self._head = None
        length = (b"content-length", b"%d" % len(body))
        await self.send(
            {"type": "http.response.start", "status": status, "headers": [*headers, length]}
        )
        await self.send({"type": "http.response.body", "body": body})

    # ── the request ──────────────────────────────────────────────────────────────────────────

    @property
    def is_full(self) -> bool:
        """Whether so much of the body waits that no more is read."""
        return len(self._body) > HIGH_WATER_LIMIT

    def add(self, body: bytes) -> bool:
        """Add a piece of the body, and return whether so much waits that no more is read."""
        self._awaits_continue = False
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if self._event is not None:
            self._event.set()
        return len(self._body) > HIGH_WATER_LIMIT

    def end_body(self) -> None:
        """Note that all of the body is here."""
        self.more_body = False
        if self._event is not None:
            self._event.set()

    def lose(self) -> None:
        """Note that the caller is gone."""
        if not self.response_complete and not self.disconnected:
            self.disconnected = True
            if self._event is not None:
                self._event.set()
            callback, self.on_disconnect = self.on_disconnect, None
            if callback is not None:
                callback()

    async def receive(self) -> Message:
        """Return the next piece of the body, or that the caller is gone."""
        if self._awaits_continue and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._awaits_continue = False
        while not (self.disconnected or self.response_complete):
            body, more = self._body, self.more_body
            if body or not (more or self._ended):
                self._body, self._ended = b"", not more
                self._flow.resume_reading()
                return {"type": "http.request", "body": bytes(body), "more_body": more}
            if self._event is None:
                self._event = asyncio.Event()
            self._event.clear()
            await self._event.wait()
        return {"type": "http.disconnect"}

    def take_body(self) -> bytes | None:
        """Return the body if all of it is here; None if `receive` has to return it."""
        if self.more_body or self._ended or self._awaits_continue or self.disconnected:
            return None
        body, self._body, self._ended = self._body, b"", True
        if self._flow.read_paused:
            self._flow.resume_reading()
        return bytes(body)

    # ── the answer ───────────────────────────────────────────────────────────────────────────

    async def send(self, message: Message) -> None:
        """Send the head of the answer, or the next piece of its body."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        begins = self._head is None and not self.started
        if self.response_complete or kind != f"http.response.{'start' if begins else 'body'}":
            raise RuntimeError(f"Unexpected ASGI message {kind!r}.")
        if begins:
            self._head = self._encode_head(message["status"], message.get("headers", ()))
        else:
            self._write(message.get("body", b""), more=message.get("more_body", False))

    def answer(self, lines: bytes, body: bytes) -> bool:
        """Send a whole answer at once: status 200, and the lines of headers that are valid.

        Returns whether it is sent. It is not if `send` would wait or raise an error.
        """
        connection, transport = self.connection, self._transport
        if (
            self._flow.write_paused
            or self.disconnected
            or self.started
            or self._head is not None
            or self._is_head
        ):
            return False
        if connection.closing:
            self.keep_alive = False
        defaults, default_lines = _written
        if defaults is not connection.server_state.default_headers:
            default_lines = written_defaults(connection.server_state.default_headers)
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        length = len(body)
        head = b"%b%b%bcontent-length: %d\r\n%b" % (_OK, default_lines, lines, length, end)
        self._awaits_continue, self.started = False, True
        if length <= _JOINED:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        self._complete()
        return True

    def _encode_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        connection = self.connection
        defaults = connection.server_state.default_headers
        parts = [STATUS_LINE[status], written_defaults(defaults)]
        self._left, says_close = None, False
        for name, value in headers:
            written = _NAMES.get(name) or _written_name(name)
            if written in _FRAMING:
                if written is _LENGTH:
                    self._left = int(value)
                elif written is _CODING:
                    continue  # it is ours to say
                elif b"close" in [token.strip() for token in value.lower().split(b",")]:
                    self.keep_alive, says_close = False, True
            parts += (written, value, b"\r\n")
        if connection.closing:
            self.keep_alive = False
        if not self.keep_alive and not says_close:
            parts += (_CLOSING, b"close", b"\r\n")
        self._has_no_body = self._is_head or status in {204, 304}
        # An earlier head may have been dropped for this one.
        self._chunked = self._left is None and not self._has_no_body and self._minor == b"1"
        if self._chunked:
            parts += (_CODING, b"chunked", b"\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        lines = 1 + len(defaults) + len(parts) // 3  # parts of other lines are three
        if len(head.translate(None, _TEXT)) != 2 * lines:
            raise RuntimeError("Invalid HTTP header value.")
        return head

    def _write(self, body: bytes, *, more: bool) -> None:
        body = b"" if self._has_no_body else self._framed(body, more=more)
        head, self._head = self._head, None
        if head is not None:
            self._awaits_continue, self.started = False, True
            if len(body) <= _JOINED:
                body = head + body
            else:
                self._transport.write(head)
        if body:
            self._transport.write(body)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._body = b""
        if self._event is not None:
            self._event.set()
        if not self.keep_alive:
            self._transport.close()
        self.connection.on_response_complete()

    def _framed(self, body: bytes, *, more: bool) -> bytes:
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("The body of the answer has not its Content-Length.")
        return body


def _written_name(name: bytes) -> bytes:
    """Return the name of a header as it is written."""
    if not _NAME.fullmatch(name):
        raise RuntimeError("Invalid HTTP header name.")
    written = name.lower() + b": "
    written = next((known for known in _FRAMING if known == written), written)
    if len(_NAMES) < _MOST_NAMES:
        _NAMES[name] = written
    return written


_written: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")


def written_defaults(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return uvicorn's own headers as they are written: others each second, for the date."""
    global _written  # noqa: PLW0603 - one server in a process
    if headers is not _written[0]:
        _written = (headers, b"".join(b"%b: %b\r\n" % header for header in headers))
    return _written[1]
