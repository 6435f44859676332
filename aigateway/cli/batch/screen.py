"""The display of a running job on stderr: a redrawn picture, or plain lines.

The job does not depend on it. If the terminal or pipe is closed, the job continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aigateway.batch.files.job import Job
from aigateway.batch.files.totals import JobTotals
from aigateway.cli.batch.summary import (
    clock_time,
    count,
    dollars,
    per_second,
    percent,
    printable,
)
from aigateway.cli.output import COLOURS
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.routing.provider import Condition, ProviderStatus, condition

__all__ = ["JobScreen", "LiveJobScreen", "Pace", "PlainJobScreen", "Rates"]

_FRAME_SECONDS = 0.2
_LINE_SECONDS = 5.0
_LINE_SHARE = 60
"""A job that has run for an hour prints a line a minute, so that its log stays readable."""
_LONGEST_SILENCE = 60.0
_STEPS = 10
"""A plain line is due at each tenth of the lines."""
_BAR_WIDTH = 60
_MANY = 8
"""Of more providers than these, only those with a problem are named."""
_GAP = "   "
_WAITING = "waiting: no provider is available now"
_WINDOW = 10.0
"""Seconds over which rates are measured, when enough happens in them."""
_ENOUGH = 20
"""Lines. With fewer in the window the rate would jump, so the window grows."""
_LONGEST = 60.0
"""The longest window in seconds."""


class JobScreen(Protocol):
    """Shows a job until it ends."""

    async def show(self, job: Job, over: asyncio.Event) -> None:
        """Return soon after the event is set. May be cancelled."""


@dataclass(frozen=True, slots=True)
class LiveJobScreen:
    """A display on a terminal, redrawn five times a second."""

    console: Console
    clock: Clock = SYSTEM_CLOCK

    async def show(self, job: Job, over: asyncio.Event) -> None:
        """Draw until the job ends, and once more."""
        pace = Pace()

        def picture() -> RenderableType:
            return _picture(job, pace, self.console.width)

        # Live draws once more on exit. By default it would also redirect stdout to stderr.
        with (
            _ignoring_a_closed_terminal(self.console),
            Live(
                console=self.console,
                get_renderable=picture,
                auto_refresh=False,
                redirect_stdout=False,
            ) as live,
        ):
            live.refresh()
            while not await _is_over(over, self.clock):
                live.refresh()


@dataclass(frozen=True, slots=True)
class PlainJobScreen:
    """Lines without colours, for pipes and logs.

    A line comes every five seconds at most, at each tenth of the lines, and on events.
    """

    console: Console
    clock: Clock = SYSTEM_CLOCK

    async def show(self, job: Job, over: asyncio.Event) -> None:
        """Print lines until the job ends, and a last one."""
        pace, events = Pace(), _Events(job)
        due, step = _LINE_SECONDS, _step(job)
        with _ignoring_a_closed_terminal(self.console):
            try:
                pace.look(job.elapsed, job.totals)
                while not await _is_over(over, self.clock):
                    self._print(*events.new())
                    rates = pace.look(job.elapsed, job.totals)
                    if job.elapsed >= due or _step(job) > step:
                        self._print(_line(job, rates))
                        due, step = job.elapsed + _silence(job.elapsed), _step(job)
            finally:
                self._print(*events.new(), _line(job, pace.look(job.elapsed, job.totals)))

    def _print(self, *lines: str) -> None:
        for line in lines:
            self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _ignoring_a_closed_terminal(console: Console) -> Iterator[None]:
    """Stop the display, and nothing else, when the terminal or pipe is closed."""
    try:
        yield
    except OSError:
        return
    except SystemExit:
        # Rich raises it on a broken pipe, after it has made the console quiet.
        if not console.quiet:
            raise


async def _is_over(over: asyncio.Event, clock: Clock) -> bool:
    """Wait for the next frame, or the end."""
    with contextlib.suppress(TimeoutError):
        async with clock.timeout(_FRAME_SECONDS):
            await over.wait()
    return over.is_set()


def _step(job: Job) -> int:
    return _STEPS * job.totals.done // job.total if job.total else _STEPS


def _silence(elapsed: float) -> float:
    return min(_LONGEST_SILENCE, max(_LINE_SECONDS, elapsed / _LINE_SHARE))


class _Events:
    """Changes since the last look that deserve a line."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stopping: str | None = None
        self._waiting = False
        self._words: dict[str, str] = {}

    def new(self) -> Iterator[str]:
        """Yield a line for each change."""
        job = self._job
        for status in job.gateway.providers:
            state = condition(status)
            if state.word != self._words.get(status.name, "closed"):
                yield f"{status.name}: now {_words(state)}"
            self._words[status.name] = state.word
        if job.waiting != self._waiting:
            yield _WAITING if job.waiting else "a provider is available again"
        self._waiting = job.waiting
        if job.stopping is not None and job.stopping != self._stopping:
            yield _stopping(job)
        self._stopping = job.stopping


