"""Providers that fail now and then, or are slow: callers get what trying each once would give."""

from typing import get_args

import pytest

from tests.simulation.scenario import BatchPlan, Kind, Scenario, Trouble, flapping
from tests.simulation.traffic import LATENCY, Traffic, each_once, providers, steady

pytestmark = pytest.mark.slow

MARGIN = 0.02
"""Of the requests, by which the share that is answered may be less."""


def brownout(plans, share):
    return tuple(Trouble(plan.name, "brownout", 0.0, 1e6, share) for plan in plans)


ROWS = {
    "three at 2/s": (3, 0.5, 2, 200),
    "three at 20/s": (3, 0.5, 20, 20),
    "three at 200/s": (3, 0.5, 200, 3),
    "two": (2, 0.5, 20, 20),
    "four": (4, 0.5, 20, 20),
    "one": (1, 0.5, 20, 20),
    "two at 30 %": (2, 0.3, 20, 20),
    "three at 80 %": (3, 0.8, 20, 20),
}
"""How many providers, the share of calls that fail, requests a second, and seconds."""


FEW = ("three at 2/s", "three at 20/s", "one")
"""The others are the same once more, with more requests."""


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[] if row in FEW else [pytest.mark.proof]) for row in ROWS],
)
def test_a_brownout_leaves_what_trying_each_once_would(row):
    count, failing, rate, seconds = ROWS[row]
    plans = providers(*[0] * count)
    traffic = Traffic(plans, brownout(plans, failing), steady(rate, seconds))
    assert traffic.each_once() == pytest.approx(1 - failing**count, abs=0.05)
    assert traffic.answered() >= traffic.each_once() - MARGIN


@pytest.mark.parametrize("kind", ["stream", "embed"])
def test_streams_and_vectors_are_answered_as_often(kind):
    plans = providers(0, 0, 0)
    traffic = Traffic(plans, brownout(plans, 0.5), steady(20, 20, kind=kind))
    assert traffic.answered() >= traffic.each_once() - MARGIN


def test_all_kinds_together_are_answered_as_often():
    plans = providers(2, 1, 0)
    asks = [
        ask
        for first, kind in enumerate(get_args(Kind))
        for ask in steady(7, 20, first=1000 * first, begins=0.01 * first, kind=kind)
    ]
    traffic = Traffic(plans, brownout(plans, 0.5), asks)
    assert traffic.answered() >= traffic.each_once() - MARGIN


@pytest.mark.parametrize("how", ["batch", "map", "as_completed"])
def test_items_of_a_batch_are_answered_as_often(how):
    plans = providers(0, 0, 0)
    batch = BatchPlan(1, 0.0, tuple(range(300)), how, concurrency=16, patience=0.0)
    traffic = Traffic(plans, brownout(plans, 0.5), (), batches=(batch,))
    items = traffic.played.items[1]
    assert len(items) == 300
    answered = sum(item.ok for item in items) / len(items)
    alone = Scenario("traffic", {}, plans, brownout(plans, 0.5), steady(20, 15))
    assert answered >= each_once(alone) - MARGIN


@pytest.mark.parametrize("how", ["batch", "map", "as_completed"])
def test_a_batch_waits_an_outage_out(how):
    plans = providers(0)
    outage = Trouble("a", "outage", 1.0, 11.0)
    batch = BatchPlan(1, 0.0, tuple(range(300)), how, concurrency=4, patience=300.0)
    traffic = Traffic(plans, [outage], (), batches=(batch,))
    failed = [item for item in traffic.played.items[1] if not item.ok]
    # Those that were out when it began are asked in vain as often as anybody is.
    assert len(failed) <= 4
    assert len(traffic.played.items[1]) == 300


@pytest.mark.parametrize("kind", ["outage", "refused", "reset"])
@pytest.mark.parametrize("period", [2.0, 10.0])
def test_of_two_that_flap_in_turn_one_always_answers(kind, period):
    troubles = flapping(["a", "b"], 0.0, 40.0, period, kind)
    traffic = Traffic(providers(0, 0), troubles, steady(10, 40))
    assert traffic.each_once() == 1
    assert traffic.answered() >= 1 - MARGIN


def test_one_that_flaps_answers_while_it_is_up():
    troubles = flapping(["a"], 0.0, 40.0, 10.0)
    traffic = Traffic(providers(0), troubles, steady(10, 40))
    assert traffic.answered() >= traffic.each_once() - MARGIN


def test_a_primary_that_fails_often_is_asked_after_a_healthy_one():
    troubles = [Trouble("a", "brownout", 20.0, 1e6, 0.7)]
    traffic = Traffic(providers(1, 0), troubles, steady(10, 60))
    assert traffic.answered() == 1
    late = [call for call in traffic.log if 30 <= call.began < 60]
    assert len(late) <= 1.15 * 10 * 30


def test_a_primary_that_has_become_slow_is_asked_after_a_quick_one():
    troubles = [Trouble("a", "slow", 30.0, 60.0, factor=20.0)]
    traffic = Traffic(providers(1, 0), troubles, steady(10, 90))
    assert traffic.answered() == 1
    assert traffic.usual_latency(lambda ask: 35 <= ask.at < 60) <= 2 * LATENCY
    back = traffic.calls("a", 75.0, 90.0)
    assert len(back) >= 0.9 * 10 * 15


def test_all_are_slow_and_all_answer():
    troubles = [Trouble(name, "slow", 20.0, 40.0, factor=50.0) for name in "abc"]
    traffic = Traffic(providers(2, 1, 0), troubles, steady(10, 60))
    assert traffic.answered() == 1
    assert not traffic.opened()
