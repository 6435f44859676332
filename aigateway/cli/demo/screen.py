"""The display of the demo: the story, a live table or plain lines below it, and the end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aigateway.cli.demo.story import Demo, DemoEvent, DemoResults, counted, percentile
from aigateway.cli.output import COLOURS
from aigateway.routing.provider import Condition, condition

__all__ = ["DemoScreen", "LiveDemoScreen", "PlainDemoScreen", "print_beginning", "print_end"]

_FRAME_SECONDS = 0.1
_READING_SECONDS = 2.5
_SHARE_SECONDS = 2.0
"""The shares of the providers are measured over this long."""
_SHARE_WIDTH = 10
_EVENTS = 7
_WIDE = 110
"""Columns with room for who answered in each act."""


class DemoScreen(Protocol):
    """Shows a demo while it runs."""

    async def show(self, demo: Demo) -> None:
        """Return when the demo is over."""

    async def tell(self, text: str) -> None:
        """Show a part of the story, and wait until it can have been read."""


class PlainDemoScreen:
    """Lines in ASCII, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def show(self, demo: Demo) -> None:
        """Print lines until the demo is over."""

        def show_event(event: DemoEvent) -> None:
            text = f"{event.at - demo.began:6.2f} s  {event.text}"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

        demo.events.listener = show_event
        while not demo.over:
            await demo.clock.sleep(_FRAME_SECONDS / 2)

    async def tell(self, text: str) -> None:
        """Print it."""
        self._console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)


class LiveDemoScreen:
    """The story, and below it a table that is redrawn ten times a second."""

    def __init__(self, console: Console, reading_seconds: float = _READING_SECONDS) -> None:
        self._console = console
        self._reading_seconds = reading_seconds
        self._demo: Demo | None = None

    async def show(self, demo: Demo) -> None:
        """Draw until the demo is over; then only the story stays."""
        self._demo = demo
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(_picture(demo, self._console.width), refresh=True)
                if demo.over:
                    return
                await demo.clock.sleep(_FRAME_SECONDS)

    async def tell(self, text: str) -> None:
        """Print it above the table, and wait."""
        head, separator, rest = text.partition(". ")
        told = Text(head + separator, "bold").append(rest, "not bold")
        self._console.print(Padding(told, (1, 0, 0, 0)))
        if self._demo is not None and self._reading_seconds:
            await self._demo.clock.sleep(self._reading_seconds)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{max(1.0, seconds * 1000):.0f} ms"


def _picture(demo: Demo, width: int) -> RenderableType:
    results = demo.results
    failures = results.failures
    count = Text(
        f"  {counted(len(results), 'request')}, {results.cache_hits} of them from the cache; "
    )
    count.append(
        f"callers saw {counted(failures, 'error')}", "bold red" if failures else "bold green"
    )
    return Group(_providers(demo), count, Text(), *_events(demo, width))


def _providers(demo: Demo) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for heading in ("provider", "the vendor", "its circuit", "answers, last 2 s"):
        table.add_column(heading, no_wrap=True)
    recent = demo.results.recently_served(demo.clock.now() - _SHARE_SECONDS)
    for status in demo.gateway.providers:
        fault = demo.phase.faults.get(status.name)
        state = condition(status)
        table.add_row(
            Text(status.name, "bold"),
            Text(fault.what, "yellow") if fault else Text("healthy", "green"),
            Text(f"● {_words(state)}", COLOURS[state.word]),
            _share(recent[status.name], recent.total()),
        )
    return table


def _words(state: Condition) -> str:
    return f"{state.word} {state.wait:.1f} s" if state.wait else state.reason or state.word


def _share(count: int, total: int) -> Text:
    share = count / total if total else 0.0
    filled = round(share * _SHARE_WIDTH)
    bar = "█" * filled + "░" * (_SHARE_WIDTH - filled)
    return Text(f"{bar} {share:4.0%}", "cyan" if count else "dim")


def _events(demo: Demo, width: int) -> list[Text]:
    lines = []
    for event in list(demo.events.latest)[-_EVENTS:]:
        line = Text(f"{event.at - demo.began:6.1f} s  {event.text}", event.style, no_wrap=True)
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines + [Text()] * (_EVENTS - len(lines))


# ── the beginning and the end ────────────────────────────────────────────────────────────────────


def print_beginning(console: Console, rate: float) -> None:
    """Print who asks whom."""
    _say(
        console,
        "Four simulated vendors on this machine, asked over real HTTP. No key, no cost.",
        f"Callers send {rate:.0f} questions a second to one gateway. It asks openai first, then"
        " azure, gemini and anthropic.",
    )
    console.print(
        "Loading litellm, up to a minute the first time ...", style="dim", highlight=False
    )


def print_end(console: Console, demo: Demo) -> None:
    """Print the figures of each act, what they come to, and what to type next."""
    console.print(_act_table(demo, wide=console.width >= _WIDE))
    _say(console, *_overview(demo))
    failures, absorbed = demo.results.failures, demo.results.absorbed().total()
    verdict = (
        f"{failures} of {counted(len(demo.results), 'request')} ended with an error."
        if failures
        else f"The vendors failed {counted(absorbed, 'time')}. No caller saw it."
    )
    console.print(Text(f"\n{verdict}", "bold red" if failures else "bold green"))
    command = _command()
    _say(
        console,
        "\nNext, one question without a key, then with your own:",
        f'  {command} chat --simulate "What is 2+2?"',
        f'  OPENAI_API_KEY=... {command} chat "What is 2+2?"',
        "README.md has the same in Python, docs/tutorial.md a service.",
    )


def _command() -> str:
    """Return what starts this program from the current directory."""
    if shutil.which("aigateway"):
        return "aigateway"
    python, here = Path(sys.executable), Path.cwd()
    return f"{python.relative_to(here) if python.is_relative_to(here) else python} -m aigateway"


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _act_table(demo: Demo, *, wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("what happened", no_wrap=True)
    for heading in ("requests", "errors", "median", "longest"):
        table.add_column(heading, justify="right")
    if wide:
        table.add_column("answered by")
    for index, act in enumerate(demo.acts):
        results = demo.results.of_act(index)
        latencies = [r.latency for r in results.all if not r.from_cache]
        table.add_row(
            act.title,
            str(len(results)),
            str(results.failures),
            _milliseconds(percentile(latencies, 50)),
            _milliseconds(results.longest if len(results) else None),
            *([_counts(_served_with_cache(results))] if wide else []),
        )
    return table


def _served_with_cache(results: DemoResults) -> Mapping[str, int]:
    served = DemoResults.served(results.all)
    if results.cache_hits:
        served["cache"] = results.cache_hits
    return served


def _overview(demo: Demo) -> Iterator[str]:
    """Yield the figures of the whole demo, each with its meaning."""
    results, events = demo.results, demo.events
    kinds = {str(kind): count for kind, count in results.absorbed().items()}
    yield f"requests                 {len(results)}"
    yield f"failures the callers saw {results.failures}"
    yield f"vendor failures absorbed {_with_details(kinds)}"
    yield f"answered by              {_counts(DemoResults.served(results.all))}"
    yield f"answered by the cache    {results.cache_hits}, as the question was a repeated one"
    yield f"circuits opened          {_with_details(events.opened)}; a failed probe opens it again"
    yield f"circuits closed          {_with_details(events.closed)}; a probe worked"
    yield f"longest wait of a caller {_milliseconds(results.longest)}"


def _with_details(details: Mapping[str, int]) -> str:
    return f"{sum(details.values())} ({_counts(details)})" if details else "0"


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in ordered) or "-"
