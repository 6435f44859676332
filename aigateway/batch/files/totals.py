"""Sums over a job's records, and the limits that end or slow the job.

The sums come from the records alone, so a resumed job includes its earlier runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aigateway.batch.files.output import body_of
from aigateway.clock import Clock
from aigateway.errors import ConfigurationError
from aigateway.messages import Usage
from aigateway.resilience.rates import RateLimits

__all__ = [
    "Allowance",
    "Histogram",
    "JobLimiter",
    "JobLimits",
    "JobTotals",
    "LimitedCall",
    "ProviderTotals",
]

_LEAST_SECONDS = 0.0001
"""Shorter durations count as this."""

_STEP = math.log(1.05)
"""Each bucket ends 5 % above its beginning, so a percentile is at most 5 % too high."""


class Histogram:
    """Durations in seconds, counted in buckets that grow by 5 %. Its size does not grow."""

    __slots__ = ("_buckets", "count", "highest", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.highest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[_bucket(seconds)] += 1
        self.count += 1
        self.total += seconds
        self.highest = max(self.highest, seconds)

    def include(self, other: Histogram) -> None:
        """Count all durations of another one."""
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total += other.total
        self.highest = max(self.highest, other.highest)

    @property
    def mean(self) -> float | None:
        """Seconds; None without values."""
        return self.total / self.count if self.count else None

    def percentile(self, percent: float) -> float | None:
        """Return seconds (nearest rank), at most 5 % too high; None without values."""
        if not self.count:
            return None
        rank = max(1, math.ceil(percent / 100 * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(self.highest, _end(bucket))
        return self.highest

    def bars(self, most: int = 40) -> Sequence[tuple[float, float, int]]:
        """Return at most `most` bars (from seconds, to seconds, count), empty ones included."""
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
    return math.ceil(math.log(max(seconds, _LEAST_SECONDS) / _LEAST_SECONDS) / _STEP)


def _end(bucket: int) -> float:
    return _LEAST_SECONDS * math.exp(bucket * _STEP)


@dataclass(slots=True)
class ProviderTotals:
    """One provider's share of a job.

    Attributes:
        answers: Lines that it answered.
        failures: Its calls without an answer, by kind (`FailureKind` values).
        latency: Seconds of its answered calls.
        usage: Tokens of its answers.
        cost_usd: US dollars of its answers, as far as prices are known.
        unpriced: Answers without a known price.
    """

    answers: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    usage: Usage = Usage()  # noqa: RUF009 - it is frozen
    cost_usd: float = 0.0
    unpriced: int = 0

    def include(self, other: ProviderTotals) -> None:
        """Add another share of this provider."""
        self.answers += other.answers
        self.failures.update(other.failures)
        self.latency.include(other.latency)
        self.usage += other.usage
        self.cost_usd += other.cost_usd
        self.unpriced += other.unpriced


@dataclass(slots=True)
class JobTotals:
    """The sums over a job's records.

    Attributes:
        answered: Lines with an answer, earlier runs included.
        failed: Lines with an error.
        earlier: Lines that earlier runs of the job have finished, either way.
        cached: Answers without a vendor call of their own: from the cache, shared with an
            identical request in flight, or copied from an identical line.
        unpriced: Answers of vendors without a known price.
        usage: Tokens of the answers of vendors.
        cost_usd: US dollars of these answers, as far as prices are known.
        latency: Seconds of the gateway for each of these answers.
        errors: Failed lines by the code in their record.
        providers: By name.
    """

    answered: int = 0
    failed: int = 0
    earlier: int = 0
    cached: int = 0
    unpriced: int = 0
    usage: Usage = Usage()  # noqa: RUF009 - it is frozen
    cost_usd: float = 0.0
    latency: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    providers: dict[str, ProviderTotals] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Finished lines, answered or failed."""
        return self.answered + self.failed

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one record (see `output.py`)."""
        about: Mapping[str, Any] = record["aigateway"]
        for attempt in about["attempts"]:
            self._count_attempt(attempt)
        body = body_of(record)
        if record["error"] is not None:
            self.failed += 1
            self.errors[record["error"]["code"]] += 1
        else:
            self.answered += 1
            self.cached += about["cached"]
        if body is None or about["cached"]:
            return
        usage = _usage(body["usage"])
        self.usage += usage
        self.latency.add(about["latency_seconds"])
        provider = self._provider(about["provider"])
        provider.answers += 1
        provider.usage += usage
        if about["cost_usd"] is None:
            self.unpriced += 1
            provider.unpriced += 1
        else:
            self.cost_usd += about["cost_usd"]
            provider.cost_usd += about["cost_usd"]

    def include(self, other: JobTotals) -> None:
        """Add the sums over other records."""
        self.answered += other.answered
        self.failed += other.failed
        self.earlier += other.earlier
        self.cached += other.cached
        self.unpriced += other.unpriced
        self.usage += other.usage
        self.cost_usd += other.cost_usd
        self.latency.include(other.latency)
        self.errors.update(other.errors)
        for name, provider in other.providers.items():
            self._provider(name).include(provider)

    @property
    def priced(self) -> int:
        """Answers of vendors with a known price."""
        return self.latency.count - self.unpriced

    def _count_attempt(self, attempt: Mapping[str, Any]) -> None:
        provider = self._provider(attempt["provider"])
        if attempt["failure"] is None:
            provider.latency.add(attempt["latency_seconds"])
        else:
            provider.failures[attempt["failure"]] += 1

    def _provider(self, name: str) -> ProviderTotals:
        return self.providers.setdefault(name, ProviderTotals())


def _usage(counted: Mapping[str, Any]) -> Usage:
    return Usage(
        counted["prompt_tokens"],
        counted["completion_tokens"],
        counted["total_tokens"],
        counted["prompt_tokens_details"]["cached_tokens"],
        counted["completion_tokens_details"]["reasoning_tokens"],
    )


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The limits of a job; None sets none.

    Attributes:
        max_cost: US dollars, over all runs of the job.
        max_failures: Failed lines in one run.
        rpm: Requests begun in any 60 seconds.
        tpm: Tokens in any 60 seconds; estimated until the vendor has counted.

    Raises:
        ConfigurationError: A limit is not above 0.
    """

    max_cost: float | None = None
    max_failures: int | None = None
    rpm: int | None = None
    tpm: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_failures", "rpm", "tpm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigurationError(f"--{name.replace('_', '-')} must be above 0.")

    def cost_reached(self, spent: float) -> str:
        """Return the message of a job that ends because of its cost."""
        most = self.max_cost or 0.0
        more = "" if spent >= most else ", and the next request might exceed it"
        return f"--max-cost {_dollars(most)} is reached ({_dollars(spent)} spent{more})"


