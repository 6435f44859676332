"""How much of the package a request of a door runs through, beside the gateway's own part."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections import Counter

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from aigateway import AsyncGateway
from aigateway.fleet.fleet import Fleet
from aigateway.fleet.ledger import MemoryLedger
from aigateway.server.http.admission import Admission
from aigateway.server.http.cancel import CONNECTION
from aigateway.server.http.connections import protocol_for
from aigateway.server.service import Service
from aigateway.settings import GatewaySettings, ServerSettings
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from benchmarks.calls import ROOT
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer, scripted_service
from tests.server.http.test_framing import Line
from tests.server.running import running

HI = [{"role": "user", "content": "hi"}]
DOORS: dict[str, tuple[str, dict[str, object], int]] = {
    "/v1/chat/completions": ("chat", {"messages": HI}, 54),
    "/v1/embeddings": ("embed", {"input": "hi"}, 64),
}


@pytest.fixture
async def service():
    """A service with a key whose account processes share, as `aigateway serve` has it."""
    clock = FakeClock()
    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        gateway.use_fleet(Fleet(GatewaySettings(), clock, ledger=MemoryLedger(clock)))
        yield Service(gateway, ServerSettings(keys=(api_key("web"),)))


@pytest.mark.parametrize("path", DOORS)
async def test_a_door_takes_few_calls_beside_the_gateway(monkeypatch, service, path):
    method, body, most = DOORS[path]
    counted: Counter[str] = Counter()
    within = 0
    own, admit = getattr(AsyncGateway, method), Admission.__call__

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

    async def watched(*args):
        counted.clear()
        collects = gc.isenabled()
        gc.disable()  # what other tests have left may call something when it goes
        sys.setprofile(note)
        try:
            await admit(*args)
        finally:
            sys.setprofile(None)
            if collects:
                gc.enable()

    monkeypatch.setattr(AsyncGateway, method, answer)
    monkeypatch.setattr(Admission, "__call__", watched)
    async with running(service) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        for _ in range(2):  # from the cache the second time, so it never waits
            asked = {"model": "simulated", **body}
            assert (await client.post(path, json=asked, headers=bearer("web"))).status_code == 200
    assert 30 < counted.total() <= most, counted.most_common()


OF_A_REQUEST = {"AdmittedRequest", "GatewayUse", "RequestCycle", "RequestRecord", "RequestState"}


@contextlib.contextmanager
def garbage():
    """Yield a set that has the types of what the block has left to the garbage collector."""
    kinds: set[str] = set()
    gc.collect()
    gc.disable()
    try:
        yield kinds
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds.update(type(each).__name__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_a_request_leaves_nothing_to_the_garbage_collector(service):
    async with running(service) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:

        async def ask(text):
            body = {"model": "simulated", "messages": [{"role": "user", "content": text}]}
            await client.post("/v1/chat/completions", json=body, headers=bearer("web"))

        await ask("hi")
        with garbage() as kinds:
            for text in ("hi", "1", "2", "3"):
                await ask(text)
    assert not kinds & OF_A_REQUEST


async def test_a_connection_takes_few_calls_and_leaves_nothing_to_the_garbage_collector():
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
        with garbage() as kinds:
            sys.setprofile(note)
            try:
                await ask()
            finally:
                sys.setprofile(None)
        protocol.connection_lost(None)
    assert not kinds & OF_A_REQUEST
    assert len(line.writes) == 2
    assert 10 < len(calls) <= 18, calls
