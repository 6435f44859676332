"""Starting, adding, threads, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from aigateway.simulator import Fault, SimulatedVendor, Simulator
from tests.fleet.servers import free_port
from tests.processes import PATIENCE


async def test_four_vendors_on_loopback():
    async with Simulator() as sim:
        assert [v.name for v in sim.vendors] == ["openai", "azure", "gemini", "anthropic"]
        assert [v.wire for v in sim.vendors] == [v.name for v in sim.vendors]
        assert len({v.url for v in sim.vendors}) == 4
        assert all(v.url.startswith("http://127.0.0.1:") for v in sim.vendors)
        assert repr(sim.openai) == f"<SimulatedVendor openai (openai) {sim.openai.url}>"
        assert sim.control_url is None


async def test_add():
    async with Simulator() as sim:
        assert (await sim.add("gemini")).name == "gemini-2"
        assert (await sim.add("gemini")).name == "gemini-3"
        assert (await sim.add("openai_compatible")).name == "openai_compatible"
        assert (await sim.add("openai", name="backup")) is sim.vendor("backup")
        with pytest.raises(ValueError, match="already"):
            await sim.add("openai", name="backup")
        with pytest.raises(ValueError, match="unknown wire 'cohere'; known: openai, azure"):
            await sim.add("cohere")
        with pytest.raises(KeyError):
            sim.vendor("nobody")


async def test_fixed_ports():
    port = free_port()
    async with Simulator(ports=(port, 0, 0, 0)) as sim:
        assert sim.openai.url == f"http://127.0.0.1:{port}"
        with pytest.raises(OSError, match="in use"):
            async with Simulator(ports=(0, 0, 0, port)):
                pass


def test_ports_are_four():
    with pytest.raises(ValueError, match="four"):
        Simulator(ports=(1, 2))


async def test_closing_is_quick_and_leaves_nothing(ask, until, caplog):
    caplog.set_level(logging.INFO)
    before = asyncio.all_tasks()
    async with Simulator() as sim:
        port = int(sim.openai.url.rpartition(":")[2])
        sim.openai.behave(Fault.hang())
        sim.azure.behave(Fault.stall_stream(after=1))
        sim.gemini.timeline([(PATIENCE, Fault.refuse())])
        sim.anthropic.latency = PATIENCE
        waiting = [
            asyncio.create_task(ask.chat(v, "a b", stream=v is sim.azure)) for v in sim.vendors
        ]
        await until(lambda: all(vendor.received for vendor in sim.vendors))
        begin = time.perf_counter()
    assert time.perf_counter() - begin < 30  # aiohttp's own waits are longer
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(result, Exception) for result in results) == 3
    assert asyncio.all_tasks() == before
    assert sum(vendor.open_connections for vendor in sim.vendors) == 0
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect(("127.0.0.1", port))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_closing_while_refusing():
    async with Simulator() as sim:
        sim.openai.behave(Fault.refuse())
        sim.azure.behave(Fault.refuse())
        sim.azure.recover()
    sim.azure.recover()  # too late to matter, and harmless
    sim.azure.behave(Fault.refuse())


async def test_idle_connections_do_not_delay_closing(ask):
    async with Simulator() as sim:
        for vendor in sim.vendors:
            await ask.chat(vendor)
        begin = time.perf_counter()
    assert time.perf_counter() - begin < 30  # aiohttp's own waits are longer


async def test_many_at_once(ask):
    async with Simulator() as sim:
        sim.openai.latency = 0.02
        replies = await asyncio.gather(*(ask.chat(sim.openai, str(i)) for i in range(200)))
        texts = [reply.json["choices"][0]["message"]["content"] for reply in replies]
        assert texts == [str(i) for i in range(200)]


def plain_chat(vendor: SimulatedVendor) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"{vendor.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": "Bearer k"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_in_a_thread():
    before = set(threading.enumerate())
    with Simulator.in_thread() as sim:
        assert plain_chat(sim.openai) == 200
        sim.openai.behave(Fault.status(503), times=1)
        assert [plain_chat(sim.openai) for _ in range(2)] == [503, 200]
        extra = sim.add_from_thread("openai", name="extra")
        assert plain_chat(extra) == 200
        sim.openai.behave(Fault.refuse())
        with pytest.raises(urllib.error.URLError, match="refused"):
            plain_chat(sim.openai)
        sim.openai.recover()
        assert plain_chat(sim.openai) == 200
        sim.openai.timeline([(0.0, Fault.status(500))])
        assert plain_chat(sim.openai) == 500
        with pytest.raises(ValueError, match="times"):
            sim.openai.behave(Fault.refuse(), times=1)
        assert len(sim.openai.received) == 5
    assert set(threading.enumerate()) <= before  # others may end


def test_a_thread_passes_errors_on():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), Simulator.in_thread(ports=(port, 0, 0, 0)):
            pass


def test_a_failing_block_still_stops_the_thread():
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="mine"), Simulator.in_thread():
        raise RuntimeError("mine")
    assert set(threading.enumerate()) <= before  # others may end


def test_add_from_thread_needs_a_running_simulator():
    with pytest.raises(RuntimeError, match="not running"):
        Simulator().add_from_thread("openai")


def test_the_simulator_does_not_load_litellm():
    import subprocess

    code = "import sys, aigateway.simulator.serve as _; print('litellm' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


ROOT = __file__.rpartition("/tests/")[0]
