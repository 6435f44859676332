"""Clients, loops and threads come and go, and nothing is left behind."""

import asyncio
import contextlib
import gc
import threading

import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import Completion
from aigateway.simulator import Fault, Simulator
from aigateway.wires.client import VendorCallError
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.wires.calls import asking


async def open_and_close(clients):
    """Answers, failures, cancellations: everything that may leave something behind."""
    async with Simulator() as simulator:
        for index in range(clients):
            vendor = simulator.vendors[index % 4]
            vendor.recover()
            client = LiteLLMClient(vendor.config(), SYSTEM_CLOCK)
            assert (await client.chat(asking())).choices[0].text == "4"
            for fault in (Fault.status(500), Fault.reset()):
                vendor.behave(fault)
                with pytest.raises(VendorCallError):
                    await client.chat(asking())
            vendor.behave(Fault.hang())
            hanging = asyncio.create_task(client.chat(asking()))
            await asyncio.sleep(0.01)
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
            for fault in (Fault.slow(0), Fault.cut_stream(1)):
                vendor.behave(fault)
                await read_some(client, 99)
            vendor.behave(Fault.stall_stream(1))
            await read_some(client, 1)
            await client.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return [task for task in others if "site-packages/litellm/" in repr(task)]


async def read_some(client, reads):
    """Read so often, or to the end, and leave."""
    stream = await client.stream(asking("one two"))
    with contextlib.suppress(VendorCallError):
        for _ in range(reads):
            if await stream.read() is None:
                break
    await stream.aclose()


def run_loop(main):
    """A loop of its own, in debug mode, with its complaints collected."""
    complaints = []
    with asyncio.Runner(debug=True) as runner:
        loop = runner.get_loop()
        loop.slow_callback_duration = 60
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        result = runner.run(main)
    gc.collect()
    return result, complaints


def test_twenty_clients_on_two_loops(recwarn, caplog):
    for _ in range(2):
        left, complaints = run_loop(open_and_close(10))
        assert (left, complaints) == ([], [])
    # litellm sets a filter for that one itself, which recwarn undoes.
    said = [str(w.message) for w in recwarn]
    assert [text for text in said if "`ReadOnly` qualifier" not in text] == []
    assert caplog.records == []


def test_threads_with_a_loop_each(recwarn, caplog):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(run_loop(open_and_close(4))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [([], [])] * 3
    # litellm sets a filter for that one itself, which recwarn undoes.
    said = [str(w.message) for w in recwarn]
    assert [text for text in said if "`ReadOnly` qualifier" not in text] == []
    assert caplog.records == []


async def test_a_cancellation_at_any_moment(simulator, connect, recwarn):
    clients = [connect(vendor.config()) for vendor in simulator.vendors]
    await asyncio.gather(*(client.chat(asking()) for client in clients))
    for steps in range(30):
        tasks = [asyncio.create_task(client.chat(asking())) for client in clients]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(d, Completion | asyncio.CancelledError) for d in done)
    gc.collect()
    # litellm sets a filter for that one itself, which recwarn undoes.
    said = [str(w.message) for w in recwarn]
    assert [text for text in said if "`ReadOnly` qualifier" not in text] == []


async def test_a_cancellation_that_comes_twice(simulator, connect):
    client = connect(simulator.openai.config())
    await client.chat(asking())
    task = asyncio.create_task(client.chat(asking()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_what_the_caller_is_handling_hides_nothing(simulator, connect):
    config = simulator.openai.config(provider="litellm", model="openai/gpt-4o-mini")
    client = connect(config)
    simulator.openai.behave(Fault.reset())
    try:
        raise PermissionError  # noqa: TRY301
    except PermissionError:
        with pytest.raises(VendorCallError) as caught:
            await client.chat(asking())
    assert caught.value.failure.kind == "connection"


async def test_clients_close_only_their_own_connections(simulator, connect):
    one, other = (connect(simulator.openai.config()) for _ in range(2))
    await one.chat(asking())
    await other.chat(asking())
    await one.aclose()
    await other.chat(asking())
    assert simulator.openai.request_count == 3


@pytest.mark.parametrize("lane", [LiteLLMClient])
async def test_azures_shared_cache_does_not_get_our_clients(simulator, connect):
    client = connect(simulator.azure.config())
    await client.chat(asking())
    import litellm

    ours = client._client.handle
    assert all(kept is not ours for kept in litellm.in_memory_llm_clients_cache.cache_dict.values())


async def test_the_users_own_callbacks_see_our_calls(simulator, connect, monkeypatch):
    client = connect(simulator.openai.config())
    await client.prepare()
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    seen = []

    class Seen(CustomLogger):  # type: ignore[misc]  # litellm's classes are not typed for us
        async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
            seen.append(response_obj.model)

    monkeypatch.setattr(litellm, "callbacks", [Seen()])
    for name in ("success_callback", "failure_callback", "input_callback"):
        for prefix in ("", "_async_"):
            if hasattr(litellm, prefix + name):
                monkeypatch.setattr(litellm, prefix + name, [])
    await client.chat(asking())
    await asyncio.sleep(0.05)
    await GLOBAL_LOGGING_WORKER.stop()
    assert seen == ["gpt-4o-mini"]


async def test_calls_beside_each_other(simulator, connect):
    clients = [connect(vendor.config()) for vendor in simulator.vendors]
    simulator.openai.behave(Fault.status(500), Fault.status(429))
    answers = await asyncio.gather(
        *(client.chat(asking(f"say {n}")) for n in range(20) for client in clients),
        return_exceptions=True,
    )
    kinds = [a.failure.kind for a in answers[::4] if isinstance(a, VendorCallError)]
    assert sorted(set(kinds)) == ["rate_limited", "server_error"]
    for wire in range(1, 4):
        texts = [a.choices[0].text for a in answers[wire::4] if isinstance(a, Completion)]
        assert texts == [f"say {n}" for n in range(20)]
    assert [vendor.request_count for vendor in simulator.vendors] == [20] * 4
