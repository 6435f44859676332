"""The figures of a job in words: its summary, its estimate, and how numbers are formatted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.batch.files.survey import Estimate, Survey
from aigateway.batch.files.totals import Histogram, JobTotals, ProviderTotals
from aigateway.messages import Usage
from aigateway.tokens import USUAL_ANSWER

__all__ = [
    "PERCENTILES",
    "Summary",
    "blank_notes",
    "clock_time",
    "count",
    "counts",
    "dollars",
    "duration",
    "per_second",
    "percent",
    "plain_summary",
    "print_estimates",
    "print_summary",
    "printable",
    "provider_cost",
]

PERCENTILES = (50, 95, 99)
_WIDE = 100
"""Columns with room for a provider's tokens."""
_NARROW = 72
"""With fewer columns, a provider's figures do not fit into one row."""
_MILLION = 1_000_000
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SMALL_DOLLARS = 100
"""Below this, cost is shown to a hundredth of a cent."""


def count(number: int) -> str:
    """Format as 1,234,567."""
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """Format as 6.0 %; rounded down, so that 100.0 % means all."""
    share = math.floor(1000 * part / whole) / 10 if whole else 100.0
    return f"{share:.1f} %" if share or not part else "<0.1 %"


def dollars(cost: float) -> str:
    """Format as $0.0123 or $1,234.50."""
    return f"${cost:,.4f}" if cost < _SMALL_DOLLARS else f"${cost:,.2f}"


def duration(seconds: float | None) -> str:
    """Format a call's time as 0.4 ms, 12 ms, 1.23 s or 95 s; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    return f"{seconds:,.1f} s" if seconds < 99.95 else f"{seconds:,.0f} s"


def clock_time(seconds: float) -> str:
    """Format a job's time as 3:12, 1:05:00 or 2 d 3:00:00."""
    whole = round(seconds)
    days, rest = divmod(whole, _DAY)
    hours, rest = divmod(rest, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    text = f"{hours}:{minutes:02}:{rest:02}" if days or hours else f"{minutes}:{rest:02}"
    return f"{days} d {text}" if days else text


def per_second(rate: float | None) -> str:
    """Format a rate as 0.05, 3.2 or 512; "-" for None."""
    if rate is None:
        return "-"
    if rate < 0.995:
        return f"{rate:.2f}"
    return f"{rate:.1f}" if rate < 99.95 else f"{rate:.0f}"


def printable(text: str) -> str:
    """Replace control characters, which could move the cursor or break a page."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of a job.

    Attributes:
        totals: Sums over its lines, in this run and earlier ones.
        total: Number of lines.
        elapsed: Seconds of this run.
        stopped: Why it ended early ("interrupted", "--max-cost reached"), else None.
        finished_at: Seconds since the Unix epoch; None leaves the date out.
    """

    totals: JobTotals
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
        """Lines without a record."""
        return max(0, self.total - self.totals.done)

    @property
    def lines_per_second(self) -> float | None:
        """The rate of this run; None if it took no time."""
        fresh = self.totals.done - self.totals.earlier
        return fresh / self.elapsed if self.elapsed > 0 else None

    @property
    def outcome(self) -> str:
        """The end in a few words."""
        if self.stopped is not None:
            return f"stopped: {self.stopped}"
        return "complete" if not self.left else "not complete"

    @property
    def files(self) -> Iterator[tuple[str, Path]]:
        """The files that were written, by content."""
        yield "answers", self.output_path
        if self.errors_path is not None:
            yield "errors", self.errors_path
        if self.report_path is not None:
            yield "report", self.report_path


def print_summary(console: Console, summary: Summary) -> None:
    """Print the figures; the console should be on stderr."""
    console.print(_overview(summary))
    if console.width < _NARROW:
        console.print(_providers_as_text(summary.totals))
    elif summary.totals.providers:
        console.print(_provider_table(summary.totals, wide=console.width >= _WIDE))
    if summary.totals.errors:
        console.print(_error_table(summary.totals.errors))


def plain_summary(summary: Summary) -> dict[str, Any]:
    """Return the figures as plain values, fit for JSON, without prompts and answers."""
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
    """Format as `timeout 3, rate_limited 1`, most frequent first; "-" without any."""
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
        **{f"p{percent}": latency.percentile(percent) for percent in PERCENTILES},
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


def _overview(summary: Summary) -> Table:
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
        table.add_row("left", Text(f"{count(summary.left)} (continue with --resume)", "yellow"))
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
    """Return US dollars; "-" if no answer's price is known."""
    known = provider.cost_usd or provider.unpriced < provider.answers or not provider.answers
    return dollars(provider.cost_usd) if known else "-"


def _cost(totals: JobTotals) -> str:
    unknown = f" and {count(totals.unpriced)} answers without a price" if totals.unpriced else ""
    return dollars(totals.cost_usd) + unknown


def _percentiles(latency: Histogram) -> str:
    return ", ".join(
        f"p{percent} {duration(latency.percentile(percent))}" for percent in PERCENTILES
    )


def _provider_table(totals: JobTotals, *, wide: bool) -> Table:
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
            *(duration(provider.latency.percentile(percent)) for percent in PERCENTILES),
            *tokens,
            provider_cost(provider),
            Text(counts(provider.failures), "red" if provider.failures else ""),
        )
    return table


