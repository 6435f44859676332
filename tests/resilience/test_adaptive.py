"""The adaptive limit's bounds, whatever comes in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from aigateway.resilience.concurrency import AdaptiveLimit
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


class TestAdaptiveLimit:
    def run_against(self, capacity, most, rounds):
        """Full load against a vendor that throttles what is above its capacity."""
        clock = FakeClock()
        limit = AdaptiveLimit(most, clock)
        seen = []
        for _ in range(rounds):
            began, out = clock.now(), limit.limit
            clock.tick(1)
            for place in range(out):
                if place < capacity:
                    limit.succeeded(out)
                else:
                    limit.throttled(out, began)
            seen.append(limit.limit)
            assert 1 <= limit.limit <= most
        return seen

    @given(st.integers(1, 40), st.integers(1, 60))
    def test_it_settles_around_what_the_vendor_bears(self, capacity, most):
        late = self.run_against(capacity, most, 250)[-100:]
        bound = min(capacity, most)
        assert max(late) <= bound + 1
        assert min(late) >= int(0.8 * bound)

    def test_a_round_trip_counts_once(self):
        clock = FakeClock()
        limit = AdaptiveLimit(100, clock)
        began = clock.now()
        clock.tick(1)
        for _ in range(50):
            limit.throttled(100, began)
        assert limit.limit == 90

    def test_it_comes_back_when_it_is_used_and_not_before(self):
        clock = FakeClock()
        limit = AdaptiveLimit(10, clock)
        for _ in range(5):
            limit.throttled(10, clock.now())
            clock.tick(1)
        fallen = limit.limit
        for _ in range(1000):
            limit.succeeded(1)
        assert limit.limit <= max(fallen, 3), "one call at a time proves nothing about ten"
        for _ in range(1000):
            limit.succeeded(limit.limit)
        assert limit.limit == 10

    def test_far_above_what_is_out_it_comes_down_by_halves(self):
        clock = FakeClock()
        limit = AdaptiveLimit(256, clock)
        for _ in range(6):
            limit.throttled(8, clock.now())
            clock.tick(1)
        assert 6 <= limit.limit <= 8
