"""A job whose lines are answered by several workers, each with a gateway of its own.

    the driver   surveys the input, cuts it into shards, hands them out, and moves finished parts
                 to the output
    a worker     runs a `Job` over one shard, and writes its records to the shard's part

A lost worker's shard is handed out again; who gets it reads the part first. The parts are the only
truth. This module knows nothing of how workers are started and reached: see `batch/ray.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, Unpack

from aigateway.batch.files.allowance import SharedLimits
from aigateway.batch.files.input import LINES_PER_TURN, Shard, same_answer_key
from aigateway.batch.files.job import NO_PROVIDER, Gateway, Job, JobInput, JobOptions
from aigateway.batch.files.output import JournalError, JournalInUseError
from aigateway.batch.files.parts import ACTIVE_FILE, ShardPart, merge_part, merge_parts
from aigateway.batch.files.paths import JobFiles, keep_final
from aigateway.batch.files.totals import JobTotals
from aigateway.batch.files.worker import RunnerStatus, ShardEnd, ShardRunner, ShardWork
from aigateway.errors import GatewayError
from aigateway.messages import BatchItem, ChatRequest
from aigateway.options import ChatOptions
from aigateway.routing.provider import ProviderStatus

__all__ = [
    "RunnerStatus",
    "ShardEnd",
    "ShardRunner",
    "ShardWork",
    "ShardedJob",
    "Worker",
    "WorkerLostError",
]

_log = logging.getLogger(__name__)

_LINES = 5000
"""Lines of a shard, in a large input."""

_FEWEST_LINES = 50
_SHARDS_PER_WORKER = 4
"""So many in a smaller one, so that no worker is idle for long at the end."""

_STATUS_SECONDS = 0.25
_HANG_SECONDS = 60.0
"""A worker that says nothing for so long is killed. Loading litellm may take half of it."""

_CANCEL_SECONDS = 10.0
_TRIES = 5
"""A shard whose worker is lost so often without a new record ends the job."""


class WorkerLostError(GatewayError):
    """A worker has died, or cannot be reached. Another one, or a new one, takes its shards."""


class Worker(Protocol):
    """A `ShardRunner`, wherever it runs. Every method may raise `WorkerLostError`."""

    name: str

    async def ready(self) -> None:
        """Return when the worker runs, or runs again.

        Raises:
            ConfigurationError: It cannot run with this configuration.
        """

    async def run(self, shard: Shard) -> ShardEnd:
        """Answer a shard."""

    async def all_begun(self, number: int) -> None:
        """Return when all requests of a shard have begun; perhaps never if the shard ends first."""

    async def status(self) -> RunnerStatus:
        """Return its current status."""

    async def stop(self, why: str) -> None:
        """Begin nothing new; requests in flight finish."""

    async def aclose(self) -> None:
        """Cancel the requests in flight."""

    async def kill(self) -> None:
        """Kill its process, which does not answer. Another one is started."""


class _Workers:
    """The workers as the one gateway of the job; it checks requests, and sends none."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.statuses: dict[str, RunnerStatus] = {}

    @property
    def providers(self) -> tuple[ProviderStatus, ...]:
        """Each provider as it is at the worker where it is best."""
        best: dict[str, ProviderStatus] = {}
        for status in self.statuses.values():
            for provider in status.providers:
                known = best.get(provider.name)
                if known is None or (provider.active and not known.active):
                    best[provider.name] = provider
        return tuple(best.values()) or self._gateway.providers

    def check(self, prompt_or_messages: Any, /, **options: Unpack[ChatOptions]) -> ChatRequest:
        """See `AsyncGateway.check`."""
        return self._gateway.check(prompt_or_messages, **options)

    def get_metrics(self) -> Mapping[str, Any]:
        """See `AsyncGateway.get_metrics`; workers have their own."""
        return self._gateway.get_metrics()

    def as_completed(self, *_: object, **__: object) -> AsyncGenerator[BatchItem, None]:
        """Never used: the workers send the requests."""
        raise NotImplementedError


