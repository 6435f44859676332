"""One gateway on one event loop after another: nothing of a loop outlives it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading

import pytest

from aigateway import AsyncGateway, GatewayError
from aigateway.simulator import Fault, Simulator
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.descriptors import sockets_to
from tests.processes import PATIENCE

pytestmark = pytest.mark.slow

WIRES = ("openai", "azure", "gemini", "anthropic")
LANES = ("direct", "through litellm", "litellm's own pools")


@pytest.fixture(scope="module")
def simulated():
    with Simulator.in_thread() as running:
        yield running


@pytest.fixture(params=WIRES)
def vendor(request, simulated):
    vendor = simulated.vendor(request.param)
    vendor.recover()
    return vendor


def gateway_over(vendor, lane, *, model=None, **settings):
    """A gateway as a module has it: made outside any loop, and never closed."""
    config = vendor.config(**({"model": model} if model else {}))
    if lane == "litellm's own pools":
        config = vendor.config(provider="litellm", model=f"{vendor.wire}/{config.model}")
    client = LiteLLMClient if lane == "through litellm" else None
    # The first request waits until litellm is loaded, which takes a loaded machine a minute.
    settings = {"retry_rounds": 0, "failure_threshold": 1000, "timeout": PATIENCE} | settings
    return AsyncGateway([config], vendor=client, cache_enabled=False, **settings)


@pytest.fixture
def opened(simulated):
    """How many sockets the test has opened and not closed."""
    ports = [int(vendor.url.rpartition(":")[2]) for vendor in simulated.vendors]
    gc.collect()
    before = sockets_to(*ports)
    return lambda: sockets_to(*ports) - before


def closed_by_hand(work):
    """Run on a loop that is closed without the ceremony of `asyncio.run`."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


async def whole_stream(gateway):
    async for _ in gateway.stream("one two three"):
        pass


async def half_a_stream(gateway):
    stream = gateway.stream("one two three")
    await anext(stream)
    return stream


async def fail(gateway):
    with pytest.raises(GatewayError):
        await gateway.chat("hi")


async def begin(gateway, vendor):
    """Begin a call that gets no answer."""
    arrived = vendor.request_count
    call = asyncio.create_task(gateway.chat("hi"))
    while vendor.request_count == arrived:  # noqa: ASYNC110 - the vendor is in another thread
        await asyncio.sleep(0.001)
    return call


async def cancel(gateway, vendor):
    call = await begin(gateway, vendor)
    call.cancel()
    await asyncio.wait([call])


def leaks(recwarn):
    return [str(warning.message) for warning in recwarn if warning.category is ResourceWarning]


@pytest.mark.parametrize("lane", LANES)
def test_whatever_was_asked_a_loop_that_ends_leaves_no_socket(
    vendor, lane, opened, recwarn, caplog
):
    gateway = gateway_over(vendor, lane)
    embedding = gateway_over(vendor, lane, model=vendor.embedding_model)
    held, left = [], []

    def run(work):
        held.append(asyncio.run(work))
        left.append(opened())

    for _ in range(3):
        run(gateway.chat("hi"))
        run(whole_stream(gateway))
        if vendor.wire != "anthropic":
            run(embedding.embed("hi"))
        vendor.behave(Fault.stall_stream(1))
        run(half_a_stream(gateway))
        vendor.behave(Fault.status(500))
        run(fail(gateway))
        vendor.behave(Fault.hang())
        run(cancel(gateway, vendor))
        run(begin(gateway, vendor))
        vendor.recover()
    assert left == [0] * len(left)
    held.clear()
    del gateway
    gc.collect()
    assert leaks(recwarn) == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# From Python 3.13 on the caller is warned who closes a loop before a generator that was left.
