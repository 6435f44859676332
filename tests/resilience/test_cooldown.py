"""Rate limits and bad keys: what leaves a provider alone although it does not fail."""

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aigateway.errors import FailureKind
from aigateway.resilience.cooldown import Cooldown, CooldownPolicy, Disabling, DisablingPolicy
from aigateway.resilience.guard import NEVER
from aigateway.testing import FakeClock
from tests.resilience.guarding import Heard, answered, failed, misconfigured, neutral, throttled

K = FailureKind
DAY = 86_400.0
CERTAIN = misconfigured(certain=True)


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def cooldown(clock, heard):
    return Cooldown(clock, CooldownPolicy(), heard)


@pytest.fixture
def setup(clock, heard):
    return Disabling(clock, DisablingPolicy(), heard)


def attempt(guard, outcome):
    """One attempt that nothing keeps from beginning."""
    assert guard.refusal() is None
    guard.end(guard.begin(), outcome)


def wait_of(guard):
    """How long a guard keeps requests away now."""
    refusal = guard.refusal()
    assert refusal is not None
    return refusal.retry_after


class Stopped(FakeClock):
    def now(self):
        raise AssertionError("each request passes here")


class TestCooldown:
    def test_as_long_as_the_vendor_asks(self, cooldown, clock, heard):
        attempt(cooldown, throttled(7.5))
        assert heard.events == [("cooled down", 7.5)]
        refusal = cooldown.refusal()
        assert refusal.kind is K.COOLING_DOWN
        assert refusal.retry_after == pytest.approx(7.5)
        assert refusal.last_resort == NEVER
        clock.tick(7.5)
        assert cooldown.refusal() is None

    @pytest.mark.parametrize(("first", "second"), [(10, 2), (2, 10), (10, None), (10, 0)])
    def test_the_longest_wish_counts(self, cooldown, heard, first, second):
        tokens = [cooldown.begin(), cooldown.begin()]
        cooldown.end(tokens[0], throttled(first))
        cooldown.end(tokens[1], throttled(second))
        assert cooldown.refusal().retry_after == pytest.approx(10)
        assert heard.events[-1] == ("cooled down", 10)

    def test_without_a_wish_it_doubles_and_an_answer_resets_it(self, cooldown, clock):
        waits = []
        for _ in range(8):
            attempt(cooldown, throttled())
            waits.append(round(cooldown.refusal().retry_after, 6))
            clock.tick(waits[-1])
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
        attempt(cooldown, answered())
        attempt(cooldown, throttled())
        assert cooldown.refusal().retry_after == pytest.approx(1)

    def test_one_with_a_wish_is_one_of_the_row(self, cooldown, clock):
        attempt(cooldown, throttled(3))
        clock.tick(3)
        attempt(cooldown, throttled())
        assert cooldown.refusal().retry_after == pytest.approx(2)

    @pytest.mark.parametrize("how", [failed, neutral, misconfigured])
    def test_only_an_answer_ends_the_row(self, cooldown, clock, how):
        attempt(cooldown, throttled())
        clock.tick(1)
        attempt(cooldown, how())
        assert cooldown.refusal() is None
        attempt(cooldown, throttled())
        assert cooldown.refusal().retry_after == pytest.approx(2)

    def test_calls_that_were_out_together_count_once(self, cooldown, clock):
        tokens = [cooldown.begin() for _ in range(20)]
        for token in tokens:
            cooldown.end(token, throttled())
        assert cooldown.refusal().retry_after == pytest.approx(1)
        clock.tick(1)
        attempt(cooldown, throttled())
        assert cooldown.refusal().retry_after == pytest.approx(2)

    def test_a_refusal_in_the_moment_of_its_end_begins_the_next_of_the_row(self, cooldown, clock):
        tokens = [cooldown.begin(), cooldown.begin()]
        cooldown.end(tokens[0], throttled())
        clock.tick(1)
        cooldown.end(tokens[1], throttled())
        assert cooldown.refusal().retry_after == pytest.approx(2)

    def test_survives_ten_thousand_in_a_row(self, cooldown, clock):
        for _ in range(10_000):
            attempt(cooldown, throttled())
            clock.tick(60)
        assert math.isfinite(cooldown.until)

    def test_a_failure_cools_down_only_if_the_vendor_says_how_long(self, cooldown):
        attempt(cooldown, failed())
        assert cooldown.refusal() is None
        attempt(cooldown, failed(retry_after=9))
        assert cooldown.refusal().retry_after == pytest.approx(9)

    @pytest.mark.parametrize("how", [answered, neutral, misconfigured])
    def test_no_other_end_cools_down_even_if_it_comes_with_a_time(self, cooldown, how):
        end = how()
        end.retry_after = 9
        attempt(cooldown, end)
        assert cooldown.refusal() is None

    def test_what_the_vendors_own_limits_say_counts_without_a_refusal(self, cooldown):
        cooldown.throttle(4)
        assert cooldown.refusal().retry_after == pytest.approx(4)

    def test_the_wall_clock_moves_nothing(self, cooldown, clock):
        attempt(cooldown, throttled(10))
        clock.set_wall(0)
        assert cooldown.refusal().retry_after == pytest.approx(10)

    def test_reset_ends_it_and_forgets_the_row(self, cooldown):
        attempt(cooldown, throttled(DAY))
        cooldown.reset()
        assert cooldown.refusal() is None
        tokens = [cooldown.begin(), cooldown.begin()]
        assert cooldown.refusal() is None, "no trial"
        cooldown.end(tokens[0], throttled())
        assert cooldown.refusal().retry_after == pytest.approx(1)

    def test_where_there_was_none_it_does_not_look_at_the_clock(self, heard):
        cooldown = Cooldown(Stopped(), CooldownPolicy(), heard)
        attempt(cooldown, answered())

    def test_an_attempt_that_begins_all_the_same_does_not_end_it(self, cooldown):
        cooldown.throttle(5)
        cooldown.begin()
        assert cooldown.refusal().retry_after == pytest.approx(5)

    def test_it_is_quiet_until_it_begins_and_again_once_an_answer_followed_it(
        self, cooldown, clock
    ):
        assert cooldown.quiet
        cooldown.throttle(5)
        cooldown.end(cooldown.begin(), answered())
        assert not cooldown.quiet, "it is on"
        clock.tick(5)
        token = cooldown.begin()
        assert not cooldown.quiet, "its row is remembered"
        cooldown.end(token, neutral())
        assert not cooldown.quiet
        attempt(cooldown, answered())
        assert cooldown.quiet


