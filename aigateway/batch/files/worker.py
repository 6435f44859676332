"""A worker of a job that is cut into shards: it answers each, beside a gateway of its own.

It writes its records to the shard's part. The driver, which hands shards out, is in `shards.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigateway.batch.files.allowance import CostSoFar, JobAllowance, SharedLimits
from aigateway.batch.files.index import Index
from aigateway.batch.files.input import LINES_PER_TURN, RowFormat, Shard, Source
from aigateway.batch.files.job import Job, JobInput, JobOptions
from aigateway.batch.files.output import JournalInUseError, check_locks_are_seen
from aigateway.batch.files.parts import ShardPart
from aigateway.batch.files.totals import JobTotals
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError, GatewayError
from aigateway.fleet.fleet import Fleet
from aigateway.fleet.ledger import Ledger
from aigateway.fleet.redis_ledger import RedisLedger
from aigateway.messages import BatchItem
from aigateway.routing.provider import ProviderStatus
from aigateway.settings import GatewaySettings, LLMConfig

__all__ = ["RunnerStatus", "ShardEnd", "ShardRunner", "ShardWork"]

_MICROSECOND = 1000

_REDIS_SECONDS = 10.0
"""How long limits wait for a Redis that does not answer; a loaded machine delays it."""


@dataclass(frozen=True, slots=True)
class ShardWork:
    """What a worker needs to know of a job. It is sent with each shard: a worker may be new.

    Attributes:
        open_gateway: `AsyncGateway`, which this package does not import.
        configs: The providers, with their keys.
        settings: The gateway's settings.
        source: The input, on a path that all machines share.
        row_format: How a row becomes a request.
        size: The input's bytes.
        folder: The folder of the parts.
        options: How the job runs; `concurrency` is that of one worker.
        shared: The limits that workers share.
        mean_cost: US dollars of a usual answer in earlier runs; None if not known.
        ledger: Makes the ledger of limits, where no Redis is; None if there are none.
        changed_at: When the input was last changed, in nanoseconds; None is not compared.
        output: The output, which the driver has locked; None is not checked.
    """

    open_gateway: Callable[..., Any]
    configs: Sequence[LLMConfig]
    settings: GatewaySettings
    source: Path
    row_format: RowFormat
    size: int
    folder: Path
    options: JobOptions
    shared: SharedLimits | None = None
    mean_cost: float | None = None
    ledger: Callable[[], Ledger] | None = None
    changed_at: int | None = None
    output: Path | None = None


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """The end of a worker's work on a shard.

    Attributes:
        complete: Whether each of its lines has a record.
        stopping: Why no new request began, if it was so.
        problem: What made work impossible, as a message.
        in_use: Whether that is another process that still writes the part.
    """

    complete: bool = False
    stopping: str | None = None
    problem: str | None = None
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """The current status of a worker.

    Attributes:
        shards: Sums and requests in flight of each shard that it works on.
        providers: Its providers.
        silent: Seconds since its last answer of a vendor.
    """

    shards: Mapping[int, tuple[JobTotals, int]]
    providers: Sequence[ProviderStatus]
    silent: float


class _ShardJob(Job):
    """A job over one shard, beside another one of the same worker that only waits for its end."""

    sync_seconds = 1.0  # a machine of a cluster may lose its power
    runner: ShardRunner
    number: int

    async def _requests(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            async with contextlib.aclosing(super()._requests()) as requests:
                async for request in requests:
                    yield request
        finally:
            if self.stopping is None:  # else the worker may lack the network
                self.runner.has_room(self.number)

    async def _wait_for_limits(self, tokens: int) -> None:
        while self.stopping is None and self.runner.is_full:
            await self._wait(math.inf)
        await super()._wait_for_limits(tokens)

    def _finish(self, item: BatchItem) -> None:
        answered = self._answered
        super()._finish(item)
        if self._answered != answered:
            self.runner.answered = self._answered
        self.runner.wake()

    def _is_hopeless(self) -> bool:
        self._answered = max(self._answered, self.runner.answered)
        return super()._is_hopeless()

    def wake(self) -> None:
        """Look again whether a request may begin."""
        self._news.set()

    def silent_since(self, answered: float) -> None:
        """Count an outage from the worker's last answer, which was in another shard."""
        self._answered = answered


