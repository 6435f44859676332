"""The breaker's table of transitions, and the promises it makes to callers."""

import asyncio
import math
import pickle
from typing import Any

import pytest

from aigateway.clock import SystemClock
from aigateway.errors import CircuitOpenError, ConfigurationError
from aigateway.resilience.breaker import (
    CircuitBreaker,
    CircuitState,
    Permit,
    Rejected,
)
from aigateway.testing import FakeClock

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(clock=clock)


def permit_of(breaker: CircuitBreaker) -> Permit:
    permit = breaker.acquire()
    assert isinstance(permit, Permit)
    return permit


def last_resort_of(breaker: CircuitBreaker) -> Permit:
    permit = breaker.acquire_last_resort()
    assert isinstance(permit, Permit)
    return permit


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        permit_of(breaker).failure()


def open_it(breaker: CircuitBreaker) -> None:
    fail(breaker, breaker.failure_threshold)
    assert breaker.state is OPEN


def half_open_it(breaker: CircuitBreaker, clock: FakeClock) -> Permit:
    open_it(breaker)
    clock.tick(60)
    return permit_of(breaker)


class TestClosed:
    def test_opens_on_the_fifth_failure_in_a_row_and_not_before(self, breaker):
        fail(breaker, 4)
        assert breaker.state is CLOSED
        fail(breaker)
        assert breaker.state is OPEN

    def test_success_ends_the_streak(self, breaker):
        fail(breaker, 4)
        permit_of(breaker).success()
        fail(breaker, 4)
        assert breaker.state is CLOSED

    def test_release_neither_counts_nor_ends_the_streak(self, breaker):
        fail(breaker, 4)
        permit_of(breaker).release()
        assert breaker.state is CLOSED
        assert breaker.consecutive_failures == 4
        fail(breaker)
        assert breaker.state is OPEN

    def test_success_of_a_call_from_before_the_streak_does_not_end_it(self, breaker):
        early = permit_of(breaker)
        fail(breaker, 4)
        early.success()
        fail(breaker)
        assert breaker.state is OPEN

    def test_success_of_a_call_from_within_the_streak_ends_it(self, breaker):
        fail(breaker, 2)
        within = permit_of(breaker)
        fail(breaker, 2)
        within.success()
        fail(breaker, 4)
        assert breaker.state is CLOSED

    def test_concurrent_failures_all_count(self, breaker):
        permits = [permit_of(breaker) for _ in range(5)]
        for permit in permits:
            permit.failure()
        assert breaker.state is OPEN

    @pytest.mark.parametrize("first", ["success", "failure", "release"])
    @pytest.mark.parametrize("second", ["success", "failure", "release"])
    def test_only_the_first_settlement_counts(self, clock, first, second):
        breaker = CircuitBreaker(2, clock=clock)
        fail(breaker)
        permit = permit_of(breaker)
        getattr(permit, first)()
        state, streak = breaker.state, breaker.consecutive_failures
        getattr(permit, second)()
        assert (breaker.state, breaker.consecutive_failures) == (state, streak)

    def test_refuses_nobody(self, breaker):
        fail(breaker, 4)
        assert breaker.refusal() is None


