"""Settings with keys, a service over scripted vendors, requests, and bytes over a connection."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from urllib.parse import urlsplit

import orjson

from aigateway import AsyncGateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.server.service import Service
from aigateway.settings import ApiKey, ServerSettings
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from tests.processes import PATIENCE


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def api_key(name, **fields):
    """A key whose text is `sk-NAME`."""
    return ApiKey(name=name, sha256=digest(f"sk-{name}"), **fields)


def bearer(name):
    return {"authorization": f"Bearer sk-{name}"}


def caller_by(access, headers):
    """The caller of a request with these headers."""
    return access.identify(headers.get("authorization"), headers.get("x-api-key"))


@contextlib.asynccontextmanager
async def scripted_service(**settings):
    """A service whose vendors answer from a list; neither needs HTTP."""
    gateway = AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor())
    async with gateway:
        yield Service(gateway, ServerSettings(**settings))


async def asked(app, path, body):
    """The status of a request that is whole when the application gets it."""
    raw, statuses = orjson.dumps({"model": "simulated", **body}), []
    head = {"content-type": "application/json", "content-length": str(len(raw)), **bearer("web")}
    arriving = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive():
        return arriving.pop() if arriving else await asyncio.Event().wait()

    async def send(message):
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in head.items()],
    }
    await app(scope, receive, send)
    return statuses[0]


async def converse(url, *pieces, clock=SYSTEM_CLOCK):
    """Write pieces (bytes, or seconds to wait), and read all the while until the server closes."""
    wait = clock.advance if isinstance(clock, FakeClock) else clock.sleep
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    reading = asyncio.create_task(_until_closed(reader))
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            if reading.done():
                break
            if isinstance(piece, float):
                await wait(piece)
            else:
                writer.write(piece)
                await writer.drain()
    came = await reading
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return came


async def _until_closed(reader):
    came = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while piece := await reader.read(65536):
                came += piece
    return came
