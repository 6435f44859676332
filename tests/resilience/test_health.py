"""How well a provider works: what is usual for it, whether it hangs, and whether it is degraded."""

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aigateway.resilience.health import (
    QUICK,
    RUN,
    HealthPolicy,
    HealthWindow,
    ResponseTimes,
)
from aigateway.resilience.local_faults import StallDetector
from aigateway.testing import FakeClock
from tests.resilience.guarding import (
    Heard,
    answered,
    failed,
    misconfigured,
    neutral,
    throttled,
)

HANG, STALE = 4.0, 60.0


def succeed(pace, seconds, *, slow=False):
    """A call that goes out and is answered; what it took is what it says."""
    call = pace.begin()
    pace.succeeded(call, seconds, slow=slow)
    pace.ended(call)


def known(clock, threshold=3, *, seconds=1.0):
    """A pace that knows 20 latencies, all the same."""
    pace = ResponseTimes(clock, threshold)
    for _ in range(20):
        succeed(pace, seconds)
    return pace


def begun(pace, stalls):
    """A call that goes out where stalls of the event loop are watched."""
    stalls.begin()
    return pace.begin(stalls)


class TestPercentile:
    def test_nothing_is_said_of_few(self, clock):
        pace = ResponseTimes(clock, 5)
        for _ in range(19):
            succeed(pace, 1.0)
        assert (pace.p95, pace.usual, pace.samples) == (None, None, 19)
        succeed(pace, 1.0)
        assert (pace.p95, pace.samples) == (1.0, 20)
        assert pace.usual == 0.99, "an answer as quick as usual does not raise it"

    @given(st.lists(st.floats(0, 100), min_size=20, max_size=400))
    def test_it_is_the_percentile_of_the_latest_but_a_few(self, values):
        pace = ResponseTimes(FakeClock(), 5)
        for value in values:
            succeed(pace, value)
        possible = []
        for end in range(max(20, len(values) - 16), len(values) + 1):
            window = sorted(values[max(0, end - 128) : end])
            possible.append(window[-(-95 * len(window) // 100) - 1])
        assert pace.p95 in possible
        assert pace.samples == min(128, len(values))

    def test_it_forgets(self, clock):
        pace = ResponseTimes(clock, 5)
        for _ in range(128):
            succeed(pace, 10.0)
        for _ in range(128 + 16):
            succeed(pace, 1.0)
        assert (pace.p95, pace.samples) == (1.0, 128)

    def test_it_is_computed_again_after_sixteen(self, clock):
        pace = known(clock)
        for _ in range(15):
            succeed(pace, 9.0)
        assert pace.p95 == 1.0
        succeed(pace, 9.0)
        assert pace.p95 == 9.0


class TestRestored:
    """What an earlier process has learned."""

    def restored(self, clock):
        clock.tick(100)
        pace = ResponseTimes(clock, 1)
        pace.restore(1.0, 2.0)
        return pace

    def test_it_judges_nothing_in_the_first_ten_seconds(self, clock):
        pace = self.restored(clock)
        pace.begin()
        clock.tick(9.9)
        assert not pace.is_slow(60.0, 5.0)
        assert not pace.seems_to_hang()
        clock.tick(0.1)
        assert pace.is_slow(60.0, 5.0)
        assert pace.seems_to_hang(), "ten seconds are more than four times two"

    def test_own_latencies_replace_it(self, clock):
        pace = self.restored(clock)
        for _ in range(19):
            succeed(pace, 0.1)
        assert (pace.p95, pace.samples) == (2.0, 19)
        succeed(pace, 0.1)
        assert pace.p95 == 0.1
        assert pace.usual == pytest.approx(0.1, rel=0.011)
        assert pace.is_slow(1.0, 5.0), "what it has learned itself it judges by at once"
        for _ in range(20):
            succeed(pace, 3.0)
        assert pace.usual == pytest.approx(0.1, rel=0.011), "once"

    def test_what_a_process_has_learned_itself_stays(self, clock):
        pace = known(clock)
        usual = pace.usual
        pace.restore(50.0, 60.0)
        assert (pace.usual, pace.p95) == (usual, 1.0)
        assert pace.is_slow(6.0, 5.0)


class TestUsual:
    def test_it_begins_as_the_median_of_the_first_twenty(self, clock):
        pace: Any = ResponseTimes(clock, 5)
        for i in range(20):
            succeed(pace, 100.0 if i < 9 else float(i))
        assert pace.usual == pytest.approx(19.0, rel=0.011)
        for _ in range(30):
            succeed(pace, 1.0)
        assert pace.usual == pytest.approx(19.0, rel=0.011), "and does not jump later"

    @given(
        st.lists(
            st.tuples(st.sampled_from([0.0, 0.05, 0.5, 1.0, 60.0]), st.floats(0, 1000)),
            min_size=1,
            max_size=100,
        )
    )
    def test_it_moves_one_percent_a_second_at_most(self, script):
        clock = FakeClock()
        pace = known(clock)
        moved_at = -math.inf
        for pause, seconds in script:
            clock.tick(pause)
            before = pace.usual
            succeed(pace, seconds)
            change = pace.usual / before
            if change != 1.0:
                assert clock.now() - moved_at >= 1.0
                moved_at = clock.now()
                assert change == pytest.approx(1.01 if seconds > before else 0.99)

    def test_one_that_stays_twenty_times_slower_is_usual_after_five_minutes(self, clock):
        pace = known(clock, seconds=0.1)
        for second in range(330):
            slow = pace.is_slow(2.0, 5.0)
            assert slow or second > 100, "not after seconds"
            for _ in range(20):
                clock.tick(0.05)
                succeed(pace, 2.0)
        assert pace.usual == pytest.approx(2.0, rel=0.05)

    def test_it_follows_back_down(self, clock):
        pace = known(clock, seconds=2.0)
        for _ in range(400):
            clock.tick(1)
            succeed(pace, 0.1)
        assert pace.usual == pytest.approx(0.1, rel=0.05)

    @pytest.mark.parametrize(
        ("usual", "seconds", "slow"),
        [
            (1.0, 5.0, False),
            (1.0, 5.01, True),
            (0.001, 0.05, False),  # fifty times, but by nothing that a caller would feel
            (0.001, 0.001 + 0.1, False),
            (0.001, 0.102, True),
            (0.02, 0.13, True),
        ],
    )
    def test_slow_is_several_times_the_usual_and_a_tenth_of_a_second(
        self, clock, usual, seconds, slow
    ):
        pace = known(clock)
        pace.usual = usual
        assert pace.is_slow(seconds, HealthPolicy().latency) is slow

    def test_nothing_is_slow_before_the_usual_is_known(self, clock):
        assert not ResponseTimes(clock, 5).is_slow(10**6, 5.0)


class TestHang:
    @pytest.mark.parametrize("threshold", [1, 2, 5])
    def test_one_overdue_call_less_than_the_threshold_is_none(self, clock, threshold):
        pace = known(clock, threshold)
        clock.tick(1)
        for _ in range(threshold - 1):
            pace.begin()
        clock.tick(HANG + 0.1)
        young = [pace.begin() for _ in range(threshold)]
        assert not pace.seems_to_hang(), "many are out, but too few of them overdue"
        clock.tick(HANG + 0.1)
        assert pace.seems_to_hang()
        for call in young:
            pace.ended(call)
        assert not pace.seems_to_hang(), "what has ended is not out"

    def test_a_pause_that_no_caller_would_feel_is_none(self, clock):
        pace = known(clock, 2, seconds=0.002)
        clock.tick(1)
        for _ in range(2):
            pace.begin()
        clock.tick(0.1)
        assert not pace.seems_to_hang(), "fifty times as long as usual, but a tenth of a second"
        clock.tick(0.01)
        assert pace.seems_to_hang()

    async def test_a_stall_of_our_own_makes_no_hang(self, clock):
        stalls = StallDetector(clock, lambda _: None)
        pace = known(clock, 2, seconds=0.02)
        clock.tick(1)
        for _ in range(2):
            begun(pace, stalls)
        clock.tick(10)
        assert not pace.seems_to_hang(), "no answer could be read meanwhile"
        await clock.advance(0.05)
        assert not pace.seems_to_hang()
        await clock.advance(0.35)
        assert pace.seems_to_hang(), "as much time has passed in which there could"
        stalls.stop()

    def test_a_stall_that_just_explains_it_makes_no_hang(self, clock):
        class Stood(StallDetector):
            def stalled(self, since, now):
                return 2.0

        clock.tick(100)
        pace = known(clock, 1)
        call = pace.begin(Stood(clock, lambda _: None))
        clock.tick(10)
        pace.p95 = (clock.now() - (call.began + call.stalled(clock.now()))) / HANG
        assert not pace.seems_to_hang()
        clock.tick(0.1)
        assert pace.seems_to_hang()

    def test_without_a_percentile_nothing_is_overdue(self, clock):
        pace = ResponseTimes(clock, 1)
        pace.begin()
        clock.tick(10**6)
        assert not pace.seems_to_hang()

    def test_a_success_speaks_for_all_that_began_before_it(self, clock):
        pace = known(clock, 2)
        clock.tick(1)
        first, *_ = [pace.begin() for _ in range(3)]
        clock.tick(0.5)
        pace.succeeded(first, 0.5)
        clock.tick(100)
        assert not pace.seems_to_hang(), "long answers and no traffic are no hang"
        for _ in range(2):
            pace.begin()
        clock.tick(HANG + 0.1)
        assert pace.seems_to_hang()

    def test_a_call_that_brought_something_may_end_later(self, clock):
        pace = known(clock)
        call = pace.begin()
        pace.succeeded(call, 1.0)
        pace.ended(call)

    def test_a_slow_answer_speaks_for_itself_alone(self, clock):
        pace = known(clock, 3)
        clock.tick(1)
        first, second, *_ = [pace.begin() for _ in range(4)]
        clock.tick(HANG + 0.1)
        pace.succeeded(first, HANG + 0.1, slow=True)
        assert pace.seems_to_hang(), "three others are as overdue as before"
        pace.succeeded(second, HANG + 0.1, slow=True)
        assert not pace.seems_to_hang(), "but those that are back are not out"

    def test_a_slow_answer_counts_among_the_latencies(self, clock):
        pace = known(clock)
        usual = pace.usual
        assert usual is not None
        clock.tick(1)
        for _ in range(16):
            succeed(pace, 30.0, slow=True)
        assert (pace.samples, pace.p95) == (36, 30.0)
        assert pace.usual == pytest.approx(usual * 1.0005)

    def test_a_quick_answer_after_a_slow_one_speaks_for_all(self, clock):
        pace = known(clock, 2)
        clock.tick(1)
        first, second, *_ = [pace.begin() for _ in range(5)]
        clock.tick(HANG + 0.1)
        pace.succeeded(first, HANG + 0.1, slow=True)
        pace.succeeded(second, 1.0)
        assert not pace.seems_to_hang()


class TestOutrun:
    """Calls that were cancelled because another provider was quicker."""

    def lost(self, pace, clock, verdicts, seconds=30.0):
        pace.hedge_lost(pace.begin(), clock.now() + seconds, verdicts.append)

    def test_they_count_as_out_until_their_time_and_then_as_failed(self, clock):
        pace = known(clock, 2)
        clock.tick(1)
        verdicts: list[bool] = []
        for _ in range(2):
            self.lost(pace, clock, verdicts)
        clock.tick(HANG + 0.1)
        assert pace.seems_to_hang()
        assert verdicts == []
        clock.tick(30)
        assert not pace.seems_to_hang()
        assert verdicts == [True, True]

    async def test_a_stall_of_our_own_puts_off_their_time(self, clock):
        stalls = StallDetector(clock, lambda _: None)
        pace = known(clock, 2)
        clock.tick(1)
        verdicts: list[bool] = []
        pace.hedge_lost(begun(pace, stalls), clock.now() + 3, verdicts.append)
        await clock.advance(1)
        clock.tick(10)
        for seconds, settled in [(0, []), (1.5, []), (0.5, [True])]:
            await clock.advance(seconds)
            pace.seems_to_hang()
            assert verdicts == settled
        stalls.stop()

    @pytest.mark.parametrize("end", ["succeeded", "succeeded slowly", "close"])
    def test_what_is_settled_early_is_no_fault_and_settled_once(self, clock, end):
        pace = known(clock, 2)
        clock.tick(1)
        verdicts: list[bool] = []
        self.lost(pace, clock, verdicts)
        if end == "close":
            pace.close()
        else:
            succeed(pace, 1.0, slow=end == "succeeded slowly")
        assert verdicts == [False]
        clock.tick(60)
        pace.seems_to_hang()
        pace.close()
        assert verdicts == [False]

    @pytest.mark.parametrize("seconds", [0, 1])
    @pytest.mark.parametrize("slow", [False, True])
    def test_an_answer_since_it_began_settles_it_at_once(self, clock, slow, seconds):
        pace = known(clock)
        call = pace.begin()
        clock.tick(seconds)
        succeed(pace, 1.0, slow=slow)
        verdicts: list[bool] = []
        pace.hedge_lost(call, clock.now() + 30, verdicts.append)
        assert verdicts == [False]

    @pytest.mark.parametrize(("late", "failed"), [(STALE, True), (STALE + 0.1, False)])
    def test_a_verdict_that_comes_too_late_is_none(self, clock, late, failed):
        pace = known(clock)
        clock.tick(1)
        verdicts: list[bool] = []
        self.lost(pace, clock, verdicts, 1.0)
        clock.tick(1 + late)
        pace.seems_to_hang()
        assert verdicts == [failed]

    def test_the_first_of_all_calls_may_lose(self, clock):
        pace = ResponseTimes(clock, 1)
        verdicts: list[bool] = []
        self.lost(pace, clock, verdicts, 1.0)
        assert verdicts == []
        clock.tick(1)
        pace.seems_to_hang()
        assert verdicts == [True]

    def test_each_is_due_at_its_own_time(self, clock):
        pace = known(clock)
        clock.tick(1)
        verdicts: list[bool] = []
        for seconds in (1.0, 2.0, 10.0):
            self.lost(pace, clock, verdicts, seconds)
        for due in (1, 2):
            clock.tick(1)
            pace.seems_to_hang()
            assert verdicts == [True] * due

    def test_a_verdict_may_call_back(self, clock):
        pace = known(clock)
        clock.tick(1)
        verdicts: list[bool] = []

        def settle(failed):
            verdicts.append(failed)
            pace.seems_to_hang()

        for _ in range(3):
            pace.hedge_lost(pace.begin(), clock.now() + 1, settle)
        clock.tick(2)
        pace.seems_to_hang()
        assert verdicts == [True] * 3
        assert not pace.hedges_lost

    def test_a_verdict_may_end_all_others(self, clock):
        pace = known(clock)
        clock.tick(1)
        verdicts: list[bool] = []

        def settle(failed):
            verdicts.append(failed)
            pace.close()

        for _ in range(3):
            pace.hedge_lost(pace.begin(), clock.now() + 1, settle)
        clock.tick(2)
        pace.seems_to_hang()
        assert verdicts == [True, False, False]

    def test_what_is_abandoned_is_no_fault_and_no_longer_out(self, clock):
        pace = known(clock, 1)
        clock.tick(1)
        verdicts: list[bool] = []
        self.lost(pace, clock, verdicts)
        pace.begin()
        pace.abandon()
        clock.tick(HANG + 0.1)
        assert not pace.seems_to_hang()
        assert verdicts == [False]


class HangMachine(RuleBasedStateMachine):
    """The pace against the rules, written down naively."""

    THRESHOLD, P95 = 3, 1.0

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.pace = known(self.clock, self.THRESHOLD, seconds=self.P95)
        self.out = []
        self.virtual = []  # [began, until, verdicts]
        self.last_success = self.clock.now()
        self.cleared = self.last_success  # by an answer that was not slow
        self.verdicts = []

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.9, 4.1, 10.0]))
    def wait(self, seconds):
        self.clock.tick(seconds)

    @rule()
    def begin(self):
        self.clock.tick(0.001)
        self.out.append((self.clock.now(), self.pace.begin()))

    @rule(which=st.integers(0, 100))
    def fail(self, which):
        if self.out:
            self.pace.ended(self.out.pop(which % len(self.out))[1])

    @rule(which=st.integers(0, 100), slow=st.booleans())
    def succeed(self, which, slow):
        if self.out:
            _, call = self.out.pop(which % len(self.out))
            self.pace.succeeded(call, self.P95, slow=slow)
            self.pace.ended(call)
            self.last_success = self.clock.now()
            if not slow:
                self.cleared = self.last_success
            assert all(verdicts == [False] for _, _, verdicts in self.virtual)
            self.virtual = []

    @rule(which=st.integers(0, 100), more=st.sampled_from([0.5, 5.0, 20.0]))
    def lose(self, which, more):
        if self.out:
            began, call = self.out.pop(which % len(self.out))
            verdicts: list[bool] = []
            until = self.clock.now() + more
            self.pace.hedge_lost(call, until, verdicts.append)
            self.verdicts.append(verdicts)
            if self.last_success >= began:
                assert verdicts == [False]
            else:
                assert verdicts == []
                self.virtual.append((began, until, verdicts))

    @rule()
    def look(self):
        now = self.clock.now()
        suspected = self.pace.seems_to_hang()
        for _, until, verdicts in self.virtual:
            assert verdicts == ([now - until <= STALE] if until <= now else [])
        self.virtual = [entry for entry in self.virtual if entry[1] > now]
        began = sorted([b for b, _ in self.out] + [b for b, _, _ in self.virtual])
        overdue = sum(self.cleared < b < now - HANG * self.P95 for b in began)
        assert suspected == (overdue >= self.THRESHOLD)

    @invariant()
    def each_is_judged_at_most_once(self):
        assert all(len(verdicts) <= 1 for verdicts in self.verdicts)

    def teardown(self):
        self.pace.close()
        assert all(len(verdicts) == 1 for verdicts in self.verdicts)


