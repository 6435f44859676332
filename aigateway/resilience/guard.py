"""The one shape of all guards, and what the end of an attempt means for each of them.

A guard is one reason to leave a provider alone: plain synchronous state for one of its operations,
which does no I/O and awaits nothing. `refusal` says why an attempt may not begin now (or None) and
changes nothing; `begin` notes that one begins, and returns what `end` wants back; `end` notes how
it ended, exactly once; `reset` forgets everything, as an operator orders. Every guard takes the
same `AttemptOutcome` and does with it what this table says; no other code decides that. (The
breaker has its public permits, and the balance of last resort is asked for a dose; `Guards` in
`routing/provider.py` drives them all.)

=============  ==================  =================  ===================  ======================
effect         circuit             health             cooldown             setup
=============  ==================  =================  ===================  ======================
ANSWERED       success             good, or slow      ends a streak        enabled
FAILED         failure, once for   bad, once for      only if the vendor   unchanged
               each request        each request       says how long
THROTTLED      neutral             unchanged          begins               unchanged
MISCONFIGURED  neutral             unchanged          unchanged            disabled, on evidence
NEUTRAL        neutral             unchanged          unchanged            unchanged
=============  ==================  =================  ===================  ======================

An attempt that is answered also pays the balance of last resort (`last_resort.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from aigateway.errors import FailureKind

__all__ = ["NEVER", "AttemptOutcome", "Effect", "GuardListener", "GuardRefusal"]

NEVER = float("inf")
"""Seconds until something that is not to happen."""

SOON = 1.0
"""Least seconds after which asking as last resort makes sense where another request has failed."""


class Effect(Enum):
    """What the end of an attempt says about its provider."""

    ANSWERED = "answered"
    FAILED = "failed"
    """Through the provider's own fault."""
    THROTTLED = "throttled"
    MISCONFIGURED = "misconfigured"
    """Its key, model, region or billing is refused, or the operation is not offered."""
    NEUTRAL = "neutral"
    """Nothing: cancelled, the caller's mistake, our own limits, our own stall."""


@dataclass(slots=True)
class AttemptOutcome:
    """The end of one attempt, as the guards see it.

    Attributes:
        effect: What it says about the provider.
        cause: Gives the digest of the request; asked for only where blame is at stake. Repeats of
            one request have equal digests and count once.
        seconds: What the answer took (of a stream: its first content), without the time in which
            our own event loop stood still.
        kind: Why there was no answer; None for an answer.
        status: The vendor's HTTP status, if one came with a failure.
        retry_after: Seconds for which the vendor asks to be left alone, if it does.
        certain: The vendor's own words are about key, region, model, deployment or billing.
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
    """Why an attempt may not begin now.

    Attributes:
        kind: `CIRCUIT_OPEN`, `COOLING_DOWN` or `DISABLED`.
        retry_after: Seconds until it may as of right, whatever other providers there are; 0.0 if
            that may be at any moment.
        last_resort: Seconds until a request with no other provider left may ask all the same;
            0.0 if now, `NEVER` if not before `retry_after`.
        changes_in: Seconds until one of the guards that refuse says otherwise; by default
            `retry_after`.
        pending: An attempt is out whose end may change that at any moment.
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
        """Seconds after which a new request has a chance there, as last resort if need be.

        Errors tell this: there is one only where no other provider has answered. The next dose may
        be free at once, but a provider that has just failed is not well again so soon.
        """
        dose = 0.0 if self.pending else self.last_resort
        return min(self.retry_after, max(SOON, dose))


class GuardListener(Protocol):
    """Hears what the guards of one operation of one provider decide."""

    def cooled_down(self, seconds: float, *, limited: bool) -> None:
        """The provider is left alone for so long; only for a rate limit also by last resorts."""

    def disabled(self, reason: FailureKind, status: int | None, seconds: float) -> None:
        """It is set up wrong, and is checked again after so long."""

    def enabled(self) -> None:
        """It answered again after it had been disabled."""

    def degraded(self, reason: Literal["errors", "latency"], share: float) -> None:
        """It works worse than it should: "errors" or "latency", and the share of attempts."""

    def recovered(self) -> None:
        """It is degraded no more."""