@pytest.mark.filterwarnings("ignore:coroutine method 'aclose' of:RuntimeWarning")
@pytest.mark.parametrize("lane", LANES[:2])
def test_what_a_loop_closed_by_hand_left_is_closed_on_the_next(vendor, lane, opened):
    gateway = gateway_over(vendor, lane)
    held = []
    for _ in range(3):
        closed_by_hand(gateway.chat("hi"))
        closed_by_hand(whole_stream(gateway))
        vendor.behave(Fault.stall_stream(1))
        closed_by_hand(half_a_stream(gateway))
        if lane == "direct":  # litellm's own coroutines complain when they are destroyed
            vendor.behave(Fault.hang())
            loop = asyncio.new_event_loop()
            held.append(loop.run_until_complete(begin(gateway, vendor)))
            loop.close()
        vendor.recover()
        assert opened() <= 1
    asyncio.run(gateway.chat("hi"))
    assert opened() == 0
    assert gateway.get_metrics()["providers"][gateway.providers[0].name]["failures"] == {}
    for call in held:
        call._log_destroy_pending = False  # asyncio's word to the caller who closed the loop


def test_what_a_loop_closed_by_hand_left_in_litellms_own_pools(vendor, opened):
    gateway = gateway_over(vendor, "litellm's own pools")
    for _ in range(3):
        closed_by_hand(gateway.chat("hi"))
        closed_by_hand(whole_stream(gateway))
        assert opened() <= 1
    asyncio.run(gateway.chat("hi"))
    assert opened() == 0


@pytest.mark.parametrize("lane", LANES[:2])
def test_a_forgotten_gateway_closes_its_sockets_when_it_is_collected(
    simulated, lane, opened, recwarn
):
    async def ask_and_forget():
        await gateway_over(simulated.openai, lane).chat("hi")

    async def beside():
        await ask_and_forget()
        gc.collect()
        while len(asyncio.all_tasks()) > 1 or opened():  # noqa: ASYNC110 - it closes them in a task
            await asyncio.sleep(0.001)

    simulated.openai.recover()
    asyncio.run(beside())
    closed_by_hand(ask_and_forget())
    gc.collect()
    assert opened() == 0
    assert leaks(recwarn) == []


def test_threads_one_after_another(simulated, opened, recwarn):
    simulated.openai.recover()
    gateway = gateway_over(simulated.openai, "direct")
    for _ in range(5):
        thread = threading.Thread(target=lambda: asyncio.run(gateway.chat("hi")))
        thread.start()
        thread.join()
        assert opened() == 0
    assert leaks(recwarn) == []


IN_ITS_ONLY_THREAD = """
import asyncio
import aigateway

held = []

async def half_a_stream(gateway):
    stream = gateway.stream("one two three")
    await anext(stream)
    return stream

print(aigateway.call_llm("You count.", "hi"))

gateway = aigateway.AsyncGateway()
asyncio.run(gateway.chat("hi"))
held.append(asyncio.run(half_a_stream(gateway)))

# The last: the next connection of any gateway would close what this loop has left.
loop = asyncio.new_event_loop()
loop.run_until_complete(gateway.chat("hi"))
loop.close()
"""
IN_ANOTHER_THREAD = """
import asyncio, threading
import aigateway

gateway = aigateway.AsyncGateway()

async def main():
    await gateway.chat("hi")
    started.set()
    await asyncio.sleep(1000)

started = threading.Event()
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
started.wait()
"""


@pytest.mark.proof  # each loads litellm; `tests/test_sync.py` has a script for each day
@pytest.mark.parametrize(("script", "calls"), [(IN_ITS_ONLY_THREAD, 4), (IN_ANOTHER_THREAD, 1)])
def test_a_script_that_closes_nothing_ends_without_a_word(simulated, script, calls):
    simulated.openai.recover()
    before = simulated.openai.request_count
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script],
        env={
            **os.environ,
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": simulated.openai.api_base,
            "AIGATEWAY_CACHE_ENABLED": "false",
            "AIGATEWAY_TIMEOUT": str(PATIENCE),
            "AIGATEWAY_ATTEMPT_TIMEOUT": str(PATIENCE),
            "AIGATEWAY_FIRST_TOKEN_TIMEOUT": str(PATIENCE),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert simulated.openai.request_count - before == calls