class ShardRunner:
    """A worker: answers shards. For one event loop.

    Attributes:
        answered: When a vendor last answered.
    """

    def __init__(self) -> None:
        self.answered = SYSTEM_CLOCK.now()
        self._opening = asyncio.Lock()
        self._opened = contextlib.AsyncExitStack()
        self._gateway: Any = None
        self._allowance: JobAllowance | None = None
        self._concurrency: int | None = None
        self._jobs: dict[int, _ShardJob] = {}
        self._running: dict[int, asyncio.Task[Any]] = {}
        self._begun_events: dict[int, asyncio.Event] = {}
        self._done = JobTotals()  # of its shards
        self._cost_before = 0.0  # US dollars in parts that a lost worker has begun
        self._mean_before: float | None = None
        self._stopping: str | None = None

    async def run(self, work: ShardWork, shard: Shard) -> ShardEnd:
        """Answer a shard; what went wrong is in the result."""
        begun = self._begun_events.get(shard.number)
        if begun is None or begun.is_set():  # of an earlier turn with this shard
            self._begun_events[shard.number] = asyncio.Event()
        try:
            self._running[shard.number] = task = asyncio.ensure_future(self._run(work, shard))
            await asyncio.wait([task])
            return ShardEnd(stopping="interrupted") if task.cancelled() else task.result()
        except JournalInUseError as error:
            return ShardEnd(problem=str(error), in_use=True)
        except GatewayError as error:
            return ShardEnd(problem=str(error))
        except OSError as error:
            return ShardEnd(problem=f"{shard}: {error.strerror}")
        finally:
            self._running.pop(shard.number, None)

    async def all_begun(self, number: int) -> None:
        """Return when all requests of a shard have begun."""
        await self._begun_event(number).wait()

    async def status(self) -> RunnerStatus:
        """Return its current status."""
        shards = {number: (job.totals, job.in_flight) for number, job in self._jobs.items()}
        providers = () if self._gateway is None else self._gateway.providers
        return RunnerStatus(shards, providers, SYSTEM_CLOCK.now() - self.answered)

    async def stop(self, why: str) -> None:
        """Begin nothing new; requests in flight finish."""
        self._stopping = why
        for job in self._jobs.values():
            job.stop(why)

    async def aclose(self) -> None:
        """Cancel the requests in flight, and close the gateway."""
        await self.stop("interrupted")
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._opened.aclose()

    # ── what its jobs ask ────────────────────────────────────────────────────────────────────────

    @property
    def is_full(self) -> bool:
        """Whether as many requests are in flight as may be."""
        limit = self._concurrency
        return limit is not None and len(self._jobs) > 1 and self._in_flight >= limit

    @property
    def _in_flight(self) -> int:
        return sum(job.in_flight for job in self._jobs.values())

    def has_room(self, number: int) -> None:
        """Note that all requests of a shard have begun."""
        self._begun_event(number).set()

    def wake(self) -> None:
        """Let the jobs look again whether a request may begin."""
        for job in self._jobs.values():
            job.wake()

    def _begun_event(self, number: int) -> asyncio.Event:
        return self._begun_events.setdefault(number, asyncio.Event())

    # ── a shard ──────────────────────────────────────────────────────────────────────────────────

    async def _run(self, work: ShardWork, shard: Shard) -> ShardEnd:
        source = _shard_source(work, shard)
        await self._open(work)
        files = await ShardPart.of(work.folder, shard.number).open()
        with contextlib.ExitStack() as opened:
            for each in (files.answers, files.errors, index := Index()):
                opened.enter_context(contextlib.closing(each))
            total = await _enter(source, index)
            given = JobInput(source, index, total)
            job = await _ShardJob.open(
                self._gateway, given, files, work.options, allowance=self._allowance
            )
            job.runner, job.number = self, shard.number
            job.silent_since(self.answered)
            job.totals.earlier = 0  # the driver knows what earlier runs have done
            self._cost_before += job.totals.cost_usd
            self._jobs[shard.number] = job
            if self._stopping is not None:
                job.stop(self._stopping)
            try:
                await job.run()
            finally:
                del self._jobs[shard.number]
                self._done.include(job.totals)
        return ShardEnd(job.complete, job.stopping)

    async def _open(self, work: ShardWork) -> None:
        async with self._opening:
            if self._gateway is not None:
                return
            if work.output is not None:
                await asyncio.to_thread(check_locks_are_seen, work.output)
            limit = work.options.concurrency
            self._concurrency = limit if isinstance(limit, int) else None
            gateway = work.open_gateway(work.configs, settings=work.settings)
            ledger = self._ledger(work, gateway)
            if ledger is not None and work.shared:
                self._mean_before = work.mean_cost
                name = f"worker-{os.urandom(6).hex()}"
                self._allowance = JobAllowance(
                    work.shared,
                    ledger,
                    name,
                    self._cost_so_far,
                    patience=math.inf if gateway.fleet.client is None else _REDIS_SECONDS,
                )
                exchange = asyncio.create_task(self._allowance.run(), name="aigateway-allowance")
                self._opened.push_async_callback(_end, exchange)
            await self._opened.enter_async_context(gateway)
            await gateway.warmup()
            self._gateway = gateway
            self.answered = SYSTEM_CLOCK.now()

    def _ledger(self, work: ShardWork, gateway: Any) -> Ledger | None:
        """Return where limits are shared: Redis, or what the driver has started."""
        if gateway.fleet.client is not None:
            return RedisLedger(gateway.fleet.client)
        if work.ledger is None:
            return None
        ledger = work.ledger()
        gateway.use_fleet(Fleet(work.settings, SYSTEM_CLOCK, ledger=ledger))
        return ledger

    def _cost_so_far(self) -> CostSoFar:
        totals = [self._done, *(job.totals for job in self._jobs.values())]
        usd = sum(each.cost_usd for each in totals)
        priced = sum(each.priced for each in totals)
        mean = usd / priced if priced else self._mean_before
        return CostSoFar(usd - self._cost_before, mean, self._in_flight)


def _shard_source(work: ShardWork, shard: Shard) -> Source:
    """Open the input. Raises `ConfigurationError` if it is not the driver's."""
    if not work.folder.is_dir():
        raise ConfigurationError(
            f"A worker does not see the folder {work.folder}. The input and the output must be on a"
            " disk that all machines of the cluster share, under the same path."
        )
    longest = work.settings.max_prompt_bytes
    source = Source(work.source.absolute(), work.row_format, longest, shard)
    # Not all file systems keep nanoseconds.
    at = None if work.changed_at is None else work.changed_at // _MICROSECOND
    if source.size != work.size or at not in {None, source.changed_at // _MICROSECOND}:
        raise ConfigurationError(
            f"A worker sees another file {work.source} than the one that was checked. The input"
            " must be on a disk that all machines of the cluster share."
        )
    return source


async def _enter(source: Source, index: Index) -> int:
    """Enter the lines of a shard into an index; return how many."""
    total = 0
    for total, line in enumerate(source.lines(), 1):
        if total % LINES_PER_TURN == 0:
            await asyncio.sleep(0)
        if line.id is not None:
            index.enter(line.id, line.number)
    return total


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
