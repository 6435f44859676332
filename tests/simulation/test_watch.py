"""The simulation finds faults: each of these is planted, found, and shown in a small scenario."""

import asyncio
from unittest import mock

import pytest

from aigateway.request.coalesce import Coalescer
from aigateway.resilience.breaker import CircuitBreaker, CircuitState, Permit
from aigateway.resilience.concurrency import Limiter
from aigateway.resilience.cooldown import Cooldown, Disabling
from aigateway.resilience.guard import NEVER
from aigateway.resilience.last_resort import LastResort
from aigateway.resilience.retry import RetryBudget
from aigateway.routing.attempt import PendingAttempt
from aigateway.routing.candidates import Candidate
from aigateway.routing.guards import Guards
from aigateway.routing.stream import StreamRun
from aigateway.telemetry.recorder import RequestRecord
from tests.simulation.scenario import Ask, ProviderPlan, Scenario, Trouble, draw_basic
from tests.simulation.shrinking import shrunk
from tests.simulation.world import play

pytestmark = pytest.mark.slow


def nothing(*given, **options):
    return None


def always(*given):
    return True


async def leaves(self):
    """Leave a task behind."""
    left.append(asyncio.create_task(asyncio.sleep(1e6)))


left: list[asyncio.Task[None]] = []


async def reads_on(self, stream):
    """Wait for a stream that has fallen silent, for ever."""
    return await stream.read()


end = PendingAttempt.end


def raises(self, how, failure=None, answer=None):
    """Take a vendor's failure for an error of our own."""
    end(self, how, failure, answer)
    if failure is not None:
        raise KeyError(failure.kind)


refusal = CircuitBreaker.refusal


def lets_everybody_probe(self):
    """Let every call through a half-open circuit."""
    return None if self.state is CircuitState.HALF_OPEN else refusal(self)


settle = Guards.end


def settles_twice(self, held, outcome):
    """Settle a permit twice."""
    settle(self, held, outcome)
    held.permit.success()


def never(self, wait, began):
    """Ask no provider that is to be left alone."""
    return NEVER


def at_once(self):
    """Let every attempt of last resort begin."""
    return 0.0


PLANTED = {
    "one_probe": (CircuitBreaker, "refusal", lets_everybody_probe),
    "crowd": (Limiter, "has_slot", always),
    "waits": (Limiter, "wake", nothing),
    "open_circuit": (CircuitBreaker, "refusal", nothing),
    "permits": (Permit, "release", nothing),
    "cooldown": (Cooldown, "refusal", nothing),
    "disabled": (Disabling, "refusal", nothing),
    "last_candidate": (Candidate, "last_resort_wait", never),
    "stuck": (StreamRun, "_next", reads_on),
    "tasks": (Coalescer, "aclose", leaves),
    "typed_error": (PendingAttempt, "end", raises),
}


QUICKLY = ("crowd", "permits", "tasks", "typed_error")
"""Those whose scenario is made small in no time."""


@pytest.mark.parametrize(
    "promise",
    [
        pytest.param(promise, marks=[] if promise in QUICKLY else [pytest.mark.proof])
        for promise in PLANTED
    ],
)
def test_a_planted_fault_is_found_and_made_small(promise):
    with mock.patch.object(*PLANTED[promise]):
        for seed in range(100):
            scenario = draw_basic(seed)
            if any(broken.promise == promise for broken in play(scenario).broken):
                break
        else:
            pytest.fail("not found in 100 runs")
        smallest, shown = shrunk(scenario, promise, most=30)
    assert len(smallest.asks) <= max(1, len(scenario.asks) // 2)
    assert any(broken.promise == promise for broken in shown.broken)
    assert any("BROKEN" in line for line in shown.trace)


def test_a_call_that_is_settled_twice_is_found():
    scenario = draw_basic(0)
    assert not play(scenario).broken
    with mock.patch.object(Guards, "end", settles_twice):
        assert {broken.promise for broken in play(scenario).broken} == {"permits"}


def test_hits_that_are_not_counted_are_found():
    with mock.patch.object(RequestRecord, "remembered", nothing):
        assert any(
            broken.promise == "books"
            for seed in range(20)
            for broken in play(draw_basic(seed)).broken
        )


@pytest.mark.parametrize(
    ("untold", "promises"),
    [
        ("attempt_ended", {"told"}),
        ("_emit_end", {"told", "served_events", "failed_events"}),
    ],
)
def test_an_end_that_is_not_told_is_found(untold, promises):
    with mock.patch.object(RequestRecord, untold, nothing):
        assert {broken.promise for broken in play(draw_basic(0)).broken} == promises


def test_a_storm_of_retries_is_found():
    storm = Scenario(
        seed="storm",
        settings={"failure_threshold": 1000, "retries_per_provider": 2, "retry_rounds": 0},
        providers=(ProviderPlan("a", 0),),
        troubles=(Trouble("a", "reset", 0.0, 5.0),),
        asks=tuple(Ask(number, 0.0, prompt=number) for number in range(40)),
    )
    assert not play(storm).broken
    with mock.patch.object(RetryBudget, "take", always):
        assert {broken.promise for broken in play(storm).broken} == {"budget"}


def test_a_last_resort_without_a_dose_is_found():
    outage = Scenario(
        seed="outage",
        settings={"retry_rounds": 0},
        providers=(ProviderPlan("a", 0),),
        troubles=(Trouble("a", "outage", 0.0, 5.0),),
        asks=tuple(Ask(number, number / 20, prompt=number) for number in range(100)),
    )
    assert not play(outage).broken
    with mock.patch.object(LastResort, "wait", at_once):
        assert {broken.promise for broken in play(outage).broken} == {"dose"}
