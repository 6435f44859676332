"""The face that tests talk to: rules, timelines, refusing, what arrived, configuration."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from pydantic import SecretStr

from aigateway.settings import ProviderType
from aigateway.simulator import Fault, Simulator
from aigateway.simulator.script import Script
from aigateway.testing import FakeClock
from tests.processes import PATIENCE


async def statuses(vendor, ask, count: int) -> list[int]:
    return [(await ask.chat(vendor)).status for _ in range(count)]


async def test_a_fault_lasts_until_recover(vendor, ask):
    vendor.behave(Fault.status(500))
    assert await statuses(vendor, ask, 3) == [500] * 3
    vendor.recover()
    assert await statuses(vendor, ask, 1) == [200]


async def test_a_fault_may_be_for_the_next_requests_only(vendor, ask):
    vendor.behave(Fault.status(500), times=2)
    assert await statuses(vendor, ask, 4) == [500, 500, 200, 200]
    assert vendor.fault is None


async def test_several_faults_take_turns(sim: Simulator, ask):
    sim.openai.behave(Fault.status(500), None, Fault.status(429))
    assert await statuses(sim.openai, ask, 5) == [500, 200, 429, 500, 200]
    sim.openai.behave(Fault.status(500), Fault.status(429), times=3)
    assert await statuses(sim.openai, ask, 4) == [500, 429, 500, 200]


async def test_a_fault_affects_one_vendor(sim: Simulator, ask):
    sim.openai.behave(Fault.status(500))
    backup = await sim.add("openai", name="backup")
    assert await statuses(backup, ask, 1) == await statuses(sim.azure, ask, 1) == [200]


async def test_a_timeline(sim: Simulator, ask):
    sim.openai.timeline([(0.0, Fault.status(500)), (PATIENCE, None)])
    assert await statuses(sim.openai, ask, 1) == [500]
    sim.openai.timeline([(0.0, Fault.status(500)), (0.05, None), (PATIENCE, Fault.hang())])
    await asyncio.sleep(0.06)
    assert await statuses(sim.openai, ask, 1) == [200]


def test_a_timeline_is_in_order_whatever_order_it_was_given_in():
    clock = FakeClock()
    script = Script(clock)
    begin = clock.now()
    script.timeline([(5.0, Fault.hang()), (2.0, Fault.status(500)), (7.0, None)])
    seen = []
    for passed in (0.0, 1.9, 2.1, 4.9, 5.1, 6.9, 7.1, 1000.0):
        clock.tick(begin + passed - clock.now())
        fault = script.take()
        seen.append(fault.name if fault else None)
    assert seen == [None, None, "status", "status", "hang", "hang", None, None]


def test_a_timeline_replaces_a_rule_and_a_rule_a_timeline():
    script = Script(FakeClock())
    script.behave([Fault.hang()], None)
    script.timeline([(0.0, Fault.status(500))])
    assert script.current() == Fault.status(500)
    script.behave([Fault.hang()], 1)
    assert script.take() == Fault.hang()
    assert script.take() is None


@pytest.mark.parametrize(
    ("faults", "times"),
    [([], None), ([Fault.hang()], 0), ([Fault.refuse()], 1), ([Fault.refuse(), None], None)],
)
def test_rules_that_cannot_be(faults, times):
    with pytest.raises(ValueError, match=r"behave|times"):
        Script(FakeClock()).behave(faults, times)


async def test_a_timeline_cannot_begin_in_the_past(sim: Simulator):
    with pytest.raises(ValueError, match="negative"):
        sim.openai.timeline([(-1.0, None)])


async def test_refuse_closes_the_port_and_recover_opens_it_again(vendor, ask):
    vendor.headers["connection"] = "close"  # each request makes a connection of its own
    assert await statuses(vendor, ask, 1) == [200]
    url = vendor.url
    for _ in range(3):
        vendor.behave(Fault.refuse())
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectorError):
                await ask.chat(vendor)
        vendor.recover()
        assert vendor.url == url
        assert await statuses(vendor, ask, 2) == [200, 200]
    assert len(vendor.received) == 7


async def test_refuse_drops_open_connections(vendor, ask, until):
    vendor.behave(Fault.hang())
    waiting = asyncio.create_task(ask.chat(vendor))
    await until(lambda: vendor.received)
    assert vendor.open_connections == 1
    vendor.behave(Fault.refuse())
    with pytest.raises(aiohttp.ClientConnectionError):
        await waiting
    await until(lambda: vendor.open_connections == 0)


async def test_changing_its_mind_at_once(sim: Simulator, ask):
    for _ in range(5):
        sim.openai.behave(Fault.refuse())
        sim.openai.recover()
    assert await statuses(sim.openai, ask, 1) == [200]
    sim.openai.recover()
    sim.openai.behave(Fault.refuse())
    await asyncio.sleep(0.01)
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask.chat(sim.openai)


async def test_another_fault_ends_refusing(sim: Simulator, ask):
    sim.openai.behave(Fault.refuse())
    sim.openai.behave(Fault.status(500))
    assert await statuses(sim.openai, ask, 1) == [500]


async def test_refuse_in_a_timeline(sim: Simulator, ask):
    sim.openai.timeline([(0.0, Fault.refuse()), (PATIENCE, None)])
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask.chat(sim.openai)
    sim.openai.timeline([(0.0, Fault.refuse()), (0.05, None)])
    await asyncio.sleep(0.07)
    assert await statuses(sim.openai, ask, 1) == [200]


async def test_recover_ends_a_timeline(sim: Simulator, ask):
    sim.openai.timeline([(0.02, Fault.refuse())])
    sim.openai.recover()
    await asyncio.sleep(0.04)
    assert await statuses(sim.openai, ask, 1) == [200]


async def test_everything_that_arrives_is_kept(sim: Simulator, ask):
    sim.openai.behave(Fault.status(500))
    await ask.post(sim.openai, "/v1/x%20y?a=1&b=", {"k": [1]}, headers={"X-Thing": "yes"})
    sim.openai.recover()
    await ask.post(sim.openai, "/v1/chat/completions", b"{broken")
    first, second = sim.openai.received
    assert (first.method, first.path, first.query) == ("POST", "/v1/x y", {"a": "1", "b": ""})
    assert first.headers["x-thing"] == first.headers["X-THING"] == "yes"
    assert first.body == {"k": [1]}
    assert second.body is None
    assert 0 <= second.at - first.at < 5
    assert sim.openai.request_count == 2
    sim.openai.clear()
    assert sim.openai.received == ()
    assert sim.openai.request_count == 2


async def test_only_so_many_are_kept(ask):
    async with Simulator(received_limit=2) as sim:
        await statuses(sim.openai, ask, 3)
        assert len(sim.openai.received) == 2
        assert sim.openai.request_count == 3


async def test_latency_is_for_healthy_answers(vendor, ask):
    vendor.latency = 0.15
    begin = time.perf_counter()
    await ask.chat(vendor)
    assert time.perf_counter() - begin > 0.145
    vendor.latency = 10 * PATIENCE
    vendor.behave(Fault.status(500))
    await ask.chat(vendor)


async def test_chunks_can_be_slow(sim: Simulator, ask):
    sim.openai.chunk_delay = 0.02
    begin = time.perf_counter()
    await ask.chat(sim.openai, "a b c", stream=True)
    assert time.perf_counter() - begin >= 0.055


async def test_open_connections(vendor, ask, until):
    assert vendor.open_connections == 0
    vendor.behave(Fault.hang(), times=2)
    waiting = [asyncio.create_task(ask.chat(vendor)) for _ in range(2)]
    await until(lambda: len(vendor.received) == 2)
    await ask.chat(vendor)
    assert vendor.open_connections == 3
    for one in waiting:
        one.cancel()
    await ask.session.close()
    await until(lambda: vendor.open_connections == 0)


async def test_a_client_that_leaves_ends_its_hanging_request(vendor, ask, until):
    vendor.behave(Fault.hang())
    waiting = asyncio.create_task(ask.chat(vendor))
    await until(lambda: vendor.received)
    waiting.cancel()
    await until(lambda: vendor.open_connections == 0)


async def test_config(sim: Simulator):
    local = await sim.add("openai_compatible", name="local")
    configs = [vendor.config(priority=2) for vendor in sim.vendors]
    assert [c.provider for c in configs] == [
        *list(ProviderType)[:4],
        ProviderType.OPENAI_COMPATIBLE,
    ]
    assert configs[0].name == f"openai/{sim.openai.model}"
    assert configs[-1].name == "local"
    assert {c.priority for c in configs} == {2}
    assert configs[0].api_base == f"{sim.openai.url}/v1"
    assert configs[1].api_base == sim.azure.url
    assert configs[1].api_version
    assert configs[2].api_base == f"{sim.gemini.url}/v1beta"
    assert configs[3].api_base == sim.anthropic.url
    assert configs[4].api_base == f"{local.url}/v1"


async def test_config_takes_any_field(sim: Simulator):
    config = sim.azure.config(model="other", name="x", timeout=3, api_key="k")
    assert (config.model, config.name, config.timeout) == ("other", "x", 3)
    assert config.api_key == SecretStr("k")