def _providers_as_text(totals: JobTotals) -> Text:
    text = Text()
    for name, provider in totals.providers.items():
        text.append(f"\n{printable(name)}\n", "bold")
        text.append(f"{count(provider.answers)} answers, {provider_cost(provider)}\n")
        text.append(f"{_percentiles(provider.latency)}\n")
        if provider.failures:
            text.append(f"{counts(provider.failures)}\n", "red")
    return text


def _error_table(errors: Mapping[str, int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("error", overflow="fold")
    table.add_column("lines", justify="right")
    for code, number in Counter(errors).most_common():
        table.add_row(Text(code), count(number))
    return table


def print_estimates(console: Console, found: Survey, each: Sequence[Estimate]) -> None:
    """Print the result of a dry run: each provider's cost if it answered all that it serves."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("provider", overflow="fold")
    for heading in ("requests", "prompt tokens", "answer tokens", "$ per 1M in / out", "cost"):
        table.add_column(heading, justify="right")
    for estimate in each:
        tally, price, cost = estimate.tally, estimate.price, estimate.cost_usd
        table.add_row(
            Text(estimate.config.name),
            f"{tally.requests:,}",
            f"{tally.prompt_tokens:,}",
            f"{tally.answer_tokens:,}",
            "unknown"
            if price is None
            else f"{price.input * _MILLION:.2f} / {price.output * _MILLION:.2f}",
            "unknown" if cost is None else f"${cost:,.4f}",
        )
    console.print(table)
    for line in _estimate_notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def blank_notes(found: Survey) -> Iterator[str]:
    """Say how many rows have nothing where the template has a field."""
    if found.blank:
        rows = "1 row has" if found.blank == 1 else f"{found.blank:,} rows have"
        yield f"{rows} an empty cell in a column of the template. The prompts are sent as they are."


def _estimate_notes(found: Survey) -> Iterator[str]:
    yield (
        f"{found.total:,} lines: {found.total - found.wrong - found.repeated:,} requests,"
        f" {found.repeated:,} repeat another line, {found.wrong:,} are invalid."
    )
    yield from blank_notes(found)
    if found.counted:
        yield (
            f"Prompt tokens: {found.counted:,} prompts counted with litellm's tokenizer for the"
            " first provider's model, the others scaled by the result."
        )
    else:
        yield "Prompt tokens: estimated, one for every 4 characters."
    unbounded = sum(tally.unbounded for tally in found.tallies.values())
    if unbounded:
        yield (
            f"Answer tokens: as many as a line allows; {unbounded:,} requests set no limit and"
            f" count as {USUAL_ANSWER} each."
        )
    else:
        yield "Answer tokens: as many as each line allows, so the costs are upper bounds."
    yield "No request was sent. The first healthy provider gets the requests; the others stand by."
