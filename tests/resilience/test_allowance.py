"""Time in which our own event loop stood still is given back to timeouts."""

import pytest

from aigateway.resilience.local_faults import StallDetector
from tests.resilience.guarding import allowance


@pytest.fixture
async def watch(clock):
    watch = StallDetector(clock, lambda seconds: None)
    watch.begin()
    await clock.settle()
    yield watch
    watch.stop()


async def test_a_timeout_gets_the_time_of_a_stall_again(watch, clock):
    more = allowance(watch, clock, 10.0)
    clock.tick(5)
    assert more() == pytest.approx(4.75)
    assert more() == 0


async def test_a_long_stall_gives_a_timeout_its_own_time_again(watch, clock):
    more = allowance(watch, clock, 1.0)
    clock.tick(60)
    assert more() == pytest.approx(1, abs=0.3)
    assert more() == 0


async def test_a_stall_in_the_time_that_was_given_is_given_too(watch, clock):
    more = allowance(watch, clock, 1.0)
    clock.tick(60)
    assert more() == pytest.approx(1, abs=0.3)
    await clock.settle()
    clock.tick(1)
    assert more() == pytest.approx(1, abs=0.3)


async def test_without_a_stall_no_time_is_given(watch, clock):
    more = allowance(watch, clock, 1.0)
    for _ in range(10):
        await clock.advance(0.25)
    assert more() == 0
