"""Faults of this machine: a dead network, and an event loop that stands still.

A stall is time that passes at once on the clock.
"""

import asyncio

import pytest

from aigateway.resilience.local_faults import (
    GRACE,
    INTERVAL,
    REPORTED,
    TOLERANCE,
    Reachability,
    StallDetector,
)
from aigateway.testing import FakeClock
from tests.resilience.guarding import allowance


@pytest.fixture
def heard():
    return []


@pytest.fixture
async def watch(clock, heard):
    watch = StallDetector(clock, heard.append)
    yield watch
    watch.stop()


def begin(watch, clock):
    """A call goes out; returns when."""
    watch.begin()
    return clock.now()


def ticking(watch):
    """The timer of the next tick, if there is one."""
    return [] if watch._timer is None else [watch._timer]


async def stall(clock, seconds):
    """The loop stands still: time passes while nothing runs, then everything that is due does."""
    clock.tick(seconds)
    await clock.advance(0)


class TestMeasuring:
    async def test_a_loop_that_runs_has_not_stood_still(self, watch, clock, heard):
        mark = begin(watch, clock)
        await clock.advance(60)
        assert watch.stalled(mark, clock.now()) == 0
        assert heard == []

    async def test_a_stall_is_measured_and_told(self, watch, clock, heard):
        mark = begin(watch, clock)
        await clock.advance(1)
        await stall(clock, 2.5)
        assert watch.stalled(mark, clock.now()) == pytest.approx(2.5, abs=INTERVAL)
        assert heard == [pytest.approx(2.5, abs=INTERVAL)]
        await clock.advance(10)
        assert watch.stalled(mark, clock.now()) == pytest.approx(2.5, abs=INTERVAL), "counted once"
        assert len(heard) == 1

    async def test_it_counts_before_the_tick_has_run(self, watch, clock):
        """A timeout may be looked at first when the loop goes on."""
        mark = begin(watch, clock)
        await clock.advance(1)
        clock.tick(2.5)
        assert watch.stalled(mark, clock.now()) == pytest.approx(2.5, abs=INTERVAL)
        await clock.advance(0)
        assert watch.stalled(mark, clock.now()) == pytest.approx(2.5, abs=INTERVAL)

    async def test_a_stall_in_the_moment_in_which_the_first_call_goes_out(self, watch, clock):
        mark = begin(watch, clock)
        clock.tick(2.5)  # the watch's own task has not run yet
        assert watch.stalled(mark, clock.now()) == pytest.approx(2.5, abs=INTERVAL)
        await clock.advance(1)
        assert watch.stalled(mark, clock.now()) == pytest.approx(2.5, abs=INTERVAL)

    async def test_several_add_up(self, watch, clock, heard):
        mark = begin(watch, clock)
        for _ in range(4):
            await clock.advance(1)
            await stall(clock, 1.0)
        assert watch.stalled(mark, clock.now()) == pytest.approx(4.0, abs=4 * INTERVAL)
        assert len(heard) == 4

    async def test_a_busy_machine_is_no_stall(self, watch, clock, heard):
        mark = begin(watch, clock)
        await clock.advance(0)
        for _ in range(100):
            clock.tick(INTERVAL + TOLERANCE - 0.01)
            await clock.advance(0)
        assert watch.stalled(mark, clock.now()) == 0
        assert heard == []

    async def test_a_short_one_counts_and_is_not_told(self, watch, clock, heard):
        mark = begin(watch, clock)
        await clock.advance(0)
        await stall(clock, INTERVAL + REPORTED - 0.1)
        assert watch.stalled(mark, clock.now()) == pytest.approx(REPORTED - 0.1)
        assert heard == []

    async def test_each_call_has_its_own_mark(self, watch, clock):
        first = begin(watch, clock)
        await clock.advance(1)
        await stall(clock, 2.0)
        second = begin(watch, clock)
        assert watch.stalled(second, clock.now()) == 0
        await clock.advance(1)
        await stall(clock, 1.0)
        assert watch.stalled(second, clock.now()) == pytest.approx(1.0, abs=INTERVAL)
        assert watch.stalled(first, clock.now()) == pytest.approx(3.0, abs=2 * INTERVAL)

    async def test_while_no_call_is_out_nothing_is_measured(self, watch, clock, heard):
        watch.begin()
        await clock.advance(1)
        watch.calls -= 1
        await clock.advance(1)
        await stall(clock, 100)
        mark = begin(watch, clock)
        await clock.advance(1)
        assert watch.stalled(mark, clock.now()) == 0
        assert heard == []