class TestCauses:
    def test_repeats_of_one_request_count_once(self, breaker):
        for _ in range(50):
            permit_of(breaker).failure("the same")
        assert breaker.state is CLOSED
        assert breaker.consecutive_failures == 1

    def test_the_fifth_request_that_fails_opens_it_however_often_each_is_repeated(self, breaker):
        for cause in "abcd":
            permit_of(breaker).failure(cause)
            permit_of(breaker).failure(cause)
            permit_of(breaker).failure("a")
        assert breaker.state is CLOSED
        permit_of(breaker).failure("e")
        assert breaker.state is OPEN

    def test_what_has_no_cause_always_counts(self, breaker):
        for cause in [None, "a", None, "a", None]:
            permit_of(breaker).failure(cause)
        assert breaker.consecutive_failures == 4
        permit_of(breaker).failure(None)
        assert breaker.state is OPEN

    def test_a_success_ends_the_streak_and_forgets_its_causes(self, breaker):
        permit_of(breaker).failure("a")
        permit_of(breaker).success()
        assert breaker.consecutive_failures == 0
        permit_of(breaker).failure("a")
        assert breaker.consecutive_failures == 1

    def test_a_success_from_before_the_streak_forgets_nothing(self, breaker):
        early = permit_of(breaker)
        permit_of(breaker).failure("a")
        early.success()
        permit_of(breaker).failure("a")
        assert breaker.consecutive_failures == 1

    @pytest.mark.parametrize("end", ["probe", "reset", "force_closed"])
    def test_a_change_of_state_forgets_them(self, breaker, clock, end):
        for cause in "abcde" if end == "probe" else "abcd":
            permit_of(breaker).failure(cause)
        if end == "probe":
            clock.tick(60)
            permit_of(breaker).success()
        else:
            getattr(breaker, end)()
        permit_of(breaker).failure("a")
        assert breaker.consecutive_failures == 1

    def test_a_repeat_does_not_make_the_streak_begin_anew(self, breaker):
        permit_of(breaker).failure("a")
        within = permit_of(breaker)
        permit_of(breaker).failure("a")
        within.success()
        assert breaker.consecutive_failures == 0, "it began after the streak did"

    def test_memory_is_bounded_and_beyond_it_each_failure_counts(self, breaker):
        breaker.force_closed()  # else the streak would end long before
        for cause in range(1500):
            permit_of(breaker).failure(cause)
        assert len(breaker._causes) == 1000
        assert breaker.consecutive_failures == 1500
        permit_of(breaker).failure(999)
        assert breaker.consecutive_failures == 1500, "remembered"
        permit_of(breaker).failure(1000)
        assert breaker.consecutive_failures == 1501, "not remembered"

    @pytest.mark.parametrize("cause", [None, "a"])
    def test_the_failure_of_a_probe_counts_whatever_its_cause(self, breaker, clock, cause):
        for earlier in "abcde":
            permit_of(breaker).failure(earlier)
        clock.tick(60)
        permit_of(breaker).failure(cause)
        assert breaker.state is OPEN


class TestLastResort:
    def test_in_a_closed_circuit_it_is_a_permit_like_any_other(self, breaker):
        permit = last_resort_of(breaker)
        assert (permit.probe, permit.last_resort) == (False, False)
        permit.failure()
        assert breaker.consecutive_failures == 1

    def test_an_open_circuit_lets_it_through_and_an_answer_closes_it(self, breaker):
        open_it(breaker)
        permit = last_resort_of(breaker)
        assert (permit.probe, permit.last_resort) == (False, True)
        assert breaker.state is OPEN
        assert isinstance(breaker.acquire(), Rejected), "others are still refused"
        permit.success()
        assert breaker.state is CLOSED
        fail(breaker, 4)
        assert breaker.state is CLOSED, "a fresh streak"

    @pytest.mark.parametrize("how", ["failure", "release"])
    def test_anything_else_changes_nothing(self, breaker, clock, how):
        open_it(breaker)
        clock.tick(20)
        for _ in range(50):
            getattr(last_resort_of(breaker), how)()
        assert breaker.state is OPEN
        assert breaker.consecutive_failures == 0
        assert breaker.late_results == 0
        assert breaker.refusal().retry_after == pytest.approx(40)

    def test_an_answer_ends_the_doubling(self, breaker, clock):
        half_open_it(breaker, clock).failure()
        last_resort_of(breaker).success()
        open_it(breaker)
        assert breaker.refusal().retry_after == pytest.approx(60)

    def test_when_the_time_is_over_it_is_the_probe(self, breaker, clock):
        open_it(breaker)
        clock.tick(60)
        permit = last_resort_of(breaker)
        assert (permit.probe, permit.last_resort) == (True, False)
        permit.failure()
        assert breaker.state is OPEN

    def test_beside_a_probe_it_takes_nobodys_place(self, breaker, clock):
        probe = half_open_it(breaker, clock)
        beside = last_resort_of(breaker)
        assert (beside.probe, beside.last_resort) == (False, True)
        beside.failure()
        assert breaker.state is HALF_OPEN
        assert isinstance(breaker.acquire(), Rejected), "the probe is still out"
        probe.success()
        assert breaker.state is CLOSED

    def test_beside_a_probe_its_answer_closes_and_the_probe_is_late(self, breaker, clock):
        probe = half_open_it(breaker, clock)
        last_resort_of(breaker).success()
        assert breaker.state is CLOSED
        probe.failure()
        assert breaker.state is CLOSED
        assert breaker.late_results == 1

    @pytest.mark.parametrize("how", ["success", "failure", "release"])
    def test_what_comes_after_a_change_of_state_is_late(self, breaker, clock, how):
        open_it(breaker)
        late = last_resort_of(breaker)
        clock.tick(60)
        permit_of(breaker).failure()
        getattr(late, how)()
        assert breaker.state is OPEN
        assert breaker.late_results == 1

    def test_it_is_settled_once(self, breaker):
        open_it(breaker)
        permit = last_resort_of(breaker)
        permit.failure()
        permit.success()
        assert breaker.state is OPEN

    def test_it_ends_the_lease_of_a_probe_that_never_settles(self, clock):
        breaker = CircuitBreaker(clock=clock, probe_lease_seconds=10)
        half_open_it(breaker, clock)
        clock.tick(10)
        assert last_resort_of(breaker).last_resort
        assert breaker.state is OPEN

    def test_a_circuit_that_is_forced_open_is_the_operators_word(self, breaker, clock):
        breaker.force_open()
        clock.tick(10**6)
        refused = breaker.acquire_last_resort()
        assert isinstance(refused, Rejected)
        assert refused.retry_after == math.inf

    def test_what_was_out_when_it_was_forced_open_does_not_close_it(self, breaker):
        open_it(breaker)
        permit = last_resort_of(breaker)
        breaker.force_open()
        permit.success()
        assert (breaker.state, breaker.forced) == (OPEN, True)

    def test_a_listener_hears_of_the_closing_alone(self, clock):
        heard = []
        watched = CircuitBreaker(clock=clock, on_change=lambda old, new: heard.append((old, new)))
        open_it(watched)
        last_resort_of(watched).failure()
        last_resort_of(watched).success()
        assert heard == [(CLOSED, OPEN), (OPEN, CLOSED)]


