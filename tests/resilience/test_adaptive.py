"""The adaptive limit's bounds, whatever comes in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from aigateway.resilience.adaptive import AdaptiveLimit
from aigateway.testing import FakeClock

events = st.tuples(st.sampled_from(["throttled", "succeeded"]), st.integers(0, 80), st.floats(0, 3))


@given(st.integers(1, 60), st.lists(events, max_size=80))
def test_it_never_leaves_its_bounds_and_moves_one_way_at_a_time(most, script):
    clock = FakeClock()
    limit = AdaptiveLimit(most, clock)
    for event, in_flight, seconds in script:
        clock.tick(seconds)
        before = limit.limit
        if event == "throttled":
            limit.throttled(in_flight, clock.now())
            assert limit.limit <= before
        else:
            limit.succeeded(in_flight)
            assert before <= limit.limit <= before + 1
        assert 1 <= limit.limit <= most


@given(st.integers(1, 60), st.integers(1, 30))
def test_when_throttling_ends_it_comes_back_to_most_and_stays_there(most, throttles):
    clock = FakeClock()
    limit = AdaptiveLimit(most, clock)
    for _ in range(throttles):
        limit.throttled(limit.limit, clock.now())
        clock.tick(1)
    rounds = 0
    while limit.limit < most:
        for _ in range(limit.limit + 1):
            limit.succeeded(limit.limit)
        rounds += 1
        assert rounds <= 2 * most, "about one place for each window of successes"
    for _ in range(3 * most):
        limit.succeeded(limit.limit)
    assert limit.limit == most


def test_a_bound_beyond_any_float_is_no_bound(clock):
    assert AdaptiveLimit(10**400, clock).limit == 2**53
