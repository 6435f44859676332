"""Plain counters: what happened to requests, and what each provider did.

The books balance: every request ends as exactly one of hit, stale, coalesced, served, failed or
cancelled, and every attempt as exactly one outcome.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

from aigateway.errors import FailureKind
from aigateway.messages import Usage

__all__ = ["LatencyWindow", "Percentiles", "ProviderCounters", "RequestCounters"]

WINDOW = 512
"""Latencies that a window keeps."""

Percentiles = dict[str, float]
"""`{"p50": ..., "p95": ..., "p99": ...}`, in seconds."""


class LatencyWindow:
    """The last `WINDOW` latencies, each with its time, and their percentiles."""

    __slots__ = ("_latencies",)

    def __init__(self) -> None:
        self._latencies: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def __len__(self) -> int:
        return len(self._latencies)

    def add(self, seconds: float, at: float = 0.0) -> None:
        """Note one latency; the oldest goes."""
        self._latencies.append((seconds, at))

    def percentiles(self, since: float = -math.inf) -> Percentiles | None:
        """Return the percentiles (nearest rank), or None without data.

        Args:
            since: Leave out latencies of before.
        """
        ordered = sorted(seconds for seconds, at in self._latencies if at >= since)
        if not ordered:
            return None
        last = len(ordered) - 1
        return {
            f"p{p}": round(ordered[min(last, max(0, -(-p * len(ordered) // 100) - 1))], 6)
            for p in (50, 95, 99)
        }


class ProviderCounters:
    """What one provider did since it was added. `attempts` counts calls that have ended."""

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
        """Note an answer; only answers count for the latency percentiles."""
        self.attempts += 1
        self.successes += 1
        self.latency.add(seconds)
        self.spent(usage, cost_usd)

    def spent(self, usage: Usage, cost_usd: float | None) -> None:
        """Note what an answer cost, whether it was of use or not."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.total_tokens += usage.total_tokens
        self.cost_usd += cost_usd or 0.0

    def failed(self, kind: FailureKind) -> None:
        """Note an attempt that gave no answer."""
        self.attempts += 1
        self.failures[kind] += 1

    def snapshot(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
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
    """What became of the requests. Input refused before it became a request is not counted."""

    __slots__ = ("cache_hits", "cancelled", "coalesced", "failures", "served", "stale", "total")

    def __init__(self) -> None:
        self.total = 0
        self.cache_hits = 0
        self.stale = 0
        self.coalesced = 0
        self.served = 0
        self.failures = 0
        self.cancelled = 0

    def snapshot(self) -> dict[str, Any]:
        """The documented keys first."""
        rate = 100 * self.cache_hits / self.total if self.total else 0.0
        return {
            "total_requests": self.total,
            "cache_hits": self.cache_hits,
            "cache_hit_rate_percent": round(rate, 2),
            "failures": self.failures,
            "stale_answers": self.stale,
            "coalesced": self.coalesced,
            "served": self.served,
            "cancelled": self.cancelled,
        }
