"""However a request ends, it is counted once, and its error passes unchanged."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from aigateway import AsyncGateway
from aigateway.errors import (
    AllProvidersFailedError,
    ConfigurationError,
    FailureKind,
    GatewayError,
    ProviderFailure,
)
from aigateway.events import Event, RequestFailed, RequestServed
from aigateway.messages import ChatRequest, Choice, Completion, Usage
from aigateway.telemetry.recorder import Emitter, RequestRecord, RequestRecorder
from aigateway.testing import FakeClock

REQUEST = ChatRequest((), request_id="r-1")
ANSWER = Completion("c", "m", (Choice(),), usage=Usage(1, 2, 3), cost_usd=0.5)


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
def recorder(clock: FakeClock, heard: Heard) -> RequestRecorder:
    return RequestRecorder(clock, Emitter([heard]))


def ends(recorder: RequestRecorder) -> tuple[int, int, int]:
    counters = recorder.counters
    return counters.total, counters.ended["failed"], counters.ended["cancelled"]


def test_it_gives_the_moment_of_the_beginning(recorder: RequestRecorder, heard: Heard) -> None:
    with RequestRecord(recorder, REQUEST) as entry:
        assert entry.began == 50.0
        assert ends(recorder) == (1, 0, 0)
        entry.served("one", ANSWER, attempts=2)
    assert ends(recorder) == (1, 0, 0)
    assert recorder.snapshot()["served"] == 1
    assert heard.events == [RequestServed("r-1", "one", "m", None, 2, 0.0, 3, 0.5)]


def test_an_error_is_the_end(recorder: RequestRecorder, clock: FakeClock, heard: Heard) -> None:
    cause = ProviderFailure("one", FailureKind.TIMEOUT)
    error = AllProvidersFailedError.of([cause])
    asked = replace(REQUEST, agent="agent")

    def fail_slowly() -> None:
        clock.tick(2.0)
        raise error

    with pytest.raises(AllProvidersFailedError) as caught, RequestRecord(recorder, asked):
        fail_slowly()
    assert caught.value is error
    assert ends(recorder) == (1, 1, 0)
    assert heard.events == [RequestFailed("r-1", "agent", "AllProvidersFailedError", (cause,), 2.0)]


def test_an_error_without_causes(recorder: RequestRecorder, heard: Heard) -> None:
    with pytest.raises(GatewayError), RequestRecord(recorder, REQUEST):
        raise GatewayError("closed")
    assert heard.events == [RequestFailed("r-1", None, "GatewayError", (), 0.0)]


def test_an_error_that_nobody_foresaw_is_counted(recorder: RequestRecorder, heard: Heard) -> None:
    with pytest.raises(ZeroDivisionError), RequestRecord(recorder, REQUEST):
        _ = 1 / 0
    assert ends(recorder) == (1, 1, 0)
    assert heard.events == [RequestFailed("r-1", None, "ZeroDivisionError", (), 0.0)]


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_who_leaves_after_the_answer_is_counted_once(
    recorder: RequestRecorder, heard: Heard, error: type[BaseException]
) -> None:
    def leave() -> None:
        with RequestRecord(recorder, REQUEST, streamed=True) as entry:
            entry.served("one", ANSWER, attempts=1)
            raise error

    with pytest.raises(error):
        leave()
    assert sum(recorder.counters.ended.values()) == 1
    assert ends(recorder) == (1, 0, 1)
    assert heard.events == []


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt])
def test_going_away_is_no_failure(
    recorder: RequestRecorder, heard: Heard, error: type[BaseException]
) -> None:
    with pytest.raises(error), RequestRecord(recorder, REQUEST):
        raise error
    assert ends(recorder) == (1, 0, 1)
    assert heard.events == []


class AsyncHook:
    async def on_event(self, event: Event) -> None:
        """Wait for something."""


class WantsOne(Heard):
    wants = RequestFailed


@pytest.mark.parametrize(
    ("hooks", "problem"),
    [
        (Heard(), r"must be a list, such as hooks=\[MyHook\(\)\]"),
        ([Heard], "Heard is a class"),
        ([print], r"print has no method on_event\(event\)"),
        ([object()], r"object has no method on_event\(event\)"),
        ([AsyncHook()], "AsyncHook has an async on_event"),
        ([WantsOne()], "WantsOne has a `wants` that is no collection"),
    ],
)
def test_what_is_no_hook_is_refused(hooks: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"hooks: {problem}"):
        AsyncGateway([], hooks=hooks)
