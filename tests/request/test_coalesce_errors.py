"""How an error comes to those who wait for it, and to those who do not any more."""

import asyncio
import gc
import traceback
from collections.abc import Coroutine
from typing import Any

import pytest

from aigateway.errors import (
    AllProvidersFailedError,
    FailureKind,
    GatewayError,
    ProviderFailure,
)
from aigateway.request.coalesce import Coalescer
from tests.request.sharing import callers, settle

pytestmark = pytest.mark.usefixtures("complaints")


class Failing:
    """Work that fails when it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.started = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> object:
        self.started += 1
        await self.gate.wait()
        raise self.error


async def divide(one: int, other: int) -> object:
    await asyncio.sleep(0)
    return one / other


async def test_who_comes_after_an_error_and_before_the_tidying_begins_anew(
    coalescer: Coalescer[object],
) -> None:
    async def good() -> str:
        return "answer"

    arrivals: list[asyncio.Task[tuple[object, bool]]] = []

    async def bad() -> str:
        await asyncio.sleep(0)
        arrivals.append(asyncio.create_task(coalescer.share("k", good)))
        raise LookupError

    with pytest.raises(LookupError):
        await coalescer.share("k", bad)
    assert await arrivals[0] == ("answer", False)
    assert len(coalescer) == 0


async def test_who_comes_after_a_strangers_cancelling_and_before_the_tidying_begins_anew(
    coalescer: Coalescer[object],
) -> None:
    async def good() -> str:
        return "answer"

    arrivals: list[asyncio.Task[tuple[object, bool]]] = []

    async def cancelled() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            arrivals.append(asyncio.create_task(coalescer.share("k", good)))
            raise
        raise AssertionError

    (task,) = callers(coalescer, cancelled, 1)
    await settle()
    (work,) = [each for each in asyncio.all_tasks() if each.get_name() == "aigateway-shared-k"]
    work.cancel()
    with pytest.raises(GatewayError):
        await task
    assert await arrivals[0] == ("answer", False)


async def test_an_error_reaches_all_as_their_own(coalescer: Coalescer[object]) -> None:
    cause = ProviderFailure("openai/gpt", FailureKind.SERVER_ERROR, 500)
    error = AllProvidersFailedError.of([cause])
    error.__cause__ = OSError("below")
    error.add_note("a note")
    work = Failing(error)
    tasks = callers(coalescer, work, 20)
    await settle()
    work.gate.set()
    caught = await asyncio.gather(*tasks, return_exceptions=True)
    assert caught[0] is error
    assert len({id(each) for each in caught}) == 20
    depths = set()
    for each in caught:
        assert isinstance(each, AllProvidersFailedError)
        assert (str(each), each.causes) == (str(error), error.causes)
        assert each.__cause__ is error.__cause__
        assert each.__notes__ == ["a note"]
        frames = traceback.extract_tb(each.__traceback__)
        assert frames[-1].name == "__call__"  # where it was raised
        depths.add(len(frames))
    assert len(depths) == 1  # none has grown by the others' frames
    with pytest.raises(AllProvidersFailedError):
        await coalescer.share("k", work)  # not remembered
    assert work.started == 2


class Particular(Exception):  # noqa: N818 - its constructor is the point
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class Demanding(Exception):  # noqa: N818
    def __init__(self, *, code: int) -> None:
        super().__init__(code)


@pytest.mark.parametrize("error", [Particular(5), Demanding(code=5)])
async def test_an_error_that_cannot_be_copied_is_shared(
    coalescer: Coalescer[object], error: Exception
) -> None:
    work = Failing(error)
    tasks = callers(coalescer, work, 3)
    await settle()
    work.gate.set()
    caught = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(each is error for each in caught)
    assert len(traceback.extract_tb(error.__traceback__)) < 8


async def test_an_error_nobody_waits_for_is_no_complaint(coalescer: Coalescer[object]) -> None:
    async def stubborn() -> object:
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ValueError("on the way out") from None

    (task,) = callers(coalescer, stubborn, 1)
    await settle()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()  # and the fixture looks for complaints


async def test_an_error_and_the_leaving_of_all_in_one_tick(coalescer: Coalescer[object]) -> None:
    work = Failing(ValueError("x"))
    tasks = callers(coalescer, work, 3)
    await settle()
    work.gate.set()
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_errors_leave_no_cycles(coalescer: Coalescer[object]) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            with pytest.raises(ZeroDivisionError):
                await coalescer.share("k", lambda: divide(1, 0))
        alive = sum(isinstance(each, ZeroDivisionError) for each in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 1  # pytest.raises may hold the last


async def test_a_start_that_fails_leaves_nothing_behind(coalescer: Coalescer[object]) -> None:
    def start() -> Coroutine[Any, Any, object]:
        raise RuntimeError("no coroutine")

    with pytest.raises(RuntimeError, match="no coroutine"):
        await coalescer.share("k", start)
    assert len(coalescer) == 0