TestHangMachine = HangMachine.TestCase


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def health(clock, heard):
    return HealthWindow(clock, HealthPolicy(), heard)


def feed(health, clock, outcomes, pause=0.0, *, slow=False):
    for item in outcomes:
        health.end(item, slow=slow)
        clock.tick(pause)


def goods(count):
    return [answered() for _ in range(count)]


def bads(count):
    return [failed() for _ in range(count)]


class TestErrorRate:
    def test_half_of_twenty_in_half_a_minute(self, health, clock, heard):
        feed(health, clock, goods(10) + bads(9), pause=1.0)
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()
        assert health.degraded == "errors"
        assert heard.events == [("degraded", "errors", 0.5)]

    def test_less_than_half_is_not_enough(self, health, clock):
        for _ in range(200):
            feed(health, clock, [answered(), failed(), answered(), failed(), answered()], pause=0.2)
            assert not health.is_degraded()

    def test_nineteen_say_nothing(self, health, clock):
        feed(health, clock, bads(19), pause=1.5)
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()

    def test_what_is_older_than_the_window_does_not_count(self, health, clock):
        feed(health, clock, bads(9), pause=1.0)
        clock.tick(30)
        feed(health, clock, bads(9), pause=1.0)
        assert not health.is_degraded()

    def test_ten_in_five_seconds_are_enough(self, health, clock):
        """A provider of a hundred good answers breaks: the recent view does not wait for them."""
        feed(health, clock, goods(100), pause=0.1)
        clock.tick(5)
        feed(health, clock, bads(9), pause=0.1)
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()

    @pytest.mark.parametrize("how", [neutral, throttled, misconfigured])
    def test_what_says_nothing_of_its_health_does_not_count(self, health, clock, how):
        feed(health, clock, bads(9))
        feed(health, clock, [how() for _ in range(100)])
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()

    def test_one_request_counts_once_in_a_window(self, health, clock):
        feed(health, clock, [failed("the same") for _ in range(100)], pause=0.2)
        assert not health.is_degraded()
        clock.tick(30)
        feed(health, clock, [*bads(9), failed("the same")])
        assert health.is_degraded(), "in the next window it counts again"

    def test_a_window_later_it_counts_again(self, clock, heard):
        health = HealthWindow(clock, HealthPolicy(least=2, errors=1.0), heard)
        feed(health, clock, [failed("the same")], pause=30.0)
        feed(health, clock, bads(1))
        assert not health.is_degraded()
        feed(health, clock, [failed("the same")])
        assert health.is_degraded()

    @pytest.mark.parametrize("later", [0.5, 0.7])
    def test_what_is_older_than_the_window_counts_no_longer(self, clock, heard, later):
        health = HealthWindow(clock, HealthPolicy(least=2, errors=0.6), heard)
        feed(health, clock, bads(1), pause=29.5)
        feed(health, clock, goods(1), pause=later)
        feed(health, clock, bads(1))
        assert not health.is_degraded(), "one of two in the last thirty seconds"

    def test_a_healthy_one_without_requests_does_not_recover(self, health, clock, heard):
        feed(health, clock, goods(1))
        clock.tick(31)
        assert not health.is_degraded()
        assert heard.events == []

    def test_repeats_of_a_few_bad_requests_do_not_degrade_amid_good_ones(self, health, clock):
        for _ in range(300):
            feed(health, clock, [answered(), failed("x"), failed("y"), failed("z")], pause=0.1)
        assert not health.is_degraded()

    def test_what_has_no_cause_always_counts(self, health, clock):
        blank = failed()
        blank.cause = lambda: None
        feed(health, clock, [blank] * 10)
        assert health.is_degraded()

    def test_the_digest_of_a_good_answer_is_not_asked_for(self, health, clock):
        good = answered()
        good.cause = lambda: 1 // 0
        feed(health, clock, [good] * 50)

    @pytest.mark.parametrize(
        ("outcome", "slow", "answered"),
        [(answered, False, True), (answered, True, True), (failed, False, False)],
    )
    def test_an_answer_counts_for_the_window(self, health, clock, outcome, slow, answered):
        assert not health.has_answered()
        health.end(outcome(), slow=slow)
        assert health.has_answered() is answered
        clock.tick(30.9)
        assert health.has_answered() is answered
        clock.tick(0.1)
        assert not health.has_answered()

    def test_memory_is_bounded(self, clock, heard):
        health = HealthWindow(clock, HealthPolicy(errors=1.0), heard)
        for _ in range(100):
            feed(health, clock, bads(100) + goods(1), pause=0.001)
        assert len(health._causes) == 4096
        feed(health, clock, goods(100), pause=1.0)
        assert len(health._seconds) <= 31

    def test_its_numbers_are_the_policys(self, clock, heard):
        policy = HealthPolicy(window=10, least=4, errors=0.25)
        health = HealthWindow(clock, policy, heard)
        feed(health, clock, goods(3), pause=3.0)
        feed(health, clock, bads(1))
        assert health.is_degraded()

    @given(st.integers(0, 10**6))
    def test_a_rate_of_a_tenth_is_left_alone(self, seed):
        luck, clock, heard = random.Random(seed), FakeClock(), Heard()
        health = HealthWindow(clock, HealthPolicy(), heard)
        for _ in range(400):
            feed(health, clock, [failed() if luck.random() < 0.1 else answered()], pause=0.05)
        degraded = sum(event[0] == "degraded" for event in heard.events)
        assert degraded <= 2, "but for a bad start, when few are known"


