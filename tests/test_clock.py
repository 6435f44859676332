"""The shared timer, held against `asyncio.timeout` on a loop where time passes only by waiting;
and timeouts that are put off, there and on the clock of tests."""

import asyncio
import contextlib
import gc
import selectors
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway.clock import SYSTEM_CLOCK, Timeout, _timers
from aigateway.testing import FakeClock

Scope = Callable[[float], AbstractAsyncContextManager[Timeout]]


class Leap(selectors.DefaultSelector):
    """Instead of waiting, it says how long it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing but other threads."""

    def __init__(self) -> None:
        self._leap = Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


@dataclass(frozen=True)
class Block:
    """One task in one or two timeouts. All moments of different kinds are different moments."""

    begins: int
    bound: int
    inner: int | None
    takes: int
    stops_in: int | None  # how long it takes to stop
    cancelled: int | None
    moved: tuple[int, int] | None  # when, and to when

    async def run(self, scope: Scope, log: list[Any], name: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.begins)
        task = asyncio.current_task()
        assert task is not None
        outcome = "cancelled"
        outer: Timeout | None = None
        try:
            async with scope(self.bound) as outer:
                if self.moved is not None:
                    loop.call_later(self.moved[0] + 0.75, self._move, outer)
                if self.inner is None:
                    await self._work(scope, log, name)
                else:
                    try:
                        async with scope(self.inner + 0.125):
                            await self._work(scope, log, name)
                    except TimeoutError:
                        log.append((name, "inner", loop.time()))
                    await asyncio.sleep(1)
                outcome = "done"
        except TimeoutError as error:
            outcome = f"outer, for {error.__cause__!r}"
        finally:
            expired = outer is not None and outer.expired()
            log.append((name, outcome, loop.time(), expired, task.cancelling()))

    async def _work(self, scope: Scope, log: list[Any], name: int) -> None:
        try:
            await asyncio.sleep(self.takes + 0.5)
        except asyncio.CancelledError:
            if self.stops_in is not None:
                try:
                    async with scope(4):
                        await asyncio.sleep(self.stops_in + 0.0625)
                except TimeoutError:
                    log.append((name, "stopping", asyncio.get_running_loop().time()))
            raise

    def _move(self, scope: Timeout) -> None:
        assert self.moved is not None
        with contextlib.suppress(RuntimeError):  # it is left or over
            scope.reschedule(asyncio.get_running_loop().time() + self.moved[1])


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


MOMENTS = st.integers(0, 8)
BLOCKS = st.lists(
    st.builds(
        Block,
        begins=MOMENTS,
        bound=MOMENTS,
        inner=optional(MOMENTS),
        takes=MOMENTS,
        stops_in=optional(MOMENTS),
        cancelled=optional(MOMENTS),
        moved=optional(st.tuples(MOMENTS, MOMENTS)),
    ),
    min_size=1,
    max_size=6,
)


def played(scope: Scope, blocks: list[Block]) -> list[Any]:
    log: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = []
        for name, block in enumerate(blocks):
            task = asyncio.create_task(block.run(scope, log, name))
            tasks.append(task)
            if block.cancelled is not None:
                loop.call_later(block.begins + block.cancelled + 0.25, task.cancel)
        log.extend(map(type, await asyncio.gather(*tasks, return_exceptions=True)))

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(main())
    # Tasks that end at one moment do so in no promised order.
    return sorted(log, key=repr)


@settings(max_examples=3 * settings().max_examples, deadline=None)
@given(BLOCKS)
def test_it_does_what_asyncios_does(blocks: list[Block]) -> None:
    assert played(SYSTEM_CLOCK.timeout, blocks) == played(asyncio.timeout, blocks)


