"""What happened, as frozen records, and the `Hook` that gets them.

A record carries names, kinds, counts and durations. It never carries a prompt, an answer or a
key, so a hook may send it anywhere. `name` is stable: it is also the event's name in the logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.messages import Usage

__all__ = [
    "ON_REQUEST",
    "AnswerDiscarded",
    "AttemptEnded",
    "CacheHit",
    "CircuitChanged",
    "CircuitForced",
    "Event",
    "Hook",
    "LoopStalled",
    "Operation",
    "Outcome",
    "ProviderCooledDown",
    "ProviderDegraded",
    "ProviderDisabled",
    "ProviderEnabled",
    "ProviderFailed",
    "ProviderRecovered",
    "RequestEnded",
    "RequestFailed",
    "RequestHedged",
    "RequestRetrying",
    "RequestServed",
]

Operation = Literal["chat", "embeddings"]
"""What was asked for."""

Outcome = Literal["served", "hit", "stale", "coalesced", "failed", "cancelled"]
"""How a request ends; each ends in exactly one way."""


@dataclass(frozen=True, slots=True)
class ProviderFailed:
    """One attempt failed."""

    name: ClassVar[str] = "provider.failed"
    request_id: str
    provider: str
    kind: FailureKind
    status: int | None
    code: str | None
    latency_seconds: float
    attempt: int = 0
    """Which attempt of its request this was, from 1."""
    last_resort: bool = False
    """It was asked although it was to be left alone, since no other provider was left."""


@dataclass(frozen=True, slots=True)
class ProviderCooledDown:
    """A provider is left alone for a while, because it asked for it.

    Attributes:
        rate_limited: For a rate limit; else it failed and said for how long, and it is asked as
            last resort meanwhile.
    """

    name: ClassVar[str] = "provider.cooled_down"
    provider: str
    seconds: float
    operation: Operation = "chat"
    rate_limited: bool = True


@dataclass(frozen=True, slots=True)
class ProviderDisabled:
    """An operation of a provider is set up wrong (key, model, credit); it waits for a check."""

    name: ClassVar[str] = "provider.disabled"
    provider: str
    reason: FailureKind
    status: int | None
    recheck_in_seconds: float
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderEnabled:
    """A disabled provider answered again."""

    name: ClassVar[str] = "provider.enabled"
    provider: str
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderDegraded:
    """A provider works worse than it should: it is asked after the healthy ones."""

    name: ClassVar[str] = "provider.degraded"
    provider: str
    reason: Literal["errors", "latency"]
    share: float
    """Part of its recent attempts that failed, or that took much longer than is usual for it."""
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderRecovered:
    """A degraded provider works as it should again."""

    name: ClassVar[str] = "provider.recovered"
    provider: str
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class LoopStalled:
    """The application's own event loop stood still; no provider is blamed for it."""

    name: ClassVar[str] = "loop.stalled"
    seconds: float
    in_flight: int
    """Calls to vendors that were out."""


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A circuit opened, became half-open, or closed. `name` says which."""

    name: str
    """`circuit.opened`, `circuit.half_opened` or `circuit.closed`."""
    provider: str
    old: str
    new: str
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class CircuitForced:
    """Somebody took a circuit in hand, or let it go."""

    name: ClassVar[str] = "operator.circuit_forced"
    provider: str
    state: str
    """`open`, `closed` or `auto`."""
    by: str | None
    """Who, as far as that is known."""


@dataclass(frozen=True, slots=True)
class CacheHit:
    """An answer was remembered; no vendor was asked."""

    name: ClassVar[str] = "cache.hit"
    request_id: str
    provider: str
    agent: str | None
    stale: bool


@dataclass(frozen=True, slots=True)
class RequestRetrying:
    """Nobody was left to ask; the whole plan is tried again after a pause."""

    name: ClassVar[str] = "request.retrying"
    request_id: str
    round: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class RequestHedged:
    """A provider was slower than it usually is, so another was asked at the same time."""

    name: ClassVar[str] = "request.hedged"
    request_id: str
    provider: str
    """The slow one."""
    second: str
    after_seconds: float


@dataclass(frozen=True, slots=True)
class RequestServed:
    """A vendor answered a request."""

    name: ClassVar[str] = "request.served"
    request_id: str
    provider: str
    model: str
    agent: str | None
    attempts: int
    latency_seconds: float
    total_tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request ended in an error that the caller saw."""

    name: ClassVar[str] = "request.failed"
    request_id: str
    agent: str | None
    error: str
    causes: tuple[ProviderFailure, ...]
    latency_seconds: float


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """One call to one provider is over, in whatever way. Only for hooks that ask for it.

    Attributes:
        request_id: Of the request it was made for.
        attempt: Which attempt of that request, from 1, in the order in which they began.
        operation: What was asked for.
        streamed: The answer was to come piece by piece.
        provider: Who was asked.
        vendor: `ProviderType` value.
        model: The model asked.
        failure: None if it answered; `cancelled`, `deadline` and `outrun` are nobody's fault.
        status: The vendor's HTTP status where one came with a failure.
        retry: The same provider had been asked before for this request.
        latency_seconds: From its beginning to its end; of a stream, to the end of the stream.
        first_content_seconds: Of a stream: from its beginning to its first content.
        usage: Tokens to be paid for, also of an answer that was of no use.
        cost_usd: US dollars; None where the price is not known.
        last_resort: It was asked although it was to be left alone, since no other was left.
    """

    name: ClassVar[str] = "attempt.ended"
    request_id: str
    attempt: int
    operation: Operation
    streamed: bool
    provider: str
    vendor: str
    model: str
    failure: FailureKind | None
    status: int | None
    retry: bool
    latency_seconds: float
    first_content_seconds: float | None
    usage: Usage
    cost_usd: float | None
    last_resort: bool = False


