"""The health of a provider: its error rate, its latency against its own usual one, and hangs.

Between a closed and an open circuit there is "degraded": the provider works, but worse than usual.
It is called after the healthy ones, and keeps a small share of requests as canaries, which show its
recovery. Nothing here opens a circuit.

- `ResponseTimes`: the latencies of one kind of answer (whole answers, first contents of streams),
  the usual one, and whether calls in flight take suspiciously long.
- `HealthWindow`: the sliding window, and whether the provider is degraded.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from aigateway.clock import Clock
from aigateway.resilience.guard import AttemptOutcome, Effect, GuardListener
from aigateway.resilience.local_faults import INTERVAL, StallDetector

__all__ = ["HealthPolicy", "HealthWindow", "OutstandingCall", "ResponseTimes"]

ENOUGH = 20
"""Fewest latencies for a percentile: of less, the 95th would be the worst one."""

_KEPT = 128
"""Latencies kept: few enough that old ones are gone after a minute of traffic."""

_EVERY = 16
"""New latencies after which the percentile is computed again."""

_STEP = 0.01
"""Share by which `usual` moves towards a new latency, once a second at most."""

_STEP_SLOW = 0.0005
"""The same while answers are slow: a latency that stays twenty times higher becomes the usual one
after about three quarters of an hour."""

_FLOOR = 0.1
"""An answer must take so many seconds more than usual to count as slow, and a call in flight so
many more than the 95th percentile to be overdue: less is no loss to a caller, and happens to a
quick vendor whenever its machine pauses."""

_COLD_SECONDS = 10.0
"""After its start a process is not judged by what an earlier one has learned."""

HANG = 4.0
"""A call in flight is overdue after this multiple of the 95th percentile, and `_FLOOR`."""


class OutstandingCall:
    """A call in flight, or one that was cancelled for a quicker one and is not judged yet.

    Without an `__init__`, since one is made for each attempt.
    """

    began: float
    stalls: StallDetector | None
    until = math.inf  # of a cancelled one: when its timeout would have come
    settle: Callable[[bool], None] | None = None

    def stalled(self, now: float) -> float:
        """Return the most seconds for which our own event loop has stood still since it began."""
        seconds = 0.0 if self.stalls is None else self.stalls.stalled(self.began, now)
        return seconds + INTERVAL if seconds else 0.0  # a stall is seen up to one tick late


class ResponseTimes:
    """The latencies of one kind of answer of one provider. Synchronous, for one event loop.

    A hang is the most expensive fault: each caller would wait for the whole timeout. So when enough
    calls are in flight for much longer than usual, and none was answered meanwhile, new requests
    prefer other providers.

    Args:
        clock: The gateway's.
        threshold: Overdue calls that make a hang; the circuit's threshold.
        stale: Seconds after which the failure of a cancelled call counts no more; the circuit's
            open time.

    Attributes:
        hedges_lost: Calls in flight that were cancelled for a quicker one.
        outstanding: Calls begun since the latest success, oldest first.
        p95: The 95th percentile (nearest rank) in seconds, as of a few latencies ago; None below
            `ENOUGH`.
        threshold: Overdue calls that make a hang.
        usual: The long-term median in seconds; None below `ENOUGH`.
    """

    def __init__(self, clock: Clock, threshold: int, *, stale: float = 60.0) -> None:
        self._clock = clock
        self._stale = stale
        self.threshold = threshold
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._fresh = 0
        self.p95: float | None = None
        self.usual: float | None = None
        self._usual_moved = -math.inf
        self.outstanding: dict[OutstandingCall, None] = {}
        self.hedges_lost: dict[OutstandingCall, None] = {}
        self._last_success = -math.inf
        self._restored_at = -math.inf
        self._next_due = math.inf  # no cancelled call is due before

    @property
    def samples(self) -> int:
        """The number of known latencies, at most 128."""
        return len(self._latencies)

    def restore(self, usual: float, p95: float) -> None:
        """Begin with what an earlier process has learned, until there are latencies enough.

        In the first seconds nothing is judged by it: a process that has just begun is slow itself.
        """
        if self.usual is None:
            self.usual, self.p95, self._restored_at = usual, p95, self._clock.now()

    def begin(self, stalls: StallDetector | None = None) -> OutstandingCall:
        """Record that a call begins.

        Args:
            stalls: Knows the stalls of our own event loop: no answer can be read then, so that
                time does not count.
        """
        call = OutstandingCall()
        call.began, call.stalls = self._clock.now(), stalls
        self.outstanding[call] = None
        return call

    def succeeded(self, call: OutstandingCall, seconds: float, *, slow: bool = False) -> None:
        """Record an answer.

        Args:
            call: From `begin`.
            seconds: Its latency.
            slow: It took much longer than usual, and says nothing about the calls in flight.
        """
        now = self._last_success = self._clock.now()
        if slow:
            self.outstanding.pop(call, None)
        else:
            self.outstanding.clear()  # a provider that answers does not hang
        if self.hedges_lost:
            self._settle(list(self.hedges_lost), failed=False)
        self._latencies.append(seconds)
        self._fresh += 1
        if self._fresh >= _EVERY or len(self._latencies) == ENOUGH:
            self._compute()
        usual = self.usual
        if usual is not None and now - self._usual_moved >= 1.0:
            self._usual_moved = now
            step = _STEP_SLOW if slow else _STEP
            self.usual = usual * (1.0 + step if seconds > usual else 1.0 - step)

    def ended(self, call: OutstandingCall) -> None:
        """Record that a call ended in another way. May be called after `succeeded`."""
        self.outstanding.pop(call, None)

    def is_slow(self, seconds: float, factor: float) -> bool:
        """Return whether a latency is more than `factor` times the usual one."""
        usual = self.usual
        slow = usual is not None and seconds > usual * factor and seconds > usual + _FLOOR
        return slow and not self._is_cold()

    def hedge_lost(
        self, call: OutstandingCall, until: float, settle: Callable[[bool], None]
    ) -> None:
        """Record that a call was cancelled, because another provider was quicker.

        Its result is unknown. It counts as in flight until its timeout would have come, and then
        as a failure, unless the provider has answered another call in the meantime.

        Args:
            call: From `begin`.
            until: When its timeout would have come, on the clock's own scale; a stall extends it.
            settle: Called once, with whether to count a failure.
        """
        call.until, call.settle = until, settle
        self.hedges_lost[call] = None
        self._next_due = min(self._next_due, until)
        if self._last_success >= call.began:
            self._settle([call], failed=False)

    def seems_to_hang(self) -> bool:
        """Return whether too many calls take too long. Settles lost hedges that are due."""
        if self.hedges_lost and self._next_due <= self._clock.now():
            self._settle_due()
        if len(self.outstanding) < self.threshold or self.p95 is None or self._is_cold():
            return False
        oldest = next(islice(self.outstanding, self.threshold - 1, None))
        now = self._clock.now()
        overdue = now - max(HANG * self.p95, self.p95 + _FLOOR)
        return oldest.began < overdue and oldest.began + oldest.stalled(now) < overdue

    def abandon(self) -> None:
        """Forget the calls in flight: their event loop is gone."""
        self.close()
        self.outstanding.clear()

    def close(self) -> None:
        """Settle lost hedges without a failure."""
        self._settle(list(self.hedges_lost), failed=False)

    def _is_cold(self) -> bool:
        return self._clock.now() < self._restored_at + _COLD_SECONDS

    def _compute(self) -> None:
        self._fresh = 0
        if len(self._latencies) >= ENOUGH:
            ordered = sorted(self._latencies)
            self.p95 = ordered[-(-95 * len(ordered) // 100) - 1]
            if self.usual is None or self._restored_at > -math.inf:
                self.usual, self._restored_at = ordered[len(ordered) // 2], -math.inf

    def _settle_due(self) -> None:
        now = self._clock.now()
        until = {call: call.until + call.stalled(now) for call in self.hedges_lost}
        due = [call for call, when in until.items() if when <= now]
        self._next_due = min((when for when in until.values() if when > now), default=math.inf)
        # Long ago, because no request has looked since: that says nothing about now.
        self._settle([call for call in due if now - until[call] > self._stale], failed=False)
        self._settle([call for call in due if now - until[call] <= self._stale], failed=True)

    def _settle(self, calls: list[OutstandingCall], *, failed: bool) -> None:
        for call in calls:
            self.outstanding.pop(call, None)
            self.hedges_lost.pop(call, None)
            settle, call.settle = call.settle, None
            if settle is not None:  # else a listener of the call before has settled this one
                settle(failed)


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When a provider is degraded, and which share of requests it keeps then.

    Attributes:
        window: Seconds of the sliding window.
        least: Fewest attempts in a window to judge by.
        errors: Share of failed attempts from which the provider is degraded, from 0 to 1.
        latency: Multiple of its own usual latency; degraded while most answers take longer.
        canaries: Share of requests that a degraded provider keeps, from 0 to 1. Each good answer
            doubles it until the next bad or slow one, so that a recovered provider is back soon.
    """

    window: float = 30.0
    least: int = 20
    errors: float = 0.5
    latency: float = 5.0
    canaries: float = 0.05


