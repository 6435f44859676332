"""The laws can be broken: each is, in a run that is made up, and none is in one that keeps it."""

from types import SimpleNamespace

import pytest

from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    FailureKind,
    ProviderFailure,
)
from aigateway.events import (
    CircuitChanged,
    CircuitForced,
    ProviderCooledDown,
    ProviderDisabled,
)
from tests.simulation import laws
from tests.simulation.invariants import Asked, Watch
from tests.simulation.scenario import Ask, Chore, ProviderPlan, Scenario
from tests.simulation.vendors import VendorCall
from tests.simulation.world import DEFAULTS

CIRCUIT = FailureKind.CIRCUIT_OPEN
PLAIN = Scenario("made up", {}, (ProviderPlan("a", 0, rpm=30), ProviderPlan("b", 0)))


def call(began, ended, trouble="outage", how="server_error", prompt="p9", provider="a"):
    made = VendorCall(provider, 0, "r", prompt, "chat", began, trouble, ended)
    made.how = how
    return made


def refused(kind=CIRCUIT, *more, began=10.0, ended=11.0, timeout=60.0, wait=None):
    causes = [ProviderFailure("a", kind, retry_after_seconds=wait), *more]
    late = ended >= began + timeout
    error = (DeadlineExceededError if late else AllProvidersFailedError)("x", causes)
    asked = Asked(Ask(1, began, prompt=1), began, timeout)
    asked.ended, asked.error = ended, error
    return asked


def seen(*asked, happened=()):
    return SimpleNamespace(
        asked=list(asked), happened=list(happened), settings=DEFAULTS, stood=lambda *_: 0.0
    )


def found(asked, log=(), scenario=PLAIN, happened=()):
    return len([*laws.refusals(seen(asked, happened=happened), scenario, log)])


BUSY = ProviderFailure("b", FailureKind.SATURATED)


@pytest.mark.parametrize("kind", [CIRCUIT, FailureKind.DISABLED])
@pytest.mark.parametrize("ended", [11.0, 69.9, 70.0])
def test_a_refusal_with_a_candidate_left_is_found(kind, ended):
    assert found(refused(kind, ended=ended)) == 1


def test_a_refusal_is_excused():
    assert not found(refused("server_error"))
    assert not found(refused(), [call(10.1, 10.2, prompt="p1")]), "it has asked itself"
    assert not found(refused(ended=69.5), [call(69.1, 69.2)]), "the next dose is too late"
    assert not found(refused(FailureKind.DISABLED, ended=69.5), [call(65.0, 65.2)])
    assert not found(refused(BUSY.kind, ProviderFailure("b", CIRCUIT), ended=70.0))
    assert not found(refused(), [call(float(n) / 3, n / 3 + 0.1) for n in range(30)]), "its rate"
    left = Asked(Ask(2, 10.2, prompt=2), 10.2, 60.0, cancelled=True)
    log = [call(float(n) / 3, n / 3 + 0.1) for n in range(29)]
    assert not [*laws.refusals(seen(refused(), left), PLAIN, log)], "with one that was cancelled"
    removed = Scenario("x", chores=(Chore(10.5, "remove", "a"),))
    assert not found(refused("disabled"), scenario=removed)
    full = refused()
    full.full = frozenset("a")
    assert not found(full)


@pytest.mark.parametrize("at", [5.0, 10.5])
def test_an_order_excuses_a_refusal(at):
    assert not found(refused(), happened=[(at, CircuitForced("a", "open", None))])


def test_what_the_vendor_has_said_since_the_request_began_excuses_a_refusal():
    said = ProviderDisabled("a", FailureKind.AUTHENTICATION, 401, 300.0)
    assert not found(refused("disabled"), happened=[(10.5, said)])
    assert found(refused("disabled"), happened=[(9.5, said)])
    assert found(refused(), happened=[(10.5, said)])


def test_what_excuses_no_refusal():
    for log in (
        [call(10.9, None)],  # a dose is out, and there is time for the next
        [call(9.0, 9.5, prompt="p1")],  # the same request, before
        [call(11.5, 11.6, prompt="p1")],  # and after
        [call(10.9, None, prompt="p1", provider="b")],
        [call(float(n) / 3, n / 3 + 0.1) for n in range(29)],
    ):
        assert found(refused(), log)
    assert found(refused(ended=69.5), [call(66.9, 67.0)])
    assert found(refused(CIRCUIT, BUSY, ended=69.0)), "it need not have waited for the other"
    let_go = [(5.0, CircuitForced("a", "open", None)), (6.0, CircuitForced("a", "auto", None))]
    assert found(refused(), happened=let_go)
    late = [(11.5, CircuitForced("a", "open", None))]
    assert found(refused(), happened=late)


def test_a_cooldown_beyond_its_clamp_is_found():
    assert found(refused("cooling_down", wait=86_000.0))
    assert not found(refused("cooling_down", wait=299.0))


def outage(rate, *, healthy_before):
    """A minute of an outage, in which a provider gets so many calls a second."""
    before = [call(0.0, 0.1, None, "answered")] if healthy_before else []
    times = [1 + number / rate for number in range(60 * rate)]
    return before + [call(at, at + 0.05, prompt=f"p{at}") for at in times]


@pytest.mark.parametrize(("rate", "healthy_before"), [(4, False), (20, False), (20, True)])
def test_too_many_doses_are_found(rate, healthy_before):
    assert [*laws.overdoses(seen(), outage(rate, healthy_before=healthy_before))]


def test_doses_are_allowed():
    assert not [*laws.overdoses(seen(), outage(2, healthy_before=False))]
    # What a success has saved up.
    assert not [*laws.overdoses(seen(), outage(3, healthy_before=True))]
    # The same request again and again says nothing of the provider.
    repeated = [call(n / 20, n / 20 + 0.01, prompt="p1") for n in range(600)]
    assert not [*laws.overdoses(seen(), repeated)]


@pytest.fixture
def watched():
    clock = SimpleNamespace(now=0.0)
    watch = Watch(lambda: clock.now, DEFAULTS, {}, lambda: 1000)
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


@pytest.mark.parametrize(("apart", "broken"), [(3.0, ["disabled"]), (5.0, [])])
def test_a_disabled_provider_is_checked_seldom(watched, apart, broken):
    watch, clock = watched
    watch.on_event(ProviderDisabled("a", FailureKind.AUTHENTICATION, 401, 300.0))
    for number in range(2):
        clock.now = 5 + apart * number
        made = call(clock.now, None, "bad_key", prompt=f"p{number}")
        watch.call_began(made)
        watch.call_ended(made, "authentication")
    assert promises(watch) == broken


def test_a_cooldown_without_a_bound_is_found(watched):
    watch, _ = watched
    watch.on_event(ProviderCooledDown("a", 300.0))
    assert not promises(watch)
    watch.on_event(ProviderCooledDown("a", 86_400.0))
    assert promises(watch) == ["cooldown"]
