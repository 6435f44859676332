"""Requests, failures and latency of the last three minutes, for the charts of the status page.

Time is cut into points of two seconds of the wall clock, so that those of several processes fit
together. Each process keeps its own points; `merged_history` adds them up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, TypedDict

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import FailureKind
from aigateway.events import MOST_UNCOUNTED, AttemptEnded, RequestEnded, ServedCall
from aigateway.figures import Percentiles
from aigateway.telemetry.metrics import LatencyWindow

__all__ = [
    "NOT_THE_PROVIDERS",
    "POINTS",
    "STEP",
    "HistoryReport",
    "MergedHistory",
    "RecentHistory",
    "merged_history",
]  # fmt: skip

STEP = 2.0
"""Seconds of a point."""

POINTS = 90
"""Points that are kept: three minutes."""

_LATE = 1.0
"""Seconds after which the others have reported the end of a point, too."""

_MOST_SERIES = 64
"""Providers of one point; more are left out of the charts."""

ALL = ""
"""Stands for requests in place of a provider."""

NOT_THE_PROVIDERS = frozenset({
    FailureKind.REJECTED,
    FailureKind.CONTEXT_WINDOW,
    FailureKind.CONTENT_POLICY,
    FailureKind.CANCELLED,
    FailureKind.DEADLINE,
    FailureKind.HEDGE_LOST,
})  # fmt: skip
"""Failures that say nothing about the provider."""

Point = dict[str, list[Any]]
"""By provider (`ALL` for requests): how many ended, how many of them failed, the 95th percentile of
the latency of the others in seconds, if there were any."""


class HistoryReport(TypedDict):
    """The points of one process. Plain values, fit for JSON."""

    since: int
    """The number of the first one that it could count."""
    points: list[tuple[int, Point]]
    """Those in which something ended, oldest first."""


class MergedHistory(TypedDict):
    """What the charts show."""

    step: float
    since: float
    """Seconds since the Unix epoch. What is not among `points` from here on is zero."""
    until: float
    points: list[tuple[float, Point]]
    """Each with its beginning, oldest first."""


class RecentHistory:
    """The points of one process. Its memory is bounded, whatever happens.

    Args:
        clock: Time.

    Attributes:
        uncounted: Ends, each event with two times; counted later, many at once.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._points: dict[int, Point] = {}  # oldest first
        self._latencies: dict[str, LatencyWindow] = {}  # of the newest point
        self._since = self._newest = int(clock.wall() // STEP)
        self._answers = LatencyWindow()  # of requests, whatever their point
        self.uncounted: deque[ServedCall | tuple[RequestEnded | AttemptEnded, float, float]] = (
            deque()
        )

    def note(self, event: RequestEnded | AttemptEnded) -> None:
        """Count the end of a request, or of an attempt at a provider."""
        self.uncounted.append((event, self._clock.now(), self._clock.wall()))
        if len(self.uncounted) >= MOST_UNCOUNTED:
            self.count()

    def report(self) -> HistoryReport:
        """Return the points of the last three minutes."""
        self.count()
        self._advance(int(self._clock.wall() // STEP))
        self._summarize()
        return {"since": self._since, "points": list(self._points.items())}

    def latency(self, seconds: float) -> Percentiles | None:
        """Return how long the answers of the last seconds took; None if there were none."""
        self.count()
        return self._answers.percentiles(since=self._clock.now() - seconds)

    def count(self) -> None:
        """Count what was noted."""
        while self.uncounted:
            end = self.uncounted.popleft()
            if isinstance(end, ServedCall):
                self._advance(int(end.wall // STEP))
                self._count(end.provider, end.attempt_seconds)
                self._count(ALL, end.latency_seconds)
                self._answers.add(end.latency_seconds, end.at)
            else:
                event, at, wall = end
                self._advance(int(wall // STEP))
                self._count_event(event, at)

    def _count_event(self, event: RequestEnded | AttemptEnded, at: float) -> None:
        if isinstance(event, RequestEnded):
            failed = event.outcome == "failed" and not event.rejected
            answered = event.outcome == "served"
            self._count(ALL, event.latency_seconds if answered else None, failed=failed)
            if answered:
                self._answers.add(event.latency_seconds, at)
        elif event.failure not in NOT_THE_PROVIDERS:
            latency = event.latency_seconds if event.failure is None else None
            self._count(event.provider, latency, failed=event.failure is not None)

    def _count(self, name: str, latency: float | None, *, failed: bool = False) -> None:
        point = self._points.get(self._newest)
        if point is None:
            point = self._points[self._newest] = {}
        figures = point.get(name)
        if figures is None:
            if len(point) > _MOST_SERIES:
                return
            figures = point[name] = [0, 0, None]
        figures[0] += 1
        figures[1] += failed
        if latency is not None:
            window = self._latencies.get(name)
            if window is None:
                window = self._latencies[name] = LatencyWindow()
            window.add(latency)

    def _advance(self, number: int) -> None:
        """Begin a new point if it is time. A clock that is set back a little counts in the last."""
        if self._newest - POINTS <= number <= self._newest:
            return
        self._summarize()
        self._latencies.clear()
        if number < self._newest:  # it was far ahead
            self._points.clear()
            self._since = number
        self._newest = number
        self._since = max(self._since, number - POINTS + 1)
        for old in [each for each in self._points if each < self._since]:
            del self._points[old]

    def _summarize(self) -> None:
        point = self._points.get(self._newest, {})
        for name, window in self._latencies.items():
            percentiles = window.percentiles()
            point[name][2] = percentiles and percentiles["p95"]


def merged_history(
    reports: Sequence[HistoryReport], now: float, after: float = 0.0
) -> MergedHistory:
    """Add up the points of all processes, those that have exited included.

    Args:
        reports: One of each; at least one.
        now: Seconds since the Unix epoch.
        after: Leave out points that began by then.
    """
    end = int((now - _LATE) // STEP)  # the first point that may not be whole
    first = max(end - POINTS + 1, int(after // STEP) + 1)
    whole: dict[int, Point] = {}
    for report in reports:
        for number, point in report["points"]:
            if first <= number < end:
                total = whole.setdefault(number, {})
                for name, figures in point.items():
                    total[name] = _sum(total[name], figures) if name in total else figures
    return {
        "step": STEP,
        "since": max(first, min(report["since"] for report in reports)) * STEP,
        "until": end * STEP,
        "points": [(number * STEP, whole[number]) for number in sorted(whole)],
    }


def _sum(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """The highest percentile is an upper bound of the percentile of all."""
    p95 = max((each[2] for each in (one, other) if each[2] is not None), default=None)
    return [one[0] + other[0], one[1] + other[1], p95]
