"""Run one job: lines in, records out, resumable after any end.

    line already done               -> skipped
    same as an answered line        -> its record again, under this line's id
    same as a line in flight        -> waits for that one
    limit reached, or stopped       -> nothing new begins; requests in flight finish
    else                            -> sent; its record is written before anything else happens

The records are the only truth. A request in flight when the process is killed has no record and is
sent again by the next run. A line with a record never is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, Unpack

from aigateway.batch.files.index import Index, failed_at
from aigateway.batch.files.input import (
    LINES_PER_TURN,
    Line,
    Problem,
    Source,
    checked,
    problem_name,
    repeated_id,
    same_answer_key,
)
from aigateway.batch.files.output import (
    Journal,
    JournalError,
    Record,
    copied,
    item_record,
    problem_record,
)
from aigateway.batch.files.parts import merge_parts
from aigateway.batch.files.paths import JobFiles
from aigateway.batch.files.schema import AnswerSchema
from aigateway.batch.files.totals import Allowance, JobLimiter, JobLimits, JobTotals, LimitedCall
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import (
    AllProvidersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    GatewayError,
)
from aigateway.messages import BatchItem, ChatRequest
from aigateway.options import BatchOptions, ChatOptions, Concurrency, Requests
from aigateway.routing.provider import ProviderStatus
from aigateway.tokens import estimated_tokens

__all__ = ["NO_PROVIDER", "Job", "JobInput", "JobOptions"]

NO_PROVIDER = "no provider is available any more"
"""Prefix of the message of a job that an outage has ended."""

_MOST_FOLLOWERS = 1000
"""Lines that may wait for the answer to an identical line before reading pauses."""

_LONGEST_WAIT = 3600.0
"""Seconds. A longer wait is divided."""

_RELEASE_SECONDS = 0.2
"""Between two checks whether a stopped job only waits for unavailable providers."""

_HOPELESS_SECONDS = 30.0
"""So long without an answer, a stopped job ends also while unavailable providers are tried again:
each of its requests may be such a trial, one after the other."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job runs.

    Attributes:
        shared: Options of `chat` for every line; its own take precedence.
        concurrency: Requests in flight at once, or "auto".
        outage_patience: Seconds without an answer of any provider after which the job ends; None
            waits without limit, 0 ends as soon as no provider is available.
        limits: When it ends early.
        schema: The schema that answers must fit; None checks nothing.
        with_input: Whether records have the columns of the input to keep.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    concurrency: Concurrency = 16
    outage_patience: float | None = 300.0
    limits: JobLimits = field(default_factory=JobLimits)
    schema: AnswerSchema | None = None
    with_input: bool = False


@dataclass(frozen=True, slots=True)
class JobInput:
    """A surveyed source, the index with all its lines, and their number."""

    source: Source
    index: Index
    total: int


@dataclass(slots=True)
class _InFlight:
    """A request in flight, and the identical lines that wait for its answer."""

    line: Line
    key: bytes | None
    entry: LimitedCall
    followers: list[Line] = field(default_factory=list)


class Gateway(Protocol):
    """The part of `AsyncGateway` that a job needs; this package does not import the gateway."""

    @property
    def providers(self) -> tuple[ProviderStatus, ...]: ...
    def check(self, prompt_or_messages: Any, /, **options: Unpack[ChatOptions]) -> ChatRequest: ...
    def get_metrics(self) -> Mapping[str, Any]: ...
    def as_completed(
        self, requests: Requests, /, **options: Unpack[BatchOptions]
    ) -> AsyncGenerator[BatchItem, None]: ...


