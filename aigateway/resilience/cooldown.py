"""Rate-limit cooldown, and disabling of misconfigured providers; independent of the breaker.

Neither a rate limit nor a bad key means that the provider fails.
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
        longest: The limit of that doubling.
        clamp: The longest cooldown, whatever the vendor asks for. After one that was cut to this,
            only one attempt at a time may begin, until one is not refused for its rate.
        lease: If that attempt takes longer than this, another may begin.
    """

    first: float = 1.0
    longest: float = 60.0
    clamp: float = 300.0
    lease: float = 60.0


class Cooldown:
    """Stops calls to a provider for as long as it asks; a guard (`guard.py`).

    Its token says whether an attempt is the trial after a cooldown that was cut.

    Attributes:
        listener: Notified of each cooldown.
        quiet: There is no cooldown and no memory of one: attempts and answers change nothing.
        until: The end of the cooldown, on the clock's own scale.
    """

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
        self._trial_until = -math.inf

    @property
    def shared(self) -> tuple[float, float, bool]:
        """For other processes: the ends of the cooldown and of its rate limit; whether it was cut.

        The ends are on the clock's own scale.
        """
        return self.until, self._limited_until, self._clamped

    def lengthen(self, until: float, limited_until: float, *, clamped: bool) -> None:
        """Heed the cooldown of another process, from its `shared`. It shortens nothing."""
        now = self._clock.now()
        latest = now + self.policy.clamp
        until = max(self.until, min(until, latest))
        limited_until = max(self._limited_until, min(limited_until, latest))
        if until <= now or (until, limited_until) == (self.until, self._limited_until):
            return
        self.quiet = False
        self.until, self._limited_until = until, limited_until
        self._clamped = self._clamped or clamped
        limited = self._limited_until > now
        self.listener.cooled_down(until - now, limited=limited, by_others=True)

    def refusal(self) -> GuardRefusal | None:
        """Return why an attempt may not begin now, or None."""
        if self.until == -math.inf:
            return None
        now, out = self._clock.now(), self._trial_until
        wait = max(self.until, out) - now
        if wait <= 0:
            return None
        if self.until > now:
            last_resort = NEVER if self._limited_until > now else 0.0
            return GuardRefusal(FailureKind.COOLING_DOWN, wait, last_resort)
        # With no other provider left, a request waits for the end of the trial. If the trial is
        # overdue (it may hang for a reason of its own), the request is the next trial.
        overdue = max(0.0, out - self.policy.lease + OVERDUE - now)
        return GuardRefusal(FailureKind.COOLING_DOWN, wait, overdue, pending=True)

    @property
    def failing(self) -> bool:
        """Whether the cooldown is for failures alone, so that a last resort may call nevertheless.

        After a rate limit the provider will refuse. After a failure with `Retry-After` it may
        answer: one failed request is no evidence for all the others.
        """
        return self._limited_until <= self._clock.now() < self.until

    def begin(self) -> bool:
        """Record that an attempt begins.

        Returns:
            Whether its answer ends the cooldown: it is a last resort, or the trial after a cooldown
            that was clamped.
        """
        if self.until == -math.inf:
            return False
        now = self._clock.now()
        if now < self.until:
            return self.failing
        if self._clamped:
            self._trial_until = now + self.policy.lease
        else:
            self.until = -math.inf
        return self._clamped

    def abandon(self) -> None:
        """Forget the trial in flight: its event loop is gone."""
        self._trial_until = -math.inf

    def end(self, trial: bool, outcome: AttemptOutcome) -> None:
        """Record how an attempt ended."""
        effect = outcome.effect
        if effect is Effect.ANSWERED and not trial:
            self._streak = 0
            self.quiet = self.until == -math.inf
            return
        if trial:
            self._trial_until = -math.inf
            if effect is not Effect.THROTTLED and effect is not Effect.NEUTRAL:
                self.reset()
        # Failures are for the breaker, unless the vendor says for how long.
        if effect is Effect.THROTTLED or (
            effect is Effect.FAILED and outcome.retry_after is not None
        ):
            self.throttle(outcome.retry_after, limited=effect is Effect.THROTTLED)

    def throttle(self, retry_after: float | None, *, limited: bool = True) -> None:
        """Begin a cooldown, or lengthen the present one.

        Args:
            retry_after: Seconds that the vendor asks for; None if it only refuses.
            limited: For a rate limit, and not for a failure.
        """
        self.quiet = False
        now, policy = self._clock.now(), self.policy
        cooling = now < self.until
        if retry_after is not None or not cooling:  # concurrent calls count once
            if retry_after is None:
                retry_after = min(policy.first * 2.0 ** min(self._streak, 60), policy.longest)
            self._streak += not cooling
            self._clamped = self._clamped or retry_after > policy.clamp
            # The latest end counts: answers to concurrent calls arrive in any order.
            self.until = max(self.until, now + min(retry_after, policy.clamp))
        if limited:
            self._limited_until = self.until
        self.listener.cooled_down(self.until - now, limited=self._limited_until > now)