class TestLatency:
    def test_most_answers_slow(self, health, clock, heard):
        feed(health, clock, goods(10), pause=1.0)
        feed(health, clock, goods(10), pause=1.0, slow=True)
        assert not health.is_degraded(), "the half is not most"
        feed(health, clock, goods(1), slow=True)
        assert health.degraded == "latency"
        assert heard.events == [("degraded", "latency", pytest.approx(11 / 21, abs=1e-6))]

    def test_failures_are_no_answers(self, health, clock):
        feed(health, clock, [*bads(8), *goods(6)], pause=1.0)
        feed(health, clock, goods(6), pause=1.0, slow=True)
        assert not health.is_degraded()
        feed(health, clock, goods(1), slow=True)
        assert health.degraded == "latency", "seven of thirteen answers"

    def test_repeats_of_one_slow_request_count_once(self, health, clock):
        slow = answered()
        feed(health, clock, [slow] * 100, slow=True)
        assert not health.is_degraded()

    def test_one_that_turns_twenty_times_slower_is_noticed_within_five_seconds(self, clock, heard):
        """At 20 requests a second, with answers of 20 ms that come to take 400 ms."""
        health, pace = HealthWindow(clock, HealthPolicy(), heard), ResponseTimes(clock, 5)
        policy = health.policy

        def serve(seconds):
            slow = pace.is_slow(seconds, policy.latency)
            succeed(pace, seconds, slow=slow)
            health.end(answered(seconds), slow=slow)
            clock.tick(0.05)

        for _ in range(1200):
            serve(0.02)
        assert heard.events == []
        began = clock.now()
        while not health.is_degraded():
            serve(0.4)
        assert clock.now() - began <= 5.0


