"""How a quantity is spread, in as little memory for a million values as for ten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["Histogram"]

_LEAST = 0.0001
"""Seconds; everything below counts as this."""

_STEP = math.log(1.05)
"""Each bucket ends 5 % above where it begins, so a percentile is at most that much too high."""


class Histogram:
    """Durations in seconds, counted in buckets that grow by 5 %."""

    __slots__ = ("_buckets", "count", "highest", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.highest = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._buckets[_bucket(seconds)] += 1
        self.count += 1
        self.total += seconds
        self.highest = max(self.highest, seconds)

    @property
    def mean(self) -> float | None:
        """Seconds; None without values."""
        return self.total / self.count if self.count else None

    def percentile(self, percent: float) -> float | None:
        """Seconds (nearest rank), at most 5 % too high; None without values."""
        if not self.count:
            return None
        rank = max(1, math.ceil(percent / 100 * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(self.highest, _end(bucket))
        return self.highest

    def bars(self, most: int = 40) -> Sequence[tuple[float, float, int]]:
        """At most so many bars: from (seconds), to (seconds), how many; empty ones included."""
        if not self.count:
            return ()
        first, last = min(self._buckets), max(self._buckets)
        width = -(-(last - first + 1) // most)
        bars = []
        for low in range(first, last + 1, width):
            inside = sum(self._buckets[bucket] for bucket in range(low, low + width))
            bars.append((_end(low - 1), _end(low + width - 1), inside))
        return bars


def _bucket(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, _LEAST) / _LEAST) / _STEP)


def _end(bucket: int) -> float:
    return _LEAST * math.exp(bucket * _STEP)
