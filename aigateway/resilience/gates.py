"""The two reasons not to ask a provider that are no illness: it is busy, or it is set up wrong.

A rate limit says "later", a bad key says "never like this". Neither is a failure of the
provider's health, so neither touches the circuit breaker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aigateway.clock import Clock
from aigateway.errors import FailureKind

__all__ = ["Closed", "GatePolicy", "Gates"]


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """Durations, in seconds.

    Attributes:
        cooldown: For a rate limit without `Retry-After`; doubles while they follow each other.
        max_cooldown: Where that doubling ends. What the vendor itself asks for is not cut.
        recheck: A disabled provider is tried again by one request after this long; doubles.
        max_recheck: Where that doubling ends.
        recheck_lease: The one request has this long to come back before another may try.
    """

    cooldown: float = 1.0
    max_cooldown: float = 60.0
    recheck: float = 300.0
    max_recheck: float = 3600.0
    recheck_lease: float = 60.0


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a gate is closed, and for how many more seconds."""

    kind: FailureKind
    retry_after: float


class Gates:
    """The gates of one provider. Synchronous, for one event loop."""

    __slots__ = (
        "_clock",
        "_disabled_in_a_row",
        "_policy",
        "_recheck_at",
        "_recheck_out_until",
        "_rechecks",
        "_throttled_in_a_row",
        "cooldown_until",
        "disabled_reason",
    )

    def __init__(self, clock: Clock, policy: GatePolicy) -> None:
        self._clock = clock
        self._policy = policy
        self._rechecks = 0
        self.reset()

    @property
    def policy(self) -> GatePolicy:
        """The durations."""
        return self._policy

    def reset(self) -> None:
        """Open both gates and forget what closed them."""
        self.cooldown_until = -math.inf
        self.disabled_reason: FailureKind | None = None
        self._throttled_in_a_row = 0
        self._disabled_in_a_row = 0
        self._recheck_at = -math.inf
        self._recheck_out_until = -math.inf

    def closed(self) -> Closed | None:
        """Why the provider should not be asked now, or None. Changes nothing."""
        if self.disabled_reason is None and self.cooldown_until == -math.inf:
            return None  # the ordinary case needs no look at the clock
        now = self._clock.now()
        if self.disabled_reason is not None:
            wait = max(self._recheck_at, self._recheck_out_until) - now
            if wait > 0:
                return Closed(FailureKind.DISABLED, wait)
        if now < self.cooldown_until:
            return Closed(FailureKind.COOLING_DOWN, self.cooldown_until - now)
        return None

    def enter(self) -> int:
        """An attempt begins. If the provider is disabled, it is the one that checks again.

        Returns:
            What `leave` and `succeeded` want back: only the check that is out may open the gate,
            not an attempt that began before it was closed.
        """
        if self.disabled_reason is None:
            return 0
        self._rechecks += 1
        self._recheck_out_until = self._clock.now() + self._policy.recheck_lease
        return self._rechecks

    def leave(self, entry: int) -> None:
        """An attempt ended without an answer; if it was the check, the next may check."""
        if entry and entry == self._rechecks:
            self._recheck_out_until = -math.inf

    def succeeded(self, entry: int) -> bool:
        """An attempt was answered. Returns whether that enabled a disabled provider."""
        self._throttled_in_a_row = 0
        if not entry or entry != self._rechecks or self.disabled_reason is None:
            return False
        self.disabled_reason = None
        self._disabled_in_a_row = 0
        self._recheck_out_until = -math.inf
        return True

    def throttled(self, retry_after: float | None) -> float:
        """The provider asked to be left alone; returns for how many seconds it now is."""
        now = self._clock.now()
        cooling = now < self.cooldown_until
        if retry_after is None:
            if cooling:  # calls that were out together count once
                return self.cooldown_until - now
            retry_after = min(
                self._policy.cooldown * 2.0 ** min(self._throttled_in_a_row, 60),
                self._policy.max_cooldown,
            )
        self._throttled_in_a_row += not cooling
        # The longest wish counts: answers to calls in flight arrive in any order.
        self.cooldown_until = max(self.cooldown_until, now + retry_after)
        return self.cooldown_until - now

    def disable(self, reason: FailureKind) -> float:
        """The provider is set up wrong; returns the seconds until it is tried again.

        Calls that were in flight together and fail for one and the same reason lengthen the
        pause once, not once each.
        """
        now = self._clock.now()
        if self.disabled_reason is None or now >= self._recheck_at:
            pause = min(
                self._policy.recheck * 2.0 ** min(self._disabled_in_a_row, 60),
                self._policy.max_recheck,
            )
            self._disabled_in_a_row += 1
            self._recheck_at = now + pause
        self.disabled_reason = reason
        return self._recheck_at - now
