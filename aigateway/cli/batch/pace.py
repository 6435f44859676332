"""How quick a job is just now, from how far it was a little earlier."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from aigateway.batch.files.totals import Totals

__all__ = ["Pace", "Rates"]

_WINDOW = 10.0
"""Seconds looked back at, when enough happens in them."""
_ENOUGH = 20
"""Lines. With fewer in the window the rate would jump, so it is looked back further."""
_LONGEST = 60.0
"""Seconds looked back at, at most."""


class _Sample(NamedTuple):
    at: float
    lines: int
    tokens: int
    earlier: int


@dataclass(frozen=True, slots=True)
class Rates:
    """What a second brings; None before that can be told.

    Attributes:
        lines: Lines that are over, however they ended.
        tokens: Tokens of answers, in and out.
    """

    lines: float | None = None
    tokens: float | None = None


class Pace:
    """Looks at a job's totals now and then. What earlier runs did does not count."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def look(self, elapsed: float, totals: Totals) -> Rates:
        """Take note of how far the job is, and say how quick.

        Args:
            elapsed: Seconds since the job began.
            totals: How far it is.
        """
        tokens = totals.usage.total_tokens
        now = _Sample(elapsed, totals.done - totals.earlier, tokens, totals.earlier)
        if self._samples and self._samples[-1].earlier != now.earlier:
            self._samples.clear()  # an earlier run's records are being read: their tokens are old
        self._samples.append(now)
        while self._samples[0].at < elapsed - _LONGEST:
            self._samples.popleft()
        since = next(self._far_enough(now), self._samples[0])
        seconds = now.at - since.at
        if seconds <= 0:
            return Rates()
        return Rates((now.lines - since.lines) / seconds, (now.tokens - since.tokens) / seconds)

    def _far_enough(self, now: _Sample) -> Iterator[_Sample]:
        for sample in reversed(self._samples):
            if now.at - sample.at >= _WINDOW and now.lines - sample.lines >= _ENOUGH:
                yield sample
