"""What people see while a batch from a file runs: a picture that is drawn anew, or plain lines.

Both are for stderr. Neither is needed for the job: if nobody can look any more (a closed pipe, a
lost terminal), the job goes on unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aigateway.batch.files.totals import Totals
from aigateway.cli.batch.figures import (
    clock_time,
    count,
    dollars,
    per_second,
    percent,
    printable,
)
from aigateway.cli.batch.pace import Pace, Rates
from aigateway.cli.colours import COLOURS
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.routing.provider import Condition, ProviderStatus, condition

__all__ = ["LiveScreen", "PlainScreen", "Screen", "View", "Watched"]

_FRAME_SECONDS = 0.2
_LINE_SECONDS = 5.0
_LINE_SHARE = 60
"""A job that has run for an hour gets a line a minute: it is its log that must stay readable."""
_LONGEST_SILENCE = 60.0
_STEPS = 10
"""A plain line is due each time another tenth of the lines is over."""
_BAR_WIDTH = 60
_MANY = 8
"""Of more providers than these, only those that are not well are named."""
_GAP = "   "
_WAITING = "waiting: no provider can be asked just now"


class Watched(Protocol):
    """What is looked at in a gateway."""

    @property
    def providers(self) -> tuple[ProviderStatus, ...]:
        """What each provider is doing now."""


class View(Protocol):
    """What is looked at in a job."""

    @property
    def totals(self) -> Totals:
        """What has become of its lines so far."""

    @property
    def total(self) -> int:
        """How many lines there are in all."""

    @property
    def stopping(self) -> str | None:
        """Why it begins nothing new any more, in a few words; else None."""

    @property
    def waiting(self) -> bool:
        """Whether nobody can be asked just now."""

    @property
    def in_flight(self) -> int:
        """Lines that are being asked now."""

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""

    @property
    def gateway(self) -> Watched:
        """Who is asked."""


class Screen(Protocol):
    """Shows a job until it is over."""

    async def show(self, view: View, over: asyncio.Event) -> None:
        """Return soon after the event is set. May be cancelled; the last look is true as well."""


class LiveScreen:
    """A picture that is drawn anew five times a second, for a terminal.

    Args:
        console: On stderr.
        clock: Times the frames.
    """

    def __init__(self, console: Console, clock: Clock = SYSTEM_CLOCK) -> None:
        self._console = console
        self._clock = clock

    async def show(self, view: View, over: asyncio.Event) -> None:
        """Draw until the job is over, and once more."""
        pace = Pace()

        def picture() -> RenderableType:
            return _picture(view, pace, self._console.width)

        # Live draws once more when it is left, however it is left. It would also send stdout here,
        # which may be where the answers go.
        with (
            _unseen_if_need_be(self._console),
            Live(
                console=self._console,
                get_renderable=picture,
                auto_refresh=False,
                redirect_stdout=False,
            ) as live,
        ):
            live.refresh()
            while not await _is_over(over, self._clock):
                live.refresh()


class PlainScreen:
    """Lines, for pipes and logs: no colours, and each can be read by itself.

    A line comes every five seconds at most, at each tenth of the way, and when something happens.

    Args:
        console: On stderr.
        clock: Times the looks.
    """

    def __init__(self, console: Console, clock: Clock = SYSTEM_CLOCK) -> None:
        self._console = console
        self._clock = clock

    async def show(self, view: View, over: asyncio.Event) -> None:
        """Print lines until the job is over, and one that says where it ended."""
        pace, events = Pace(), _Events(view)
        due, step = _LINE_SECONDS, _step(view)
        with _unseen_if_need_be(self._console):
            try:
                pace.look(view.elapsed, view.totals)
                while not await _is_over(over, self._clock):
                    self._print(*events.new())
                    rates = pace.look(view.elapsed, view.totals)
                    if view.elapsed >= due or _step(view) > step:
                        self._print(_line(view, rates))
                        due, step = view.elapsed + _silence(view.elapsed), _step(view)
            finally:
                self._print(*events.new(), _line(view, pace.look(view.elapsed, view.totals)))

    def _print(self, *lines: str) -> None:
        for line in lines:
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _unseen_if_need_be(console: Console) -> Iterator[None]:
    """Stop showing, and nothing else, when whoever looked has gone."""
    try:
        yield
    except OSError:
        return
    except SystemExit:
        # Rich's answer to a broken pipe; it makes the console quiet first.
        if not console.quiet:
            raise


async def _is_over(over: asyncio.Event, clock: Clock) -> bool:
    """Wait for the next frame, or the end."""
    with contextlib.suppress(TimeoutError):
        async with clock.timeout(_FRAME_SECONDS):
            await over.wait()
    return over.is_set()


def _step(view: View) -> int:
    return _STEPS * view.totals.done // view.total if view.total else _STEPS


def _silence(elapsed: float) -> float:
    return min(_LONGEST_SILENCE, max(_LINE_SECONDS, elapsed / _LINE_SHARE))


class _Events:
    """What has changed since the last look, and is worth a line."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._stopping: str | None = None
        self._waiting = False
        self._words: dict[str, str] = {}

    def new(self) -> Iterator[str]:
        """A line for each change."""
        view = self._view
        for status in view.gateway.providers:
            state = condition(status)
            if state.word != self._words.get(status.name, "closed"):
                yield f"{status.name}: now {_words(state)}"
            self._words[status.name] = state.word
        if view.waiting != self._waiting:
            yield _WAITING if view.waiting else "providers can be asked again"
        self._waiting = view.waiting
        if view.stopping is not None and view.stopping != self._stopping:
            yield _stopping(view)
        self._stopping = view.stopping


