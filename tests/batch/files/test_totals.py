"""The limits of a job, and the histogram of its latencies."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.batch.files.output import answer_record, error_record
from aigateway.batch.files.totals import Histogram, JobLimiter, JobLimits, JobTotals
from aigateway.errors import ConfigurationError, GatewayError
from aigateway.messages import ChatResponse, Choice, Completion, Usage

LEAST = 0.0001
"""Seconds; what is shorter counts as this."""
ROUNDING = 1e-9

durations = st.lists(st.floats(min_value=0, max_value=1e5), min_size=1, max_size=200)


def filled(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def nearest_rank(values, percent):
    return sorted(values)[max(1, math.ceil(percent / 100 * len(values))) - 1]


def answer(cost):
    return answer_record(
        "x", ChatResponse(Completion("i", "m", (Choice("x"),), Usage(1, 1, 2), cost), "a")
    )


def failure():
    return error_record("x", GatewayError("x"))


@pytest.fixture
def limit(clock):
    def make(totals=None, **limits):
        return JobLimiter(JobLimits(**limits), totals or JobTotals(), clock)

    return make


def test_without_limits_everything_may_begin(limit):
    limiter = limit()
    for _ in range(1000):
        assert limiter.wait(1000, 10**9) == 0
        limiter.begin(10**9)
    assert limiter.reached(0) is None


@pytest.mark.parametrize("name", ["max_cost", "max_failures", "rpm", "tpm"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_limit_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"--{name.replace('_', '-')} must be above 0"):
        JobLimits(**{name: value})


def test_failures_of_this_run_count(limit):
    totals = JobTotals()
    totals.add(failure())
    limiter = limit(totals, max_failures=2)
    assert limiter.reached(5) is None
    totals.add(failure())
    assert limiter.reached(5) is None
    totals.add(failure())
    assert limiter.reached(5) == "--max-failures 2 is reached"


class TestCost:
    def test_the_first_goes_alone_until_its_price_is_known(self, limit):
        totals = JobTotals()
        limiter = limit(totals, max_cost=1.0)
        assert limiter.wait(0, 0) == 0
        assert limiter.wait(1, 0) > 0
        totals.add(answer(0.1))
        assert limiter.wait(1, 0) == 0

    def test_requests_in_flight_count_at_the_mean_price(self, limit):
        totals = JobTotals()
        limiter = limit(totals, max_cost=1.0)
        totals.add(answer(0.25))
        assert [limiter.wait(out, 0) > 0 for out in range(5)] == [False, False, False, True, True]
        assert limiter.reached(3) is None  # their answers may be cheaper

    def test_it_is_reached_when_one_more_would_exceed_it(self, limit):
        totals = JobTotals()
        limiter = limit(totals, max_cost=1.0)
        for _ in range(3):
            totals.add(answer(0.25))
        assert limiter.reached(0) is None
        totals.add(answer(0.25))
        assert limiter.reached(0) == "--max-cost $1 is reached ($1 spent)"

    def test_what_is_left_may_be_too_little_for_one_more(self, limit):
        totals = JobTotals()
        totals.add(answer(0.75))
        said = "--max-cost $1 is reached ($0.75 spent, and the next request might exceed it)"
        assert limit(totals, max_cost=1.0).reached(0) == said

    def test_earlier_runs_count(self, limit):
        totals = JobTotals()
        totals.add(answer(2.0))
        assert limit(totals, max_cost=1.0).reached(0) is not None

    def test_free_answers_do_not_lower_the_mean_price(self, limit):
        totals = JobTotals()
        limiter = limit(totals, max_cost=1.0)
        totals.add(answer(0.4))
        copy = answer(0.0)
        copy["aigateway"]["cached"] = True
        for _ in range(100):
            totals.add(copy)
        assert limiter.wait(1, 0) > 0


class TestRates:
    async def test_requests_per_minute(self, limit, clock):
        limiter = limit(rpm=2)
        for _ in range(2):
            assert limiter.wait(0, 0) == 0
            limiter.begin(0)
        assert limiter.wait(0, 0) == 60
        await clock.advance(60)
        assert limiter.wait(0, 0) == 0

    def test_tokens_per_minute_and_what_the_vendor_counted(self, limit):
        limiter = limit(tpm=100)
        entry = limiter.begin(80)
        assert limiter.wait(0, 40) > 0
        entry.settle(10)
        assert limiter.wait(0, 40) == 0


@given(durations, st.floats(min_value=0, max_value=100))
def test_a_percentile_is_at_most_five_percent_too_high_and_never_too_low(values, percent):
    exact, found = nearest_rank(values, percent), filled(values).percentile(percent)
    assert exact * (1 - ROUNDING) <= found <= max(LEAST, exact * 1.05) * (1 + ROUNDING)
    assert found <= max(values)


@given(durations)
def test_percentiles_rise(values):
    histogram = filled(values)
    found = [histogram.percentile(percent) for percent in range(0, 101, 5)]
    assert found == sorted(found)
    assert found[-1] == max(values)


@given(durations, st.integers(min_value=1, max_value=50))
def test_the_bars_hold_every_value_and_leave_no_gap(values, most):
    bars = filled(values).bars(most)
    assert 1 <= len(bars) <= most
    assert sum(number for _, _, number in bars) == len(values)
    assert all(low < high for low, high, _ in bars)
    for (_, high, _), (low, _, _) in pairwise(bars):
        assert high == low
    assert bars[-1][1] >= max(values) * (1 - ROUNDING)
    assert bars[0][2] > 0
    assert bars[-1][2] > 0


@given(durations)
def test_the_mean_is_exact(values):
    assert filled(values).mean == pytest.approx(sum(values) / len(values))


def test_without_values_it_knows_nothing():
    empty = Histogram()
    assert (empty.count, empty.mean, empty.percentile(50)) == (0, None, None)
    assert list(empty.bars()) == []
