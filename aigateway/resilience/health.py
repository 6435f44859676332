"""How well a provider works: its error rate, its latency against its own usual, and hangs.

Between a closed and an open circuit there is "degraded": the provider works, but worse than it
should. It is asked after the healthy ones, and keeps a small share of requests as canaries, so that
its recovery is noticed. Nothing here opens a circuit.

- `ResponseTimes`: how long one kind of answer takes (whole answers, first contents of streams),
  what is usual, and whether calls that are out take suspiciously long.
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
"""Latencies below which a percentile means nothing: the 95th would be the worst one seen."""

_KEPT = 128
"""Latencies kept. Few enough that yesterday's are gone after a minute of traffic."""

_EVERY = 16
"""New latencies after which the percentile is worked out again."""

_STEP = 0.01
"""Share by which `usual` moves towards a new latency, once a second at most."""

_STEP_SLOW = 0.0005
"""The same while answers are slow: one that stays twenty times slower is taken for usual after
some three quarters of an hour."""

_FLOOR = 0.1
"""Seconds above the usual that an answer must take to count as slow at all."""

HANG = 4.0
"""Times the 95th percentile after which a call that is out is overdue."""


class OutstandingCall:
    """A call that is out, or would be, had it not been cancelled for a quicker one."""

    __slots__ = ("_stalls", "began", "settle", "until")

    def __init__(self, began: float, stalls: StallDetector | None) -> None:
        self.began = began
        self.until = math.inf
        self.settle: Callable[[bool], None] | None = None
        self._stalls = stalls

    def stood(self, now: float) -> float:
        """Seconds for which our own event loop has stood still since it began, at most."""
        stood = 0.0 if self._stalls is None else self._stalls.stood(self.began, now)
        return stood + INTERVAL if stood else 0.0  # a stall begins up to a tick before it is seen


