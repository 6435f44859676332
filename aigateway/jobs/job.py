"""One job under way: lines in, records out, and an end that can be gone on from.

    line done already     -> passed over
    same as one answered  -> its record again, under this line's id
    same as one under way -> waits for that one
    limit reached, or told to stop -> nothing new begins, what is out is finished
    else                  -> asked; its record is written before anything else happens

The records are the only truth. What is out when the process is killed has no record, and is asked
again next time; what has one never is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aigateway.batch import Concurrency
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import AllProvidersFailedError, ConfigurationError, GatewayError
from aigateway.gateway import AsyncGateway
from aigateway.intake import estimated_tokens
from aigateway.jobs import manifest
from aigateway.jobs.index import Index
from aigateway.jobs.journal import Journal, JournalError
from aigateway.jobs.limits import Governor, Limits
from aigateway.jobs.lines import Line, Problem, Source
from aigateway.jobs.records import Record, copied, encoded, item_record, problem_record
from aigateway.jobs.survey import BREATH, asked_of, name_of, repeated
from aigateway.jobs.totals import Totals
from aigateway.messages import BatchItem
from aigateway.resilience.rates import Entry

__all__ = ["Files", "Input", "Job", "Terms", "open_files"]

_FOLLOWERS = 1000
"""Lines that may wait for answers to what others have asked; then no more is read meanwhile."""

_DISTANT = 3600.0
"""Seconds; whoever waits for an answer looks again after that at the latest."""

_SYNC_SECONDS = 5.0
"""Between two times that the disk itself is made to keep what was written."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is done.

    Attributes:
        shared: Options of `chat` for every line; its own stand over them.
        concurrency: Requests out at once, or "auto".
        outage_patience: Seconds to wait while nobody can be asked, before the job ends.
        limits: When it ends early.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    concurrency: Concurrency = 16
    outage_patience: float = 300.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Files:
    """Where a job's records go: the answers, and the lines that got none."""

    answers: Journal
    errors: Journal

    def close(self) -> None:
        """Close both; a file of errors without any is taken away."""
        with contextlib.closing(self.answers), contextlib.closing(self.errors):
            if self.errors.is_empty:
                self.errors.path.unlink(missing_ok=True)


def open_files(
    output: Path,
    errors: Path,
    source: Source,
    options: Mapping[str, Any],
    *,
    resume: bool,
    ask_failed: bool = False,
) -> Files:
    """Open the files of a job that begins, or goes on.

    Args:
        output: For the answers.
        errors: For the lines that got none.
        source: The input.
        options: What must be the same when the job goes on.
        resume: Whether to go on from what is in `output`, if there is anything.
        ask_failed: When going on, ask even those again whose request was at fault.

    Raises:
        ConfigurationError: One of them cannot be written, or does not belong to the input.
    """
    named = {path.resolve() for path in (output, errors, source.path)}
    if len(named) < 3:
        raise ConfigurationError("The input, the output and the file of errors must be three.")
    begun = output.exists() and output.stat().st_size > 0
    if begun and not resume:
        raise ConfigurationError(
            f"{output} is there already. Go on from it with --resume, or name another file."
        )
    fingerprint = source.fingerprint()
    if begun:
        manifest.resume(output, source.path, fingerprint, options)
    answers = Journal(output)  # from here on no other process writes to either
    try:
        if not begun:
            manifest.begin(output, fingerprint, options)
            errors.unlink(missing_ok=True)
        elif errors.exists():
            _keep_final(errors, ask_failed=ask_failed)
        return Files(answers, Journal(errors))
    except OSError as error:
        answers.close()
        raise ConfigurationError(f"{errors} cannot be written: {error.strerror}.") from None
    except BaseException:
        answers.close()
        raise


def _keep_final(errors: Path, *, ask_failed: bool) -> None:
    """Of the lines that failed keep those that asking again is no use for."""
    temporary = errors.with_name(f"{errors.name}.tmp")
    with Journal(errors) as old, temporary.open("wb") as kept:
        for _, record in old.records():
            if record["aigateway"].get("final") and not ask_failed:
                kept.write(encoded(record))
    temporary.replace(errors)


