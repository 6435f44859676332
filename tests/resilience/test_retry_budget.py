"""What bounds calls beyond the first: the budget for extra calls, the one for hedges, the rates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.resilience.rates import RateLimits
from aigateway.resilience.retry import (
    HEDGE_FLOOR,
    HEDGE_WINDOW,
    MOST,
    STOCK,
    HedgeBudget,
    RetryBudget,
    hedge_delay,
)
from aigateway.testing import FakeClock

pauses = st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0, 59.9, 60.0, 61.0])
steps = st.lists(st.tuples(pauses, st.booleans(), st.integers(0, 4)), max_size=60)


class TestRetryBudget:
    @given(steps)
    def test_never_more_than_a_share_of_requests_and_a_little_with_time(self, script):
        clock = FakeClock()
        budget = RetryBudget(clock)
        requests = taken = 0
        elapsed = 0.0
        for pause, is_request, wanted in script:
            clock.tick(pause)
            elapsed += pause
            if is_request:
                budget.request()
                requests += 1
            taken += sum(budget.take() for _ in range(wanted))
            assert taken <= STOCK + 0.2 * requests + elapsed + 1e-6
            assert 0 <= budget.balance <= MOST

    def test_in_an_outage_of_half_a_minute_at_a_hundred_a_second(self):
        clock = FakeClock()
        budget = RetryBudget(clock)
        clock.tick(3600)  # a quiet hour before
        taken = 0
        for _ in range(3000):
            clock.tick(0.01)
            budget.request()
            taken += sum(budget.take() for _ in range(5))
        assert 0.2 <= taken / 3000 <= 0.25

    def test_empty_means_no_and_time_fills_it_again(self):
        clock = FakeClock()
        budget = RetryBudget(clock)
        assert all(budget.take() for _ in range(int(STOCK)))
        assert not budget.take()
        clock.tick(1)
        assert budget.take()
        assert not budget.take()

    @pytest.mark.parametrize(("pause", "extra"), [(0, 10), (15, 40), (3600, 50)])
    def test_ten_at_first_and_never_more_than_fifty(self, pause, extra):
        clock = FakeClock()
        budget = RetryBudget(clock, per_second=2)
        clock.tick(pause)
        assert sum(budget.take() for _ in range(100)) == extra


class TestHedgeBudget:
    @given(steps)
    def test_never_above_the_share_in_any_window(self, script):
        clock = FakeClock()
        budget = HedgeBudget(clock, most_percent=5)
        requests, hedges = [], []
        for pause, is_request, wanted in script:
            clock.tick(pause)
            now = clock.now()
            if is_request:
                for _ in range(100):
                    budget.request()
                    requests.append(now)
            hedges += [now] * sum(budget.take() for _ in range(wanted))
            in_window = sum(at > now - HEDGE_WINDOW for at in hedges)
            asked = sum(at > now - HEDGE_WINDOW for at in requests)
            assert in_window <= max(HEDGE_FLOOR, 0.05 * asked)

    def test_requests_that_are_out_of_the_window_pay_for_nothing(self):
        clock = FakeClock()
        budget = HedgeBudget(clock)
        for _ in range(1000):
            budget.request()
        clock.tick(HEDGE_WINDOW + 0.5)
        assert sum(budget.take() for _ in range(100)) == HEDGE_FLOOR

    def test_a_floor_for_low_traffic_and_none_where_none_is_wanted(self):
        clock = FakeClock()
        budget = HedgeBudget(clock)
        assert sum(budget.take() for _ in range(100)) == HEDGE_FLOOR
        clock.tick(HEDGE_WINDOW + 1)
        assert budget.take()
        assert not HedgeBudget(clock, most_percent=0).take()

    @pytest.mark.parametrize(
        ("p95", "samples", "delay"), [(None, 0, 5.0), (0.2, 19, 5.0), (0.2, 20, 0.2)]
    )
    def test_the_delay_is_the_percentile_where_it_means_something(self, p95, samples, delay):
        assert hedge_delay(p95, samples, 5.0) == delay


class Minute:
    """The rules of a rate, by brute force."""

    def __init__(self):
        self.calls = []  # [began, tokens]

    def used(self, now):
        return [call for call in self.calls if call[0] > now - 60]


class TestRates:
    @given(
        st.lists(
            st.tuples(pauses, st.integers(1, 60), st.one_of(st.none(), st.integers(0, 90))),
            max_size=80,
        ),
        st.integers(1, 5),
        st.integers(50, 200),
    )
    def test_never_passed_in_any_minute(self, script, rpm, tpm):
        clock = FakeClock()
        limits, model = RateLimits(clock, rpm, tpm), Minute()
        for pause, estimate, counted in script:
            clock.tick(pause)
            now = clock.now()
            if limits.wait(estimate) > 0:
                continue
            before = model.used(now)
            tokens = sum(call[1] for call in before)
            assert len(before) < rpm
            assert tokens == 0 or tokens + estimate <= tpm
            entry = limits.begin(estimate)
            entry.settle(counted)
            entry.settle(10**9)  # a second time changes nothing
            model.calls.append([now, estimate if counted is None else counted])

    @given(
        st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60)), max_size=40),
        st.integers(1, 5),
        st.integers(50, 200),
        st.integers(1, 60),
    )
    def test_after_the_wait_it_may_begin_and_not_needlessly_later(self, script, rpm, tpm, tokens):
        clock = FakeClock()
        limits, model = RateLimits(clock, rpm, tpm), Minute()
        for pause, estimate in script:
            clock.tick(pause)
            if limits.wait(estimate) == 0:
                limits.begin(estimate)
                model.calls.append([clock.now(), estimate])
        wait = limits.wait(tokens)
        now = clock.now()
        if wait > 1.1:  # more than what counting by seconds may add
            early = [call for call in model.calls if call[0] > now + wait - 1.1 - 60]
            assert len(early) >= rpm or sum(call[1] for call in early) + tokens > tpm
        clock.tick(wait + 1e-6)
        assert limits.wait(tokens) == 0

    def test_a_call_larger_than_a_minute_goes_alone(self):
        clock = FakeClock()
        limits = RateLimits(clock, None, 100)
        assert limits.wait(500) == 0
        limits.begin(500)
        assert limits.wait(1) > 60
        clock.tick(61.1)
        assert limits.wait(500) == 0

    def test_memory_is_bounded(self):
        clock = FakeClock()
        limits = RateLimits(clock, 10, 10**9)
        for _ in range(1000):
            clock.tick(7)
            limits.begin(5)
        assert len(limits._calls) <= 10
        assert len(limits._buckets) <= 62
        assert math.isfinite(limits.wait(5))