class TestClamp:
    """A vendor that asks for a day is left alone for five minutes, and then tried."""

    def cut(self, cooldown, clock, retry_after=DAY):
        attempt(cooldown, throttled(retry_after))
        assert cooldown.refusal().retry_after == pytest.approx(300)
        clock.tick(300)

    @pytest.mark.parametrize(("wish", "trial"), [(299.9, False), (300, False), (300.1, True)])
    def test_only_what_was_cut_leads_to_trials(self, cooldown, clock, wish, trial):
        attempt(cooldown, throttled(wish))
        clock.tick(300)
        assert cooldown.refusal() is None
        cooldown.begin()
        assert (cooldown.refusal() is not None) is trial

    def test_one_attempt_at_a_time_is_let_through(self, cooldown, clock):
        self.cut(cooldown, clock)
        trial = cooldown.begin()
        refusal = cooldown.refusal()
        assert refusal.kind is K.COOLING_DOWN
        assert refusal.retry_after == pytest.approx(60), "its lease"
        cooldown.end(trial, neutral())
        assert cooldown.refusal() is None, "nothing was learned: the next one"
        cooldown.begin()
        assert cooldown.refusal() is not None, "again one at a time"

    @pytest.mark.parametrize("how", [answered, failed, misconfigured])
    def test_whatever_is_no_rate_limit_ends_it(self, cooldown, clock, how):
        self.cut(cooldown, clock)
        attempt(cooldown, how())
        for _ in range(3):
            cooldown.begin()
            assert cooldown.refusal() is None
        cooldown.end(cooldown.begin(), throttled())
        assert cooldown.refusal().retry_after == pytest.approx(1), "the row has ended"

    def test_the_next_rate_limit_begins_it_again(self, cooldown, clock):
        self.cut(cooldown, clock)
        for _ in range(3):
            attempt(cooldown, throttled(DAY))
            assert cooldown.refusal().retry_after == pytest.approx(300)
            clock.tick(300)
        attempt(cooldown, throttled(2))
        assert cooldown.refusal().retry_after == pytest.approx(2)
        clock.tick(2)
        cooldown.begin()
        assert cooldown.refusal() is not None, "still one at a time"

    def test_a_failure_that_says_how_long_begins_another(self, cooldown, clock):
        self.cut(cooldown, clock)
        attempt(cooldown, failed(retry_after=5))
        assert cooldown.refusal().retry_after == pytest.approx(5)
        clock.tick(5)
        cooldown.begin()
        assert cooldown.refusal() is None

    def test_an_answer_to_a_call_from_before_does_not_end_it(self, cooldown, clock):
        before = cooldown.begin()
        self.cut(cooldown, clock)
        cooldown.end(before, answered())
        cooldown.begin()
        assert cooldown.refusal() is not None

    def test_a_trial_that_never_comes_back_lets_the_next_one_go(self, cooldown, clock):
        self.cut(cooldown, clock)
        cooldown.begin()
        clock.tick(59.5)
        assert cooldown.refusal().retry_after == pytest.approx(0.5)
        clock.tick(0.5)
        assert cooldown.refusal() is None

    def test_a_trial_whose_loop_is_gone_lets_the_next_one_go(self, cooldown, clock):
        self.cut(cooldown, clock)
        cooldown.begin()
        cooldown.abandon()
        assert cooldown.refusal() is None

    def test_a_trial_that_is_answered_makes_it_quiet(self, cooldown, clock):
        self.cut(cooldown, clock)
        attempt(cooldown, answered())
        assert cooldown.quiet

    def test_a_trial_that_is_late_keeps_no_last_resort_back(self, cooldown, clock):
        self.cut(cooldown, clock)
        cooldown.begin()
        assert cooldown.refusal().pending
        assert cooldown.refusal().last_resort == pytest.approx(1.0)
        clock.tick(0.4)
        refusal = cooldown.refusal()
        assert refusal.pending
        assert refusal.last_resort == pytest.approx(0.6)
        clock.tick(0.6)
        assert cooldown.refusal().last_resort == 0
        cooldown.begin()  # the next trial
        assert cooldown.refusal().last_resort == pytest.approx(1.0)

    def test_a_failure_that_says_for_how_long_leaves_the_last_resort(self, cooldown, clock):
        attempt(cooldown, failed(retry_after=20.0))
        assert cooldown.failing
        assert cooldown.refusal().last_resort == 0
        last_resort = cooldown.begin()
        assert cooldown.refusal().retry_after == 20.0
        cooldown.end(last_resort, answered())
        assert cooldown.refusal() is None

    def test_a_rate_limit_beside_it_does_not(self, cooldown, clock):
        attempt(cooldown, failed(retry_after=20.0))
        cooldown.throttle(5.0)
        assert cooldown.refusal().last_resort == math.inf
        assert not cooldown.begin()
        assert not cooldown.failing

    def test_while_it_cools_down_there_is_no_last_resort(self, cooldown, clock):
        self.cut(cooldown, clock)
        trial = cooldown.begin()
        cooldown.throttle(20.0)
        assert cooldown.refusal().last_resort == math.inf
        assert not cooldown.refusal().pending
        cooldown.end(trial, throttled(retry_after=None))
        assert cooldown.refusal().last_resort == math.inf

    def test_a_failure_is_clamped_too(self, cooldown, clock):
        attempt(cooldown, failed(retry_after=DAY))
        assert cooldown.refusal().retry_after == pytest.approx(300)

    def test_its_length_is_the_policys(self, clock, heard):
        cooldown: Any = Cooldown(clock, CooldownPolicy(clamp=20, lease=3), heard)
        attempt(cooldown, throttled(21))
        assert wait_of(cooldown) == pytest.approx(20)
        clock.tick(20)
        cooldown.begin()
        assert wait_of(cooldown) == pytest.approx(3)


