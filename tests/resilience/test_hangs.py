"""The watch for hangs where its count and its cost lie."""

import pytest

from aigateway.resilience.hangs import BEYOND, HangWatch
from aigateway.testing import FakeClock

P95 = 1.0


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_one_overdue_call_less_than_the_threshold_is_no_hang(threshold):
    clock = FakeClock()
    watch = HangWatch(clock, threshold)
    for _ in range(threshold - 1):
        watch.begin()
    clock.tick(BEYOND * P95 + 0.1)
    young = [watch.begin() for _ in range(threshold)]
    assert not watch.suspected(P95), "many are out, but too few of them overdue"
    clock.tick(BEYOND * P95 + 0.1)
    assert watch.suspected(P95)
    for call in young:
        watch.ended(call)
    assert not watch.suspected(P95), "what has ended is not out"


def test_calls_that_were_outrun_count_as_if_they_were_out_until_their_time():
    clock = FakeClock()
    watch = HangWatch(clock, 2)
    verdicts: list[bool] = []
    for _ in range(2):
        watch.outrun(watch.begin(), clock.now() + 30, verdicts.append)
    clock.tick(BEYOND * P95 + 0.1)
    assert watch.suspected(P95)
    assert verdicts == []
    clock.tick(30)
    assert not watch.suspected(P95)
    assert verdicts == [True, True]


@pytest.mark.parametrize("end", ["succeeded", "close"])
def test_what_is_settled_early_is_nobodys_fault_and_settled_once(end):
    clock = FakeClock()
    watch = HangWatch(clock, 2)
    verdicts: list[bool] = []
    watch.outrun(watch.begin(), clock.now() + 30, verdicts.append)
    if end == "succeeded":
        watch.succeeded(watch.begin())
    else:
        watch.close()
    assert verdicts == [False]
    clock.tick(60)
    watch.suspected(P95)
    watch.close()
    assert verdicts == [False]