class TestOpen:
    def test_rejects_for_sixty_seconds_and_says_how_long(self, breaker, clock):
        open_it(breaker)
        rejected = breaker.acquire()
        assert isinstance(rejected, Rejected)
        assert rejected.retry_after == pytest.approx(60)
        clock.tick(59.999)
        assert isinstance(breaker.acquire(), Rejected)
        assert breaker.state is OPEN
        clock.tick(0.001)
        assert breaker.state is OPEN, "lazy: nobody has asked yet"
        assert permit_of(breaker).probe
        assert breaker.state is HALF_OPEN

    @pytest.mark.parametrize("end", ["success", "failure", "release"])
    def test_results_from_before_it_opened_change_nothing_and_are_counted(self, breaker, end):
        late = permit_of(breaker)
        open_it(breaker)
        getattr(late, end)()
        assert breaker.state is OPEN
        assert breaker.late_results == 1

    def test_refusal_looks_without_taking_the_probes_place(self, breaker, clock):
        open_it(breaker)
        assert breaker.refusal().retry_after == pytest.approx(60)
        clock.tick(60)
        assert breaker.refusal() is None
        assert breaker.refusal() is None
        assert permit_of(breaker).probe


class TestHalfOpen:
    def test_lets_one_probe_through(self, breaker, clock):
        half_open_it(breaker, clock)
        rejected = breaker.acquire()
        assert isinstance(rejected, Rejected)
        assert rejected.retry_after == 0

    def test_probe_success_closes(self, breaker, clock):
        half_open_it(breaker, clock).success()
        assert breaker.state is CLOSED
        fail(breaker, 4)
        assert breaker.state is CLOSED, "a fresh streak"

    def test_probe_failure_opens_again(self, breaker, clock):
        half_open_it(breaker, clock).failure()
        assert breaker.state is OPEN

    def test_released_probe_gives_its_place_to_the_next(self, breaker, clock):
        half_open_it(breaker, clock).release()
        assert breaker.state is HALF_OPEN
        second = permit_of(breaker)
        assert second.probe
        assert isinstance(breaker.acquire(), Rejected)
        second.success()
        assert breaker.state is CLOSED

    def test_a_call_from_before_cannot_close_it(self, breaker, clock):
        late = permit_of(breaker)
        half_open_it(breaker, clock)
        late.success()
        assert breaker.state is HALF_OPEN
        assert breaker.late_results == 1

    @pytest.mark.parametrize("ask", ["acquire", "refusal"])
    def test_a_probe_that_never_settles_loses_its_lease(self, clock, ask):
        breaker = CircuitBreaker(clock=clock, probe_lease_seconds=10)
        hung = half_open_it(breaker, clock)
        clock.tick(9.999)
        assert isinstance(getattr(breaker, ask)(), Rejected)
        assert breaker.state is HALF_OPEN
        clock.tick(0.001)
        assert isinstance(getattr(breaker, ask)(), Rejected)
        assert breaker.state is OPEN
        clock.tick(132)
        second = permit_of(breaker)
        hung.success()
        assert breaker.state is HALF_OPEN, "the hung probe is late now"
        second.success()
        assert breaker.state is CLOSED