class CooldownMachine(RuleBasedStateMachine):
    """Whatever comes back in whatever order: no cooldown is cut short, none is endless."""

    CLAMP, LEASE = 50.0, 7.0

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        policy = CooldownPolicy(longest=20.0, clamp=self.CLAMP, lease=self.LEASE)
        self.cooldown = Cooldown(self.clock, policy, Heard())
        self.out = []  # [token, when it began]
        self.least_until = -math.inf
        self.cut = False
        self.trial_out_until = -math.inf

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 20.0, 50.0]))
    def wait(self, seconds):
        self.clock.tick(seconds)

    @precondition(lambda self: self.cooldown.refusal() is None)
    @rule()
    def begin(self):
        now = self.clock.now()
        assert now >= self.least_until
        assert not self.cut or now >= self.trial_out_until, "two trials at once"
        token = self.cooldown.begin()
        assert token is self.cut
        if token:
            self.trial_out_until = now + self.LEASE
        self.out.append(token)

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 100),
        how=st.sampled_from([answered, failed, neutral, misconfigured, throttled]),
        wish=st.sampled_from([None, 0.0, 5.0, 50.0, 51.0, DAY]),
    )
    def end(self, which, how, wish):
        trial = self.out.pop(which % len(self.out))
        wishes = how in {failed, throttled}
        outcome = how(retry_after=wish) if wishes else how()
        self.cooldown.end(trial, outcome)
        if trial:
            self.trial_out_until = -math.inf
            if how in {answered, failed, misconfigured}:
                self.cut, self.least_until = False, -math.inf
        if wishes and wish is not None:
            self.cut = self.cut or wish > self.CLAMP
            end = self.clock.now() + min(wish, self.CLAMP)
            self.least_until = max(self.least_until, end)

    @invariant()
    def it_is_neither_shortened_nor_endless(self):
        refusal, now = self.cooldown.refusal(), self.clock.now()
        if refusal is None:
            assert now >= self.least_until
        else:
            assert 0 < refusal.retry_after <= self.CLAMP
            assert now + refusal.retry_after >= self.least_until - 1e-6


