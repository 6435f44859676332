"""Rate-limit cooldown, and disabling of misconfigured providers; independent of the breaker.

A rate limit says "later", a bad key says "never like this". Neither says that the provider fails.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.resilience.guard import NEVER, AttemptOutcome, Effect, GuardListener, GuardRefusal
from aigateway.resilience.last_resort import OVERDUE

__all__ = ["Cooldown", "CooldownPolicy", "Disabling", "DisablingPolicy"]


@dataclass(frozen=True, slots=True)
class CooldownPolicy:
    """Durations, in seconds.

    Attributes:
        first: For a rate limit without `Retry-After`; doubles while they follow each other.
        longest: Where that doubling ends.
        clamp: The longest cooldown at all, whatever the vendor asks for. After one that was cut to
            this, one attempt at a time is let through until one is not refused for its rate.
        lease: That attempt has this long to come back before another is let through.
    """

    first: float = 1.0
    longest: float = 60.0
    clamp: float = 300.0
    lease: float = 60.0


class Cooldown:
    """Leaves a provider alone for as long as it asks; a guard (`guard.py`).

    Its token says whether an attempt is the trial after a cooldown that was cut.

    Attributes:
        listener: Hears of it.
        quiet: There is none, and none is remembered: an attempt and an answer change nothing.
        until: When it ends, on the clock's own scale.
    """

    __slots__ = (
        "_clamped",
        "_clock",
        "_limited_until",
        "_out_until",
        "_streak",
        "listener",
        "policy",
        "quiet",
        "until",
    )

    def __init__(self, clock: Clock, policy: CooldownPolicy, listener: GuardListener) -> None:
        self._clock = clock
        self.listener = listener
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """End the cooldown and forget what began it."""
        self.quiet = True
        self.until = self._limited_until = -math.inf
        self._streak = 0
        self._clamped = False
        self._out_until = -math.inf

    def refusal(self) -> GuardRefusal | None:
        """Why an attempt may not begin now, or None."""
        if self.until == -math.inf:
            return None  # the ordinary case needs no look at the clock
        now, out = self._clock.now(), self._out_until
        wait = max(self.until, out) - now
        if wait <= 0:
            return None
        if self.until > now:
            last_resort = NEVER if self._limited_until > now else 0.0
            return GuardRefusal(FailureKind.COOLING_DOWN, wait, last_resort)
        # The trial may hang for a reason of its own. With no other provider left, a request waits
        # for its end, and is the next trial once it is overdue.
        overdue = max(0.0, out - self.policy.lease + OVERDUE - now)
        return GuardRefusal(FailureKind.COOLING_DOWN, wait, overdue, pending=True)

    @property
    def failing(self) -> bool:
        """Whether it is on for failures alone: a last resort may ask all the same.

        A rate limit says that the provider will refuse. A failure says only that it would rather be
        left alone, and one failed request is no evidence for all the others.
        """
        return self._limited_until <= self._clock.now() < self.until

    def begin(self) -> bool:
        """An attempt begins.

        Returns:
            Whether an answer to it ends the cooldown: it is a last resort, or the trial after a
            cooldown that was clamped.
        """
        if self.until == -math.inf:
            return False
        now = self._clock.now()
        if now < self.until:
            return self.failing
        if self._clamped:
            self._out_until = now + self.policy.lease
        else:
            self.until = -math.inf  # over; the next request need not look at the clock
        return self._clamped

    def abandon(self) -> None:
        """Forget the trial that is out: its event loop is gone."""
        self._out_until = -math.inf

    def end(self, trial: bool, outcome: AttemptOutcome) -> None:
        """An attempt ended."""
        effect = outcome.effect
        if effect is Effect.ANSWERED and not trial:
            self._streak = 0
            self.quiet = self.until == -math.inf
            return
        if trial:
            self._out_until = -math.inf
            if effect is not Effect.THROTTLED and effect is not Effect.NEUTRAL:
                self.reset()
        # A provider that fails is the breaker's affair, unless it says for how long.
        if effect is Effect.THROTTLED or (
            effect is Effect.FAILED and outcome.retry_after is not None
        ):
            self.throttle(outcome.retry_after, limited=effect is Effect.THROTTLED)

    def throttle(self, retry_after: float | None, *, limited: bool = True) -> None:
        """Begin a cooldown, or lengthen the one that is on.

        Args:
            retry_after: Seconds that the vendor asks for; None where it only refuses.
            limited: For a rate limit, and not for a failure.
        """
        self.quiet = False
        now, policy = self._clock.now(), self.policy
        cooling = now < self.until
        if retry_after is not None or not cooling:  # calls that were out together count once
            if retry_after is None:
                retry_after = min(policy.first * 2.0 ** min(self._streak, 60), policy.longest)
            self._streak += not cooling
            self._clamped = self._clamped or retry_after > policy.clamp
            # The longest wish counts: answers to calls in flight arrive in any order.
            self.until = max(self.until, now + min(retry_after, policy.clamp))
        if limited:
            self._limited_until = self.until
        self.listener.cooled_down(self.until - now, limited=self._limited_until > now)


_MAY_BE_THE_REQUESTS = frozenset({FailureKind.PERMISSION, FailureKind.MODEL_NOT_FOUND})
"""Refusals that may hang on what a request says, where the vendor gives the status alone."""

_DOUBTFUL_REFUSALS = 5
"""Of such refusals in a row, how many it takes with a provider that has answered of late."""


@dataclass(frozen=True, slots=True)
class DisablingPolicy:
    """Durations, in seconds.

    Attributes:
        recheck: A disabled provider is tried again by one request after this long; doubles.
        longest_recheck: Where that doubling ends.
        lease: That request has this long to come back before another may try.
        last_resort: With no other provider left, one request at a time may try it this often.
    """

    recheck: float = 300.0
    longest_recheck: float = 3600.0
    lease: float = 60.0
    last_resort: float = 5.0


class Disabling:
    """Disables a provider that is set up wrong; a guard (`guard.py`).

    Its token is when an attempt began.

    It takes evidence: the vendor's own word about key, region, model, deployment or billing; or
    the same refusal of two distinct requests with no answer between. A 403 or 404 may be about what
    a request says (a firewall's, say), so of a provider that has answered of late it takes five;
    and any answer takes back what was concluded from those.

    Attributes:
        listener: Hears of it.
        quiet: It is not disabled, nor suspected: an attempt and an answer change nothing.
        reason: Why it is disabled, or None.
        refused_at: When the vendor last refused a call for its setup, with evidence.
    """

    __slots__ = (
        "_certain",
        "_check_out_until",
        "_checked_at",
        "_clock",
        "_disabled_at",
        "_in_a_row",
        "_recheck_at",
        "_suspects",
        "listener",
        "policy",
        "quiet",
        "reason",
        "refused_at",
    )

    def __init__(self, clock: Clock, policy: DisablingPolicy, listener: GuardListener) -> None:
        self._clock = clock
        self.listener = listener
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Enable it and forget what disabled it."""
        self.quiet = True
        self.reason: FailureKind | None = None
        self._suspects: dict[FailureKind | None, set[Hashable]] = {}
        self._certain = False
        self._in_a_row = 0
        self._recheck_at = -math.inf
        self.refused_at = -math.inf
        self._check_out_until = -math.inf
        self._checked_at = -math.inf

    def refusal(self) -> GuardRefusal | None:
        """Why an attempt may not begin now, or None."""
        if self.reason is None:
            return None
        now, out = self._clock.now(), self._check_out_until
        wait = max(self._recheck_at, out) - now
        if wait <= 0:
            return None
        looked = max(self.refused_at, self._checked_at)  # a check may end without a verdict
        last_resort = max(0.0, max(looked + self.policy.last_resort, out) - now)
        return GuardRefusal(FailureKind.DISABLED, wait, last_resort, pending=out > now)

    def abandon(self) -> None:
        """Forget the check that is out: its event loop is gone."""
        self._check_out_until = -math.inf

    def refused_before(self, began: float) -> float | None:
        """When the vendor last refused a call; None if that was after a request began."""
        return self.refused_at if self.refused_at < began else None

    def begin(self) -> float:
        """An attempt begins. While the provider is disabled, it is the check that others await."""
        if self.reason is None:
            return -math.inf
        now = self._checked_at = self._clock.now()
        self._check_out_until = now + self.policy.lease
        return now

    def end(self, began: float, outcome: AttemptOutcome, *, proven: bool = False) -> None:
        """An attempt ended.

        Only a check, which began after the disabling, speaks about what the vendor has said for
        certain.

        Args:
            began: What `begin` gave.
            outcome: How.
            proven: The provider has answered of late.
        """
        checked = self.reason is not None and began > self._disabled_at
        if checked:
            self._check_out_until = -math.inf
        if outcome.effect is Effect.ANSWERED:
            self._suspects.clear()
            self.quiet = self.reason is None
            if checked or (self.reason in _MAY_BE_THE_REQUESTS and not self._certain):
                self.reset()
                self.listener.enabled()
        elif outcome.effect is Effect.MISCONFIGURED:
            self.quiet = False
            if outcome.certain or self.reason is not None or self._is_enough(outcome, proven):
                self._certain = self._certain or outcome.certain
                self._disable(outcome)

    def _is_enough(self, outcome: AttemptOutcome, proven: bool) -> bool:
        """Whether so many distinct requests have been refused alike that it is no chance."""
        suspects = self._suspects.setdefault(outcome.kind, set())
        suspects.add(outcome.cause())
        doubtful = proven and outcome.kind in _MAY_BE_THE_REQUESTS
        return len(suspects) >= (_DOUBTFUL_REFUSALS if doubtful else 2)

    def _disable(self, outcome: AttemptOutcome) -> None:
        now, policy = self._clock.now(), self.policy
        if self.reason is None:
            self._disabled_at = now
        if now >= self._recheck_at:  # calls that were out together lengthen the pause once
            pause = min(policy.recheck * 2.0 ** min(self._in_a_row, 60), policy.longest_recheck)
            self._in_a_row += 1
            self._recheck_at = now + pause
        self.refused_at = now
        self.reason = reason = outcome.kind or FailureKind.UNKNOWN
        self.listener.disabled(reason, outcome.status, self._recheck_at - now)
