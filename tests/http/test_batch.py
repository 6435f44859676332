"""Batches over real HTTP: mixed requests, vendors that fail on the way, connections left behind."""

import asyncio
import contextlib

from aigateway import BatchProgress, ContentPolicyError, RequestRejectedError
from aigateway.simulator import Fault
from tests import gateways
from tests.gateways import until


def gateway_for(*vendors, **settings):
    return gateways.gateway_for(*vendors, **{"cache_enabled": False} | settings)


def echo(received):
    return f"answer to {received.body['messages'][-1]['content']}"


async def test_a_mixed_batch_over_vendors_that_fail_on_the_way(simulator):
    first, second = simulator.openai, simulator.anthropic
    first.behave(None, Fault.server_error(), Fault.html(), Fault.reset(), Fault.rate_limited(0.01))
    requests: list[object] = [f"p{n}" for n in range(60)]
    requests[7] = ""
    requests[23] = {"prompt": "wrong", "temperature": "hot"}
    seen: list[BatchProgress] = []
    async with gateway_for(first, second, failure_threshold=1000) as gateway:
        result = await gateway.batch(
            (request for request in requests), concurrency=8, on_progress=seen.append
        )
        assert {item.index for item in result.failed} == {7, 23}
        assert all(isinstance(error, RequestRejectedError) for error in result.errors)
        assert {reply.provider for reply in result.responses} == {
            provider.name for provider in gateway.providers
        }
        assert any(len(item.attempts) > 1 for item in result)
        assert [(p.done, p.total) for p in seen] == [(n, None) for n in range(1, 61)]
        assert gateway.get_metrics()["total_requests"] == 58
    assert result.usage.total_tokens == sum(r.usage.total_tokens for r in result.responses)


async def test_each_answer_belongs_to_its_request(simulator):
    vendor = simulator.openai
    vendor.answer(echo)
    async with gateway_for(vendor) as gateway:
        result = await gateway.batch([f"p{n}" for n in range(40)], concurrency=10)
    assert [r.text for r in result.responses] == [f"answer to p{n}" for n in range(40)]


async def test_one_that_the_vendor_refuses_harms_no_other(simulator):
    vendor = simulator.openai
    vendor.behave(None, None, Fault.content_policy(), None)
    async with gateway_for(vendor) as gateway:
        items = gateway.as_completed([f"p{n}" for n in range(4)], concurrency=1)
        ends = [type(item.error) async for item in items]
    assert ends == [type(None), type(None), ContentPolicyError, type(None)]


async def test_an_outage_of_all_vendors_loses_nothing(simulator):
    first, second = simulator.openai, simulator.anthropic
    first.timeline([(0, Fault.server_error()), (0.6, None)])
    second.timeline([(0, Fault.rate_limited(1)), (0.6, None)])
    async with gateway_for(
        first, second, failure_threshold=1, reset_timeout_seconds=0.2
    ) as gateway:
        await gateway.warmup()
        result = await gateway.batch([f"p{n}" for n in range(60)], concurrency=8)
        assert gateway.get_metrics()["in_flight"] == 0
    result.raise_for_errors()
    assert len(result.responses) == 60


async def test_leaving_early_closes_the_connections_that_are_out(simulator):
    vendor = simulator.openai
    vendor.behave(None, Fault.hang())
    before = asyncio.all_tasks()
    async with gateway_for(vendor) as gateway:
        items = gateway.as_completed((f"p{n}" for n in range(1000)), concurrency=6)
        async with contextlib.aclosing(items):
            async for item in items:
                assert item.ok
                break
        assert gateway.get_metrics()["in_flight"] == 0
    await until(lambda: vendor.open_connections == 0)
    assert asyncio.all_tasks() == before


async def test_a_timeout_returns_finished_items(simulator, clock):
    vendor = simulator.openai
    vendor.behave(*[None] * 5, Fault.hang())
    async with gateway_for(vendor, clock=clock) as gateway:
        batch = asyncio.create_task(
            gateway.batch([f"p{n}" for n in range(8)], concurrency=1, timeout=0.5)
        )
        await until(lambda: len(vendor.received) == 6)
        await clock.advance(0.5)
        assert [item.ok for item in await batch] == [True] * 5 + [False] * 3


async def test_a_chat_passes_a_waiting_batch(simulator):
    vendor = simulator.openai
    vendor.behave(Fault.hang(), times=1)
    async with gateway_for(vendor, fields={"max_concurrency": 1}) as gateway:
        holding = asyncio.create_task(gateway.chat("first"))
        await until(lambda: vendor.received)
        batch = asyncio.create_task(gateway.batch([f"p{n}" for n in range(12)], concurrency=12))
        await until(lambda: gateway.get_metrics()["waiting"] == 12)
        passing = asyncio.create_task(gateway.chat("now"))
        await until(lambda: gateway.get_metrics()["waiting"] == 13)
        holding.cancel()
        await passing
        assert len((await batch).responses) == 12
    asked = [received.body["messages"][-1]["content"] for received in vendor.received]
    assert asked.index("now") == 1


async def test_a_crowd_of_bound_calls_opens_no_more_connections_than_places(simulator):
    vendor = simulator.openai
    vendor.answer(echo)
    async with gateway_for(vendor, max_concurrency=10, max_queue=1) as gateway:
        ask = gateway.bind(temperature=0)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(f"p{n}")) for n in range(200)]
        assert vendor.open_connections <= 10
    assert [task.result().text for task in tasks] == [f"answer to p{n}" for n in range(200)]
