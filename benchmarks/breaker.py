"""What a closed circuit costs a call."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Awaitable, Callable, Mapping

import aiobreaker
import purgatory
import pybreaker
from hyx.circuitbreaker import consecutive_breaker

from aigateway import CircuitBreaker
from benchmarks.chart import Bars
from benchmarks.measure import Spread
from benchmarks.options import Options
from benchmarks.report import Result, Table

HOW = (
    "A function that does nothing, guarded by a closed circuit; the bare call's own time is taken"
    " off. pybreaker's asynchronous call needs tornado, so its synchronous one is shown. Each with"
    " threshold 5 and 60 s. Nanoseconds, medians of interleaved rounds (lowest to highest)."
)
Loop = Callable[[int], Awaitable[None]]
BARE, BARE_SYNC = "await function()", "function()"
OURS = "aigateway CircuitBreaker.call"
PERMIT = "aigateway acquire, success"
SYNC = "pybreaker call (synchronous)"


async def nothing() -> None:
    pass


def nothing_sync() -> None:
    pass


async def run(options: Options) -> Result:
    cases = await _cases()
    times: dict[str, list[float]] = {name: [] for name in cases}
    count = options.pick(20_000, 500)
    for _ in range(options.pick(15, 2)):
        for name, loop in cases.items():
            began = time.perf_counter()
            await loop(count)
            times[name].append((time.perf_counter() - began) / count * 1e9)
    return _result(times)


async def _cases() -> Mapping[str, Loop]:
    factory = purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)

    @factory("loopback")
    async def purgatory_guarded() -> None:
        pass

    @consecutive_breaker(failure_threshold=5, recovery_time_secs=60)
    async def hyx_guarded() -> None:
        pass

    ours = CircuitBreaker(5, 60)
    minute = dt.timedelta(seconds=60)
    aio = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=minute)
    py = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)
    return {
        BARE: _awaiting(nothing),
        BARE_SYNC: _calling(nothing_sync),
        OURS: _awaiting(ours.call, nothing),
        PERMIT: _calling(lambda: ours.acquire().success()),
        "purgatory": _awaiting(purgatory_guarded),
        "aiobreaker": _awaiting(aio.call_async, nothing),
        "hyx": _awaiting(hyx_guarded),
        SYNC: _calling(py.call, nothing_sync),
    }


def _awaiting(function: Callable[..., Awaitable[object]], *args: object) -> Loop:
    async def loop(count: int) -> None:
        for _ in range(count):
            await function(*args)

    return loop


def _calling(function: Callable[..., object], *args: object) -> Loop:
    async def loop(count: int) -> None:
        for _ in range(count):
            function(*args)

    return loop


def _result(times: Mapping[str, list[float]]) -> Result:
    guarded = {}
    for name, values in times.items():
        if name in {BARE, BARE_SYNC}:
            continue
        bare = times[BARE_SYNC if name in {PERMIT, SYNC} else BARE]
        if name == PERMIT:
            guarded[name] = Spread.of(values)  # there is no function in it
        else:
            guarded[name] = Spread.of([v - b for v, b in zip(values, bare, strict=True)])
    ours = guarded[OURS].median
    rows = [[n, s.show(0), f"{s.median / ours:.1f}x"] for n, s in guarded.items()]
    table = Table("**A guarded call**", ["", "ns added", "against aigateway"], rows)
    chart = Bars("A guarded call", "nanoseconds", [(n, s.median) for n, s in guarded.items()])
    return Result("breaker", HOW, [table], chart, times)
