"""The 16 scenarios of the public catalogue failoverbench, with one set of settings.

A primary misbehaves in one way and a fallback is well (github.com/failoverbench/failoverbench,
methodology 0.1). The catalogue asks for the whole answer (in S13 for a clean error), and for good
conduct towards the vendors, advice included. The settings are those of the failover guide. HTTP is
real, and time is virtual: it passes only while a vendor is silent or the gateway waits.
"""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

from aigateway import AsyncGateway, ContentPolicyError, LLMConfig, ProviderType
from aigateway.testing import FakeClock

SETTINGS: dict[str, Any] = {
    "chat_over_stream": True,
    "retries_per_provider": 1,
    "reset_timeout_seconds": 10,
    "max_open_seconds": 10,
    "cache_enabled": False,
}
WORDS = [f"word-{number}" for number in range(60)]
ANSWER = " ".join(WORDS)
PROMPT = "Sixty words, please."


REFUSALS = {
    "429": (429, "rate_limit_exceeded", "Rate limit reached."),
    "429 once": (429, "rate_limit_exceeded", "Rate limit reached.", {"Retry-After": "2"}),
    "500 once": (500, None, "The server had an error."),
    "503": (503, "overloaded", "The engine is overloaded."),
    "context": (400, "context_length_exceeded", "The maximum context length is 8192 tokens."),
    "content": (400, "content_policy_violation", "Rejected by our safety system."),
}


def error(status, code, message, headers=None):
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return web.json_response(body, status=status, headers=headers)


class Vendors:
    """Primary and fallback, one server; `fault` says how the primary misbehaves."""

    def __init__(self, clock, fault):
        self.clock = clock
        self.began = clock.now()
        self.fault = fault
        self.at: dict[str, list[float]] = {"primary": [], "fallback": []}  # when each was asked
        self.silent = 0
        self.prefills = 0

    async def answer(self, request):
        body = await request.json()
        model, now = body["model"], self.clock.now() - self.began
        self.at[model].append(now)
        self.prefills += body["messages"][-1]["role"] == "assistant"
        fault = self.fault if model == "primary" else None
        if (fault or "").endswith("once") and len(self.at[model]) > 1:
            fault = None
        if fault == "down for a minute":
            fault = "503" if now < 60 else None
        if fault in REFUSALS:
            return error(*REFUSALS[fault])
        if fault == "reset once":
            request.transport.abort()
        if fault == "silent":
            await self.say_nothing()
        if not body.get("stream"):
            return web.json_response(self.whole(model))
        return await self.stream(request, body, fault)

    async def say_nothing(self):
        self.silent += 1
        try:
            await self.clock.sleep(120)
        finally:
            self.silent -= 1

    def whole(self, model):
        choice = {"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69}
        head = {"id": "1", "object": "chat.completion", "created": 7, "model": model}
        return head | {"choices": [{"index": 0, **choice}], "usage": usage}

    async def stream(self, request, body, fault):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        head = {"id": "1", "object": "chat.completion.chunk", "created": 7, "model": body["model"]}

        async def say(delta, finish=None, **more):
            choices = [] if more else [{"index": 0, "delta": delta, "finish_reason": finish}]
            event = {**head, "choices": choices, **more}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())

        if fault == "slow start":
            await self.say_nothing()
        for number, word in enumerate(WORDS):
            if fault == "cut" and number == 40:
                request.transport.close()
                return response
            if fault == "stalls" and number == 20:
                await self.say_nothing()
            if fault == "malformed" and number == 10:
                await response.write(b'data: {"choices": [{"delta": {"content": \n\n')
            await say({"content": word if number == 0 else f" {word}"})
        await say({}, "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            await say({}, usage=self.whole("")["usage"])
        if fault != "no [DONE]":
            await response.write(b"data: [DONE]\n\n")
        return response


class Bench:
    """One gateway in front of them, and how a caller asks it."""

    def __init__(self, gateway, vendors, clock, *, streams):
        self.gateway = gateway
        self.vendors = vendors
        self.clock = clock
        self.streams = streams

    @property
    def attempts(self):
        return {name: len(times) for name, times in self.vendors.at.items()}

    async def ask(self, prompt=PROMPT):
        """The text as a caller has it in the end, the response, and how long it took."""
        began = self.clock.now()
        task = asyncio.create_task(self._streamed(prompt) if self.streams else self._whole(prompt))
        while not task.done():
            await asyncio.sleep(0.002)
            await self.clock.advance(1.0 if self.vendors.silent else 0.02)
        text, response = await task
        return text, response, self.clock.now() - began

    async def _whole(self, prompt):
        response = await self.gateway.chat(prompt)
        return response.text, response

    async def _streamed(self, prompt):
        text = ""
        async with self.gateway.stream(prompt, resume="restart") as stream:
            async for chunk in stream:
                text = chunk.text if chunk.restarted else text + chunk.text
        return text, stream.response

    async def is_alive(self):
        self.vendors.fault = None
        text, _, seconds = await self.ask()
        return text == ANSWER and seconds < 10


@pytest.fixture(params=[False, True], ids=["chat", "stream"])
async def bench(request):
    """Make one in which the primary has this fault."""
    clock, made = FakeClock(), []

    async def make(fault):
        vendors = Vendors(clock, fault)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", vendors.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        primary, fallback = (
            LLMConfig(
                ProviderType.OPENAI_COMPATIBLE,
                name,
                api_base=base,
                priority=priority,
                extra={"max_input_tokens": window},
            )
            for name, priority, window in (("primary", 1, 8192), ("fallback", 0, 128_000))
        )
        gateway = AsyncGateway([primary, fallback], clock=clock, **SETTINGS)
        made.append((gateway, runner))
        await gateway.warmup()
        return Bench(gateway, vendors, clock, streams=request.param)

    yield make
    for gateway, runner in made:
        await gateway.aclose()
        await runner.cleanup()


