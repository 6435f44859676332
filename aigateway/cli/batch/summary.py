"""The figures of a job that is over: as tables for people, and as plain values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.batch.files.histogram import Histogram
from aigateway.batch.files.totals import ProviderTotals, Totals
from aigateway.cli.batch.figures import (
    clock_time,
    count,
    dollars,
    duration,
    per_second,
    printable,
)
from aigateway.messages import Usage

__all__ = ["Summary", "counts", "plain_summary", "print_summary", "provider_cost"]

_PERCENTS = (50, 95, 99)
_WIDE = 100
"""Columns from which on there is room for a provider's tokens too."""
_NARROW = 72
"""Columns below which a provider's figures do not fit into one row."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job ended.

    Attributes:
        totals: What has become of its lines, in this run and earlier ones.
        total: How many lines there are in all.
        elapsed: Seconds that this run took.
        stopped: Why it ended before all was done ("interrupted", "--max-cost reached"), else None.
        input_path: What was asked.
        output_path: Where the answers are.
        errors_path: Where the errors are; None if no such file was written.
        report_path: Where the report will be; None without one.
        finished_at: When it ended, in seconds since the Unix epoch; None leaves the date out.
    """

    totals: Totals
    total: int
    elapsed: float
    stopped: str | None
    input_path: Path
    output_path: Path
    errors_path: Path | None = None
    report_path: Path | None = None
    finished_at: float | None = None

    @property
    def left(self) -> int:
        """Lines that nothing has been written for yet."""
        return max(0, self.total - self.totals.done)

    @property
    def lines_per_second(self) -> float | None:
        """What this run did; None if it took no time."""
        fresh = self.totals.done - self.totals.earlier
        return fresh / self.elapsed if self.elapsed > 0 else None

    @property
    def outcome(self) -> str:
        """In a few words."""
        if self.stopped is not None:
            return f"stopped: {self.stopped}"
        return "complete" if not self.left else "not complete"

    @property
    def files(self) -> Iterator[tuple[str, Path]]:
        """What was written, and what it holds."""
        yield "answers", self.output_path
        if self.errors_path is not None:
            yield "errors", self.errors_path
        if self.report_path is not None:
            yield "report", self.report_path


def print_summary(console: Console, summary: Summary) -> None:
    """Print the figures; the console should be on stderr."""
    console.print(_in_all(summary))
    if console.width < _NARROW:
        console.print(_one_below_the_other(summary.totals))
    elif summary.totals.providers:
        console.print(_by_provider(summary.totals, wide=console.width >= _WIDE))
    if summary.totals.errors:
        console.print(_by_code(summary.totals.errors))


def plain_summary(summary: Summary) -> dict[str, Any]:
    """The same figures as plain values, fit for JSON. No prompt and no answer is among them."""
    totals = summary.totals
    errors_path, finished_at = summary.errors_path, summary.finished_at
    return {
        "input": str(summary.input_path),
        "output": str(summary.output_path),
        "errors": None if errors_path is None else str(errors_path),
        "finished_at": finished_at,
        "stopped": summary.stopped,
        "lines": {
            "total": summary.total,
            "answered": totals.answered,
            "failed": totals.failed,
            "left": summary.left,
            "cached": totals.cached,
            "earlier": totals.earlier,
        },
        "tokens": _plain_usage(totals.usage),
        "cost_usd": totals.cost_usd,
        "unpriced_answers": totals.unpriced,
        "elapsed_seconds": summary.elapsed,
        "lines_per_second": summary.lines_per_second,
        "latency_seconds": _plain_latency(totals.latency),
        "errors_by_code": dict(totals.errors.most_common()),
        "providers": {name: _plain_provider(each) for name, each in totals.providers.items()},
    }


def counts(numbers: Mapping[str, int]) -> str:
    """`timeout 3, rate_limited 1`, most frequent first; "-" without any."""
    most = Counter(numbers).most_common()
    return ", ".join(f"{name} {count(number)}" for name, number in most) or "-"


