"""Any order of arrivals, departures and ends, against the promises of `Coalescer`."""

import asyncio
import gc
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway.request.coalesce import Coalescer
from tests.processes import PATIENCE


@dataclass(frozen=True)
class Caller:
    arrives: int
    leaves_after: int | None  # loop turns after its arrival; None stays
    twice: bool  # cancelled again one turn later


@dataclass(frozen=True)
class Schedule:
    callers: tuple[Caller, ...]
    turns: int  # of the loop, that the work takes
    cleanup: int  # turns it takes to stop when it is cancelled
    fails: bool
    closes_at: int | None  # when somebody calls aclose()


SCHEDULES = st.builds(
    Schedule,
    callers=st.lists(
        st.builds(
            Caller,
            arrives=st.integers(0, 8),
            leaves_after=st.none() | st.integers(0, 8),
            twice=st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ).map(tuple),
    turns=st.integers(0, 6),
    cleanup=st.integers(0, 3),
    fails=st.booleans(),
    closes_at=st.none() | st.integers(0, 8),
)


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Run:
    """One schedule played through; it notes what a promise could be measured by."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.coalescer: Coalescer[int] = Coalescer()
        self.started = 0
        self.wanted = 0  # works under way that have not been cancelled
        self.most_wanted = 0
        self.under_way = 0
        self.complaints: list[dict[str, Any]] = []

    async def work(self) -> int:
        self.started += 1
        self.wanted += 1
        self.under_way += 1
        self.most_wanted = max(self.most_wanted, self.wanted)
        number = self.started
        wanted = True
        try:
            await turns(self.schedule.turns)
        except asyncio.CancelledError:
            self.wanted -= 1
            wanted = False
            await turns(self.schedule.cleanup)
            raise
        finally:
            self.wanted -= wanted
            self.under_way -= 1
        if self.schedule.fails:
            raise LookupError(number)
        return number

    async def play(self) -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        tasks: list[asyncio.Task[Any]] = []
        departures: dict[int, list[asyncio.Task[Any]]] = {}
        for turn in range(20):
            for caller in self.schedule.callers:
                if caller.arrives == turn:
                    task = asyncio.create_task(self.coalescer.share("k", self.work))
                    tasks.append(task)
                    if caller.leaves_after is not None:
                        leaves = turn + caller.leaves_after
                        departures.setdefault(leaves, []).append(task)
                        if caller.twice:
                            departures.setdefault(leaves + 1, []).append(task)
            for task in departures.get(turn, ()):
                task.cancel()
            if turn == self.schedule.closes_at:
                tasks.append(asyncio.create_task(self.coalescer.aclose()))
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(*tasks, return_exceptions=True)

    async def leftovers(self) -> set[asyncio.Task[Any]]:
        await turns(10)
        return asyncio.all_tasks() - {asyncio.current_task()}


async def check(schedule: Schedule) -> Run:
    run = Run(schedule)
    outcomes = await run.play()
    staying = sum(caller.leaves_after is None for caller in schedule.callers)
    closed = schedule.closes_at is not None
    answered = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, LookupError)]
    assert len(answered) + len(failed) >= (0 if closed else staying)
    assert not (answered and schedule.fails)
    assert not (failed and not schedule.fails)
    # Each answer was begun by one caller at most: by none if that one left before the end.
    begun_by = [number for number, joined in answered if not joined]
    assert len(begun_by) == len(set(begun_by))
    assert len({id(each) for each in failed}) == len(failed)
    assert run.most_wanted <= 1
    assert not await run.leftovers()
    assert (run.under_way, len(run.coalescer), len(run.coalescer.running)) == (0, 0, 0)
    return run


@settings(max_examples=6 * settings().max_examples, deadline=None)
@given(SCHEDULES)
def test_any_schedule(schedule: Schedule) -> None:
    run = asyncio.run(check(schedule))
    gc.collect(0)
    assert run.complaints == []


@settings(max_examples=2 * settings().max_examples, deadline=None)
@given(SCHEDULES)
def test_without_closing_one_work_serves_all_who_overlap(schedule: Schedule) -> None:
    callers = tuple(Caller(caller.arrives % 2, None, twice=False) for caller in schedule.callers)
    calm = Schedule(callers, schedule.turns + 4, 0, schedule.fails, None)
    assert asyncio.run(check(calm)).started == 1
