"""`aigateway batch`: check the input, ask, show how far it has come, and say how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from aigateway.batch.engine import Concurrency
from aigateway.batch.files.estimate import estimates, refuse_unpriced
from aigateway.batch.files.index import Index
from aigateway.batch.files.job import Input, Job, Terms
from aigateway.batch.files.limits import Limits
from aigateway.batch.files.lines import Shape, Source
from aigateway.batch.files.paths import Files, Paths
from aigateway.batch.files.survey import Survey, survey
from aigateway.cli.batch.quote import print_quote
from aigateway.cli.batch.report import check_report_path, write_report
from aigateway.cli.batch.screen import LiveScreen, PlainScreen, Screen
from aigateway.cli.batch.summary import Summary, print_summary
from aigateway.cli.outcome import FAILED, WRONG_INPUT, explained, note
from aigateway.cli.simulated import simulated_gateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig, load_providers
from aigateway.wires.pricing import count_prompt_tokens

__all__ = ["Order", "run_batch"]

_PIPED_WIDTH = 120


@dataclass(frozen=True, slots=True)
class _Eyes:
    """What somebody looks at: the console on stderr, and what moves on it."""

    console: Console
    screen: Screen
    lively: bool

    @contextlib.contextmanager
    def busy(self, words: str) -> Iterator[Callable[[int], object]]:
        """Say what takes a while before anybody is asked, and how many lines it has come."""
        if not self.lively:
            note(f"{words} ...")
            yield lambda _: None
            return
        with self.console.status(words) as status:
            yield lambda lines: status.update(f"{words}: {lines:,} lines")


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for on the command line.

    Attributes:
        source: The input.
        output: For the answers; None only with a dry run.
        errors: For the lines without one; None is beside the output.
        shape: How a row becomes a request.
        shared: Options of `chat` for every line.
        concurrency: A number, or "auto".
        outage_patience: Seconds.
        limits: Fields of `Limits`.
        resume: Go on from what is there.
        ask_failed: Ask again what was refused.
        skip_bad_lines: Count bad lines as failed.
        report: For the figures; None writes none.
    """

    source: Path
    output: Path | None
    errors: Path | None
    shape: Shape
    shared: Mapping[str, Any]
    concurrency: str
    outage_patience: float
    limits: Mapping[str, Any]
    resume: bool
    ask_failed: bool
    skip_bad_lines: bool
    report: Path | None


def run_batch(order: Order, *, dry_run: bool, plain: bool, simulate: bool) -> None:
    """Do it, and exit with a code that says how it went."""
    with explained():
        code = asyncio.run(_answer(order, _eyes(plain=plain), dry_run=dry_run, simulate=simulate))
    raise typer.Exit(code)


def _eyes(*, plain: bool) -> _Eyes:
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=_PIPED_WIDTH)
    lively = console.is_terminal and not console.is_dumb_terminal and not plain
    return _Eyes(console, LiveScreen(console) if lively else PlainScreen(console), lively)


async def _answer(order: Order, eyes: _Eyes, *, dry_run: bool, simulate: bool) -> int:
    async with _gateway(simulate=simulate) as (gateway, configs):
        source = Source(order.source, order.shape, gateway.settings.max_prompt_bytes)
        gateway.check("any prompt", **order.shared)  # what is wrong for all is told once
        with contextlib.closing(Index()) as index:
            if dry_run:
                return await _quote(order, eyes, source, gateway, configs, index)
            paths, terms = _paths(order), _terms(order)
            with eyes.busy(f"checking {order.source}") as tell:
                found = await survey(source, gateway.check, order.shared, index, tell=tell)
            _refuse_nothing(order.source, found)
            if found.wrong and not order.skip_bad_lines:
                _complain(order.source, found)
                return WRONG_INPUT
            await gateway.warmup()
            if terms.limits.max_cost is not None:
                refuse_unpriced(configs)
            given = Input(source, index, found.total)
            return await _ask(order, eyes, gateway, given, paths, terms)


async def _ask(  # noqa: PLR0917 - each of another kind
    order: Order, eyes: _Eyes, gateway: AsyncGateway, given: Input, paths: Paths, terms: Terms
) -> int:
    files = await Files.open(
        paths,
        given.source,
        {**order.shared, **asdict(order.shape)},
        resume=order.resume,
        ask_failed=order.ask_failed,
    )
    with contextlib.closing(files):
        with eyes.busy(f"reading {paths.output}"):
            job = await Job.open(gateway, given, files, terms)
        if given.source.has_changed:
            raise ConfigurationError(f"{paths.source} has changed while it was read; begin anew.")
        if job.totals.earlier:
            note(f"going on: {job.totals.earlier} of {job.total} lines are done already")
        try:
            await _watched(job, eyes.screen)
        finally:
            _tell(order, eyes.console, job, files)
    if not job.complete:
        limit = " and a higher limit" if (job.stopping or "").startswith("--max") else ""
        note(f"The rest is asked with the same command and --resume{limit}.")
    return 0 if job.complete and not job.totals.failed else FAILED


