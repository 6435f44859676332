"""Bounds on connections, below ASGI, in uvicorn's httptools protocol.

uvicorn waits without end for the head of a request and for a caller that does not read, and accepts
connections without end. It also answers malformed HTTP itself; here the answer has OpenAI's form.

llhttp (httptools) parses, but it reads all that it is given. So it is given one head at a time, and
of a body no more than belongs to that: pipelined requests wait unread until their turn.
"""

from __future__ import annotations

import asyncio
import contextvars
import http
import ipaddress
import json
import math
import re
from collections import Counter
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from aigateway.server.http.cancel import CONNECTION
from aigateway.server.http.cycle import App, RequestCycle, written_defaults
from aigateway.server.http.errors import Refusal, request_id_of
from aigateway.server.service import Service

__all__ = ["GuardedProtocol", "protocol_for"]

_MOST_HEAD = 32_768
"""Bytes of the line and the headers of a request."""

_PIECES = 200
"""Pieces of a body that are read in one go: a body of tiny chunks holds up nothing else."""

_SLICE = 4096
"""Bytes of a chunked body that are parsed at once, which may be 700 pieces."""

_STALL_SECONDS = 60.0
"""For a caller to read something of an answer that waits for it."""

_HIGHEST_PORT = 65_535

_EARLY = 0.002
"""Seconds by which a timer may be early: uvloop counts milliseconds."""

