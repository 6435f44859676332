"""A progress bar for batches from code: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.messages import BatchProgress

__all__ = ["Show", "progress_bar"]

_FRAME_SECONDS = 0.2
_BAR = 30

Show = Callable[[BatchProgress], object]


@contextlib.contextmanager
def _in_a_pipe() -> Iterator[Show]:
    """Show nothing."""
    yield lambda _: None


@contextlib.contextmanager
def progress_bar(console: Any = None, clock: Clock = SYSTEM_CLOCK) -> Iterator[Show]:
    """Show a bar on stderr until the block ends; nothing in a pipe.

    Args:
        console: Rich's; None takes stderr.
        clock: Time.
    """
    from rich.console import Console  # noqa: PLC0415 - importing aigateway must stay cheap

    console = console or Console(stderr=True)
    if console.is_jupyter:
        shown = _in_notebook(clock)
    elif console.is_terminal and not console.is_dumb_terminal:
        shown = _on_terminal(console, clock)
    else:
        shown = _in_a_pipe()
    with shown as show:
        yield show


@contextlib.contextmanager
def _on_terminal(console: Any, clock: Clock) -> Iterator[Show]:
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 - as above

    columns = (BarColumn(_BAR), TextColumn("{task.fields[figures]}", markup=False))
    off = ("redirect_stdout", "redirect_stderr", "auto_refresh")
    quiet: dict[str, Any] = dict.fromkeys(off, False)
    with Progress(*columns, console=console, **quiet) as bar:
        task = bar.add_task("", total=None, figures="")

        def draw(progress: BatchProgress, figures: str) -> None:
            done, total = progress.done, progress.total
            bar.update(task, completed=done, total=total, figures=figures, refresh=True)

        with _now_and_then(draw, clock) as show:
            yield show


@contextlib.contextmanager
def _in_notebook(clock: Clock) -> Iterator[Show]:
    """Rewrite one line of the cell's output. Rich's own display needs ipywidgets."""
    from IPython.display import display  # noqa: PLC0415 - there, in a notebook

    handle = display({"text/plain": ""}, raw=True, display_id=True)

    def draw(progress: BatchProgress, figures: str) -> None:
        done = _BAR * progress.done // progress.total if progress.total else 0
        bar = f"{'█' * done}{'░' * (_BAR - done)} " if progress.total else ""
        handle.update({"text/plain": bar + figures}, raw=True)

    with _now_and_then(draw, clock) as show:
        yield show


@contextlib.contextmanager
def _now_and_then(draw: Callable[[BatchProgress, str], None], clock: Clock) -> Iterator[Show]:
    """Draw the progress a few times a second, and at the end."""
    began = due = clock.now()
    latest: BatchProgress | None = None

    def show(progress: BatchProgress) -> None:
        nonlocal latest, due
        latest = progress
        now = clock.now()
        if now >= due:
            due = now + _FRAME_SECONDS
            draw(progress, _figures(progress, now - began))

    try:
        yield show
    finally:
        if latest is not None:
            draw(latest, _figures(latest, clock.now() - began))


def _figures(progress: BatchProgress, elapsed: float) -> str:
    done, total = progress.done, progress.total
    of = f" of {total:,}" if total is not None else ""
    parts = [f"{done:,}{of}", f"{progress.failed:,} failed", f"{progress.cached:,} cached"]
    parts.append(f"${progress.cost_usd:,.4f}")
    if total and 0 < done < total:
        parts.append(f"{_minutes(elapsed * (total - done) / done)} left")
    else:
        parts.append(_minutes(elapsed))
    return ", ".join(parts)


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    text = f"{rest // 60:02}:{rest % 60:02}"
    return f"{hours}:{text}" if hours else text.removeprefix("0")