class LimitedCall(Protocol):
    """The share of one request in the limits."""

    def settle(self, tokens: int | None) -> None:
        """Replace the estimate by the vendor's count, if there is one."""


class Allowance(Protocol):
    """What one of several workers may do within the limits of the whole job."""

    def wait(self, tokens: int) -> float:
        """Return the seconds until a request of so many tokens may begin; 0.0 if now."""

    def begin(self, tokens: int) -> LimitedCall:
        """Count a request that begins."""

    @property
    def cost_is_reached(self) -> bool:
        """Whether one more request might exceed the cost limit, whatever else is in flight."""


class JobLimiter:
    """Decides when the next request may begin, and when the job ends early.

    Args:
        limits: The limits of the job.
        totals: Its sums.
        clock: Time.
        allowance: This process's share of the limits; None if it has the job to itself.
    """

    def __init__(
        self,
        limits: JobLimits,
        totals: JobTotals,
        clock: Clock,
        allowance: Allowance | None = None,
    ) -> None:
        self._limits = limits
        self._totals = totals
        self._allowance = allowance
        self._rates = allowance or RateLimits(clock, limits.rpm, limits.tpm)
        self._failed_before = totals.failed

    def reached(self, in_flight: int) -> str | None:
        """Return the limit that ends the job, as a message; None while there is none.

        Args:
            in_flight: Requests whose cost is not known yet.
        """
        limits, totals = self._limits, self._totals
        failures = totals.failed - self._failed_before
        if limits.max_failures is not None and failures >= limits.max_failures:
            return f"--max-failures {limits.max_failures} is reached"
        if limits.max_cost is not None and not in_flight and self._may_exceed_cost(in_flight):
            return limits.cost_reached(totals.cost_usd)
        return None

    def wait(self, in_flight: int, tokens: int) -> float:
        """Return seconds until a request may begin; infinite until another one ends."""
        shared, limited = self._allowance is not None, self._limits.max_cost is not None
        if limited and in_flight and not shared and self._may_exceed_cost(in_flight):
            return math.inf  # the requests in flight may cost all that is left
        return self._rates.wait(tokens)

    def begin(self, tokens: int) -> LimitedCall:
        """Count a request that begins."""
        return self._rates.begin(tokens)

    def _may_exceed_cost(self, in_flight: int) -> bool:
        """Return whether one more request, at the mean price, might exceed the cost limit.

        Until a first price is known, requests go out one at a time.
        """
        if self._allowance is not None:
            return self._allowance.cost_is_reached
        totals = self._totals
        assert self._limits.max_cost is not None  # noqa: S101 - both callers have checked
        if not totals.priced:
            return in_flight > 0
        mean = totals.cost_usd / totals.priced
        return totals.cost_usd + (in_flight + 1) * mean > self._limits.max_cost


def _dollars(amount: float) -> str:
    return f"${amount:.8f}".rstrip("0").rstrip(".")
