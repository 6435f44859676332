"""Whether an outage becomes a storm: vendor calls per request while every provider is ill.

The whole gateway runs, on a clock that is moved by hand and over vendors without HTTP, so that a
minute takes seconds, and a noisy machine changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aigateway import AsyncGateway, GatewayError
from aigateway.errors import FailureKind
from aigateway.events import CircuitChanged, Event, RequestHedged, RequestRetrying
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from aigateway.vendor.client import Failure, VendorCallError
from benchmarks.chart import Bars
from benchmarks.options import Options
from benchmarks.report import Result, Table

PROVIDERS = ("first", "second", "third")
RATE = 100
"""Requests a second."""
HEALTHY, ILL, AFTER = 10, 30, 45
"""Seconds before, during and after the outage."""
BACK = 0.99
"""The share of a second's requests that must be answered for the gateway to be back."""
TARGET = 1.25
"""Calls per request beside failovers, at most."""
HOW = (
    f"Simulated time, scripted vendors, the whole gateway: three providers, {RATE} requests a"
    f" second with new prompts, answers and errors (500) after 50 to 150 ms. After {HEALTHY} s all"
    f" three fail that share of their calls for {ILL} s, then none. A call is a request's first, a"
    " failover (to the next provider, in the same round), or extra: a retry, a further round, a"
    " hedge. `retry_rounds` is 2, as by default. Without a budget and circuits is arithmetic: each"
    f" call fails by itself. Back is the first second from which on {BACK * 100:.0f} % of the"
    " requests are answered."
)


@dataclass(frozen=True)
class Case:
    """An outage, and the settings that meet it."""

    name: str
    errors: float
    settings: Mapping[str, Any]

    def unbounded(self) -> float:
        """Calls per request, beside failovers, if nothing kept them down."""
        tries = self.settings.get("retries_per_provider", 0) + 1
        passed = self.errors**tries  # a provider is left behind
        one = sum(self.errors**index for index in range(tries))
        each_round = one * (1 + passed + passed**2)
        return each_round * sum(passed ** (3 * index) for index in range(3)) - passed - passed**2


EAGER = {"hedge": True, "retries_per_provider": 2}
BARE = {**EAGER, "failure_threshold": 1_000_000}
CASES = (
    Case("aigateway, defaults, 50 % errors", 0.5, {}),
    Case("aigateway, hedging, 2 retries per provider, 50 % errors", 0.5, EAGER),
    Case("aigateway, the same, circuits never open", 0.5, BARE),
    Case("aigateway, the same, 100 % errors", 1.0, BARE),
)


@dataclass(frozen=True)
class Storm:
    """What became of the requests of the outage, and of those after it.

    Attributes:
        requests: Begun during the outage.
        answered: How many of them.
        first: Calls of the kinds that `HOW` names.
        failover: Likewise.
        extra: Likewise.
        unbounded: See `Case.unbounded`.
        back_seconds: From the recovery; None if it was not seen.
        open_seconds: The longest open time among the circuits at the recovery.
    """

    requests: int
    answered: int
    first: int
    failover: int
    extra: int
    unbounded: float
    back_seconds: int | None
    open_seconds: float

    @property
    def beside_failovers(self) -> float:
        """Calls per request, without failovers."""
        return (self.first + self.extra) / self.requests


class _Watch:
    """A hook that notes which calls are extra, and how long circuits stay open."""

    def __init__(self, vendor: ScriptedVendor) -> None:
        self.gateway: AsyncGateway | None = None
        self.retried_from: dict[str, int] = {}
        self.hedged: Counter[str] = Counter()
        self.open_seconds: dict[str, float] = {}
        self._vendor = vendor

    def on_event(self, event: Event) -> None:
        if isinstance(event, RequestRetrying):
            self.retried_from.setdefault(event.request_id, len(self._vendor.calls))
        elif isinstance(event, RequestHedged):
            self.hedged[event.request_id] += 1
        elif isinstance(event, CircuitChanged) and self.gateway is not None:
            status = next(each for each in self.gateway.providers if each.name == event.provider)
            if event.name == "circuit.opened":
                self.open_seconds[event.provider] = status.retry_after_seconds or 0.0
            elif event.name == "circuit.closed":
                self.open_seconds.pop(event.provider, None)


