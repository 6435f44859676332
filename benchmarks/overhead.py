"""What a call costs: CPU and latency, against a server that answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from any_llm import AnyLLM
from tensorzero import AsyncTensorZeroGateway

from benchmarks.cache import HIT_US
from benchmarks.chart import Bars
from benchmarks.clients import (
    FLOOR,
    KEY,
    MODEL,
    OURS,
    SINGLES,
    Ask,
    Client,
    aigateway,
    messages,
    raw_aiohttp,
)
from benchmarks.measure import SETTLE, Load, Spread, fresh_prompt, held, load
from benchmarks.options import Options
from benchmarks.process import running
from benchmarks.report import Result, Table, Target
from benchmarks.server import TEXT, Servers
from benchmarks.stream_clients import STREAMS, Read
from benchmarks.stream_server import text_of

HOW = (
    "One client process against a server that answers at once, in another process (a bare protocol"
    " on uvloop); every prompt is new, so that every call goes out. aigateway has everything on"
    " (cache, circuit, metrics, limiter, logs at INFO), but where it says without cache."
    " TensorZero's embedded client has no ClickHouse. CPU is that of the whole process. Ratios are"
    " to raw aiohttp on the same wire and the same event loop in the same round; medians of"
    " interleaved rounds (lowest to highest)."
)
_T = TypeVar("_T")
WIRES = ("openai", "anthropic", "gemini")
ASYNCIO, UVLOOP = "asyncio", "uvloop"
BARE = f"{OURS} without cache"
TARGETS = {"openai": 1.4, "anthropic": 2.0, "gemini": 2.0}
"""Times raw aiohttp on the same wire, at most, with everything on and `HELD` callers."""
HELD = 10


# ── who is asked ─────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def tensorzero(root: str) -> AsyncIterator[Ask]:
    """The gateway in this process, without ClickHouse and without sending usage home."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tensorzero.toml"
        config.write_text(
            "[gateway]\nobservability.enabled = false\n"
            "disable_pseudonymous_usage_analytics = true\n"
            '[models.llm]\nrouting = ["openai"]\n[models.llm.providers.openai]\ntype = "openai"\n'
            f'model_name = "{MODEL}"\napi_base = "{root}/v1/"\napi_key_location = "none"\n',
            encoding="utf-8",
        )
        async with await AsyncTensorZeroGateway.build_embedded(config_file=str(config)) as client:

            async def ask(prompt: str) -> str:
                answer = await client.inference(
                    model_name="llm", input={"messages": messages(prompt)}
                )
                return answer.content[0].text

            yield ask


@contextlib.asynccontextmanager
async def any_llm(root: str) -> AsyncIterator[Ask]:
    """One client that is kept, and not one for each call."""
    llm = AnyLLM.create("openai", api_key=KEY, api_base=f"{root}/v1", max_retries=0)

    async def ask(prompt: str) -> str:
        answer = await llm.acompletion(model=MODEL, messages=messages(prompt))
        return answer.choices[0].message.content

    async with llm.client:
        yield ask


@dataclass(frozen=True)
class Case:
    """One client on one wire and one event loop."""

    make: Callable[[str], Client]
    wire: str = "openai"
    loop: str = ASYNCIO


def _name(client: str, wire: str, loop: str) -> str:
    on_wire = "" if wire == "openai" else f", {wire} wire"
    return f"{client}{on_wire}{'' if loop == ASYNCIO else f', {loop}'}"


CASES: Mapping[str, Case] = {
    **{name: Case(make) for name, make in SINGLES.items() if name not in (FLOOR, OURS)},
    "TensorZero, embedded": Case(tensorzero),
    "any-llm": Case(any_llm),
    **{
        _name(client, wire, loop): Case(functools.partial(make, wire=wire), wire, loop)
        for loop in (ASYNCIO, UVLOOP)
        for wire in WIRES
        for client, make in (
            (FLOOR, raw_aiohttp),
            (BARE, functools.partial(aigateway, cache_enabled=False)),
            (OURS, aigateway),
        )
    },
}
SLOW = ("litellm", "openai", "any-llm")
"""These are given fewer calls: they take a hundred times as long."""


# ── what is measured ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Small:
    """Microseconds of CPU of what takes less than a call, on one event loop.

    Attributes:
        hit: An answer from the cache.
        coalesced: A call that waits for the same one of another caller.
        piece: A piece of a stream.
        raw_call: A call of raw aiohttp.
        raw_piece: A piece of a stream with raw aiohttp.
    """

    hit: float
    coalesced: float
    piece: float
    raw_call: float
    raw_piece: float


