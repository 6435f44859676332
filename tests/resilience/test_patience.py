"""Which failure is asked again, by patience alone; whole batches are in `tests/test_batch.py`."""

import asyncio
import math

import pytest

from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    OverloadedError,
    ProviderFailure,
    RequestRejectedError,
)
from aigateway.messages import ChatResponse, Choice, Completion
from aigateway.resilience.patience import Patience

K = FailureKind
ANSWER = ChatResponse(Completion("i", "m", (Choice("x", "stop"),)), "a")


def cause(kind: FailureKind, retry_after: float | None = None) -> ProviderFailure:
    return ProviderFailure("a", kind, retry_after_seconds=retry_after)


class Gateway:
    """Fails once, and says how long everybody is away."""

    def __init__(self, clock, error: GatewayError, away: float = 0.0, offline: bool = False):
        self.clock, self.error, self.offline = clock, error, offline
        self.back_at: float = clock.now()
        self.away_for = away
        self.last_resort_after = math.inf
        self.asked: list[float] = []

    async def ask(self) -> ChatResponse:
        self.asked.append(self.clock.now())
        if len(self.asked) == 1:
            self.back_at = self.clock.now() + self.away_for
            raise self.error
        return ANSWER

    def away(self, model: object) -> float:
        left: float = self.back_at - self.clock.now()
        return max(0.0, left)

    def patience(self, seconds: float | None = 300.0) -> Patience:
        return Patience(
            self.clock,
            seconds,
            self.away,
            lambda: self.offline,
            last_resort=lambda _: self.last_resort(),
            refusal=lambda _: AllProvidersFailedError("not asked"),
        )

    def last_resort(self) -> float:
        went = self.asked[0] if self.asked else self.clock.now()
        left: float = went + self.last_resort_after - self.clock.now()
        return max(0.0, left)


async def ended(clock, gateway, seconds=300.0):
    task = asyncio.ensure_future(gateway.patience(seconds).answer(None, gateway.ask))
    await clock.advance(60)
    assert task.done()
    return task.exception()


@pytest.mark.parametrize(
    ("causes", "again"),
    [
        ([cause(K.RATE_LIMITED)], True),
        ([cause(K.COOLING_DOWN, 0.1)], True),
        ([cause(K.CIRCUIT_OPEN, 0.0)], True),
        ([cause(K.SATURATED, 30.0)], True),
        ([cause(K.DISABLED, 300.0), cause(K.RATE_LIMITED)], True),
        ([cause(K.SATURATED)], False),
        ([cause(K.CIRCUIT_OPEN, math.inf)], False),
        ([cause(K.DISABLED, 300.0)], False),
        ([cause(K.SERVER_ERROR)], False),
        ([cause(K.RATE_LIMITED), cause(K.SERVER_ERROR)], False),
        ([cause(K.CONNECTION)], False),
        ([], False),
    ],
    ids=str,
)
@pytest.mark.parametrize("error", [AllProvidersFailedError, DeadlineExceededError])
async def test_with_somebody_to_ask_only_those_whom_nobody_looked_at(clock, error, causes, again):
    gateway = Gateway(clock, error("failed", causes))
    failure = await ended(clock, gateway)
    assert (failure is None) == again
    assert len(gateway.asked) == 1 + again


@pytest.mark.parametrize(
    "error",
    [
        AllProvidersFailedError("failed", [cause(K.SERVER_ERROR)]),
        DeadlineExceededError("failed", [cause(K.TIMEOUT)]),
        OverloadedError("full"),
    ],
    ids=repr,
)
async def test_with_nobody_to_ask_all_wait_for_them(clock, error):
    gateway = Gateway(clock, error, away=40)
    assert await ended(clock, gateway) is None
    first, second = gateway.asked
    assert 40 <= second - first < 41
    assert await ended(clock, Gateway(clock, error, away=40), seconds=0) is error


@pytest.mark.parametrize(("after", "least", "most"), [(0.0, 0, 1), (7.0, 7, 8), (90.0, 40, 41)])
async def test_with_nobody_to_ask_one_goes_as_last_resort_when_its_dose_allows(
    clock, after, least, most
):
    gateway = Gateway(clock, AllProvidersFailedError("failed", [cause(K.SERVER_ERROR)]), away=40)
    gateway.last_resort_after = after
    assert await ended(clock, gateway) is None
    first, second = gateway.asked
    assert least <= second - first < most


async def test_what_is_the_requests_own_fault_waits_for_nobody(clock):
    bad, full = RequestRejectedError("bad"), OverloadedError("full")
    assert await ended(clock, Gateway(clock, bad, away=40)) is bad
    assert await ended(clock, Gateway(clock, full)) is full


async def test_a_dead_network_is_nobodys_answer(clock):
    causes = [cause(K.CONNECTION), ProviderFailure("b", K.CONNECTION)]
    gateway = Gateway(clock, AllProvidersFailedError("failed", causes), offline=True)
    assert await ended(clock, gateway) is None


async def test_each_time_that_it_fails_it_comes_later(clock):
    asked = []

    async def ask():
        asked.append(clock.now())
        raise AllProvidersFailedError("busy", [cause(K.RATE_LIMITED)])

    patience = Patience(
        clock,
        20,
        lambda _: 0.0,
        lambda: False,
        last_resort=lambda _: math.inf,
        refusal=lambda _: AllProvidersFailedError("not asked"),
    )
    task = asyncio.ensure_future(patience.answer(None, ask))
    await clock.advance(30)
    assert isinstance(task.exception(), AllProvidersFailedError)
    began = asked[0]
    assert [at - began for at in asked] == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 12.75, 17.75, 20]