def _plain_usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "total": usage.total_tokens,
        "cached": usage.cached_tokens,
        "reasoning": usage.reasoning_tokens,
    }


def _plain_latency(latency: Histogram) -> dict[str, float | None]:
    return {
        "mean": latency.mean,
        **{f"p{percent}": latency.percentile(percent) for percent in _PERCENTS},
        "highest": latency.highest if latency.count else None,
    }


def _plain_provider(provider: ProviderTotals) -> dict[str, Any]:
    return {
        "answers": provider.answers,
        "failures": dict(provider.failures.most_common()),
        "latency_seconds": _plain_latency(provider.latency),
        "tokens": _plain_usage(provider.usage),
        "cost_usd": provider.cost_usd,
        "unpriced_answers": provider.unpriced,
    }


def _in_all(summary: Summary) -> Table:
    totals = summary.totals
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    style = "bold yellow" if summary.stopped is not None or summary.left else "bold green"
    table.add_row("job", Text(summary.outcome, style))
    table.add_row("answered", f"{count(totals.answered)} of {count(summary.total)} lines")
    failed = Text(count(totals.failed), "bold red" if totals.failed else "bold green")
    table.add_row("failed", failed)
    if summary.left:
        table.add_row("left", Text(f"{count(summary.left)} (--resume goes on with them)", "yellow"))
    table.add_row("cached", count(totals.cached))
    if totals.earlier:
        table.add_row("earlier runs", f"{count(totals.earlier)} of these lines")
    usage = totals.usage
    table.add_row(
        "tokens", f"{count(usage.prompt_tokens)} in, {count(usage.completion_tokens)} out"
    )
    table.add_row("cost", _cost(totals))
    speed = per_second(summary.lines_per_second)
    table.add_row("time", f"{clock_time(summary.elapsed)}, {speed} lines/s")
    table.add_row("latency", _percentiles(totals.latency))
    for what, path in summary.files:
        table.add_row(what, Text(printable(str(path))))
    return table


def provider_cost(provider: ProviderTotals) -> str:
    """US dollars; "-" if no answer's price is known."""
    known = provider.cost_usd or provider.unpriced < provider.answers or not provider.answers
    return dollars(provider.cost_usd) if known else "-"


def _cost(totals: Totals) -> str:
    unknown = f" and {count(totals.unpriced)} answers without a price" if totals.unpriced else ""
    return dollars(totals.cost_usd) + unknown


def _percentiles(latency: Histogram) -> str:
    return ", ".join(f"p{percent} {duration(latency.percentile(percent))}" for percent in _PERCENTS)


def _by_provider(totals: Totals, *, wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("provider", overflow="fold")
    for heading in ("answers", "p50", "p95", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        for heading in ("tokens in", "out"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("failures", overflow="fold")
    for name, provider in totals.providers.items():
        usage = provider.usage
        tokens = (count(usage.prompt_tokens), count(usage.completion_tokens)) if wide else ()
        table.add_row(
            Text(printable(name), "bold"),
            count(provider.answers),
            *(duration(provider.latency.percentile(percent)) for percent in _PERCENTS),
            *tokens,
            provider_cost(provider),
            Text(counts(provider.failures), "red" if provider.failures else ""),
        )
    return table


def _one_below_the_other(totals: Totals) -> Text:
    text = Text()
    for name, provider in totals.providers.items():
        text.append(f"\n{printable(name)}\n", "bold")
        text.append(f"{count(provider.answers)} answers, {provider_cost(provider)}\n")
        text.append(f"{_percentiles(provider.latency)}\n")
        if provider.failures:
            text.append(f"{counts(provider.failures)}\n", "red")
    return text


def _by_code(errors: Mapping[str, int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("error", overflow="fold")
    table.add_column("lines", justify="right")
    for code, number in Counter(errors).most_common():
        table.add_row(Text(code), count(number))
    return table