class Job:
    """Sends the lines of an input through a gateway, and writes a record of each.

    Make one with `Job.open`.

    Attributes:
        gateway: Answers the requests.
        total: Number of lines.
        stopping: Why no new request begins, as a message; None while they do.
        lost: Answers that could not be written.
        sync_seconds: Between two syncs of its files to the disk.
    """

    sync_seconds = 5.0

    def __init__(
        self,
        gateway: Gateway,
        given: JobInput,
        files: JobFiles,
        options: JobOptions,
        totals: JobTotals,
        *,
        clock: Clock = SYSTEM_CLOCK,
        allowance: Allowance | None = None,
    ) -> None:
        self.gateway = gateway
        self.total = given.total
        self.stopping: str | None = None
        self.lost = 0
        self._source = given.source
        self._files = files
        self._index = given.index
        self._options = options
        self._clock = clock
        self._written = totals
        self._limiter = JobLimiter(options.limits, totals, clock, allowance)
        self._begun = 0
        self._in_flight: dict[int, _InFlight] = {}  # by index in the batch's input
        self._leaders: dict[bytes, _InFlight] = {}
        self._following = 0
        self._again: deque[tuple[Line, list[Line]]] = deque()  # with their own followers
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._unwritten: list[tuple[Journal, Record]] = []
        self._began = self._answered = clock.now()

    @classmethod
    async def open(
        cls,
        gateway: Gateway,
        given: JobInput,
        files: JobFiles,
        options: JobOptions,
        **more: Any,
    ) -> Self:
        """Make a job that continues from the records in its files, and in parts of shards.

        Raises:
            ConfigurationError: They belong to another input.
        """
        totals = await _earlier(given, files)
        await merge_parts(given.index, files, totals)
        return cls(gateway, given, files, options, totals, **more)

    @property
    def totals(self) -> JobTotals:
        """Sums so far, earlier runs included."""
        return self._written

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return len(self._in_flight)

    @property
    def elapsed(self) -> float:
        """Seconds since the job was opened."""
        return self._clock.now() - self._began

    @property
    def waiting(self) -> bool:
        """Whether no provider is available now."""
        return not any(provider.active for provider in self.gateway.providers)

    @property
    def complete(self) -> bool:
        """Whether every line has a record."""
        return self.totals.done >= self.total

    def stop(self, why: str) -> None:
        """Begin nothing new; requests in flight finish."""
        if self.stopping is None:
            self.stopping = why
        self._stopped.set()
        self._news.set()

    async def run(self) -> None:
        """Run the job to its end. Cancelling it cancels the requests in flight.

        Raises:
            ConfigurationError: The rest of the input cannot be read; what was read is done.
            JournalError: Answers could not be written.
            GatewayError: The index has no room on the disk.
        """
        working = asyncio.create_task(self._work(), name="aigateway-job")
        helpers = [
            asyncio.create_task(self._sync_periodically(), name="aigateway-job-sync"),
            asyncio.create_task(self._release(working), name="aigateway-job-release"),
        ]
        try:
            await asyncio.wait([working])
        finally:
            for task in (working, *helpers):
                task.cancel()
            await asyncio.wait([working, *helpers])
            self._retry_writes()
        if not working.cancelled():
            working.result()
        if self.lost:
            raise JournalError(
                f"{self.lost} answers could not be written to {self._files.answers.path}. Free"
                " disk space, and continue with --resume."
            )

    async def _work(self) -> None:
        # The batch's own `timeout` would be one for all lines together.
        shared = {name: v for name, v in self._options.shared.items() if name != "timeout"}
        items = self.gateway.as_completed(
            self._requests(),
            concurrency=self._options.concurrency,
            outage_patience=self._options.outage_patience,
            **shared,
        )
        async with contextlib.aclosing(items) as finished:
            async for item in finished:
                self._finish(item)

    async def _release(self, working: asyncio.Task[None]) -> None:
        """End a stopped job whose requests only wait for unavailable providers."""
        await self._stopped.wait()
        answered, since = self._answered, self._clock.now()
        while True:
            now = self._clock.now()
            if not self.waiting or self._answered != answered:
                answered, since = self._answered, now
            elif now >= since + _HOPELESS_SECONDS or not self.gateway.get_metrics()["in_flight"]:
                working.cancel()
                return
            await self._clock.sleep(_RELEASE_SECONDS)

    async def _sync_periodically(self) -> None:
        while True:
            await self._clock.sleep(self.sync_seconds)
            try:
                for journal in (self._files.answers, self._files.errors):
                    await asyncio.to_thread(journal.sync)
            except JournalError as error:
                self.stop(str(error).rstrip("."))

    # ── lines ────────────────────────────────────────────────────────────────────────────────────

    async def _requests(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the lines that have to be sent, each when it may begin."""
        for number, line in enumerate(self._source.lines()):
            if number % LINES_PER_TURN == 0:
                await asyncio.sleep(0)
                if self._source.has_changed:
                    self._stop_changed()
            async for again in self._followers_to_send(_MOST_FOLLOWERS):
                yield again
            request = await self._request(line)
            if self.stopping is not None:
                return
            if request is not None:
                yield request
        async for again in self._followers_to_send(1):
            yield again

    async def _followers_to_send(self, most: int) -> AsyncGenerator[dict[str, Any], None]:
        """Wait until fewer than `most` lines wait for others; yield those that have to be sent."""
        while (self._again or self._following >= most) and self.stopping is None:
            if self._again:
                yield self._begin_follower()
            else:
                await self._wait(_LONGEST_WAIT)

    async def _request(self, line: Line | Problem) -> dict[str, Any] | None:
        """Return the request of a line when it may begin; None if none is needed, or stopping."""
        found = self._checked(line)
        if found is None:
            return None
        line, request, place = found
        key = same_answer_key(line, self._options.shared)
        if self._is_settled(line, key, place):
            return None
        tokens = estimated_tokens(request)
        await self._wait_for_limits(tokens)
        return None if self.stopping is not None else self._begin(line, key, tokens)

    def _stop_changed(self) -> None:
        self.stop(f"{self._source.path} has changed while it was read")

    def _checked(self, line: Line | Problem) -> tuple[Line, ChatRequest, int | None] | None:
        """Return a valid line, its request, and the offset of its record if it is done.

        A bad line gets a record, once, and None is returned.
        """
        found = checked(line, self.gateway.check, self._options.shared)
        if not isinstance(found, Problem):
            valid, request = found
            number, place = self._index.find(valid.id)
            if number == valid.number:
                return valid, request, place
            found = repeated_id(valid, number, self._source.unit)
        name = problem_name(found, self._index)
        number, place = self._index.find(name)
        if not number:
            self._stop_changed()
        elif place is None:
            self._write(self._files.errors, problem_record(name, found), found)
        return None

    def _is_settled(self, line: Line, key: bytes | None, place: int | None) -> bool:
        """Return whether a line is not sent: it is done, or its answer exists or is in flight."""
        if place is not None:
            if place >= 0 and key is not None:
                self._index.answered(key, place)
            return True
        if key is None:
            return False
        place = self._index.answer(key)
        if place is not None:
            self._write(self._files.answers, copied(self._files.answers.at(place), line.id), line)
            return True
        leader = self._leaders.get(key)
        if leader is None:
            return False
        leader.followers.append(line)
        self._following += 1
        return True

    def _begin(
        self, line: Line, key: bytes | None, tokens: int, followers: list[Line] | None = None
    ) -> dict[str, Any]:
        begun = _InFlight(line, key, self._limiter.begin(tokens), followers or [])
        self._in_flight[self._begun] = begun
        self._begun += 1
        if key is not None:
            self._leaders[key] = begun
        name = "prompt" if isinstance(line.prompt, str) else "messages"
        timeout = {"timeout": self._options.shared.get("timeout")}
        return {**timeout, **line.options, name: line.prompt, "id": line.id}

    def _begin_follower(self) -> dict[str, Any]:
        """Send the first of the lines whose leader ran out of time."""
        line, followers = self._again.popleft()
        self._following -= 1
        return self._begin(line, same_answer_key(line, self._options.shared), 0, followers)

    async def _wait_for_limits(self, tokens: int) -> None:
        """Wait until the next request may begin, or the job stops."""
        while self.stopping is None:
            reached = self._limiter.reached(len(self._in_flight))
            if reached is not None:
                self.stop(reached)
                return
            wait = self._limiter.wait(len(self._in_flight), tokens)
            if not wait:
                return
            await self._wait(min(wait, _LONGEST_WAIT))

    async def _wait(self, seconds: float) -> None:
        """Wait that long, or until a request is done."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await self._news.wait()

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    def _finish(self, item: BatchItem) -> None:
        """Write the records of a finished request: its line's, and those of its followers."""
        done = self._in_flight.pop(item.index)
        if done.key is not None:
            self._leaders.pop(done.key, None)
        record = item_record(done.line.id, item)
        if record["error"] is None and self._options.schema is not None:
            record = self._options.schema.applied(record)
        failed = record["error"] is not None
        journal = self._files.errors if failed else self._files.answers
        place = self._write(journal, record, done.line)
        if item.response is not None:
            done.entry.settle(item.response.usage.total_tokens)
            if not item.response.cached:
                self._answered = self._clock.now()
            if place is not None and done.key is not None and not failed:
                self._index.answered(done.key, place)
        if isinstance(item.error, DeadlineExceededError) and done.followers:
            # A follower may have a longer timeout.
            first, *others = done.followers
            self._again.append((first, others))
        else:
            self._following -= len(done.followers)
            for line in done.followers:
                self._write(journal, copied(record, line.id), line)
        if isinstance(item.error, AllProvidersFailedError) and self._is_hopeless():
            self.stop(f"{NO_PROVIDER} ({_reason(item.error)})")
        self._news.set()

    def _is_hopeless(self) -> bool:
        """Return whether the job should end, now that a request has failed at every provider."""
        patience = self._options.outage_patience
        if self.waiting and all(p.disabled_reason is not None for p in self.gateway.providers):
            return True
        if not patience:
            return patience is not None and self.waiting
        return self._clock.now() - self._answered >= patience

    def _write(
        self, journal: Journal, record: Record, line: Line | Problem | None = None
    ) -> int | None:
        """Write a record and count it. Return its offset; None if it cannot be written now."""
        if line is not None and self._options.with_input:
            record["input"] = self._source.kept(line)
        try:
            place = journal.append(record)
        except JournalError as error:
            self._unwritten.append((journal, record))
            self.stop(str(error).rstrip("."))
            return None
        self._index.finish(record["custom_id"], failed_at(place) if record["error"] else place)
        self._written.add(record)
        return place

    def _retry_writes(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for journal, record in unwritten:
            self._write(journal, record)
        self.lost = sum(record["error"] is None for _, record in self._unwritten)


async def _earlier(given: JobInput, files: JobFiles) -> JobTotals:
    """Enter the records of earlier runs into the index, and add them up."""
    totals = JobTotals()
    for journal in (files.answers, files.errors):
        for number, (place, record) in enumerate(journal.records()):
            if number % LINES_PER_TURN == 0:
                await asyncio.sleep(0)
            name = record["custom_id"]
            if not given.index.finish(name, failed_at(place) if record["error"] else place):
                beyond = "" if given.source.limit is None else " or give a higher --limit,"
                raise ConfigurationError(
                    f"{journal.path} has records that do not belong to {given.source.path}, or"
                    f" repeated ones:{beyond} name another output."
                )
            totals.add(record)
            totals.earlier += 1
    return totals


def _reason(error: GatewayError) -> str:
    return str(error).removeprefix("All LLM providers failed: ").rstrip(".")