class Loops:
    """Runs work on an event loop of its kind: the one that runs, or uvloop's in a thread.

    The loop that runs has nothing to do meanwhile, so that the process's CPU is that of the work.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    async def run(self, loop: str, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what the work returns."""
        if loop == ASYNCIO:
            return await work
        here = asyncio.get_running_loop()
        return await here.run_in_executor(self._thread, self._runner.run, work)

    async def close(self) -> None:
        """End the thread and its loop."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._runner.close)
        self._thread.shutdown()


Rounds = list[dict[str, Load]]
Smalls = list[dict[str, Small]]


async def run(options: Options) -> Result:
    levels = [1, HELD] if options.quick else [1, HELD, 100]
    rounds = range(options.pick(5, 1))
    async with Servers.started() as servers, _loops() as loops:
        root = servers.roots["primary"]
        with await _all_loaded(loops, root):
            measured = {
                callers: [await _round(loops, root, callers, options) for _ in rounds]
                for callers in levels
            }
            smalls = [await _smalls(loops, servers, options) for _ in rounds]
    return _result(measured, smalls)


async def _all_loaded(loops: Loops, root: str) -> AbstractContextManager[object]:
    """Ask each client once, and have the collector pass over all that is loaded then.

    Else each collection before a measurement walks what all libraries together have loaded, half
    a second and several hundred times, and one within it would count for whom it happens to hit.
    """
    for case in CASES.values():
        await loops.run(case.loop, _answered(case.make(root)))
    stack = contextlib.ExitStack()
    gc.collect()
    gc.freeze()
    stack.callback(gc.unfreeze)
    return stack


async def _answered(client: Client) -> None:
    async with client as ask:
        await ask(fresh_prompt())


@contextlib.asynccontextmanager
async def _loops() -> AsyncIterator[Loops]:
    loops = Loops()
    try:
        yield loops
    finally:
        await loops.close()


async def _round(loops: Loops, root: str, callers: int, options: Options) -> dict[str, Load]:
    loads = {}
    for name, case in CASES.items():
        calls = options.pick(80, 10) if name.startswith(SLOW) else options.pick(1000, 40)
        warm = max(callers, options.pick(20, 2))
        work = _loaded(case.make(root), callers, max(calls, callers), warm)
        loads[name] = await loops.run(case.loop, work)
    return loads


async def _loaded(client: Client, callers: int, calls: int, warm: int) -> Load:
    async with client as ask:  # one at a time, so that none is in another's way
        if await ask(fresh_prompt()) != TEXT:
            raise RuntimeError("another text came than was sent")
        await load(ask, callers=callers, calls=warm)
        return await load(ask, callers=callers, calls=calls)


async def _smalls(loops: Loops, servers: Servers, options: Options) -> dict[str, Small]:
    root, many = servers.roots["primary"], options.pick(20, 2)
    found = {}
    with running("benchmarks.stream_server") as ports:
        pieces = f"http://127.0.0.1:{ports['vendor']}/chunks-{_PIECES}"
        for loop in (ASYNCIO, UVLOOP):
            await servers.set("primary")
            raw = await loops.run(loop, _loaded(raw_aiohttp(root), HELD, 50 * many, many))
            hit = await loops.run(loop, _hits(aigateway(root), 500 * many))
            streams = [
                await loops.run(loop, _piece(STREAMS[client](pieces), many))
                for client in (OURS, FLOOR)
            ]
            await servers.set("primary", "ok", 0.02)
            coalesced = await loops.run(loop, _coalesced(aigateway(root), many))
            reached = (await servers.state())["received"]
            if reached != many + 1:
                raise RuntimeError(f"{reached} calls reached the vendor and not {many + 1}")
            found[loop] = Small(hit, coalesced, streams[0], raw.cpu_ms * 1000, streams[1])
    await servers.set("primary")
    return found


_ALIKE = 100
"""Callers of one prompt."""
_PIECES = 400


async def _hits(client: Client, times: int) -> float:
    async with client as ask:
        prompt = fresh_prompt()
        await ask(prompt)

        async def caller() -> None:
            for _ in range(times // HELD):
                await ask(prompt)

        return await _cpu(lambda: asyncio.gather(*(caller() for _ in range(HELD))), times)


async def _coalesced(client: Client, many: int) -> float:
    async with client as ask:
        await ask(fresh_prompt())

        async def together() -> None:
            for _ in range(many):
                prompt = fresh_prompt()
                await asyncio.gather(*(ask(prompt) for _ in range(_ALIKE)))

        return await _cpu(together, many * _ALIKE)


async def _piece(client: AbstractAsyncContextManager[Read], streams: int) -> float:
    async with client as read:

        async def one_after_the_other() -> None:
            for _ in range(streams):
                if (await read(fresh_prompt())).text != text_of(_PIECES):
                    raise RuntimeError("another text came than was sent")

        await one_after_the_other()
        return await _cpu(one_after_the_other, streams * _PIECES)


async def _cpu(work: Callable[[], Awaitable[object]], times: int) -> float:
    """Microseconds of this process for each time."""
    gc.collect()
    began = time.process_time()
    await work()
    await asyncio.sleep(SETTLE)
    return (time.process_time() - began) / times * 1e6


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def _ratios(rounds: Rounds, name: str) -> list[float]:
    floor = _name(FLOOR, CASES[name].wire, CASES[name].loop)
    return [each[name].cpu_ms / each[floor].cpu_ms for each in rounds]


def _target(rounds: Rounds, name: str) -> Target:
    what = f"CPU of a chat to raw aiohttp's, {HELD} callers: {name}"
    return held(what, _ratios(rounds, name), TARGETS[CASES[name].wire])


def _result(measured: Mapping[int, Rounds], smalls: Smalls) -> Result:
    shown = measured[HELD]
    targets = {
        name: _target(shown, name)
        for loop in (ASYNCIO, UVLOOP)
        for wire in WIRES
        for name in (_name(OURS, wire, loop),)
    }
    hits = {
        loop: held(f"cache hit, {loop}", [each[loop].hit for each in smalls], HIT_US, " us", 1)
        for loop in (ASYNCIO, UVLOOP)
    }
    tables = [
        _table(callers, rounds, targets if callers == HELD else {})
        for callers, rounds in measured.items()
    ]
    bars = [(n, Spread.of([each[n].cpu_ms for each in shown]).median) for n in CASES]
    chart = Bars(f"CPU for one call, {HELD} callers", "milliseconds", bars)
    data = {"calls": measured, "small": smalls}
    all_targets = [*targets.values(), *hits.values()]
    return Result("overhead", HOW, [*tables, _small(smalls, hits)], chart, data, all_targets)


def _table(callers: int, rounds: Rounds, targets: Mapping[str, Target]) -> Table:
    rows = []
    for name in CASES:
        cpu = Spread.of([each[name].cpu_ms for each in rounds])
        p50 = Spread.of([each[name].p50_ms for each in rounds])
        rate = Spread.of([each[name].calls_per_second for each in rounds])
        ratio = Spread.of(_ratios(rounds, name)).show(2, "x")
        p95 = Spread.of([each[name].p95_ms for each in rounds])
        shown = [cpu.show(3), ratio, p50.show(), f"{p95.median:.2f}", f"{rate.median:.0f}"]
        rows.append([name, *shown, *([targets[name].cell] if name in targets else [""])])
    columns = ["", "CPU ms per call", "to raw aiohttp", "p50 ms", "p95 ms", "calls/s", "target"]
    return Table(f"**{callers} caller{'s' if callers > 1 else ''}**", columns, rows)


def _small(smalls: Smalls, hits: Mapping[str, Target]) -> Table:
    kinds = {
        "an answer from the cache": ("hit", "raw_call"),
        f"a call that {_ALIKE} callers make at once": ("coalesced", "raw_call"),
        f"a piece of a stream of {_PIECES}": ("piece", "raw_piece"),
    }
    rows = []
    for loop in (ASYNCIO, UVLOOP):
        rounds = [each[loop] for each in smalls]
        for kind, (mine, raw) in kinds.items():
            cpu = Spread.of([getattr(each, mine) for each in rounds]).show(1)
            ratios = [getattr(each, mine) / getattr(each, raw) for each in rounds]
            target = hits[loop].cell if mine == "hit" else ""
            rows.append([kind, loop, cpu, Spread.of(ratios).show(2, "x"), target])
    title = f"**Less than a call** ({HELD} callers; a stream at a time, its events all at once)"
    columns = ["", "event loop", "CPU us", "to raw aiohttp's call or piece", "target"]
    return Table(title, columns, rows)