def _line(view: View, rates: Rates) -> str:
    totals = view.totals
    circuits = ", ".join(text for text, _ in _circuits(view.gateway.providers))
    parts = [
        f"{totals.done}/{view.total} ({percent(totals.done, view.total)})",
        f"{totals.failed} failed",
        f"{totals.cached} cached",
        f"{totals.earlier} from earlier runs" if totals.earlier else "",
        f"{per_second(rates.tokens)} tokens/s",
        f"{per_second(rates.lines)} lines/s",
        _cost(totals),
        _time_left(view, rates),
        f"circuits: {circuits or 'none'}",
    ]
    return ", ".join(part for part in parts if part)


def _picture(view: View, pace: Pace, width: int) -> RenderableType:
    total, done = (view.total, view.totals.done) if view.total else (1, 1)
    circuits = (Text(text, style) for text, style in _circuits(view.gateway.providers))
    bar = Table.grid()  # by itself it would not end its line
    bar.add_row(ProgressBar(total, done, min(width, _BAR_WIDTH)))
    return Group(
        bar,
        *_flow(_figures(view, pace.look(view.elapsed, view.totals)), width),
        *_flow(circuits, width),
        *_notes(view),
    )


def _figures(view: View, rates: Rates) -> Iterator[Text]:
    totals = view.totals
    share = percent(totals.done, view.total)
    yield Text(f"{count(totals.done)} of {count(view.total)} lines ({share})", "bold")
    yield Text(_time_left(view, rates), "cyan")
    yield Text(f"{clock_time(view.elapsed)} so far", "dim")
    yield Text(f"{count(totals.failed)} failed", "bold red" if totals.failed else "green")
    yield Text(f"{count(totals.cached)} cached")
    yield Text(f"{count(totals.earlier)} from earlier runs" if totals.earlier else "")
    yield Text(f"{count(view.in_flight)} in flight")
    yield Text(f"{per_second(rates.lines)} lines/s")
    yield Text(f"{per_second(rates.tokens)} tokens/s")
    yield Text(_cost(totals), "bold")


def _notes(view: View) -> Iterator[Text]:
    if view.waiting:
        yield Text(_WAITING, "yellow")
    if view.stopping is not None:
        yield Text(_stopping(view), "bold yellow")


def _stopping(view: View) -> str:
    return f"stopping ({view.stopping}): finishing {view.in_flight} in flight; Ctrl-C stops at once"


def _cost(totals: Totals) -> str:
    unpriced = f" ({totals.unpriced} unpriced)" if totals.unpriced else ""
    return dollars(totals.cost_usd) + unpriced


def _time_left(view: View, rates: Rates) -> str:
    """When it will be done if it goes on like this; nothing where it will not go on."""
    left = view.total - view.totals.done
    if left <= 0 or view.stopping is not None:
        return ""
    if not rates.lines:
        return "ETA -"
    return f"ETA {clock_time(left / rates.lines)}"


def _circuits(providers: Sequence[ProviderStatus]) -> Iterator[tuple[str, str]]:
    """Each provider and how it is, with the colour; of many, those that are not well."""
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
    """The pieces on as few lines as they need, none of them broken where that can be helped."""
    lines: list[Text] = []
    for piece in pieces:
        if not piece:
            continue
        if lines and lines[-1].cell_len + len(_GAP) + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], _GAP, piece)
        else:
            lines.append(piece)
    return lines