QUICK = 10
"""The latest attempts, which are judged on their own if they ended within `QUICK_SECONDS`: a busy
provider is degraded before the window is full."""

QUICK_SECONDS = 5.0

_QUICK_SHARE = 0.9
"""Share of them that must be bad, or slow: of ten attempts, less would often be chance. (At 20
attempts a second, 8 of 10 fail once a minute where 30 % fail at random.)"""

RUN = 10
"""Good answers in a row after which a degraded provider is healthy again. Where half of the calls
fail, ten good ones in a row are one case in two thousand; five would be one in sixty."""

_MOST_CAUSES = 4096
"""Distinct failing requests that a window remembers; beyond these, each failure counts."""


@dataclass(slots=True)
class _Second:
    """The attempts that ended in one second."""

    began: float
    good: int = 0
    bad: int = 0
    slow: int = 0


class HealthWindow:
    """The guard that decides whether a provider's operation is degraded; it never refuses."""

    def __init__(self, clock: Clock, policy: HealthPolicy, listener: GuardListener) -> None:
        self._clock = clock
        self.listener = listener
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Return to the initial state: healthy."""
        self.degraded: Literal["errors", "latency"] | None = None
        self._seconds: deque[_Second] = deque()
        self._latest: deque[tuple[float, bool, bool]] = deque(maxlen=QUICK)  # when, bad, slow
        self._causes: dict[Hashable, float] = {}  # of failed and slow attempts, oldest first
        self._run = 0
        self._canary = 0.0
        self._share = self.policy.canaries
        self._ended_at = self._clock.now()

    def is_degraded(self) -> bool:
        """Return whether healthy providers are to be preferred."""
        if self.degraded is None:
            return False
        if self._clock.now() - self._ended_at > self.policy.window:
            self._recover()  # no call has ended for so long: the window is outdated
        return self.degraded is not None

    def has_answered(self) -> bool:
        """Return whether there is an answer in the window."""
        since = self._clock.now() - self.policy.window
        return any(s.good or s.slow for s in self._seconds if s.began + 1.0 > since)

    def draw_canary(self) -> bool:
        """Return whether a degraded provider keeps this request."""
        self._canary += self._share
        if self._canary < 1.0:
            return False
        self._canary -= 1.0
        return True

    def end(self, outcome: AttemptOutcome, *, slow: bool = False) -> None:
        """Record how an attempt ended.

        Args:
            outcome: Its end.
            slow: It was answered, but took much longer than usual.
        """
        bad = outcome.effect is Effect.FAILED
        if not bad and outcome.effect is not Effect.ANSWERED:
            return
        now = self._ended_at = self._clock.now()
        if (bad or slow) and self._is_repeated(outcome.cause(), now):
            return
        second = self._second(now)
        self._latest.append((now, bad, slow))
        if bad:
            second.bad += 1
        elif slow:
            second.slow += 1
        else:
            second.good += 1
        if self.degraded is None:
            if bad or slow:
                self._judge(now)
        elif bad or slow:
            self._run, self._share = 0, self.policy.canaries
        else:
            self._run, self._share = self._run + 1, min(1.0, self._share * 2)
            if self._run >= RUN:
                self._recover()

    def good(self) -> None:
        """Record an answer in good time of a healthy provider: a short form of `end`."""
        now = self._ended_at = self._clock.now()
        seconds = self._seconds
        same = seconds and now < seconds[-1].began + 1.0
        second = seconds[-1] if same else self._second(now)
        second.good += 1
        self._latest.append((now, False, False))

    def _is_repeated(self, cause: Hashable, now: float) -> bool:
        """Return whether this request has already counted in the window."""
        causes = self._causes
        while causes:
            oldest = next(iter(causes))
            if causes[oldest] + self.policy.window > now:
                break
            del causes[oldest]
        if cause in causes:
            return True
        if cause is not None and len(causes) < _MOST_CAUSES:
            causes[cause] = now
        return False

    def _second(self, now: float) -> _Second:
        seconds = self._seconds
        if not seconds or seconds[-1].began + 1.0 <= now:
            while seconds and seconds[0].began + self.policy.window <= now:
                seconds.popleft()
            seconds.append(_Second(now))
        return seconds[-1]

    def _judge(self, now: float) -> None:
        policy, latest = self.policy, self._latest
        bad, slow = sum(bad for _, bad, _ in latest), sum(slow for *_, slow in latest)
        if len(latest) == QUICK and now - latest[0][0] <= QUICK_SECONDS:
            quick = QUICK * _QUICK_SHARE
            if bad >= max(quick, QUICK * policy.errors):
                return self._degrade("errors", bad / QUICK)
            if slow >= quick:
                return self._degrade("latency", slow / QUICK)
        good = bad = slow = 0
        for second in self._seconds:
            if second.began + policy.window > now:
                good, bad, slow = good + second.good, bad + second.bad, slow + second.slow
        total = good + bad + slow
        if total < policy.least:
            return None
        if bad / total >= policy.errors:
            return self._degrade("errors", bad / total)
        if slow * 2 > good + slow:
            return self._degrade("latency", slow / total)
        return None

    def _degrade(self, reason: Literal["errors", "latency"], share: float) -> None:
        self.degraded = reason
        self._run = 0
        self._canary, self._share = 0.0, self.policy.canaries
        self.listener.degraded(reason, share)

    def _recover(self) -> None:
        self.degraded = None
        self._seconds.clear()
        self._latest.clear()
        self.listener.recovered()
