"""Bounds on calls that need not be made: retries, second opinions and hedges.

Where many requests fail, each of them asking again multiplies the load just when it hurts most.
"""

from __future__ import annotations

from collections import deque

from aigateway.clock import Clock
from aigateway.resilience.health import ENOUGH

__all__ = ["HedgeBudget", "RetryBudget", "hedge_delay"]

STOCK = 10.0
"""Tokens at the start, so that the first requests of all may be retried."""

MOST = 50.0
"""Tokens at most: what a quiet hour has saved must not become a storm in the next second."""


class RetryBudget:
    """One token bucket for all extra calls. Synchronous, for one event loop.

    The shape (a share of the requests, and a little with time) is that of Finagle's RetryBudget.

    Args:
        clock: Time brings tokens too.
        share: Tokens that each request brings.
        per_second: Tokens that each second brings.
    """

    __slots__ = ("_clock", "_looked", "_per_second", "_share", "_tokens")

    def __init__(self, clock: Clock, *, share: float = 0.2, per_second: float = 1.0) -> None:
        self._clock = clock
        self._share = share
        self._per_second = per_second
        self._tokens = STOCK
        self._looked = clock.now()

    @property
    def balance(self) -> float:
        """Tokens there are now."""
        now = self._clock.now()
        self._tokens = min(MOST, self._tokens + (now - self._looked) * self._per_second)
        self._looked = now
        return self._tokens

    def request(self) -> None:
        """A request has come in."""
        self._tokens = min(MOST, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one extra call may be made; if so, it is paid for."""
        if self.balance < 1.0:
            return False
        self._tokens -= 1.0
        return True


HEDGE_WINDOW = 60.0
"""Seconds over which requests and hedges are compared."""

HEDGE_FLOOR = 10
"""Hedges in a window that are let through however few requests there were."""

_BUCKET = 1.0
"""Seconds that are counted together, so that memory does not grow with the load.

What straddles the window's edge counts if it is a hedge and does not if it is a request, so the
error is on the safe side.
"""


def hedge_delay(p95: float | None, samples: int, default: float) -> float:
    """Seconds to wait before a second provider is asked.

    Args:
        p95: The first provider's 95th percentile, in seconds, if it is known.
        samples: From how many latencies; fewer than 20 say nothing.
        default: For that case.
    """
    return default if p95 is None or samples < ENOUGH else p95


class _CallCount:
    __slots__ = ("began", "calls")

    def __init__(self, began: float) -> None:
        self.began = began
        self.calls = 0


def _bucket(buckets: deque[_CallCount], now: float) -> _CallCount:
    if not buckets or buckets[-1].began + _BUCKET <= now:
        buckets.append(_CallCount(now))
    return buckets[-1]


class HedgeBudget:
    """Never more hedges than a share of the requests of the last minute, or a small floor.

    Args:
        clock: The gateway's.
        most_percent: The share, in percent.
    """

    __slots__ = ("_asked", "_clock", "_hedged", "_hedges", "_requests", "_share")

    def __init__(self, clock: Clock, *, most_percent: float = 5.0) -> None:
        self._clock = clock
        self._share = most_percent / 100
        self._asked: deque[_CallCount] = deque()
        self._hedged: deque[_CallCount] = deque()
        self._requests = 0
        self._hedges = 0

    def request(self) -> None:
        """A request has come in."""
        self._requests += 1
        _bucket(self._asked, self._drop_old()).calls += 1

    def take(self) -> bool:
        """Whether one more hedge may be made; if so, it is counted."""
        now = self._drop_old()
        if self._share <= 0 or self._hedges + 1 > max(HEDGE_FLOOR, self._share * self._requests):
            return False
        self._hedges += 1
        _bucket(self._hedged, now).calls += 1
        return True

    def _drop_old(self) -> float:
        now = self._clock.now()
        while self._asked and self._asked[0].began + HEDGE_WINDOW <= now:
            self._requests -= self._asked.popleft().calls
        while self._hedged and self._hedged[0].began + _BUCKET + HEDGE_WINDOW <= now:
            self._hedges -= self._hedged.popleft().calls
        return now
