"""What happened, as frozen records, and the `Hook` that gets them.

A record carries names, kinds, counts and durations. It never carries a prompt, an answer or a
key, so a hook may send it anywhere. `name` is stable: it is also the event's name in the logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from aigateway.errors import FailureKind, ProviderFailure

__all__ = [
    "CacheHit",
    "CircuitChanged",
    "CircuitForced",
    "Event",
    "Hook",
    "ProviderCooledDown",
    "ProviderDisabled",
    "ProviderEnabled",
    "ProviderFailed",
    "RequestFailed",
    "RequestHedged",
    "RequestRetrying",
    "RequestServed",
]


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


@dataclass(frozen=True, slots=True)
class ProviderCooledDown:
    """A provider is left alone for a while, because it asked for it."""

    name: ClassVar[str] = "provider.cooled_down"
    provider: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ProviderDisabled:
    """A provider is set up wrong (key, model, credit) and is not asked until the next check."""

    name: ClassVar[str] = "provider.disabled"
    provider: str
    reason: FailureKind
    status: int | None
    recheck_in_seconds: float


@dataclass(frozen=True, slots=True)
class ProviderEnabled:
    """A disabled provider answered again."""

    name: ClassVar[str] = "provider.enabled"
    provider: str


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A circuit opened, became half-open, or closed. `name` says which."""

    name: str
    """`circuit.opened`, `circuit.half_opened` or `circuit.closed`."""
    provider: str
    old: str
    new: str


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


Event = (
    ProviderFailed
    | ProviderCooledDown
    | ProviderDisabled
    | ProviderEnabled
    | CircuitChanged
    | CircuitForced
    | CacheHit
    | RequestRetrying
    | RequestHedged
    | RequestServed
    | RequestFailed
)
"""Every record a hook may get. New kinds may be added: ignore what you do not know."""


class Hook(Protocol):
    """Something that wants to know. Called synchronously, on the event loop: be quick.

    What it raises is logged and changes nothing.
    """

    def on_event(self, event: Event) -> None:
        """Take note of one event."""
