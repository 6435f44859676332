"""How long a stream's first content takes, alone and amid others."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.clients import FLOOR, OURS
from benchmarks.measure import Spread, fresh_prompt, percentile
from benchmarks.options import Options
from benchmarks.report import Table
from benchmarks.stream_clients import LANE, PEERS, STREAMS, Read
from benchmarks.stream_server import text_of

ASKED = (FLOOR, LANE, OURS, *PEERS)


@dataclass(frozen=True)
class Crowd:
    """How many read at once, and what.

    Attributes:
        callers: Each reads one stream after the other.
        each: How many of them.
        chunks: Pieces of a stream.
        pause_ms: Milliseconds between them.
        rounds: Of the quick clients, and of the peers, which are slow.
    """

    callers: int
    each: int
    chunks: int
    pause_ms: int
    rounds: tuple[int, int]


ALONE = Crowd(callers=1, each=100, chunks=2, pause_ms=2, rounds=(3, 2))
TOGETHER = Crowd(callers=50, each=6, chunks=10, pause_ms=20, rounds=(3, 2))
"""Vendors that say fifty words a second."""


@dataclass(frozen=True)
class First:
    """Milliseconds from the call to the first content."""

    p50: float
    p99: float


Rounds = list[dict[str, First]]


async def checked(read: Read, chunks: int) -> float:
    """Read one stream, see that it came whole, and give the seconds to its first content."""
    began = time.perf_counter()
    streamed = await read(fresh_prompt())
    if streamed.text != text_of(chunks):
        raise RuntimeError("another text came than was sent")
    return streamed.first_at - began


async def first_contents(server: str, crowd: Crowd, options: Options) -> Rounds:
    rounds: Rounds = []
    root = f"{server}/chunks-{crowd.chunks}-pause-{crowd.pause_ms}"
    for index in range(options.pick(crowd.rounds[0], 1)):
        found = {}
        for name in ASKED:
            if name in PEERS and index >= crowd.rounds[1]:
                continue
            async with STREAMS[name](root) as read:
                times = await _times(read, crowd, options.pick(crowd.each, 2))
            found[name] = First(percentile(times, 0.5) * 1000, percentile(times, 0.99) * 1000)
        rounds.append(found)
    return rounds


async def _times(read: Read, crowd: Crowd, each: int) -> Sequence[float]:
    await checked(read, crowd.chunks)  # so that there is a connection
    chance = random.Random(crowd.callers)
    spread = crowd.chunks * crowd.pause_ms / 1000  # or all would begin at once, again and again
    times: list[float] = []

    async def caller() -> None:
        await asyncio.sleep(chance.random() * spread)
        for _ in range(each):
            times.append(await checked(read, crowd.chunks))  # noqa: PERF401 - it awaits

    gc.collect()
    await asyncio.gather(*(caller() for _ in range(crowd.callers)))
    return times


def first_table(crowd: Crowd, rounds: Rounds) -> Table:
    rows = []
    for name in ASKED:
        found = [each for each in rounds if name in each]
        p50 = Spread.of([each[name].p50 for each in found])
        p99 = Spread.of([each[name].p99 for each in found])
        more = Spread.of([each[name].p50 - each[LANE].p50 for each in found])
        rows.append([name, p50.show(), p99.show(), more.show()])
    many = f"{crowd.callers} streams at once" if crowd.callers > 1 else "1 stream at a time"
    title = (
        f"**Time to the first content, {many}**, each of {crowd.chunks} pieces, one every"
        f" {crowd.pause_ms} ms, and then the next"
    )
    return Table(title, ["", "p50 ms", "p99 ms", f"p50 ms over {LANE}"], rows)
