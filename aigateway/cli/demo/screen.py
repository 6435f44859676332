"""What the audience sees while the demo runs: a live table, or plain lines."""

from __future__ import annotations

from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aigateway.cli.colours import COLOURS
from aigateway.cli.demo.ledger import Happening
from aigateway.cli.demo.stage import Stage
from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import Condition, condition

__all__ = ["LiveScreen", "PlainScreen", "Screen", "milliseconds"]

_FRAME_SECONDS = 0.1
_SHARE_SECONDS = 2.0
"""Who serves now is judged by the answers of this long."""
_SHARE_WIDTH = 8
_WIDE = 110
"""Columns from which on there is room for the kinds of failure."""
_EVENTS = 6


class Screen(Protocol):
    """Shows a stage until it is over."""

    async def show(self, stage: Stage) -> None:
        """Return when the last caller has gone."""


class PlainScreen:
    """A line for each event and each second. ASCII, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, stage: Stage) -> None:
        """Print lines until the stage is over."""
        stage.chronicle.listener = lambda happening: self._event(stage, happening)
        second = 0
        while not stage.over:
            if stage.elapsed >= second + 1:
                second += 1
                self._line(stage.elapsed, _digest(stage))
            await stage.clock.sleep(_FRAME_SECONDS / 2)

    def _event(self, stage: Stage, happening: Happening) -> None:
        self._line(happening.at - stage.began, happening.text)

    def _line(self, at: float, text: str) -> None:
        self._console.print(f"{at:6.2f} s  {text}", markup=False, highlight=False, soft_wrap=True)


class LiveScreen:
    """A table that is drawn anew ten times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, stage: Stage) -> None:
        """Draw until the stage is over, and once more."""
        with Live(console=self._console, auto_refresh=False) as live:
            while True:
                wide = self._console.width >= _WIDE
                live.update(_picture(stage, wide=wide), refresh=True)
                if stage.over:
                    return
                await stage.clock.sleep(_FRAME_SECONDS)


def milliseconds(seconds: float | None, *, digits: int = 0) -> str:
    """A duration as the demo writes it."""
    return "-" if seconds is None else f"{seconds * 1000:.{digits}f} ms"


def _digest(stage: Stage) -> str:
    now = stage.clock.now()
    served = stage.ledger.recently_served(now - 1.0)
    serving = ", ".join(f"{name} {count}" for name, count in served.most_common()) or "nobody"
    troubled = [
        f"{status.name} {_words(condition(status))}"
        for status in stage.gateway.providers
        if status.circuit_state is not CircuitState.CLOSED or not status.active
    ]
    return (
        f"{len(stage.ledger)} answered, {stage.ledger.failures} failed; last second: {serving}"
        + (f"; {', '.join(troubled)}" if troubled else "")
    )


def _picture(stage: Stage, *, wide: bool) -> RenderableType:
    elapsed = min(stage.elapsed, stage.seconds)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=stage.seconds, completed=elapsed, width=40),
        Text(f"{elapsed:.1f} of {stage.seconds:.0f} s"),
    )
    title = Text(stage.phase.title, "bold red" if stage.phase.troubles else "bold green")
    ledger = stage.ledger
    count = Text(f"{len(ledger)} requests, {ledger.cache_hits} from the cache, ")
    failures = ledger.failures
    count.append(f"{failures} failed", "bold red" if failures else "bold green")
    return Group(head, title, _providers(stage, wide=wide), count, *_events(stage))


def _providers(stage: Stage, *, wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("provider", "vendor", "circuit", "serving"):
        table.add_column(heading, no_wrap=True)
    for heading in ("out", "p50", "asked"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("failures" if wide else "failed")
    metrics = stage.gateway.get_metrics()["providers"]
    recent = stage.ledger.recently_served(stage.clock.now() - _SHARE_SECONDS)
    for status in stage.gateway.providers:
        numbers = metrics[status.name]
        trouble = stage.phase.troubles.get(status.name)
        state = condition(status)
        latency, failures = numbers["latency_seconds"], numbers["failures"]
        kinds = ", ".join(f"{kind} {count}" for kind, count in failures.items())
        table.add_row(
            Text(status.name, "bold"),
            Text(trouble.what, "red") if trouble else Text("healthy", "green"),
            Text(f"● {_words(state)}", COLOURS[state.word]),
            _share(recent[status.name], recent.total()),
            str(status.in_flight),
            milliseconds(latency["p50"] if latency else None),
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


def _events(stage: Stage) -> list[Text]:
    lines = [
        Text(f"{happening.at - stage.began:6.2f} s  {happening.text}", happening.style)
        for happening in list(stage.chronicle.happenings)[-_EVENTS:]
    ]
    return lines + [Text()] * (_EVENTS - len(lines))