_MAY_BE_THE_REQUESTS = frozenset({FailureKind.PERMISSION, FailureKind.MODEL_NOT_FOUND})
"""Refusals that may depend on the request, if the vendor gives only a status."""

_DOUBTFUL_REFUSALS = 5
"""Such refusals in a row that disable a provider which has answered recently."""


@dataclass(frozen=True, slots=True)
class DisablingPolicy:
    """Durations, in seconds.

    Attributes:
        recheck: One request checks a disabled provider after this time; doubles.
        longest_recheck: The limit of that doubling.
        lease: If the check takes longer than this, another request may check.
        last_resort: With no other provider left, one request at a time may check this often.
    """

    recheck: float = 300.0
    longest_recheck: float = 3600.0
    lease: float = 60.0
    last_resort: float = 5.0


class Disabling:
    """Disables a misconfigured provider; a guard (`guard.py`).

    Its token is the time at which an attempt began.

    It needs evidence: a vendor's error that names key, region, model, deployment or billing; or the
    same refusal of two distinct requests with no answer between. A 403 or 404 may be about the
    request (from a firewall, for example), so a provider that has answered recently is disabled
    after five; and any answer enables it again.

    Attributes:
        listener: Notified of each change.
        quiet: It is neither disabled nor suspected: attempts and answers change nothing.
        reason: Why it is disabled, or None.
        refused_at: When the vendor last refused a call by such evidence.
    """

    def __init__(self, clock: Clock, policy: DisablingPolicy, listener: GuardListener) -> None:
        self._clock = clock
        self.listener = listener
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Enable the provider and forget all evidence."""
        self.quiet = True
        self.reason: FailureKind | None = None
        self._suspects: dict[FailureKind | None, set[Hashable]] = {}
        self._certain = False
        self._in_a_row = 0
        self._recheck_at = -math.inf
        self.refused_at = -math.inf
        self._check_until = -math.inf
        self._checked_at = -math.inf

    def refusal(self) -> GuardRefusal | None:
        """Return why an attempt may not begin now, or None."""
        if self.reason is None:
            return None
        now, out = self._clock.now(), self._check_until
        wait = max(self._recheck_at, out) - now
        if wait <= 0:
            return None
        looked = max(self.refused_at, self._checked_at)  # a check may end without a result
        last_resort = max(0.0, max(looked + self.policy.last_resort, out) - now)
        return GuardRefusal(FailureKind.DISABLED, wait, last_resort, pending=out > now)

    def abandon(self) -> None:
        """Forget the check in flight: its event loop is gone."""
        self._check_until = -math.inf

    def refused_before(self, began: float) -> float | None:
        """Return when the vendor last refused a call; None if that was after `began`."""
        return self.refused_at if self.refused_at < began else None

    def begin(self) -> float:
        """Record that an attempt begins: a check, while the provider is disabled."""
        if self.reason is None:
            return -math.inf
        now = self._checked_at = self._clock.now()
        self._check_until = now + self.policy.lease
        return now

    def end(self, began: float, outcome: AttemptOutcome, *, proven: bool = False) -> None:
        """Record how an attempt ended.

        Args:
            began: From `begin`. Only an attempt that began after the disabling is a check, whose
                answer enables a provider that was disabled by a certain error.
            outcome: Its end.
            proven: The provider has answered recently.
        """
        checked = self.reason is not None and began > self._disabled_at
        if checked:
            self._check_until = -math.inf
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
        """Return whether enough distinct requests have been refused alike."""
        suspects = self._suspects.setdefault(outcome.kind, set())
        suspects.add(outcome.cause())
        doubtful = proven and outcome.kind in _MAY_BE_THE_REQUESTS
        return len(suspects) >= (_DOUBTFUL_REFUSALS if doubtful else 2)

    def _disable(self, outcome: AttemptOutcome) -> None:
        now, policy = self._clock.now(), self.policy
        if self.reason is None:
            self._disabled_at = now
        if now >= self._recheck_at:  # concurrent calls lengthen the pause once
            pause = min(policy.recheck * 2.0 ** min(self._in_a_row, 60), policy.longest_recheck)
            self._in_a_row += 1
            self._recheck_at = now + pause
        self.refused_at = now
        self.reason = reason = outcome.kind or FailureKind.UNKNOWN
        self.listener.disabled(reason, outcome.status, self._recheck_at - now)
