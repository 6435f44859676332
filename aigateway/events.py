"""Events as frozen records, and the `Hook` that gets them.

A record has names, kinds, counts and durations, never a prompt, an answer or a key: a hook may send
it anywhere. `name` is stable, and is the event's name in the logs.

`AttemptEnded` and `RequestEnded` say everything about an attempt and a request. `ProviderFailed`,
`RequestServed`, `RequestFailed` and `CacheHit` are short forms of them, for hooks that do not ask
for every end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.messages import Usage
from aigateway.records import Record, shown_cost

__all__ = [
    "ON_REQUEST",
    "AnswerDiscarded",
    "AttemptEnded",
    "CacheHit",
    "CircuitChanged",
    "CircuitForced",
    "CircuitOrder",
    "Degradation",
    "Event",
    "FleetLost",
    "FleetRefused",
    "FleetReturned",
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

CircuitOrder = Literal["open", "closed", "auto"]
"""An operator's order for a circuit; "auto" ends an order."""

Degradation = Literal["errors", "latency"]
"""Why a provider is degraded: too many errors, or answers that take much longer than usual."""

Outcome = Literal["served", "hit", "stale", "coalesced", "failed", "cancelled"]
"""How a request ends; each ends in exactly one way."""


class _EventRecord(Record):
    __slots__ = ()

    def _values(self) -> Iterator[tuple[str, Any]]:
        event: Any = self
        yield "event", event.name
        yield from self._fields_but("name")


@dataclass(frozen=True, slots=True)
class ProviderFailed(_EventRecord):
    """One attempt failed: an `AttemptEnded` in short."""

    name: ClassVar[Literal["provider.failed"]] = "provider.failed"
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
class ProviderCooledDown(_EventRecord):
    """A provider is not asked for a while, as it has requested.

    Attributes:
        rate_limited: It reached a rate limit; else it failed and gave a time, and may be asked as
            last resort.
        by: `fleet`: another process was asked to wait. None: this one.
    """

    name: ClassVar[Literal["provider.cooled_down"]] = "provider.cooled_down"
    provider: str
    seconds: float
    operation: Operation = "chat"
    rate_limited: bool = True
    by: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderDisabled(_EventRecord):
    """An operation of a provider is misconfigured (key, model, billing) until a check succeeds."""

    name: ClassVar[Literal["provider.disabled"]] = "provider.disabled"
    provider: str
    reason: FailureKind
    status: int | None
    recheck_in_seconds: float
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderEnabled(_EventRecord):
    """A disabled provider answered again."""

    name: ClassVar[Literal["provider.enabled"]] = "provider.enabled"
    provider: str
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderDegraded(_EventRecord):
    """A provider works worse than usual: it is asked after the healthy ones."""

    name: ClassVar[Literal["provider.degraded"]] = "provider.degraded"
    provider: str
    reason: Degradation
    share: float
    """The part of its recent attempts that failed, or took much longer than usual."""
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class ProviderRecovered(_EventRecord):
    """A degraded provider works as usual again."""

    name: ClassVar[Literal["provider.recovered"]] = "provider.recovered"
    provider: str
    operation: Operation = "chat"


@dataclass(frozen=True, slots=True)
class LoopStalled(_EventRecord):
    """The application's event loop was blocked; no provider is blamed for it."""

    name: ClassVar[Literal["loop.stalled"]] = "loop.stalled"
    seconds: float
    in_flight: int
    """Calls to vendors in flight."""


@dataclass(frozen=True, slots=True)
class CircuitChanged(_EventRecord):
    """A circuit opened, became half-open, or closed. `name` says which."""

    name: Literal["circuit.opened", "circuit.half_opened", "circuit.closed"]
    provider: str
    old: str
    new: str
    operation: Operation = "chat"
    by: str | None = None
    """`fleet`: other processes caused it (see `fleet/votes.py`). None: this one did."""


@dataclass(frozen=True, slots=True)
class CircuitForced(_EventRecord):
    """An operator forced a circuit, or released it."""

    name: ClassVar[Literal["operator.circuit_forced"]] = "operator.circuit_forced"
    provider: str
    state: CircuitOrder
    by: str | None
    """The operator, if known."""


@dataclass(frozen=True, slots=True)
class FleetLost(_EventRecord):
    """Redis cannot be asked. Each process goes on alone, and joins again when it is back.

    Attributes:
        redis: Where it is.
        reason: Why.
        effect: What happens now, for people.
        writes_only: It refuses to write (it is full, or a replica); shared answers are still read.
    """

    name: ClassVar[Literal["fleet.lost"]] = "fleet.lost"
    redis: str
    reason: str
    effect: str
    writes_only: bool = False


