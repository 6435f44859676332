import sys

import pytest

from aigateway.errors import FailureKind, ProviderFailure
from aigateway.resilience.retry import NoCandidateLeftError, RetryPolicy, load, retry_rounds
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


def nobody(worth_waiting):
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
    result, slept, told = await run([nobody(0.0), "answer"], nobody(0.0))
    assert result == "answer"
    assert [number for number, _ in told] == [1, 2]
    assert [pause for _, pause in told] == slept
    assert 0 <= slept[0] <= 0.25
    assert 0 <= slept[1] <= 0.5


async def test_waits_at_least_as_long_as_the_first_to_be_free_asks():
    _, slept, _ = await run(["answer"], nobody(3.0))
    assert 3.0 <= slept[0] <= 3.25


async def test_gives_up_after_the_set_rounds_with_the_last_reason():
    last = nobody(0.0)
    with pytest.raises(NoCandidateLeftError) as raised:
        await run([nobody(0.0), last], nobody(0.0))
    assert raised.value is last


@pytest.mark.parametrize(
    ("first", "policy", "left"),
    [
        pytest.param(nobody(None), RetryPolicy(), 60, id="waiting cannot help"),
        pytest.param(nobody(11.0), RetryPolicy(), 60, id="longer than max_wait"),
        pytest.param(nobody(5.0), RetryPolicy(), 4.9, id="longer than the deadline"),
        pytest.param(nobody(0.0), RetryPolicy(rounds=0), 60, id="no rounds"),
        pytest.param(nobody(float("inf")), RetryPolicy(), 60, id="forced open"),
    ],
)
async def test_does_not_begin_to_wait_when_it_is_no_use(first, policy, left):
    with pytest.raises(NoCandidateLeftError) as raised:
        await run(["never reached"], first, policy=policy, left=left)
    assert raised.value is first


async def test_other_errors_pass_through_at_once():
    with pytest.raises(ZeroDivisionError):
        await run([ZeroDivisionError()], nobody(0.0))


@pytest.mark.parametrize("warm", [False, True])
async def test_rounds_when_no_file_can_be_opened(monkeypatch, warm):
    first = nobody(0.0)
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
