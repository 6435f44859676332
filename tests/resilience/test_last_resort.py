"""The doses of last resort: the balance, the trickle on an empty one, and the ramp after it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.resilience.last_resort import GAIN, MOST, OVERDUE, RAMP, TRICKLE, LastResort
from aigateway.testing import FakeClock
from tests.resilience.guarding import answered, failed, misconfigured, neutral, throttled

FLOOR = 8
"""Attempts in the first second of a ramp, however few requests there were."""

CROWD = 10**5
"""More than wait in any of these tests."""


@pytest.fixture
def balance(clock):
    return LastResort(clock)


def attempt(balance, outcome, *, closed=False):
    balance.end(balance.begin(closed=closed), outcome)


def come_back(balance):
    """An attempt on an empty balance is answered."""
    assert balance.balance < 1
    attempt(balance, answered())


def let_through(balance, clock, seconds, step=1 / 64):
    """How many of a crowd that waits get on the ramp in so many seconds."""
    begun, end = 0, clock.now() + seconds
    while clock.now() < end:
        while begun < CROWD and not (balance.ramping and balance.ramp_wait()):
            balance.begin(closed=True)
            begun += 1
        clock.tick(step)
    return begun


class TestPurse:
    def test_it_begins_empty_and_an_answer_pays_for_ten(self, balance):
        assert balance.balance == 0
        attempt(balance, answered(), closed=True)
        assert balance.balance == 10
        for left in range(9, -1, -1):
            assert balance.wait() == 0
            attempt(balance, failed())
            assert balance.balance == left

    def test_an_attempt_through_a_closed_circuit_costs_nothing(self, balance):
        attempt(balance, answered(), closed=True)
        for _ in range(50):
            attempt(balance, failed(), closed=True)
        assert balance.balance == 10

    def test_a_hundred_are_saved_at_most(self, balance):
        for _ in range(50):
            attempt(balance, answered(), closed=True)
        assert balance.balance == MOST == 100

    @pytest.mark.parametrize("how", [failed, neutral])
    def test_only_an_answer_pays(self, balance, how):
        attempt(balance, how(), closed=True)
        attempt(balance, how())
        assert balance.balance == 0

    def test_an_answer_on_the_way_pays_too(self, balance):
        attempt(balance, answered(), closed=True)
        attempt(balance, answered())
        assert balance.balance == 19

    def test_reset_empties_it(self, balance):
        attempt(balance, answered(), closed=True)
        balance.begin(closed=False)
        balance.reset()
        assert balance.balance == 0
        assert balance.wait() == 0


class TestQuiet:
    """While it is, with a closed circuit, an attempt and an answer change nothing."""

    def fill(self, balance):
        while balance.balance < MOST:
            assert not balance.quiet
            attempt(balance, answered(), closed=True)

    def test_it_is_when_the_purse_is_full(self, balance):
        self.fill(balance)
        assert balance.quiet

    def test_an_attempt_through_a_circuit_that_is_not_closed_ends_it(self, balance):
        self.fill(balance)
        held = balance.begin(closed=False)
        assert not balance.quiet
        balance.end(held, failed())
        assert not balance.quiet, "an answer would pay"
        attempt(balance, answered(), closed=True)
        assert balance.quiet

    def test_it_is_not_while_an_attempt_on_an_empty_purse_is_out(self, balance):
        late = balance.begin(closed=False)
        while balance.balance < MOST:
            attempt(balance, answered(), closed=True)
        assert not balance.quiet, "its end has to be noticed"
        balance.end(late, failed())
        attempt(balance, answered(), closed=True)
        assert balance.quiet

    def test_it_is_not_while_the_ramp_is_on(self, balance, clock):
        come_back(balance)
        while balance.balance < MOST:
            attempt(balance, answered(), closed=True)
        assert not balance.quiet, "attempts count against the pace"
        clock.tick(RAMP)
        assert balance.ramp_wait() == 0
        attempt(balance, answered(), closed=True)
        assert balance.quiet

    def test_reset_ends_it(self, balance):
        self.fill(balance)
        balance.reset()
        assert not balance.quiet


class TestTrickle:
    def test_the_first_may_go_at_once(self, balance):
        assert balance.wait() == 0

    def test_one_at_a_time(self, balance, clock):
        trickled = balance.begin(closed=False)
        assert trickled
        clock.tick(0.5)
        assert balance.wait() == pytest.approx(0.5), "it is out"
        balance.end(trickled, failed())
        assert balance.wait() == 0

    def test_and_four_a_second(self, balance, clock):
        attempt(balance, failed())
        assert balance.wait() == pytest.approx(0.25)
        clock.tick(0.2)
        assert balance.wait() == pytest.approx(0.05)
        clock.tick(0.05)
        assert balance.wait() == 0

    def fail(self, balance, clock, times):
        for _ in range(times):
            clock.tick(balance.wait())
            attempt(balance, failed())

    def test_and_two_a_second_after_twenty_failures_in_a_row(self, balance, clock):
        self.fail(balance, clock, 19)
        assert balance.wait() == pytest.approx(0.25)
        self.fail(balance, clock, 1)
        assert balance.wait() == pytest.approx(0.5)
        self.fail(balance, clock, 100)
        assert balance.wait() == pytest.approx(0.5), "it stays at that"

    @pytest.mark.parametrize("closed", [False, True])
    def test_an_answer_makes_it_quick_again(self, balance, clock, closed):
        self.fail(balance, clock, 30)
        attempt(balance, answered(), closed=closed)
        while balance.balance >= 1:
            attempt(balance, failed())
        assert balance.wait() == pytest.approx(0.25)
        self.fail(balance, clock, 19)
        assert balance.wait() == pytest.approx(0.25), "and twenty more have to fail"
        self.fail(balance, clock, 1)
        assert balance.wait() == pytest.approx(0.5)

    def test_those_that_were_paid_for_are_none_of_the_twenty(self, balance, clock):
        for _ in range(10):
            attempt(balance, answered(), closed=True)
        for _ in range(100):
            attempt(balance, failed())
        self.fail(balance, clock, 19)
        assert balance.wait() == pytest.approx(0.25)

    @pytest.mark.parametrize("how", [neutral, throttled, misconfigured])
    def test_only_a_failure_is_one_of_the_twenty(self, balance, clock, how):
        self.fail(balance, clock, 19)
        for _ in range(20):
            clock.tick(balance.wait())
            attempt(balance, how())
        assert balance.wait() == pytest.approx(0.25)
        self.fail(balance, clock, 1)
        assert balance.wait() == pytest.approx(0.5), "nor does it end the row"

    def test_one_that_is_out_holds_up_no_longer_for_it(self, balance, clock):
        self.fail(balance, clock, 20)
        clock.tick(balance.wait())
        balance.begin(closed=False)
        assert balance.wait() == pytest.approx(OVERDUE)

    def test_reset_makes_it_quick_again(self, balance, clock):
        self.fail(balance, clock, 20)
        balance.reset()
        attempt(balance, failed())
        assert balance.wait() == pytest.approx(0.25)

    def test_one_that_hangs_keeps_others_back_for_a_second(self, balance, clock):
        for _ in range(5):
            assert balance.wait() == 0
            balance.begin(closed=False)
            assert balance.wait() == pytest.approx(OVERDUE)
            clock.tick(OVERDUE)

    def test_while_any_is_out_a_second_lies_between_two(self, balance, clock):
        first = balance.begin(closed=False)
        clock.tick(OVERDUE)
        balance.end(balance.begin(closed=False), failed())
        assert balance.wait() == pytest.approx(OVERDUE)
        balance.end(first, failed())
        assert balance.wait() == pytest.approx(TRICKLE)

    def test_one_that_was_paid_for_holds_up_only_like_one_that_is_back(self, balance, clock):
        attempt(balance, answered(), closed=True)
        trickled = [balance.begin(closed=False) for _ in range(10)]
        assert not any(trickled)
        assert balance.wait() == pytest.approx(TRICKLE)

    def test_the_end_of_one_from_before_a_reset_frees_nothing_twice(self, balance, clock):
        old = balance.begin(closed=False)
        balance.reset()
        balance.end(old, failed())
        balance.begin(closed=False)
        assert balance.wait() == pytest.approx(OVERDUE)

    def test_one_whose_loop_is_gone_keeps_no_other_back(self, balance):
        assert not balance.pending
        balance.begin(closed=False)
        assert balance.pending
        balance.abandon()
        assert not balance.pending
        assert balance.wait() == pytest.approx(TRICKLE)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([0.0, 0.01, 0.1, 0.25, 1.0, 3.0]),
                st.sampled_from(["ask", "ask", "answer", "fail", "fail"]),
            ),
            max_size=120,
        )
    )
    def test_never_more_than_was_paid_for_and_the_trickle(self, script):
        clock = FakeClock()
        balance = LastResort(clock)
        out, began, answers, elapsed = [], 0, 0, 0.0
        for pause, event in script:
            clock.tick(pause)
            elapsed += pause
            if event == "ask":
                while balance.wait() == 0:
                    out.append(balance.begin(closed=False))
                    began += 1
            elif out:
                good = event == "answer"
                answers += good
                balance.end(out.pop(0), answered() if good else failed())
            assert 0 <= balance.balance <= MOST
            assert began <= GAIN * answers + 1 + elapsed / TRICKLE + 1e-6


class TestRamp:
    def test_it_begins_when_an_attempt_on_an_empty_purse_is_answered(self, balance):
        attempt(balance, failed())
        assert not balance.ramping
        come_back(balance)
        assert balance.ramping

    def test_not_when_the_attempt_was_paid_for(self, balance):
        attempt(balance, answered(), closed=True)
        attempt(balance, answered())
        assert not balance.ramping

    @pytest.mark.parametrize("how", [failed, neutral])
    def test_and_not_when_it_was_not_answered(self, balance, how):
        attempt(balance, how())
        assert not balance.ramping

    def test_it_doubles_each_second_and_ends_after_five(self, balance, clock):
        come_back(balance)
        seen = [let_through(balance, clock, 1) for _ in range(5)]
        assert seen == pytest.approx([8, 16, 32, 64, 128], abs=1)
        assert let_through(balance, clock, 1 / 64) == CROWD
        assert not balance.ramping

    def test_a_wait_is_as_long_as_the_pace_says(self, balance, clock):
        come_back(balance)
        assert self.burst(balance) == 1
        assert balance.ramp_wait() == pytest.approx(1 / 8)
        clock.tick(1 / 16)
        assert balance.ramp_wait() == pytest.approx(1 / 16)

    def test_no_wait_goes_beyond_the_moment_in_which_the_pace_doubles(self, balance, clock):
        come_back(balance)
        clock.tick(0.95)
        assert self.burst(balance) == 1
        assert balance.ramp_wait() == pytest.approx(0.05)

    def burst(self, balance):
        """How many of a crowd get on the ramp in one moment."""
        begun = 0
        while not balance.ramp_wait():
            balance.begin(closed=True)
            begun += 1
        return begun

    @pytest.mark.parametrize(("after", "burst"), [(0.9, 1), (1.9, 2), (4.5, 16)])
    def test_those_who_come_late_find_no_saved_burst(self, balance, clock, after, burst):
        come_back(balance)
        clock.tick(after)
        assert self.burst(balance) == burst, "an eighth of a second's"

    def test_attempts_outside_of_it_do_not_count_against_it(self, balance, clock):
        for _ in range(50):
            balance.begin(closed=True)
        come_back(balance)
        assert balance.ramp_wait() == 0

    def test_a_second_attempt_that_is_answered_does_not_begin_it_anew(self, balance, clock):
        late = balance.begin(closed=False)
        clock.tick(1)
        come_back(balance)
        let_through(balance, clock, 3)
        balance.end(late, answered())
        assert let_through(balance, clock, 1) > 50
        clock.tick(1)
        assert balance.ramp_wait() == 0
        assert not balance.ramping

    @pytest.mark.parametrize("quiet", [0.0, 1.0, RAMP, 3600.0])
    def test_each_outage_has_a_ramp_of_its_own(self, balance, clock, quiet):
        """Also one that begins while the ramp of the one before is still on."""
        come_back(balance)
        let_through(balance, clock, 2)
        while balance.balance >= 1:
            attempt(balance, failed())  # its circuit has opened again
        clock.tick(quiet)
        come_back(balance)
        assert balance.ramping
        assert let_through(balance, clock, 1) == FLOOR

    def test_reset_ends_it(self, balance):
        come_back(balance)
        balance.reset()
        assert not balance.ramping

    @given(
        rate=st.integers(1, 500),
        outage=st.sampled_from([1.0, 1.5, 10.0, 40.0]),
        phase=st.floats(0, 0.99),
    )
    def test_the_first_second_is_no_herd(self, rate, outage, phase):
        clock = FakeClock()
        balance = LastResort(clock)
        clock.tick(phase)
        for _ in range(int(outage * rate)):
            balance.seen()
            clock.tick(1 / rate)
        come_back(balance)
        first_second = let_through(balance, clock, 1)
        assert first_second <= max(2 * rate, FLOOR)
        if rate > 5 and outage >= 1.5:
            assert first_second >= rate, "those who come meanwhile must not queue up for ever"

    def test_requests_of_long_ago_say_nothing_of_the_rate(self, balance, clock):
        for _ in range(500):
            balance.seen()
        clock.tick(2)
        come_back(balance)
        assert let_through(balance, clock, 1) == FLOOR

    @pytest.mark.parametrize("quiet", [2.0, 2.5])
    def test_a_second_without_any_is_not_hidden_by_the_one_before(self, balance, clock, quiet):
        for _ in range(500):
            balance.seen()
        clock.tick(quiet)
        balance.seen()
        come_back(balance)
        assert let_through(balance, clock, 1) == FLOOR

    def test_the_busier_of_the_last_two_seconds_counts(self, balance, clock):
        for _ in range(40):
            balance.seen()
        clock.tick(1)
        balance.seen()
        come_back(balance)
        assert let_through(balance, clock, 1) == 60

    @given(st.floats(0, 10**6), st.integers(1, 500))
    def test_a_wait_is_long_enough_to_move_the_clock(self, start, arrivals):
        clock = FakeClock(start)
        balance = LastResort(clock)
        for _ in range(arrivals):
            balance.seen()
        come_back(balance)
        for _ in range(20):
            balance.begin(closed=True)
            looks = 0
            while (wait := balance.ramp_wait()) > 0:
                before, looks = clock.now(), looks + 1
                clock.tick(wait)
                assert clock.now() > before
            assert looks <= 3, "the pace may double meanwhile"