class TestQuickView:
    """The last ten attempts, where they ended within five seconds: nine of them have to agree."""

    def mixed(self, health, clock, *, bad=0, slow=0, pause=0.1):
        """Ten attempts, good ones first: so the last one is judged with all ten in view."""
        feed(health, clock, goods(QUICK - bad - slow), pause=pause)
        feed(health, clock, bads(bad), pause=pause)
        feed(health, clock, goods(slow), pause=pause, slow=True)

    @pytest.mark.parametrize(
        ("bad", "slow", "verdict"),
        [
            (8, 0, None),
            (9, 0, ("errors", 0.9)),
            (10, 0, ("errors", 1.0)),
            (0, 8, None),
            (0, 9, ("latency", 0.9)),
            (0, 10, ("latency", 1.0)),
            (1, 9, ("latency", 0.9)),
            (9, 1, ("errors", 0.9)),
            (5, 5, None),
            (8, 2, None),
        ],
    )
    def test_nine_of_ten(self, health, clock, heard, bad, slow, verdict):
        self.mixed(health, clock, bad=bad, slow=slow)
        assert heard.events == ([] if verdict is None else [("degraded", *verdict)])
        assert health.degraded == (verdict and verdict[0])

    @pytest.mark.parametrize("kind", ["bad", "slow"])
    @pytest.mark.parametrize(("span", "quick"), [(4.9, True), (5.1, False)])
    def test_they_have_to_have_ended_within_five_seconds(self, health, clock, kind, span, quick):
        self.mixed(health, clock, pause=span / (QUICK - 1), **{kind: QUICK})
        assert health.is_degraded() is quick

    def test_five_seconds_are_within_five_seconds(self, health, clock):
        feed(health, clock, bads(1), pause=5.0)
        feed(health, clock, bads(8))
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()

    @pytest.mark.parametrize("slow", [False, True])
    def test_nine_say_nothing(self, health, clock, slow):
        feed(health, clock, goods(9) if slow else bads(9), slow=slow)
        assert not health.is_degraded()

    @pytest.mark.parametrize("rate", [20, 200])
    def test_a_busy_provider_that_breaks_is_noticed_at_the_ninth_failure(self, health, clock, rate):
        feed(health, clock, goods(30 * rate), pause=1 / rate)
        feed(health, clock, bads(8), pause=1 / rate)
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()

    @pytest.mark.parametrize(
        ("errors", "enough"), [(0.1, 9), (0.5, 9), (0.9, 9), (0.95, 10), (1.0, 10)]
    )
    def test_the_policys_share_counts_where_it_is_higher(self, clock, heard, errors, enough):
        for bad, degraded in [(enough - 1, False), (enough, True)]:
            health = HealthWindow(clock, HealthPolicy(errors=errors), heard)
            self.mixed(health, clock, bad=bad)
            assert health.is_degraded() is degraded

    def test_repeats_of_one_request_take_no_place_in_it(self, health, clock):
        feed(health, clock, bads(8))
        feed(health, clock, [failed("the same") for _ in range(5)])
        feed(health, clock, goods(1))
        feed(health, clock, [failed("the same")])
        assert not health.is_degraded(), "nine of ten, of which the last is good"
        feed(health, clock, bads(1))
        assert health.is_degraded()

    def test_after_a_recovery_it_begins_anew(self, health, clock):
        feed(health, clock, bads(QUICK))
        feed(health, clock, goods(RUN))
        feed(health, clock, bads(QUICK - 1))
        assert not health.is_degraded()
        feed(health, clock, bads(1))
        assert health.is_degraded()


