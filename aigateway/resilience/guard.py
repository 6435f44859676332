"""The common shape of all guards, and what the end of an attempt means for each of them.

A guard is one reason not to call a provider: plain synchronous state for one operation, without
I/O and `await`. `refusal` returns why an attempt may not begin now (or None) and changes nothing.
`begin` records that one begins, and returns a token for `end`, which records how it ended, exactly
once. `reset` returns to the initial state. Every guard takes the same `AttemptOutcome` and does
with it what this table says; no other code decides that. (The breaker has its public permits, and
the last resort has doses. `routing/guards.py` drives them all.)

=============  ==================  =================  ===================  ======================
effect         circuit             health             cooldown             disabling
=============  ==================  =================  ===================  ======================
ANSWERED       success             good, or slow      ends a streak        enabled
FAILED         failure, once for   bad, once for      only if the vendor   unchanged
               each request        each request       says how long
THROTTLED      neutral             unchanged          begins               unchanged
MISCONFIGURED  neutral             unchanged          unchanged            disabled, on evidence
NEUTRAL        neutral             unchanged          unchanged            unchanged
=============  ==================  =================  ===================  ======================

An answer also adds to the balance of the last resort (`last_resort.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from aigateway.errors import FailureKind

__all__ = ["NEVER", "AttemptOutcome", "Effect", "GuardListener", "GuardRefusal"]

NEVER = float("inf")
"""Seconds until something that does not happen."""

SOON = 1.0
"""Least seconds after which a last resort makes sense where another request has just failed."""


class Effect(Enum):
    """The meaning of an attempt's end for its provider."""

    ANSWERED = "answered"
    FAILED = "failed"
    """By the provider's own fault."""
    THROTTLED = "throttled"
    MISCONFIGURED = "misconfigured"
    """Its key, model, region or billing is refused, or the operation is not offered."""
    NEUTRAL = "neutral"
    """No meaning: cancelled, the caller's mistake, the gateway's own limits or stall."""


@dataclass(slots=True)
class AttemptOutcome:
    """The end of one attempt, as the guards see it.

    Attributes:
        effect: Its meaning for the provider.
        cause: Returns the digest of the request; called only for a failure. Repeats of one request
            have equal digests and count once.
        seconds: The time to the answer (of a stream: to its first content), without stalls of our
            own event loop.
        kind: Why there was no answer; None for an answer.
        status: The vendor's HTTP status, if one came with a failure.
        retry_after: The vendor's `Retry-After` in seconds, if it sent one.
        certain: The vendor's error names key, region, model, deployment or billing.
    """

    effect: Effect
    cause: Callable[[], Hashable]
    seconds: float = 0.0
    kind: FailureKind | None = None
    status: int | None = None
    retry_after: float | None = None
    certain: bool = False


@dataclass(frozen=True, slots=True)
class GuardRefusal:
    """The reason why an attempt may not begin now.

    Attributes:
        kind: `CIRCUIT_OPEN`, `COOLING_DOWN` or `DISABLED`.
        retry_after: Seconds until the guards allow it; 0.0 if that may be at any moment.
        last_resort: Seconds until a request with no other provider left may call it nevertheless;
            0.0 if now, `NEVER` if not before `retry_after`.
        changes_in: Seconds until one of the guards that refuse changes; by default `retry_after`.
        pending: The end of an attempt in flight may change that at any moment.
    """

    kind: FailureKind
    retry_after: float
    last_resort: float = NEVER
    changes_in: float = -1.0
    pending: bool = False

    def __post_init__(self) -> None:
        if self.changes_in < 0:
            object.__setattr__(self, "changes_in", self.retry_after)

    @property
    def seconds_until_worth_asking(self) -> float:
        """Seconds after which a new request has a chance there, possibly as last resort.

        For the caller of a request that failed at all providers. The next dose may be free at once,
        but a provider that has just failed does not recover so soon.
        """
        dose = 0.0 if self.pending else self.last_resort
        return min(self.retry_after, max(SOON, dose))


class GuardListener(Protocol):
    """The listener of the guards of one operation of one provider."""

    def cooled_down(self, seconds: float, *, limited: bool, by_others: bool = False) -> None:
        """Report a cooldown.

        Args:
            seconds: Until its end.
            limited: It is for a rate limit, so last resorts wait for it, too.
            by_others: It came from another process.
        """

    def disabled(self, reason: FailureKind, status: int | None, seconds: float) -> None:
        """Report that the provider is misconfigured, and checked again after `seconds`."""

    def enabled(self) -> None:
        """Report that it answered after it had been disabled."""

    def degraded(self, reason: Literal["errors", "latency"], share: float) -> None:
        """Report that it is degraded, and by which share of attempts."""

    def recovered(self) -> None:
        """Report that it is no longer degraded."""