class ResponseTimes:
    """How long one kind of answer of one provider takes. Synchronous, for one event loop.

    A hang costs most: each caller waits out the whole timeout to learn what the one before it is
    just learning. So when enough calls are out for much longer than usual, and none came back
    meanwhile, new requests go elsewhere first.

    Args:
        clock: The gateway's.
        threshold: Overdue calls that make a hang; the circuit's threshold.
        stale: Seconds after which it does not matter any more that a call would have failed: the
            circuit's open time.

    Attributes:
        p95: The 95th percentile (nearest rank) in seconds, as of a few latencies ago; None below
            `ENOUGH`.
        usual: The longer-run median in seconds; None below `ENOUGH`.
    """

    __slots__ = (
        "_clock",
        "_fresh",
        "_hedges_lost",
        "_last_success",
        "_latencies",
        "_next_due",
        "_out",
        "_stale",
        "_threshold",
        "_usual_moved",
        "p95",
        "usual",
    )

    def __init__(self, clock: Clock, threshold: int, *, stale: float = 60.0) -> None:
        self._clock = clock
        self._stale = stale
        self._threshold = threshold
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._fresh = 0
        self.p95: float | None = None
        self.usual: float | None = None
        self._usual_moved = -math.inf
        self._out: dict[OutstandingCall, None] = {}  # begun since the last success, in that order
        self._hedges_lost: dict[OutstandingCall, None] = {}  # those of them that were cancelled
        self._last_success = -math.inf
        self._next_due = math.inf  # no cancelled one is due before

    @property
    def samples(self) -> int:
        """How many latencies are known, at most 128."""
        return len(self._latencies)

    def begin(self, stalls: StallDetector | None = None) -> OutstandingCall:
        """A call goes out.

        Args:
            stalls: Knows how long our own event loop stands still meanwhile: no answer can be read
                then, so that time counts for nothing here.
        """
        call = OutstandingCall(self._clock.now(), stalls)
        self._out[call] = None
        return call

    def succeeded(self, call: OutstandingCall, seconds: float, *, slow: bool = False) -> None:
        """A call brought something: the provider is alive.

        Args:
            call: From `begin`.
            seconds: What it took.
            slow: That is much longer than usual: it says nothing good of the calls still out.
        """
        now = self._last_success = self._clock.now()
        if slow:
            self._out.pop(call, None)
        else:
            self._out.clear()  # all of them began before it, and it speaks for them
        if self._hedges_lost:
            self._settle(list(self._hedges_lost), failed=False)
        self._latencies.append(seconds)
        self._fresh += 1
        if self._fresh >= _EVERY or len(self._latencies) == ENOUGH:
            self._work_out()
        usual = self.usual
        if usual is not None and now - self._usual_moved >= 1.0:
            self._usual_moved = now
            step = _STEP_SLOW if slow else _STEP
            self.usual = usual * (1.0 + step if seconds > usual else 1.0 - step)

    def ended(self, call: OutstandingCall) -> None:
        """A call ended in another way. May be called after `succeeded`."""
        self._out.pop(call, None)

    def is_slow(self, seconds: float, factor: float) -> bool:
        """Whether that is more than `factor` times what is usual here."""
        usual = self.usual
        return usual is not None and seconds > usual * factor and seconds > usual + _FLOOR

    def hedge_lost(
        self, call: OutstandingCall, until: float, settle: Callable[[bool], None]
    ) -> None:
        """A call was cancelled, because another provider was quicker.

        Whether it would have been answered is unknown. It counts as if it were still out until
        its timeout would have come, and then as a failure, unless the provider has answered
        another call in the meantime.

        Args:
            call: From `begin`.
            until: When its timeout would have come, on the clock's own scale; a stall puts it off.
            settle: Called once, with whether to count a failure.
        """
        call.until, call.settle = until, settle
        self._hedges_lost[call] = None
        self._next_due = min(self._next_due, until)
        if self._last_success >= call.began:
            self._settle([call], failed=False)

    def seems_to_hang(self) -> bool:
        """Return whether too many calls take too long. Settles lost hedges that are due."""
        if self._hedges_lost and self._next_due <= self._clock.now():
            self._settle_due()
        if len(self._out) < self._threshold or self.p95 is None:
            return False
        oldest = next(islice(self._out, self._threshold - 1, None))
        now = self._clock.now()
        overdue = now - HANG * self.p95
        return oldest.began < overdue and oldest.began + oldest.stood(now) < overdue

    def abandon(self) -> None:
        """Forget the calls that are out: their event loop is gone."""
        self.close()
        self._out.clear()

    def close(self) -> None:
        """Settle what is open, and blame no provider."""
        self._settle(list(self._hedges_lost), failed=False)

    def _work_out(self) -> None:
        self._fresh = 0
        if len(self._latencies) >= ENOUGH:
            ordered = sorted(self._latencies)
            self.p95 = ordered[-(-95 * len(ordered) // 100) - 1]
            if self.usual is None:
                self.usual = ordered[len(ordered) // 2]

    def _settle_due(self) -> None:
        now = self._clock.now()
        until = {call: call.until + call.stood(now) for call in self._hedges_lost}
        due = [call for call, when in until.items() if when <= now]
        self._next_due = min((when for when in until.values() if when > now), default=math.inf)
        # No request has looked since: what was so a while ago says nothing of now.
        self._settle([call for call in due if now - until[call] > self._stale], failed=False)
        self._settle([call for call in due if now - until[call] <= self._stale], failed=True)

    def _settle(self, calls: list[OutstandingCall], *, failed: bool) -> None:
        for call in calls:
            self._out.pop(call, None)
            self._hedges_lost.pop(call, None)
            settle, call.settle = call.settle, None
            if settle is not None:  # else a listener of the one before has come back here
                settle(failed)


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When a provider is degraded, and what it keeps.

    Attributes:
        window: Seconds that are looked at.
        least: Attempts below which a window says nothing.
        errors: Share of failed attempts from which the provider is degraded, from 0 to 1.
        latency: Multiple of its own usual latency; degraded while most answers take longer.
        canaries: Share of requests that a degraded provider keeps, from 0 to 1. Each good answer
            doubles it until the next bad or slow one, so that a well provider is back soon.
    """

    window: float = 30.0
    least: int = 20
    errors: float = 0.5
    latency: float = 5.0
    canaries: float = 0.05


QUICK = 10
"""Attempts of the view beside the window that makes it quick: the last ones, if they ended within
`QUICK_SECONDS`."""

QUICK_SECONDS = 5.0

_QUICK_SHARE = 0.9
"""Share of them that must be bad, or slow: ten attempts are few, so less would often be chance. (Of
a provider that fails 30 % at random, 8 of 10 are bad once in a minute at 20 attempts a second.)"""

RUN = 10
"""Good answers in a row after which a degraded provider is healthy again. One that fails half of
its calls has so many once in two thousand; five would be one in sixty."""

_MOST_CAUSES = 4096
"""Distinct failing requests that a window remembers; beyond it, each failure counts."""


class _Second:
    """What ended in one second."""

    __slots__ = ("bad", "began", "good", "slow")

    def __init__(self, began: float) -> None:
        self.began = began
        self.good = 0
        self.bad = 0
        self.slow = 0


class HealthWindow:
    """Whether one operation of a provider is degraded; a guard that never refuses."""

    __slots__ = (
        "_canary",
        "_causes",
        "_clock",
        "_ended_at",
        "_latest",
        "_run",
        "_seconds",
        "_share",
        "degraded",
        "listener",
        "policy",
    )

    def __init__(self, clock: Clock, policy: HealthPolicy, listener: GuardListener) -> None:
        self._clock = clock
        self.listener = listener
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Forget everything: healthy."""
        self.degraded: Literal["errors", "latency"] | None = None
        self._seconds: deque[_Second] = deque()
        self._latest: deque[tuple[float, bool, bool]] = deque(maxlen=QUICK)  # when, bad, slow
        self._causes: dict[Hashable, float] = {}  # of what failed or was slow, in that order
        self._run = 0
        self._canary = 0.0
        self._share = self.policy.canaries
        self._ended_at = self._clock.now()

    def is_degraded(self) -> bool:
        """Whether healthy providers had better be asked first."""
        if self.degraded is None:
            return False
        if self._clock.now() - self._ended_at > self.policy.window:
            self._recover()  # no call has come back for so long: what is known is too old
        return self.degraded is not None

    def has_answered(self) -> bool:
        """Whether there is an answer in the window."""
        since = self._clock.now() - self.policy.window
        return any(s.good or s.slow for s in self._seconds if s.began + 1.0 > since)

    def draw_canary(self) -> bool:
        """Whether this request is one of those that a degraded provider keeps."""
        self._canary += self._share
        if self._canary < 1.0:
            return False
        self._canary -= 1.0
        return True

    def refusal(self) -> None:
        """Degraded is no reason to refuse."""

    def begin(self) -> None:
        """An attempt begins."""

    def end(self, _: None, outcome: AttemptOutcome, *, slow: bool = False) -> None:
        """An attempt ended.

        Args:
            outcome: How.
            slow: It was answered, but took much longer than is usual.
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
        """An attempt was answered in good time, while all is well: `end` without its questions."""
        now = self._ended_at = self._clock.now()
        self._second(now).good += 1
        self._latest.append((now, False, False))

    def _is_repeated(self, cause: Hashable, now: float) -> bool:
        """Whether this request has counted in the window already."""
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
