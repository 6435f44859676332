"""When to hedge, and how often at most. Pure policy; the racing is done elsewhere."""

from __future__ import annotations

from collections import deque

from aigateway.clock import Clock
from aigateway.resilience.latency import ENOUGH

__all__ = ["HedgeBudget", "hedge_delay"]

WINDOW = 60.0
"""Seconds over which requests and hedges are compared."""

FLOOR = 10
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


class _Second:
    __slots__ = ("began", "calls")

    def __init__(self, began: float) -> None:
        self.began = began
        self.calls = 0


def _second(seconds: deque[_Second], now: float) -> _Second:
    if not seconds or seconds[-1].began + _BUCKET <= now:
        seconds.append(_Second(now))
    return seconds[-1]


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
        self._asked: deque[_Second] = deque()
        self._hedged: deque[_Second] = deque()
        self._requests = 0
        self._hedges = 0

    def request(self) -> None:
        """A request has come in."""
        self._requests += 1
        _second(self._asked, self._drop_old()).calls += 1

    def take(self) -> bool:
        """Whether one more hedge may be made; if so, it is counted."""
        now = self._drop_old()
        if self._share <= 0 or self._hedges + 1 > max(FLOOR, self._share * self._requests):
            return False
        self._hedges += 1
        _second(self._hedged, now).calls += 1
        return True

    def _drop_old(self) -> float:
        now = self._clock.now()
        while self._asked and self._asked[0].began + WINDOW <= now:
            self._requests -= self._asked.popleft().calls
        while self._hedged and self._hedged[0].began + _BUCKET + WINDOW <= now:
            self._hedges -= self._hedged.popleft().calls
        return now
