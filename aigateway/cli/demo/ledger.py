"""What the demo's callers and its gateway lived through, and the figures drawn from it. No I/O."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.events import (
    CircuitChanged,
    Event,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    RequestFailed,
    RequestRetrying,
)
from aigateway.messages import Attempt

__all__ = ["Chronicle", "Happening", "Ledger", "Outcome", "percentile"]

_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended, as its caller saw it.

    Attributes:
        phase: Index of the phase in which it began.
        ended: When, on the clock's own scale.
        latency: Seconds the caller waited.
        provider: Who answered; None if the caller got an error.
        from_cache: Answered without asking a vendor, or together with an identical request.
        attempts: Every call to a vendor that it took.
    """

    phase: int
    ended: float
    latency: float
    provider: str | None
    from_cache: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def failed_over(self) -> bool:
        """Answered, but not by the first who was asked."""
        return self.provider is not None and len(self.attempts) > 1

    @property
    def undisturbed(self) -> bool:
        """Answered by the first vendor that was asked."""
        return self.provider is not None and len(self.attempts) == 1

    @property
    def timed_out(self) -> bool:
        """One of the vendors that were asked gave no answer in time."""
        return any(attempt.failure is FailureKind.TIMEOUT for attempt in self.attempts)

    @property
    def between_attempts(self) -> float:
        """Seconds of the latency in which no vendor was being asked: the gateway's own."""
        return self.latency - sum(attempt.latency_seconds for attempt in self.attempts)


class Ledger:
    """All outcomes, in the order they came."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def __len__(self) -> int:
        return len(self.outcomes)

    def add(self, outcome: Outcome) -> None:
        """Note one."""
        self.outcomes.append(outcome)

    def of_phase(self, phase: int) -> list[Outcome]:
        """Those that began in one phase."""
        return [outcome for outcome in self.outcomes if outcome.phase == phase]

    @property
    def failures(self) -> int:
        """Requests whose caller got an error."""
        return sum(outcome.provider is None for outcome in self.outcomes)

    @property
    def cache_hits(self) -> int:
        """Requests for which no vendor was asked."""
        return sum(outcome.from_cache for outcome in self.outcomes)

    def absorbed(self) -> Counter[FailureKind]:
        """Failures of vendors behind requests that were answered all the same, by kind."""
        return Counter(
            attempt.failure
            for outcome in self.outcomes
            if outcome.provider is not None
            for attempt in outcome.attempts
            if attempt.failure is not None
        )

    def recently_served(self, since: float) -> Counter[str]:
        """How many answers each provider gave since that moment, without the cache's."""
        served: Counter[str] = Counter()
        for outcome in reversed(self.outcomes):
            if outcome.ended < since:
                break
            served.update(_servers([outcome]))
        return served

    @staticmethod
    def served(outcomes: Iterable[Outcome]) -> Counter[str]:
        """How many of these each provider answered, without the cache's."""
        return Counter(_servers(outcomes))


def _servers(outcomes: Iterable[Outcome]) -> list[str]:
    return [o.provider for o in outcomes if o.provider is not None and not o.from_cache]


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The nearest-rank percentile; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, -(-percent * len(values) // 100) - 1)]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something worth a line on the screen; `at` is seconds on the clock's own scale."""

    at: float
    text: str
    style: str


class Chronicle:
    """A `Hook` that keeps what an audience should see, and counts circuits.

    Args:
        clock: When things happen.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cool_until: dict[str, float] = {}
        self.happenings: deque[Happening] = deque(maxlen=_REMEMBERED)
        self.listener: Callable[[Happening], None] | None = None
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()

    def tell(self, text: str, style: str) -> None:
        """Put a line on the screen, dated now."""
        happening = Happening(self._clock.now(), text, style)
        self.happenings.append(happening)
        if self.listener is not None:
            self.listener(happening)

    def on_event(self, event: Event) -> None:
        """Take note of one event."""
        match event:
            case CircuitChanged():
                self._circuit(event)
            case ProviderCooledDown(provider, seconds):
                self._cooled_down(provider, seconds)
            case ProviderDisabled(provider, reason):
                self.tell(f"{provider}: set aside, {reason}", "red")
            case ProviderEnabled(provider):
                self.tell(f"{provider}: answers again", "green")
            case RequestRetrying(_, _, wait):
                self.tell(f"nobody left to ask: a caller waits {wait:.1f} s", "yellow")
            case RequestFailed(_, _, error):
                self.tell(f"a caller got {error}", "bold red")
            case _:
                pass

    def _circuit(self, event: CircuitChanged) -> None:
        provider = event.provider
        if event.name == "circuit.opened":
            self.opened[provider] += 1
            self.tell(f"{provider}: circuit opened", "red")
        elif event.name == "circuit.closed":
            self.closed[provider] += 1
            self.tell(f"{provider}: circuit closed", "green")
        else:
            self.tell(f"{provider}: circuit half-open, one probe goes out", "yellow")

    def _cooled_down(self, provider: str, seconds: float) -> None:
        # Requests that were out together are all told to wait; one line is enough.
        now = self._clock.now()
        if now >= self._cool_until.get(provider, now):
            self.tell(f"{provider}: asks to be left alone for {seconds:.1f} s", "magenta")
        self._cool_until[provider] = now + seconds