def on_leaping_loop(main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(main())


def test_timeouts_that_are_left_leave_little_behind() -> None:
    async def main() -> None:
        async with SYSTEM_CLOCK.timeout(60):
            for _ in range(5000):
                async with SYSTEM_CLOCK.timeout(30):
                    pass
        timer = _timers.latest
        assert timer is not None
        assert len(timer.due) < 600
        loop: Any = asyncio.get_running_loop()
        assert len(loop._scheduled) <= 2
        # The work that they were around is not held until they would have been due.
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        assert all(timeout._task is None for _, _, timeout in timer.due)

    on_leaping_loop(main)


def test_after_many_were_left_the_others_still_expire() -> None:
    async def many_and_then_long() -> None:
        for _ in range(2000):
            async with SYSTEM_CLOCK.timeout(1):
                pass
        await asyncio.sleep(10)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with SYSTEM_CLOCK.timeout(5):
                await many_and_then_long()
        assert asyncio.get_running_loop().time() == 5

    on_leaping_loop(main)


def test_one_that_never_ends_sets_no_timer() -> None:
    async def main() -> None:
        async with SYSTEM_CLOCK.timeout(float("inf")):
            await asyncio.sleep(10**6)

    on_leaping_loop(main)


async def test_what_is_not_entered_cannot_be_moved() -> None:
    scope: Any = SYSTEM_CLOCK.timeout(1)
    with pytest.raises(RuntimeError):
        scope.reschedule(2)
    async with scope:
        pass
    with pytest.raises(RuntimeError):
        scope.reschedule(2)
    assert not scope.expired()


def test_it_needs_a_task() -> None:
    step = SYSTEM_CLOCK.timeout(1).__aenter__()
    failures: list[BaseException] = []

    def outside_of_any_task() -> None:
        try:
            step.__await__().send(None)
        except RuntimeError as error:
            failures.append(error)
        loop.stop()

    loop = LeapingLoop()
    loop.call_soon(outside_of_any_task)
    loop.run_forever()
    loop.close()
    assert len(failures) == 1


def test_each_loop_has_its_own() -> None:
    """In several threads, and one after the other within one."""
    ended: list[float] = []

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with SYSTEM_CLOCK.timeout(3):
                await asyncio.sleep(10)
        ended.append(asyncio.get_running_loop().time())

    def twice() -> None:
        on_leaping_loop(main)
        on_leaping_loop(main)

    threads = [threading.Thread(target=twice) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [3] * 6


def test_two_loops_in_turns_on_one_thread() -> None:
    first, second = LeapingLoop(), LeapingLoop()
    results: list[str] = []

    async def wait(name: str) -> None:
        try:
            async with SYSTEM_CLOCK.timeout(5):
                await asyncio.sleep(10)
        except TimeoutError:
            results.append(name)

    one, two = first.create_task(wait("one")), second.create_task(wait("two"))
    first.run_until_complete(asyncio.sleep(1))
    second.run_until_complete(asyncio.sleep(1))
    first.run_until_complete(one)
    second.run_until_complete(two)
    for loop in (first, second):
        loop.close()
    gc.collect()
    assert results == ["one", "two"]


class More:
    """What puts a timeout off: by so many seconds, one after the other, then no more."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.asked: list[float] = []
        self.now: Callable[[], float] = lambda: asyncio.get_running_loop().time()

    def __call__(self, seconds: float, began: float, looked: float) -> float:
        assert looked == (self.asked[-1] if self.asked else began)
        assert seconds >= 1
        self.asked.append(self.now())
        return self.seconds.pop(0) if self.seconds else 0.0


@pytest.mark.parametrize(
    ("more", "ends"), [((), 5), ((3.0,), 8), ((3.0, 2.0, 0.5), 10.5), ((0.0, 9.0), 5), ((-1.0,), 5)]
)
class TestPutOff:
    def test_by_the_shared_timer(self, more: tuple[float, ...], ends: float) -> None:
        puts_off = More(*more)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with SYSTEM_CLOCK.timeout(5, more=puts_off) as scope:
                    await asyncio.sleep(100)
            assert asyncio.get_running_loop().time() == ends
            assert scope.expired()

        on_leaping_loop(main)
        assert puts_off.asked[0] == 5, "asked when it is due, not before"
        assert puts_off.asked[-1] == ends

    async def test_by_the_clock_of_tests(self, more: tuple[float, ...], ends: float) -> None:
        clock, puts_off = FakeClock(0.0), More(*more)
        puts_off.now = clock.now
        ended: list[float] = []

        async def work() -> None:
            try:
                async with clock.timeout(5, more=puts_off):
                    await clock.sleep(100)
            except TimeoutError:
                ended.append(clock.now())

        working = asyncio.create_task(work())
        await clock.advance(50)
        assert ended == [ends]
        assert puts_off.asked[0] == 5
        assert puts_off.asked[-1] == ends
        await working


def test_one_that_was_put_off_may_end_well() -> None:
    async def main() -> None:
        async with SYSTEM_CLOCK.timeout(5, more=More(3.0)) as scope:
            await asyncio.sleep(7)
        assert not scope.expired()
        await asyncio.sleep(10)
        timer = _timers.latest
        assert timer is not None
        assert timer.ended == len(timer.due)

    on_leaping_loop(main)


async def test_so_may_one_on_the_clock_of_tests() -> None:
    clock = FakeClock(0.0)

    async def work() -> None:
        async with clock.timeout(5, more=More(3.0)):
            await clock.sleep(7)

    working = asyncio.create_task(work())
    await clock.advance(7)
    await clock.advance(100)
    await working


def test_the_others_on_the_same_timer_expire_in_time() -> None:
    ended: list[tuple[str, float]] = []

    async def work(name: str, seconds: float, *more: float) -> None:
        try:
            async with SYSTEM_CLOCK.timeout(seconds, more=More(*more)):
                await asyncio.sleep(100)
        except TimeoutError:
            ended.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(
            work("put off twice", 2, 1.5, 4.0),
            work("after the first time", 3),
            work("between", 4),
            work("put off to the end", 4, 5.0),
            work("after the second time", 8),
        )

    on_leaping_loop(main)
    assert ended == [
        ("after the first time", 3),
        ("between", 4),
        ("put off twice", 7.5),
        ("after the second time", 8),
        ("put off to the end", 9),
    ]


def test_one_that_was_put_off_can_be_moved() -> None:
    async def moved() -> None:
        async with SYSTEM_CLOCK.timeout(5, more=More(30.0)) as scope:
            asyncio.get_running_loop().call_later(6, scope.reschedule, 10)
            await asyncio.sleep(100)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await moved()
        assert asyncio.get_running_loop().time() == 10

    on_leaping_loop(main)
