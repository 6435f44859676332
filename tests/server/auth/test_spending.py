"""What a key's budget counts, over real HTTP, against the count of the vendor itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from aigateway import AsyncGateway, LLMConfig, Origin
from aigateway.fleet.store import Store, UsageRecorder
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer
from tests.server.running import running

PER_PROMPT_TOKEN, PER_ANSWER_TOKEN = 10e-6, 100e-6
CHAT = "/v1/chat/completions"
SENTENCE = "The gateway asks one provider after another until one of them has answered."
TEXT = [f"{word} " for word in SENTENCE.split() * 20]
PROMPT = "Explain in some detail how a gateway works, and why it is needed at all. " * 10

USER = [{"role": "user", "content": PROMPT}]


class Vendor:
    """Speaks OpenAI's wire, and counts what it is to be paid for.

    Args:
        bytes_per_token: How it counts tokens.
    """

    def __init__(self, bytes_per_token):
        self._bytes_per_token = bytes_per_token
        self.dollars = 0.0
        self.calls = 0
        self.counts = True  # says so in its answers
        self.stalls = False  # never answers
        self.stalls_once = False  # never answers the first call
        self.breaks = False  # resets a stream before its end
        self.leaves_open = False  # does not end streams by itself
        self.working = asyncio.Event()

    def _count(self, prompt, answer):
        asked, said = (round(len(text) / self._bytes_per_token) for text in (prompt, answer))
        self.dollars += asked * PER_PROMPT_TOKEN + said * PER_ANSWER_TOKEN
        if not self.counts:
            return {}
        usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
        return {"usage": usage}

    async def handle(self, request):
        body = await request.json()
        self.calls += 1
        self.working.set()
        if "input" in body:
            usage = self._count("".join(body["input"]), "")
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return web.json_response({"object": "list", "data": data, "model": "m", **usage})
        prompt = body["messages"][-1]["content"]
        if self.stalls or (self.stalls_once and self.calls == 1):
            self._count(prompt, "")
            await asyncio.Event().wait()
        if body.get("stream"):
            return await self._stream(request, prompt)
        message = {"role": "assistant", "content": "".join(TEXT)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = self._count(prompt, "".join(TEXT))
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return web.json_response({**head, "choices": [choice], **usage})

    async def _stream(self, request, prompt):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        usage = self._count(prompt, "".join(TEXT))
        for word in TEXT:
            await response.write(_event({"index": 0, "delta": {"content": word}}))
        if self.breaks:
            request.transport.abort()
            return response
        if self.leaves_open:
            await asyncio.Event().wait()
        await response.write(_event({"index": 0, "delta": {}, "finish_reason": "stop"}))
        if usage:
            await response.write(_event(None, usage))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(choice, more=None):
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    body = {**head, "choices": [] if choice is None else [choice], **(more or {})}
    return f"data: {json.dumps(body)}\n\n".encode()


class Scene:
    def __init__(self, vendor, service, url, session):
        self.vendor = vendor
        self.service = service
        self._url = url
        self._session = session

    def post(self, path=CHAT, **body):
        asked = {"input": PROMPT} if "embed" in path else {"messages": USER}
        body = {"model": "m"} | asked | body
        headers = bearer("red") | {"x-aigateway-cache": "false"}
        return self._session.post(self._url + path, json=body, headers=headers)

    async def ask(self, **body):
        async with self.post(**body) as answer:
            await answer.read()
            return answer.status

    async def leave_at_the_end(self):
        """Read the whole text of a stream, and go away before the vendor has said its count."""
        async with self.post(stream=True) as answer:
            text = ""
            async for line in answer.content:
                if line.startswith(b"data: "):
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content") or ""
                if text == "".join(TEXT):
                    return

    async def is_quiet(self):
        async with asyncio.timeout(PATIENCE):
            while self.service.access.usage()[0].in_flight:  # noqa: ASYNC110 - none is told
                await asyncio.sleep(0.005)

    @property
    def spent(self):
        """As the key's account says it, the gateway's metrics, and the usage: they agree."""
        (usage,) = self.service.access.usage()
        providers = self.service.gateway.get_metrics()["providers"].values()
        assert sum(p["cost_usd"] for p in providers) == pytest.approx(usage.spent_usd, abs=1e-9)
        (recorder,) = self.service.gateway.hooks
        recorded = [
            (key, model, counts.cost_usd) for (_, key, model), counts in recorder.counted().items()
        ]
        assert {(key, model) for key, model, _ in recorded} <= {("red", "m")}
        assert sum(cost for *_, cost in recorded) == pytest.approx(usage.spent_usd, abs=1e-9)
        return usage.spent_usd


@contextlib.asynccontextmanager
async def scene(budget=1000.0, bytes_per_token=4.0, providers=1, **settings):
    vendor = Vendor(bytes_per_token)
    async with RawTestServer(vendor.handle) as server:
        price = {
            "input_cost_per_token": PER_PROMPT_TOKEN,
            "output_cost_per_token": PER_ANSWER_TOKEN,
        }
        configs = [
            LLMConfig(
                provider="openai_compatible",
                model="m",
                name=f"p{number}",
                api_key="sk-vendor",
                api_base=f"http://127.0.0.1:{server.port}/v1",
                extra=price,
            )
            for number in range(providers)
        ]
        settings = {"retry_rounds": 0, "hedge": False} | settings
        hooks = [UsageRecorder(Store(Path("nowhere")))]
        async with AsyncGateway(configs, hooks=hooks, **settings) as gateway:
            await gateway.warmup()
            service = Service(gateway, ServerSettings(keys=(api_key("red", budget_usd=budget),)))
            async with running(service) as url, aiohttp.ClientSession() as session:
                yield Scene(vendor, service, url, session)


@pytest.mark.parametrize("bytes_per_token", [2.5, 4.0, 5.5])
async def test_many_streams_left_just_before_the_end_count_as_the_vendor_counts(
    bytes_per_token,
):
    async with scene(bytes_per_token=bytes_per_token) as here:
        assert await here.ask() == 200
        assert here.spent == pytest.approx(here.vendor.dollars)
        here.vendor.leaves_open = True
        for _ in range(4):
            await asyncio.gather(*(here.leave_at_the_end() for _ in range(10)))
        await here.is_quiet()
        assert here.vendor.calls == 41
        assert here.vendor.dollars > 0.8
        assert here.spent == pytest.approx(here.vendor.dollars, rel=0.1)


async def test_before_any_answer_was_counted_the_estimate_is_near_all_the_same():
    async with scene(bytes_per_token=4.6) as here:
        here.vendor.leaves_open = True
        await here.leave_at_the_end()
        await here.is_quiet()
        assert here.spent == pytest.approx(here.vendor.dollars, rel=0.25)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_is_not_gone_after_one_disconnect(stream):
    """The prompt is paid for, and what the vendor can have written meanwhile."""
    async with scene(budget=0.0075) as here:
        here.vendor.stalls = True
        asking = asyncio.create_task(here.ask(stream=stream, max_tokens=10))
        async with asyncio.timeout(PATIENCE):
            await here.vendor.working.wait()
        asking.cancel()
        await here.is_quiet()
        prompt = here.vendor.dollars
        assert 0.99 * prompt <= here.spent <= 1.01 * prompt + 10 * PER_ANSWER_TOKEN
        here.vendor.stalls = False
        assert await here.ask(stream=stream) == 200


async def test_a_chat_that_is_left_counts_no_more_than_it_may_have():
    async with scene() as here:
        here.vendor.stalls = True
        asking = asyncio.create_task(here.ask(max_tokens=2))
        async with asyncio.timeout(PATIENCE):
            await here.vendor.working.wait()
        await asyncio.sleep(0.1)
        asking.cancel()
        await here.is_quiet()
        most = here.vendor.dollars + 2 * PER_ANSWER_TOKEN
        assert here.spent == pytest.approx(most, rel=0.02)


async def test_who_leaves_each_chat_uses_a_budget_up():
    async with scene(budget=0.02) as here:
        here.vendor.stalls = True
        for _ in range(30):
            here.vendor.working.clear()
            asking = asyncio.create_task(here.ask(max_tokens=1))
            async with asyncio.timeout(PATIENCE):
                working = asyncio.create_task(here.vendor.working.wait())
                await asyncio.wait([asking, working], return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            if asking.done():
                break
            asking.cancel()
            await here.is_quiet()
        assert await asking == 429
        assert here.spent == pytest.approx(0.02, rel=0.2)


async def test_a_call_that_times_out_counts_its_prompt():
    async with scene(attempt_timeout=0.2) as here:
        here.vendor.stalls = True
        assert await here.ask() == 503
        assert here.spent == pytest.approx(here.vendor.dollars, rel=0.02)


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_that_the_vendor_did_not_count_are_counted(stream):
    async with scene() as here:
        here.vendor.counts = False
        assert await here.ask(stream=stream) == 200
        await here.is_quiet()
        assert here.spent == pytest.approx(here.vendor.dollars, rel=0.02)


@pytest.mark.parametrize("counts", [True, False])
async def test_embeddings_count(counts):
    async with scene() as here:
        here.vendor.counts = counts
        assert await here.ask(path="/v1/embeddings") == 200
        assert here.vendor.dollars > 0
        assert here.spent == pytest.approx(here.vendor.dollars, rel=0.02)


async def test_a_stream_that_broke_counts_with_what_came():
    async with scene() as here:
        here.vendor.breaks = True
        assert await here.ask(stream=True) == 200
        await here.is_quiet()
        assert here.spent == pytest.approx(here.vendor.dollars, rel=0.02)


async def test_both_parts_of_a_resumed_stream_count():
    costs = []
    async with scene(providers=2) as here:
        here.vendor.breaks = True

        def mend(cost):
            costs.append(cost)
            here.vendor.breaks = False

        gateway = here.service.gateway
        async with gateway.stream(PROMPT, resume="restart", origin=Origin(on_cost=mend)) as stream:
            async for _ in stream:
                pass
        assert len(costs) == here.vendor.calls == 2
        assert sum(costs) == pytest.approx(here.vendor.dollars, rel=0.02)
        spent = gateway.get_metrics()["providers"].values()
        assert sum(provider["cost_usd"] for provider in spent) == pytest.approx(sum(costs))


async def test_a_hedge_that_lost_counts():
    async with scene(providers=2, hedge=True, hedge_delay_seconds=0.05) as here:
        here.vendor.stalls_once = True
        assert await here.ask(max_tokens=1) == 200
        await here.is_quiet()
        assert here.vendor.calls == 2
        assert here.spent == pytest.approx(here.vendor.dollars + PER_ANSWER_TOKEN, rel=0.02)
