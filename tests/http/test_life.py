"""Connections, loops and secrets, over real HTTP."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import textwrap
import traceback

import pytest

from aigateway import AllProvidersFailedError, AsyncGateway, LLMConfig
from aigateway.simulator import Fault, Simulator
from aigateway.wires.loading import load_litellm
from tests.processes import PATIENCE

SECRET = "sk-live-do-not-show-me-0123456789"


def all_four(simulator, **fields):
    return [
        vendor.config(priority=9 - place, **fields)
        for place, vendor in enumerate(simulator.vendors)
    ]


def test_fifty_gateways_over_two_loops_leave_nothing_behind(recwarn):
    async def half(simulated):
        before = asyncio.all_tasks()
        for round_number in range(25):
            async with AsyncGateway(all_four(simulated), cache_enabled=False) as gateway:
                for provider in gateway.providers:
                    await gateway.chat(f"hi {round_number}", model=provider.name)
        async with asyncio.timeout(PATIENCE):
            while any(vendor.open_connections for vendor in simulated.vendors):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == before

    with Simulator.in_thread() as simulated:
        for _ in range(2):
            asyncio.run(half(simulated), debug=True)
        gc.collect()
    assert [str(w.message) for w in recwarn] == []


async def test_one_call_is_one_request_on_each_wire(simulator):
    async with AsyncGateway(all_four(simulator)) as gateway:
        for provider in gateway.providers:
            assert (await gateway.chat("What is 2+2?", model=provider.name)).text == "4"
    assert [len(vendor.received) for vendor in simulator.vendors] == [1, 1, 1, 1]


async def test_coalescing_counts_one_request_at_the_server(simulator):
    simulator.openai.latency = 0.05
    async with AsyncGateway([simulator.openai.config()]) as gateway:
        replies = await asyncio.gather(*(gateway.chat("hi") for _ in range(100)))
    assert len(simulator.openai.received) == 1
    assert len({r.text for r in replies}) == 1


async def test_max_concurrency_holds_at_the_server(simulator):
    simulator.openai.latency = 0.01
    busiest = 0
    async with AsyncGateway([simulator.openai.config(max_concurrency=3)]) as gateway:

        async def watch():
            nonlocal busiest
            while True:
                busiest = max(busiest, simulator.openai.open_connections)
                await asyncio.sleep(0.001)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(gateway.chat(f"{i}") for i in range(30)))
        watcher.cancel()
    assert busiest == 3


async def test_the_circuit_closes_again_when_the_vendor_heals(simulator, clock):
    configs = [simulator.openai.config(priority=2), simulator.anthropic.config(priority=1)]
    async with AsyncGateway(
        configs, clock=clock, failure_threshold=2, cache_enabled=False
    ) as gateway:
        simulator.openai.behave(Fault.server_error())
        for _ in range(4):
            assert (await gateway.chat("hi")).provider.startswith("anthropic")
        simulator.openai.recover()
        await clock.advance(60)
        assert (await gateway.chat("hi")).provider.startswith("openai")


@pytest.mark.parametrize("fault", [None, Fault.bad_key(), Fault.server_error(), Fault.reset()])
async def test_no_key_and_no_prompt_anywhere(simulator, caplog, capfd, fault):
    caplog.set_level(logging.DEBUG)
    prompt = "the-secret-prompt"
    told = []
    for vendor in simulator.vendors:
        simulator.openai.recover()
        if fault:
            vendor.behave(fault)
        config = vendor.config() if fault else vendor.config(headers={"x-trace": SECRET})
        async with AsyncGateway([config], retry_rounds=0) as gateway:
            try:
                await gateway.chat(prompt)
            except AllProvidersFailedError as error:
                told += traceback.format_exception(error)
            told += [repr(gateway.get_metrics()), repr(gateway.providers), repr(config)]
        sent = vendor.received[-1]
        assert "key" not in sent.query
    told += capfd.readouterr()
    told += [r.getMessage() for r in caplog.records if r.name.startswith("aigateway")]
    everything = "\n".join(told)
    keys = [vendor.key for vendor in simulator.vendors]
    for secret in (SECRET, prompt, *keys):
        assert secret not in everything


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # a bare user's own choice
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_importing_the_package_loads_no_litellm_and_prints_nothing():
    done = run_python("""
        import sys
        import aigateway
        light = set(sys.modules)
        assert not any(name.split('.')[0] in {'pydantic', 'aiohttp', 'litellm'} for name in light)
        for name in aigateway.__all__:
            getattr(aigateway, name)
        aigateway.AsyncGateway([aigateway.LLMConfig('openai', 'm', api_key='k')])
        assert 'litellm' not in sys.modules
        assert 'aiohttp' not in sys.modules
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_a_provider_can_be_reached_through_litellm_by_its_own_model_string(simulator):
    config = LLMConfig(
        "litellm",
        "openai/gpt-4o-mini",
        api_key=simulator.openai.key,
        api_base=f"{simulator.openai.url}/v1",
    )
    async with AsyncGateway([config]) as gateway:
        reply = await gateway.chat("What is 2+2?")
    # Such a call goes through litellm's own pool, which stays open when ours are closed.
    litellm = await load_litellm()
    await litellm.close_litellm_async_clients()
    litellm.in_memory_llm_clients_cache.flush_cache()
    assert reply.text == "4"
