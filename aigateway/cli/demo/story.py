"""The course of the demo: its faults, its calls and their results."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from aigateway.clock import Clock
from aigateway.errors import FailureKind, GatewayError
from aigateway.events import (
    CircuitChanged,
    Event,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    RequestFailed,
    RequestRetrying,
)
from aigateway.gateway import AsyncGateway
from aigateway.messages import Attempt
from aigateway.simulator import Fault, Simulator

__all__ = [
    "Demo",
    "DemoEvents",
    "DemoResult",
    "DemoResults",
    "Phase",
    "apply_phase",
    "calls",
    "percentile",
    "phases",
]

_REPEATED = ("What is 2+2?", "Name a colour.", "Say hello.")
_REPEATED_SHARE = 0.2
_RETRY_AFTER_SECONDS = 1.0
_KEPT_EVENTS = 100


# ── faults and calls ─────────────────────────────────────────────────────────────────────────────


class PhaseFault(NamedTuple):
    """A fault of a vendor, in words and for the simulator."""

    what: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the demo.

    Attributes:
        label: What happens, in a few words.
        seconds: Its length.
        faults: What is wrong, by vendor; the others are healthy.
    """

    label: str
    seconds: float
    faults: Mapping[str, PhaseFault] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """A full description."""
        return ", ".join(f"{name}: {each.what}" for name, each in self.faults.items()) or self.label


@dataclass(frozen=True, slots=True)
class DemoCall:
    """A planned request; `due` is in seconds from the beginning."""

    due: float
    prompt: str
    cache: bool


def phases(seconds: float) -> tuple[Phase, ...]:
    """Return the phases of a demo of that length."""
    dead = {"openai": PhaseFault("HTTP 500", Fault.status(500))}
    hanging = {"openai": PhaseFault("hangs", Fault.hang())}
    limited = hanging | {"azure": PhaseFault("HTTP 429", Fault.rate_limited(_RETRY_AFTER_SECONDS))}
    alone = limited | {"gemini": PhaseFault("resets", Fault.reset())}
    story = (
        Phase("all are healthy", 1.5),
        Phase("openai fails", 2.5, dead),
        Phase("openai is back", 1.5),
        Phase("openai hangs", 2.0, hanging),
        Phase("+ azure is limited", 1.5, limited),
        Phase("+ gemini resets", 1.0, alone),
        Phase("all are back", 2.0),
    )
    scale = seconds / sum(phase.seconds for phase in story)
    return tuple(Phase(p.label, p.seconds * scale, p.faults) for p in story)


def apply_phase(phase: Phase, simulator: Simulator) -> None:
    """Break the vendors of the phase, and repair all others."""
    for vendor in simulator.vendors:
        broken = phase.faults.get(vendor.name)
        if broken is None:
            vendor.recover()
        else:
            vendor.behave(broken.fault)


def calls(seconds: float, rate: float, seed: int) -> Iterator[DemoCall]:
    """Yield a steady, slightly uneven stream of requests; some repeat an earlier prompt."""
    dice = random.Random(seed)
    for number in range(round(seconds * rate)):
        due = (number + dice.random()) / rate
        if dice.random() < _REPEATED_SHARE:
            yield DemoCall(due, dice.choice(_REPEATED), cache=True)
        else:
            yield DemoCall(due, f"Question {number}: how are you?", cache=False)


# ── results ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The end of one request, as its caller saw it.

    Attributes:
        phase: Index of the phase in which it began.
        ended: When, on the clock's own scale.
        latency: Seconds that the caller waited.
        provider: The provider that answered; None if the caller got an error.
        from_cache: Answered without a vendor call of its own.
        attempts: Its calls to vendors.
    """

    phase: int
    ended: float
    latency: float
    provider: str | None
    from_cache: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def failed_over(self) -> bool:
        """Whether another provider than the first one answered."""
        return self.provider is not None and len(self.attempts) > 1

    @property
    def undisturbed(self) -> bool:
        """Whether the first provider answered."""
        return self.provider is not None and len(self.attempts) == 1

    @property
    def timed_out(self) -> bool:
        """Whether a call timed out."""
        return any(attempt.failure is FailureKind.TIMEOUT for attempt in self.attempts)

    @property
    def between_attempts(self) -> float:
        """Seconds without a call to a vendor: the gateway's own time."""
        return self.latency - sum(attempt.latency_seconds for attempt in self.attempts)