@dataclass(frozen=True, slots=True)
class FleetRefused(_EventRecord):
    """Redis refuses what the fleet needs: its login, or a script. An operator has to act.

    Attributes:
        redis: Where it is.
        what: The name of the script or command; "login" for the user and password.
        reason: What it said.
        action: What to correct.
    """

    name: ClassVar[Literal["fleet.refused"]] = "fleet.refused"
    redis: str
    what: str
    reason: str
    action: str = ""


@dataclass(frozen=True, slots=True)
class FleetReturned(_EventRecord):
    """Redis answers again; processes share as before.

    Attributes:
        redis: Where it is.
        seconds: For how long it could not be asked.
    """

    name: ClassVar[Literal["fleet.returned"]] = "fleet.returned"
    redis: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CacheHit(_EventRecord):
    """An answer came from the cache: a `RequestEnded` in short."""

    name: ClassVar[Literal["cache.hit"]] = "cache.hit"
    request_id: str
    provider: str
    agent: str | None
    stale: bool


@dataclass(frozen=True, slots=True)
class RequestRetrying(_EventRecord):
    """No provider was left; all candidates are tried again after a pause."""

    name: ClassVar[Literal["request.retrying"]] = "request.retrying"
    request_id: str
    round: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class RequestHedged(_EventRecord):
    """A provider was slower than usual, so another was asked at the same time."""

    name: ClassVar[Literal["request.hedged"]] = "request.hedged"
    request_id: str
    provider: str
    """The slow one."""
    second: str
    after_seconds: float


@dataclass(frozen=True, slots=True)
class RequestServed(_EventRecord):
    """A vendor answered a request: a `RequestEnded` in short."""

    name: ClassVar[Literal["request.served"]] = "request.served"
    request_id: str
    provider: str
    model: str
    agent: str | None
    attempts: int
    latency_seconds: float
    total_tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class RequestFailed(_EventRecord):
    """A request ended in an error that the caller saw: a `RequestEnded` in short."""

    name: ClassVar[Literal["request.failed"]] = "request.failed"
    request_id: str
    agent: str | None
    error: str
    causes: tuple[ProviderFailure, ...]
    latency_seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class AttemptEnded(_EventRecord):
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
        tenant: The caller for whom it was made: the name of its key, at the service.
    """

    name: ClassVar[Literal["attempt.ended"]] = "attempt.ended"
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
    tenant: str = ""

    def _words(self) -> Iterator[Any]:
        yield from (self.request_id, f"#{self.attempt}", self.operation, self.provider)
        yield from (self.failure or "answered", f"HTTP {self.status}" if self.status else "")
        yield from (shown_cost(self.cost_usd), f"{self.latency_seconds:.2f} s")


@dataclass(frozen=True, slots=True)
class AnswerDiscarded(_EventRecord):
    """An abandoned attempt brought an answer all the same, which is paid for but not used.

    Only for hooks that ask for it. It follows the attempt's `AttemptEnded`, which had no usage.
    """

    name: ClassVar[Literal["answer.discarded"]] = "answer.discarded"
    request_id: str
    provider: str
    usage: Usage
    cost_usd: float | None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class RequestEnded(_EventRecord):
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
        tenant: The caller, as in `AttemptEnded`.
        rejected: It failed, and the request itself was at fault (`RequestRejectedError`).
    """

    name: ClassVar[Literal["request.ended"]] = "request.ended"
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
    tenant: str = ""
    rejected: bool = False

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
    | FleetLost
    | FleetRefused
    | FleetReturned
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


MOST_UNCOUNTED = 1000
"""Ends of calls and requests after which a hook counts them, if nothing shows them meanwhile."""


class ServedCall(NamedTuple):
    """A request that its first attempt served: the two ends in one, for hooks that only count.

    An attempt that was made as last resort has an end of its own.

    Attributes:
        tenant: As in `RequestEnded`.
        provider: The provider that answered.
        model: The model asked.
        attempt_seconds: From the beginning of the attempt to its end.
        first_content_seconds: Of a stream: from the beginning of the attempt to its first content.
        prompt_tokens: As the vendor counts.
        completion_tokens: As the vendor counts.
        cost_usd: US dollars; None where the price is not known.
        latency_seconds: From the beginning of the request to its end.
        overhead_seconds: The gateway's own part of that.
        at: When it ended, on the clock's scale.
        wall: When it ended, in seconds since the Unix epoch.
    """

    tenant: str
    provider: str
    model: str
    attempt_seconds: float
    first_content_seconds: float | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_seconds: float
    overhead_seconds: float
    at: float
    wall: float


class Hook(Protocol):
    """A listener. It is called synchronously, on the event loop: be quick.

    What it raises is logged and changes nothing.

    A hook may have an attribute `wants`, a collection of event classes, and gets no others. Without
    one it gets every kind except those in `ON_REQUEST`.
    """

    def on_event(self, event: Event) -> None:
        """Handle one event."""