async def _watched(job: Job, screen: Screen) -> None:
    """Run the job before everybody's eyes. Interrupted twice, it ends at once."""
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
    loop = asyncio.get_running_loop()

    def told(why: str) -> None:
        if job.stopping is not None:  # for whatever reason: now it is meant
            working.cancel()
        job.stop(why)

    reasons = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    if sys.platform != "win32":
        reasons[signal.SIGHUP] = "terminal closed"
    try:
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends it at once
            for number, why in reasons.items():
                loop.add_signal_handler(number, told, why)
        yield
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in reasons:
                loop.remove_signal_handler(number)


def _tell(order: Order, console: Console, job: Job, files: Files) -> None:
    summary = Summary(
        totals=job.totals,
        total=job.total,
        elapsed=job.elapsed,
        stopped=job.stopping,
        input_path=order.source,
        output_path=files.answers.path,
        errors_path=None if files.errors.is_empty else files.errors.path,
        report_path=order.report,
        finished_at=SYSTEM_CLOCK.wall(),
    )
    print_summary(console, summary)
    if order.report is not None:
        write_report(order.report, summary)


async def _quote(  # noqa: PLR0917 - each of another kind
    order: Order,
    eyes: _Eyes,
    source: Source,
    gateway: AsyncGateway,
    configs: list[LLMConfig],
    index: Index,
) -> int:
    await gateway.warmup()  # loads the prices
    count = functools.partial(count_prompt_tokens, configs[0].model)
    with eyes.busy(f"reading {order.source}") as tell:
        found = await survey(source, gateway.check, order.shared, index, count=count, tell=tell)
    _refuse_nothing(order.source, found)
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    print_quote(console, found, estimates(found.tallies, configs))
    if found.wrong:
        _complain(order.source, found)
    return WRONG_INPUT if found.wrong and not order.skip_bad_lines else 0


def _refuse_nothing(source: Path, found: Survey) -> None:
    if not found.total:
        raise ConfigurationError(f"{source} has no line to ask.")


def _complain(source: Path, found: Survey) -> None:
    lines = "1 line" if found.wrong == 1 else f"{found.wrong} lines"
    typer.secho(f"error: {source} has {lines} that cannot be asked.", fg="red", err=True)
    for problem in found.problems:
        typer.echo(f"  line {problem.number}: {problem.what}", err=True)
    if found.wrong > len(found.problems):
        typer.echo(f"  and {found.wrong - len(found.problems)} more", err=True)
    if any("No provider serves" in problem.what for problem in found.problems):
        typer.echo("--ignore-model leaves the lines' own models aside.", err=True)
    typer.echo(
        "Mend them, or give --skip-bad-lines: each is then failed, and in the file of errors.",
        err=True,
    )


def _paths(order: Order) -> Paths:
    """The job's files, and what can be known to be wrong with them before anything is read."""
    if order.output is None:
        raise ConfigurationError("Where to? Name a file for the answers after the input.")
    paths = Paths.of(order.source, order.output, order.errors)
    paths.begun(resume=order.resume)
    if order.report is not None:
        check_report_path(order.report, taken=paths.all)
    return paths


def _terms(order: Order) -> Terms:
    concurrency: Concurrency = "auto"
    if order.concurrency != "auto":
        try:
            concurrency = int(order.concurrency)
        except ValueError:
            concurrency = 0
        if concurrency < 1:
            raise ConfigurationError('--concurrency must be a whole number from 1, or "auto".')
    patience = None if math.isinf(order.outage_patience) else order.outage_patience
    return Terms(order.shared, concurrency, patience, Limits(**order.limits))


@contextlib.asynccontextmanager
async def _gateway(*, simulate: bool) -> AsyncIterator[tuple[AsyncGateway, list[LLMConfig]]]:
    if simulate:
        async with simulated_gateway() as (gateway, configs):
            yield gateway, configs
        return
    configs = sorted(load_providers(), key=lambda config: -config.priority)
    async with AsyncGateway() as gateway:
        yield gateway, configs
