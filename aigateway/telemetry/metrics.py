"""Counters of requests and of providers.

Every request ends in exactly one `Outcome`, and every attempt in a success or one kind of failure.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import get_args

from aigateway.errors import FailureKind
from aigateway.events import Outcome
from aigateway.figures import Percentiles, ProviderCounts, RequestMetrics
from aigateway.messages import Usage

__all__ = ["LatencyWindow", "ProviderCounters", "RequestCounters"]

WINDOW = 512
"""Latencies that a window keeps."""


class LatencyWindow:
    """The last `WINDOW` latencies, each with its time, and their percentiles.

    Attributes:
        latencies: Each with its time; to append one is to note it.
    """

    __slots__ = ("_whole", "latencies")

    def __init__(self) -> None:
        self.latencies: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        # The percentiles of all of them, once they have been asked for, and the last one then.
        self._whole: tuple[Percentiles, tuple[float, float]] | None = None

    def __len__(self) -> int:
        return len(self.latencies)

    def add(self, seconds: float, at: float = 0.0) -> None:
        """Note one latency; the oldest goes."""
        self.latencies.append((seconds, at))

    def percentiles(self, since: float = -math.inf) -> Percentiles | None:
        """Return the percentiles (nearest rank), or None without data.

        Args:
            since: Leave out latencies of before.
        """
        if since > -math.inf:
            return _percentiles([seconds for seconds, at in self.latencies if at >= since])
        if not self.latencies:
            return None
        whole, last = self._whole, self.latencies[-1]
        if whole is None or whole[1] is not last:
            found = _percentiles([seconds for seconds, _ in self.latencies])
            assert found is not None  # noqa: S101 - there are some
            whole = self._whole = (found, last)
        return whole[0].copy()


def _percentiles(latencies: list[float]) -> Percentiles | None:
    if not latencies:
        return None
    ordered, last = sorted(latencies), len(latencies) - 1
    p50, p95, p99 = (
        round(ordered[min(last, max(0, -(-p * len(ordered) // 100) - 1))], 6) for p in (50, 95, 99)
    )
    return {"p50": p50, "p95": p95, "p99": p99}


class ProviderCounters:
    """One provider since it was added. `attempts` counts those that have ended."""

    __slots__ = (
        "attempts",
        "completion_tokens",
        "cost_usd",
        "failures",
        "latency",
        "prompt_tokens",
        "successes",
        "total_tokens",
    )

    def __init__(self) -> None:
        self.attempts = 0
        self.successes = 0
        self.failures: Counter[FailureKind] = Counter()
        self.latency = LatencyWindow()
        self.prompt_tokens = self.completion_tokens = self.total_tokens = 0
        self.cost_usd = 0.0

    def succeeded(self, seconds: float, usage: Usage, cost_usd: float | None) -> None:
        """Count an answer; only answers count for the latency percentiles."""
        self.attempts += 1
        self.successes += 1
        self.latency.latencies.append((seconds, 0.0))
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.total_tokens += usage.total_tokens
        self.cost_usd += cost_usd or 0.0

    def spent(self, usage: Usage, cost_usd: float | None) -> None:
        """Count what an answer cost, also one that was not used."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.total_tokens += usage.total_tokens
        self.cost_usd += cost_usd or 0.0

    def failed(self, kind: FailureKind) -> None:
        """Count an attempt without an answer."""
        self.attempts += 1
        self.failures[kind] += 1

    def snapshot(self) -> ProviderCounts:
        """Return plain values, fit for JSON."""
        return {
            "attempts": self.attempts,
            "successes": self.successes,
            "failures": {str(kind): count for kind, count in sorted(self.failures.items())},
            "latency_seconds": self.latency.percentiles(),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cost_usd": round(self.cost_usd, 10),
        }


class RequestCounters:
    """How many requests there were, and how they ended. Invalid input does not count."""

    __slots__ = ("ended", "rejected", "total")

    def __init__(self) -> None:
        self.total = self.rejected = 0
        self.ended: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)

    def snapshot(self) -> RequestMetrics:
        """Return plain values, the documented keys first."""
        ended, total = self.ended, self.total
        return {
            "total_requests": total,
            "cache_hits": ended["hit"],
            "cache_hit_rate_percent": round(100 * ended["hit"] / total, 2) if total else 0.0,
            "failures": ended["failed"],
            "rejected": self.rejected,
            "stale_answers": ended["stale"],
            "coalesced": ended["coalesced"],
            "served": ended["served"],
            "cancelled": ended["cancelled"],
        }
