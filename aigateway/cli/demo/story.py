"""The course of the demo: its acts, the faults and calls in them, and what came of them."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
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
    RequestRetrying,
)
from aigateway.gateway import AsyncGateway
from aigateway.messages import Attempt
from aigateway.routing.provider import condition
from aigateway.simulator import Fault, Simulator
from aigateway.simulator.answers import Received

__all__ = [
    "Act",
    "Demo",
    "DemoCall",
    "DemoEvents",
    "DemoResult",
    "DemoResults",
    "Phase",
    "acts",
    "answer_of",
    "apply_phase",
    "calls",
    "counted",
    "percentile",
    "way",
]

_REPEATED = {
    "What is the capital of France?": "Paris",
    "Which planet is the largest?": "Jupiter",
    "What colour is a clear sky?": "Blue",
}
_REPEATED_SHARE = 0.2
_PRODUCT = re.compile(r"What is (\d+) times (\d+)\?")
_RETRY_AFTER_SECONDS = 1.0
_KEPT_EVENTS = 100
_SAMPLE_SECONDS = 1.0
_MOVED_SAMPLE_SECONDS = 0.3
"""A line for a request comes at most this often: for an ordinary one, for one that failed over."""


# ── faults and calls ─────────────────────────────────────────────────────────────────────────────


class PhaseFault(NamedTuple):
    """A fault of a vendor, in words and for the simulator."""

    what: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an act.

    Attributes:
        seconds: Its length.
        faults: What is wrong, by vendor; the others are healthy.
    """

    seconds: float
    faults: Mapping[str, PhaseFault] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is wrong, in a few words."""
        troubles = ", ".join(f"{name} {each.what}" for name, each in self.faults.items())
        return troubles or "all four vendors are healthy"


@dataclass(frozen=True, slots=True)
class Act:
    """One failure, and how the gateway handles it.

    Attributes:
        title: The failure, in a few words.
        before: One sentence: what the vendors will do.
        after: Makes the sentences that say, from the results of the act, what the gateway did.
        phases: Its parts, in their order.
    """

    title: str
    before: str
    after: Callable[[Demo, DemoResults], str]
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, slots=True)
class DemoCall:
    """A planned request; `due` is in seconds from the beginning."""

    due: float
    prompt: str
    cache: bool


def acts(seconds: float) -> tuple[Act, ...]:
    """Return the acts of a demo of that length."""
    failing = {"openai": PhaseFault("fails", Fault.status(500))}
    hanging = {"openai": PhaseFault("hangs", Fault.hang())}
    limited = hanging | {"azure": PhaseFault("refuses", Fault.rate_limited(_RETRY_AFTER_SECONDS))}
    alone = limited | {"gemini": PhaseFault("cuts off", Fault.reset())}
    scale = seconds / 12.0

    def phases(*parts: tuple[float, Mapping[str, PhaseFault]]) -> tuple[Phase, ...]:
        return tuple(Phase(length * scale, faults) for length, faults in parts)

    return (
        Act(
            "a vendor fails",
            "openai, which the gateway prefers, answers every request with an error (HTTP 500).",
            _after_errors,
            phases((1.0, {}), (2.0, failing), (1.0, {})),
        ),
        Act(
            "a vendor hangs",
            "openai accepts requests and never answers. That is worse: each caller would wait.",
            _after_hanging,
            phases((0.5, {}), (2.0, hanging), (1.0, {})),
        ),
        Act(
            "three of four are down",
            "openai hangs, azure refuses (HTTP 429, too many requests), gemini cuts connections.",
            _after_outage,
            phases((1.0, limited), (1.5, alone), (2.0, {})),
        ),
    )


def _after_errors(_: Demo, results: DemoResults) -> str:
    moved, skipped = results.moved_from("openai"), results.without("openai")
    added = results.added_by_failover()
    later = f", which took {added * 1000:.0f} ms longer (median)" if added is not None else ""
    return (
        f"{counted(moved, 'request')} met the error and got another vendor's answer{later}."
        f" Then the circuit of openai opened: {counted(skipped, 'request')} went past it."
    )


def _after_hanging(_: Demo, results: DemoResults) -> str:
    moved, skipped = results.moved_from("openai"), results.without("openai")
    return (
        f"{counted(moved, 'request')} waited for openai until the attempt timed out, and then got"
        " another vendor's answer. Then its circuit opened:"
        f" {counted(skipped, 'request')} did not wait."
    )


def _after_outage(demo: Demo, results: DemoResults) -> str:
    served = DemoResults.served(results.all).most_common()
    listed = ", ".join(f"{name} {count}" for name, count in served)
    used = ("closed", "degraded")
    waiting = [each.name for each in demo.gateway.providers if condition(each).word not in used]
    back = (
        f"the gateway asks {', '.join(waiting)} again soon" if waiting else "all are in use again"
    )
    return f"Those that worked answered ({listed}). The vendors recovered: {back}."


def answer_of(received: Received) -> str:
    """Return the answer of a simulated vendor: the right one."""
    asked = str(received.body)
    if product := _PRODUCT.search(asked):
        return str(int(product[1]) * int(product[2]))
    return next((answer for prompt, answer in _REPEATED.items() if prompt in asked), "Yes.")


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
            yield DemoCall(due, dice.choice(tuple(_REPEATED)), cache=True)
        else:
            prompt = f"What is {number + 2} times {dice.randrange(2, 10)}?"
            yield DemoCall(due, prompt, cache=False)


def counted(number: int, noun: str) -> str:
    """Return "1 request", "2 requests"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ── results ──────────────────────────────────────────────────────────────────────────────────────