class DemoResults:
    """All results, in the order they came."""

    def __init__(self) -> None:
        self.all: list[DemoResult] = []

    def __len__(self) -> int:
        return len(self.all)

    def add(self, result: DemoResult) -> None:
        """Add one."""
        self.all.append(result)

    def of_phase(self, phase: int) -> list[DemoResult]:
        """Return the results of requests that began in one phase."""
        return [result for result in self.all if result.phase == phase]

    @property
    def failures(self) -> int:
        """Requests whose caller got an error."""
        return sum(result.provider is None for result in self.all)

    @property
    def cache_hits(self) -> int:
        """Requests without a vendor call of their own."""
        return sum(result.from_cache for result in self.all)

    def absorbed(self) -> Counter[FailureKind]:
        """Count the vendors' failures in requests that were answered nevertheless."""
        return Counter(
            attempt.failure
            for result in self.all
            if result.provider is not None
            for attempt in result.attempts
            if attempt.failure is not None
        )

    def recently_served(self, since: float) -> Counter[str]:
        """Count the answers of each provider since a moment, without the cache's."""
        served: Counter[str] = Counter()
        for result in reversed(self.all):
            if result.ended < since:
                break
            served.update(_servers([result]))
        return served

    @staticmethod
    def served(results: Iterable[DemoResult]) -> Counter[str]:
        """Count the answers of each provider, without the cache's."""
        return Counter(_servers(results))


def _servers(results: Iterable[DemoResult]) -> list[str]:
    return [r.provider for r in results if r.provider is not None and not r.from_cache]


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the nearest-rank percentile; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, -(-percent * len(values) // 100) - 1)]


class DemoEvent(NamedTuple):
    """A line for the screen; `at` is on the clock's own scale."""

    at: float
    text: str
    style: str


class DemoEvents:
    """A `Hook` that keeps the events to show, and counts circuit changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cool_until: dict[str, float] = {}
        self.latest: deque[DemoEvent] = deque(maxlen=_KEPT_EVENTS)
        self.listener: Callable[[DemoEvent], None] | None = None
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()

    def add(self, text: str, style: str) -> None:
        """Add a line, dated now."""
        event = DemoEvent(self._clock.now(), text, style)
        self.latest.append(event)
        if self.listener is not None:
            self.listener(event)

    def on_event(self, event: Event) -> None:
        """Add a line for an event of the gateway."""
        match event:
            case CircuitChanged():
                self._circuit(event)
            case ProviderCooledDown(provider, seconds):
                self._cooled_down(provider, seconds)
            case ProviderDisabled(provider, reason):
                self.add(f"{provider}: disabled, {reason}", "red")
            case ProviderEnabled(provider):
                self.add(f"{provider}: enabled", "green")
            case RequestRetrying(_, _, wait):
                self.add(f"no provider left: a request waits {wait:.1f} s", "yellow")
            case RequestFailed(_, _, error):
                self.add(f"a request failed: {error}", "bold red")
            case _:
                pass

    def _circuit(self, event: CircuitChanged) -> None:
        provider = event.provider
        if event.name == "circuit.opened":
            self.opened[provider] += 1
            self.add(f"{provider}: circuit opened", "red")
        elif event.name == "circuit.closed":
            self.closed[provider] += 1
            self.add(f"{provider}: circuit closed", "green")
        else:
            self.add(f"{provider}: circuit half-open, one probe goes out", "yellow")

    def _cooled_down(self, provider: str, seconds: float) -> None:
        # Several requests in flight get the same refusal; one line is enough.
        now = self._clock.now()
        if now >= self._cool_until.get(provider, now):
            self.add(f"{provider}: rate-limited for {seconds:.1f} s", "magenta")
        self._cool_until[provider] = now + seconds


# ── one run ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Demo:
    """One run of the demo.

    Attributes:
        current: Index of the current phase; -1 before the first.
        began: When, on the clock's own scale.
        over: Whether the last request has ended.
    """

    simulator: Simulator
    gateway: AsyncGateway
    events: DemoEvents
    phases: tuple[Phase, ...]
    clock: Clock
    results: DemoResults = field(default_factory=DemoResults)
    current: int = -1
    began: float = field(init=False)
    over: bool = False

    def __post_init__(self) -> None:
        self.began = self.clock.now()

    @property
    def seconds(self) -> float:
        """Its length."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self.clock.now() - self.began

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[max(0, self.current)]

    async def play(self, rate: float, seed: int) -> None:
        """Send all requests, and break the vendors on time."""
        self.began = self.clock.now()
        self._begin_phase(0)
        async with asyncio.TaskGroup() as together:
            together.create_task(self._change_phases())
            for call in calls(self.seconds, rate, seed):
                await self._until(call.due)
                together.create_task(self._send(call))
        self.over = True

    async def _change_phases(self) -> None:
        end = 0.0
        for index, phase in enumerate(self.phases[:-1]):
            end += phase.seconds
            await self._until(end)
            self._begin_phase(index + 1)

    def _begin_phase(self, index: int) -> None:
        self.current = index
        self.events.add(f"== {self.phase.title} ==", "bold")
        apply_phase(self.phase, self.simulator)

    async def _until(self, due: float) -> None:
        await self.clock.sleep(max(0.0, due - self.elapsed))

    async def _send(self, call: DemoCall) -> None:
        phase, began = self.current, self.clock.now()
        try:
            reply = await self.gateway.chat(call.prompt, cache=call.cache)
        except GatewayError:
            ended = self.clock.now()
            self.results.add(DemoResult(phase, ended, ended - began, None))
            return
        ended = self.clock.now()
        from_cache = reply.cached or reply.coalesced
        self.results.add(
            DemoResult(phase, ended, ended - began, reply.provider, from_cache, reply.attempts)
        )
