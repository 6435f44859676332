"""A hook that keeps what is told of every call, and sees whether it agrees with the counters."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from aigateway.events import ON_REQUEST, AnswerDiscarded, AttemptEnded, Event, RequestEnded
from aigateway.messages import ChatRequest, EmbeddingRequest
from aigateway.telemetry.recorder import TracedAnswer

OUTCOMES = {
    "hit": "cache_hits",
    "stale": "stale_answers",
    "failed": "failures",
    "coalesced": "coalesced",
    "served": "served",
    "cancelled": "cancelled",
}
"""The names of the outcomes in events, and in metrics."""


class _Open:
    """A request or an attempt that has begun."""

    headers: Mapping[str, str] = {}

    def __init__(self, books: "Books") -> None:
        self._books = books
        books.open[self] += 1

    def attempt(self, provider: str, vendor: str, model: str, number: int) -> "_Open":
        return _Open(self._books)

    def ended(self, event: AttemptEnded | RequestEnded, answer: TracedAnswer | None) -> None:
        self._books.open[self] -= 1
        self._books.closed.append(event)


class Books:
    """Keeps what is told of every call, by events and by traces."""

    wants = ON_REQUEST

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.open: Counter[_Open] = Counter()
        self.closed: list[AttemptEnded | RequestEnded] = []
        self.begun = 0

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def trace_request(self, request: ChatRequest | EmbeddingRequest, *, streamed: bool) -> _Open:
        self.begun += 1
        return _Open(self)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def outcomes(self) -> list[str]:
        return [event.outcome for event in self.of(RequestEnded)]

    def problems(self, metrics: Mapping[str, Any], spared: Collection[str] = ()) -> Iterator[str]:
        """Where what was told differs from what the gateway counted, after it has closed.

        Args:
            metrics: The gateway's.
            spared: Providers whose counters are of no use.
        """
        told = Counter(self.outcomes)
        counted = {name: metrics[key] for name, key in OUTCOMES.items()}
        if {name: told[name] for name in OUTCOMES} != counted:
            yield f"outcomes: told {told}, counted {counted}"
        for name, provider in metrics["providers"].items():
            if name not in spared:
                yield from self._problems_of(name, provider)
        for event in self.of(RequestEnded):
            if not 0 <= event.vendor_seconds <= event.latency_seconds + 1e-6:
                yield f"times: {event}"
        if any(self.open.values()):
            yield f"traces: {sum(self.open.values())} are open"
        traced = [event for event in self.events if not isinstance(event, AnswerDiscarded)]
        if traced != self.closed:
            yield f"traces: {len(self.closed)} ended, {len(traced)} told"

    def _problems_of(self, name: str, provider: Mapping[str, Any]) -> Iterator[str]:
        attempts = [event for event in self.of(AttemptEnded) if event.provider == name]
        failures = Counter(str(event.failure) for event in attempts if event.failure is not None)
        paid = attempts + [event for event in self.of(AnswerDiscarded) if event.provider == name]
        told = {
            "attempts": len(attempts),
            "failures": dict(sorted(failures.items())),
            "prompt_tokens": sum(event.usage.prompt_tokens for event in paid),
            "completion_tokens": sum(event.usage.completion_tokens for event in paid),
            "cost_usd": round(sum(event.cost_usd or 0 for event in paid), 6),
        }
        counted = {key: provider[key] for key in told}
        counted["cost_usd"] = round(counted["cost_usd"], 6)
        if told != counted:
            yield f"{name}: told {told}, counted {counted}"
