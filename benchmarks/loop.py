"""How long one burst of calls keeps the event loop from everybody else."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from aigateway import AsyncGateway, LLMConfig
from benchmarks.chart import Bars
from benchmarks.clients import KEY, MODEL, SINGLES
from benchmarks.measure import Spread, fresh_prompt
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.server import Servers

HOW = (
    "500 calls begun by one `gather`, against a server that answers after 50 ms, while another task"
    " sleeps 1 ms at a time: the longest it had to wait beyond that. Milliseconds, medians of"
    " interleaved rounds (lowest to highest)."
)
CALLS = 500
BOUND = 10_000
FROZEN = "with the collector frozen (`freeze_gc`)"
OFF = "with the garbage collector off"
BOUND_HOW = (
    f"**{BOUND:,} calls begun by one `gather`, through `gateway.bind()`.** No more than"
    " `max_concurrency` (256) are under way, and few begin at each turn of the loop. Target: under"
    " 60 ms with `freeze_gc=True`, which calls `gc.freeze()`. As it comes, Python's full garbage"
    " collection walks all that litellm has loaded"
)


async def run(options: Options) -> Result:
    stalls: dict[str, list[float]] = {name: [] for name in SINGLES}
    walls: dict[str, list[float]] = {name: [] for name in SINGLES}
    bound: dict[str, list[float]] = {how: [] for how in ("as it comes", FROZEN, OFF)}
    async with Servers.started() as servers:
        await servers.set("primary", "ok", 0.05)
        # First, while nothing of the other libraries is in the process.
        for _ in range(options.pick(5, 1)):
            for how, found in bound.items():
                calls = options.pick(BOUND, 100)
                found.append(await _bound(servers.roots["primary"], calls, how))
        for _ in range(options.pick(5, 1)):
            for name, make in SINGLES.items():
                async with make(servers.roots["primary"]) as ask:
                    await ask(fresh_prompt())
                    stall, wall = await _burst(ask, options.pick(CALLS, 50))
                stalls[name].append(stall)
                walls[name].append(wall)
    longest = {name: Spread.of(values) for name, values in stalls.items()}
    rows = [[n, s.show(0), Spread.of(walls[n]).show(0)] for n, s in longest.items()]
    table = Table(f"**A burst of {CALLS}**", ["", "longest stall ms", "all answered ms"], rows)
    rows = [[how, Spread.of(found).show(0)] for how, found in bound.items()]
    table_of_bound = Table(BOUND_HOW, ["", "longest stall ms"], rows)
    bars = [(name, spread.median) for name, spread in longest.items()]
    chart = Bars(f"Longest stall of the event loop, {CALLS} calls at once", "milliseconds", bars)
    data = {"stalls": stalls, "walls": walls, "bound": bound}
    return Result("loop", HOW, [table, table_of_bound], chart, data)


async def _bound(root: str, calls: int, how: str) -> float:
    """The longest stall while so many bound calls are answered."""
    config = LLMConfig("openai", MODEL, api_key=KEY, api_base=f"{root}/v1")
    async with AsyncGateway([config]) as gateway:
        await gateway.warmup()
        ask = gateway.bind(temperature=0)
        await ask(fresh_prompt())
        gc.collect()
        if how == FROZEN:
            gc.freeze()
        elif how == OFF:
            gc.disable()
        try:
            return (await _burst(ask, calls))[0]
        finally:
            gc.unfreeze()
            gc.enable()


async def _burst(ask: Callable[[str], Awaitable[object]], calls: int) -> tuple[float, float]:
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - began - 0.001)

    gc.collect()
    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    worst = 0.0
    began = time.perf_counter()
    await asyncio.gather(*(ask(fresh_prompt()) for _ in range(calls)))
    wall = time.perf_counter() - began
    await asyncio.sleep(0.01)
    watcher.cancel()
    return worst * 1000, wall * 1000
