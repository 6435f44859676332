"""The laws can be broken: each is, in a run that is made up, and none is in one that keeps it."""

from types import SimpleNamespace

import pytest

from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    FailureKind,
    ProviderFailure,
)
from aigateway.events import CircuitChanged, CircuitForced, ProviderDisabled
from tests.simulation import laws
from tests.simulation.invariants import Asked, Watch
from tests.simulation.scenario import Ask, ProviderPlan, Scenario
from tests.simulation.vendors import VendorCall
from tests.simulation.world import DEFAULTS, play

CIRCUIT = "circuit_open"


def call(began, ended, trouble="outage", how="server_error", prompt="p9", provider="a"):
    made = VendorCall(provider, 0, "r", prompt, "chat", began, trouble, ended)
    made.how = how
    return made


def refused(kind=CIRCUIT, *, began=10.0, ended=11.0, late=False, wait=None):
    cause = ProviderFailure("a", kind, retry_after_seconds=wait)
    error = (DeadlineExceededError if late else AllProvidersFailedError)("x", [cause])
    asked = Asked(Ask(1, began, prompt=1), began, 60.0)
    asked.ended, asked.error = ended, error
    return asked


def seen(*asked, happened=()):
    return SimpleNamespace(asked=list(asked), happened=list(happened), settings=DEFAULTS)


@pytest.mark.parametrize("kind", [CIRCUIT, "disabled", "degraded"])
def test_a_refusal_with_a_candidate_left_is_found(kind):
    assert len([*laws.refusals(seen(refused(kind)), [])]) == 1
    assert len([*laws.refusals(seen(refused(kind, ended=70.0, late=True)), [])]) == 1


def test_a_refusal_is_excused():
    for log in (
        [call(10.9, None)],  # the dose is out
        [call(10.7, 10.8)],  # it has just been taken
        [call(10.1, 10.2, prompt="p1")],  # it was the request's own
    ):
        assert not [*laws.refusals(seen(refused()), log)]
    assert not [*laws.refusals(seen(refused("server_error")), [])]
    forced = [(5.0, CircuitForced("a", "open", None))]
    assert not [*laws.refusals(seen(refused(), happened=forced), [])]


def test_what_excuses_no_refusal():
    for log in ([call(9.0, 9.5)], [call(11.5, 11.6)], [call(10.9, None, provider="b")]):
        assert [*laws.refusals(seen(refused()), log)]
    let_go = [(5.0, CircuitForced("a", "open", None)), (6.0, CircuitForced("a", "auto", None))]
    assert [*laws.refusals(seen(refused(), happened=let_go), [])]


def test_a_cooldown_beyond_its_clamp_is_found():
    assert [*laws.refusals(seen(refused("cooling_down", wait=86_000.0)), [])]
    assert not [*laws.refusals(seen(refused("cooling_down", wait=299.0)), [])]


def outage(rate, *, healthy_before):
    """A minute of an outage, in which a provider gets so many calls a second."""
    before = [call(0.0, 0.1, None, "answered")] if healthy_before else []
    times = [1 + number / rate for number in range(60 * rate)]
    return before + [call(at, at + 0.05, prompt=f"p{at}") for at in times]


def test_too_many_doses_are_found():
    assert [*laws.overdoses(seen(), outage(20, healthy_before=False))]
    assert [*laws.overdoses(seen(), outage(20, healthy_before=True))]


def test_doses_are_allowed():
    assert not [*laws.overdoses(seen(), outage(4, healthy_before=False))]
    # What a success has saved up.
    assert not [*laws.overdoses(seen(), outage(6, healthy_before=True))]
    # The same request again and again says nothing of the provider.
    repeated = [call(n / 20, n / 20 + 0.01, prompt="p1") for n in range(600)]
    assert not [*laws.overdoses(seen(), repeated)]


@pytest.fixture
def watched():
    clock = SimpleNamespace(now=0.0)
    watch = Watch(lambda: clock.now, DEFAULTS, {}, lambda: 1000, laws=True)
    return watch, clock


def opened(watch):
    watch.on_event(CircuitChanged("circuit.opened", "a", "closed", "open"))


def promises(watch):
    return [broken.promise for broken in watch.violations]


@pytest.mark.parametrize(("prompts", "broken"), [(1, ["blame"]), (4, ["blame"]), (5, [])])
def test_repeats_of_one_request_count_once(watched, prompts, broken):
    watch, _ = watched
    for number in range(10):
        made = call(0.0, None, prompt=f"p{number % prompts}")
        watch.call_began(made)
        watch.call_ended(made, "server_error")
    opened(watch)
    assert promises(watch) == broken


def test_what_times_out_under_a_stall_counts_for_nothing(watched):
    watch, clock = watched
    made = [call(0.0, None, None, prompt=f"p{number}") for number in range(20)]
    for each in made:
        watch.call_began(each)
    watch.stalls(2.5)
    clock.now = 2.5
    for each in made:
        watch.call_ended(each, "cancelled")
    opened(watch)
    assert promises(watch) == ["blame"]


@pytest.mark.parametrize(("apart", "broken"), [(0.5, ["disabled"]), (3.0, [])])
def test_a_disabled_provider_is_asked_seldom(watched, apart, broken):
    watch, clock = watched
    watch.on_event(ProviderDisabled("a", FailureKind.AUTHENTICATION, 401, 300.0))
    for number in range(2):
        clock.now = 5 + apart * number
        made = call(clock.now, None, "bad_key", prompt=f"p{number}")
        watch.call_began(made)
        watch.call_ended(made, "authentication")
    assert promises(watch) == broken


def test_a_run_may_be_held_to_the_laws():
    plain = Scenario("plain", {}, (ProviderPlan("a", 0),), asks=(Ask(1, 0.0, prompt=1),))
    assert not play(plain, held_to_laws=True).broken