class TestOpenTime:
    def test_doubles_with_each_opening_in_a_row_up_to_the_longest(self, clock):
        breaker: Any = CircuitBreaker(clock=clock, max_open_seconds=600)
        open_it(breaker)
        seen = []
        for _ in range(7):
            refusal = breaker.refusal()
            assert refusal is not None
            seen.append(refusal.retry_after)
            clock.tick(seen[-1] + 1e-6)
            permit_of(breaker).failure()
        expected = [60, 120, 240, 480, 600, 600, 600]
        for wait, base in zip(seen, expected, strict=True):
            least = base if base < 600 else 540
            assert least - 1e-6 <= wait <= min(600, base * 1.1) + 1e-6
        assert seen[0] == 60, "the first opening has no jitter"
        assert len(set(seen)) == len(seen), "later ones do, also where the doubling ends"

    @pytest.mark.parametrize(("most", "wait"), [(600, 132), (132, 132), (131, 108)])
    def test_the_jitter_is_at_most_a_tenth_and_keeps_below_the_end(self, most, wait):
        class Extreme(FakeClock):
            def random(self):
                return 1.0

        clock = Extreme()
        breaker: Any = CircuitBreaker(clock=clock, max_open_seconds=most)
        half_open_it(breaker, clock).failure()
        assert breaker.refusal().retry_after == pytest.approx(wait)

    def test_a_close_resets_it(self, breaker, clock):
        half_open_it(breaker, clock).failure()
        clock.tick(200)
        permit_of(breaker).success()
        open_it(breaker)
        assert breaker.refusal().retry_after == pytest.approx(60)

    def test_a_reset_resets_it(self, breaker, clock):
        half_open_it(breaker, clock).failure()
        breaker.reset()
        open_it(breaker)
        assert breaker.refusal().retry_after == pytest.approx(60)

    def test_survives_an_outage_of_thousands_of_openings(self, breaker, clock):
        open_it(breaker)
        for _ in range(3000):
            clock.tick(700)
            permit_of(breaker).failure()
        assert 108 <= breaker.refusal().retry_after <= 120

    def test_the_wall_clock_moves_nothing(self, breaker, clock):
        open_it(breaker)
        clock.set_wall(clock.wall() + 10**9)
        assert isinstance(breaker.acquire(), Rejected)
        clock.set_wall(0)
        clock.tick(60)
        assert permit_of(breaker).probe


class TestForced:
    def test_it_says_whether_it_was_forced_and_what_governs_it(self, clock):
        breaker = CircuitBreaker(3, 7, max_open_seconds=70, probe_lease_seconds=9, clock=clock)
        assert breaker.terms == (3, 7, 70, 9)
        assert not breaker.forced
        for force in (breaker.force_open, breaker.force_closed):
            force()
            assert breaker.forced
        breaker.reset()
        assert not breaker.forced

    def test_forced_open_rejects_until_told_otherwise(self, breaker, clock):
        breaker.force_open()
        clock.tick(10**6)
        assert breaker.acquire().retry_after == math.inf
        breaker.reset()
        permit_of(breaker).success()
        assert breaker.state is CLOSED

    def test_forced_closed_lets_everything_through(self, breaker):
        open_it(breaker)
        breaker.force_closed()
        fail(breaker, 50)
        assert breaker.state is CLOSED
        breaker.reset()
        open_it(breaker)


