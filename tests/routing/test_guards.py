"""All guards of one operation as one: what each end of an attempt does to each of them."""

from collections import Counter

import pytest

from aigateway.errors import FailureKind
from aigateway.events import (
    CircuitChanged,
    ProviderCooledDown,
    ProviderDegraded,
    ProviderDisabled,
    ProviderEnabled,
    ProviderRecovered,
)
from aigateway.resilience.breaker import CircuitState
from aigateway.resilience.guard import NEVER, AttemptOutcome, Effect
from aigateway.resilience.health import RUN
from aigateway.routing.guards import Guards
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.telemetry.recorder import Emitter

E, K = Effect, FailureKind


class Hook:
    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)


@pytest.fixture
def hook():
    return Hook()


@pytest.fixture
def make(clock):
    def make_guards(hook, **settings):
        config = LLMConfig("openai_compatible", "m", name="p", api_base="http://127.0.0.1:9/v1")
        return Guards("chat", config, GatewaySettings(**settings), clock, Emitter([hook]))

    return make_guards


@pytest.fixture
def guards(make, hook):
    return make(hook)


_causes = iter(range(10**9))


def outcome(effect, cause=None, kind=None, **fields):
    digest = next(_causes) if cause is None else cause
    return AttemptOutcome(effect, lambda: digest, kind=kind, **fields)


def attempt(guards, end, *, last_resort=False):
    held = guards.begin(last_resort=last_resort)
    assert held is not None
    pace = guards.answers
    call = pace.begin()
    if end.effect is E.ANSWERED:
        guards.answered(held, end, pace, call)
    guards.end(held, end)
    pace.ended(call)
    return held


def fail(guards, times):
    for _ in range(times):
        attempt(guards, outcome(E.FAILED))


def seen_by_health(guards):
    seconds = guards.health._seconds
    return tuple(sum(getattr(s, kind) for s in seconds) for kind in ("good", "bad", "slow"))


