"""What a connection may do before it is a request: below ASGI, in uvicorn's protocol.

uvicorn waits without end for the head of a request and for a caller who does not read, and accepts
connections without end. It also has answers of its own to what is no HTTP; here they have OpenAI's
form.
"""

from __future__ import annotations

import asyncio
import http
import json
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from aigateway.server.refusals import Refusal
from aigateway.server.service import Service

__all__ = ["GuardedProtocol", "protocol_for"]

_MOST_HEAD = 32_768
"""Bytes of the line and the headers of a request."""


_STALL_SECONDS = 60.0
"""For a caller to take something of an answer that waits for it."""


def protocol_for(
    service: Service, *, stall_seconds: float = _STALL_SECONDS
) -> type[GuardedProtocol]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        service: Gives the settings of the moment: `header_timeout`, `max_connections`.
        stall_seconds: Who takes nothing of an answer for that long is cut off, so that the
            vendor's call behind it is not held for ever.
    """
    fields = {"service": service, "stall_seconds": stall_seconds}
    return type("GuardedProtocol", (GuardedProtocol,), fields)


class GuardedProtocol(H11Protocol):
    """uvicorn's, but a head has to be small and to come soon, and connections are counted.

    An answer has to be read, too, however slowly.
    """

    service: Service
    stall_seconds: float

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = h11.Connection(h11.SERVER, _MOST_HEAD)
        self._late: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._stalled: asyncio.TimerHandle | None = None
        self._quiet_since = self.service.clock.now()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        if len(self.connections) > self.service.settings.max_connections:
            self._turn_away(
                Refusal(
                    503,
                    "Too many connections are open.",
                    "server_error",
                    "overloaded",
                    retry_after=1.0,
                )
            )
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._head_is_there()
        self._is_taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller does not keep up: the application waits, but not for ever."""
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        """The caller has taken what waited."""
        self._is_taken()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Something has come."""
        if self.transport.is_closing():
            return
        if self._is_idle:
            self._await_head()
            room = _MOST_HEAD - self._head_bytes
            self._head_bytes += len(data)
            if room > 0:  # nothing at all would mean the end
                super().data_received(data[:room])
            data = data[room:]
            if data and self._is_idle:
                self._turn_away(Refusal(431, f"The head of a request may have {_MOST_HEAD} bytes."))
                return
        if data and not self.transport.is_closing():
            super().data_received(data)
        if not self._is_idle:
            self._head_is_there()

    def on_response_complete(self) -> None:
        """An answer has gone out."""
        self._quiet_since = self.service.clock.now()
        super().on_response_complete()
        if not self._is_idle:  # the next request was here already
            self._head_is_there()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._turn_away(Refusal(400, msg))

    def is_quiet(self, seconds: float) -> bool:
        """Whether neither a request nor an answer is here, nor was in the last seconds."""
        return (
            self._is_idle
            and not self._head_bytes
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
            and self.service.clock.now() - self._quiet_since >= seconds
        )

    @property
    def _is_idle(self) -> bool:
        """Whether the next thing to come is the head of a request."""
        return self._unanswered is None

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The request that is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first
        return None if cycle is None or cycle.response_complete else cycle

    def _await_head(self) -> None:
        if self._late is None:
            seconds = self.service.settings.header_timeout
            self._late = self.loop.call_later(seconds, self._head_is_late)

    def _head_is_there(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._head_bytes:
            self._turn_away(Refusal(408, "The request did not arrive in time."))
        else:
            self.transport.close()

    def _await_taking(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self.stall_seconds, self._look_at_taking, waiting)

    def _look_at_taking(self, waited: int) -> None:
        """Cut it off if as much waits as before; while writing is paused nothing is added."""
        if self.transport.get_write_buffer_size() < waited:
            self._await_taking()
        else:
            self._stalled = None
            self.transport.abort()  # to close it would wait for the caller as well

    def _is_taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _turn_away(self, refusal: Refusal) -> None:
        """Say no, where nothing else has been said, and close."""
        self._head_is_there()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.write(_on_the_wire(refusal))
        cycle = self._unanswered
        if cycle is not None:
            cycle.disconnected = True  # what the application still says goes nowhere
            cycle.message_event.set()
        self.transport.close()


def _on_the_wire(refusal: Refusal) -> bytes:
    body = json.dumps(refusal.body).encode()
    lines = [
        f"HTTP/1.1 {refusal.status} {http.HTTPStatus(refusal.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name.lower()}: {value}" for name, value in refusal.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