@dataclass(frozen=True, slots=True)
class Input:
    """A source that has been surveyed.

    Attributes:
        source: The file.
        index: With every line of it.
        total: How many lines there are.
    """

    source: Source
    index: Index
    total: int


@dataclass(slots=True)
class _Out:
    """A request that is under way, and the lines that wait for its answer too."""

    line_id: str
    asked: bytes | None
    entry: Entry
    followers: list[str] = field(default_factory=list)


class Job:
    """Takes the lines of an input through a gateway, and writes what becomes of each.

    Made by `Job.open`, which reads what earlier runs have done.

    Args:
        gateway: Answers.
        given: The lines.
        files: Where the records go.
        terms: How.
        clock: Time.

    Attributes:
        totals: What has become of the lines so far.
        total: How many lines there are.
        stopping: Why nothing new is begun, in words for who watches; None as long as it is.
        lost: Answers that came and could not be written.
    """

    def __init__(
        self,
        gateway: AsyncGateway,
        given: Input,
        files: Files,
        terms: Terms,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.gateway = gateway
        self.total = given.total
        self.totals = Totals()
        self.stopping: str | None = None
        self.lost = 0
        self._source = given.source
        self._files = files
        self._index = given.index
        self._terms = terms
        self._clock = clock
        self._begun = 0
        self._out: dict[int, _Out] = {}  # by the place in what `_requests` gives
        self._leaders: dict[bytes, _Out] = {}
        self._following = 0
        self._news = asyncio.Event()
        self._unwritten: list[tuple[Journal, Record]] = []
        self._began = self._synced = clock.now()
        self._governor: Governor

    @classmethod
    async def open(
        cls,
        gateway: AsyncGateway,
        given: Input,
        files: Files,
        terms: Terms,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Make a job that goes on from what is in its files.

        Raises:
            ConfigurationError: They hold something else.
        """
        job = cls(gateway, given, files, terms, clock)
        await job._recover()
        job._governor = Governor(terms.limits, job.totals, clock)
        job._began = clock.now()
        return job

    @property
    def in_flight(self) -> int:
        """Requests that are under way."""
        return len(self._out)

    @property
    def elapsed(self) -> float:
        """Seconds since the job was opened."""
        return self._clock.now() - self._began

    @property
    def waiting(self) -> bool:
        """Whether there is nobody who could be asked just now."""
        return not any(provider.active for provider in self.gateway.providers)

    @property
    def complete(self) -> bool:
        """Whether every line has a record."""
        return self.totals.done >= self.total

    def stop(self, why: str) -> None:
        """Begin nothing new; what is under way is finished."""
        if self.stopping is None:
            self.stopping = why
        self._news.set()

    async def run(self) -> None:
        """Take everything through. Cancelling it ends at once what is under way.

        Raises:
            ConfigurationError: The input cannot be read any further; what was read is done.
            JournalError: Answers came that could not be written.
        """
        items = self.gateway.as_completed(
            self._requests(),
            concurrency=self._terms.concurrency,
            outage_patience=self._terms.outage_patience,
            **self._terms.shared,
        )
        try:
            async with contextlib.aclosing(items) as finished:
                async for item in finished:
                    self._finish(item)
                    await self._sync_now_and_then()
        finally:
            self._write_what_could_not_be()
        if self.lost:
            raise JournalError(
                f"{self.lost} answers came that could not be written to {self._files.answers.path}."
                " Make room on the disk, and go on with --resume."
            )

    # ── what earlier runs have done ──────────────────────────────────────────────────────────

    async def _recover(self) -> None:
        for journal in (self._files.answers, self._files.errors):
            for number, (place, record) in enumerate(journal.records()):
                if number % BREATH == 0:
                    await asyncio.sleep(0)
                answered = journal is self._files.answers
                if not self._index.finish(record["custom_id"], place if answered else -1):
                    raise ConfigurationError(
                        f"{journal.path} has records that are not of {self._source.path}, or twice."
                        " Name another output."
                    )
                self.totals.add(record)
                self.totals.earlier += 1

    # ── lines ────────────────────────────────────────────────────────────────────────────────

    async def _requests(self) -> AsyncGenerator[dict[str, Any], None]:
        """The lines that have to be asked, each when its time has come."""
        for passed, line in enumerate(self._source.lines()):
            if passed % BREATH == 0:
                await asyncio.sleep(0)
            while self._following >= _FOLLOWERS and self.stopping is None:
                await self._wait(_DISTANT)
            if self.stopping is not None:
                return
            asked = None if isinstance(line, Problem) else asked_of(line, self._terms.shared)
            if isinstance(line, Problem) or self._is_dealt_with(line, asked):
                if isinstance(line, Problem):
                    self._refuse(line)
                continue
            tokens = self._tokens(line)
            await self._turn(tokens)
            if self.stopping is not None:
                return
            yield self._begin(line, asked, tokens)

    def _begin(self, line: Line, asked: bytes | None, tokens: int) -> dict[str, Any]:
        out = _Out(line.id, asked, self._governor.begin(tokens))
        self._out[self._begun] = out
        self._begun += 1
        if asked is not None:
            self._leaders[asked] = out
        name = "prompt" if isinstance(line.prompt, str) else "messages"
        return {**line.options, name: line.prompt, "id": line.id}

    def _refuse(self, problem: Problem) -> None:
        """Write a line down that nobody can be asked, once."""
        line_id = name_of(problem, self._index)
        if not self._index.is_done(line_id):
            self._write(self._files.errors, problem_record(line_id, problem))

    def _is_dealt_with(self, line: Line, asked: bytes | None) -> bool:
        """Whether there is no need to ask: it is done, or its answer is there or on its way."""
        number, place = self._index.find(line.id)
        if number != line.number:
            self._refuse(repeated(line, number))
            return True
        if place is not None:
            if place >= 0 and asked is not None:
                self._index.answered(asked, place)
            return True
        if asked is None:
            return False
        place = self._index.answer(asked)
        if place is not None:
            self._write(self._files.answers, copied(self._files.answers.at(place), line.id))
            return True
        leader = self._leaders.get(asked)
        if leader is None:
            return False
        leader.followers.append(line.id)
        self._following += 1
        return True

    def _tokens(self, line: Line) -> int:
        if self._terms.limits.tpm is None:
            return 0
        options = {**self._terms.shared, **line.options}
        return estimated_tokens(self.gateway.check(line.prompt, **options))

    async def _turn(self, tokens: int) -> None:
        """Wait until the next request may begin, or none should any more."""
        while self.stopping is None:
            reached = self._governor.reached(len(self._out))
            if reached is not None:
                self.stop(reached)
                return
            wait = self._governor.wait(len(self._out), tokens)
            if not wait:
                return
            await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        """Wait for so long, or until something has come."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await self._news.wait()

    # ── records ──────────────────────────────────────────────────────────────────────────────

    def _finish(self, item: BatchItem) -> None:
        """Write what became of a request, for its line and for those that wait with it."""
        out = self._out.pop(item.index)
        if out.asked is not None:
            self._leaders.pop(out.asked, None)
        record = item_record(out.line_id, item)
        journal = self._files.errors if item.response is None else self._files.answers
        place = self._write(journal, record)
        if item.response is not None:
            out.entry.settle(item.response.usage.total_tokens)
            if place is not None and out.asked is not None:
                self._index.answered(out.asked, place)
        for line_id in out.followers:
            self._following -= 1
            self._write(journal, copied(record, line_id))
        if isinstance(item.error, AllProvidersFailedError) and self.waiting:
            self.stop(f"nobody can be asked any more ({_reason(item.error)})")
        self._news.set()

    def _write(self, journal: Journal, record: Record) -> int | None:
        """Write a record and count it; None if it cannot be written now."""
        try:
            place = journal.append(record)
        except JournalError as error:
            self._unwritten.append((journal, record))
            self.stop(str(error).rstrip("."))
            return None
        self._index.finish(record["custom_id"], place if record["error"] is None else -1)
        self.totals.add(record)
        return place

    def _write_what_could_not_be(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for journal, record in unwritten:
            self._write(journal, record)
        self.lost = sum(record["error"] is None for _, record in self._unwritten)

    async def _sync_now_and_then(self) -> None:
        now = self._clock.now()
        if now - self._synced >= _SYNC_SECONDS:
            self._synced = now
            await asyncio.to_thread(self._files.answers.sync)


def _reason(error: GatewayError) -> str:
    return str(error).removeprefix("All LLM providers failed: ").rstrip(".")
