"""The figures at the end of the demo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigateway.cli.demo.ledger import Ledger, Outcome, percentile
from aigateway.cli.demo.screen import milliseconds
from aigateway.cli.demo.stage import Stage

__all__ = ["print_report"]


def print_report(console: Console, stage: Stage) -> None:
    """Print what happened in each phase, and in all."""
    console.print(_by_phase(stage))
    console.print(_in_all(stage))


def _by_phase(stage: Stage) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("phase", no_wrap=True)
    for heading in ("requests", "failed", "p50", "p95", "failovers"):
        table.add_column(heading, justify="right")
    table.add_column("served by")
    for index, phase in enumerate(stage.phases):
        outcomes = stage.ledger.of_phase(index)
        asked = [o.latency for o in outcomes if not o.from_cache]
        table.add_row(
            phase.label,
            str(len(outcomes)),
            str(sum(o.provider is None for o in outcomes)),
            milliseconds(percentile(asked, 50)),
            milliseconds(percentile(asked, 95)),
            str(sum(o.failed_over for o in outcomes)),
            _counts(_with_cache(outcomes)),
        )
    return table


def _with_cache(outcomes: list[Outcome]) -> Counter[str]:
    served = Ledger.served(outcomes)
    cached = sum(o.from_cache for o in outcomes)
    if cached:
        served["cache"] = cached
    return served


def _in_all(stage: Stage) -> Table:
    ledger, chronicle = stage.ledger, stage.chronicle
    absorbed = ledger.absorbed()
    kinds = Counter({str(kind): count for kind, count in absorbed.items()})
    longest = max((outcome.latency for outcome in ledger.outcomes), default=0.0)
    failures = ledger.failures
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_row("requests", str(len(ledger)))
    verdict = Text(str(failures), "bold red" if failures else "bold green")
    table.add_row("failures the callers saw", verdict)
    table.add_row("vendor failures absorbed", _with_details(absorbed.total(), kinds))
    for name, figures in _failover(ledger):
        table.add_row(name, figures)
    table.add_row("longest wait of any caller", milliseconds(longest))
    table.add_row("served by", _counts(ledger.served(ledger.outcomes)))
    table.add_row("answered by the cache", str(ledger.cache_hits))
    table.add_row("circuits opened", _with_details(chronicle.opened.total(), chronicle.opened))
    table.add_row("circuits closed", _with_details(chronicle.closed.total(), chronicle.closed))
    return table


def _failover(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """How long callers waited whose first provider failed, by how it failed."""
    moved = [outcome for outcome in ledger.outcomes if outcome.failed_over]
    healthy = percentile([o.latency for o in ledger.outcomes if o.undisturbed], 50)
    if not moved or healthy is None:
        yield "failover", "no request needed it"
        return
    timed_out = [outcome for outcome in moved if outcome.timed_out]
    failed = [outcome for outcome in moved if not outcome.timed_out]
    own = milliseconds(percentile([o.between_attempts for o in moved], 50), digits=1)
    yield "a call without failover", f"median {milliseconds(healthy)}"
    for name, outcomes in (
        ("failover, all", moved),
        ("failover after an error", failed),
        ("failover after a timeout", timed_out),
    ):
        waits = [outcome.latency for outcome in outcomes]
        median = percentile(waits, 50)
        if median is not None:
            yield (
                name,
                (
                    f"{len(waits)} requests, median {milliseconds(median)}"
                    f" (added {milliseconds(median - healthy)}),"
                    f" p95 {milliseconds(percentile(waits, 95))}"
                ),
            )
    yield "  of it between attempts", f"median {own}"


def _with_details(total: int, details: Counter[str]) -> str:
    return f"{total} ({_counts(details)})" if total else "0"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common()) or "-"
