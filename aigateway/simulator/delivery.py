"""Write an answer, or what a fault leaves of it, to the socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import orjson
from aiohttp import web

from aigateway.simulator.faults import Fault
from aigateway.simulator.wires.wire import Event, SimulatedFailure

__all__ = [
    "send_broken",
    "send_failure",
    "send_plain",
    "send_stream",
    "wait_for_ever",
]

_JSON = "application/json"
_HTML = b"""<!DOCTYPE html>
<html><head><title>Bad gateway</title></head>
<body><h1>Bad gateway</h1><p>The web server reported a bad gateway error.</p></body></html>
"""


async def send_failure(request: web.BaseRequest, failure: SimulatedFailure) -> web.StreamResponse:
    """Return the vendor's error answer."""
    del request
    return web.Response(
        body=orjson.dumps(failure.body),
        status=failure.status,
        headers=failure.headers,
        content_type=_JSON,
    )


async def send_broken(
    request: web.BaseRequest, fault: Fault, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Apply faults that do not depend on the request."""
    match fault.name:
        case "hang":
            await wait_for_ever()
        case "reset" | "refuse":
            await _reset(request)
        case "html":
            return web.Response(body=_HTML, status=fault.code or 200, content_type="text/html")
        case "redirect":
            location = fault.location or f"/redirected{request.path_qs}"
            return web.Response(status=fault.code or 307, headers={**headers, "location": location})
    return web.Response(status=fault.code or 200, headers=headers)


async def send_plain(
    request: web.BaseRequest, body: bytes, fault: Fault | None, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Return a JSON body, whole or cut."""
    name = fault.name if fault else ""
    if name in {"cut_body", "reset_in_body"}:
        response = web.StreamResponse(headers={**headers, "content-length": str(len(body))})
        response.content_type = _JSON
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        await (_reset(request) if name == "reset_in_body" else _hang_up(request))
    if name == "malformed":
        body = body[: len(body) // 2]
    return web.Response(body=body, headers=headers, content_type=_JSON)


@dataclass(frozen=True, slots=True)
class _Stop:
    """A premature end of a stream."""

    how: str


async def send_stream(
    request: web.BaseRequest,
    events: Iterable[Event],
    fault: Fault | None,
    *,
    headers: Mapping[str, str],
    error_event: bytes,
    delay: float,
) -> web.StreamResponse:
    """Send the events of a stream up to the fault.

    Args:
        request: The request.
        events: The healthy stream.
        fault: The fault, if any.
        headers: More response headers; they may override the content type.
        error_event: The event of `Fault.error_event`.
        delay: Seconds before each piece of content.
    """
    defaults = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    response = web.StreamResponse(headers=defaults | dict(headers))
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):  # the client has left
        for event in _struck(events, fault, error_event):
            if isinstance(event, _Stop):
                await _end(request, event.how)
                break
            if delay and event.content:
                await asyncio.sleep(delay)
            await response.write(event.data)
        await response.write_eof()
    return response


async def wait_for_ever() -> None:
    """Wait until the client leaves or the server closes; both cancel the handler."""
    await asyncio.Event().wait()


def _struck(
    events: Iterable[Event], fault: Fault | None, error_event: bytes
) -> Iterator[Event | _Stop]:
    """Send the stream, changed by the fault."""
    name = fault.name if fault else ""
    if fault is None or name not in _STRIKES:
        yield from events
        return
    strike = list(_strike(fault, error_event))
    pieces = 0
    if name in {"malformed", "cut_body", "reset_in_body"}:
        fault = Fault(name, after=1)
    if fault.after <= 0:
        yield from strike
        return
    for event in events:
        if event.ending or (event.content and pieces >= fault.after):
            break
        pieces += event.content
        yield event
    yield from strike


_STRIKES = frozenset(
    {
        "error_event",
        "cut_stream",
        "stall_stream",
        "malformed",
        "cut_body",
        "reset_in_body",
    }
)


def _strike(fault: Fault, error_event: bytes) -> Iterator[Event | _Stop]:
    match fault.name:
        case "error_event":
            yield Event(error_event)
        case "malformed":
            yield Event(b'data: {"id": "broken", "choices": [{"del\n\n')
        case "stall_stream":
            yield _Stop("stall")
        case "reset_in_body":
            yield _Stop("reset")
        case "cut_body":
            yield _Stop("hang up")
        case "cut_stream" if not fault.clean:
            yield _Stop("hang up")


async def _end(request: web.BaseRequest, how: str) -> None:
    match how:
        case "stall":
            await wait_for_ever()
        case "reset":
            await _reset(request)
        case _:
            await _hang_up(request)


async def _hang_up(request: web.BaseRequest) -> None:
    """Close in the middle of the body."""
    if request.transport is not None:
        request.transport.close()
    await wait_for_ever()


async def _reset(request: web.BaseRequest) -> None:
    """Close with RST, as a crashed process or a firewall does."""
    # Let written data be read first: a reset drops it on some systems.
    await asyncio.sleep(0.005)
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await wait_for_ever()
