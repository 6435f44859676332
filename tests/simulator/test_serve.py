"""What the command line uses: the control endpoint, timelines as text, ports in a row."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aigateway.errors import ConfigurationError
from aigateway.simulator import Fault, Simulator
from aigateway.simulator.serve import serve_forever
from aigateway.simulator.timeline import follow, parse_timeline, read_timeline


@pytest.fixture
async def controlled() -> AsyncIterator[Simulator]:
    async with Simulator(control_port=0) as sim:
        yield sim


async def order(sim: Simulator, ask, what: str, body: object) -> tuple[int, dict[str, object]]:
    url = f"{sim.control_url}/{what}"
    async with ask.session.post(url, json=body) as response:
        return response.status, await response.json()


async def test_state(controlled: Simulator, ask):
    await ask.chat(controlled.openai)
    controlled.azure.behave(Fault.hang())
    assert controlled.control_url is not None
    async with ask.session.get(controlled.control_url) as response:
        state = await response.json()
    first, second, *_ = state["vendors"]
    assert first == {
        "name": "openai",
        "wire": "openai",
        "url": controlled.openai.url,
        "fault": None,
        "requests": 1,
        "open_connections": 1,
    }
    assert second["fault"] == "hang"


async def test_break_and_repair(controlled: Simulator, ask):
    wanted = {"vendor": "openai", "fault": "status", "args": {"code": 503}, "times": 2}
    status, state = await order(controlled, ask, "fault", wanted)
    assert (status, "vendors" in state) == (200, True)
    assert controlled.openai.fault == Fault.status(503)
    assert controlled.azure.fault is None
    await order(controlled, ask, "fault", {"fault": "status:500"})
    assert {vendor.fault for vendor in controlled.vendors} == {Fault.status(500)}
    await order(controlled, ask, "recover", {"vendor": "azure"})
    assert controlled.azure.fault is None
    await order(controlled, ask, "recover", {})
    assert {vendor.fault for vendor in controlled.vendors} == {None}
    await order(controlled, ask, "fault", {"fault": "refuse", "vendor": "openai"})
    await order(controlled, ask, "fault", {"fault": "ok"})
    assert (await ask.chat(controlled.openai)).status == 200


@pytest.mark.parametrize(
    ("what", "body", "status", "text"),
    [
        ("fault", {"fault": "nope"}, 400, "unknown fault 'nope'"),
        ("fault", {"fault": "status"}, 400, "code"),
        ("fault", {"fault": "hang", "args": [1]}, 400, "args"),
        ("fault", {"fault": "hang", "times": 0}, 400, "times"),
        ("fault", {"fault": "hang", "times": "x"}, 400, ""),
        ("fault", {"fault": "hang", "vendor": "x"}, 404, "no vendor 'x'; there are openai"),
        ("recover", [], 400, "object"),
        ("other", {}, 404, "no POST"),
    ],
)
async def test_wrong_orders(controlled: Simulator, ask, what, body, status, text):
    got, answer = await order(controlled, ask, what, body)
    assert got == status
    assert text in str(answer["error"])


async def test_a_web_page_cannot_give_orders(controlled: Simulator, ask):
    url = f"{controlled.control_url}/fault"
    async with ask.session.post(url, data='{"fault": "hang"}') as response:
        assert response.status == 415
    async with ask.session.post(
        url, data="{", headers={"content-type": "application/json"}
    ) as response:
        assert response.status == 400


def test_a_timeline_from_text():
    text = "openai:2s=status:500, openai:5s=ok\n# a comment\nall:100ms=slow:0.5  # why\nx-1:1m=hang"
    assert parse_timeline(text) == {
        "openai": [(2.0, Fault.status(500)), (5.0, None)],
        "all": [(0.1, Fault.slow(0.5))],
        "x-1": [(60.0, Fault.hang())],
    }


def test_a_timeline_from_a_file(tmp_path):
    path = tmp_path / "outage.txt"
    path.write_text("openai:0=hang\n", encoding="utf-8")
    expected = {"openai": [(0.0, Fault.hang())]}
    assert read_timeline(path) == read_timeline(str(path)) == expected
    assert read_timeline("openai:0=hang") == expected


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("openai=hang", "openai:2s=status:500"),
        ("openai:2h=hang", "'openai:2h=hang' is not"),
        ("openai:2s=hnag", "unknown fault 'hnag'"),
        ("nowhere.txt", "'nowhere.txt' is neither"),
        (Path("/nowhere/at=all"), "FileNotFoundError"),
    ],
)
def test_wrong_timelines(given, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        read_timeline(given)


async def test_follow(sim: Simulator):
    follow(parse_timeline("openai:0=hang,all:0=status:500"), sim.vendors)
    assert sim.azure.fault == Fault.status(500)
    with pytest.raises(ConfigurationError, match="no vendor 'cohere'; there are openai"):
        follow(parse_timeline("cohere:0=hang"), sim.vendors)


async def test_serve_prints_the_environment_and_stops_when_cancelled(ask, until):
    lines: list[str] = []
    port = five_free_ports()
    serving = asyncio.create_task(
        serve_forever(port, print_line=lines.append, timeline="azure:0=status:503", latency=0.01)
    )
    await until(lambda: any("control" in line for line in lines))
    exported = dict(line[7:].split("=", 1) for line in lines if line.startswith("export "))
    assert exported["OPENAI_BASE_URL"] == f"http://127.0.0.1:{port}/v1"
    assert exported["AZURE_OPENAI_ENDPOINT"] == f"http://127.0.0.1:{port + 1}"
    assert exported["AZURE_OPENAI_DEPLOYMENT"]
    assert exported["GEMINI_ENDPOINT"] == f"http://127.0.0.1:{port + 2}"
    assert exported["ANTHROPIC_BASE_URL"] == f"http://127.0.0.1:{port + 3}"
    assert all(f"{name}_API_KEY" in exported for name in ("OPENAI", "GEMINI", "ANTHROPIC"))
    async with ask.session.get(f"http://127.0.0.1:{port + 4}/_simulator") as response:
        vendors = json.loads(await response.read())["vendors"]
    assert [vendor["fault"] for vendor in vendors] == [None, "status", None, None]
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_the_printed_variables_configure_the_gateway(sim: Simulator, monkeypatch):
    from aigateway.settings import load_providers
    from aigateway.simulator.serve import environment

    for name, value in environment(sim):
        monkeypatch.setenv(name, value)
    bases = {config.provider.value: config.api_base for config in load_providers()}
    assert bases == {vendor.wire: vendor.config().api_base for vendor in sim.vendors}


async def test_a_taken_port_is_said_plainly():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"ports {port} to {port + 4}"):
            await serve_forever(port, print_line=lambda _: None)


@pytest.mark.parametrize("port", [-1, 65532, 70000])
async def test_an_impossible_port(port):
    with pytest.raises(ConfigurationError, match="port must be"):
        await serve_forever(port, print_line=lambda _: None)


async def test_a_wrong_timeline_is_said_before_anything_listens():
    with pytest.raises(ConfigurationError, match="timeline"):
        await serve_forever(0, print_line=lambda _: None, timeline="openai:1s=x")


def five_free_ports() -> int:
    for port in range(32_000, 32_700, 7):  # apart from those of `free_port`
        try:
            for offset in range(5):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise AssertionError("no five free ports in a row")
