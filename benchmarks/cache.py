"""How long a remembered answer takes, for a prompt of 1 kB."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

import aiocache
import cashews
import litellm
from litellm.caching.caching import Cache

from benchmarks.chart import Bars
from benchmarks.clients import (
    MODEL,
    OURS,
    Ask,
    Client,
    aigateway,
    litellm_call,
    messages,
)
from benchmarks.listeners import litellm_put_back
from benchmarks.measure import Spread, held
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.server import TEXT, Servers

HOW = (
    "The same 1 kB prompt again and again, one caller, answered from memory. aigateway and litellm"
    " take a whole request and give a whole answer; aiocache and cashews are bare caches, given a"
    " sha256 over the request's JSON as the key and the answer's text as the value, so they do"
    " less. Microseconds, medians of interleaved rounds (lowest to highest)."
)
HIT_US = 10.0
"""Microseconds of an answer from the cache, at most."""
PROMPT = "Tell me more about this. " * 40


@contextlib.asynccontextmanager
async def litellm_cache(root: str) -> AsyncIterator[Ask]:
    with litellm_put_back():
        litellm.cache = Cache(type="local")
        async with litellm_call(root, caching=True) as ask:
            yield ask
        litellm.cache = None


@contextlib.asynccontextmanager
async def aiocache_memory(root: str) -> AsyncIterator[Ask]:
    del root
    memory = aiocache.SimpleMemoryCache(ttl=3600)

    async def ask(prompt: str) -> str:
        key = _key(prompt)
        text = await memory.get(key)
        if text is None:
            await memory.set(key, text := TEXT)
        return text

    yield ask


@contextlib.asynccontextmanager
async def cashews_memory(root: str) -> AsyncIterator[Ask]:
    del root
    memory = cashews.Cache()
    memory.setup("mem://")

    async def ask(prompt: str) -> str:
        key = _key(prompt)
        text = await memory.get(key)
        if text is None:
            await memory.set(key, text := TEXT, expire=3600)
        return text

    yield ask


def _key(prompt: str) -> str:
    request = {"model": MODEL, "messages": messages(prompt)}
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()


CASES: Mapping[str, Callable[[str], Client]] = {
    f"{OURS} gateway.chat": aigateway,
    "litellm.acompletion, in-memory cache": litellm_cache,
    "aiocache SimpleMemoryCache": aiocache_memory,
    "cashews mem://": cashews_memory,
}


async def run(options: Options) -> Result:
    times: dict[str, list[float]] = {name: [] for name in CASES}
    async with Servers.started() as servers, AsyncExitStack() as stack:
        asks = {
            name: await stack.enter_async_context(make(servers.roots["primary"]))
            for name, make in CASES.items()
        }
        for ask in asks.values():
            for _ in range(3):
                await ask(PROMPT)
        sent = (await servers.state())["received"]
        for _ in range(options.pick(15, 2)):
            for name, ask in asks.items():
                times[name].append(await _microseconds(ask, 300 if "litellm" in name else 3000))
        if (await servers.state())["received"] != sent:
            raise RuntimeError("a remembered answer was asked for again: this measured no hits")
    spreads = {name: Spread.of(values) for name, values in times.items()}
    ours = spreads[f"{OURS} gateway.chat"].median
    rows = [[n, s.show(1), f"{s.median / ours:.1f}x"] for n, s in spreads.items()]
    table = Table("**A hit**", ["", "us per hit", "against aigateway"], rows)
    chart = Bars("A cache hit", "microseconds", [(n, s.median) for n, s in spreads.items()])
    target = held("cache hit, 1 kB prompt", times[f"{OURS} gateway.chat"], HIT_US, " us", 1)
    return Result("cache", HOW, [table], chart, times, [target])


async def _microseconds(ask: Ask, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        await ask(PROMPT)
    return (time.perf_counter() - began) / count * 1e6
