"""`aigateway batch`: check the input, run the job, show its progress, and print how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from aigateway.batch.engine import Concurrency
from aigateway.batch.files.index import Index
from aigateway.batch.files.input import RowFormat, Source
from aigateway.batch.files.job import Job, JobInput, JobOptions
from aigateway.batch.files.paths import JobFiles, JobPaths
from aigateway.batch.files.survey import Survey, estimates, refuse_unpriced, survey
from aigateway.batch.files.totals import JobLimits
from aigateway.cli.batch.report import check_report_path, write_report
from aigateway.cli.batch.screen import JobScreen, LiveJobScreen, PlainJobScreen
from aigateway.cli.batch.summary import Summary, print_estimates, print_summary
from aigateway.cli.commands import open_gateway
from aigateway.cli.output import FAILED, WRONG_INPUT, errors_as_exit_codes, is_live, note
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig
from aigateway.wires.pricing import count_prompt_tokens

__all__ = ["BatchCommand", "run_batch"]

_PIPED_WIDTH = 120


@dataclass(frozen=True, slots=True)
class BatchCommand:
    """The options of the command line; see its help. `limits` has fields of `JobLimits`."""

    source: Path
    output: Path | None
    errors: Path | None
    row_format: RowFormat
    shared: Mapping[str, Any]
    concurrency: str
    outage_patience: float
    limits: Mapping[str, Any]
    resume: bool
    ask_failed: bool
    skip_bad_lines: bool
    report: Path | None


class _Display:
    """The console on stderr, and the screen on it."""

    def __init__(self, *, plain: bool) -> None:
        self.console = Console(stderr=True)
        if not self.console.is_terminal:
            self.console = Console(stderr=True, width=_PIPED_WIDTH)
        self._live = is_live(self.console, plain=plain)
        screen = LiveJobScreen if self._live else PlainJobScreen
        self.screen: JobScreen = screen(self.console)

    @contextlib.contextmanager
    def busy(self, words: str) -> Iterator[Callable[[int], object]]:
        """Show a step that takes a while. Gives a function for the number of lines so far."""
        if not self._live:
            note(f"{words} ...")
            yield lambda _: None
            return
        with self.console.status(words) as status:
            yield lambda lines: status.update(f"{words}: {lines:,} lines")


def run_batch(command: BatchCommand, *, dry_run: bool, plain: bool, simulate: bool) -> None:
    """Run the command, and exit with its code."""
    display = _Display(plain=plain)
    with errors_as_exit_codes():
        code = asyncio.run(_run(command, display, dry_run=dry_run, simulate=simulate))
    raise typer.Exit(code)


async def _run(command: BatchCommand, display: _Display, *, dry_run: bool, simulate: bool) -> int:
    async with open_gateway(simulate=simulate) as (gateway, configs):
        source = Source(command.source, command.row_format, gateway.settings.max_prompt_bytes)
        gateway.check("any prompt", **command.shared)  # an error of all lines is reported once
        with contextlib.closing(Index()) as index:
            if dry_run:
                return await _dry_run(command, display, source, gateway, configs, index)
            paths, options = _paths(command), _job_options(command)
            with display.busy(f"checking {command.source}") as on_progress:
                found = await survey(
                    source, gateway.check, command.shared, index, on_progress=on_progress
                )
            _refuse_an_empty_input(command.source, found)
            if found.wrong and not command.skip_bad_lines:
                _print_problems(command.source, found)
                return WRONG_INPUT
            await gateway.warmup()
            if options.limits.max_cost is not None:
                refuse_unpriced(configs)
            given = JobInput(source, index, found.total)
            return await _run_job(command, display, gateway, given, paths, options)


async def _run_job(  # noqa: PLR0917 - each of another kind
    command: BatchCommand,
    display: _Display,
    gateway: AsyncGateway,
    given: JobInput,
    paths: JobPaths,
    options: JobOptions,
) -> int:
    files = await JobFiles.open(
        paths,
        given.source,
        {**command.shared, **asdict(command.row_format)},
        resume=command.resume,
        ask_failed=command.ask_failed,
    )
    with contextlib.closing(files):
        with display.busy(f"reading {paths.output}"):
            job = await Job.open(gateway, given, files, options)
        if given.source.has_changed:
            raise ConfigurationError(f"{paths.source} has changed while it was read; start again.")
        if job.totals.earlier:
            note(f"resuming: {job.totals.earlier} of {job.total} lines are already done")
        try:
            await _show_and_run(job, display.screen)
        finally:
            _print_end(command, display.console, job, files)
    if not job.complete:
        limit = " and a higher limit" if (job.stopping or "").startswith("--max") else ""
        note(f"To continue, run the same command with --resume{limit}.")
    return 0 if job.complete and not job.totals.failed else FAILED


async def _show_and_run(job: Job, screen: JobScreen) -> None:
    over = asyncio.Event()
    showing = asyncio.create_task(screen.show(job, over))
    working = asyncio.create_task(job.run())
    try:
        with _interruptible(job, working):
            await asyncio.wait([working])
    finally:
        over.set()
        await showing
    if not working.cancelled():
        working.result()


@contextlib.contextmanager
def _interruptible(job: Job, working: asyncio.Task[None]) -> Iterator[None]:
    """Stop the job on a first signal, and cancel it on a second one."""
    loop = asyncio.get_running_loop()

    def interrupt(why: str) -> None:
        if job.stopping is not None:  # for whatever reason
            working.cancel()
        job.stop(why)

    reasons = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    if sys.platform != "win32":
        reasons[signal.SIGHUP] = "terminal closed"
    try:
        with contextlib.suppress(NotImplementedError):  # on Windows Ctrl-C ends it at once
            for number, why in reasons.items():
                loop.add_signal_handler(number, interrupt, why)
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in reasons:
                loop.remove_signal_handler(number)


def _print_end(command: BatchCommand, console: Console, job: Job, files: JobFiles) -> None:
    summary = Summary(
        totals=job.totals,
        total=job.total,
        elapsed=job.elapsed,
        stopped=job.stopping,
        input_path=command.source,
        output_path=files.answers.path,
        errors_path=None if files.errors.is_empty else files.errors.path,
        report_path=command.report,
        finished_at=SYSTEM_CLOCK.wall(),
    )
    print_summary(console, summary)
    if command.report is not None:
        write_report(command.report, summary)


async def _dry_run(  # noqa: PLR0917 - each of another kind
    command: BatchCommand,
    display: _Display,
    source: Source,
    gateway: AsyncGateway,
    configs: list[LLMConfig],
    index: Index,
) -> int:
    await gateway.warmup()  # loads the prices
    count = functools.partial(count_prompt_tokens, configs[0].model)
    with display.busy(f"reading {command.source}") as on_progress:
        found = await survey(
            source, gateway.check, command.shared, index, count=count, on_progress=on_progress
        )
    _refuse_an_empty_input(command.source, found)
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    print_estimates(console, found, estimates(found.tallies, configs))
    if found.wrong:
        _print_problems(command.source, found)
    return WRONG_INPUT if found.wrong and not command.skip_bad_lines else 0


def _refuse_an_empty_input(source: Path, found: Survey) -> None:
    if not found.total:
        raise ConfigurationError(f"{source} has no requests.")


def _print_problems(source: Path, found: Survey) -> None:
    lines = "1 invalid line" if found.wrong == 1 else f"{found.wrong} invalid lines"
    typer.secho(f"error: {source} has {lines}.", fg="red", err=True)
    for problem in found.problems:
        typer.echo(f"  line {problem.number}: {problem.what}", err=True)
    if found.wrong > len(found.problems):
        typer.echo(f"  and {found.wrong - len(found.problems)} more", err=True)
    if any("No provider serves" in problem.what for problem in found.problems):
        typer.echo("--ignore-model ignores the models of the lines.", err=True)
    typer.echo(
        "Correct them, or give --skip-bad-lines to count them as failed and list them in the"
        " errors file.",
        err=True,
    )


def _paths(command: BatchCommand) -> JobPaths:
    """Return the job's files, checked as far as possible before the input is read."""
    if command.output is None:
        raise ConfigurationError("No output: name a file for the answers after the input.")
    paths = JobPaths.of(command.source, command.output, command.errors)
    paths.begun(resume=command.resume)
    if command.report is not None:
        check_report_path(command.report, taken=paths.all)
    return paths


def _job_options(command: BatchCommand) -> JobOptions:
    concurrency: Concurrency = "auto"
    if command.concurrency != "auto":
        try:
            concurrency = int(command.concurrency)
        except ValueError:
            concurrency = 0
        if concurrency < 1:
            raise ConfigurationError('--concurrency must be a whole number from 1, or "auto".')
    patience = None if math.isinf(command.outage_patience) else command.outage_patience
    return JobOptions(command.shared, concurrency, patience, JobLimits(**command.limits))
