"""Further rounds over all providers, and the budgets of extra calls."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.resilience.retry import (
    HEDGE_FLOOR,
    HEDGE_WINDOW,
    MOST,
    STOCK,
    HedgeBudget,
    NoCandidateLeftError,
    RetryBudget,
    RetryPolicy,
    hedge_delay,
    load,
    retry_rounds,
)
from aigateway.testing import FakeClock
from tests import descriptors


class InstantClock(FakeClock):
    """Sleeping takes no time to wait for, and is written down."""

    def __init__(self):
        super().__init__()
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.tick(seconds)


def no_candidate(worth_waiting):
    causes = [ProviderFailure("p", FailureKind.SERVER_ERROR, 500)]
    return NoCandidateLeftError(causes, worth_waiting)


async def run(rounds, first, *, policy=None, left=60.0):
    clock, told = InstantClock(), []
    end = clock.now() + left
    ended = iter(rounds)

    async def one_round():
        result = next(ended)
        if isinstance(result, Exception):
            raise result
        return result

    result = await retry_rounds(
        one_round,
        first,
        policy=policy or RetryPolicy(),
        clock=clock,
        time_left=lambda: end - clock.now(),
        before_wait=lambda number, pause: told.append((number, pause)),
    )
    return result, clock.slept, told


async def test_a_later_round_answers():
    result, slept, told = await run([no_candidate(0.0), "answer"], no_candidate(0.0))
    assert result == "answer"
    assert [number for number, _ in told] == [1, 2]
    assert [pause for _, pause in told] == slept
    assert 0 <= slept[0] <= 0.25
    assert 0 <= slept[1] <= 0.5


async def test_waits_at_least_as_long_as_the_first_to_be_free_asks():
    _, slept, _ = await run(["answer"], no_candidate(3.0))
    assert 3.0 <= slept[0] <= 3.25


async def test_gives_up_after_the_set_rounds_with_the_last_reason():
    last = no_candidate(0.0)
    with pytest.raises(NoCandidateLeftError) as raised:
        await run([no_candidate(0.0), last], no_candidate(0.0))
    assert raised.value is last


@pytest.mark.parametrize(
    ("first", "policy", "left"),
    [
        pytest.param(no_candidate(None), RetryPolicy(), 60, id="waiting cannot help"),
        pytest.param(no_candidate(11.0), RetryPolicy(), 60, id="longer than max_wait"),
        pytest.param(no_candidate(5.0), RetryPolicy(), 4.9, id="longer than the deadline"),
        pytest.param(no_candidate(0.0), RetryPolicy(rounds=0), 60, id="no rounds"),
        pytest.param(no_candidate(float("inf")), RetryPolicy(), 60, id="forced open"),
    ],
)
async def test_does_not_begin_to_wait_when_it_is_no_use(first, policy, left):
    with pytest.raises(NoCandidateLeftError) as raised:
        await run(["never reached"], first, policy=policy, left=left)
    assert raised.value is first


async def test_other_errors_pass_through_at_once():
    with pytest.raises(ZeroDivisionError):
        await run([ZeroDivisionError()], no_candidate(0.0))


@pytest.mark.parametrize("warm", [False, True])
async def test_rounds_when_no_file_can_be_opened(monkeypatch, warm):
    first = no_candidate(0.0)
    monkeypatch.delitem(sys.modules, "tenacity", raising=False)
    if warm:
        load()
    with descriptors.none_left():
        if warm:
            assert (await run(["answer"], first))[0] == "answer"
        else:  # it cannot be loaded
            with pytest.raises(NoCandidateLeftError) as raised:
                await run(["answer"], first)
            assert raised.value is first


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
                budget.requests += 1
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
            budget.requests += 1
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


def test_the_pause_doubles_with_each_round_up_to_an_end():
    assert RetryPolicy() == RetryPolicy(2, 10.0, 0.25)
    assert no_candidate(None).causes[0].kind is FailureKind.SERVER_ERROR
    policy = RetryPolicy(backoff=0.5)
    assert policy.pause(1, 3.0, 0.5) == 3.25
    assert policy.pause(3, 0.0, 1.0) == 2.0
    assert policy.pause(30, 0.0, 1.0) == 0.5 * 2**29
    assert [policy.pause(end, 0.0, 1.0) for end in (31, 99)] == [0.5 * 2**30] * 2


async def test_each_pause_is_as_long_as_the_latest_round_asks():
    _, slept, _ = await run([no_candidate(5.0), "answer"], no_candidate(1.0))
    assert slept[0] < 2
    assert slept[1] >= 5


async def test_the_longest_wait_is_still_begun_and_one_that_uses_up_the_time_is_not():
    exact = RetryPolicy(backoff=0.0)
    result, _, _ = await run(["answer"], no_candidate(10.0), policy=exact)
    assert result == "answer"
    with pytest.raises(NoCandidateLeftError):
        await run(["answer"], no_candidate(3.0), policy=exact, left=3.0)
