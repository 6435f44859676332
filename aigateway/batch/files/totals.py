"""What has become of a job's lines so far: the figures for the screen, the summary and the report.

They are made from the records alone, so a job that goes on tomorrow counts what it did today.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from aigateway.batch.files.histogram import Histogram
from aigateway.messages import Usage

__all__ = ["ProviderTotals", "Totals"]


class ProviderTotals:
    """What one provider did for a job.

    Attributes:
        answers: Lines that it answered.
        failures: Its calls that brought no answer, by kind (`FailureKind` values).
        latency: Seconds of the calls that were answered.
        usage: Tokens of its answers.
        cost_usd: US dollars of its answers, as far as prices are known.
        unpriced: Answers whose price is not known.
    """

    __slots__ = ("answers", "cost_usd", "failures", "latency", "unpriced", "usage")

    def __init__(self) -> None:
        self.answers = 0
        self.failures: Counter[str] = Counter()
        self.latency = Histogram()
        self.usage = Usage()
        self.cost_usd = 0.0
        self.unpriced = 0


class Totals:
    """The sums over a job's records.

    Attributes:
        answered: Lines with an answer, those of earlier runs included.
        failed: Lines with an error.
        earlier: Those of both that earlier runs of the same job have dealt with.
        cached: Answers that no vendor was asked for in their own right: from the cache, shared
            with an identical request in flight, or copied from an identical line.
        unpriced: Answers of vendors whose price is not known.
        usage: Tokens of the answers that vendors were asked for.
        cost_usd: US dollars of these, as far as prices are known.
        latency: Seconds from the gateway's being asked to its answer, of the same.
        errors: Lines that failed, by the code in their record.
        providers: By name.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self.earlier = 0
        self.cached = 0
        self.unpriced = 0
        self.usage = Usage()
        self.cost_usd = 0.0
        self.latency = Histogram()
        self.errors: Counter[str] = Counter()
        self.providers: dict[str, ProviderTotals] = {}

    @property
    def done(self) -> int:
        """Lines that are over, however they ended."""
        return self.answered + self.failed

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one record, as `records` makes it."""
        about: Mapping[str, Any] = record["aigateway"]
        for attempt in about["attempts"]:
            self._count_attempt(attempt)
        if record["error"] is not None:
            self.failed += 1
            self.errors[record["error"]["code"]] += 1
            return
        self.answered += 1
        if about["cached"]:
            self.cached += 1
            return
        usage = _usage(record["response"]["body"]["usage"])
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
