"""The charts' last three minutes: counted by two seconds, bounded, added up over processes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway
from aigateway.errors import AllProvidersFailedError
from aigateway.errors import FailureKind as K
from aigateway.events import AttemptEnded, RequestEnded
from aigateway.server.status.history import (
    POINTS,
    STEP,
    HistoryReport,
    RecentHistory,
    merged_history,
)
from aigateway.server.status.recent_events import RecentEvents
from aigateway.testing import FakeClock, scripted_configs


def ended(kind, **fields):
    """An event with these fields only: a history looks at no others."""
    event = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(event, name, value)
    return event


def test_requests_and_providers_are_counted_by_their_time(clock):
    history = RecentHistory(clock)
    began = clock.wall() // STEP * STEP

    def note(provider, seconds, failure=None):
        history.note(
            ended(AttemptEnded, provider=provider, latency_seconds=seconds, failure=failure)
        )

    for seconds in (1.0, 3.0, 2.0):
        note("a", seconds)
    note("a", 9.0, K.SERVER_ERROR)
    note("a", 9.0, K.REJECTED)  # the caller's doing
    history.note(ended(RequestEnded, outcome="failed", latency_seconds=9.0, rejected=False))
    history.note(ended(RequestEnded, outcome="failed", latency_seconds=9.0, rejected=True))
    history.note(ended(RequestEnded, outcome="hit", latency_seconds=0.0))
    clock.tick(2 * STEP)
    note("b", 4.0)
    clock.tick(STEP + 1)
    shown = merged_history([history.report()], clock.wall())
    assert shown["points"] == [
        (began, {"a": [4, 1, 3.0], "": [3, 1, None]}),
        (began + 2 * STEP, {"b": [1, 0, 4.0]}),
    ]
    assert (shown["since"], shown["until"]) == (began, began + 3 * STEP)
    later = merged_history([history.report()], clock.wall(), after=began)
    assert [at for at, _ in later["points"]] == [began + 2 * STEP]


@given(st.lists(st.tuples(st.floats(-500, 500), st.integers(0, 200)), max_size=60))
def test_its_memory_is_bounded_and_what_it_counts_is_there(moves):
    """Whatever the wall clock does, also backwards."""
    clock = FakeClock()
    history = RecentHistory(clock)
    for seconds, name in moves:
        clock.set_wall(max(0.0, clock.wall() + seconds))
        history.note(ended(AttemptEnded, provider=f"p{name}", latency_seconds=1.0, failure=None))
        report = json.loads(json.dumps(history.report()))
        assert len(report["points"]) <= POINTS
        numbers = [number for number, _ in report["points"]]
        assert numbers == sorted(numbers)
        assert report["since"] <= numbers[-1]
        assert any(f"p{name}" in point for _, point in report["points"])


def test_an_event_that_cannot_be_counted_loses_itself_only(clock):
    history = RecentHistory(clock)
    history.note(ended(AttemptEnded, provider="a"))  # without what is counted
    for _ in range(3):
        history.note(ended(AttemptEnded, provider="a", latency_seconds=1.0, failure=None))
    with pytest.raises(AttributeError):
        history.report()
    [(_, point)] = history.report()["points"]
    assert point["a"] == [3, 0, 1.0]


async def test_a_gateway_fills_it(clock, vendor):
    events = RecentEvents(clock)
    configs = scripted_configs("a", "b")
    async with AsyncGateway(
        configs, clock=clock, vendor=vendor, hooks=[events], retry_rounds=0
    ) as gateway:
        vendor.script("a", K.SERVER_ERROR)
        await gateway.chat("hi")
        await gateway.chat("hi")
        vendor.script("a", K.SERVER_ERROR)
        vendor.script("b", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("ho")
    [(_, point)] = events.history.report()["points"]
    assert {name: figures[:2] for name, figures in point.items()} == {
        "": [3, 1],
        "a": [2, 2],
        "b": [2, 1],
    }


def test_points_of_processes_add_up():
    one: HistoryReport = {"since": 10, "points": [(11, {"": [2, 1, 1.5]})]}
    two: HistoryReport = {
        "since": 12,
        "points": [(11, {"": [3, 0, None], "a": [1, 0, 2.0]}), (13, {"": [9, 9, 1]})],
    }
    shown = merged_history([one, two], now=13 * STEP + 1)
    assert shown["points"] == [(11 * STEP, {"": [5, 1, 1.5], "a": [1, 0, 2.0]})]
    assert shown["since"] == 10 * STEP
