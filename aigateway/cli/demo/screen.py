"""The display of the demo: a live table or plain lines, and the figures at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aigateway.cli.demo.story import Demo, DemoEvent, DemoResult, DemoResults, percentile
from aigateway.cli.output import COLOURS
from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import Condition, condition

__all__ = ["DemoScreen", "LiveDemoScreen", "PlainDemoScreen", "print_results"]

_FRAME_SECONDS = 0.1
_SHARE_SECONDS = 2.0
"""The shares of the providers are measured over this long."""
_SHARE_WIDTH = 8
_WIDE = 110
"""Columns with room for the kinds of failure."""
_EVENTS = 6


class DemoScreen(Protocol):
    """Shows a demo until it is over."""

    async def show(self, demo: Demo) -> None:
        """Return when the last request has ended."""


class PlainDemoScreen:
    """A line for each event and each second. ASCII, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, demo: Demo) -> None:
        """Print lines until the demo is over."""

        def show_event(event: DemoEvent) -> None:
            self._line(event.at - demo.began, event.text)

        demo.events.listener = show_event
        second = 0
        while not demo.over:
            if demo.elapsed >= second + 1:
                second += 1
                self._line(demo.elapsed, _digest(demo))
            await demo.clock.sleep(_FRAME_SECONDS / 2)

    def _line(self, at: float, text: str) -> None:
        self._console.print(f"{at:6.2f} s  {text}", markup=False, highlight=False, soft_wrap=True)