async def test_s01_429_with_retry_after(bench):
    bench = await bench("429 once")
    text, _, _ = await bench.ask()
    first, second = bench.vendors.at["primary"]
    assert (text, second - first >= 1.8) == (ANSWER, True)


async def test_s02_429_without_it(bench):
    bench = await bench("429")
    text, _, _ = await bench.ask()
    times = bench.vendors.at["primary"]
    assert text == ANSWER
    assert len(times) <= 6
    assert sum(at < times[0] + 3 for at in times) <= 4


async def test_s03_500_once(bench):
    bench = await bench("500 once")
    assert (await bench.ask())[0] == ANSWER
    assert bench.attempts == {"primary": 2, "fallback": 0}


@pytest.mark.parametrize("scenario", ["s04", "s16"])
async def test_s04_and_s16_503_for_ever(bench, scenario):
    bench = await bench("503")
    text, response, _ = await bench.ask()
    assert text == ANSWER
    assert bench.attempts["primary"] <= 6
    if scenario == "s16":  # the fallback is named, and what failed is not billed
        assert (response.model, response.usage.total_tokens) == ("fallback", 69)
        assert [a.cost_usd for a in response.attempts if not a.ok] == [None, None]


async def test_s05_reset_before_the_head(bench):
    bench = await bench("reset once")
    assert (await bench.ask())[0] == ANSWER


async def test_s06_no_answer_at_all(bench):
    bench = await bench("silent")
    text, _, seconds = await bench.ask()
    assert (text, bench.attempts["primary"]) == (ANSWER, 1)
    assert seconds <= 100


async def test_s07_slow_first_token(bench):
    bench = await bench("slow start")
    text, _, seconds = await bench.ask()
    assert text == ANSWER
    assert seconds <= 15


@pytest.mark.parametrize("fault", ["cut", "malformed"])
async def test_s08_and_s10_a_stream_that_breaks(bench, fault):
    bench = await bench(fault)
    assert (await bench.ask())[0] == ANSWER
    assert await bench.is_alive()


async def test_s09_a_stream_that_stalls(bench):
    bench = await bench("stalls")
    text, _, seconds = await bench.ask()
    assert text == ANSWER
    assert seconds <= 45
    assert await bench.is_alive()


async def test_s11_no_done(bench):
    bench = await bench("no [DONE]")
    text, response, seconds = await bench.ask()
    assert (text, response.usage.total_tokens) == (ANSWER, 69)
    assert seconds <= 8
    assert bench.attempts == {"primary": 1, "fallback": 0}


async def test_s12_context_length(bench):
    bench = await bench("context")
    assert (await bench.ask())[0] == ANSWER
    assert bench.attempts == {"primary": 1, "fallback": 1}


async def test_s13_content_filter(bench):
    bench = await bench("content")
    with pytest.raises(ContentPolicyError):
        await bench.ask()
    assert bench.attempts["primary"] == 1


async def test_s14_a_fallback_without_prefill(bench):
    bench = await bench("cut")
    assert (await bench.ask())[0] == ANSWER
    assert bench.vendors.prefills == 0


@pytest.mark.parametrize("prompts", ["one", "many"])
async def test_s15_down_for_a_minute(bench, prompts):
    bench = await bench("down for a minute")
    texts: Counter[str] = Counter()
    for number in range(20):
        await bench.clock.advance(max(0.0, bench.vendors.began + number * 4 - bench.clock.now()))
        text, _, seconds = await bench.ask(
            f"Sixty words, {number}." if prompts == "many" else PROMPT
        )
        texts[text] += 1
        assert seconds < 30
    assert texts == {ANSWER: 20}
    primary = bench.vendors.at["primary"]
    assert min(at for at in primary if at >= 60) <= 90, "it has recovered, and is asked again"
    if prompts == "many":  # repeats of one request, as the catalogue sends, open no circuit
        assert sum(at < 60 for at in primary) <= 15, "one for each request is enough"