def _line(job: Job, rates: Rates) -> str:
    totals = job.totals
    circuits = ", ".join(text for text, _ in _circuits(job.gateway.providers))
    parts = [
        f"{totals.done}/{job.total} ({percent(totals.done, job.total)})",
        f"{totals.failed} failed",
        f"{totals.cached} cached",
        f"{totals.earlier} from earlier runs" if totals.earlier else "",
        f"{per_second(rates.tokens)} tokens/s",
        f"{per_second(rates.lines)} lines/s",
        _cost(totals),
        _time_left(job, rates),
        f"circuits: {circuits or 'none'}",
    ]
    return ", ".join(part for part in parts if part)


def _picture(job: Job, pace: Pace, width: int) -> RenderableType:
    total, done = (job.total, job.totals.done) if job.total else (1, 1)
    circuits = (Text(text, style) for text, style in _circuits(job.gateway.providers))
    bar = Table.grid()  # alone it would not end its line
    bar.add_row(ProgressBar(total, done, min(width, _BAR_WIDTH)))
    return Group(
        bar,
        *_flow(_figures(job, pace.look(job.elapsed, job.totals)), width),
        *_flow(circuits, width),
        *_notes(job),
    )


def _figures(job: Job, rates: Rates) -> Iterator[Text]:
    totals = job.totals
    share = percent(totals.done, job.total)
    yield Text(f"{count(totals.done)} of {count(job.total)} lines ({share})", "bold")
    yield Text(_time_left(job, rates), "cyan")
    yield Text(f"{clock_time(job.elapsed)} so far", "dim")
    yield Text(f"{count(totals.failed)} failed", "bold red" if totals.failed else "green")
    yield Text(f"{count(totals.cached)} cached")
    yield Text(f"{count(totals.earlier)} from earlier runs" if totals.earlier else "")
    yield Text(f"{count(job.in_flight)} in flight")
    yield Text(f"{per_second(rates.lines)} lines/s")
    yield Text(f"{per_second(rates.tokens)} tokens/s")
    yield Text(_cost(totals), "bold")


def _notes(job: Job) -> Iterator[Text]:
    if job.waiting:
        yield Text(_WAITING, "yellow")
    if job.stopping is not None:
        yield Text(_stopping(job), "bold yellow")


def _stopping(job: Job) -> str:
    return f"stopping ({job.stopping}): finishing {job.in_flight} in flight; Ctrl-C stops at once"


def _cost(totals: JobTotals) -> str:
    unpriced = f" ({totals.unpriced} unpriced)" if totals.unpriced else ""
    return dollars(totals.cost_usd) + unpriced


def _time_left(job: Job, rates: Rates) -> str:
    """Return the time left at the current rate; empty if the job stops."""
    left = job.total - job.totals.done
    if left <= 0 or job.stopping is not None:
        return ""
    if not rates.lines:
        return "ETA -"
    return f"ETA {clock_time(left / rates.lines)}"


def _circuits(providers: Sequence[ProviderStatus]) -> Iterator[tuple[str, str]]:
    """Yield each provider's condition and colour; of many, only those with a problem."""
    states = [(printable(status.name), condition(status)) for status in providers]
    well = sum(state.word == "closed" for _, state in states)
    for name, state in states:
        if len(states) <= _MANY or state.word != "closed":
            yield f"{name} {_words(state)}", COLOURS[state.word]
    if well and len(states) > _MANY:
        yield f"{well} closed", "green"


def _words(state: Condition) -> str:
    detail = f"{math.ceil(state.wait)} s" if state.wait else state.reason
    return f"{state.word} ({detail})" if detail else state.word


def _flow(pieces: Iterable[Text], width: int) -> list[Text]:
    """Join pieces into as few lines as possible, without breaking a piece."""
    lines: list[Text] = []
    for piece in pieces:
        if not piece:
            continue
        if lines and lines[-1].cell_len + len(_GAP) + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], _GAP, piece)
        else:
            lines.append(piece)
    return lines


class _Sample(NamedTuple):
    at: float
    lines: int
    tokens: int
    earlier: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Finished lines and tokens (in and out) per second; None before they can be measured."""

    lines: float | None = None
    tokens: float | None = None


class Pace:
    """Measures a job's current speed, without earlier runs."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def look(self, elapsed: float, totals: JobTotals) -> Rates:
        """Note the job's totals after that many seconds, and return its speed."""
        tokens = totals.usage.total_tokens
        now = _Sample(elapsed, totals.done - totals.earlier, tokens, totals.earlier)
        if self._samples and self._samples[-1].earlier != now.earlier:
            self._samples.clear()  # the records of an earlier run are being read
        self._samples.append(now)
        while self._samples[0].at < elapsed - _LONGEST:
            self._samples.popleft()
        since = next(self._far_enough(now), self._samples[0])
        seconds = now.at - since.at
        if seconds <= 0:
            return Rates()
        return Rates((now.lines - since.lines) / seconds, (now.tokens - since.tokens) / seconds)

    def _far_enough(self, now: _Sample) -> Iterator[_Sample]:
        for sample in reversed(self._samples):
            if now.at - sample.at >= _WINDOW and now.lines - sample.lines >= _ENOUGH:
                yield sample
