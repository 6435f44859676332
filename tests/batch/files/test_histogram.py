import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.batch.files.histogram import Histogram

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
