"""What a service in between costs: `aigateway serve` beside other gateways, in front of one vendor.

A round asks everybody in turn, the vendor itself first, with the same load generator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.chart import Bars
from benchmarks.clients import MODEL, OURS
from benchmarks.gateways import (
    CALLER_KEY,
    LANES,
    Make,
    Running,
    direct,
    every_lane,
    ours,
    peers,
    running,
)
from benchmarks.measure import Spread, percentile
from benchmarks.options import Options
from benchmarks.process import running as vendor_running
from benchmarks.processes import Memory
from benchmarks.report import Result, Table
from benchmarks.serve_load import DIALECTS, LoadProcess
from benchmarks.server import TEXT, Servers
from benchmarks.stream_server import text_of

HOW = (
    "A vendor that answers at once, the service and the load generator are processes of their own,"
    " on {cores} cores together. Chat without streaming in a closed loop, over connections that"
    " stay, every prompt new, {seconds:g} s at a time; the load generator is raw aiohttp."
    " aigateway has everything on (keys, accounts, cache, circuit, metrics, limiter, log), as"
    " `aigateway serve` comes; litellm's proxy runs as its page on production says (a master key,"
    " one worker, no database, only errors in the log), Portkey's gateway in production mode and"
    " without its console; it asks for no key and remembers nothing.{missing} Added is what a"
    " latency is above that of the same load on the vendor itself in the same round; with more"
    " callers than a service answers at a time it is waiting, mostly. CPU is that of all processes"
    " of the service, for one request. Reached are the requests that came to the vendor."
    " {rounds} (lowest to highest). Peak MB is the most that was resident in each process of the"
    " service, added up."
)
STREAMS = (
    "**{streams:,} streams at once on one worker**, each of {pieces} pieces over {seconds:g} s"
    " (fresh processes, {rounds}; text and end of each are compared)"
)
DIRECT = "the vendor itself"
FIRST = f"{OURS} serve"
PIECES = 20
DOOR_PAUSE_MS = 20
DOOR_TARGET = 1.3
"""Times the CPU of `/v1/chat/completions` in front of the same provider, at most."""
NATIVE = {("Anthropic", "messages"), ("OpenAI", "responses")}
"""Providers that get the body as their caller wrote it."""
DOORS = {
    "whole": "**The same request through each endpoint, whole** (16 callers, {seconds:g} s;"
    " ratios to `/v1/chat/completions` in front of the same provider in the same round)",
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
        cpu_ms: Of the service, for one request; 0 without one.
        seconds: All of it.
    """

    sent: int
    reached: int | None
    errors: Mapping[str, int]
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
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
    door_seconds: float
    door_streams: int

    @classmethod
    def of(cls, options: Options) -> Sizes:
        """The sizes for this run."""
        if options.quick:
            return cls((1, 16), 0.3, 1, 50, 1, 20, 0.3, 20)
        return cls((1, 16, 100), 3.0, 5, 1000, 2, 250, 1.0, 200)


async def run(options: Options) -> Result:
    sizes = Sizes.of(options)
    found, missing = peers()
    async with LoadProcess.started() as load:
        chats, memory = await _chats({**ours(), **found}, load, sizes)
        streams, held = await _streams({FIRST: ours()[FIRST], **found}, load, sizes)
        doors = await _doors(load, sizes)
    left_out = f" Not installed and left out: {', '.join(missing)}." if missing else ""
    several = f"Medians of {sizes.rounds} interleaved rounds" if sizes.rounds > 1 else "One round"
    how = HOW.format(cores=os.cpu_count(), seconds=sizes.seconds, missing=left_out, rounds=several)
    tables = [
        *(_table(callers, rounds) for callers, rounds in chats.items()),
        _memory_table(memory),
        _stream_table(streams, held, sizes),
        *(_door_table(how, rounds, sizes) for how, rounds in doors.items()),
    ]
    shown = chats[16]
    bars = [(n, Spread.of([each[n].cpu_ms for each in shown]).median) for n in memory]
    chart = Bars("CPU of the service for one request, 16 callers", "milliseconds", bars)
    data = {"chats": chats, "memory": memory, "streams": streams, "memory_of_streams": held}
    data["doors"] = doors
    return Result("serve", how, tables, chart, data)


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
            asked = await _ordered(load, service, "loop", order)
            return _all_reached(asked, (await servers.state())["received"])

        for service in services.values():
            await ask(service, 16)  # what is loaded or compiled late is there then
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


async def _ordered(
    load: LoadProcess, service: Running, kind: str, order: Mapping[str, Any]
) -> Asked:
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
        cpu_ms=(after - before) / came["sent"] * 1000,
        seconds=came["seconds"],
    )


def _headers(service: Running) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {CALLER_KEY}",
        **service.headers,
    }


def _memory(services: Mapping[str, Running]) -> dict[str, Memory]:
    return {name: each.processes.memory() for name, each in services.items() if each.processes}


# ── streams ──────────────────────────────────────────────────────────────────────────────────


async def _streams(
    gateways: Mapping[str, Make], load: LoadProcess, sizes: Sizes
) -> tuple[list[Round], dict[str, Memory]]:
    with vendor_running("benchmarks.stream_server") as ports:
        script = f"chunks-{PIECES}-pause-{sizes.pause_ms}"
        vendor = f"http://127.0.0.1:{ports['vendor']}/{script}"
        async with contextlib.AsyncExitStack() as stack:
            services = {DIRECT: direct(vendor)}
            for name, make in gateways.items():
                services[name] = await stack.enter_async_context(running(make, vendor))
            order = {"streams": sizes.streams, "text": text_of(PIECES)}
            rounds = [
                {
                    name: await _ordered(load, service, "streams", order)
                    for name, service in services.items()
                }
                for _ in range(sizes.stream_rounds)
            ]
            return rounds, _memory(services)