class TestTable:
    """Every effect, in a provider that has failed twice, and was throttled and refused once."""

    AUTH = K.AUTHENTICATION

    def prepare(self, guards, clock):
        attempt(guards, outcome(E.FAILED, "a"))
        attempt(guards, outcome(E.FAILED, "b"))
        attempt(guards, outcome(E.MISCONFIGURED, "x", self.AUTH, status=401))
        attempt(guards, outcome(E.THROTTLED))
        clock.tick(1)
        assert guards.refusal() is None

    def look(self, guards):
        """(failures in a row, what health has seen, cooldown, reason, balance), as they are."""
        cooling = guards.cooldown.refusal()
        return (
            guards.breaker.consecutive_failures,
            seen_by_health(guards),
            cooling and round(cooling.retry_after, 6),
            guards.disabling.reason,
            guards.last_resort.balance,
        )

    @pytest.mark.parametrize(
        ("end", "circuit", "health", "cooldown", "setup", "balance"),
        [
            pytest.param(outcome(E.ANSWERED), 0, (1, 2, 0), None, None, 10, id="answered"),
            pytest.param(outcome(E.FAILED), 3, (0, 3, 0), None, None, 0, id="failed"),
            pytest.param(
                outcome(E.FAILED, "a"), 2, (0, 2, 0), None, None, 0, id="failed, a repeat"
            ),
            pytest.param(
                outcome(E.FAILED, retry_after=7.0), 3, (0, 3, 0), 7, None, 0, id="failed for 7 s"
            ),
            pytest.param(outcome(E.THROTTLED), 2, (0, 2, 0), 2, None, 0, id="throttled"),
            pytest.param(
                outcome(E.THROTTLED, retry_after=9.0), 2, (0, 2, 0), 9, None, 0, id="for 9 s"
            ),
            pytest.param(
                outcome(E.MISCONFIGURED, "x", AUTH), 2, (0, 2, 0), None, None, 0, id="a repeat"
            ),
            pytest.param(
                outcome(E.MISCONFIGURED, "y", AUTH), 2, (0, 2, 0), None, AUTH, 0, id="a second one"
            ),
            pytest.param(
                outcome(E.MISCONFIGURED, "x", K.NO_CREDIT, certain=True),
                2,
                (0, 2, 0),
                None,
                K.NO_CREDIT,
                0,
                id="certainly misconfigured",
            ),
            pytest.param(outcome(E.NEUTRAL), 2, (0, 2, 0), None, None, 0, id="neutral"),
        ],
    )
    def test_what_each_effect_does(
        self, guards, clock, end, circuit, health, cooldown, setup, balance
    ):
        self.prepare(guards, clock)
        attempt(guards, end)
        assert self.look(guards) == (circuit, health, cooldown, setup, balance)

    @pytest.mark.parametrize("effect", E)
    def test_only_an_answer_ends_the_row_of_throttles(self, guards, clock, effect):
        self.prepare(guards, clock)
        attempt(guards, outcome(effect, "x", self.AUTH))
        clock.tick(2)  # what the throttle among them takes
        attempt(guards, outcome(E.THROTTLED))
        row = {E.ANSWERED: 1, E.THROTTLED: 4}
        assert guards.cooldown.refusal().retry_after == pytest.approx(row.get(effect, 2))

    @pytest.mark.parametrize("effect", E)
    def test_only_an_answer_clears_the_suspicion(self, guards, clock, effect):
        self.prepare(guards, clock)
        attempt(guards, outcome(effect, "x", self.AUTH))
        clock.tick(2)
        attempt(guards, outcome(E.MISCONFIGURED, "y", self.AUTH))
        assert (guards.disabling.reason is None) is (effect is E.ANSWERED)

    @pytest.mark.parametrize("effect", E)
    def test_a_check_of_a_disabled_provider(self, guards, clock, effect):
        attempt(guards, outcome(E.MISCONFIGURED, kind=self.AUTH, certain=True))
        clock.tick(300)
        attempt(guards, outcome(effect, "x", K.NO_CREDIT))
        kept = {E.ANSWERED: None, E.MISCONFIGURED: K.NO_CREDIT}
        assert guards.disabling.reason is kept.get(effect, self.AUTH)

    @pytest.mark.parametrize("effect", E)
    @pytest.mark.parametrize("last_resort", [False, True])
    def test_a_circuit_that_is_not_closed(self, guards, clock, effect, last_resort):
        fail(guards, 5)
        clock.tick(30 if last_resort else 60)
        attempt(guards, outcome(effect), last_resort=last_resort)
        state = CircuitState.HALF_OPEN
        if effect is E.ANSWERED:
            state = CircuitState.CLOSED
        elif last_resort or effect is E.FAILED:
            state = CircuitState.OPEN
        assert guards.breaker.state is state
        assert guards.last_resort.balance == (10 if effect is E.ANSWERED else 0)

    @pytest.mark.parametrize("effect", E)
    def test_an_attempt_ends_once_for_the_trickle(self, guards, clock, effect):
        fail(guards, 5)
        attempt(guards, outcome(effect), last_resort=True)
        assert guards.last_resort._out == 0

    @pytest.mark.parametrize("effect", E)
    def test_a_degraded_provider_recovers_by_answers_alone(self, guards, clock, effect):
        for _ in range(10):
            guards.health.end(outcome(E.FAILED))
        assert guards.is_degraded()
        for _ in range(RUN):
            attempt(guards, outcome(effect))
            clock.tick(2)  # past a cooldown
            guards.cooldown.reset()
            guards.breaker.reset()
        assert guards.is_degraded() is (effect is not E.ANSWERED)

    def test_a_slow_answer_is_slow_for_health_and_a_success_for_all_else(self, guards, clock):
        for _ in range(20):
            attempt(guards, outcome(E.ANSWERED, seconds=0.1))
        fail(guards, 2)
        attempt(guards, outcome(E.ANSWERED, seconds=2.0))
        assert seen_by_health(guards) == (20, 2, 1)
        assert guards.breaker.consecutive_failures == 0

    @pytest.mark.parametrize(("seconds", "hangs"), [(0.1, False), (0.5, False), (0.6, True)])
    def test_a_slow_answer_does_not_speak_for_the_calls_that_are_out(
        self, guards, clock, seconds, hangs
    ):
        pace = guards.answers
        for _ in range(20):
            attempt(guards, outcome(E.ANSWERED, seconds=0.1))
        pace.usual = 0.1
        clock.tick(0.1)
        for _ in range(5):
            pace.begin()
        clock.tick(0.5)
        assert guards.seems_to_hang()
        attempt(guards, outcome(E.ANSWERED, seconds=seconds))
        assert guards.seems_to_hang() is hangs

    @pytest.mark.parametrize("cause", ["same", None])
    def test_five_failures_of_one_request_open_nothing(self, guards, cause):
        for _ in range(5):
            attempt(guards, outcome(E.FAILED, cause))
        opened = guards.breaker.state is CircuitState.OPEN
        assert opened is (cause is None)


