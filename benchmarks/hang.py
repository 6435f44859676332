"""A primary that hangs, under a steady load: what callers see beside what they are used to."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.chart import Bars
from benchmarks.clients import (
    HEDGED,
    LANGCHAIN,
    OURS,
    PAIRS,
    ROUTER_BEST,
    Client,
    Pair,
    aigateway_pair,
)
from benchmarks.measure import fresh_prompt, percentile
from benchmarks.open_loop import Arrived, arrivals
from benchmarks.options import Options
from benchmarks.outage import broken, heal, pair_of
from benchmarks.report import Result, Table
from benchmarks.server import Servers

RATE = 20
"""Requests a second; the next ones come whether or not the others are answered."""
TARGET = 3.0
"""Times the healthy 95th percentile, less than which it should be during the outage."""
HOW = (
    f"{RATE} requests a second at a primary and a backup that answer in 50 ms; after 4 s the"
    " primary hangs, for 8 s. Attempt timeout 1 s, reset or cooldown time 1 s as in the failover"
    " benchmark (aigateway's doubling is off, so it sends a probe each second), every prompt new."
    " LangChain has no memory of a failure."
)
CASES: Mapping[str, Callable[[Pair], Client]] = {
    OURS: PAIRS[OURS],
    HEDGED: functools.partial(aigateway_pair, hedge=True),
    ROUTER_BEST: PAIRS[ROUTER_BEST],
    LANGCHAIN: PAIRS[LANGCHAIN],
}


@dataclass(frozen=True)
class Outage:
    """What came before the primary hung, what meanwhile, and how many requests it kept."""

    healthy: Sequence[Arrived]
    hanging: Sequence[Arrived]
    wasted: int


async def run(options: Options) -> Result:
    async with Servers.started() as servers:
        found = {name: await _outage(servers, make, options) for name, make in CASES.items()}
    rows = [[name, *_row(each)] for name, each in found.items()]
    columns = [
        "",
        "healthy p95 ms",
        "hanging p50 ms",
        "p95 ms",
        "p99 ms",
        "p95 over healthy",
        f"under {TARGET:.0f}x",
        "over 200 ms",
        "errors",
        "met the hanging primary",
    ]
    table = Table(f"**{RATE} requests a second while the primary hangs**", columns, rows)
    bars = [(name, _ratio(each)) for name, each in found.items()]
    chart = Bars("p95 while the primary hangs, over the healthy p95", "times", bars)
    return Result("hang", HOW, [table], chart, found)


async def _outage(servers: Servers, make: Callable[[Pair], Client], options: Options) -> Outage:
    await heal(servers)
    async with make(pair_of(servers)) as ask:
        await ask(fresh_prompt())
        healthy = await arrivals(ask, rate=RATE, count=RATE * options.pick(4, 2))
        await broken(servers, "hang")
        hanging = await arrivals(ask, rate=RATE, count=RATE * options.pick(8, 2))
        wasted = (await servers.state())["received"]
        await asyncio.sleep(0.1)
    return Outage(healthy, hanging, wasted)


def _share(arrived: Sequence[Arrived], share: float) -> float:
    """A percentile in milliseconds."""
    return percentile([each.call.seconds * 1000 for each in arrived], share)


def _ratio(found: Outage) -> float:
    return _share(found.hanging, 0.95) / _share(found.healthy, 0.95)


def _row(found: Outage) -> list[str]:
    hanging, ratio = found.hanging, _ratio(found)
    slow = sum(each.call.seconds > 0.2 for each in hanging)
    return [
        f"{_share(found.healthy, 0.95):.0f}",
        *(f"{_share(hanging, share):.0f}" for share in (0.5, 0.95, 0.99)),
        f"{ratio:.1f}x",
        "met" if ratio < TARGET else "missed",
        f"{slow} of {len(hanging)}",
        str(
            sum(not each.call.ok for each in found.healthy)
            + sum(not each.call.ok for each in hanging)
        ),
        f"{found.wasted} of {len(hanging)}",
    ]