_BLANK = b"\r\n\r\n"
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])\r\n")
_VERSION = re.compile(rb"[^\r\n]* HTTP/(\d+(?:\.\d+)?)\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_ABSOLUTE = re.compile(
    rb"https?://((?:[^/?@:\[\]]+|\[[^/?@\[\]]+\])(?::([0-9]{0,5}))?)([/?].*)?", re.IGNORECASE
)
_METHODS = {b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"}
"""Methods that every llhttp parses like these."""

_FORWARDED = {b"x-forwarded-for", b"x-forwarded-proto"}
_WATCHED = _FORWARDED | {b"host", b"content-length", b"transfer-encoding", b"expect"}


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
    fields = {
        "service": service,
        "stall_seconds": stall_seconds,
        "addresses": Counter(),
        "under_way": set(),
    }
    return type("GuardedProtocol", (GuardedProtocol,), fields)


class _Flow(FlowControl):
    """uvicorn's flow control, which reads nothing while what has been read waits."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with small and timely heads and a bound on connections.

    A caller has to read its answer, however slowly.
    """

    # An object with more than thirty attributes in its dict is slow, and uvicorn's has nearly as
    # many.
    __slots__ = (
        "_address",
        "_asgi",
        "_behind_proxy",
        "_context",
        "_deadline",
        "_dropped",
        "_framing",
        "_head",
        "_idle_seconds",
        "_in_body",
        "_length",
        "_line",
        "_pieces",
        "_quiet_since",
        "_rest",
        "_stalled",
        "_state",
        "_tail",
        "_timer",
        "_upgrade",
        "recognized",
    )

    service: Service
    stall_seconds: float
    addresses: Counter[str]
    """Open connections of each."""

    under_way: set[RequestCycle]
    """Requests that the application answers, also those whose caller is gone."""

    closing = False
    """Each answer that begins from now on is the last on its connection; of the class."""

    flow: _Flow
    cycle: RequestCycle | None  # type: ignore[assignment]

    recognized: tuple[Any, bytes, Any] | None
    """What its last request had: keys of the service, header `Authorization`, and so its caller."""

    on_url = on_message_begin = None  # type: ignore[assignment]  # nothing is left for them to do

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._behind_proxy: App = self.app
        if isinstance(self.app, ProxyHeadersMiddleware):  # not without its headers
            self.app = self.app.app
        self.recognized = None
        self.headers: list[tuple[bytes, bytes]] = []
        self._state: dict[str, Any] = {}  # of the last request that the application has
        self._asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self._idle_seconds = self.service.settings.keep_alive_timeout
        self._context = contextvars.copy_context()  # of no request, for each to begin with
        self._address: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        self._stalled: asyncio.TimerHandle | None = None
        self._quiet_since = self.loop.time()
        self._head = bytearray()  # of the next request, if it comes in pieces
        self._rest = bytearray()  # has been read, and waits
        self._line: re.Match[bytes] | None = None  # of the head that is parsed
        self._length: int | None = 0  # what is missing of the body; None while it is chunked
        self._in_body = self._upgrade = False
        self._tail = b""  # the last bytes of a chunked body so far
        self._pieces = self._framing = self._dropped = 0

    # ── connections ──────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count a new connection, and wait for a head."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        refusal = self._over_limit()
        if refusal is None:
            self._end_at(self.loop.time() + self.service.settings.header_timeout)
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reader_goes_on()
        if self._address is not None:
            self.addresses[self._address] -= 1
            if not self.addresses[self._address]:
                del self.addresses[self._address]
        self.connections.discard(self)
        if self.cycle is not None:
            self.cycle.lose()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]  # it refers to this

    def is_quiet(self, seconds: float) -> bool:
        """Return whether neither a request nor an answer has been here in the last seconds."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self._in_body
            and not self._head
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
            and self.loop.time() - self._quiet_since >= seconds
        )

    # ── deadlines ────────────────────────────────────────────────────────────────────────────

    def _end_at(self, deadline: float) -> None:
        """End the connection then, unless a later call says otherwise.

        A timer that is early looks again later: so a request neither makes nor cancels one.
        """
        self._deadline = deadline
        if self._timer is None or self._timer.when() > deadline + _EARLY:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(deadline, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._deadline is math.inf or self.transport.is_closing():
            return
        if self.loop.time() < self._deadline - _EARLY:
            self._end_at(self._deadline)
        elif self._head:
            self._refuse(Refusal(408, "The request did not arrive in time."))
        else:
            self.transport.close()

    # ── callers that do not read ─────────────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        """Wait for a caller that does not keep up, but not for ever."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Go on when the caller has read."""
        self._reader_goes_on()
        super().resume_writing()

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

    # ── what arrives ─────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Parse what belongs to the request that comes or is under way; the rest waits."""
        if self._rest:
            self._rest += data
            if len(self._rest) > HIGH_WATER_LIMIT:
                self._stop_reading()
            return
        at, size, self._pieces = 0, len(data), 0
        try:
            while at < size and not self.transport.is_closing():
                if self._in_body:
                    if self._pieces >= _PIECES:
                        self._rest = bytearray(data[at:])
                        self._stop_reading()
                        self.loop.call_soon(self._take_more)
                        return
                    at = self._take_body(data, at)
                elif self.cycle is None or self.cycle.response_complete:
                    at = self._take_head(data, at)
                else:
                    # Read on: only a connection that is read says that its caller has left.
                    self._rest = bytearray(data[at:])
                    return
        except Refusal as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            found = error.__context__  # what a callback has raised
            self._refuse(found if isinstance(found, Refusal) else _invalid())

    def _stop_reading(self) -> None:
        """Read no further until what has been read is taken."""
        self.flow.pause_reading()
        self.flow.held = True

    def _take_more(self) -> None:
        rest, self._rest = bytes(self._rest), bytearray()
        self.flow.held = False
        self.data_received(rest)
        cycle = self.cycle
        is_full = cycle is not None and not cycle.response_complete and cycle.is_full
        if rest and not is_full and not self.transport.is_closing():
            self.flow.resume_reading()

    def _take_head(self, data: bytes, at: int) -> int:
        """Parse a head if all of it is here, and return where in the data it ends."""
        end = 0 if self._head else data.find(_BLANK, at) + 4
        if not 3 < end <= at + _MOST_HEAD:
            return self._take_piece(data, at)
        head = data[at:end]  # no copy of all of it
        self.headers = []
        self._line = line = _LINE.match(head)
        if line is None:
            if head.startswith(b"\r\n"):
                return self._skip_empty_line(data, at)
            raise _refused_line(head)
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError:
            if line[1] in _METHODS:
                raise
            self._parse_as_post(b"POST" + head[len(line[1]) :])
        return end

    def _take_piece(self, data: bytes, at: int) -> int:
        """Add to a head that comes in pieces, and parse it once it is whole."""
        if self._head == b"\r" or (not self._head and data[at] == 13):  # "\r"
            return self._skip_empty_line(data, at)
        if not self._head and self.cycle is not None:
            # The time of the first one runs since the connection was made.
            self.headers = []
            self._end_at(self.loop.time() + self.service.settings.header_timeout)
        before = len(self._head)
        self._head += data[at : at + _MOST_HEAD - before]
        end = self._head.find(_BLANK, max(0, before - 3)) + 4
        if end > 3:
            head = bytes(self._head[:end])
            self._head.clear()
            self._take_head(head, 0)
            return at + end - before
        if self._head[0] < 33 or _BARE_LF.search(self._head, max(0, before - 1)):
            raise _invalid()
        if at + _MOST_HEAD - before < len(data):
            raise _head_too_large()
        return len(data)

    def _skip_empty_line(self, data: bytes, at: int) -> int:
        """Ignore an empty line before a head (RFC 9112, 2.2), and return where in the data it ends.

        It prolongs no deadline, and all of them together may be as long as a head.
        """
        line = bytes(self._head) + data[at : at + 2 - len(self._head)]
        if not b"\r\n".startswith(line):
            raise _invalid()
        taken = len(line) - len(self._head)
        self._head[:] = line if line == b"\r" else b""
        self._framing += taken
        if self._framing > _MOST_HEAD:
            raise _head_too_large()
        return at + taken

    def _parse_as_post(self, head: bytes) -> None:
        """Let llhttp parse a head with a method that it does not know.

        The application says itself which ones it takes.
        """
        self.headers, self.parser = [], httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()

    def _ignore_upgrade(self) -> None:
        """Ignore an upgrade request: parse what follows as an ordinary body."""
        length = self._length
        body = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % body)

    def _take_body(self, data: bytes, at: int) -> int:
        """Parse the next part of a body, and return where in the data that ends."""
        length, end = self._length, len(data)
        if length is None:
            end = self._possible_end(data, at)
            self._framing += end - at
        else:
            end = min(end, at + length)
            self._length = length - (end - at)
        try:
            self.parser.feed_data(data[at:end])
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        cycle = self.cycle
        if cycle is not None and cycle.response_complete:
            self._dropped += end - at
        # Trailers and extensions of chunks are no body. Of a refused body little more is read.
        too_much = self._framing > _MOST_HEAD or self._dropped > _MOST_HEAD
        if too_much or (self._length is not None and self._in_body != (self._length > 0)):
            raise _invalid()
        return end

    def _possible_end(self, data: bytes, at: int) -> int:
        """Return where a chunked body may end: after a blank line. Beyond is another request."""
        most = min(len(data), at + _SLICE)
        tail = self._tail
        if at == 0 and tail and (blank := (tail + data[:3]).find(_BLANK)) >= 0:
            end = blank + 4 - len(tail)
        else:
            blank = data.find(_BLANK, max(0, at - 3), most)
            end = most if blank < 0 else blank + 4
        if end == len(data):
            self._tail = (tail + data[-3:])[-3:]
        return end

    # ── callbacks of the parser ──────────────────────────────────────────────────────────────

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; those after a body (trailers) are dropped."""
        if self._line is not None:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Check the head, and start the application."""
        line, self._line = self._line, None
        if line is None:
            if not self._upgrade:  # a body is longer or shorter than we think
                raise _invalid()
            self._upgrade = False
            return
        method, target, minor = line.groups()
        expects, app = self._check_headers(minor)
        if target[0] != 47:  # "/"
            target = self._path_of(method, target)
        self._upgrade = self.parser.should_upgrade()
        self._in_body, self._tail, self._framing, self._dropped = True, b"", 0, 0
        self._deadline = math.inf
        keeps = minor == b"1" and self.parser.should_keep_alive()
        cycle = self.cycle = RequestCycle(self, method, minor, keeps, expects)
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode()
        self._state = state = self.app_state.copy()
        scope = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": "1.1" if minor == b"1" else "1.0",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method.decode(),
            "root_path": self.root_path,
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode() + raw_path if self.root_path else raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": state,
            "extensions": {CONNECTION: cycle},
        }
        cycle.task = task = self.loop.create_task(
            cycle.run(app, scope), context=self._context.copy()
        )
        self.tasks.add(task)

    def _path_of(self, method: bytes, target: bytes) -> bytes:
        """Return the path and query of a target that does not begin with its path: RFC 9112, 3.2.

        The host of a whole address counts in place of the header `Host`.
        """
        path = target
        if whole := _ABSOLUTE.fullmatch(target):
            if int(whole[2] or b"0") > _HIGHEST_PORT:
                raise _invalid()
            others = [header for header in self.headers if header[0] != b"host"]
            self.headers = [(b"host", whole[1]), *others]
            path = whole[3] or (b"*" if method == b"OPTIONS" else b"/")
            path = b"/" + path if path.startswith(b"?") else path
        if not path.startswith(b"/") and (path != b"*" or method != b"OPTIONS"):
            raise _invalid()
        return path

    def _check_headers(self, minor: bytes) -> tuple[bool, App]:
        """Note how long the body is.

        Returns:
            Whether the caller waits for `100 Continue`, and the application for the request.

        Raises:
            Refusal: 400, where the request ends is not certain, or who is meant.
        """
        hosts, length, coding, expects, app = 0, None, None, False, self.app
        for name, value in self.headers:
            if name not in _WATCHED:
                continue
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                coding = value.lower() if coding is None else b""  # two are refused
            elif name == b"expect":
                expects = minor == b"1" and value.lower() == b"100-continue"
            else:
                app = self._behind_proxy
        if (
            hosts > 1
            or (not hosts and minor == b"1")
            or (coding is not None and (coding != b"chunked" or length is not None))
        ):
            raise _invalid()
        self._length = (length or 0) if coding is None else None
        return expects, app

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on."""
        self._pieces += 1
        self._framing = 0
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and cycle.add(body):
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """Note that the request has arrived."""
        if self._upgrade:
            return  # its body comes now
        self._in_body = False
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._await_request()  # it was answered before
        else:
            cycle.end_body()

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self._await_request()
            if self._rest:
                self.loop.call_soon(self._take_more)
            elif self.flow.read_paused:
                self.flow.resume_reading()

    def _await_request(self) -> None:
        self._quiet_since = now = self.loop.time()
        is_here = self._in_body or self._head or len(self._rest) > len(b"\r\n")
        seconds = self.service.settings.header_timeout if is_here else self._idle_seconds
        self._deadline = deadline = now + seconds
        if self._timer is None or self._timer.when() > deadline + _EARLY:
            self._end_at(deadline)

    def _refuse(self, refusal: Refusal) -> None:
        """Send a refusal, unless an answer has begun, and close."""
        self._deadline = math.inf
        cycle = self.cycle
        if cycle is None or not (self._in_body if cycle.response_complete else cycle.started):
            peer, request_id = None if self.client is None else self.client[0], self._request_id()
            self.service.refusal_log.note(refusal, peer, request_id=request_id)
            defaults = written_defaults(self.server_state.default_headers)
            self.transport.write(_on_the_wire(refusal, request_id, defaults))
        if cycle is not None:
            cycle.lose()  # the application sends nothing more
        self.transport.close()

    def _request_id(self) -> str:
        """Return the id of the request that is refused: its own, as far as it has been read."""
        cycle = self.cycle
        known = self._state.get("request_id")
        if known is not None and cycle is not None and not cycle.response_complete:
            return str(known)
        given = next((value for name, value in self.headers if name == b"x-request-id"), None)
        return request_id_of(None if given is None else given.decode("latin-1"))


def _refused_line(head: bytes) -> Refusal:
    version = _VERSION.match(head)
    if version is None or version[1] in {b"1.0", b"1.1"}:
        return _invalid()
    return Refusal(505, f"HTTP/{version[1].decode()} is not supported; use HTTP/1.1.")


def _head_too_large() -> Refusal:
    return Refusal(431, f"The head of a request may have {_MOST_HEAD} bytes.")


def _invalid() -> Refusal:
    return Refusal(400, "Invalid HTTP request received.")


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


def _on_the_wire(refusal: Refusal, request_id: str, defaults: bytes) -> bytes:
    body = json.dumps(refusal.body).encode()
    lines = [
        f"HTTP/1.1 {refusal.status} {http.HTTPStatus(refusal.status).phrase}",
        f"{defaults.decode('latin-1')}content-type: application/json",
        f"x-request-id: {request_id}",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name.lower()}: {value}" for name, value in refusal.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
