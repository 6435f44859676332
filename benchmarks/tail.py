"""Vendors that are slow now and then: what hedging makes of their tail, and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.chart import Bars
from benchmarks.clients import (
    HEDGED,
    OURS,
    PAIRS,
    ROUTER_BEST,
    Client,
    Pair,
    aigateway_pair,
    litellm_router_best,
)
from benchmarks.measure import percentile
from benchmarks.open_loop import Arrived, arrivals
from benchmarks.options import Options
from benchmarks.outage import HEALTHY, pair_of
from benchmarks.report import Result, Table
from benchmarks.server import NAMES, TAIL, Servers

RATE = 120
"""Requests a second: as many as the slowest peer can still send."""
REQUESTS = 1500
WARM = 200
"""Requests before these, so that the 95th percentile is known and a share of the requests is more
than the ten hedges a minute that are let through in any case."""
FASTER, MORE = 10.0, 5.0
"""Targets: p99 falls at least so many times, for at most so many percent more calls."""
PATIENT, HASTY = ROUTER_BEST, "litellm Router, order, timeout 0.5 s, no cooldown"
HOW = (
    f"Two providers, each of which takes {HEALTHY * 1000:.0f} ms for an answer and {TAIL[1]:.0f} s"
    f" for {TAIL[0] * 100:.0f} % of them, at random with the same seed for each client."
    f" {RATE} requests a second, whether or not the ones before are answered: {WARM} to warm up,"
    f" and then {REQUESTS}. Settings are the defaults but for `hedge=True`. litellm's Router has"
    " nothing of the kind; a short timeout is the only way it has, and needs to be known"
    " beforehand. Extra calls are requests that reached the two beyond one for each. p99.9 is the"
    " second slowest."
)
CASES: Mapping[str, tuple[float, Callable[[Pair], Client]]] = {
    OURS: (10.0, PAIRS[OURS]),
    HEDGED: (10.0, functools.partial(aigateway_pair, hedge=True)),
    PATIENT: (10.0, PAIRS[ROUTER_BEST]),
    HASTY: (0.5, functools.partial(litellm_router_best, disable_cooldowns=True)),
}


@dataclass(frozen=True)
class Tail:
    """What callers saw, and how many requests reached the providers."""

    arrived: Sequence[Arrived]
    received: int

    def ms(self, share: float) -> float:
        """A percentile."""
        return percentile([each.call.seconds * 1000 for each in self.arrived], share)

    @property
    def errors(self) -> int:
        """Requests that were not answered."""
        return sum(not each.call.ok for each in self.arrived)

    def data(self) -> dict[str, Any]:
        """Every figure, in the order of arrival."""
        arrived = sorted(self.arrived, key=lambda each: each.at)
        ms = [round(each.call.seconds * 1000, 1) for each in arrived]
        return {"ms": ms, "errors": self.errors, "received": self.received}

    @property
    def extra_percent(self) -> float:
        """Calls beyond one for each request."""
        return (self.received / len(self.arrived) - 1) * 100


async def run(options: Options) -> Result:
    async with Servers.started() as servers:
        found = {name: await _tail(servers, *case, options) for name, case in CASES.items()}
    rows = [[name, *_row(each, found[OURS])] for name, each in found.items()]
    columns = ["", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "errors", "extra calls", "p99 against"]
    columns[-1] += f" {OURS} without hedging"
    fell, more = found[OURS].ms(0.99) / found[HEDGED].ms(0.99), found[HEDGED].extra_percent
    verdict = "met" if fell >= FASTER and more <= MORE else "missed"
    data = {name: each.data() for name, each in found.items()}
    title = (
        f"**{REQUESTS} requests.** Target: a p99 {FASTER:.0f} times lower for at most {MORE:.0f} %"
        f" more calls: {verdict} ({fell:.1f} times, {more:.1f} %)"
    )
    chart = Bars(
        "p99 with 2 % of answers at 2 s",
        "milliseconds",
        [(n, t.ms(0.99)) for n, t in found.items()],
    )
    return Result("tail", HOW, [Table(title, columns, rows)], chart, data)


async def _tail(
    servers: Servers, seconds: float, make: Callable[[Pair], Client], options: Options
) -> Tail:
    for name in NAMES:
        await servers.set(name, "tail", HEALTHY)
    async with make(replace(pair_of(servers), attempt_timeout=seconds)) as ask:
        await arrivals(ask, rate=RATE, count=options.pick(WARM, 60))
        before = await _received(servers)
        arrived = await arrivals(ask, rate=RATE, count=options.pick(REQUESTS, 120))
        received = await _received(servers) - before
    return Tail(arrived, received)


async def _received(servers: Servers) -> int:
    return sum([(await servers.state(name))["received"] for name in NAMES])


def _row(found: Tail, plain: Tail) -> list[str]:
    return [
        *(f"{found.ms(share):.0f}" for share in (0.5, 0.95, 0.99, 0.999)),
        str(found.errors),
        f"{found.extra_percent:.1f} %",
        f"{plain.ms(0.99) / found.ms(0.99):.1f}x lower",
    ]