# ── the doors ────────────────────────────────────────────────────────────────────────────────


async def _doors(load: LoadProcess, sizes: Sizes) -> dict[str, list[Round]]:
    """Ask each endpoint for the same, whole and streamed, in front of each kind of provider."""
    whole = {"callers": 16, "seconds": sizes.door_seconds, "text": TEXT}
    streamed = {"streams": sizes.door_streams, "text": text_of(PIECES)}
    script = f"chunks-{PIECES}-pause-{DOOR_PAUSE_MS}"
    async with Servers.started() as servers:
        rounds = {
            "whole": await _through_doors(load, servers.roots["primary"], "loop", whole, sizes)
        }
    with vendor_running("benchmarks.stream_server") as ports:
        vendor = f"http://127.0.0.1:{ports['vendor']}/{script}"
        rounds["streamed"] = await _through_doors(load, vendor, "streams", streamed, sizes)
    return rounds


async def _through_doors(
    load: LoadProcess, vendor: str, kind: str, order: Mapping[str, Any], sizes: Sizes
) -> list[Round]:
    async with running(every_lane, vendor) as service:

        async def ask(lane: str, dialect: str) -> Asked:
            root = service.url.removesuffix(DIALECTS["chat"].path)
            door = dataclasses.replace(service, url=root + DIALECTS[dialect].path)
            model = {"model": LANES[lane], "dialect": dialect}
            return await _ordered(load, door, kind, {**order, **model})

        pairs = [(lane, dialect) for lane in LANES for dialect in DIALECTS]
        for pair in pairs:
            await ask(*pair)  # what is loaded late, and what is learned of the server
        return [
            {f"{lane}: {dialect}": await ask(lane, dialect) for lane, dialect in pairs}
            for _ in range(sizes.rounds)
        ]


# ── what is shown ────────────────────────────────────────────────────────────────────────────


def _table(callers: int, rounds: Sequence[Round]) -> Table:
    columns = ["", "requests/s", "p50 ms", "added p50 ms", "added p99 ms", "CPU ms per request"]
    columns += ["errors", "reached"]
    rows = [_row(name, rounds) for name in rounds[0]]
    return Table(f"**{callers} caller{'s' if callers > 1 else ''}**", columns, rows)


def _row(name: str, rounds: Sequence[Round]) -> list[str]:
    mine = [each[name] for each in rounds]
    rate = Spread.of([each.per_second for each in mine]).show(0)
    p50 = f"{Spread.of([each.p50_ms for each in mine]).median:.2f}"
    sent = sum(each.sent for each in mine)
    counts = [str(_errors(mine)), f"{sum(each.reached or 0 for each in mine):,} of {sent:,}"]
    if name == DIRECT:
        return [name, rate, p50, "", "", "", *counts]
    added = [
        Spread.of([getattr(each[name], which) - getattr(each[DIRECT], which) for each in rounds])
        for which in ("p50_ms", "p99_ms")
    ]
    cpu = Spread.of([each.cpu_ms for each in mine])
    return [name, rate, p50, *(each.show() for each in added), cpu.show(), *counts]


def _door_table(how: str, rounds: Sequence[Round], sizes: Sizes) -> Table:
    title = DOORS[how].format(
        seconds=sizes.door_seconds, streams=sizes.door_streams, pieces=PIECES, pause=DOOR_PAUSE_MS
    )
    rows = []
    for lane in LANES:
        for dialect, spoken in DIALECTS.items():
            mine = [each[f"{lane}: {dialect}"] for each in rounds]
            base = [each[f"{lane}: chat"] for each in rounds]
            ratios = Spread.of([m.cpu_ms / b.cpu_ms for m, b in zip(mine, base, strict=True)])
            met = "met" if ratios.median <= DOOR_TARGET else "missed"
            way = "as it is" if (lane, dialect) in NATIVE else "translated"
            cpu = Spread.of([each.cpu_ms for each in mine])
            compared = ["", "", ""] if dialect == "chat" else [way, ratios.show(), met]
            shown = [f"`{spoken.path}`", cpu.show(), *compared]
            rows.append([lane, *shown, str(_errors(mine))])
    columns = [
        "provider",
        "endpoint",
        "goes",
        "CPU ms per request",
        "ratio",
        f"under {DOOR_TARGET}x",
    ]
    return Table(title, [*columns, "errors"], rows)


def _errors(asked: Sequence[Asked]) -> int:
    return sum(sum(each.errors.values()) for each in asked)


def _memory_table(memory: Mapping[str, Memory]) -> Table:
    rows = [
        [name, f"{each.peak:.0f}", f"{each.resident:.0f}", f"{each.shared_once:.0f}"]
        for name, each in memory.items()
    ]
    columns = ["", "peak MB", "MB after", "shared pages counted once"]
    return Table("**Memory of the service, all of the above**", columns, rows)


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
            cpu = Spread.of([each.cpu_ms for each in mine])
            cost = [cpu.show(1), f"{held[name].peak:.0f}", f"{held[name].resident:.0f}"]
        rows.append([name, f"{_errors(mine)} of {sum(e.sent for e in mine):,}", *shown, *cost])
    columns = ["", "errors", "seconds until all ended", "first piece p50 ms", "p99 ms"]
    return Table(title, [*columns, "CPU ms per stream", "peak MB", "MB after"], rows)