_FAILURES = {
    FailureKind.TIMEOUT: "no answer in time",
    FailureKind.CONNECTION: "connection cut",
}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The end of one request, as its caller saw it.

    Attributes:
        act: Index of the act in which it began.
        ended: When, on the clock's own scale.
        latency: Seconds that the caller waited.
        provider: The provider that answered; None if the caller got an error.
        from_cache: Answered without a vendor call of its own.
        attempts: Its calls to vendors.
        prompt: What was asked.
        text: The answer, or the error.
    """

    act: int
    ended: float
    latency: float
    provider: str | None
    from_cache: bool = False
    attempts: tuple[Attempt, ...] = ()
    prompt: str = ""
    text: str = ""

    @property
    def failed_over(self) -> bool:
        """Whether another provider than the first one answered."""
        return self.provider is not None and len(self.attempts) > 1

    @property
    def undisturbed(self) -> bool:
        """Whether the first provider answered."""
        return self.provider is not None and len(self.attempts) == 1


def way(result: DemoResult) -> str:
    """Return one line: the prompt, who was asked, what broke, and the answer."""
    steps = [
        f"{attempt.provider}: {_failure(attempt)}" for attempt in result.attempts if not attempt.ok
    ]
    if result.provider is None:
        steps.append(f"the caller got an error: {result.text}")
    elif result.from_cache:
        steps.append(f'"{result.text}" from the cache')
    else:
        steps.append(f'{result.provider}: "{result.text}"')
    return f"{result.prompt}  {' -> '.join(steps)}"


def _failure(attempt: Attempt) -> str:
    if attempt.failure is None:
        return ""
    words = _FAILURES.get(attempt.failure, str(attempt.failure))
    return f"HTTP {attempt.status}" if attempt.status else words


class DemoResults:
    """Results, in the order they came."""

    def __init__(self, results: Iterable[DemoResult] = ()) -> None:
        self.all = list(results)

    def __len__(self) -> int:
        return len(self.all)

    def add(self, result: DemoResult) -> None:
        """Add one."""
        self.all.append(result)

    def of_act(self, act: int) -> DemoResults:
        """Return the results of requests that began in one act."""
        return DemoResults(result for result in self.all if result.act == act)

    @property
    def failures(self) -> int:
        """Requests whose caller got an error."""
        return sum(result.provider is None for result in self.all)

    @property
    def cache_hits(self) -> int:
        """Requests without a vendor call of their own."""
        return sum(result.from_cache for result in self.all)

    @property
    def longest(self) -> float:
        """Seconds that the most patient caller waited."""
        return max((result.latency for result in self.all), default=0.0)

    def absorbed(self) -> Counter[FailureKind]:
        """Count the vendors' failures in requests that were answered nevertheless."""
        return Counter(
            attempt.failure
            for result in self.all
            if result.provider is not None
            for attempt in result.attempts
            if attempt.failure is not None
        )

    def moved_from(self, provider: str) -> int:
        """Count the requests that failed over from a provider."""
        return sum(
            result.failed_over and any(a.provider == provider and not a.ok for a in result.attempts)
            for result in self.all
        )

    def without(self, provider: str) -> int:
        """Count the requests that vendors answered, and that never went to this one."""
        return sum(
            result.undisturbed and not result.from_cache and result.provider != provider
            for result in self.all
        )

    def added_by_failover(self) -> float | None:
        """Return the seconds that failover adds: the difference of two medians."""
        healthy = percentile([r.latency for r in self.all if r.undisturbed], 50)
        moved = percentile([r.latency for r in self.all if r.failed_over], 50)
        if healthy is None or moved is None:
            return None
        return max(0.001, moved - healthy)

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
    """A `Hook` that keeps the lines to show: the gateway's events, and some of the requests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cool_until: dict[str, float] = {}
        self._sampled = 0.0
        self._shown: set[tuple[tuple[str, FailureKind | None], ...]] = set()
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

    def sample(self, result: DemoResult) -> None:
        """Add a line for a request, unless there have just been some like it.

        An error always gets one.
        """
        moved = not (result.undisturbed or result.from_cache)
        pause = _MOVED_SAMPLE_SECONDS if moved else _SAMPLE_SECONDS
        now = self._clock.now()
        kind = tuple((attempt.provider, attempt.failure) for attempt in result.attempts)
        if result.provider is None:
            self.add(way(result), "bold red")
        elif kind not in self._shown or now >= self._sampled + pause:
            self._shown.add(kind)
            self._sampled = now
            self.add(way(result), "" if moved else "dim")

    def on_event(self, event: Event) -> None:
        """Add a line for an event of the gateway."""
        match event:
            case CircuitChanged():
                self._circuit(event)
            case ProviderCooledDown(provider, seconds):
                self._cooled_down(provider, seconds)
            case ProviderDisabled(provider, reason):
                self.add(f"{provider}: disabled, {reason}", "yellow")
            case ProviderEnabled(provider):
                self.add(f"{provider}: enabled", "green")
            case RequestRetrying(_, _, wait):
                self.add(f"no provider left: a request waits {wait:.1f} s", "yellow")
            case _:
                pass

    def _circuit(self, event: CircuitChanged) -> None:
        provider = event.provider
        if event.name == "circuit.opened":
            self.opened[provider] += 1
            self.add(f"{provider}: circuit opened, no requests for a while", "yellow")
        elif event.name == "circuit.closed":
            self.closed[provider] += 1
            self.add(f"{provider}: circuit closed, in use again", "green")
        else:
            self.add(f"{provider}: circuit half-open, one probe goes out", "cyan")

    def _cooled_down(self, provider: str, seconds: float) -> None:
        # Several requests in flight get the same refusal; one line is enough.
        now = self._clock.now()
        if now >= self._cool_until.get(provider, now):
            self.add(f"{provider}: rate-limited, no requests for {seconds:.1f} s", "yellow")
        self._cool_until[provider] = now + seconds


# ── one run ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Demo:
    """One run of the demo.

    Attributes:
        current: Index of the current act.
        phase: The current part of it.
        began: When, on the clock's own scale.
        over: Whether the last request has ended.
    """

    simulator: Simulator
    gateway: AsyncGateway
    events: DemoEvents
    acts: tuple[Act, ...]
    clock: Clock
    results: DemoResults = field(default_factory=DemoResults)
    current: int = 0
    phase: Phase = field(init=False)
    began: float = field(init=False)
    over: bool = False

    def __post_init__(self) -> None:
        self.began = self.clock.now()
        self.phase = self.acts[0].phases[0]

    @property
    def act(self) -> Act:
        """The current act."""
        return self.acts[self.current]

    async def play(self, rate: float, seed: int, between: Callable[[str], Awaitable[None]]) -> None:
        """Send all requests, and break the vendors on time.

        Args:
            rate: Requests per second.
            seed: The same seed gives the same requests.
            between: Gets what is to be read before and after each act, and takes its time.
        """
        self.began = self.clock.now()
        planned = list(calls(sum(act.seconds for act in self.acts), rate, seed))
        start = 0.0
        for index, act in enumerate(self.acts):
            self.current = index
            await between(f"Act {index + 1} of {len(self.acts)}: {act.title}. {act.before}")
            for phase in act.phases:
                end = start + phase.seconds
                last = phase is self.acts[-1].phases[-1]
                due = [c for c in planned if start <= c.due and (last or c.due < end)]
                await self._perform(phase, due, start)
                start = end
            results = self.results.of_act(index)
            await between(f"{_callers(results)} {act.after(self, results)}")
        self.over = True

    async def _perform(self, phase: Phase, planned: list[DemoCall], start: float) -> None:
        """Send the requests of a part, and return when all have ended.

        So the faults of one part do not meet the requests of another, however busy the machine is.
        """
        self._begin_phase(phase)
        began = self.clock.now()
        async with asyncio.TaskGroup() as together:
            for call in planned:
                await self._until(began + call.due - start)
                together.create_task(self._send(call))
            await self._until(began + phase.seconds)

    async def _until(self, moment: float) -> None:
        await self.clock.sleep(max(0.0, moment - self.clock.now()))

    def _begin_phase(self, phase: Phase) -> None:
        self.phase = phase
        self.events.add(f"now: {phase.title}", "bold")
        apply_phase(phase, self.simulator)

    async def _send(self, call: DemoCall) -> None:
        act, began = self.current, self.clock.now()
        try:
            reply = await self.gateway.chat(call.prompt, cache=call.cache)
        except GatewayError as error:
            ended = self.clock.now()
            result = DemoResult(
                act, ended, ended - began, None, prompt=call.prompt, text=str(error)
            )
        else:
            ended = self.clock.now()
            result = DemoResult(
                act,
                ended,
                ended - began,
                reply.provider,
                reply.cached or reply.coalesced,
                reply.attempts,
                call.prompt,
                reply.text,
            )
        self.results.add(result)
        self.events.sample(result)


def _callers(results: DemoResults) -> str:
    if results.failures:
        return f"{results.failures} of {counted(len(results), 'caller')} got an error."
    return f"{counted(len(results), 'caller')}, no error."
