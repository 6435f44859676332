"""Events as frozen records, and the `Hook` that gets them.

A record has names, kinds, counts and durations, never a prompt, an answer or a key: a hook may send
it anywhere. `name` is stable, and is the event's name in the logs.

`AttemptEnded` and `RequestEnded` say everything about an attempt and a request. `ProviderFailed`,
`RequestServed`, `RequestFailed` and `CacheHit` are short forms of them, for hooks that do not ask
for every end.
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

Operation = Literal["chat", "embeddings", "completions"]
"""What is asked of a provider. "completions" is OpenAI's older `/v1/completions`."""

Outcome = Literal["served", "hit", "stale", "coalesced", "failed", "cancelled"]
"""How a request ends; each ends in exactly one way."""


@dataclass(frozen=True, slots=True)
class ProviderFailed:
    """One attempt failed: an `AttemptEnded` in short."""

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
    """The provider was not to be asked, but no other was left."""


@dataclass(frozen=True, slots=True)
class ProviderCooledDown:
    """A provider is not asked for a while, as it has requested.

    Attributes:
        rate_limited: It reached a rate limit; else it failed and gave a time, and may be asked as
            last resort.
    """

    name: ClassVar[str] = "provider.cooled_down"
    provider: str
    seconds: float
    operation: Operation = "chat"
    rate_limited: bool = True


@dataclass(frozen=True, slots=True)
class ProviderDisabled:
    """An operation of a provider is misconfigured (key, model, billing) until a check succeeds."""

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
    """A provider works worse than usual: it is asked after the healthy ones."""

    name: ClassVar[str] = "provider.degraded"
    provider: str
    reason: Literal["errors", "latency"]
    share: float
    """The part of its recent attempts that failed, or took much longer than usual."""
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderRecovered:
    """A degraded provider works as usual again."""

    name: ClassVar[str] = "provider.recovered"
    provider: str
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class LoopStalled:
    """The application's event loop was blocked; no provider is blamed for it."""

    name: ClassVar[str] = "loop.stalled"
    seconds: float
    in_flight: int
    """Calls to vendors in flight."""


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
    """An operator forced a circuit, or released it."""

    name: ClassVar[str] = "operator.circuit_forced"
    provider: str
    state: str
    """`open`, `closed` or `auto`."""
    by: str | None
    """The operator, if known."""


@dataclass(frozen=True, slots=True)
class CacheHit:
    """An answer came from the cache: a `RequestEnded` in short."""

    name: ClassVar[str] = "cache.hit"
    request_id: str
    provider: str
    agent: str | None
    stale: bool


@dataclass(frozen=True, slots=True)
class RequestRetrying:
    """No provider was left; all candidates are tried again after a pause."""

    name: ClassVar[str] = "request.retrying"
    request_id: str
    round: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class RequestHedged:
    """A provider was slower than usual, so another was asked at the same time."""

    name: ClassVar[str] = "request.hedged"
    request_id: str
    provider: str
    """The slow one."""
    second: str
    after_seconds: float


@dataclass(frozen=True, slots=True)
class RequestServed:
    """A vendor answered a request: a `RequestEnded` in short."""

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
    """A request ended in an error that the caller saw: a `RequestEnded` in short."""

    name: ClassVar[str] = "request.failed"
    request_id: str
    agent: str | None
    error: str
    causes: tuple[ProviderFailure, ...]
    latency_seconds: float


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """One attempt has ended, in whatever way. Only for hooks that ask for it.

    Attributes:
        request_id: Of the request it was made for.
        attempt: Which attempt of that request, from 1, in the order of their beginnings.
        operation: The operation.
        streamed: The answer was to come piece by piece.
        provider: The provider that was asked.
        vendor: `ProviderType` value.
        model: The model asked.
        failure: None if it answered; `cancelled`, `deadline` and `outrun` blame no provider.
        status: The vendor's HTTP status where one came with a failure.
        retry: The same provider had been asked before for this request.
        latency_seconds: From its beginning to its end; of a stream, to the end of the stream.
        first_content_seconds: Of a stream: from its beginning to its first content.
        usage: Tokens to be paid for, also of an answer that was not used.
        cost_usd: US dollars; None where the price is not known.
        last_resort: The provider was not to be asked, but no other was left.
        code: The vendor's error code where one came with a failure.
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
    code: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerDiscarded:
    """An abandoned attempt brought an answer all the same, which is paid for but not used.

    Only for hooks that ask for it. It follows the attempt's `AttemptEnded`, which had no usage.
    """

    name: ClassVar[str] = "answer.discarded"
    request_id: str
    provider: str
    usage: Usage
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request has ended, in whatever way. Only for hooks that ask for it.

    Attributes:
        request_id: As in the other events.
        operation: The operation.
        streamed: The answer was to come piece by piece.
        agent: As the caller named it.
        outcome: How it ended.
        provider: The provider of the answer, also of a cached or shared one.
        error: The class of the error that the caller got; "" for none.
        attempts: Attempts that it began.
        latency_seconds: From its beginning to its end.
        vendor_seconds: The part of that in which it waited for a vendor, or for another request
            whose answer it shared. The caller's time between two chunks of a stream counts here.
        first_content_seconds: Of a stream from a vendor: to the first content.
        model: The model that answered, as the vendor names it; "" without an answer.
        total_tokens: Tokens of the answer.
        cost_usd: US dollars of the answer; None where the price is not known.
        causes: What went wrong at each provider, of a request that failed.
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
    model: str = ""
    total_tokens: int = 0
    cost_usd: float | None = None
    causes: tuple[ProviderFailure, ...] = ()

    @property
    def overhead_seconds(self) -> float:
        """The gateway's own time: work, queue, and pauses between two rounds."""
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
"""Every record a hook may get. New kinds may be added: ignore unknown ones."""

ON_REQUEST: frozenset[type[Event]] = frozenset({AttemptEnded, AnswerDiscarded, RequestEnded})
"""Kinds of which each call makes one: only hooks whose `wants` names them get them."""


class Hook(Protocol):
    """A listener. It is called synchronously, on the event loop: be quick.

    What it raises is logged and changes nothing.

    A hook may have an attribute `wants`, a collection of event classes, and gets no others. Without
    one it gets every kind except those in `ON_REQUEST`.
    """

    def on_event(self, event: Event) -> None:
        """Handle one event."""