class TestListener:
    def test_hears_each_change_after_it_is_complete(self, clock):
        heard = []
        watched = CircuitBreaker(
            clock=clock, on_change=lambda old, new: heard.append((old, new, watched.state))
        )
        half_open_it(watched, clock).success()
        assert heard == [
            (CLOSED, OPEN, OPEN),
            (OPEN, HALF_OPEN, HALF_OPEN),
            (HALF_OPEN, CLOSED, CLOSED),
        ]

    def test_hears_nothing_where_nothing_changes(self, clock):
        heard = []
        watched = CircuitBreaker(clock=clock, on_change=lambda old, new: heard.append(new))
        watched.reset()
        watched.force_closed()
        assert heard == []

    def test_where_there_is_none_nothing_is_logged(self, breaker, clock, caplog):
        half_open_it(breaker, clock).success()
        assert caplog.text == ""

    def test_one_that_raises_harms_nobody(self, clock, caplog):
        def broken(old, new):
            raise ZeroDivisionError

        breaker = CircuitBreaker(clock=clock, on_change=broken)
        half_open_it(breaker, clock).success()
        assert breaker.state is CLOSED
        assert "listener raised" in caplog.text

    def test_one_that_asks_for_a_permit_does_not_make_a_second_probe(self, clock):
        probes = []

        def greedy(old, new):
            if new is HALF_OPEN:
                probes.append(watched.acquire())

        watched = CircuitBreaker(clock=clock, on_change=greedy)
        assert half_open_it(watched, clock).probe
        assert [type(p) for p in probes] == [Rejected]


class TestCall:
    async def test_counts_exceptions_and_refuses_when_open(self, breaker):
        async def broken():
            raise OSError("down")

        for _ in range(5):
            with pytest.raises(OSError, match="down"):
                await breaker.call(broken)
        with pytest.raises(CircuitOpenError, match=r"retry in 60\.0 s") as refused:
            await breaker.call(broken)
        assert pickle.loads(pickle.dumps(refused.value)).retry_after_seconds == pytest.approx(60)

    async def test_gives_back_what_the_function_returns(self, breaker):
        async def add(a, b):
            return a + b

        assert await breaker.call(add, 1, b=2) == 3

    async def test_five_cancelled_calls_leave_it_closed(self, breaker):
        for _ in range(5):
            task = asyncio.create_task(breaker.call(asyncio.Event().wait))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert breaker.state is CLOSED
        assert breaker.consecutive_failures == 0

    async def test_a_hundred_callers_at_the_end_of_the_open_time_make_one_probe(
        self, breaker, clock
    ):
        open_it(breaker)
        clock.tick(60)
        called = 0
        gate = asyncio.Event()

        async def vendor():
            nonlocal called
            called += 1
            await gate.wait()

        callers = [asyncio.create_task(breaker.call(vendor)) for _ in range(100)]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert called == 1
        assert sum(isinstance(r, CircuitOpenError) for r in results) == 99
        assert breaker.state is CLOSED

    async def test_a_cancelled_probe_does_not_wedge_it(self, breaker, clock):
        open_it(breaker)
        clock.tick(60)
        probe = asyncio.create_task(breaker.call(asyncio.Event().wait))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert permit_of(breaker).probe


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    ["failure_threshold", "reset_timeout_seconds", "max_open_seconds", "probe_lease_seconds"],
)
def test_refuses_numbers_that_cannot_work(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be a positive"):
        CircuitBreaker(**{name: value})


def test_takes_numbers_below_one():
    breaker = CircuitBreaker(
        1, reset_timeout_seconds=0.01, max_open_seconds=0.02, probe_lease_seconds=0.01
    )
    assert breaker.max_open_seconds == 0.02


def test_defaults_are_the_documented_ones():
    breaker = CircuitBreaker()
    assert (breaker.failure_threshold, breaker.reset_timeout_seconds) == (5, 60)
    assert (breaker.max_open_seconds, breaker.probe_lease_seconds) == (120, 60)
    assert isinstance(breaker.clock, SystemClock)
    assert repr(breaker) == "CircuitBreaker(closed, failures=0/5)"


def test_a_rejection_allocates_nothing_that_grows(breaker):
    open_it(breaker)
    before = {name: getattr(breaker, name) for name in CircuitBreaker.__slots__}
    for _ in range(1000):
        breaker.acquire()
    assert {name: getattr(breaker, name) for name in CircuitBreaker.__slots__} == before