class LiveDemoScreen:
    """A table, redrawn ten times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, demo: Demo) -> None:
        """Draw until the demo is over, and once more."""
        with Live(console=self._console, auto_refresh=False) as live:
            while True:
                wide = self._console.width >= _WIDE
                live.update(_picture(demo, wide=wide), refresh=True)
                if demo.over:
                    return
                await demo.clock.sleep(_FRAME_SECONDS)


def _milliseconds(seconds: float | None, *, digits: int = 0) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.{digits}f} ms"


def _digest(demo: Demo) -> str:
    now = demo.clock.now()
    served = demo.results.recently_served(now - 1.0)
    serving = ", ".join(f"{name} {count}" for name, count in served.most_common()) or "none"
    troubled = [
        f"{status.name} {_words(condition(status))}"
        for status in demo.gateway.providers
        if status.circuit_state is not CircuitState.CLOSED or not status.active
    ]
    return (
        f"{len(demo.results)} answered, {demo.results.failures} failed; last second: {serving}"
        + (f"; {', '.join(troubled)}" if troubled else "")
    )


def _picture(demo: Demo, *, wide: bool) -> RenderableType:
    elapsed = min(demo.elapsed, demo.seconds)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=demo.seconds, completed=elapsed, width=40),
        Text(f"{elapsed:.1f} of {demo.seconds:.0f} s"),
    )
    title = Text(demo.phase.title, "bold red" if demo.phase.faults else "bold green")
    results = demo.results
    count = Text(f"{len(results)} requests, {results.cache_hits} from the cache, ")
    failures = results.failures
    count.append(f"{failures} failed", "bold red" if failures else "bold green")
    return Group(head, title, _providers(demo, wide=wide), count, *_events(demo))


def _providers(demo: Demo, *, wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("provider", "vendor", "circuit", "serving"):
        table.add_column(heading, no_wrap=True)
    for heading in ("out", "p50", "asked"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("failures" if wide else "failed")
    metrics = demo.gateway.get_metrics()["providers"]
    recent = demo.results.recently_served(demo.clock.now() - _SHARE_SECONDS)
    for status in demo.gateway.providers:
        numbers = metrics[status.name]
        fault = demo.phase.faults.get(status.name)
        state = condition(status)
        latency, failures = numbers["latency_seconds"], numbers["failures"]
        kinds = ", ".join(f"{kind} {count}" for kind, count in failures.items())
        table.add_row(
            Text(status.name, "bold"),
            Text(fault.what, "red") if fault else Text("healthy", "green"),
            Text(f"● {_words(state)}", COLOURS[state.word]),
            _share(recent[status.name], recent.total()),
            str(status.in_flight),
            _milliseconds(latency["p50"] if latency else None),
            str(numbers["attempts"]),
            Text(kinds if wide else str(sum(failures.values()))),
        )
    return table


def _words(state: Condition) -> str:
    return f"{state.word} {state.wait:.1f} s" if state.wait else state.reason or state.word


def _share(count: int, total: int) -> Text:
    share = count / total if total else 0.0
    filled = round(share * _SHARE_WIDTH)
    bar = "█" * filled + "░" * (_SHARE_WIDTH - filled)
    return Text(f"{bar} {share:4.0%}", "cyan" if count else "dim")


def _events(demo: Demo) -> list[Text]:
    lines = [
        Text(f"{event.at - demo.began:6.2f} s  {event.text}", event.style)
        for event in list(demo.events.latest)[-_EVENTS:]
    ]
    return lines + [Text()] * (_EVENTS - len(lines))


# ── the figures at the end ───────────────────────────────────────────────────────────────────────


def print_results(console: Console, demo: Demo) -> None:
    """Print the figures of each phase, and of the whole."""
    console.print(_phase_table(demo))
    console.print(_overview(demo))


def _phase_table(demo: Demo) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("phase", no_wrap=True)
    for heading in ("requests", "failed", "p50", "p95", "failovers"):
        table.add_column(heading, justify="right")
    table.add_column("served by")
    for index, phase in enumerate(demo.phases):
        results = demo.results.of_phase(index)
        latencies = [r.latency for r in results if not r.from_cache]
        table.add_row(
            phase.label,
            str(len(results)),
            str(sum(r.provider is None for r in results)),
            _milliseconds(percentile(latencies, 50)),
            _milliseconds(percentile(latencies, 95)),
            str(sum(r.failed_over for r in results)),
            _counts(_served_with_cache(results)),
        )
    return table


def _served_with_cache(results: list[DemoResult]) -> Counter[str]:
    served = DemoResults.served(results)
    cached = sum(r.from_cache for r in results)
    if cached:
        served["cache"] = cached
    return served


def _overview(demo: Demo) -> Table:
    results, events = demo.results, demo.events
    absorbed = results.absorbed()
    kinds = Counter({str(kind): count for kind, count in absorbed.items()})
    longest = max((result.latency for result in results.all), default=0.0)
    failures = results.failures
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_row("requests", str(len(results)))
    verdict = Text(str(failures), "bold red" if failures else "bold green")
    table.add_row("failures the callers saw", verdict)
    table.add_row("vendor failures absorbed", _with_details(absorbed.total(), kinds))
    for name, figures in _failover(results):
        table.add_row(name, figures)
    table.add_row("longest wait of any caller", _milliseconds(longest))
    table.add_row("served by", _counts(results.served(results.all)))
    table.add_row("answered by the cache", str(results.cache_hits))
    table.add_row("circuits opened", _with_details(events.opened.total(), events.opened))
    table.add_row("circuits closed", _with_details(events.closed.total(), events.closed))
    return table


def _failover(results: DemoResults) -> Iterator[tuple[str, str]]:
    """Yield the waits of callers whose first provider failed, by kind of failure."""
    moved = [result for result in results.all if result.failed_over]
    healthy = percentile([r.latency for r in results.all if r.undisturbed], 50)
    if not moved or healthy is None:
        yield "failover", "no request needed it"
        return
    timed_out = [result for result in moved if result.timed_out]
    failed = [result for result in moved if not result.timed_out]
    own = _milliseconds(percentile([r.between_attempts for r in moved], 50), digits=1)
    yield "a call without failover", f"median {_milliseconds(healthy)}"
    for name, some in (
        ("failover, all", moved),
        ("failover after an error", failed),
        ("failover after a timeout", timed_out),
    ):
        waits = [result.latency for result in some]
        median = percentile(waits, 50)
        if median is not None:
            yield (
                name,
                (
                    f"{len(waits)} requests, median {_milliseconds(median)}"
                    f" (added {_milliseconds(median - healthy)}),"
                    f" p95 {_milliseconds(percentile(waits, 95))}"
                ),
            )
    yield "  of it between attempts", f"median {own}"


def _with_details(total: int, details: Counter[str]) -> str:
    return f"{total} ({_counts(details)})" if total else "0"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common()) or "-"
