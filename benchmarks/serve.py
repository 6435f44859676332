"""What a service in between costs: `aigateway serve` beside other gateways, in front of one vendor.

A round asks each in turn, the vendor itself first, with the same load generator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.chart import Bars
from benchmarks.clients import MODEL, OURS
from benchmarks.gateways import (
    CALLER_KEY,
    FERROGW,
    LANES,
    SMG,
    Make,
    Running,
    aigateway,
    direct,
    every_door,
    ours,
    peers,
    running,
)
from benchmarks.measure import Spread, held, percentile
from benchmarks.options import Options
from benchmarks.process import running as vendor_running
from benchmarks.processes import Memory
from benchmarks.report import Result, Table, Target
from benchmarks.serve_load import DIALECTS, LoadProcess
from benchmarks.server import TEXT, Servers
from benchmarks.stream_server import text_of

HOW = (
    "A vendor that answers at once, the service and the load generator are processes of their own,"
    " on {cores} cores together. Chat without streaming in a closed loop, over connections that"
    " stay, every prompt new, {seconds:g} s at a time; vendor and load generator are bare protocols"
    " on uvloop, and each answer's text is compared. aigateway has everything on (keys, accounts,"
    " cache, circuit, metrics, limiter, log), as `aigateway serve` comes; ferrogw has a master key"
    " and its circuit breaker, and a rate limit that is never reached, smg a key and no history;"
    " litellm's proxy runs as its page on production says (a master key, one worker, no database,"
    " only errors in the log), Portkey's gateway in production mode and without its console; it"
    " asks for no key. None of these remembers an answer.{missing} Added is what a latency is above"
    " that of the same load on the vendor itself in the same round; with more callers than a"
    " service answers at a time it is waiting, mostly. CPU is that of all processes and threads of"
    " the service, for one request; its ratio is to ferrogw in the same round. Reached are the"
    " requests that came to the vendor. {rounds} (lowest to highest). Peak MB is the most that was"
    " resident in each process of the service, added up."
)
STREAMS = (
    "**{streams:,} streams at once on one worker**, each of {pieces} pieces over {seconds:g} s"
    " (fresh processes, {rounds}; text and end of each are compared)"
)
SLOW = (
    "**{streams:,} slow streams on one worker**: they begin evenly over {spread:g} s, and each says"
    " {pieces} pieces, one every {pause} ms, so all are open when the last one begins ({rounds})."
    " Unlike a burst, this shows what a stream that begins waits for where many others are under"
    " way: the service keeps up, and what is added is its own work and its turn behind others'"
    " pieces. Added is in the same round above the vendor itself; ratios are medians"
)
SLOW_MS = 250.0
"""The 99th percentile of the time to a slow stream's first piece, at most."""
DIRECT = "the vendor itself"
FIRST = f"{OURS} serve"
TARGETS = {1: 2.0, 8: 1.5, 64: 1.5}
"""Times ferrogw's CPU for one request, at most, by the number of callers."""
SHOWN = 16
"""Callers, in the chart."""
WORKERS = (1, 2, 4)
WORKER_MB, FURTHER_MB = 200.0, 10.0
"""What one worker may hold, and each further one beyond it; a page that several share once."""
PIECES = 20
DOOR_PAUSE_MS = 20
DOOR_TARGET = 1.3
"""Times the CPU of `/v1/chat/completions` in front of the same provider, at most."""
NATIVE = {("Anthropic", "messages"), ("OpenAI", "responses")}
"""Providers that get the body as their caller wrote it."""
DOORS = {
    "whole": "**The same request through each endpoint, whole** (16 callers, {seconds:g} s;"
    " ratios to `/v1/chat/completions` in front of the same provider in the same round, and to the"
    " same endpoint of ferrogw and smg where they have it)",
    "streamed": "**The same, streamed** ({streams} streams at once, each of {pieces} pieces,"
    " {pause} ms apart; text and end of each are compared)",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one load on one service was.

    Attributes:
        sent: Requests, those to warm up included.
        reached: Those that came to the vendor; None where that is not counted.
        errors: What went wrong, and how often.
        per_second: Answers, of the requests after the warm ones.
        p50_ms: Latency; of a stream until its first piece, head and role included.
        p99_ms: The same.
        cpu_us: Of the service, for one request; 0 without one.
        seconds: All of it.
    """

    sent: int
    reached: int | None
    errors: Mapping[str, int]
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    seconds: float


Round = Mapping[str, Asked]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    levels: Sequence[int]
    seconds: float
    rounds: int
    streams: int
    stream_rounds: int
    pause_ms: int
    slow_streams: int
    slow_pause_ms: int
    door_seconds: float
    door_streams: int

    @classmethod
    def of(cls, options: Options) -> Sizes:
        """The sizes for this run."""
        if options.quick:
            return cls((1, 8, SHOWN), 0.2, 1, 50, 1, 20, 50, 20, 0.2, 20)
        return cls((1, 8, SHOWN, 64), 1.0, 5, 1000, 2, 250, 2000, 500, 0.6, 200)

    @property
    def slow_spread(self) -> float:
        """Seconds in which the slow streams begin: as long as each of them takes."""
        return PIECES * self.slow_pause_ms / 1000


async def run(options: Options) -> Result:
    sizes = Sizes.of(options)
    found, missing = peers()
    async with LoadProcess.started() as load:
        chats, memory = await _chats({**ours(), **found}, load, sizes)
        streams, held_by_streams = await _streams({FIRST: ours()[FIRST], **found}, load, sizes)
        slow = await _slow_streams({FIRST: ours()[FIRST], **found}, load, sizes)
        doors = await _doors(load, sizes)
        workers = await _workers(load)
    left_out = f" Not installed and left out: {', '.join(missing)}." if missing else ""
    several = f"Medians of {sizes.rounds} interleaved rounds" if sizes.rounds > 1 else "One round"
    how = HOW.format(cores=os.cpu_count(), seconds=sizes.seconds, missing=left_out, rounds=several)
    targets = [
        *(_held(callers, rounds) for callers, rounds in chats.items() if callers in TARGETS),
        held("first piece of slow streams, p99", _p99s(slow, FIRST), SLOW_MS, " ms", 0),
        held("memory of one worker", [workers[1].shared_once], WORKER_MB, " MB", 0),
        held("memory of each further worker", [_further(workers, 1, 4)], FURTHER_MB, " MB", 1),
    ]
    tables = [
        *(_table(callers, rounds) for callers, rounds in chats.items()),
        _memory_table(memory),
        _workers_table(workers),
        _stream_table(streams, held_by_streams, sizes),
        _slow_table(slow, sizes),
        *(_door_table(how, rounds, sizes) for how, rounds in doors.items()),
    ]
    bars = [(n, Spread.of([each[n].cpu_us for each in chats[SHOWN]]).median) for n in memory]
    chart = Bars(f"CPU of the service for one request, {SHOWN} callers", "microseconds", bars)
    data = {
        "chats": chats,
        "memory": memory,
        "workers": workers,
        "streams": streams,
        "memory_of_streams": held_by_streams,
        "slow_streams": slow,
        "doors": doors,
    }
    return Result("serve", how, tables, chart, data, targets)


# ── chats ────────────────────────────────────────────────────────────────────────────────────


async def _chats(
    gateways: Mapping[str, Make], load: LoadProcess, sizes: Sizes
) -> tuple[dict[int, list[Round]], dict[str, Memory]]:
    async with Servers.started() as servers, contextlib.AsyncExitStack() as stack:
        vendor = servers.roots["primary"]
        services = {DIRECT: direct(vendor)}
        for name, make in gateways.items():
            services[name] = await stack.enter_async_context(running(make, vendor))

        async def ask(service: Running, callers: int) -> Asked:
            await servers.set("primary")  # counts anew
            order = {"callers": callers, "seconds": sizes.seconds, "text": TEXT}
            asked = await ordered(load, service, order)
            return _all_reached(asked, (await servers.state())["received"])

        for service in services.values():
            await ask(service, SHOWN)  # what is loaded or compiled late is there then
        chats: dict[int, list[Round]] = {callers: [] for callers in sizes.levels}
        for _ in range(sizes.rounds):
            for callers, rounds in chats.items():
                rounds.append({name: await ask(each, callers) for name, each in services.items()})
        return chats, _memory(services)


def _all_reached(asked: Asked, reached: int) -> Asked:
    """An answer that no vendor gave would be no measurement."""
    if not asked.errors and reached != asked.sent:
        raise RuntimeError(f"{asked.sent} requests were answered, {reached} reached the vendor")
    return dataclasses.replace(asked, reached=reached)


async def ordered(
    load: LoadProcess, service: Running, order: Mapping[str, Any], kind: str = "loop"
) -> Asked:
    """Let the load generator do something with a service, and see what it costs the service."""
    before = service.processes.cpu_seconds() if service.processes else 0.0
    given = {"url": service.url, "headers": _headers(service), "model": MODEL, **order}
    came = await load.order(kind, **given)
    after = service.processes.cpu_seconds() if service.processes else 0.0
    latencies = came["latencies"] or [0.0]  # no answer at all
    return Asked(
        sent=came["sent"],
        reached=None,
        errors=came["errors"],
        per_second=len(latencies) / came["seconds"],
        p50_ms=percentile(latencies, 0.5) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        cpu_us=(after - before) / came["sent"] * 1e6,
        seconds=came["seconds"],
    )


def _headers(service: Running) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {CALLER_KEY}",
        **service.headers,
    }


async def _workers(load: LoadProcess) -> dict[int, Memory]:
    """What fresh services with so many workers hold after the same short load."""
    found = {}
    async with Servers.started() as servers:
        for workers in WORKERS:
            async with running(aigateway(workers), servers.roots["primary"]) as service:
                order = {"callers": 64, "seconds": 0.3, "text": TEXT}
                await ordered(load, service, order)
                assert service.processes is not None
                found[workers] = service.processes.memory()
    return found


def _further(workers: Mapping[int, Memory], few: int, many: int) -> float:
    """Megabytes of each worker beyond the first ones."""
    return (workers[many].shared_once - workers[few].shared_once) / (many - few)


def _memory(services: Mapping[str, Running]) -> dict[str, Memory]:
    return {name: each.processes.memory() for name, each in services.items() if each.processes}


# ── streams ──────────────────────────────────────────────────────────────────────────────────


async def _streams(
    gateways: Mapping[str, Make], load: LoadProcess, sizes: Sizes
) -> tuple[list[Round], dict[str, Memory]]:
    order = {"streams": sizes.streams}
    return await _streamed(gateways, load, order, sizes.pause_ms, sizes.stream_rounds)


async def _slow_streams(
    gateways: Mapping[str, Make], load: LoadProcess, sizes: Sizes
) -> list[Round]:
    compared = {name: make for name, make in gateways.items() if name in {FIRST, FERROGW}}
    order = {"streams": sizes.slow_streams, "spread": sizes.slow_spread}
    rounds, _ = await _streamed(compared, load, order, sizes.slow_pause_ms, sizes.stream_rounds)
    return rounds


async def _streamed(
    gateways: Mapping[str, Make],
    load: LoadProcess,
    order: Mapping[str, Any],
    pause_ms: int,
    many: int,
) -> tuple[list[Round], dict[str, Memory]]:
    with vendor_running("benchmarks.stream_server") as ports:
        vendor = f"http://127.0.0.1:{ports['vendor']}/chunks-{PIECES}-pause-{pause_ms}"
        async with contextlib.AsyncExitStack() as stack:
            services = {DIRECT: direct(vendor)}
            for name, make in gateways.items():
                services[name] = await stack.enter_async_context(running(make, vendor))
            whole = {**order, "text": text_of(PIECES)}
            rounds = [
                {
                    name: await ordered(load, service, whole, "streams")
                    for name, service in services.items()
                }
                for _ in range(many)
            ]
            return rounds, _memory(services)


# ── the doors ────────────────────────────────────────────────────────────────────────────────


async def _doors(load: LoadProcess, sizes: Sizes) -> dict[str, list[Round]]:
    """Ask each endpoint for the same, whole and streamed, in front of each kind of provider."""
    whole = {"callers": SHOWN, "seconds": sizes.door_seconds, "text": TEXT}
    streamed = {"streams": sizes.door_streams, "text": text_of(PIECES)}
    script = f"chunks-{PIECES}-pause-{DOOR_PAUSE_MS}"
    async with Servers.started() as servers:

        async def counted(door: Running, order: Mapping[str, Any]) -> Asked:
            await servers.set("primary")
            asked = await ordered(load, door, order)
            return _all_reached(asked, (await servers.state())["received"])

        root = servers.roots["primary"]
        rounds = {"whole": await _through_doors(root, counted, whole, sizes)}
    with vendor_running("benchmarks.stream_server") as ports:
        vendor = f"http://127.0.0.1:{ports['vendor']}/{script}"
        read = functools.partial(ordered, load, kind="streams")
        rounds["streamed"] = await _through_doors(vendor, read, streamed, sizes)
    return rounds


async def _through_doors(
    vendor: str,
    ask: Callable[[Running, Mapping[str, Any]], Awaitable[Asked]],
    order: Mapping[str, Any],
    sizes: Sizes,
) -> list[Round]:
    async with contextlib.AsyncExitStack() as stack:
        doors: dict[str, tuple[Running, Mapping[str, Any]]] = {}
        for name, make, models in every_door():
            service = await stack.enter_async_context(running(make, vendor))
            root = service.url.removesuffix(DIALECTS["chat"].path)
            for (lane, dialect), model in models.items():
                door = dataclasses.replace(service, url=root + DIALECTS[dialect].path)
                more = {"model": model, "dialect": dialect}
                doors[_door(name, lane, dialect)] = door, {**order, **more}
        for each in doors.values():
            await ask(*each)  # what is loaded late, and what is learned of the server
        return [
            {door: await ask(*each) for door, each in doors.items()} for _ in range(sizes.rounds)
        ]


def _door(service: str, lane: str, dialect: str) -> str:
    return f"{service}, {lane}: {dialect}"


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def _ratios(rounds: Sequence[Round], name: str, to: str) -> list[float]:
    return [each[name].cpu_us / each[to].cpu_us for each in rounds]


def _held(callers: int, rounds: Sequence[Round]) -> Target:
    what = f"CPU of the service for one request, {_callers(callers)}, to ferrogw"
    return held(what, _ratios(rounds, FIRST, FERROGW), TARGETS[callers])


def _callers(callers: int) -> str:
    return f"{callers} caller{'s' if callers > 1 else ''}"


def _table(callers: int, rounds: Sequence[Round]) -> Table:
    columns = ["", "requests/s", "p50 ms", "added p50 ms", "added p99 ms", "CPU us per request"]
    columns += ["to ferrogw", "target", "errors", "reached"]
    rows = [_row(name, rounds) for name in rounds[0]]
    if callers in TARGETS:
        rows[list(rounds[0]).index(FIRST)][7] = _held(callers, rounds).cell
    return Table(f"**{_callers(callers)}**", columns, rows)


def _row(name: str, rounds: Sequence[Round]) -> list[str]:
    mine = [each[name] for each in rounds]
    rate = Spread.of([each.per_second for each in mine]).show(0)
    p50 = f"{Spread.of([each.p50_ms for each in mine]).median:.2f}"
    sent = sum(each.sent for each in mine)
    counts = [str(_errors(mine)), f"{sum(each.reached or 0 for each in mine):,} of {sent:,}"]
    if name == DIRECT:
        return [name, rate, p50, "", "", "", "", "", *counts]
    added = [
        Spread.of([getattr(each[name], which) - getattr(each[DIRECT], which) for each in rounds])
        for which in ("p50_ms", "p99_ms")
    ]
    cpu = Spread.of([each.cpu_us for each in mine]).show(0)
    ratio = Spread.of(_ratios(rounds, name, FERROGW)).show(2, "x")
    return [name, rate, p50, *(each.show() for each in added), cpu, ratio, "", *counts]


def _door_table(how: str, rounds: Sequence[Round], sizes: Sizes) -> Table:
    title = DOORS[how].format(
        seconds=sizes.door_seconds, streams=sizes.door_streams, pieces=PIECES, pause=DOOR_PAUSE_MS
    )
    rows = []
    for lane in LANES:
        for dialect, spoken in DIALECTS.items():
            mine = _door(OURS, lane, dialect)
            ratios = Spread.of(_ratios(rounds, mine, _door(OURS, lane, "chat")))
            met = "met" if ratios.median <= DOOR_TARGET else "missed"
            way = "as it is" if (lane, dialect) in NATIVE else "translated"
            compared = ["", "", ""] if dialect == "chat" else [way, ratios.show(2, "x"), met]
            others = [_door(peer, lane, dialect) for peer in (FERROGW, SMG)]
            found = [each for each in others if each in rounds[0]]
            errors = _errors([each[door] for each in rounds for door in (mine, *found)])
            to_others = [
                Spread.of(_ratios(rounds, mine, each)).show(2, "x") if each in found else ""
                for each in others
            ]
            cpu = Spread.of([each[mine].cpu_us for each in rounds]).show(0)
            rows.append([lane, f"`{spoken.path}`", cpu, *compared, *to_others, str(errors)])
    columns = ["provider", "endpoint", "CPU us per request", "goes", "ratio"]
    columns += [f"under {DOOR_TARGET}x", "to ferrogw", "to smg", "errors of all"]
    return Table(title, columns, rows)


def _errors(asked: Sequence[Asked]) -> int:
    return sum(sum(each.errors.values()) for each in asked)


def _memory_table(memory: Mapping[str, Memory]) -> Table:
    rows = [
        [name, f"{each.peak:.0f}", f"{each.resident:.0f}", f"{each.shared_once:.0f}"]
        for name, each in memory.items()
    ]
    columns = ["", "peak MB", "MB after", "shared pages counted once"]
    return Table("**Memory of the service, all of the above**", columns, rows)


def _workers_table(workers: Mapping[int, Memory]) -> Table:
    before = {2: 1, 4: 2}
    rows = [
        [
            str(count),
            f"{memory.resident:.0f}",
            f"{memory.shared_once:.0f}",
            f"{_further(workers, before[count], count):.1f}" if count in before else "",
        ]
        for count, memory in workers.items()
    ]
    title = "**Memory by workers** (fresh processes after the same short load; the supervisor of"
    title += " several workers included)"
    columns = ["workers", "MB", "shared pages counted once", "each further one"]
    return Table(title, columns, rows)


def _stream_table(rounds: Sequence[Round], held: Mapping[str, Memory], sizes: Sizes) -> Table:
    title = STREAMS.format(
        streams=sizes.streams,
        pieces=PIECES,
        seconds=PIECES * sizes.pause_ms / 1000,
        rounds=f"{len(rounds)} rounds" if len(rounds) > 1 else "one round",
    )
    rows = []
    for name in rounds[0]:
        mine = [each[name] for each in rounds]
        shown = [
            Spread.of([each.seconds for each in mine]).show(1),
            Spread.of([each.p50_ms for each in mine]).show(0),
            Spread.of([each.p99_ms for each in mine]).show(0),
        ]
        cost = ["", "", ""]
        if name in held:
            cpu = Spread.of([each.cpu_us / 1000 for each in mine])
            cost = [cpu.show(1), f"{held[name].peak:.0f}", f"{held[name].resident:.0f}"]
        rows.append([name, f"{_errors(mine)} of {sum(e.sent for e in mine):,}", *shown, *cost])
    columns = ["", "errors", "seconds until all ended", "first piece p50 ms", "p99 ms"]
    return Table(title, [*columns, "CPU ms per stream", "peak MB", "MB after"], rows)


def _p99s(rounds: Sequence[Round], name: str) -> list[float]:
    return [each[name].p99_ms for each in rounds]


def _slow_table(rounds: Sequence[Round], sizes: Sizes) -> Table:
    title = SLOW.format(
        streams=sizes.slow_streams,
        spread=sizes.slow_spread,
        pieces=PIECES,
        pause=sizes.slow_pause_ms,
        rounds=f"{len(rounds)} rounds" if len(rounds) > 1 else "one round",
    )
    rows = []
    for name in rounds[0]:
        mine = [each[name] for each in rounds]
        row = [name, f"{_errors(mine)} of {sum(e.sent for e in mine):,}"]
        row += [Spread.of([each.p50_ms for each in mine]).show(1)]
        row += [Spread.of([each.p99_ms for each in mine]).show(1)]
        if name == DIRECT:
            rows.append([*row, "", "", "", "", ""])
            continue
        for which in ("p50_ms", "p99_ms"):
            more = [getattr(e[name], which) - getattr(e[DIRECT], which) for e in rounds]
            row.append(Spread.of(more).show(1))
        for to in (DIRECT, FERROGW):
            known = to in rounds[0]
            ratios = [each[name].p99_ms / each[to].p99_ms for each in rounds] if known else []
            row.append(f"{Spread.of(ratios).median:.2f}x" if ratios else "")
        row.append(Spread.of([each.cpu_us / 1000 for each in mine]).show(2))
        rows.append(row)
    columns = ["", "errors", "first piece p50 ms", "p99 ms", "added p50 ms", "added p99 ms"]
    columns += ["p99 to the vendor", "p99 to ferrogw", "CPU ms per stream"]
    return Table(title, columns, rows)
