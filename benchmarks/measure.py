"""How time is taken: interleaved rounds, medians with their spread, CPU beside wall time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.clients import Ask
from benchmarks.report import Target

SETTLE = 0.05
"""Seconds for what a library leaves to do after its answer (litellm logs then); its CPU counts."""
_numbers = itertools.count()


def fresh_prompt() -> str:
    """One that no cache has seen."""
    return f"What is {next(_numbers)} plus two? Answer in one sentence, and say why that is so."


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Spread:
    """Several rounds as one value: the median, and how far they went."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up one value for each round."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 2, suffix: str = "") -> str:
        """`median (low to high)`."""
        low, high = f"{self.low:.{digits}f}", f"{self.high:.{digits}f}"
        return f"{self.median:.{digits}f}{suffix} ({low} to {high})"


def held(
    what: str, rounds: Sequence[float], most: float, unit: str = "x", digits: int = 2
) -> Target:
    """Hold the median of some rounds to a bound."""
    spread = Spread.of(rounds)
    measured = spread.show(digits, unit) if len(rounds) > 1 else f"{rounds[0]:.{digits}f}{unit}"
    return Target(what, f"{most:g}{unit}", measured, spread.median <= most)


@dataclass(frozen=True)
class Load:
    """What `calls` calls by `callers` callers cost, per call, in milliseconds."""

    cpu_ms: float
    p50_ms: float
    p95_ms: float
    calls_per_second: float


async def load(ask: Ask, *, callers: int, calls: int) -> Load:
    latencies: list[float] = []
    share, rest = divmod(calls, callers)

    async def caller(count: int) -> None:
        for _ in range(count):
            prompt = fresh_prompt()
            began = time.perf_counter()
            await ask(prompt)
            latencies.append(time.perf_counter() - began)

    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(share + (index < rest)) for index in range(callers)))
    elapsed = time.perf_counter() - wall
    await asyncio.sleep(SETTLE)
    cpu = time.process_time() - cpu
    return Load(
        cpu_ms=cpu / calls * 1000,
        p50_ms=statistics.median(latencies) * 1000,
        p95_ms=percentile(latencies, 0.95) * 1000,
        calls_per_second=calls / elapsed,
    )
