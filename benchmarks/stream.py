"""What a streamed piece costs, and how long the first one takes."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass

from benchmarks.chart import Bars
from benchmarks.clients import FLOOR, OURS
from benchmarks.first_content import ALONE, TOGETHER, checked, first_contents, first_table
from benchmarks.measure import SETTLE, Spread, fresh_prompt, held
from benchmarks.options import Options
from benchmarks.process import running
from benchmarks.report import Result, Table
from benchmarks.stream_clients import PEERS, STREAMS, Read, chunks_per_read

HOW = (
    "One client process against a server in another one, which writes events made beforehand, each"
    " with a `send` of its own, and waits for none; every stream's text is compared with what was"
    " sent. Without a pause events come together: a client that does nothing but read gets"
    " {together} at a time, so these tables show what parsing costs. With a pause of 1 ms each"
    " wakes the client ({apart} at a time), as a vendor's do. aigateway has everything on, and also"
    " puts the whole answer together, prices and caches it; its bare lane is the way to the vendor"
    " alone. Ratios are to raw aiohttp (`async for line in response.content`, `json.loads`, the"
    " text) on the same wire in the same round; medians of interleaved rounds (lowest to highest)."
    " CPU is that of the whole process, and of {settle:.0f} ms after the last stream."
)
TARGETS = {OURS: 3.0, f"{OURS}, anthropic wire": 6.0, f"{OURS}, gemini wire": 6.0}
"""Times raw, at most."""
BEFORE = {OURS: 0.81, f"{OURS}, anthropic wire": 0.71, f"{OURS}, gemini wire": 0.87}
"""Times raw, one caller and 1,000 pieces, measured on 2026-11-23; a tenth more is as before."""


@dataclass(frozen=True)
class Size:
    """How many streams each caller reads, how long they are, and how often that is measured."""

    each: int
    chunks: int
    rounds: int


@dataclass(frozen=True)
class Level:
    """One table.

    Attributes:
        title: Its title.
        callers: How many read at once.
        quick: For clients that take microseconds.
        slow: For the peers, which take a hundred times as long.
        pause: What the path asks for.
    """

    title: str
    callers: int
    quick: Size
    slow: Size
    pause: str = ""

    def size(self, name: str, options: Options) -> Size:
        """What this client is given."""
        if options.quick:
            return Size(1, 20, 1)
        return self.slow if name in PEERS else self.quick


LEVELS = (
    Level("**1 caller, 1,000 pieces**", 1, Size(4, 1000, 5), Size(1, 1000, 3)),
    Level("**50 streams at once, 400 pieces** (peers 100)", 50, Size(1, 400, 3), Size(1, 100, 2)),
    Level("**1 caller, a piece every 1 ms**", 1, Size(1, 200, 5), Size(1, 200, 2), "-pause-1"),
)


@dataclass(frozen=True)
class Cost:
    """Microseconds per chunk."""

    cpu: float
    wall: float


Rounds = list[dict[str, Cost]]


async def run(options: Options) -> Result:
    with running("benchmarks.stream_server") as ports:
        server = f"http://127.0.0.1:{ports['vendor']}"
        together = await chunks_per_read(f"{server}/chunks-1000", "openai", fresh_prompt())
        apart = await chunks_per_read(f"{server}/chunks-100-pause-1", "openai", fresh_prompt())
        for make in STREAMS.values():  # what each does once in a process
            async with make(f"{server}/chunks-10") as read:
                await checked(read, 10)
        costs = [await _costs(server, level, options) for level in LEVELS]
        firsts = [await first_contents(server, crowd, options) for crowd in (ALONE, TOGETHER)]
    how = HOW.format(together=f"{together:.0f}", apart=f"{apart:.1f}", settle=SETTLE * 1000)
    tables = [_table(level.title, each) for level, each in zip(LEVELS, costs, strict=True)]
    tables += [first_table(ALONE, firsts[0]), first_table(TOGETHER, firsts[1])]
    bars = [(name, _spread(costs[0], name).median) for name in STREAMS]
    chart = Bars("CPU for one streamed piece, 1 caller", "microseconds", bars)
    data = {
        "chunks_per_read": {"without a pause": together, "with a pause": apart},
        "costs": {level.title: each for level, each in zip(LEVELS, costs, strict=True)},
        "first_content": {"alone": firsts[0], "together": firsts[1]},
    }
    targets = [
        held(
            f"CPU of a streamed piece to raw aiohttp's: {name}",
            [_ratio(each, name) for each in costs[0]],
            round(before * 1.1, 2),
        )
        for name, before in BEFORE.items()
    ]
    return Result("stream", how, tables, chart, data, targets)


async def _costs(server: str, level: Level, options: Options) -> Rounds:
    rounds: Rounds = []
    for index in range(options.pick(level.quick.rounds, 1)):
        found = {}
        for name, make in STREAMS.items():
            size = level.size(name, options)
            if index < size.rounds:
                async with make(f"{server}/chunks-{size.chunks}{level.pause}") as read:
                    found[name] = await _cost(read, level.callers, size)
        rounds.append(found)
    return rounds


async def _cost(read: Read, callers: int, size: Size) -> Cost:
    async def caller() -> None:
        for _ in range(size.each):
            await checked(read, size.chunks)

    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    wall = time.perf_counter() - wall
    await asyncio.sleep(SETTLE)
    cpu = time.process_time() - cpu
    scale = 1e6 / (callers * size.each * size.chunks)
    return Cost(cpu * scale, wall * scale)


def _floor(name: str) -> str:
    """The raw client on the same wire."""
    _, comma, wire = name.partition(", ")
    return f"{FLOOR}, {wire}" if comma else FLOOR


def _spread(rounds: Rounds, name: str) -> Spread:
    return Spread.of([each[name].cpu for each in rounds if name in each])


def _table(title: str, rounds: Rounds) -> Table:
    rows = []
    for name in STREAMS:
        found = [each for each in rounds if name in each]
        cpu, ratio = _spread(found, name), Spread.of([_ratio(each, name) for each in found])
        wall = Spread.of([each[name].wall for each in found])
        rows.append([name, cpu.show(1), ratio.show(2, "x"), wall.show(1), _verdict(name, ratio)])
    columns = ["", "CPU us per piece", "against raw", "wall us per piece", "target"]
    return Table(title, columns, rows)


def _ratio(found: dict[str, Cost], name: str) -> float:
    return found[name].cpu / found[_floor(name)].cpu


def _verdict(name: str, ratio: Spread) -> str:
    if name not in TARGETS:
        return ""
    most = TARGETS[name]
    return f"{most:.0f}x: {'met' if ratio.median <= most else 'missed'}"
