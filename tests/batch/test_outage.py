"""Which failures are asked again during an outage; `test_engine.py` has whole batches."""

import asyncio
import math

import pytest

from aigateway.batch.outage import Availability, OutageWait
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

K = FailureKind
ANSWER = ChatResponse(Completion("i", "m", (Choice("x", "stop"),)), "a")


def cause(kind: FailureKind, retry_after: float | None = None) -> ProviderFailure:
    return ProviderFailure("a", kind, retry_after_seconds=retry_after)


def outage_wait(
    clock, seconds, until_available, until_last_resort=lambda _: math.inf, network_is_down=bool
) -> OutageWait:
    return OutageWait(
        clock,
        seconds,
        Availability(
            until_available,
            until_last_resort,
            lambda _: AllProvidersFailedError("not asked"),
            network_is_down,
        ),
    )


class Gateway:
    """Fails once; then every provider is unavailable for `away` seconds."""

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

    def wait(self, seconds: float | None = 300.0) -> OutageWait:
        return outage_wait(
            self.clock, seconds, self.away, lambda _: self.last_resort(), lambda: self.offline
        )

    def last_resort(self) -> float:
        went = self.asked[0] if self.asked else self.clock.now()
        left: float = went + self.last_resort_after - self.clock.now()
        return max(0.0, left)


async def ended(clock, gateway, seconds=300.0):
    task = asyncio.ensure_future(gateway.wait(seconds).answer(None, gateway.ask))
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
async def test_with_a_provider_available_only_outage_failures_are_asked_again(
    clock, error, causes, again
):
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
async def test_without_a_provider_every_failure_waits(clock, error):
    gateway = Gateway(clock, error, away=40)
    assert await ended(clock, gateway) is None
    first, second = gateway.asked
    assert 40 <= second - first < 41
    assert await ended(clock, Gateway(clock, error, away=40), seconds=0) is error


@pytest.mark.parametrize(("after", "least", "most"), [(0.0, 0, 1), (7.0, 7, 8), (90.0, 40, 41)])
async def test_a_held_request_goes_out_as_last_resort_when_its_dose_allows(
    clock, after, least, most
):
    gateway = Gateway(clock, AllProvidersFailedError("failed", [cause(K.SERVER_ERROR)]), away=40)
    gateway.last_resort_after = after
    assert await ended(clock, gateway) is None
    first, second = gateway.asked
    assert least <= second - first < most


async def test_a_failure_of_the_request_itself_does_not_wait(clock):
    bad, full = RequestRejectedError("bad"), OverloadedError("full")
    assert await ended(clock, Gateway(clock, bad, away=40)) is bad
    assert await ended(clock, Gateway(clock, full)) is full


async def test_a_network_outage_is_waited_out(clock):
    causes = [cause(K.CONNECTION), ProviderFailure("b", K.CONNECTION)]
    gateway = Gateway(clock, AllProvidersFailedError("failed", causes), offline=True)
    assert await ended(clock, gateway) is None


async def test_each_failure_delays_the_next_try(clock):
    asked = []

    async def ask():
        asked.append(clock.now())
        raise AllProvidersFailedError("busy", [cause(K.RATE_LIMITED)])

    wait = outage_wait(clock, 20, lambda _: 0.0)
    task = asyncio.ensure_future(wait.answer(None, ask))
    await clock.advance(30)
    assert isinstance(task.exception(), AllProvidersFailedError)
    began = asked[0]
    assert [at - began for at in asked] == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 12.75, 17.75, 20]


class Outage:
    """No provider is available until `over`; one last resort may go out per `pause`."""

    def __init__(self, clock, lasts: float, pause: float, first: float = 0.0):
        self.clock, self.pause = clock, pause
        self.began: float = clock.now()
        self.over = self.began + lasts
        self.next = self.began + first
        self.asked: list[float] = []
        self.is_over = False

    async def ask(self) -> ChatResponse:
        now = self.clock.now()
        if not self.is_over:
            assert self.last_resort(None) == 0, "nothing allows this one"
            self.next = now + self.pause
            self.is_over = now >= self.over
        self.asked.append(now - self.began)
        if self.is_over:
            return ANSWER
        raise AllProvidersFailedError("down", [cause(K.SERVER_ERROR)])

    def away(self, model: object) -> float:
        return 0.0 if self.is_over else 60.0

    def last_resort(self, model: object) -> float:
        left: float = self.next - self.clock.now()
        return max(0.0, left)

    def start(self, requests: int, seconds: float = 300.0) -> list[asyncio.Task[ChatResponse]]:
        wait = outage_wait(self.clock, seconds, self.away, self.last_resort)
        return [asyncio.create_task(wait.answer(None, self.ask)) for _ in range(requests)]


@pytest.mark.parametrize("pause", [0.25, 1.0, 5.0])
async def test_one_held_request_goes_out_per_dose(clock, pause):
    outage = Outage(clock, math.inf, pause)
    tasks = outage.start(30)
    await clock.advance(20)
    assert outage.asked == pytest.approx([i * pause for i in range(len(outage.asked))], abs=0.01)
    assert len(outage.asked) >= 20 / pause
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_end_of_an_outage_is_noticed_before_the_circuit_closes(clock):
    outage = Outage(clock, lasts=10.0, pause=0.25)
    tasks = outage.start(30)
    await clock.advance(16)
    assert min(at for at in outage.asked if at >= 10) < 10.3
    assert all(task.done() and task.exception() is None for task in tasks)
    # Those that had not been asked yet come at once; one that had failed comes a little later.
    assert sum(at >= 10 for at in outage.asked) == 30


async def test_a_request_that_failed_lets_doses_pass(clock):
    outage = Outage(clock, math.inf, pause=0.25)
    (task,) = outage.start(1)
    await clock.advance(8)
    assert outage.asked == pytest.approx([0, 0.5, 1.25, 2.5, 4.75], abs=0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_first_goes_out_no_sooner_than_its_dose(clock):
    outage = Outage(clock, lasts=0.0, pause=0.25, first=4.0)
    tasks = outage.start(3)
    await clock.advance(3.9)
    assert outage.asked == []
    await clock.advance(1)
    assert outage.asked == pytest.approx([4.0] * 3, abs=0.26)
    assert all(task.done() for task in tasks)


async def test_last_resort_requests_end_with_the_wait(clock):
    outage = Outage(clock, math.inf, pause=1.0)
    tasks = outage.start(3, seconds=10.0)
    await clock.advance(9.9)
    assert not any(task.done() for task in tasks)
    outage.next = -math.inf  # when it is over each asks once more
    outage.pause = 0.0
    await clock.advance(0.2)
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(failure) for failure in failures} == {AllProvidersFailedError}