def test_repeats_count_again_after_a_minute(guards, clock):
    for minute in range(4):
        for _ in range(5):
            attempt(guards, outcome(E.FAILED, "the same"))
        assert guards.breaker.consecutive_failures == minute + 1
        clock.tick(60)
    attempt(guards, outcome(E.FAILED, "the same"))
    assert guards.breaker.state is CircuitState.OPEN


class TestStream:
    """Its verdict falls at the first content; what breaks later counts by itself."""

    def begin(self, guards, *, last_resort=False):
        held = guards.begin(last_resort=last_resort)
        assert held is not None
        pace = guards.first_contents
        guards.answered(held, outcome(E.ANSWERED), pace, pace.begin())
        return held

    @pytest.mark.parametrize("how", [E.ANSWERED, E.NEUTRAL])
    def test_a_good_end_counts_once(self, guards, how):
        held = self.begin(guards)
        guards.end(held, outcome(how))
        assert seen_by_health(guards) == (1, 0, 0)
        assert guards.last_resort.balance == 10

    def test_a_break_counts_as_a_failure(self, guards):
        held = self.begin(guards)
        guards.end(held, outcome(E.FAILED))
        assert seen_by_health(guards) == (1, 1, 0)
        assert guards.breaker.consecutive_failures == 1

    @pytest.mark.parametrize("last_resort", [False, True])
    def test_first_content_closes_the_circuit_and_a_break_is_one_failure(
        self, guards, clock, last_resort
    ):
        fail(guards, 5)
        clock.tick(30 if last_resort else 60)
        held = self.begin(guards, last_resort=last_resort)
        assert guards.breaker.state is CircuitState.CLOSED
        guards.end(held, outcome(E.FAILED))
        assert guards.breaker.consecutive_failures == 1

    @pytest.mark.parametrize("effect", E)
    @pytest.mark.parametrize("last_resort", [False, True])
    def test_where_the_next_permit_is_refused_it_ends_without_one(
        self, guards, hook, clock, effect, last_resort
    ):
        """An operator takes the circuit in hand in the moment in which it closes."""
        fail(guards, 5)
        clock.tick(30 if last_resort else 60)

        def force_open(event):
            if getattr(event, "new", None) == "closed":
                guards.breaker.force_open()

        hook.on_event = force_open
        held = self.begin(guards, last_resort=last_resort)
        assert held.permit is None
        assert not held.probe
        guards.end(held, outcome(effect))
        assert (guards.breaker.state, guards.breaker.forced) == (CircuitState.OPEN, True)
        assert guards.breaker.consecutive_failures == 0
        assert guards.breaker.late_results == 0

    def test_only_a_probe_is_one_and_until_its_first_content(self, guards, clock):
        assert not guards.begin(last_resort=False).probe
        fail(guards, 5)
        assert not guards.begin(last_resort=True).probe
        clock.tick(60)
        held = guards.begin(last_resort=True)
        assert held.probe, "its time is over: the last resort is the probe"
        pace = guards.first_contents
        guards.answered(held, outcome(E.ANSWERED), pace, pace.begin())
        assert not held.probe

    def test_first_content_enables_a_disabled_provider(self, guards, clock):
        attempt(guards, outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True))
        clock.tick(300)
        self.begin(guards)
        assert guards.refusal() is None

    def test_a_break_long_after_the_first_content_does_not_end_a_later_check(self, guards, clock):
        held = self.begin(guards)
        attempt(guards, outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True))
        clock.tick(300)
        assert guards.begin(last_resort=False) is not None
        guards.end(held, outcome(E.FAILED))
        assert guards.refusal().kind is K.DISABLED, "the check is still out"


