"""How much of the package a request of a door runs through, beside the gateway's own part."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter

import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from aigateway import AsyncGateway
from aigateway.server import create_app
from aigateway.server.http.cancel import CONNECTION
from aigateway.server.http.connections import protocol_for
from aigateway.settings import ServerSettings
from aigateway.testing import ScriptedVendor, scripted_configs
from benchmarks.calls import ROOT
from tests.server.callers import api_key, bearer, scripted_service
from tests.server.http.test_framing import Line

HI = [{"role": "user", "content": "hi"}]
DOORS = {
    "/v1/chat/completions": ("chat", {"messages": HI}),
    "/v1/embeddings": ("embed", {"input": "hi"}),
}


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


@pytest.mark.parametrize("path", DOORS)
async def test_a_door_takes_few_calls_beside_the_gateway(monkeypatch, path):
    method, body = DOORS[path]
    counted: Counter[str] = Counter()
    within = 0
    own = getattr(AsyncGateway, method)

    async def answer(*args, **options):
        nonlocal within
        within += 1
        try:
            return await own(*args, **options)
        finally:
            within -= 1

    def note(frame, event, _):
        if event == "call" and not within and frame.f_code.co_filename.startswith(str(ROOT)):
            counted[f"{frame.f_code.co_qualname} in {frame.f_code.co_filename}"] += 1

    monkeypatch.setattr(AsyncGateway, method, answer)
    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        app = create_app(gateway, ServerSettings(keys=(api_key("web"),)))
        assert await asked(app, path, body) == 200  # from the cache next time, so it never waits
        sys.setprofile(note)
        try:
            status = await asked(app, path, body)
        finally:
            sys.setprofile(None)
    assert status == 200
    assert "Admission.__call__" in str(counted)
    assert 30 < counted.total() <= 90, counted.most_common()


async def test_a_connection_takes_few_calls_and_leaves_nothing_to_the_collector():
    calls: list[str] = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            calls.append(frame.f_code.co_qualname)

    async def app(scope, receive, send):
        cycle = scope["extensions"][CONNECTION]
        assert cycle.take_body() == b"hi"
        assert cycle.answer(b"", b"hello")

    async def ask():
        protocol.data_received(
            b"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"
        )
        for _ in range(3):
            await asyncio.sleep(0)

    async with scripted_service() as service:
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        loop, line = asyncio.get_running_loop(), Line()
        protocol = protocol_for(service)(config, ServerState(), {}, loop)
        protocol.connection_made(line)
        await ask()
        gc.collect()
        sys.setprofile(note)
        try:
            await ask()
        finally:
            sys.setprofile(None)
        assert gc.collect() == 0
        protocol.connection_lost(None)
    assert len(line.writes) == 2
    assert 10 < len(calls) <= 18, calls