TestCooldownMachine = CooldownMachine.TestCase
TestCooldownMachine.settings = settings(stateful_step_count=40)


class TestEvidence:
    """What it takes to disable a provider."""

    def test_the_vendors_own_word_is_enough(self, setup, heard):
        attempt(setup, misconfigured(kind=K.NO_CREDIT, certain=True))
        assert setup.reason is K.NO_CREDIT
        assert heard.events == [("disabled", K.NO_CREDIT, 401, 300)]
        refusal = setup.refusal()
        assert (refusal.kind, refusal.retry_after) == (K.DISABLED, pytest.approx(300))

    def test_one_request_is_not_however_often_it_is_repeated(self, setup, clock):
        for _ in range(50):
            attempt(setup, misconfigured("the same"))
            clock.tick(1000)
        assert setup.reason is None

    def test_the_same_refusal_of_a_second_request_is(self, setup):
        attempt(setup, misconfigured("one"))
        attempt(setup, misconfigured("another"))
        assert setup.reason is K.AUTHENTICATION

    @pytest.mark.parametrize("kind", [K.PERMISSION, K.MODEL_NOT_FOUND])
    def test_of_a_provider_that_answers_it_takes_five_that_may_be_the_requests_own(
        self, setup, heard, kind
    ):
        for cause in range(4):
            setup.end(setup.begin(), misconfigured(cause, kind), proven=True)
        assert setup.reason is None
        setup.end(setup.begin(), misconfigured(4, kind), proven=True)
        assert setup.reason is kind
        setup.end(-math.inf, answered())  # to a call from before
        assert setup.reason is None
        assert heard.events[-1] == ("enabled",)

    def test_what_is_certain_is_not_taken_back_by_a_call_from_before(self, setup):
        before = [setup.begin() for _ in range(3)]
        setup.end(before[0], misconfigured("one", K.PERMISSION, certain=True))
        setup.end(before[1], misconfigured("another", K.PERMISSION))
        setup.end(before[2], answered())
        assert setup.reason is K.PERMISSION

    def test_two_different_refusals_are_not(self, setup):
        attempt(setup, misconfigured("one", K.AUTHENTICATION))
        attempt(setup, misconfigured("another", K.MODEL_NOT_FOUND))
        assert setup.reason is None
        attempt(setup, misconfigured("one", K.MODEL_NOT_FOUND))
        assert setup.reason is K.MODEL_NOT_FOUND

    def test_an_answer_between_clears_the_suspicion(self, setup):
        attempt(setup, misconfigured("one"))
        attempt(setup, answered())
        attempt(setup, misconfigured("another"))
        assert setup.reason is None
        attempt(setup, misconfigured("a third"))
        assert setup.reason is K.AUTHENTICATION

    @pytest.mark.parametrize("how", [failed, neutral, throttled])
    def test_nothing_else_does(self, setup, how):
        attempt(setup, misconfigured("one"))
        attempt(setup, how())
        attempt(setup, misconfigured("another"))
        assert setup.reason is K.AUTHENTICATION

    @pytest.mark.parametrize("how", [answered, failed, neutral, throttled])
    def test_nothing_else_disables(self, setup, heard, how):
        for _ in range(5):
            attempt(setup, how())
        assert setup.reason is None
        assert heard.events == []

    def test_only_a_doubtful_refusal_asks_for_the_digest(self, setup):
        def digest():
            raise AssertionError("worked out where nothing hangs on it")

        for outcome in (CERTAIN, answered(), failed(), neutral(), throttled()):
            outcome.cause = digest
            setup.end(setup.begin(), outcome)

    def test_without_a_kind_the_reason_is_unknown(self, setup):
        attempt(setup, misconfigured(kind=None, certain=True))
        assert setup.reason is K.UNKNOWN

    def test_reset_enables_it_and_forgets_the_suspicion(self, setup, heard):
        attempt(setup, misconfigured("one"))
        setup.reset()
        attempt(setup, misconfigured("another"))
        assert setup.reason is None
        attempt(setup, CERTAIN)
        setup.reset()
        assert (setup.reason, setup.refusal()) == (None, None)

    def test_while_it_is_enabled_it_does_not_look_at_the_clock(self, heard):
        setup = Disabling(Stopped(), DisablingPolicy(), heard)
        attempt(setup, answered())


