"""The simulation finds faults: each of these is planted, found, and shown in a small scenario."""

from unittest import mock

import pytest

from aigateway.resilience.breaker import CircuitBreaker, CircuitState, Permit
from aigateway.resilience.budget import ExtraCalls
from aigateway.resilience.gates import Gates
from aigateway.resilience.limiter import Limiter
from aigateway.routing.call import Call
from aigateway.routing.stream import StreamRun
from aigateway.telemetry.account import Account
from aigateway.telemetry.ledger import Entry
from tests.simulation.scenario import Ask, ProviderPlan, Scenario, Trouble, draw_basic
from tests.simulation.shrinking import shrunk
from tests.simulation.world import play


def nothing(*given, **options):
    return None


def always(*given):
    return True


async def reads_on(self, stream):
    """Wait for a stream that has fallen silent, for ever."""
    return await stream.read()


def raises(self, failure, part=None):
    """Take a vendor's failure for an error of our own."""
    self.cut_short()
    raise KeyError(failure.kind)


refusal = CircuitBreaker.refusal


def lets_everybody_probe(self):
    """Let every call through a half-open circuit."""
    return None if self.state is CircuitState.HALF_OPEN else refusal(self)


succeeded = Call.succeeded


def settles_twice(self, answer):
    """Say of a call twice that it was answered."""
    succeeded(self, answer)
    self._permit.success()


PLANTED = {
    "one_probe": (CircuitBreaker, "refusal", lets_everybody_probe),
    "crowd": (Limiter, "has_place", always),
    "waits": (Limiter, "wake", nothing),
    "open_circuit": (CircuitBreaker, "refusal", nothing),
    "permits": (Permit, "release", nothing),
    "cooldown": (Gates, "closed", nothing),
    "stuck": (StreamRun, "_next", reads_on),
    "typed_error": (Call, "failed", raises),
}


@pytest.mark.parametrize("promise", PLANTED)
def test_a_planted_fault_is_found_and_made_small(promise, monkeypatch):
    monkeypatch.setattr("tests.simulation.invariants.KNOWN", frozenset())
    with mock.patch.object(*PLANTED[promise]):
        for seed in range(100):
            scenario = draw_basic(seed)
            if any(broken.promise == promise for broken in play(scenario).broken):
                break
        else:
            pytest.fail("not found in 100 runs")
        smallest, shown = shrunk(scenario, promise, most=60)
    assert len(smallest.asks) <= max(1, len(scenario.asks) // 2)
    assert any(broken.promise == promise for broken in shown.broken)
    assert any("BROKEN" in line for line in shown.trace)


def test_a_call_that_is_settled_twice_is_found():
    scenario = draw_basic(0)
    assert not play(scenario).broken
    with mock.patch.object(Call, "succeeded", settles_twice):
        assert {broken.promise for broken in play(scenario).broken} == {"permits"}


def test_hits_that_are_not_counted_are_found():
    with mock.patch.object(Entry, "remembered", nothing):
        assert any(
            broken.promise == "books"
            for seed in range(20)
            for broken in play(draw_basic(seed)).broken
        )


@pytest.mark.parametrize("untold", ["attempt_ended", "close"])
def test_an_end_that_is_not_told_is_found(untold):
    with mock.patch.object(Account, untold, nothing):
        assert {broken.promise for broken in play(draw_basic(0)).broken} == {"told"}


def test_a_storm_of_retries_is_found():
    storm = Scenario(
        seed="storm",
        settings={"failure_threshold": 1000, "retries_per_provider": 2, "retry_rounds": 0},
        providers=(ProviderPlan("a", 0),),
        troubles=(Trouble("a", "reset", 0.0, 5.0),),
        asks=tuple(Ask(number, 0.0, prompt=number) for number in range(40)),
    )
    assert not play(storm).broken
    with mock.patch.object(ExtraCalls, "take", always):
        assert {broken.promise for broken in play(storm).broken} == {"budget"}