class ShardedJob(Job):
    """A job whose shards are answered by workers. Used like `Job`.

    Attributes:
        hang_seconds: A worker that says nothing for so long is killed.
    """

    hang_seconds = _HANG_SECONDS
    gateway: _Workers

    @classmethod
    async def open(
        cls,
        gateway: Gateway,
        given: JobInput,
        files: JobFiles,
        options: JobOptions,
        **more: Any,
    ) -> Self:
        """See `Job.open`."""
        active = files.parts / ACTIVE_FILE
        try:
            ran_until: float | None = active.stat().st_mtime
        except OSError:
            ran_until = None
        job = await super().open(_Workers(gateway), given, files, options, **more)
        job.ran_until = ran_until
        return job

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.ran_until: float | None = None
        self._workers: Sequence[Worker] = ()
        self._failed_before = self._written.failed
        self._shards = self._cut()
        self._cutting = asyncio.Lock()
        self._returned: deque[Shard] = deque()
        self._handed_out: set[int] = set()
        self._tries: dict[int, tuple[int, int]] = {}  # how often lost, at which size of the part
        self._exhausted = False
        self._changed = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._merging = asyncio.Lock()
        self._unmerged: JournalError | None = None
        self._cut_off: set[str] = set()  # workers that reach no provider

    def use(self, workers: Sequence[Worker]) -> None:
        """Take these workers, before it runs."""
        self._workers = workers

    @property
    def seconds_since_last_run(self) -> float | None:
        """Seconds since an earlier, unfinished run of this job was last alive."""
        return None if self.ran_until is None else max(0.0, self._clock.wall() - self.ran_until)

    def shared_limits(self) -> SharedLimits:
        """Return the limits that its workers share."""
        limits, spent = self._options.limits, self._written.cost_usd
        left = None if limits.max_cost is None else max(0.0, limits.max_cost - spent)
        place = hashlib.sha256(os.fsencode(self._files.answers.path.absolute())).hexdigest()
        run = f"batch:{os.urandom(8).hex()}"
        return SharedLimits(f"batch:{place[:16]}", run, limits, left)

    @property
    def totals(self) -> JobTotals:
        """Sums so far, over the output and over the parts."""
        totals = JobTotals()
        totals.include(self._written)
        for status in self.gateway.statuses.values():
            for number, (part, _) in status.shards.items():
                if number in self._handed_out:
                    totals.include(part)
        return totals

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        shards = [each for s in self.gateway.statuses.values() for each in s.shards.values()]
        return sum(in_flight for _, in_flight in shards)

    def stop(self, why: str) -> None:
        """Begin nothing new; requests in flight finish."""
        if self.stopping is None:
            for worker in self._workers:
                self._start(_unless_lost(worker.stop(why)))
        super().stop(why)
        self._note_change()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _release(self, working: asyncio.Task[None]) -> None:
        """Do nothing: the workers know when only unavailable providers are left."""

    async def _work(self) -> None:
        self._files.parts.mkdir(exist_ok=True)
        watching = [self._start(self._watch(worker)) for worker in self._workers]
        watching.append(self._start(self._note_activity()))
        watching += [self._start(self._feed(worker)) for worker in self._workers]
        try:
            while not self._is_over:
                news = asyncio.ensure_future(self._changed.wait())
                done, _ = await asyncio.wait(
                    {news, *self._tasks, *self._ending}, return_when=asyncio.FIRST_COMPLETED
                )
                news.cancel()
                for task in done:
                    task.result()
        finally:
            for task in watching:
                task.cancel()
            if self._ending:
                closing = [_unless_lost(worker.aclose()) for worker in self._workers]
                with contextlib.suppress(TimeoutError):
                    async with self._clock.timeout(_CANCEL_SECONDS):
                        await asyncio.gather(*closing, *self._ending, return_exceptions=True)
            await self._shards.aclose()
            await self._merge_the_rest()

    @property
    def _is_over(self) -> bool:
        if self._ending:
            return False
        left = not self._exhausted or self._returned or self._handed_out
        return self.stopping is not None or not left

    def _note_change(self) -> None:
        """Wake all waiters. Each waiter has its own event, so none misses a wake-up."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _merge_the_rest(self) -> None:
        """Move what is in parts to the output: of lost workers, and after a second signal."""
        if self._unmerged is None:
            try:
                await merge_parts(self._index, self._files, self._written, resuming=False)
            except JournalInUseError as error:
                self.stop(str(error).rstrip("."))
        self._handed_out.clear()
        if not self.complete and self._has_rates:
            self._files.parts.mkdir(exist_ok=True)
            self._touch()
        if self._unmerged is not None:
            raise self._unmerged

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    async def _feed(self, worker: Worker) -> None:
        """Hand shards to a worker, the next one as soon as it has begun all of the last."""
        while True:
            await worker.ready()
            shard = await self._next_shard(worker)
            if shard is None:
                return
            ending = asyncio.ensure_future(self._hand_out(worker, shard))
            self._ending.add(ending)
            ending.add_done_callback(self._ended)
            begun = asyncio.ensure_future(_unless_lost(worker.all_begun(shard.number)))
            await asyncio.wait([ending, begun], return_when=asyncio.FIRST_COMPLETED)
            begun.cancel()
            if worker.name in self._cut_off:
                return

    def _ended(self, ending: asyncio.Task[None]) -> None:
        if ending.cancelled() or ending.exception() is None:  # else `_work` raises it
            self._ending.discard(ending)
        self._note_change()

    async def _next_shard(self, worker: Worker) -> Shard | None:
        """Return the next shard for a worker; None if none is left, or the job stops."""
        while self.stopping is None and worker.name not in self._cut_off:
            shard = self._returned.popleft() if self._returned else None
            if shard is None:
                async with self._cutting:
                    shard = await anext(self._shards, None)
            if shard is not None:
                self._handed_out.add(shard.number)
                return shard
            self._exhausted = True
            if self._returned:  # while the others were looked for
                continue
            if not self._handed_out:
                break
            await self._changed.wait()  # one of them may come back
        self._note_change()
        return None

    async def _hand_out(self, worker: Worker, shard: Shard) -> None:
        try:
            end = await worker.run(shard)
        except WorkerLostError as error:
            self._return(shard, str(error))
            return
        if end.in_use:
            self._return(shard, end.problem or "")
            return
        if end.problem is not None:
            self.stop(end.problem.rstrip("."))
        why = end.stopping
        if self.stopping is None and (why is None or self._is_cut_off(worker, why)):
            # A part that is not merged is read first by the next worker.
            if why is not None:
                self._cut_off.add(worker.name)
                part = ShardPart.of(self._files.parts, shard.number)
                await asyncio.to_thread(keep_final, part.errors, ask_failed=False)
                self._return(shard, f"at {worker.name}, {why}")
                return
            if not end.complete:
                self._return(shard, "It ended early")
                return
        await self._merge(shard)
        if end.stopping is not None and self.stopping is None:
            self._stopped_by(end.stopping)

    def _return(self, shard: Shard, why: str) -> None:
        """Hand a shard out again, unless it makes no progress."""
        size = ShardPart.of(self._files.parts, shard.number).size
        times, then = self._tries.get(shard.number, (0, size))
        times = 1 if size > then else times + 1
        self._tries[shard.number] = times, size
        self._handed_out.discard(shard.number)
        if self.stopping is None:
            _log.warning("%s are handed out again: %s", str(shard).capitalize(), why)
        if times >= _TRIES:
            self.stop(f"{shard} were handed out {times} times without an answer: {why.rstrip('.')}")
        self._returned.append(shard)
        self._note_change()

    def _stopped_by(self, why: str) -> None:
        """Stop the job for the reason that stopped a worker."""
        if why.startswith("--max-cost"):
            why = self._options.limits.cost_reached(self.totals.cost_usd)
        self.stop(why)

    def _is_cut_off(self, worker: Worker, why: str) -> bool:
        """Return whether a worker reaches no provider while others do."""
        patience = self._options.outage_patience or 0.0
        return why.startswith(NO_PROVIDER) and any(
            status.silent < patience and any(p.active for p in status.providers)
            for name, status in self.gateway.statuses.items()
            if name != worker.name and name not in self._cut_off
        )

    async def _watch(self, worker: Worker) -> None:
        """Keep the status of a worker, and kill it if it hangs."""
        while True:
            await worker.ready()
            try:
                while True:
                    async with self._clock.timeout(self.hang_seconds):
                        self.gateway.statuses[worker.name] = await worker.status()
                    self._stop_at_limits()
                    await self._clock.sleep(_STATUS_SECONDS)
            except TimeoutError:
                _log.warning(
                    "%s has not answered for %g s; it is started again.",
                    worker.name,
                    self.hang_seconds,
                )
                await worker.kill()
            except WorkerLostError:
                pass
            self.gateway.statuses.pop(worker.name, None)
            await self._clock.sleep(_STATUS_SECONDS)

    def _stop_at_limits(self) -> None:
        """Stop at limits that are not exact over workers: failures, and cost past midnight."""
        limits, totals = self._options.limits, self.totals
        failures = totals.failed - self._failed_before
        if limits.max_failures is not None and failures >= limits.max_failures:
            self.stop(f"--max-failures {limits.max_failures} is reached")
        if limits.max_cost is not None and totals.cost_usd > limits.max_cost:
            self.stop(limits.cost_reached(totals.cost_usd))

    # ── shards ───────────────────────────────────────────────────────────────────────────────────

    async def _cut(self) -> AsyncGenerator[Shard, None]:
        """Yield shards of lines without a record. Bad lines get theirs."""
        most = self.total // (_SHARDS_PER_WORKER * max(1, len(self._workers)))
        most = min(_LINES, max(_FEWEST_LINES, most))
        number = first = last = offset = lines = 0
        skipped: set[int] = set()
        for count, line in enumerate(self._source.lines()):
            if count % LINES_PER_TURN == 0:
                await asyncio.sleep(0)
                if self._source.has_changed:
                    self._stop_changed()
                    return
            found = self._checked(line)
            if found is None or self._is_settled(
                found[0], same_answer_key(found[0], self._options.shared), found[2]
            ):
                if lines:
                    skipped.add(line.number)
            else:
                if not lines:
                    first, offset = line.number, self._source.offset
                last, lines = line.number, lines + 1
            if lines == most or len(skipped) >= _LINES:
                yield Shard(number, offset, first, last, _below(skipped, last))
                number, lines, skipped = number + 1, 0, set()
        if lines:
            yield Shard(number, offset, first, last, _below(skipped, last))

    async def _merge(self, shard: Shard) -> None:
        """Move the part of a shard to the output."""
        async with self._merging:
            moved = JobTotals()
            try:
                part = ShardPart.of(self._files.parts, shard.number)
                await merge_part(part, self._index, self._files, moved)
            except JournalError as error:
                self.stop(str(error).rstrip("."))
                self._unmerged = JournalError(
                    f"{str(error).rstrip('.')}. Answers are kept in {self._files.parts}. Free disk"
                    " space, and continue with --resume."
                )
            finally:
                self._written.include(moved)
                self._handed_out.discard(shard.number)
        self._note_change()

    # ── rates of a run that follows soon ─────────────────────────────────────────────────────────

    @property
    def _has_rates(self) -> bool:
        return self._options.limits.rpm is not None or self._options.limits.tpm is not None

    async def _note_activity(self) -> None:
        while self._has_rates:
            self._touch()
            await self._clock.sleep(_STATUS_SECONDS)
        await asyncio.Event().wait()

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            (self._files.parts / ACTIVE_FILE).touch()


def _below(lines: Iterable[int], last: int) -> frozenset[int]:
    return frozenset(number for number in lines if number < last)


async def _unless_lost(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(WorkerLostError):
        await work