@dataclass(frozen=True, slots=True)
class AnswerDiscarded:
    """An attempt that had been given up answered all the same: paid for, and told nobody.

    Only for hooks that ask for it. Its `AttemptEnded` has been told before, without usage.
    """

    name: ClassVar[str] = "answer.discarded"
    request_id: str
    provider: str
    usage: Usage
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request is over, in whatever way. Only for hooks that ask for it.

    Attributes:
        request_id: As in the other events.
        operation: What was asked for.
        streamed: The answer was to come piece by piece.
        agent: As the caller named it.
        outcome: How it ended.
        provider: Who answered, also where the answer was remembered or shared.
        error: The class of the error that the caller got; "" for none.
        attempts: Calls that it began.
        latency_seconds: From its beginning to its end.
        vendor_seconds: The part of that in which a vendor was waited for, or another request that
            shared its answer. What a caller takes between two chunks of a stream counts here.
        first_content_seconds: Of a stream that a vendor gave: to the first content.
    """

    name: ClassVar[str] = "request.ended"
    request_id: str
    operation: Operation
    streamed: bool
    agent: str | None
    outcome: Outcome
    provider: str | None
    error: str
    attempts: int
    latency_seconds: float
    vendor_seconds: float
    first_content_seconds: float | None

    @property
    def overhead_seconds(self) -> float:
        """The gateway's own time: its work, its queue, and its pauses between two rounds."""
        return max(0.0, self.latency_seconds - self.vendor_seconds)


Event = (
    ProviderFailed
    | ProviderCooledDown
    | ProviderDisabled
    | ProviderEnabled
    | ProviderDegraded
    | ProviderRecovered
    | LoopStalled
    | CircuitChanged
    | CircuitForced
    | CacheHit
    | RequestRetrying
    | RequestHedged
    | RequestServed
    | RequestFailed
    | AttemptEnded
    | AnswerDiscarded
    | RequestEnded
)
"""Every record a hook may get. New kinds may be added: ignore what you do not know."""

ON_REQUEST: frozenset[type[Event]] = frozenset({AttemptEnded, AnswerDiscarded, RequestEnded})
"""Kinds that are told of every call, well or not: only hooks whose `wants` names them get them."""


class Hook(Protocol):
    """Something that wants to know. Called synchronously, on the event loop: be quick.

    What it raises is logged and changes nothing.

    A hook may have an attribute `wants`, a collection of event classes, and gets no others.
    Without one it gets every kind but those in `ON_REQUEST`. What nobody wants is not even made.
    """

    def on_event(self, event: Event) -> None:
        """Take note of one event."""
