"""A soak test: many callers, vendors that fall ill and recover, for as long as you like.

    python -m tests.soak [--minutes 2] [--seed 1] [--callers 200]

One gateway asks four simulated vendors over real HTTP. The run goes by rounds: callers ask while
vendors misbehave; then all is quiet, and what the process holds is measured. It fails if an answer
is not the caller's own, the gateway's books do not balance with the callers', memory grows with
the requests, or anything is left behind when the gateway is closed.

The seed fixes when each vendor has which trouble and what each caller asks; how the two meet
depends on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aigateway import AsyncGateway, GatewaySettings, ProviderStatus
from aigateway.events import CircuitChanged, Event
from aigateway.wires.loading import load_litellm
from tests.soak.callers import Books, Crowd
from tests.soak.leftovers import Complaints, Footprint, open_files
from tests.soak.vendors import Vendors

ROUND_SECONDS = 10.0
PROGRESS_SECONDS = 5.0
LEAST_ROUNDS = 5

SETTINGS = GatewaySettings(
    timeout=3.0,
    attempt_timeout=0.8,
    first_token_timeout=0.4,
    idle_timeout=0.4,
    hedge=True,
    hedge_delay_seconds=0.2,
    hedge_max_percent=10.0,
    reset_timeout_seconds=0.5,
    max_open_seconds=2.0,
    max_retry_wait_seconds=1.0,
    max_concurrency=100,
    cache_max_entries=500,
)
"""Everything short, so that every rule is met many times; fewer places than callers."""

WARM_UP_ROUNDS = 2
"""Until then caches, pools and percentile windows fill, and the libraries load what they load."""

MOST_OBJECTS_PER_REQUEST = 0.05
OBJECTS_SLACK = 3_000
"""Something forgotten at each request, or at each failed one, is at least one object for each of
those; a dictionary here and there that grows with what happened for the first time is not."""

MOST_BYTES_PER_REQUEST = 256
BYTES_SLACK = 24 * 2**20
"""The smallest request there is takes more. The slack is for the allocator: it gives memory back
by whole arenas, and how full those are depends on the last wave of requests."""

SETTLING_SECONDS = 5.0


class EventCounts:
    """A hook: how often what happened."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def on_event(self, event: Event) -> None:
        """Count by name; circuits also by provider, to see that all took part."""
        self.counts[event.name] += 1
        if isinstance(event, CircuitChanged):
            self.counts[f"{event.name} {event.provider}"] += 1


@dataclass(slots=True)
class Run:
    """One soak test and what it found.

    Attributes:
        problems: Why it fails; none if it does not.
        footprints: What the process held after each round.
    """

    vendors: Vendors
    gateway: AsyncGateway
    books: Books
    events: EventCounts
    problems: list[str]
    footprints: list[Footprint]

    async def go(self, rounds: int, callers: int, seed: int) -> None:
        """Run the rounds, and see at the end that every vendor is asked again."""
        crowd = Crowd(self.gateway, self.books, seed)
        progress = asyncio.create_task(self._tell())
        try:
            for number in range(rounds):
                await asyncio.gather(
                    crowd.ask_for(number, callers, ROUND_SECONDS),
                    self.vendors.misbehave(number, ROUND_SECONDS),
                )
                await self._quiet(number)
            await self._all_recover()
        finally:
            progress.cancel()

    async def _quiet(self, number: int) -> None:
        """Measure when nothing is in flight; callers have all been answered already."""
        own = 2  # this task and the progress line's
        settled = await _until(
            lambda: len(asyncio.all_tasks()) == own and not self.gateway.get_metrics()["in_flight"]
        )
        if not settled:
            names = sorted(task.get_name() for task in asyncio.all_tasks())
            self.problems.append(f"round {number}: tasks left when all were answered: {names}")
        footprint = Footprint.now(self.books.asked.total())
        self.footprints.append(footprint)
        print(
            f"round {number}: quiet; {footprint.requests} requests,"
            f" {footprint.resident_bytes / 2**20:.1f} MB, {footprint.objects} objects,"
            f" {footprint.tasks} tasks, {footprint.files} files",
            flush=True,
        )

    async def _all_recover(self) -> None:
        async def answers(provider: ProviderStatus) -> bool:
            self.books.asked["at the end"] += 1
            try:
                if "chat" in provider.operations:
                    await self.gateway.chat("Well again?", model=provider.name, cache=False)
                else:
                    await self.gateway.embed("Well again?", model=provider.name)
            except Exception as error:  # noqa: BLE001 - asked again, until it is too late
                self.books.outcomes[type(error).__name__] += 1
                return False
            self.books.outcomes["answered"] += 1
            return True

        for status in self.gateway.providers:
            for _ in range(20):
                if await answers(status):
                    break
                await asyncio.sleep(0.25)
            else:
                self.problems.append(f"{status.name} is well but is not asked again")

    async def _tell(self) -> None:
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            circuits = ", ".join(str(p.circuit_state) for p in self.gateway.providers)
            metrics = self.gateway.get_metrics()
            print(
                f"{asyncio.get_running_loop().time() - began:5.0f} s"
                f"  {metrics['total_requests']} requests, {metrics['failures']} failed,"
                f" {metrics['in_flight']} in flight, {metrics['waiting']} waiting; {circuits}",
                flush=True,
            )