class TestQuiet:
    """While it is, an attempt and an answer change nothing."""

    def test_a_suspicion_ends_it_and_an_answer_brings_it_back(self, setup):
        assert setup.quiet
        attempt(setup, misconfigured("one"))
        assert not setup.quiet
        for how in (failed, neutral, throttled):
            attempt(setup, how())
            assert not setup.quiet
        attempt(setup, answered())
        assert setup.quiet

    def test_disabled_it_is_not_before_a_check_is_answered(self, setup, clock):
        before = setup.begin()
        attempt(setup, CERTAIN)
        setup.end(before, answered())
        assert not setup.quiet
        clock.tick(300)
        attempt(setup, answered())
        assert setup.quiet

    def test_reset_brings_it_back(self, setup):
        attempt(setup, CERTAIN)
        setup.reset()
        assert setup.quiet


class TestCheck:
    """One request checks from time to time whether a disabled provider is well again."""

    def disable(self, setup, clock, after=300.0):
        attempt(setup, CERTAIN)
        clock.tick(after)

    def test_one_request_checks_after_five_minutes_and_its_answer_enables(
        self, setup, clock, heard
    ):
        self.disable(setup, clock, 299)
        assert setup.refusal().retry_after == pytest.approx(1)
        clock.tick(1)
        assert setup.refusal() is None
        check = setup.begin()
        assert setup.refusal().kind is K.DISABLED, "one is checking already"
        setup.end(check, answered())
        assert (setup.refusal(), setup.reason) == (None, None)
        assert heard.events[-1] == ("enabled",)

    def test_a_late_answer_to_a_check_enables_it_past_a_later_refusal(self, setup, clock):
        self.disable(setup, clock)
        slow = setup.begin()
        clock.tick(60)  # its lease is over
        attempt(setup, CERTAIN)
        clock.tick(1)
        setup.end(slow, answered())
        assert setup.reason is None

    def test_a_check_from_before_a_reset_enables_nothing(self, setup, clock, heard):
        self.disable(setup, clock)
        check = setup.begin()
        setup.reset()
        setup.end(check, answered())
        assert ("enabled",) not in heard.events

    def test_a_check_as_last_resort_is_waited_for_until_its_lease_ends(self, setup, clock):
        self.disable(setup, clock, 5)
        setup.begin()
        assert setup.refusal().pending
        clock.tick(59)
        assert setup.refusal().pending
        assert setup.refusal().last_resort == pytest.approx(1)
        clock.tick(1)
        assert not setup.refusal().pending
        assert setup.refusal().last_resort == 0

    def test_a_check_whose_loop_is_gone_lets_the_next_one_go(self, setup, clock):
        self.disable(setup, clock)
        setup.begin()
        setup.abandon()
        assert setup.refusal() is None

    def test_checks_grow_rare_up_to_an_hour(self, setup, clock):
        pauses = []
        for _ in range(6):
            attempt(setup, misconfigured(kind=K.NO_CREDIT))
            if setup.reason is None:
                attempt(setup, misconfigured(kind=K.NO_CREDIT))
            pauses.append(setup.refusal().retry_after)
            clock.tick(pauses[-1])
        assert pauses == pytest.approx([300, 600, 1200, 2400, 3600, 3600])

    def test_survives_two_thousand_checks(self, setup, clock):
        for _ in range(2000):
            attempt(setup, CERTAIN)
            clock.tick(3600)
        attempt(setup, CERTAIN)
        assert setup.refusal().retry_after == 3600

    def test_a_check_needs_no_certainty_and_no_second_request(self, setup, clock):
        self.disable(setup, clock)
        attempt(setup, misconfigured("one"))
        assert setup.refusal().retry_after == pytest.approx(600)

    def test_calls_that_were_out_together_lengthen_the_pause_once(self, setup, clock):
        tokens = [setup.begin() for _ in range(20)]
        for token in tokens:
            setup.end(token, CERTAIN)
        assert setup.refusal().retry_after == pytest.approx(300)
        clock.tick(300)
        attempt(setup, CERTAIN)
        assert setup.refusal().retry_after == pytest.approx(600)

    @pytest.mark.parametrize(("later", "known"), [(-1, False), (0, False), (1, True)])
    def test_only_a_refusal_from_before_a_request_lets_it_try(self, setup, clock, later, known):
        assert setup.refused_before(clock.now()) == -math.inf, "there was none"
        attempt(setup, CERTAIN)
        refused_at = clock.now()
        assert setup.refused_before(refused_at + later) == (refused_at if known else None)

    def test_it_knows_when_it_was_refused_last(self, setup, clock):
        assert setup.refused_at == -math.inf
        attempt(setup, CERTAIN)
        assert setup.refused_at == clock.now(), "what disables it is a refusal, too"
        clock.tick(300)
        attempt(setup, misconfigured())
        assert setup.refused_at == clock.now()
        clock.tick(600)
        refused_at = setup.refused_at
        attempt(setup, neutral())
        assert setup.refused_at == refused_at, "only a refusal counts"
        attempt(setup, answered())
        assert setup.refused_at == -math.inf, "what it said before holds no more"

    def test_a_refusal_without_evidence_is_none(self, setup, clock):
        attempt(setup, misconfigured("one"))
        assert setup.refused_at == -math.inf
        attempt(setup, misconfigured("another"))
        assert setup.refused_at == clock.now()

    def test_a_call_from_before_that_is_refused_late_counts(self, setup, clock):
        before = setup.begin()
        attempt(setup, CERTAIN)
        clock.tick(3)
        setup.end(before, CERTAIN)
        assert setup.refused_at == clock.now()

    @pytest.mark.parametrize("how", [neutral, failed, throttled])
    def test_one_that_learned_nothing_lets_the_next_one_check(self, setup, clock, how):
        self.disable(setup, clock)
        attempt(setup, how())
        assert setup.reason is K.AUTHENTICATION
        assert setup.refusal() is None

    @pytest.mark.parametrize("how", [answered, neutral])
    def test_an_attempt_from_before_has_no_say(self, setup, clock, how, heard):
        before = setup.begin()
        self.disable(setup, clock)
        setup.begin()
        setup.end(before, how())
        assert setup.reason is K.AUTHENTICATION
        assert setup.refusal().kind is K.DISABLED, "the check is still out"
        assert ("enabled",) not in heard.events

    def test_one_from_an_earlier_time_when_it_was_disabled_has_no_say_either(self, setup, clock):
        self.disable(setup, clock)
        early = setup.begin()
        clock.tick(60)
        attempt(setup, answered())
        clock.tick(1)
        attempt(setup, CERTAIN)
        setup.end(early, answered())
        assert setup.reason is K.AUTHENTICATION

    def test_one_that_never_comes_back_lets_another_try(self, setup, clock):
        self.disable(setup, clock)
        setup.begin()
        clock.tick(59.5)
        assert setup.refusal().retry_after == pytest.approx(0.5)
        clock.tick(0.5)
        assert setup.refusal() is None

    def test_an_answer_forgets_how_often_it_was_disabled(self, setup, clock):
        for _ in range(3):
            attempt(setup, CERTAIN)
            clock.tick(setup.refusal().retry_after)
        attempt(setup, answered())
        attempt(setup, CERTAIN)
        assert setup.refusal().retry_after == pytest.approx(300)

    def test_its_durations_are_the_policys(self, clock, heard):
        policy = DisablingPolicy(recheck=10, longest_recheck=15, lease=2)
        setup: Any = Disabling(clock, policy, heard)
        assert setup.policy == policy
        attempt(setup, CERTAIN)
        assert wait_of(setup) == pytest.approx(10)
        clock.tick(10)
        check = setup.begin()
        assert wait_of(setup) == pytest.approx(2)
        setup.end(check, CERTAIN)
        assert wait_of(setup) == pytest.approx(15)


