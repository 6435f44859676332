"""`aigateway batch`: check the input, run the job, show its progress, and print how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import math
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import typer
from rich.console import Console

from aigateway.batch.files.index import Index
from aigateway.batch.files.input import RowFormat, Source
from aigateway.batch.files.job import Job, JobInput, JobOptions
from aigateway.batch.files.paths import JobFiles, JobPaths, parts_folder
from aigateway.batch.files.schema import AnswerSchema
from aigateway.batch.files.shards import ShardedJob, ShardWork
from aigateway.batch.files.survey import Survey, estimates, refuse_unpriced, survey
from aigateway.batch.files.table import TableFormat, check_table, write_table
from aigateway.batch.files.totals import JobLimits
from aigateway.batch.ray import end_process_if_stuck, open_cluster
from aigateway.cli.batch.report import check_report_path, write_report
from aigateway.cli.batch.screen import JobScreen, LiveJobScreen, PlainJobScreen
from aigateway.cli.batch.summary import (
    Summary,
    blank_notes,
    print_estimates,
    print_summary,
)
from aigateway.cli.commands import open_gateway
from aigateway.cli.options import BatchCommand, BatchEngine
from aigateway.cli.output import FAILED, WRONG_INPUT, errors_as_exit_codes, is_live, note
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError
from aigateway.gateway import AsyncGateway
from aigateway.options import Concurrency
from aigateway.settings import LLMConfig
from aigateway.wires.pricing import count_prompt_tokens

__all__ = ["run_batch"]

_PIPED_WIDTH = 120

_NOT_PARAMS = {
    **dict.fromkeys(("prompt", "messages"), "each line has its own."),
    **dict.fromkeys(("id", "origin", "prompt_or_messages"), "it is not an option of chat."),
}

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


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


def run_batch(command: BatchCommand) -> None:
    """Run the command, and exit with its code."""
    display = _Display(plain=command.plain)
    code = FAILED
    try:
        with errors_as_exit_codes():
            code = asyncio.run(_run(command, display))
    except typer.Exit as end:
        code = end.exit_code
    end_process_if_stuck(code)
    raise typer.Exit(code)


async def _run(command: BatchCommand, display: _Display) -> int:
    schema = None if command.schema is None else AnswerSchema.of(command.schema)
    table = TableFormat(command.delimiter, command.bom, schema)
    shared = _shared_options(command, schema)
    async with open_gateway(simulate=command.simulate, freeze_gc=True) as (gateway, configs):
        longest = gateway.settings.max_prompt_bytes
        source = Source(command.source, _row_format(command), longest, limit=command.limit)
        gateway.check("any prompt", **shared)  # an error of all lines is reported once
        with contextlib.closing(Index()) as index:
            if command.dry_run:
                return await _dry_run(command, display, source, gateway, configs, shared, index)
            paths = _paths(command)
            options = _job_options(command, paths, table, shared)
            with display.busy(f"checking {command.source}") as on_progress:
                found = await survey(source, gateway.check, shared, index, on_progress=on_progress)
            _refuse_an_empty_input(command.source, found)
            _refuse_unknown_columns(source)
            if found.wrong and not command.skip_bad_lines:
                _print_problems(source, found)
                return WRONG_INPUT
            for line in blank_notes(found):
                note(line)
            await gateway.warmup()
            if options.limits.max_cost is not None:
                refuse_unpriced(configs)
            given = JobInput(source, index, found.total)
            checked = _CheckedJob(command, display, gateway, configs, given, paths, options, table)
            if command.engine is BatchEngine.LOCAL or command.collect:
                return await _run_job(checked)
            return await _run_on_ray(checked)


@dataclass(frozen=True, slots=True)
class _CheckedJob:
    """A job whose input and options have been checked."""

    command: BatchCommand
    display: _Display
    gateway: AsyncGateway
    configs: list[LLMConfig]
    given: JobInput
    paths: JobPaths
    options: JobOptions
    table: TableFormat


async def _run_on_ray(checked: _CheckedJob) -> int:
    command, paths, source = checked.command, checked.paths, checked.given.source

    async def prepare(job: ShardedJob) -> None:
        mean = job.totals.cost_usd / job.totals.priced if job.totals.priced else None
        work = ShardWork(
            AsyncGateway,
            checked.configs,
            checked.gateway.settings,
            paths.source.absolute(),
            source.row_format,
            source.size,
            parts_folder(paths.output).absolute(),
            checked.options,
            mean_cost=mean,
            changed_at=source.changed_at,
            output=paths.output.absolute(),
        )
        await cluster.give_workers(job, work, command.actors)

    with contextlib.ExitStack() as connected:
        with checked.display.busy("connecting to Ray"):
            cluster = connected.enter_context(open_cluster(command.address, command.actors))
        return await _run_job(checked, prepare)


async def _run_job(
    checked: _CheckedJob, prepare: Callable[[ShardedJob], Awaitable[None]] | None = None
) -> int:
    command, display, options = checked.command, checked.display, checked.options
    given, paths = checked.given, checked.paths
    row_format, written = given.source.row_format, paths.output
    if paths.table is not None:  # whose columns may change
        row_format = replace(row_format, keep=None)
    files = await JobFiles.open(
        paths,
        given.source,
        {**options.shared, **asdict(row_format)},
        resume=command.resume or command.collect,
        ask_failed=command.ask_failed,
        keep_errors=command.collect,
    )
    with contextlib.closing(files):
        with display.busy(f"reading {paths.output}"):
            kind = Job if prepare is None else ShardedJob
            job = await kind.open(checked.gateway, given, files, options)
        if prepare is not None and isinstance(job, ShardedJob):
            await prepare(job)
        if given.source.has_changed:
            raise ConfigurationError(f"{paths.source} has changed while it was read; start again.")
        if job.totals.earlier and not command.collect:
            note(f"resuming: {job.totals.earlier} of {job.total} lines are already done")
        try:
            if not command.collect:
                await _show_and_run(job, display.screen)
            if paths.table is not None and (job.complete or command.collect):
                with display.busy(f"writing {paths.table}") as on_progress:
                    await write_table(paths.table, given, files, checked.table, on_progress)
                written = paths.table
        finally:
            _print_end(command, display.console, job, files, written)
    _note_what_is_left(command, job, paths)
    return 0 if job.complete and not job.totals.failed else FAILED


def _note_what_is_left(command: BatchCommand, job: Job, paths: JobPaths) -> None:
    if not job.complete:
        limit = " and a higher limit" if (job.stopping or "").startswith("--max") else ""
        note(f"To continue, run the same command with --resume{limit}.")
        if paths.table is not None and not command.collect:
            note(f"To write {paths.table} of the answers so far, run it with --collect.")
    elif command.limit is not None and job.total == command.limit:
        note("For the other lines, run the same command with --resume and a higher or no --limit.")


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


def _print_end(
    command: BatchCommand, console: Console, job: Job, files: JobFiles, written: Path
) -> None:
    table = written != files.answers.path  # which has the errors, too
    summary = Summary(
        totals=job.totals,
        total=job.total,
        elapsed=job.elapsed,
        stopped=job.stopping,
        input_path=command.source,
        output_path=written,
        errors_path=None if files.errors.is_empty or table else files.errors.path,
        report_path=command.report,
        finished_at=SYSTEM_CLOCK.wall(),
    )
    print_summary(console, summary)
    if command.report is not None and not command.collect:
        write_report(command.report, summary)


async def _dry_run(  # noqa: PLR0917 - each of another kind
    command: BatchCommand,
    display: _Display,
    source: Source,
    gateway: AsyncGateway,
    configs: list[LLMConfig],
    shared: Mapping[str, Any],
    index: Index,
) -> int:
    await gateway.warmup()  # loads the prices
    count = functools.partial(count_prompt_tokens, configs[0].model)
    with display.busy(f"reading {command.source}") as on_progress:
        found = await survey(
            source, gateway.check, shared, index, count=count, on_progress=on_progress
        )
    _refuse_an_empty_input(command.source, found)
    _refuse_unknown_columns(source)
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    print_estimates(console, found, estimates(found.tallies, configs))
    if found.wrong:
        _print_problems(source, found, skipped=command.skip_bad_lines)
    return WRONG_INPUT if found.wrong and not command.skip_bad_lines else 0


def _refuse_an_empty_input(source: Path, found: Survey) -> None:
    if not found.total:
        raise ConfigurationError(f"{source} has no requests.")


def _print_problems(source: Source, found: Survey, *, skipped: bool = False) -> None:
    unit, words = source.unit, [problem.what for problem in found.problems]
    lines = f"1 invalid {unit}" if found.wrong == 1 else f"{found.wrong} invalid {unit}s"
    if skipped:
        note(f"{source.path} has {lines}, to be skipped and counted as failed.")
    else:
        typer.secho(f"error: {source.path} has {lines}.", fg="red", err=True)
    for problem in found.problems:
        typer.echo(f"  {unit} {problem.number}: {problem.what}", err=True)
    if found.wrong > len(found.problems):
        typer.echo(f"  and {found.wrong - len(found.problems)} more", err=True)
    if any("No provider serves" in what for what in words):
        typer.echo("--ignore-model ignores the models of the lines.", err=True)
    ending = source.path.suffix or "no ending"
    strange = unit == "line" and ending not in {".jsonl", ".ndjson", ".json"}
    if strange and found.wrong == found.total and words[0].startswith("it is not "):
        typer.echo(
            f"The ending of a name decides its form, and {ending} stands for lines of JSON. Name a"
            " table .csv, .tsv or .parquet.",
            err=True,
        )
    if any(what.startswith("it and the rest cannot be read") for what in words):
        typer.echo("Correct the file; --skip-bad-lines would lose the rest of it.", err=True)
    elif not skipped:
        typer.echo(
            "Correct them, or give --skip-bad-lines to count them as failed and list them in the"
            " errors file.",
            err=True,
        )


def _paths(command: BatchCommand) -> JobPaths:
    """Return the job's files, checked as far as possible before the input is read."""
    if command.output is None:
        raise ConfigurationError("No output: name a file for the answers after the input.")
    if command.engine is not BatchEngine.RAY and (command.address or command.actors):
        raise ConfigurationError("--address and --actors need --engine ray.")
    for path in (command.source, command.output, command.errors):
        if command.engine is BatchEngine.RAY and path is not None and _REMOTE.match(str(path)):
            raise ConfigurationError(
                f"{path} is in an object store, where nothing can be appended or locked. Name a"
                " file on a disk that all machines share, and copy it afterwards."
            )
    paths = JobPaths.of(command.source, command.output, command.errors)
    if paths.table is None:
        for name, given in (("--collect", command.collect), ("--bom", command.bom)):
            if given:
                raise ConfigurationError(f"{name} is for tables; {paths.output} is none.")
    begun = paths.begun(resume=command.resume or command.collect)
    if command.collect and not begun:
        raise ConfigurationError(f"There are no answers for {paths.table} yet.")
    if command.report is not None:
        check_report_path(command.report, taken=paths.all)
    return paths