class TestRefusal:
    def disable(self, guards):
        attempt(guards, outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True))

    def test_nothing_is_in_the_way_at_first(self, guards):
        assert guards.refusal() is None

    def test_an_open_circuit_allows_a_last_resort_as_its_dose_does(self, guards, clock):
        fail(guards, 5)
        refusal = guards.refusal()
        assert (refusal.kind, refusal.retry_after) == (K.CIRCUIT_OPEN, 60)
        assert refusal.last_resort == 0
        attempt(guards, outcome(E.FAILED), last_resort=True)
        assert guards.refusal().last_resort == pytest.approx(0.25)

    def test_a_probe_that_is_out_may_come_back_at_any_moment(self, guards, clock):
        fail(guards, 5)
        clock.tick(60)
        assert guards.refusal() is None
        guards.begin(last_resort=False)
        assert guards.refusal().retry_after == 0
        assert guards.refusal().last_resort == pytest.approx(1), "its place is the trickle's"

    def test_a_circuit_that_is_forced_open_allows_none(self, guards):
        guards.force("open")
        refusal = guards.refusal()
        assert (refusal.retry_after, refusal.last_resort) == (NEVER, NEVER)
        assert guards.begin(last_resort=True) is None

    def test_that_is_told_whatever_else_keeps_requests_away(self, guards):
        attempt(guards, outcome(E.THROTTLED, retry_after=5.0))
        self.disable(guards)
        guards.breaker.force_open()
        refusal = guards.refusal()
        assert (refusal.kind, refusal.retry_after) == (K.CIRCUIT_OPEN, NEVER)

    def test_a_cooldown_allows_none(self, guards):
        attempt(guards, outcome(E.THROTTLED, retry_after=5.0))
        refusal = guards.refusal()
        assert (refusal.kind, refusal.retry_after) == (K.COOLING_DOWN, pytest.approx(5))
        assert refusal.last_resort == NEVER

    def test_a_cooldown_is_honoured_behind_an_open_circuit_too(self, guards, clock):
        fail(guards, 5)
        guards.cooldown.throttle(90)
        refusal = guards.refusal()
        assert refusal.last_resort == NEVER
        assert refusal.retry_after == pytest.approx(90)
        assert refusal.changes_in == pytest.approx(60), "when its circuit's time is over"
        clock.tick(89)
        assert guards.refusal().kind is K.COOLING_DOWN
        clock.tick(1)
        assert guards.refusal() is None

    def test_the_longer_wait_is_told(self, guards):
        fail(guards, 5)
        guards.cooldown.throttle(5)
        assert guards.refusal().retry_after == pytest.approx(60)

    def test_a_cooldown_is_honoured_by_a_disabled_provider_too(self, guards, clock):
        self.disable(guards)
        clock.tick(5)
        assert guards.refusal().last_resort == 0
        attempt(guards, outcome(E.THROTTLED, retry_after=60.0), last_resort=True)
        refusal = guards.refusal()
        assert (refusal.kind, refusal.retry_after) == (K.DISABLED, pytest.approx(295))
        assert refusal.last_resort == NEVER
        assert refusal.changes_in == pytest.approx(60), "when the cooldown is over"
        clock.tick(60)
        assert guards.refusal().last_resort == 0

    def test_a_disabled_one_whose_circuit_is_open_keeps_both_doses(self, guards, clock):
        fail(guards, 5)
        guards.disabling.end(
            guards.disabling.begin(), outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True)
        )
        assert guards.refusal().last_resort == pytest.approx(5)
        clock.tick(5)
        attempt(guards, outcome(E.FAILED), last_resort=True)
        assert guards.refusal().last_resort == pytest.approx(5)