class TestSetupAsLastResort:
    """With no other provider left, a disabled one is asked after all: seldom, and by one."""

    def test_not_before_five_seconds_have_passed(self, setup, clock):
        attempt(setup, CERTAIN)
        assert setup.refusal().last_resort == pytest.approx(5)
        clock.tick(4)
        assert setup.refusal().last_resort == pytest.approx(1)
        clock.tick(1)
        assert setup.refusal().last_resort == 0

    def test_one_at_a_time(self, setup, clock):
        attempt(setup, CERTAIN)
        clock.tick(5)
        setup.begin()
        assert setup.refusal().last_resort == pytest.approx(60), "its lease"
        clock.tick(60)
        assert setup.refusal().last_resort == 0

    @pytest.mark.parametrize("how", [neutral, failed, throttled, misconfigured])
    def test_five_seconds_lie_between_two_whatever_the_first_one_met(self, setup, clock, how):
        attempt(setup, CERTAIN)
        clock.tick(5)
        setup.end(setup.begin(), how())
        assert setup.refusal().last_resort == pytest.approx(5)

    def test_an_answer_enables_it(self, setup, clock, heard):
        attempt(setup, CERTAIN)
        clock.tick(5)
        setup.end(setup.begin(), answered())
        assert setup.refusal() is None
        assert heard.events[-1] == ("enabled",)

    def test_its_refusal_does_not_put_off_the_check(self, setup, clock):
        attempt(setup, CERTAIN)
        clock.tick(100)
        setup.end(setup.begin(), CERTAIN)
        refusal = setup.refusal()
        assert refusal is not None
        assert refusal.retry_after == pytest.approx(200)
        assert setup.refused_at == clock.now()

    def test_the_refusal_of_a_call_from_before_puts_off_the_next(self, setup, clock):
        before = setup.begin()
        attempt(setup, CERTAIN)
        clock.tick(4)
        setup.end(before, CERTAIN)
        refusal = setup.refusal()
        assert refusal is not None
        assert refusal.last_resort == pytest.approx(5)
        assert refusal.retry_after == pytest.approx(296)