class _Simulation:
    """One case, from the first request to the last."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._clock = FakeClock()
        self._vendor = ScriptedVendor()
        self._chance = random.Random(1)
        self._ill = False
        self._watch = _Watch(self._vendor)
        self._answered: Counter[int] = Counter()
        for name in PROVIDERS:
            self._vendor.always(name, self._answer)

    async def _answer(self) -> None:
        failed = self._ill and self._chance.random() < self._case.errors
        await self._clock.sleep(0.05 + self._chance.random() / 10)
        if failed:
            raise VendorCallError(Failure(FailureKind.SERVER_ERROR, 500))

    async def run(self, after: int) -> Storm:
        gateway = self._watch.gateway = AsyncGateway(
            scripted_configs(*PROVIDERS),
            clock=self._clock,
            vendor=self._vendor,
            hooks=[self._watch],
            **self._case.settings,
        )
        async with gateway, asyncio.TaskGroup() as requests:
            await self._seconds(gateway, requests, 0, HEALTHY)
            self._ill, began = True, len(self._vendor.calls)
            await self._seconds(gateway, requests, HEALTHY, ILL)
            self._ill, ended = False, len(self._vendor.calls)
            open_seconds = max(self._watch.open_seconds.values(), default=0.0)
            await self._seconds(gateway, requests, HEALTHY + ILL, after)
            await self._clock.advance(60)  # whoever still waits
        return Storm(
            requests=ILL * RATE,
            answered=sum(self._answered[HEALTHY + second] for second in range(ILL)),
            **self._kinds(began, ended),
            unbounded=self._case.unbounded(),
            back_seconds=self._back(after),
            open_seconds=open_seconds,
        )

    async def _seconds(
        self, gateway: AsyncGateway, requests: asyncio.TaskGroup, start: int, count: int
    ) -> None:
        async def ask(second: int, prompt: str) -> None:
            try:
                await gateway.chat(prompt)
            except GatewayError:
                return
            self._answered[second] += 1

        for second in range(start, start + count):
            for index in range(RATE):
                requests.create_task(ask(second, f"{second}.{index}"))
                await self._clock.advance(1 / RATE)

    def _kinds(self, began: int, ended: int) -> dict[str, int]:
        """The calls of the outage, by kind."""
        kinds: Counter[str] = Counter()
        asked: dict[str, set[str]] = {}
        hedges = Counter(self._watch.hedged)
        for place, (provider, request) in enumerate(self._vendor.calls[:ended]):
            name = request.request_id
            before = asked.setdefault(name, set())
            again = provider in before or place >= self._watch.retried_from.get(name, ended)
            if not before:
                kind = "first"
            elif again or hedges[name] > 0:
                kind = "extra"
                hedges[name] -= not again
            else:
                kind = "failover"
            before.add(provider)
            kinds[kind] += place >= began
        return {kind: kinds[kind] for kind in ("first", "failover", "extra")}

    def _back(self, after: int) -> int | None:
        """Seconds from the recovery until nearly everybody is answered, and remains so."""
        late = [
            second
            for second in range(after)
            if self._answered[HEALTHY + ILL + second] < RATE * BACK
        ]
        back = late[-1] + 1 if late else 0
        return back if back < after else None


async def run(options: Options) -> Result:
    cases = CASES[:1] if options.quick else CASES
    found = {case.name: await _Simulation(case).run(options.pick(AFTER, 2)) for case in cases}
    rows = [[name, *_row(each)] for name, each in found.items()]
    columns = [
        "",
        "first calls",
        "failovers",
        "extra calls",
        f"per request beside failovers (at most {TARGET})",
        "without a budget and circuits",
        "answered in the outage",
        "seconds until back",
        "the longest open time then",
    ]
    table = Table(f"**{ILL} s of errors, {ILL * RATE} requests**", columns, rows)
    bars = [
        bar
        for case in cases
        for bar in (
            (case.name, found[case.name].beside_failovers),
            ("without a budget and circuits", case.unbounded()),
        )
    ]
    chart = Bars("Vendor calls per request beside failovers", "calls", bars)
    return Result("storm", HOW, [table], chart, found)


def _row(found: Storm) -> list[str]:
    verdict = "met" if found.beside_failovers <= TARGET else "missed"
    return [
        str(found.first),
        str(found.failover),
        str(found.extra),
        f"{found.beside_failovers:.2f}: {verdict}",
        f"{found.unbounded:.2f}",
        f"{found.answered / found.requests * 100:.0f} %",
        _back(found),
        f"{found.open_seconds:.0f} s" if found.open_seconds else "none open",
    ]


def _back(found: Storm) -> str:
    """Within one open time of a circuit is the target."""
    if found.back_seconds is None:
        return "not seen: missed"
    met = found.back_seconds <= found.open_seconds  # of none that is open: at once
    return f"{found.back_seconds}: {'met' if met else 'missed'}"
