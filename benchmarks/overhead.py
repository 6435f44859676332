"""What a call costs: CPU and latency, against a server that answers at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from benchmarks.chart import Bars
from benchmarks.clients import FLOOR, OURS, SINGLES, Client, aigateway, raw_aiohttp
from benchmarks.measure import Load, Spread, load
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.server import Servers

HOW = (
    "One client process against a server that answers at once, in another process; every prompt is"
    " new, so that every call goes out. aigateway has everything on (cache, circuit, metrics,"
    " limiter, logs at INFO). Ratios are to raw aiohttp on the same wire in the same round;"
    " medians of interleaved rounds (lowest to highest)."
)
WIRES = ("anthropic", "gemini")
CASES: Mapping[str, Callable[[str], Client]] = {
    **SINGLES,
    **{f"{FLOOR}, {w} wire": functools.partial(raw_aiohttp, wire=w) for w in WIRES},
    **{f"{OURS}, {w} wire": functools.partial(aigateway, wire=w) for w in WIRES},
}
SLOW = ("litellm", "openai")
"""These are given fewer calls: they take a hundred times as long."""

Rounds = list[dict[str, Load]]


async def run(options: Options) -> Result:
    levels = [1, 10] if options.quick else [1, 10, 100, 500]
    measured: dict[int, Rounds] = {}
    async with Servers.started() as servers:
        root = servers.roots["primary"]
        for callers in levels:
            rounds = options.pick(3 if callers >= 100 else 5, 1)
            measured[callers] = [await _round(root, callers, options) for _ in range(rounds)]
    return _result(measured)


async def _round(root: str, callers: int, options: Options) -> dict[str, Load]:
    loads = {}
    for name, make in CASES.items():
        calls = options.pick(80, 10) if name.startswith(SLOW) else options.pick(400, 40)
        async with make(root) as ask:  # one at a time, so that none is in another's way
            await load(ask, callers=callers, calls=max(callers, options.pick(20, 2)))
            loads[name] = await load(ask, callers=callers, calls=max(calls, callers))
    return loads


def _floor(name: str) -> str:
    """The raw client on the same wire."""
    _, comma, wire = name.partition(", ")
    return f"{FLOOR}, {wire}" if comma else FLOOR


def _ratios(rounds: Rounds, name: str) -> Spread:
    return Spread.of([each[name].cpu_ms / each[_floor(name)].cpu_ms for each in rounds])


def _result(measured: Mapping[int, Rounds]) -> Result:
    tables = [_table(callers, rounds) for callers, rounds in measured.items()]
    shown = measured[10]
    bars = [(n, Spread.of([each[n].cpu_ms for each in shown]).median) for n in CASES]
    chart = Bars("CPU for one call, 10 callers", "milliseconds", bars)
    return Result("overhead", HOW, tables, chart, measured)


def _table(callers: int, rounds: Rounds) -> Table:
    rows = []
    for name in CASES:
        cpu = Spread.of([each[name].cpu_ms for each in rounds])
        p50 = Spread.of([each[name].p50_ms for each in rounds])
        rate = Spread.of([each[name].calls_per_second for each in rounds])
        ratio = _ratios(rounds, name).show(2, "x")
        p95 = Spread.of([each[name].p95_ms for each in rounds])
        rows.append(
            [name, cpu.show(), ratio, p50.show(), f"{p95.median:.2f}", f"{rate.median:.0f}"]
        )
    columns = ["", "CPU ms per call", "against raw", "p50 ms", "p95 ms", "calls/s"]
    return Table(f"**{callers} caller{'s' if callers > 1 else ''}**", columns, rows)