class TestShortForm:
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["good", "good", "bad", "slow"]), st.sampled_from([0.1, 0.5])
            ),
            max_size=100,
        )
    )
    def test_it_counts_as_a_good_end_does(self, script):
        verdicts = []
        for short in (False, True):
            clock, heard = FakeClock(), Heard()
            health = HealthWindow(clock, HealthPolicy(), heard)
            seen = []
            for kind, pause in script:
                if short and kind == "good" and health.degraded is None:
                    health.good()
                else:
                    outcome = failed() if kind == "bad" else answered()
                    health.end(outcome, slow=kind == "slow")
                seen.append((health.is_degraded(), health.has_answered()))
                clock.tick(pause)
            verdicts.append((seen, heard.events))
        assert verdicts[0] == verdicts[1]

    def test_seconds_and_attempts_are_counted(self, health, clock):
        for _ in range(10):
            health.end(answered())
            clock.tick(0.5)
        for _ in range(10):
            health.good()
            clock.tick(0.5)
        assert [second.good for second in health._seconds] == [2] * 10
        feed(health, clock, bads(8))
        assert not health.is_degraded(), "two of the latest ten are good"
        feed(health, clock, bads(1))
        assert health.is_degraded()


class TestCanaries:
    @pytest.mark.parametrize(
        ("share", "draws", "canaries"), [(0.05, 10_000, 500), (0.25, 1000, 250), (1.0, 50, 50)]
    )
    def test_exactly_their_share(self, clock, heard, share, draws, canaries):
        health = HealthWindow(clock, HealthPolicy(canaries=share), heard)
        drawn = [health.draw_canary() for _ in range(draws)]
        assert abs(sum(drawn) - canaries) <= 1
        apart = round(1 / share)
        assert drawn.index(True) == apart - 1
        places = [i for i, canary in enumerate(drawn) if canary]
        assert all(
            later - earlier in {apart, apart + 1} for earlier, later in itertools.pairwise(places)
        ), "evenly"

    def test_none_where_none_is_wanted(self, clock, heard):
        health = HealthWindow(clock, HealthPolicy(canaries=0.0), heard)
        assert not any(health.draw_canary() for _ in range(1000))

    def test_the_first_comes_after_a_whole_share(self, health, clock):
        for _ in range(15):
            health.draw_canary()
        feed(health, clock, bads(10))
        assert not any(health.draw_canary() for _ in range(19)), "not saved from before"

    @pytest.mark.parametrize("slow", [False, True])
    def test_each_good_answer_doubles_their_share_until_the_next_bad_one(self, health, clock, slow):
        feed(health, clock, bads(10))
        for percent in (5, 10, 20, 40, 80, 100, 100):
            assert sum(health.draw_canary() for _ in range(100)) == pytest.approx(percent, abs=1)
            feed(health, clock, goods(1))
        feed(health, clock, goods(1) if slow else bads(1), slow=slow)
        assert sum(health.draw_canary() for _ in range(100)) == pytest.approx(5, abs=1)
        feed(health, clock, goods(10))
        feed(health, clock, bads(10))
        assert sum(health.draw_canary() for _ in range(100)) == pytest.approx(5, abs=1)


