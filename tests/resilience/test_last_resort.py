"""The doses of last resort: the purse, the trickle on an empty one, and the ramp after it."""

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
def purse(clock):
    return LastResort(clock)


def attempt(purse, outcome, *, closed=False):
    purse.end(purse.begin(closed=closed), outcome)


def come_back(purse):
    """An attempt on an empty purse is answered."""
    assert purse.purse < 1
    attempt(purse, answered())


def let_through(purse, clock, seconds, step=1 / 64):
    """How many of a crowd that waits get on the ramp in so many seconds."""
    begun, end = 0, clock.now() + seconds
    while clock.now() < end:
        while begun < CROWD and not (purse.ramping and purse.ramp_wait()):
            purse.begin(closed=True)
            begun += 1
        clock.tick(step)
    return begun


class TestPurse:
    def test_it_begins_empty_and_an_answer_pays_for_ten(self, purse):
        assert purse.purse == 0
        attempt(purse, answered(), closed=True)
        assert purse.purse == 10
        for left in range(9, -1, -1):
            assert purse.wait() == 0
            attempt(purse, failed())
            assert purse.purse == left

    def test_an_attempt_through_a_closed_circuit_costs_nothing(self, purse):
        attempt(purse, answered(), closed=True)
        for _ in range(50):
            attempt(purse, failed(), closed=True)
        assert purse.purse == 10

    def test_a_hundred_are_saved_at_most(self, purse):
        for _ in range(50):
            attempt(purse, answered(), closed=True)
        assert purse.purse == MOST == 100

    @pytest.mark.parametrize("how", [failed, neutral])
    def test_only_an_answer_pays(self, purse, how):
        attempt(purse, how(), closed=True)
        attempt(purse, how())
        assert purse.purse == 0

    def test_an_answer_on_the_way_pays_too(self, purse):
        attempt(purse, answered(), closed=True)
        attempt(purse, answered())
        assert purse.purse == 19

    def test_reset_empties_it(self, purse):
        attempt(purse, answered(), closed=True)
        purse.begin(closed=False)
        purse.reset()
        assert purse.purse == 0
        assert purse.wait() == 0


class TestQuiet:
    """While it is, with a closed circuit, an attempt and an answer change nothing."""

    def fill(self, purse):
        while purse.purse < MOST:
            assert not purse.quiet
            attempt(purse, answered(), closed=True)

    def test_it_is_when_the_purse_is_full(self, purse):
        self.fill(purse)
        assert purse.quiet

    def test_an_attempt_through_a_circuit_that_is_not_closed_ends_it(self, purse):
        self.fill(purse)
        held = purse.begin(closed=False)
        assert not purse.quiet
        purse.end(held, failed())
        assert not purse.quiet, "an answer would pay"
        attempt(purse, answered(), closed=True)
        assert purse.quiet

    def test_it_is_not_while_an_attempt_on_an_empty_purse_is_out(self, purse):
        late = purse.begin(closed=False)
        while purse.purse < MOST:
            attempt(purse, answered(), closed=True)
        assert not purse.quiet, "its end has to be noticed"
        purse.end(late, failed())
        attempt(purse, answered(), closed=True)
        assert purse.quiet

    def test_it_is_not_while_the_ramp_is_on(self, purse, clock):
        come_back(purse)
        while purse.purse < MOST:
            attempt(purse, answered(), closed=True)
        assert not purse.quiet, "attempts count against the pace"
        clock.tick(RAMP)
        assert purse.ramp_wait() == 0
        attempt(purse, answered(), closed=True)
        assert purse.quiet

    def test_reset_ends_it(self, purse):
        self.fill(purse)
        purse.reset()
        assert not purse.quiet