class TestTask:
    async def test_there_is_one_while_calls_are_out(self, watch, clock):
        assert ticking(watch) == []
        for _ in range(5):
            watch.begin()
        await clock.advance(1)
        assert len(ticking(watch)) == 1
        for _ in range(5):
            watch.calls -= 1
        await clock.advance(1)
        assert ticking(watch) == []

    async def test_it_outlives_a_short_pause_between_two_calls(self, watch, clock):
        watch.begin()
        await clock.advance(0.1)
        (timer,) = ticking(watch)
        watch.calls -= 1
        watch.begin()
        assert ticking(watch) == [timer], "no second one"
        await clock.advance(1)
        assert len(ticking(watch)) == 1

    @pytest.mark.parametrize("after", [None, 0.0, 1.0])
    async def test_stop_leaves_none(self, watch, clock, after):
        watch.begin()
        if after is not None:
            await clock.advance(after)
        watch.stop()
        assert ticking(watch) == []
        clock.tick(100)
        assert watch.stalled(0.0, clock.now()) == 0, "and nothing is measured any more"

    async def test_after_stop_nothing_is_measured_and_no_timeout_is_put_off(
        self, watch, clock, heard
    ):
        watch.begin()
        await clock.advance(1)
        more = allowance(watch, clock, 5.0)
        await stall(clock, 1.0)
        watch.stop()
        watch.begin()
        assert more() == 0
        await stall(clock, 1.0)
        assert len(heard) == 1
        assert ticking(watch) == []

    async def test_stop_without_a_beginning(self, watch):
        watch.stop()


class TestAllowance:
    async def test_the_time_of_a_stall_is_given_again_once(self, watch, clock):
        watch.begin()
        await clock.advance(1)
        more = allowance(watch, clock, 5.0)
        assert more() == 0
        clock.tick(2.5)
        given = more()
        assert given == pytest.approx(2.5, abs=INTERVAL)
        await clock.advance(0)
        assert more() == 0

    async def test_what_is_left_of_the_timeout_and_a_moment_at_least(self, watch, clock):
        watch.begin()
        await clock.advance(1)
        more = allowance(watch, clock, 2.0)
        await stall(clock, 60.0)
        assert (more(), more()) == (pytest.approx(2.0, abs=INTERVAL), 0)
        await clock.advance(1.9)
        await stall(clock, 60.0)
        assert (more(), more()) == (GRACE, 0)

    async def test_a_stall_from_before_it_gives_nothing(self, watch, clock):
        watch.begin()
        await clock.advance(1)
        clock.tick(3.0)
        more = allowance(watch, clock, 5.0)
        await clock.advance(0)
        assert more() == 0

    async def test_each_stall_of_several(self, watch, clock):
        watch.begin()
        more = allowance(watch, clock, 10.0)
        for _ in range(3):
            await clock.advance(1)
            await stall(clock, 2.0)
            assert more() == pytest.approx(2.0, abs=INTERVAL)

    async def test_twenty_timeouts_that_a_stall_made_late_are_put_off(self, watch, clock):
        """`time.sleep(2.5)` with 20 calls in flight and a timeout of 2 seconds."""
        answers = asyncio.get_running_loop().create_future()
        outcomes = []

        async def call():
            watch.begin()
            try:
                async with clock.timeout(2.0, more=watch.more):
                    await asyncio.shield(answers)
                outcomes.append("answered")
            except TimeoutError:
                outcomes.append("timeout")
            finally:
                watch.calls -= 1

        calls = [asyncio.create_task(call()) for _ in range(20)]
        await clock.advance(0.1)
        await stall(clock, 2.5)
        assert outcomes == []
        answers.set_result(None)
        await clock.advance(0.1)
        assert outcomes == ["answered"] * 20
        await asyncio.gather(*calls)

    async def test_one_that_still_has_no_answer_then_is_a_timeout(self, watch, clock):
        began = clock.now()

        async def call():
            watch.begin()
            async with clock.timeout(2.0, more=watch.more):
                await asyncio.Event().wait()

        waiting = asyncio.create_task(call())
        await clock.advance(0.1)
        await stall(clock, 2.5)
        await clock.advance(1.0)
        assert not waiting.done()
        await clock.advance(1.5)
        assert isinstance(waiting.exception(), TimeoutError)
        assert clock.now() - began <= 5.2
        watch.calls -= 1


class TestReachability:
    def test_one_alone_is_its_own_fault(self):
        network = Reachability(FakeClock())
        assert not network.unreachable("a")
        assert not network.unreachable("a")

    def test_two_and_nobody_up_is_the_networks(self):
        network = Reachability(FakeClock())
        network.unreachable("a")
        assert network.unreachable("b")
        assert network.down == {"a", "b"}
        network.reached("b")
        assert not network.network_is_down
        assert not network.unreachable("a")

    def test_one_that_answered_before_counts_until_it_fails_too(self):
        network = Reachability(FakeClock())
        for name in "abc":
            network.reached(name)
        assert [network.unreachable(name) for name in "abc"] == [False, False, True]

    def test_an_answer_of_long_ago_proves_nothing(self):
        clock = FakeClock()
        network = Reachability(clock)
        network.reached("idle")
        network.unreachable("a")
        assert not network.unreachable("b")
        clock.tick(61)
        assert network.unreachable("b")

    def test_a_removed_one_does_not_count(self):
        network = Reachability(FakeClock())
        network.reached("gone")
        network.unreachable("a")
        network.forget("gone")
        assert network.unreachable("b")
