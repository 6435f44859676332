import math
from typing import Any

import pytest

from aigateway.errors import FailureKind
from aigateway.resilience.gates import GatePolicy, Gates
from aigateway.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def gates(clock):
    return Gates(clock, GatePolicy())


def test_it_says_which_durations_it_keeps(clock):
    policy = GatePolicy(recheck=7)
    assert Gates(clock, policy).policy == policy


class TestCooldown:
    def test_as_long_as_the_vendor_asks(self, gates, clock):
        assert gates.throttled(7.5) == pytest.approx(7.5)
        closed = gates.closed()
        assert closed.kind is FailureKind.COOLING_DOWN
        assert closed.retry_after == pytest.approx(7.5)
        clock.tick(7.5)
        assert gates.closed() is None

    @pytest.mark.parametrize(("first", "second"), [(10, 2), (2, 10)])
    def test_the_longest_wish_counts(self, gates, first, second):
        gates.throttled(first)
        assert gates.throttled(second) == pytest.approx(10)

    def test_without_a_wish_it_doubles_and_a_success_resets_it(self, gates, clock):
        waits = []
        for _ in range(8):
            waits.append(round(gates.throttled(None), 6))
            clock.tick(waits[-1])
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
        gates.succeeded(gates.enter())
        assert gates.throttled(None) == pytest.approx(1)

    def test_calls_that_were_out_together_count_once(self, gates):
        assert [round(gates.throttled(None)) for _ in range(20)] == [1] * 20

    def test_survives_ten_thousand_in_a_row(self, gates, clock):
        for _ in range(10_000):
            clock.tick(gates.throttled(None))
        assert math.isfinite(gates.cooldown_until)


class TestDisabled:
    def test_one_request_checks_again_after_five_minutes(self, gates, clock):
        assert gates.disable(FailureKind.AUTHENTICATION) == pytest.approx(300)
        clock.tick(299)
        assert gates.closed().kind is FailureKind.DISABLED
        clock.tick(1)
        assert gates.closed() is None
        entry = gates.enter()
        assert gates.closed().kind is FailureKind.DISABLED, "one is checking already"
        assert gates.succeeded(entry)
        assert gates.closed() is None
        assert gates.disabled_reason is None

    def test_rechecks_grow_rare_up_to_an_hour(self, gates, clock):
        pauses = []
        for _ in range(6):
            pauses.append(gates.disable(FailureKind.NO_CREDIT))
            clock.tick(pauses[-1])
            gates.enter()
        assert pauses == pytest.approx([300, 600, 1200, 2400, 3600, 3600])

    def test_calls_that_fail_together_lengthen_the_pause_once(self, gates, clock):
        for _ in range(20):
            gates.disable(FailureKind.AUTHENTICATION)
        clock.tick(300)
        assert gates.closed() is None
        gates.enter()
        assert gates.disable(FailureKind.AUTHENTICATION) == pytest.approx(600)

    def test_a_check_that_learned_nothing_lets_the_next_one_check(self, gates, clock):
        gates.disable(FailureKind.AUTHENTICATION)
        clock.tick(300)
        gates.leave(gates.enter())
        assert gates.closed() is None

    def test_an_attempt_from_before_opens_nothing(self, gates, clock):
        before = gates.enter()
        gates.disable(FailureKind.AUTHENTICATION)
        assert not gates.succeeded(before)
        assert gates.disabled_reason is FailureKind.AUTHENTICATION
        clock.tick(300)
        check = gates.enter()
        gates.leave(before)
        assert gates.closed().kind is FailureKind.DISABLED, "the check is still out"
        gates.leave(check)
        assert gates.closed() is None

    def test_a_check_that_never_comes_back_lets_another_try(self, gates, clock):
        gates.disable(FailureKind.AUTHENTICATION)
        clock.tick(300)
        gates.enter()
        clock.tick(GatePolicy().recheck_lease)
        assert gates.closed() is None

    def test_the_others_wait_a_minute_for_a_check(self, gates, clock):
        gates.disable(FailureKind.AUTHENTICATION)
        clock.tick(300)
        gates.enter()
        clock.tick(59.5)
        assert gates.closed().retry_after == pytest.approx(0.5)
        clock.tick(0.5)
        assert gates.closed() is None

    def test_a_check_whose_time_was_over_has_no_say(self, gates, clock):
        gates.disable(FailureKind.AUTHENTICATION)
        clock.tick(300)
        late = gates.enter()
        clock.tick(60)
        check = gates.enter()
        assert not gates.succeeded(late)
        assert gates.disabled_reason is FailureKind.AUTHENTICATION
        gates.leave(late)
        assert gates.closed().kind is FailureKind.DISABLED, "the second check is still out"
        assert gates.succeeded(check)
        assert not gates.succeeded(check), "it has enabled the provider once"

    def test_a_success_forgets_how_often_it_was_disabled(self, gates, clock):
        for _ in range(3):
            clock.tick(gates.disable(FailureKind.NO_CREDIT))
        assert gates.succeeded(gates.enter())
        assert gates.disable(FailureKind.NO_CREDIT) == pytest.approx(300)

    def test_a_success_forgets_the_check_and_the_pause(self, clock):
        gates: Any = Gates(clock, GatePolicy(recheck=10))
        gates.disable(FailureKind.AUTHENTICATION)
        assert gates.succeeded(gates.enter()), "a check may come early"
        gates.throttled(5)
        assert gates.closed().kind is FailureKind.COOLING_DOWN
        clock.tick(5)
        assert gates.disable(FailureKind.AUTHENTICATION) == pytest.approx(10)
        assert gates.closed().retry_after == pytest.approx(10), "not as long as a check may take"

    def test_a_rate_limited_check_cools_down_and_stays_disabled(self, gates, clock):
        gates.disable(FailureKind.AUTHENTICATION)
        clock.tick(300)
        gates.leave(gates.enter())
        gates.throttled(5)
        assert gates.closed().kind is FailureKind.COOLING_DOWN
        assert gates.disabled_reason is FailureKind.AUTHENTICATION


def test_open_gates_do_not_look_at_the_clock():
    class Stopped(FakeClock):
        def now(self):
            raise AssertionError("each request passes here")

    gates = Gates(Stopped(), GatePolicy())
    assert gates.closed() is None
    assert not gates.succeeded(gates.enter())


def test_the_wall_clock_moves_nothing(gates, clock):
    gates.throttled(10)
    clock.set_wall(0)
    assert gates.closed().retry_after == pytest.approx(10)


def test_reset_opens_everything(gates):
    gates.disable(FailureKind.AUTHENTICATION)
    gates.throttled(10)
    gates.reset()
    assert gates.closed() is None
