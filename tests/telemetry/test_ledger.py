"""However a request ends, it is counted once, and its error passes unchanged."""

import asyncio

import pytest

from aigateway.errors import AllProvidersFailedError, FailureKind, GatewayError, ProviderFailure
from aigateway.events import Event, RequestFailed
from aigateway.messages import ChatRequest
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.ledger import Ledger
from aigateway.testing import FakeClock

REQUEST = ChatRequest((), request_id="r-1")


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start=50.0)


@pytest.fixture
def ledger(clock: FakeClock, heard: Heard) -> Ledger:
    return Ledger(clock, Emitter([heard]))


def ends(ledger: Ledger) -> tuple[int, int, int]:
    counters = ledger.counters
    return counters.total, counters.failures, counters.cancelled


def test_it_gives_the_moment_of_the_beginning(ledger: Ledger, heard: Heard) -> None:
    with ledger.open(REQUEST, None) as entry:
        assert entry.began == 50.0
        assert ends(ledger) == (1, 0, 0)
    assert ends(ledger) == (1, 0, 0)
    assert heard.events == []


def test_an_error_is_the_end(ledger: Ledger, clock: FakeClock, heard: Heard) -> None:
    cause = ProviderFailure("one", FailureKind.TIMEOUT)
    error = AllProvidersFailedError.of([cause])

    def fail_slowly() -> None:
        clock.tick(2.0)
        raise error

    with pytest.raises(AllProvidersFailedError) as caught, ledger.open(REQUEST, "agent"):
        fail_slowly()
    assert caught.value is error
    assert ends(ledger) == (1, 1, 0)
    assert heard.events == [RequestFailed("r-1", "agent", "AllProvidersFailedError", (cause,), 2.0)]


def test_an_error_without_causes(ledger: Ledger, heard: Heard) -> None:
    with pytest.raises(GatewayError), ledger.open(REQUEST, None):
        raise GatewayError("closed")
    assert heard.events == [RequestFailed("r-1", None, "GatewayError", (), 0.0)]


def test_an_error_that_nobody_foresaw_is_counted(ledger: Ledger, heard: Heard) -> None:
    with pytest.raises(ZeroDivisionError), ledger.open(REQUEST, None):
        _ = 1 / 0
    assert ends(ledger) == (1, 1, 0)
    assert heard.events == []


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
def test_going_away_is_no_failure(ledger: Ledger, heard: Heard, error: type[BaseException]) -> None:
    with pytest.raises(error), ledger.open(REQUEST, None):
        raise error
    assert ends(ledger) == (1, 0, 1)
    assert heard.events == []
