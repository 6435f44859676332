"""When a job has done enough: what it may cost, how much may fail, how fast it may go."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aigateway.batch.files.totals import Totals
from aigateway.clock import Clock
from aigateway.errors import ConfigurationError
from aigateway.resilience.rates import RateEntry, RateLimits

__all__ = ["Governor", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a job; None is no bound.

    Attributes:
        max_cost: US dollars, of all runs of the job together.
        max_failures: Lines that may fail in one run.
        rpm: Requests begun in any 60 seconds.
        tpm: Tokens in any 60 seconds, by estimate until the vendor has counted.

    Raises:
        ConfigurationError: A bound is not above 0.
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


class Governor:
    """Says when the next request may begin, and when no more should.

    Args:
        limits: The bounds.
        totals: What has come of the job.
        clock: Time.
    """

    def __init__(self, limits: Limits, totals: Totals, clock: Clock) -> None:
        self._limits = limits
        self._totals = totals
        self._rates = RateLimits(clock, limits.rpm, limits.tpm)
        self._failed_before = totals.failed

    def reached(self, out: int) -> str | None:
        """The limit that ends the job, in words for who watches.

        Args:
            out: Requests that are under way, whose cost is not known yet.
        """
        limits, totals = self._limits, self._totals
        failures = totals.failed - self._failed_before
        if limits.max_failures is not None and failures >= limits.max_failures:
            return f"--max-failures {limits.max_failures} is reached"
        if limits.max_cost is not None and not out and self._too_dear(out):
            spent = _dollars(totals.cost_usd)
            return f"--max-cost {_dollars(limits.max_cost)} is reached ({spent} spent)"
        return None

    def wait(self, out: int, tokens: int) -> float:
        """Seconds until a request may begin; 0 if it may now, infinite until something comes."""
        if self._limits.max_cost is not None and out and self._too_dear(out):
            return math.inf  # what is out may cost all that is left
        return self._rates.wait(tokens)

    def begin(self, tokens: int) -> RateEntry:
        """A request begins."""
        return self._rates.begin(tokens)

    def _too_dear(self, out: int) -> bool:
        """Whether one more, at the usual price, might cost more than is left.

        As long as no price has been seen, requests go out one at a time.
        """
        totals = self._totals
        assert self._limits.max_cost is not None  # noqa: S101 - both callers have looked
        priced = totals.latency.count - totals.unpriced
        if not priced:
            return out > 0
        usual = totals.cost_usd / priced
        return totals.cost_usd + (out + 1) * usual > self._limits.max_cost


def _dollars(amount: float) -> str:
    return f"${amount:.8f}".rstrip("0").rstrip(".")