async def soak(rounds: int, callers: int, seed: int) -> bool:
    """Run it, print what happened, and say whether all was well."""
    problems: list[str] = []
    with Complaints() as complaints:
        async with Vendors.started(seed) as vendors:
            await load_litellm()
            files = open_files()
            events = EventCounts()
            gateway = AsyncGateway(vendors.configs, settings=SETTINGS, hooks=[events])
            run = Run(vendors, gateway, Books(), events, problems, [])
            async with gateway:
                await run.go(rounds, callers, seed)
            problems += await _left_behind(vendors, files)
        complaints.collect()
    problems += _wrong_answers(run.books)
    problems += _books_that_differ(gateway, run.books)
    problems += _growth(run.footprints)
    problems += [f"{count} x {what}" for what, count in complaints.heard.items()]
    _summary(run)
    print("\nall is well" if not problems else "\nPROBLEMS\n  " + "\n  ".join(problems))
    return not problems


async def _left_behind(vendors: Vendors, before: dict[str, str]) -> list[str]:
    """What is still open when the gateway is closed, and has had a moment to end."""
    problems = []
    for _ in range(int(SETTLING_SECONDS / 0.05)):
        sockets = await vendors.open_connections()
        if not sockets:
            break
        await asyncio.sleep(0.05)
    else:
        problems.append(f"{sockets} connections are still open at the vendors")
    if not await _until(lambda: len(asyncio.all_tasks()) == 1):
        names = sorted(task.get_name() for task in asyncio.all_tasks())
        problems.append(f"tasks are left: {names}")
    if not await _until(lambda: open_files().keys() <= before.keys()):
        left = {name: what for name, what in open_files().items() if name not in before}
        problems.append(f"files are left open: {left}")
    return problems


def _wrong_answers(books: Books) -> list[str]:
    return [f"{count} x {what}" for what, count in books.findings.items()]


def _books_that_differ(gateway: AsyncGateway, books: Books) -> list[str]:
    """Compare what callers saw with what the gateway counted."""
    metrics: Mapping[str, Any] = gateway.get_metrics()
    answered = ("served", "cache_hits", "stale_answers", "coalesced")
    asked, failures = books.asked.total(), books.failures
    sums = {
        "requests": (metrics["total_requests"], asked),
        "failures": (metrics["failures"], failures),
        # One who leaves a stream at its last word is served or cancelled, as it happens.
        "answers and cancellations": (
            sum(metrics[name] for name in (*answered, "cancelled")),
            asked - failures,
        ),
        "calls in flight": (metrics["in_flight"], 0),
        "requests waiting": (metrics["waiting"], 0),
    }
    for name, counts in metrics["providers"].items():
        ended = counts["successes"] + sum(counts["failures"].values())
        sums[f"attempts at {name}"] = (counts["attempts"], ended)
    return [
        f"{what}: the gateway counted {ours}, the callers {theirs}"
        for what, (ours, theirs) in sums.items()
        if ours != theirs
    ]


def _growth(footprints: list[Footprint]) -> list[str]:
    """Compare the last round with the one after which everything was warm."""
    warm, end = footprints[WARM_UP_ROUNDS - 1], footprints[-1]
    requests = end.requests - warm.requests
    problems = []
    for what, grown, most in (
        (
            "objects",
            end.objects - warm.objects,
            MOST_OBJECTS_PER_REQUEST * requests + OBJECTS_SLACK,
        ),
        (
            "bytes of memory",
            end.resident_bytes - warm.resident_bytes,
            MOST_BYTES_PER_REQUEST * requests + BYTES_SLACK,
        ),
    ):
        print(f"after the warm-up, {requests} requests: {grown:+} {what}; at most {most:.0f}")
        if grown > most:
            problems.append(f"{what} grow: {grown:+} in {requests} requests, at most {most:.0f}")
    return problems


def _summary(run: Run) -> None:
    metrics, books, counts = run.gateway.get_metrics(), run.books, run.events.counts
    attempts = sum(provider["attempts"] for provider in metrics["providers"].values())
    first, last = run.footprints[0], run.footprints[-1]
    tables: Mapping[str, Mapping[str, object]] = {
        "asked": books.asked,
        "became of it": books.outcomes,
        "troubles of vendors": run.vendors.injected,
        "calls": {
            "attempts": attempts,
            "of them hedges": counts["request.hedged"],
            "further rounds": counts["request.retrying"],
            "circuits opened": counts["circuit.opened"],
            "circuits closed": counts["circuit.closed"],
            "cooldowns": counts["provider.cooled_down"],
        },
        "seconds until answered": {
            "p50": round(books.percentile(50), 3),
            "p99": round(books.percentile(99), 3),
        },
        "MB of memory": {
            "first round": round(first.resident_bytes / 2**20, 1),
            "last round": round(last.resident_bytes / 2**20, 1),
        },
    }
    for title, table in tables.items():
        print(f"\n{title}")
        for name, value in table.items():
            print(f"  {name:32} {value:>10}")
    print(f"\n{books.asked.total()} requests, {metrics['failures']} failed")


async def _until(condition: Callable[[], bool]) -> bool:
    """Wait for it, for a while."""
    deadline = asyncio.get_running_loop().time() + SETTLING_SECONDS
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def main() -> int:
    """Read the options and run; 0 if all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--callers", type=int, default=200)
    options = parser.parse_args()
    rounds = max(LEAST_ROUNDS, round(options.minutes * 60 / ROUND_SECONDS))
    print(f"{rounds} rounds of {ROUND_SECONDS:.0f} s, seed {options.seed}", flush=True)
    return 0 if asyncio.run(soak(rounds, options.callers, options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
