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
"""Seconds that are counted together, so that memory does not grow with the load."""


def hedge_delay(p95: float | None, samples: int, default: float) -> float:
    """Seconds to wait before a second provider is asked.

    Args:
        p95: The first provider's 95th percentile, in seconds, if it is known.
        samples: From how many latencies; fewer than 20 say nothing.
        default: For that case.
    """
    return default if p95 is None or samples < ENOUGH else p95


class _Second:
    __slots__ = ("began", "hedges", "requests")

    def __init__(self, began: float) -> None:
        self.began = began
        self.requests = 0
        self.hedges = 0


class HedgeBudget:
    """Never more hedges than a share of the requests of the last minute, or a small floor.

    Args:
        clock: The gateway's.
        most_percent: The share, in percent.
    """

    __slots__ = ("_clock", "_hedges", "_requests", "_seconds", "_share")

    def __init__(self, clock: Clock, *, most_percent: float = 5.0) -> None:
        self._clock = clock
        self._share = most_percent / 100
        self._seconds: deque[_Second] = deque()
        self._requests = 0
        self._hedges = 0

    def request(self) -> None:
        """A request has come in."""
        self._now().requests += 1
        self._requests += 1

    def take(self) -> bool:
        """Whether one more hedge may be made; if so, it is counted."""
        second = self._now()
        if self._share <= 0 or self._hedges + 1 > max(FLOOR, self._share * self._requests):
            return False
        second.hedges += 1
        self._hedges += 1
        return True

    def _now(self) -> _Second:
        now = self._clock.now()
        seconds = self._seconds
        # A second is dropped when its last moment is out of the window.
        while seconds and seconds[0].began + _BUCKET + WINDOW <= now:
            gone = seconds.popleft()
            self._requests -= gone.requests
            self._hedges -= gone.hedges
        if not seconds or seconds[-1].began + _BUCKET <= now:
            seconds.append(_Second(now))
        return seconds[-1]