class TestTrickle:
    def test_the_first_may_go_at_once(self, purse):
        assert purse.wait() == 0

    def test_one_at_a_time(self, purse, clock):
        trickled = purse.begin(closed=False)
        assert trickled
        clock.tick(0.5)
        assert purse.wait() == pytest.approx(0.5), "it is out"
        purse.end(trickled, failed())
        assert purse.wait() == 0

    def test_and_four_a_second(self, purse, clock):
        attempt(purse, failed())
        assert purse.wait() == pytest.approx(0.25)
        clock.tick(0.2)
        assert purse.wait() == pytest.approx(0.05)
        clock.tick(0.05)
        assert purse.wait() == 0

    def fail(self, purse, clock, times):
        for _ in range(times):
            clock.tick(purse.wait())
            attempt(purse, failed())

    def test_and_two_a_second_after_twenty_failures_in_a_row(self, purse, clock):
        self.fail(purse, clock, 19)
        assert purse.wait() == pytest.approx(0.25)
        self.fail(purse, clock, 1)
        assert purse.wait() == pytest.approx(0.5)
        self.fail(purse, clock, 100)
        assert purse.wait() == pytest.approx(0.5), "it stays at that"

    @pytest.mark.parametrize("closed", [False, True])
    def test_an_answer_makes_it_quick_again(self, purse, clock, closed):
        self.fail(purse, clock, 30)
        attempt(purse, answered(), closed=closed)
        while purse.purse >= 1:
            attempt(purse, failed())
        assert purse.wait() == pytest.approx(0.25)
        self.fail(purse, clock, 19)
        assert purse.wait() == pytest.approx(0.25), "and twenty more have to fail"
        self.fail(purse, clock, 1)
        assert purse.wait() == pytest.approx(0.5)

    def test_those_that_were_paid_for_are_none_of_the_twenty(self, purse, clock):
        for _ in range(10):
            attempt(purse, answered(), closed=True)
        for _ in range(100):
            attempt(purse, failed())
        self.fail(purse, clock, 19)
        assert purse.wait() == pytest.approx(0.25)

    @pytest.mark.parametrize("how", [neutral, throttled, misconfigured])
    def test_only_a_failure_is_one_of_the_twenty(self, purse, clock, how):
        self.fail(purse, clock, 19)
        for _ in range(20):
            clock.tick(purse.wait())
            attempt(purse, how())
        assert purse.wait() == pytest.approx(0.25)
        self.fail(purse, clock, 1)
        assert purse.wait() == pytest.approx(0.5), "nor does it end the row"

    def test_one_that_is_out_holds_up_no_longer_for_it(self, purse, clock):
        self.fail(purse, clock, 20)
        clock.tick(purse.wait())
        purse.begin(closed=False)
        assert purse.wait() == pytest.approx(OVERDUE)

    def test_reset_makes_it_quick_again(self, purse, clock):
        self.fail(purse, clock, 20)
        purse.reset()
        attempt(purse, failed())
        assert purse.wait() == pytest.approx(0.25)

    def test_one_that_hangs_keeps_others_back_for_a_second(self, purse, clock):
        for _ in range(5):
            assert purse.wait() == 0
            purse.begin(closed=False)
            assert purse.wait() == pytest.approx(OVERDUE)
            clock.tick(OVERDUE)

    def test_while_any_is_out_a_second_lies_between_two(self, purse, clock):
        first = purse.begin(closed=False)
        clock.tick(OVERDUE)
        purse.end(purse.begin(closed=False), failed())
        assert purse.wait() == pytest.approx(OVERDUE)
        purse.end(first, failed())
        assert purse.wait() == pytest.approx(TRICKLE)

    def test_one_that_was_paid_for_holds_up_only_like_one_that_is_back(self, purse, clock):
        attempt(purse, answered(), closed=True)
        trickled = [purse.begin(closed=False) for _ in range(10)]
        assert not any(trickled)
        assert purse.wait() == pytest.approx(TRICKLE)

    def test_the_end_of_one_from_before_a_reset_frees_nothing_twice(self, purse, clock):
        old = purse.begin(closed=False)
        purse.reset()
        purse.end(old, failed())
        purse.begin(closed=False)
        assert purse.wait() == pytest.approx(OVERDUE)

    def test_one_whose_loop_is_gone_keeps_no_other_back(self, purse):
        assert not purse.pending
        purse.begin(closed=False)
        assert purse.pending
        purse.abandon()
        assert not purse.pending
        assert purse.wait() == pytest.approx(TRICKLE)

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
        purse = LastResort(clock)
        out, began, answers, elapsed = [], 0, 0, 0.0
        for pause, event in script:
            clock.tick(pause)
            elapsed += pause
            if event == "ask":
                while purse.wait() == 0:
                    out.append(purse.begin(closed=False))
                    began += 1
            elif out:
                good = event == "answer"
                answers += good
                purse.end(out.pop(0), answered() if good else failed())
            assert 0 <= purse.purse <= MOST
            assert began <= GAIN * answers + 1 + elapsed / TRICKLE + 1e-6


