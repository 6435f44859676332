"""Bounds on connections, below ASGI, in uvicorn's protocol.

uvicorn waits without end for the head of a request and for a caller that does not read, and accepts
connections without end. It also answers malformed HTTP itself; here the answer has OpenAI's form.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import json
from collections import Counter
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from aigateway.server.http.errors import Refusal
from aigateway.server.service import Service

__all__ = ["GuardedProtocol", "protocol_for"]

_MOST_HEAD = 32_768
"""Bytes of the line and the headers of a request."""

_PIECES = 200
"""Pieces of a body that are read in one go: a body of tiny chunks holds up nothing else."""

_STALL_SECONDS = 60.0
"""For a caller to read something of an answer that waits for it."""


def protocol_for(
    service: Service, *, stall_seconds: float = _STALL_SECONDS
) -> type[GuardedProtocol]:
    """Return the protocol for `uvicorn.Config(http=...)`.

    Args:
        service: Has the current settings: `header_timeout`, `keep_alive_timeout`,
            `max_connections`, `max_connections_per_address`.
        stall_seconds: A caller that reads nothing of an answer for that long is disconnected, so
            that the vendor's call behind it is not held for ever.
    """
    fields = {"service": service, "stall_seconds": stall_seconds, "addresses": Counter()}
    return type("GuardedProtocol", (GuardedProtocol,), fields)


class _BoundedH11(h11.Connection):
    """h11's connection for HTTP 1.0 and 1.1 only, which returns a body in portions.

    Attributes:
        refusal: Why a request is refused, if it is.
        has_more: The portion is over, and more has arrived.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _MOST_HEAD)
        self.refusal: Refusal | None = None
        self.has_more = False
        self._left = 0

    def begin_portion(self) -> None:
        """Allow the next pieces."""
        self.has_more, self._left = False, _PIECES

    def next_event(self) -> Any:
        """Return the next event, or that more data is needed."""
        if self._left <= 0:
            self.has_more = True
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._left -= 1
        elif isinstance(event, h11.Request) and event.http_version not in {b"1.0", b"1.1"}:
            version = event.http_version.decode()
            self.refusal = Refusal(505, f"HTTP/{version} is not supported; use HTTP/1.1.")
            raise h11.RemoteProtocolError("not HTTP/1")
        return event


class _Flow(FlowControl):
    """uvicorn's flow control, which reads nothing while portions wait."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol, with small and timely heads and a bound on connections.

    A caller has to read its answer, however slowly.
    """

    service: Service
    stall_seconds: float
    addresses: Counter[str]
    """Open connections of each."""

    conn: _BoundedH11
    flow: _Flow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _BoundedH11()
        self.timeout_keep_alive = self.service.settings.keep_alive_timeout  # type: ignore[assignment]
        self._address: str | None = None
        self._late: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._stalled: asyncio.TimerHandle | None = None
        self._quiet_since = self.service.clock.now()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count a new connection, and wait for a head."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        refusal = self._over_limit()
        if refusal is None:
            self._await_head()
        else:
            self._refuse(refusal)

    def _over_limit(self) -> Refusal | None:
        """Count the connection, and refuse it if there are too many."""
        settings = self.service.settings
        if self.client is not None:
            self._address = _network(self.client[0])
            self.addresses[self._address] += 1
            if self.addresses[self._address] > settings.max_connections_per_address:
                return Refusal(
                    429,
                    "Too many connections are open from this address.",
                    "rate_limit_error",
                    "too_many_connections",
                    retry_after=1.0,
                )
        if len(self.connections) > settings.max_connections:
            return Refusal(
                503,
                "Too many connections are open.",
                "server_error",
                "overloaded",
                retry_after=1.0,
            )
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._head_arrived()
        self._reader_goes_on()
        if self._address is not None:
            self.addresses[self._address] -= 1
            if not self.addresses[self._address]:
                del self.addresses[self._address]
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a caller that does not keep up, but not for ever."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Go on when the caller has read."""
        self._reader_goes_on()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take data, of a head no more than allowed."""
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
                self._refuse(Refusal(431, f"The head of a request may have {_MOST_HEAD} bytes."))
                return
        if data and not self.transport.is_closing():
            super().data_received(data)
        if not self._is_idle:
            self._head_arrived()

    def handle_events(self) -> None:
        """Take events, a portion at a time."""
        if self.flow.held:
            return  # the next portion is on its way
        self.conn.begin_portion()
        super().handle_events()
        if self.conn.has_more and not self.transport.is_closing():
            self.flow.pause_reading()
            self.flow.held = True
            self.loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        self.flow.held = False
        if self.transport.is_closing():
            return
        self.handle_events()
        cycle = self._unanswered
        is_full = cycle is not None and len(cycle.body) > HIGH_WATER_LIMIT
        if not is_full and self.conn.their_state is not h11.DONE:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._quiet_since = self.service.clock.now()
        super().on_response_complete()
        if not self._is_idle:  # the next request was here already
            self._head_arrived()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP."""
        self._refuse(self.conn.refusal or Refusal(400, msg))

    def is_quiet(self, seconds: float) -> bool:
        """Return whether neither a request nor an answer has been here in the last seconds."""
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
            self._late = self.loop.call_later(seconds, self._head_timed_out)

    def _head_arrived(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_timed_out(self) -> None:
        self._late = None
        if self._head_bytes:
            self._refuse(Refusal(408, "The request did not arrive in time."))
        else:
            self.transport.close()

    def _watch_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self.stall_seconds, self._check_reader, waiting)

    def _check_reader(self, waited: int) -> None:
        """Disconnect if as much waits as before; while writing is paused nothing is added."""
        if self.transport.get_write_buffer_size() < waited:
            self._watch_reader()
        else:
            self._stalled = None
            self.transport.abort()  # to close it would wait for the caller as well

    def _reader_goes_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _refuse(self, refusal: Refusal) -> None:
        """Send a refusal, unless an answer has begun, and close."""
        self._head_arrived()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self.service.refusal_log.note(refusal, None if self.client is None else self.client[0])
            self.transport.write(_on_the_wire(refusal))
        cycle = self._unanswered
        if cycle is not None:
            cycle.disconnected = True  # the application sends nothing more
            cycle.message_event.set()
        self.transport.close()


def _network(address: str) -> str:
    """Return the network whose connections count together: of IPv6 a caller has a whole /64."""
    try:
        whole = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if whole.version == 4:
        return address
    mapped = whole.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(whole), 64), strict=False))


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
