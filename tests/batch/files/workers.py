"""Workers in this process, for jobs that are cut into shards."""

import asyncio
import contextlib
import functools
from dataclasses import replace
from typing import Any

from aigateway import AsyncGateway
from aigateway.batch.files.index import Index
from aigateway.batch.files.input import RowFormat, Source
from aigateway.batch.files.job import JobInput, JobOptions
from aigateway.batch.files.paths import JobFiles, JobPaths, parts_folder
from aigateway.batch.files.shards import (
    ShardedJob,
    ShardRunner,
    ShardWork,
    Worker,
    WorkerLostError,
)
from aigateway.batch.files.survey import survey
from aigateway.clock import SYSTEM_CLOCK
from aigateway.fleet.ledger import FleetUnavailableError, MemoryLedger
from aigateway.settings import GatewaySettings


class LedgerOfOne:
    """A ledger as one worker reaches it, until that worker dies.

    Attributes:
        held: What the ledger has set aside for it.
    """

    def __init__(self, ledger):
        self.dead = False
        self.held = 0
        self._ledger = ledger

    async def exchange(self, member, claims, serial):
        if self.dead:
            raise FleetUnavailableError("The worker is dead.")
        answer = await self._ledger.exchange(member, claims, serial)
        self.held = sum(grant.held for grant in answer.grants)
        return answer


class WorkerHere(Worker):
    """Can be lost and hang, like a process."""

    def __init__(self, name, work):
        self.name = name
        self.work = work
        self.ledgers = []
        self.shards = []
        self.lives = 1
        self.hangs = False
        self._runner = ShardRunner()
        self._lost = asyncio.Event()

    async def lose(self):
        """It dies, and its ledger hears no more of it. Then there is a new one."""
        lost, self._lost = self._lost, asyncio.Event()
        runner, self._runner = self._runner, ShardRunner()
        self.lives += 1
        self.hangs = False
        lost.set()
        for ledger in self.ledgers:
            ledger.dead = True
        await runner.aclose()

    async def ready(self):
        await asyncio.sleep(0)

    async def run(self, shard):
        self.shards.append(shard)
        work = replace(self.work, ledger=self._ledger)
        return await self._unless_lost(self._runner.run(work, shard))

    async def all_begun(self, number):
        await self._unless_lost(self._runner.all_begun(number))

    async def status(self):
        if self.hangs:
            await asyncio.Event().wait()
        return await self._unless_lost(self._runner.status())

    async def stop(self, why):
        await self._runner.stop(why)

    async def aclose(self):
        await self._runner.aclose()

    async def kill(self):
        await self.lose()

    def _ledger(self):
        self.ledgers.append(LedgerOfOne(self.work.ledger()))
        return self.ledgers[-1]

    async def _unless_lost(self, call):
        call = asyncio.ensure_future(call)
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([call, lost], return_when=asyncio.FIRST_COMPLETED)
            if not lost.done():
                return call.result()
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            lost.cancel()
        raise WorkerLostError(f"{self.name} has died.")


class ShardDesk:
    """Runs jobs of a desk over workers."""

    def __init__(self, desk):
        self.desk = desk
        self.workers: list[WorkerHere] = []
        self.work: Any = None
        self.ledger = MemoryLedger(SYSTEM_CLOCK)

    @contextlib.asynccontextmanager
    async def opened(self, *, workers=2, settings=None, source=None, ask_failed=False, **how):
        desk = self.desk
        options = JobOptions(**{"concurrency": 4, "outage_patience": 0.0} | how)
        settings = GatewaySettings(**{"retry_rounds": 0} | (settings or {}))
        configs = [desk.vendor.config()]
        source = Source(source or desk.input, RowFormat(), 10_000)
        async with AsyncGateway(configs, settings=settings) as gateway:
            with contextlib.closing(Index()) as index:
                found = await survey(source, gateway.check, options.shared, index)
                files = await JobFiles.open(
                    JobPaths.of(source.path, desk.output, desk.errors),
                    source,
                    options.shared,
                    resume=True,
                    ask_failed=ask_failed,
                )
                with contextlib.closing(files):
                    given = JobInput(source, index, found.total)
                    job = await ShardedJob.open(gateway, given, files, options)
                    self.work = work = ShardWork(
                        AsyncGateway,
                        configs,
                        settings,
                        source.path,
                        RowFormat(),
                        source.size,
                        parts_folder(desk.output),
                        options,
                        shared=job.shared_limits(),
                        ledger=functools.partial(getattr, self, "ledger"),
                        changed_at=source.changed_at,
                        output=desk.output,
                    )
                    self.workers = [WorkerHere(f"worker {n}", work) for n in range(workers)]
                    job.use(self.workers)
                    try:
                        yield job
                    finally:
                        for worker in self.workers:
                            await worker.aclose()

    async def run(self, **how):
        async with self.opened(**how) as job:
            await job.run()
        return job