def _row_format(command: BatchCommand) -> RowFormat:
    return RowFormat(
        command.prompt_column,
        command.template,
        command.id_column,
        command.ignore_model,
        command.delimiter,
        keep=_column_names(command.keep_columns),
    )


def _column_names(given: str | None) -> tuple[str, ...] | None:
    """Read the value of --keep-columns: names with commas between, quoted as in a .csv."""
    if given is None:
        return None
    return tuple(name for name in next(csv.reader([given], skipinitialspace=True), []) if name)


def _shared_options(command: BatchCommand, schema: AnswerSchema | None) -> dict[str, Any]:
    """Return the options of all lines, with those of --param and --schema.

    Raises:
        ConfigurationError: One is given twice, or is no option.
    """
    names = ("system", "model", "temperature", "max_tokens", "timeout")
    shared = {name: value for name in names if (value := getattr(command, name)) is not None}
    if command.no_cache:
        shared["cache"] = False
    if schema is not None:
        shared["response_format"] = schema.response_format
    owned = set(shared)
    for given in command.param or ():
        name, separator, text = given.partition("=")
        path = name.strip().split(".")
        if not separator or not all(path):
            raise ConfigurationError(f"--param {given}: write it as name=value.")
        if path[0] in _NOT_PARAMS:
            raise ConfigurationError(f"--param {path[0]}: {_NOT_PARAMS[path[0]]}")
        inside: Any = shared
        for part in path[:-1]:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                break
        if path[0] in owned or not isinstance(inside, dict) or path[-1] in inside:
            raise ConfigurationError(f"--param {name}: it is given twice.")
        try:
            inside[path[-1]] = orjson.loads(text)
        except orjson.JSONDecodeError:
            inside[path[-1]] = text
    return shared


