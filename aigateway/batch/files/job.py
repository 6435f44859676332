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
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from aigateway.batch.engine import Concurrency, Requests
from aigateway.batch.files.index import NOWHERE, Index
from aigateway.batch.files.journal import Journal, JournalError
from aigateway.batch.files.limits import Governor, Limits
from aigateway.batch.files.lines import Line, Problem, Source
from aigateway.batch.files.paths import Files
from aigateway.batch.files.records import Record, copied, item_record, problem_record
from aigateway.batch.files.requests import BREATH, asked_of, judged, name_of, repeated
from aigateway.batch.files.totals import Totals
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import (
    AllProvidersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    GatewayError,
)
from aigateway.messages import BatchItem, ChatRequest
from aigateway.resilience.rates import RateEntry
from aigateway.routing.provider import ProviderStatus
from aigateway.tokens import estimated_tokens

__all__ = ["Input", "Job", "Terms"]

_FOLLOWERS = 1000
"""Lines that may wait for answers to what others have asked; then no more is read meanwhile."""

_DISTANT = 3600.0
"""Seconds; whoever waits for an answer looks again after that at the latest."""

_SYNC_SECONDS = 5.0
"""Between two times that the disk itself is made to keep what was written."""

_RELEASE_SECONDS = 0.2
"""Between two looks at whether what is still out only waits for providers that are away."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is done.

    Attributes:
        shared: Options of `chat` for every line; its own stand over them.
        concurrency: Requests out at once, or "auto".
        outage_patience: Seconds without an answer of any provider after which the job ends; None
            waits without end, 0 ends as soon as nobody can be asked.
        limits: When it ends early.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    concurrency: Concurrency = 16
    outage_patience: float | None = 300.0
    limits: Limits = field(default_factory=Limits)


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
    entry: RateEntry
    followers: list[Line] = field(default_factory=list)


class Gateway(Protocol):
    """The part of `AsyncGateway` that a job needs; the gateway stands above this room."""

    @property
    def providers(self) -> tuple[ProviderStatus, ...]: ...
    def check(self, prompt_or_messages: Any, **options: Any) -> ChatRequest: ...
    def get_metrics(self) -> dict[str, Any]: ...
    def as_completed(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = ...,
        outage_patience: float | None = ...,
        **shared: Any,
    ) -> AsyncGenerator[BatchItem, None]: ...


class Job:
    """Takes the lines of an input through a gateway, and writes what becomes of each.

    Args:
        gateway: Answers.
        given: The lines.
        files: Where the records go.
        terms: How.
        totals: Of the earlier runs; see `Job.open`.
        clock: Time.

    Attributes:
        gateway: As given.
        totals: What has become of the lines so far.
        total: How many lines there are.
        stopping: Why nothing new is begun, in words for who watches; None as long as it is.
        lost: Answers that came and could not be written.
    """

    def __init__(
        self,
        gateway: Gateway,
        given: Input,
        files: Files,
        terms: Terms,
        totals: Totals,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.gateway = gateway
        self.total = given.total
        self.totals = totals
        self.stopping: str | None = None
        self.lost = 0
        self._source = given.source
        self._files = files
        self._index = given.index
        self._terms = terms
        self._clock = clock
        self._governor = Governor(terms.limits, totals, clock)
        self._begun = 0
        self._out: dict[int, _Out] = {}  # by the place in what `_requests` gives
        self._leaders: dict[bytes, _Out] = {}
        self._following = 0
        self._again: deque[tuple[Line, list[Line]]] = deque()  # with those that wait for it
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._unwritten: list[tuple[Journal, Record]] = []
        self._began = self._answered = clock.now()

    @classmethod
    async def open(
        cls,
        gateway: Gateway,
        given: Input,
        files: Files,
        terms: Terms,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Make a job that goes on from what is in its files.

        Raises:
            ConfigurationError: They hold something else.
        """
        totals = await _earlier(given, files)
        return cls(gateway, given, files, terms, totals, clock=clock)

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
        self._stopped.set()
        self._news.set()

    async def run(self) -> None:
        """Take everything through. Cancelling it ends at once what is under way.

        Raises:
            ConfigurationError: The input cannot be read any further; what was read is done.
            JournalError: Answers came that could not be written.
            GatewayError: The index has no room on the disk.
        """
        working = asyncio.create_task(self._work(), name="aigateway-job")
        beside = [
            asyncio.create_task(self._sync_now_and_then(), name="aigateway-job-sync"),
            asyncio.create_task(self._release(working), name="aigateway-job-release"),
        ]
        try:
            await asyncio.wait([working])
        finally:
            for task in (working, *beside):
                task.cancel()
            await asyncio.wait([working, *beside])
            self._write_what_could_not_be()
        if not working.cancelled():
            working.result()
        if self.lost:
            raise JournalError(
                f"{self.lost} answers came that could not be written to {self._files.answers.path}."
                " Make room on the disk, and go on with --resume."
            )

    async def _work(self) -> None:
        items = self.gateway.as_completed(
            self._requests(),
            concurrency=self._terms.concurrency,
            outage_patience=self._terms.outage_patience,
            **self._terms.shared,
        )
        async with contextlib.aclosing(items) as finished:
            async for item in finished:
                self._finish(item)

    async def _release(self, working: asyncio.Task[None]) -> None:
        """Told to stop, do not wait for providers that are away: nothing is out at any of them."""
        await self._stopped.wait()
        while True:
            metrics = self.gateway.get_metrics()
            if self.waiting and not metrics["in_flight"] and not metrics["waiting"]:
                working.cancel()
                return
            await self._clock.sleep(_RELEASE_SECONDS)

    async def _sync_now_and_then(self) -> None:
        while True:
            await self._clock.sleep(_SYNC_SECONDS)
            try:
                await asyncio.to_thread(self._files.answers.sync)
            except JournalError as error:
                self.stop(str(error).rstrip("."))

    # ── lines ────────────────────────────────────────────────────────────────────────────────

    async def _requests(self) -> AsyncGenerator[dict[str, Any], None]:
        """The lines that have to be asked, each when its time has come."""
        for passed, line in enumerate(self._source.lines()):
            if passed % BREATH == 0:
                await self._breathe()
            async for again in self._asking_for_themselves(_FOLLOWERS):
                yield again
            request = await self._request(line)
            if self.stopping is not None:
                return
            if request is not None:
                yield request
        async for again in self._asking_for_themselves(1):
            yield again

    async def _asking_for_themselves(self, most: int) -> AsyncGenerator[dict[str, Any], None]:
        """Until fewer than so many lines wait for others: those that need wait no more."""
        while (self._again or self._following >= most) and self.stopping is None:
            if self._again:
                yield self._asked_again()
            else:
                await self._wait(_DISTANT)

    async def _request(self, line: Line | Problem) -> dict[str, Any] | None:
        """What to ask for a line, when its turn has come; None if there is no need, or no use."""
        judgement = self._judged(line)
        if judgement is None:
            return None
        asking, request, place = judgement
        asked = asked_of(asking, self._terms.shared)
        if self._is_dealt_with(asking, asked, place):
            return None
        tokens = estimated_tokens(request)
        await self._turn(tokens)
        return None if self.stopping is not None else self._begin(asking, asked, tokens)

    async def _breathe(self) -> None:
        await asyncio.sleep(0)
        if self._source.has_changed:
            self.stop(f"{self._source.path} has changed while it was read")

    def _judged(self, line: Line | Problem) -> tuple[Line, ChatRequest, int | None] | None:
        """A line that may be asked, its request, and where its record is if it is done.

        None for one that may not be asked, which is written down once.
        """
        judgement = judged(line, self.gateway.check, self._terms.shared)
        if not isinstance(judgement, Problem):
            line, request = judgement
            number, place = self._index.find(line.id)
            if number == line.number:
                return line, request, place
            judgement = repeated(line, number)
        name = name_of(judgement, self._index)
        number, place = self._index.find(name)
        if not number:
            self.stop(f"{self._source.path} has changed while it was read")
        elif place is None:
            self._write(self._files.errors, problem_record(name, judgement))
        return None

    def _is_dealt_with(self, line: Line, asked: bytes | None, place: int | None) -> bool:
        """Whether there is no need to ask: it is done, or its answer is there or on its way."""
        if place is not None:
            if place != NOWHERE and asked is not None:
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
        leader.followers.append(line)
        self._following += 1
        return True

    def _begin(self, line: Line, asked: bytes | None, tokens: int) -> dict[str, Any]:
        out = _Out(line.id, asked, self._governor.begin(tokens))
        self._out[self._begun] = out
        self._begun += 1
        if asked is not None:
            self._leaders[asked] = out
        name = "prompt" if isinstance(line.prompt, str) else "messages"
        return {**line.options, name: line.prompt, "id": line.id}

    def _asked_again(self) -> dict[str, Any]:
        """The first of the lines that waited for one whose own time was over."""
        line, followers = self._again.popleft()
        self._following -= 1
        request = self._begin(line, asked_of(line, self._terms.shared), 0)
        self._out[self._begun - 1].followers = followers
        return request

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
            await self._wait(min(wait, _DISTANT))

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
            if not item.response.cached:
                self._answered = self._clock.now()
            if place is not None and out.asked is not None:
                self._index.answered(out.asked, place)
        if isinstance(item.error, DeadlineExceededError) and out.followers:
            # It may have had less time than they have.
            first, *others = out.followers
            self._again.append((first, others))
        else:
            self._following -= len(out.followers)
            for line in out.followers:
                self._write(journal, copied(record, line.id))
        if isinstance(item.error, AllProvidersFailedError) and self._nobody_answers():
            self.stop(f"nobody can be asked any more ({_reason(item.error)})")
        self._news.set()

    def _nobody_answers(self) -> bool:
        """Whether there is no use in going on: a request has just failed everywhere."""
        patience = self._terms.outage_patience
        if self.waiting and all(p.disabled_reason is not None for p in self.gateway.providers):
            return True
        if not patience:
            return patience is not None and self.waiting
        return self._clock.now() - self._answered >= patience

    def _write(self, journal: Journal, record: Record) -> int | None:
        """Write a record and count it; None if it cannot be written now."""
        try:
            place = journal.append(record)
        except JournalError as error:
            self._unwritten.append((journal, record))
            self.stop(str(error).rstrip("."))
            return None
        self._index.finish(record["custom_id"], NOWHERE if record["error"] else place)
        self.totals.add(record)
        return place

    def _write_what_could_not_be(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for journal, record in unwritten:
            self._write(journal, record)
        self.lost = sum(record["error"] is None for _, record in self._unwritten)


async def _earlier(given: Input, files: Files) -> Totals:
    """What earlier runs have done: into the index, and added up."""
    totals = Totals()
    for journal in (files.answers, files.errors):
        for number, (place, record) in enumerate(journal.records()):
            if number % BREATH == 0:
                await asyncio.sleep(0)
            name = record["custom_id"]
            if not given.index.finish(name, place if journal is files.answers else NOWHERE):
                raise ConfigurationError(
                    f"{journal.path} has records that are not of {given.source.path}, or twice."
                    " Name another output."
                )
            totals.add(record)
            totals.earlier += 1
    return totals


def _reason(error: GatewayError) -> str:
    return str(error).removeprefix("All LLM providers failed: ").rstrip(".")