class TestRamp:
    def test_it_begins_when_an_attempt_on_an_empty_purse_is_answered(self, purse):
        attempt(purse, failed())
        assert not purse.ramping
        come_back(purse)
        assert purse.ramping

    def test_not_when_the_attempt_was_paid_for(self, purse):
        attempt(purse, answered(), closed=True)
        attempt(purse, answered())
        assert not purse.ramping

    @pytest.mark.parametrize("how", [failed, neutral])
    def test_and_not_when_it_was_not_answered(self, purse, how):
        attempt(purse, how())
        assert not purse.ramping

    def test_it_doubles_each_second_and_ends_after_five(self, purse, clock):
        come_back(purse)
        seen = [let_through(purse, clock, 1) for _ in range(5)]
        assert seen == pytest.approx([8, 16, 32, 64, 128], abs=1)
        assert let_through(purse, clock, 1 / 64) == CROWD
        assert not purse.ramping

    def test_a_wait_is_as_long_as_the_pace_says(self, purse, clock):
        come_back(purse)
        assert self.burst(purse) == 1
        assert purse.ramp_wait() == pytest.approx(1 / 8)
        clock.tick(1 / 16)
        assert purse.ramp_wait() == pytest.approx(1 / 16)

    def test_no_wait_goes_beyond_the_moment_in_which_the_pace_doubles(self, purse, clock):
        come_back(purse)
        clock.tick(0.95)
        assert self.burst(purse) == 1
        assert purse.ramp_wait() == pytest.approx(0.05)

    def burst(self, purse):
        """How many of a crowd get on the ramp in one moment."""
        begun = 0
        while not purse.ramp_wait():
            purse.begin(closed=True)
            begun += 1
        return begun

    @pytest.mark.parametrize(("after", "burst"), [(0.9, 1), (1.9, 2), (4.5, 16)])
    def test_those_who_come_late_find_no_saved_burst(self, purse, clock, after, burst):
        come_back(purse)
        clock.tick(after)
        assert self.burst(purse) == burst, "an eighth of a second's"

    def test_attempts_outside_of_it_do_not_count_against_it(self, purse, clock):
        for _ in range(50):
            purse.begin(closed=True)
        come_back(purse)
        assert purse.ramp_wait() == 0

    def test_a_second_attempt_that_is_answered_does_not_begin_it_anew(self, purse, clock):
        late = purse.begin(closed=False)
        clock.tick(1)
        come_back(purse)
        let_through(purse, clock, 3)
        purse.end(late, answered())
        assert let_through(purse, clock, 1) > 50
        clock.tick(1)
        assert purse.ramp_wait() == 0
        assert not purse.ramping

    @pytest.mark.parametrize("quiet", [0.0, 1.0, RAMP, 3600.0])
    def test_each_outage_has_a_ramp_of_its_own(self, purse, clock, quiet):
        """Also one that begins while the ramp of the one before is still on."""
        come_back(purse)
        let_through(purse, clock, 2)
        while purse.purse >= 1:
            attempt(purse, failed())  # its circuit has opened again
        clock.tick(quiet)
        come_back(purse)
        assert purse.ramping
        assert let_through(purse, clock, 1) == FLOOR

    def test_reset_ends_it(self, purse):
        come_back(purse)
        purse.reset()
        assert not purse.ramping

    @given(
        rate=st.integers(1, 500),
        outage=st.sampled_from([1.0, 1.5, 10.0, 40.0]),
        phase=st.floats(0, 0.99),
    )
    def test_the_first_second_is_no_herd(self, rate, outage, phase):
        clock = FakeClock()
        purse = LastResort(clock)
        clock.tick(phase)
        for _ in range(int(outage * rate)):
            purse.seen()
            clock.tick(1 / rate)
        come_back(purse)
        first_second = let_through(purse, clock, 1)
        assert first_second <= max(2 * rate, FLOOR)
        if rate > 5 and outage >= 1.5:
            assert first_second >= rate, "those who come meanwhile must not queue up for ever"

    def test_requests_of_long_ago_say_nothing_of_the_rate(self, purse, clock):
        for _ in range(500):
            purse.seen()
        clock.tick(2)
        come_back(purse)
        assert let_through(purse, clock, 1) == FLOOR

    @pytest.mark.parametrize("quiet", [2.0, 2.5])
    def test_a_second_without_any_is_not_hidden_by_the_one_before(self, purse, clock, quiet):
        for _ in range(500):
            purse.seen()
        clock.tick(quiet)
        purse.seen()
        come_back(purse)
        assert let_through(purse, clock, 1) == FLOOR

    def test_the_busier_of_the_last_two_seconds_counts(self, purse, clock):
        for _ in range(40):
            purse.seen()
        clock.tick(1)
        purse.seen()
        come_back(purse)
        assert let_through(purse, clock, 1) == 60

    @given(st.floats(0, 10**6), st.integers(1, 500))
    def test_a_wait_is_long_enough_to_move_the_clock(self, start, arrivals):
        clock = FakeClock(start)
        purse = LastResort(clock)
        for _ in range(arrivals):
            purse.seen()
        come_back(purse)
        for _ in range(20):
            purse.begin(closed=True)
            looks = 0
            while (wait := purse.ramp_wait()) > 0:
                before, looks = clock.now(), looks + 1
                clock.tick(wait)
                assert clock.now() > before
            assert looks <= 3, "the pace may double meanwhile"