def _refuse_unknown_columns(source: Source) -> None:
    missing = [name for name in source.row_format.kept_by_name if name not in source.columns]
    if missing:
        raise ConfigurationError(
            f'--keep-columns: no line of {source.path} has "{missing[0]}"; there are:'
            f" {', '.join(source.columns)}."
        )


def _job_options(
    command: BatchCommand, paths: JobPaths, table: TableFormat, shared: Mapping[str, Any]
) -> JobOptions:
    row_format = _row_format(command)
    if paths.table is not None:
        check_table(paths.table, row_format, table)
    if (
        command.engine is BatchEngine.RAY
        and table.schema is not None
        and table.schema.model is not None
    ):
        raise ConfigurationError(
            "--schema with --engine ray takes a file with a JSON schema: a class may not be there"
            " on every machine. json.dumps(Class.model_json_schema()) is one."
        )
    concurrency: Concurrency = "auto"
    if command.concurrency != "auto":
        try:
            concurrency = int(command.concurrency)
        except ValueError:
            concurrency = 0
        if concurrency < 1:
            raise ConfigurationError('--concurrency must be a whole number from 1, or "auto".')
    patience = None if math.isinf(command.outage_patience) else command.outage_patience
    return JobOptions(
        shared,
        concurrency,
        patience,
        JobLimits(command.max_cost, command.max_failures, command.rpm, command.tpm),
        table.schema,
        with_input=row_format.keep is not None and paths.table is None,
    )