class SetupMachine(RuleBasedStateMachine):
    """Two callers in one history: those who have a choice, and those who have not."""

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.policy = DisablingPolicy(recheck=30, longest_recheck=120, lease=8, last_resort=5)
        self.heard = Heard()
        self.disabling = Disabling(self.clock, self.policy, self.heard)
        self.out = []  # [token, whether it began while disabled, in which state's time]
        self.suspects = {}
        self.disabled = False
        self.kind, self.certain = None, False  # why
        self.era = 0
        self.check_began = -math.inf
        self.check_out = False
        self.last_began = -math.inf
        self.refused_at = -math.inf

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 8.0, 30.0, 120.0]))
    def wait(self, seconds):
        self.clock.tick(seconds)

    @rule()
    def begin_as_last_resort(self):
        self.begin(last=True)

    @rule()
    def begin_with_a_choice(self):
        self.begin(last=False)

    def begin(self, *, last):
        now, refusal = self.clock.now(), self.disabling.refusal()
        if not self.disabled:
            assert refusal is None
        elif refusal is not None and not (last and refusal.last_resort == 0):
            return
        if self.disabled:
            out = self.check_out and now < self.check_began + self.policy.lease
            assert not out, "two checks at once"
            if refusal is not None:
                told = max(self.last_began, self.refused_at)
                assert now - told >= self.policy.last_resort, "too often"
            self.check_began, self.check_out, self.last_began = now, True, now
        self.out.append((self.disabling.begin(), self.disabled, self.era))

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 100),
        how=st.sampled_from([answered, failed, neutral, throttled]),
    )
    def end(self, which, how):
        token, check, era = self.out.pop(which % len(self.out))
        self.disabling.end(token, how())
        checked = check and era == self.era
        if checked:
            self.check_out = False
        if how is answered:
            self.suspects.clear()
            doubtful = self.kind is K.MODEL_NOT_FOUND and not self.certain
            if checked or (self.disabled and doubtful):
                self.disabled = self.check_out = self.certain = False
                self.last_began = self.refused_at = -math.inf
                self.era += 1

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 100),
        cause=st.sampled_from("vwxyz"),
        kind=st.sampled_from([K.AUTHENTICATION, K.MODEL_NOT_FOUND]),
        certain=st.booleans(),
        proven=st.booleans(),
    )
    def refuse(self, which, cause, kind, certain, proven):
        token, check, era = self.out.pop(which % len(self.out))
        self.disabling.end(token, misconfigured(cause, kind, certain=certain), proven=proven)
        if check and era == self.era:
            self.check_out = False
        if self.disabled:
            self.kind, self.certain = kind, self.certain or certain
            self.refused_at = self.clock.now()
            return
        if not certain:
            self.suspects.setdefault(kind, set()).add(cause)
        needed = 5 if proven and kind is K.MODEL_NOT_FOUND else 2
        if certain or len(self.suspects[kind]) >= needed:
            self.disabled, self.kind, self.certain = True, kind, certain
            self.era += 1
            self.check_out, self.refused_at = False, self.clock.now()
            self.suspects.clear()

    @invariant()
    def agree(self):
        assert (self.disabling.reason is not None) is self.disabled
        assert self.disabling.refused_at == self.refused_at
        refusal = self.disabling.refusal()
        if refusal is not None:
            assert self.disabled
            assert 0 < refusal.retry_after <= self.policy.longest_recheck
            assert 0 <= refusal.last_resort <= self.policy.lease


TestSetupMachine = SetupMachine.TestCase
TestSetupMachine.settings = settings(stateful_step_count=40)