class TestRecovery:
    def degrade(self, health, clock):
        feed(health, clock, bads(10))
        assert health.is_degraded()

    def test_a_run_of_good_answers(self, health, clock, heard):
        self.degrade(health, clock)
        feed(health, clock, goods(9))
        assert health.is_degraded()
        feed(health, clock, goods(1))
        assert not health.is_degraded()
        assert heard.events[-1] == ("recovered",)

    def test_the_next_time_takes_as_many(self, health, clock):
        for _ in range(2):
            self.degrade(health, clock)
            feed(health, clock, goods(9))
            assert health.is_degraded()
            feed(health, clock, goods(1))
            assert not health.is_degraded()

    @pytest.mark.parametrize("slow", [False, True])
    def test_a_bad_one_or_a_slow_one_ends_the_run(self, health, clock, slow):
        self.degrade(health, clock)
        feed(health, clock, goods(RUN - 1))
        feed(health, clock, goods(1) if slow else bads(1), slow=slow)
        feed(health, clock, goods(RUN - 1))
        assert health.is_degraded()
        feed(health, clock, goods(1))
        assert not health.is_degraded()

    @pytest.mark.parametrize("how", [neutral, throttled, misconfigured])
    def test_what_says_nothing_neither_ends_nor_lengthens_it(self, health, clock, how):
        self.degrade(health, clock)
        feed(health, clock, goods(RUN - 1) + [how() for _ in range(9)])
        assert health.is_degraded()
        feed(health, clock, goods(1))
        assert not health.is_degraded()

    def test_the_window_begins_anew(self, health, clock):
        self.degrade(health, clock)
        feed(health, clock, goods(RUN))
        feed(health, clock, bads(RUN - 1))
        assert not health.is_degraded()

    def test_a_window_without_any_end(self, health, clock, heard):
        self.degrade(health, clock)
        clock.tick(30)
        assert health.is_degraded()
        clock.tick(0.5)
        assert not health.is_degraded()
        assert heard.events[-1] == ("recovered",)

    def test_any_end_keeps_it_from_being_forgotten(self, health, clock):
        self.degrade(health, clock)
        for _ in range(10):
            clock.tick(20)
            feed(health, clock, bads(1))
            assert health.is_degraded()

    def test_reset(self, health, clock):
        self.degrade(health, clock)
        health.reset()
        assert not health.is_degraded()
        feed(health, clock, bads(9))
        assert not health.is_degraded()

    @pytest.mark.parametrize(("rate", "within"), [(1, 45), (2, 25), (20, 5)])
    def test_with_canaries_alone_it_is_back_soon(self, health, clock, rate, within):
        self.degrade(health, clock)
        began = clock.now()
        while health.is_degraded():
            clock.tick(1 / rate)
            if health.draw_canary():
                feed(health, clock, goods(1))
        assert clock.now() - began <= within

    @pytest.mark.parametrize(("rate", "share", "most"), [(20, 0.3, 2), (20, 0.5, 1), (2, 0.5, 0)])
    def test_one_that_fails_at_random_does_not_flap(self, clock, heard, rate, share, most):
        """It is asked by each request while it is not degraded, and by canaries while it is."""
        health, luck = HealthWindow(clock, HealthPolicy(), heard), random.Random(1)
        for _ in range(600 * rate):
            clock.tick(1 / rate)
            if not health.is_degraded() or health.draw_canary():
                feed(health, clock, [failed() if luck.random() < share else answered()])
        assert heard.events.count(("recovered",)) <= most