class TestRamp:
    def test_only_one_that_comes_back_on_an_empty_purse_is_asked_at_a_pace(self, guards, clock):
        assert guards.ramp_wait() == 0
        fail(guards, 5)
        attempt(guards, outcome(E.ANSWERED), last_resort=True)
        assert guards.ramp_wait() == 0
        guards.begin(last_resort=False)
        assert guards.ramp_wait() > 0
        clock.tick(5)
        assert guards.ramp_wait() == 0

    def test_while_the_circuit_is_open_the_doses_rule(self, guards):
        fail(guards, 5)
        attempt(guards, outcome(E.ANSWERED), last_resort=True)
        fail(guards, 5)
        assert guards.breaker.state is CircuitState.OPEN
        assert guards.ramp_wait() == 0


class TestForce:
    def test_closed_ends_whatever_keeps_requests_away(self, guards):
        attempt(guards, outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True))
        guards.cooldown.throttle(86_400)
        for _ in range(10):
            guards.health.end(outcome(E.FAILED))
        fail_beside = guards.breaker
        for _ in range(5):
            fail_beside.acquire().failure()
        guards.force("closed")
        assert guards.refusal() is None
        assert not guards.is_degraded()

    def test_auto_leaves_a_circuit_that_is_left_to_itself(self, guards):
        fail(guards, 5)
        guards.force("auto")
        assert guards.breaker.state is CircuitState.OPEN
        guards.force("closed")
        guards.force("auto")
        assert not guards.breaker.forced


class TestEvents:
    def kinds(self, hook):
        return Counter(type(event) for event in hook.events)

    def test_each_decision_is_told_with_its_operation(self, guards, hook, clock):
        attempt(guards, outcome(E.THROTTLED, retry_after=3.0))
        clock.tick(3)
        attempt(guards, outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True))
        clock.tick(300)
        attempt(guards, outcome(E.ANSWERED))
        fail(guards, 5)
        clock.tick(60)
        attempt(guards, outcome(E.ANSWERED))
        for _ in range(10):
            guards.health.end(outcome(E.FAILED))
        for _ in range(RUN):
            attempt(guards, outcome(E.ANSWERED))
        assert self.kinds(hook) == {
            ProviderCooledDown: 1,
            ProviderDisabled: 1,
            ProviderEnabled: 1,
            CircuitChanged: 3,
            ProviderDegraded: 1,
            ProviderRecovered: 1,
        }
        assert {event.operation for event in hook.events} == {"chat"}
        assert {event.provider for event in hook.events} == {"p"}


class TestTakeOver:
    def test_another_gateway_goes_on_where_this_one_is(self, guards, make, hook):
        fail(guards, 5)
        guards.cooldown.throttle(9)
        later = make(Hook())
        later.take_over(guards)
        assert later.breaker.state is CircuitState.OPEN
        assert later.cooldown.refusal().retry_after == pytest.approx(9)

    def test_and_tells_its_own_listeners(self, guards, make, hook):
        hook_of_later = Hook()
        later = make(hook_of_later)
        later.take_over(guards)
        before = len(hook.events)
        later.cooldown.throttle(9)
        later.disabling.end(
            later.disabling.begin(), outcome(E.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True)
        )
        later.breaker.force_open()
        kinds = [type(event) for event in hook_of_later.events]
        assert kinds == [ProviderCooledDown, ProviderDisabled, CircuitChanged]
        assert len(hook.events) == before

    def test_where_what_governs_them_differs_it_begins_anew(self, guards, make):
        fail(guards, 5)
        guards.cooldown.throttle(9)
        attempt(guards, outcome(E.ANSWERED), last_resort=True)
        other = {
            "failure_threshold": 7,
            "max_cooldown_seconds": 77.0,
            "disabled_recheck_seconds": 7.0,
        }
        later = make(Hook(), **other)
        later.take_over(guards)
        assert later.refusal() is None
        assert later.last_resort.balance == 0
