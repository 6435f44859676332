"""Outages, long and short: a trickle while they last, answers at once when they are over.

And what looks like an outage and is none: a vendor that asks for a day, a loop that stood still.
"""

import pytest

from tests.simulation.scenario import Ask, Stall, Trouble
from tests.simulation.traffic import LATENCY, Traffic, providers, steady

pytestmark = pytest.mark.slow

MAX_OPEN = 120.0
"""Seconds: the default of `max_open_seconds`."""

DAY = 86_400.0
OUTAGES = (10.0, 600.0, 3600.0)


@pytest.mark.parametrize(
    ("lasts", "kind"), [(10.0, "reset"), (600.0, "malformed"), (3600.0, "outage")]
)
def test_the_only_provider_answers_within_two_seconds_of_its_recovery(lasts, kind):
    over = 5 + lasts
    # Little traffic in the middle of a long outage: it makes no difference, and takes no time.
    begin = max(10.0, over - 120)
    asks = steady(1, 10) + steady(0.1, begin - 10, begins=10.0, first=1000)
    asks += steady(1, over + 20 - begin, begins=begin, first=5000)
    traffic = Traffic(providers(0), [Trouble("a", kind, 5.0, over)], asks)
    assert traffic.first_answer("a", over) <= over + 2
    assert traffic.answered(lambda ask: ask.at >= over + 2) == 1


@pytest.mark.parametrize("kind", ["stream", "embed"])
def test_streams_and_vectors_are_answered_as_soon(kind):
    troubles = [Trouble("a", "outage", 5.0, 305.0)]
    traffic = Traffic(providers(0), troubles, steady(1, 320, kind=kind))
    assert traffic.first_answer("a", 305.0) <= 307


@pytest.mark.parametrize(
    ("count", "lasts"), [(1, 10.0), pytest.param(3, 40.0, marks=pytest.mark.proof)]
)
def test_no_herd_meets_a_provider_that_recovers(lasts, count):
    over = 5 + lasts
    plans = providers(*[0] * count)
    troubles = [Trouble(plan.name, "outage", 5.0, over) for plan in plans]
    traffic = Traffic(plans, troubles, steady(20, lasts + 15))
    for plan in plans:
        first = traffic.first_answer(plan.name, over) - 2 * LATENCY
        assert len(traffic.calls(plan.name, over, over + 1)) <= 40
        assert len(traffic.calls(plan.name, first, first + 1)) <= 40
    assert min(traffic.first_answer(plan.name, over) for plan in plans) <= over + 2
    assert traffic.answered(lambda ask: ask.at >= over + 2) == 1


@pytest.mark.parametrize("lasts", OUTAGES)
def test_a_primary_has_its_traffic_back_in_time(lasts):
    over = 5 + lasts
    # Little traffic in the middle of a long outage: it makes no difference, and takes no time.
    begin = max(25.0, over - 100)
    asks = steady(1, 25) + steady(0.2, begin - 25, begins=25.0, first=1000)
    asks += steady(1, 100 + MAX_OPEN + 60, begins=begin, first=5000)
    traffic = Traffic(providers(1, 0), [Trouble("a", "outage", 5.0, over)], asks)
    assert traffic.answered() == 1
    back = over + MAX_OPEN + 1
    assert traffic.first_answer("a", over) <= back + 2 * LATENCY
    late = [ask for ask in asks if back + 1 <= ask.at < back + 20]
    assert len(traffic.calls("a", back + 1, back + 20)) >= 0.95 * len(late)


@pytest.mark.parametrize(
    ("count", "kind"), [(1, "malformed"), pytest.param(3, "outage", marks=pytest.mark.proof)]
)
def test_dead_vendors_get_a_trickle(count, kind):
    plans = providers(*[0] * count)
    troubles = [Trouble(plan.name, kind, 0.0, 10.0) for plan in plans]
    traffic = Traffic(plans, troubles, steady(100, 10))
    calls = sum(len(traffic.calls(plan.name, 0.0, 10.0)) for plan in plans)
    assert calls <= 0.3 * 1000
    # Dead for ten seconds, and not one longer.
    assert min(traffic.first_answer(plan.name, 10.0) for plan in plans) <= 12


@pytest.mark.parametrize("kind", ["throttled", "overloaded"])
def test_a_vendor_that_asks_for_a_day_is_asked_again_in_minutes(kind):
    troubles = [Trouble("a", kind, 5.0, 5.5, retry_after=DAY)]
    asks = steady(2, 10) + steady(0.5, 320, begins=10.0, first=1000)
    traffic = Traffic(providers(0), troubles, asks)
    assert traffic.first_answer("a", 6.0) <= 5.5 + 300 + 3
    assert traffic.answered(lambda ask: ask.at >= 5.5 + 303) == 1


@pytest.mark.parametrize("kind", ["chat", "stream", "embed"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_stall_of_the_loop_opens_nothing(kind, count):
    asks = steady(5, 1, first=100, kind=kind)
    asks += tuple(Ask(number, 2.0, kind, number) for number in range(20))
    asks += steady(5, 10, begins=5.0, first=1000, kind=kind)
    settings = {"attempt_timeout": 2.0, "first_token_timeout": 2.0, "idle_timeout": 2.0}
    stalls = (Stall(2.05, 2.5),)
    traffic = Traffic(providers(*[0] * count), [], asks, settings=settings, stalls=stalls)
    assert not traffic.opened()
    assert traffic.answered(lambda ask: ask.number >= 100) == 1
    if count > 1:
        assert traffic.answered() == 1


def test_stalls_do_not_save_a_vendor_that_hangs():
    asks = steady(5, 30)
    stalls = (Stall(10.0, 2.5),)
    settings = {"attempt_timeout": 1.0}
    troubles = [Trouble("a", "hang", 0.0, 1e6)]
    traffic = Traffic(providers(1, 0), troubles, asks, settings=settings, stalls=stalls)
    assert traffic.opened()[0] == "a"
    assert traffic.answered() == 1
