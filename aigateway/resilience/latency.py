"""How long a provider usually takes: a recent 95th percentile that costs nothing to look at."""

from __future__ import annotations

__all__ = ["RecentLatency"]

SIZE = 128
"""Latencies kept. Few enough that yesterday's are gone after a minute of traffic."""

ENOUGH = 20
"""Latencies below which a 95th percentile means nothing: it would be the worst one seen."""

_EVERY = 16
"""New latencies after which the percentile is worked out again."""


class RecentLatency:
    """The last latencies of one provider, in seconds. Synchronous, for one event loop."""

    __slots__ = ("_fresh", "_next", "_p95", "_values")

    def __init__(self) -> None:
        self._values: list[float] = []
        self._next = 0
        self._fresh = 0
        self._p95: float | None = None

    @property
    def samples(self) -> int:
        """How many are known, at most `SIZE`."""
        return len(self._values)

    @property
    def p95(self) -> float | None:
        """The 95th percentile (nearest rank), as of a few latencies ago; None below `ENOUGH`."""
        return self._p95

    def add(self, seconds: float) -> None:
        """Note one."""
        if len(self._values) < SIZE:
            self._values.append(seconds)
        else:
            self._values[self._next] = seconds
            self._next = (self._next + 1) % SIZE
        self._fresh += 1
        if self._fresh >= _EVERY or len(self._values) == ENOUGH:
            self._work_out()

    def _work_out(self) -> None:
        self._fresh = 0
        if len(self._values) >= ENOUGH:
            ordered = sorted(self._values)
            self._p95 = ordered[-(-95 * len(ordered) // 100) - 1]
