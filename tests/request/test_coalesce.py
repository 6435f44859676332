import asyncio
import contextvars
import pickle
from functools import partial

import pytest

from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    ProviderFailure,
)
from aigateway.request.coalesce import Coalescer, SharedCall
from aigateway.testing import FakeClock
from tests.processes import PATIENCE
from tests.request.sharing import callers, settle

pytestmark = pytest.mark.usefixtures("complaints")


class Work:
    """Work that ends when it is told to, and says what became of it."""

    def __init__(self, answer: str = "answer") -> None:
        self.answer = answer
        self.started = self.cancelled = self.ended = 0
        self.gate = asyncio.Event()
        self.cleaned_up = asyncio.Event()
        self.cleaned_up.set()

    async def __call__(self) -> object:
        self.started += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.cleaned_up.wait()
            raise
        finally:
            self.ended += 1
        return self.answer


async def test_a_hundred_at_once_start_one(coalescer: Coalescer[object]) -> None:
    work = Work()
    tasks = callers(coalescer, work, 100)
    await settle()
    assert (work.started, len(coalescer)) == (1, 1)
    work.gate.set()
    results = await asyncio.gather(*tasks)
    assert results == [("answer", False)] + [("answer", True)] * 99
    assert len(coalescer) == 0


async def test_other_keys_fly_on_their_own(coalescer: Coalescer[object]) -> None:
    async def answer(text: str) -> str:
        await asyncio.sleep(0)
        return text

    results = await asyncio.gather(*(coalescer.share(key, partial(answer, key)) for key in "abc"))
    assert results == [("a", False), ("b", False), ("c", False)]


async def test_nothing_is_remembered(coalescer: Coalescer[object]) -> None:
    work = Work()
    work.gate.set()
    assert await coalescer.share("k", work) == ("answer", False)
    assert await coalescer.share("k", work) == ("answer", False)
    assert work.started == 2


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_caller_that_is_cancelled_harms_nobody(
    coalescer: Coalescer[object], victim: int
) -> None:
    work = Work()
    tasks = callers(coalescer, work, 3)
    await settle()
    tasks.pop(victim).cancel()
    await settle()
    work.gate.set()
    assert [answer for answer, _ in await asyncio.gather(*tasks)] == ["answer", "answer"]
    assert (work.started, work.cancelled) == (1, 0)


async def test_when_all_have_left_the_work_is_cancelled_and_awaited(
    coalescer: Coalescer[object],
) -> None:
    work = Work()
    work.cleaned_up.clear()
    tasks = callers(coalescer, work, 3)
    await settle()
    for task in tasks:
        task.cancel()
    await settle()
    assert (work.cancelled, work.ended, len(coalescer)) == (1, 0, 0)
    assert [task.done() for task in tasks] == [True, True, False]  # the last one waits
    work.cleaned_up.set()
    await asyncio.wait(tasks)
    assert work.ended == 1
    assert all(task.cancelled() for task in tasks)


async def test_the_last_one_to_leave_can_be_hurried(coalescer: Coalescer[object]) -> None:
    work = Work()
    work.cleaned_up.clear()
    (task,) = callers(coalescer, work, 1)
    await settle()
    task.cancel()
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == 0
    closing = asyncio.create_task(coalescer.aclose())
    await settle()
    assert not closing.done()  # what nobody waits for any more is still waited for here
    work.cleaned_up.set()
    await closing
    assert (work.ended, work.cancelled) == (1, 1)


async def test_who_comes_while_the_work_is_being_given_up_begins_anew(
    coalescer: Coalescer[object],
) -> None:
    old, new = Work("old"), Work("new")
    old.cleaned_up.clear()
    (leaver,) = callers(coalescer, old, 1)
    await settle()
    leaver.cancel()
    await settle()
    (comer,) = callers(coalescer, new, 1)
    await settle()
    old.cleaned_up.set()
    await settle()
    assert len(coalescer) == 1  # the old one's end does not forget the new one
    (joiner,) = callers(coalescer, old, 1)
    new.gate.set()
    assert await comer == ("new", False)
    assert await joiner == ("new", True)
    assert (old.started, new.started, new.cancelled) == (1, 1, 0)


async def test_who_comes_in_the_tick_of_the_last_ones_leaving_keeps_it_alive(
    coalescer: Coalescer[object],
) -> None:
    work = Work()
    (leaver,) = callers(coalescer, work, 1)
    await settle()
    comer = asyncio.create_task(coalescer.share("k", work))  # runs before the leaver does
    leaver.cancel()
    await settle()
    work.gate.set()
    assert await comer == ("answer", True)
    assert leaver.cancelled()
    assert (work.started, work.cancelled) == (1, 0)


async def test_closing_before_the_work_took_its_first_step(coalescer: Coalescer[object]) -> None:
    work = Work()
    (task,) = callers(coalescer, work, 1)
    await asyncio.sleep(0)  # the caller has begun, the work has not
    await coalescer.aclose()
    with pytest.raises(GatewayError):
        await task
    assert (work.started, len(coalescer)) == (0, 0)


async def test_whoever_has_the_answer_and_asks_again_begins_anew(
    coalescer: Coalescer[object],
) -> None:
    started = 0

    async def work() -> int:
        nonlocal started
        started += 1
        number = started
        await asyncio.sleep(0)
        return number

    async def twice() -> list[tuple[object, bool]]:
        return [await coalescer.share("k", work), await coalescer.share("k", work)]

    results = await asyncio.gather(*(twice() for _ in range(5)))
    assert started == 2
    assert [first for first, _ in results] == [(1, False), *[(1, True)] * 4]
    assert sorted(second for _, second in results) == [(2, False), *[(2, True)] * 4]


async def test_work_that_a_stranger_cancels_before_its_first_step(
    coalescer: Coalescer[object],
) -> None:
    work = Work()
    (task,) = callers(coalescer, work, 1)
    await asyncio.sleep(0)
    (flying,) = asyncio.all_tasks() - {task, asyncio.current_task()}
    flying.cancel()
    with pytest.raises(GatewayError):
        await task
    assert (work.started, len(coalescer)) == (0, 0)


async def test_cancelled_in_the_tick_of_the_answer(coalescer: Coalescer[object]) -> None:
    work = Work()
    tasks = callers(coalescer, work, 2)
    await settle()
    work.gate.set()
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert await tasks[1] == ("answer", True)


async def test_who_comes_after_the_answer_and_before_the_tidying_gets_it(
    coalescer: Coalescer[object],
) -> None:
    arrivals: list[asyncio.Task[tuple[object, bool]]] = []

    async def work() -> str:
        await asyncio.sleep(0)
        # Runs after this work has returned, and before its end is heard of.
        arrivals.append(asyncio.create_task(coalescer.share("k", work)))
        return f"answer {len(arrivals)}"

    assert await coalescer.share("k", work) == ("answer 1", False)
    async with asyncio.timeout(PATIENCE):
        assert await arrivals[0] == ("answer 1", True)


async def divide() -> object:
    await asyncio.sleep(0)
    return 1 / 0


async def test_each_caller_has_its_own_deadline(coalescer: Coalescer[object]) -> None:
    clock = FakeClock()
    work = Work()

    async def within(seconds: float) -> object:
        async with clock.timeout(seconds):
            return await coalescer.share("k", work)

    short, long = (asyncio.create_task(within(seconds)) for seconds in (1, 10))
    await clock.advance(2)
    with pytest.raises(TimeoutError):
        await short
    work.gate.set()
    assert await long == ("answer", True)


async def test_the_last_deadline_cancels_the_work(coalescer: Coalescer[object]) -> None:
    clock = FakeClock()
    work = Work()

    async def impatient() -> tuple[int, object]:
        with pytest.raises(TimeoutError):
            async with clock.timeout(1):
                await coalescer.share("k", work)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling(), await asyncio.sleep(0, "goes on")

    task = asyncio.create_task(impatient())
    await clock.advance(2)
    assert await task == (0, "goes on")  # the timeout took its cancellation back
    assert (work.cancelled, work.ended, len(coalescer)) == (1, 1, 0)


async def test_a_cancellation_during_a_timeout_stays_one(coalescer: Coalescer[object]) -> None:
    clock = FakeClock()
    work = Work()
    work.cleaned_up.clear()

    async def impatient() -> object:
        async with clock.timeout(1):
            return await coalescer.share("k", work)

    task = asyncio.create_task(impatient())
    await clock.advance(2)
    task.cancel()  # while the timed-out caller waits for the work to end
    with pytest.raises(asyncio.CancelledError):
        await task
    work.cleaned_up.set()


async def test_in_a_task_group_a_failure_ends_the_others(coalescer: Coalescer[object]) -> None:
    work = Work()

    async def all_or_nothing() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(coalescer.share("k", work))
            group.create_task(coalescer.share("k", work))
            group.create_task(divide())

    with pytest.raises(ExceptionGroup) as caught:
        await all_or_nothing()
    assert caught.group_contains(ZeroDivisionError)
    assert (work.cancelled, work.ended) == (1, 1)


async def test_the_work_sees_the_context_of_who_began_it(coalescer: Coalescer[object]) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody")

    async def read() -> object:
        await asyncio.sleep(0)
        return variable.get(), asyncio.current_task()

    async def caller(name: str) -> tuple[object, bool]:
        variable.set(name)
        return await coalescer.share("a-key-that-is-rather-long", read)

    (first, _), (second, joined) = await asyncio.gather(caller("first"), caller("second"))
    assert first == second
    assert joined
    assert isinstance(first, tuple)
    assert first[0] == "first"
    assert first[1].get_name() == "aigateway-shared-a-key-that-is-ra"


async def test_closing_cancels_waits_and_says_so(coalescer: Coalescer[object]) -> None:
    work = Work()
    tasks = callers(coalescer, work, 3)
    await settle()
    await coalescer.aclose()
    assert (work.cancelled, work.ended, len(coalescer)) == (1, 1, 0)
    for caught in await asyncio.gather(*tasks, return_exceptions=True):
        # Not CancelledError: nobody cancelled *them*, and a task group would take it for that.
        assert type(caught) is GatewayError
        assert pickle.loads(pickle.dumps(caught)).args == caught.args
    await coalescer.aclose()


async def test_who_comes_during_the_closing_begins_anew(coalescer: Coalescer[object]) -> None:
    old, new = Work("old"), Work("new")
    old.cleaned_up.clear()
    (task,) = callers(coalescer, old, 1)
    await settle()
    closing = asyncio.create_task(coalescer.aclose())
    await settle()
    assert len(coalescer) == 0
    (comer,) = callers(coalescer, new, 1)
    await settle()
    assert len(coalescer) == 1
    old.cleaned_up.set()
    await closing
    with pytest.raises(GatewayError):
        await task
    new.gate.set()
    assert await comer == ("new", False)
    assert len(coalescer) == 0


async def test_closing_from_within_the_work_does_not_wait_for_itself(
    coalescer: Coalescer[object],
) -> None:
    async def work() -> str:
        await coalescer.aclose()
        return "closed"

    async with asyncio.timeout(PATIENCE):
        assert await coalescer.share("k", work) == ("closed", False)


async def test_closing_does_not_cancel_twice(coalescer: Coalescer[object]) -> None:
    work = Work()
    work.cleaned_up.clear()
    (task,) = callers(coalescer, work, 1)
    await settle()
    closing = asyncio.create_task(coalescer.aclose())
    await settle()
    task.cancel()
    await settle()
    work.cleaned_up.set()
    await asyncio.wait([closing, task])
    assert (work.cancelled, work.ended) == (1, 1)


def test_having_nothing_to_do_is_not_being_nothing() -> None:
    assert Coalescer()


def begun_by(deadline: float) -> SharedCall[object]:
    return SharedCall(Coalescer(), "k", deadline)


class TestLead:
    async def test_those_who_join_find_it_until_the_work_is_over(
        self, coalescer: Coalescer[object]
    ) -> None:
        work = Work()
        assert not coalescer.calls
        task = asyncio.create_task(coalescer.share("k", work, 5.0))
        await settle()
        assert [(key, call.deadline) for key, call in coalescer.calls.items()] == [("k", 5.0)]
        joined = asyncio.create_task(coalescer.join("k"))
        await settle()
        work.gate.set()
        assert await joined == "answer"
        assert await task == ("answer", False)
        assert not coalescer.calls

    async def test_without_one_there_is_nothing_to_join(self, coalescer: Coalescer[object]) -> None:
        with pytest.raises(AssertionError, match="nothing to join"):
            await coalescer.join("k")

    async def test_failed_work_has_none_even_before_the_tidying(
        self, coalescer: Coalescer[object]
    ) -> None:
        found: list[int] = []

        async def fail() -> object:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(lambda: found.append(len(coalescer)))
            raise LookupError

        with pytest.raises(LookupError):
            await coalescer.share("k", fail)
        assert found == [0]

    def test_all_share_its_answer_while_it_is_there(self) -> None:
        lead = begun_by(5.0)
        assert [lead.shares() for _ in range(3)] == [True, True, True]

    def test_when_it_has_left_one_takes_its_place(self) -> None:
        lead = begun_by(5.0)
        assert lead.shares()
        lead.left = True
        assert [lead.shares() for _ in range(3)] == [False, True, True]

    @pytest.mark.parametrize(("deadline", "lacked"), [(9.0, False), (10.0, False), (11.0, True)])
    def test_its_deadline_was_too_short_for_those_who_have_time_left(
        self, deadline: float, lacked: bool
    ) -> None:
        error = DeadlineExceededError("late", ())
        assert begun_by(10.0).lacked_time(error, 10.0, deadline) is lacked

    @pytest.mark.parametrize(
        ("retry_after", "deadline", "lacked"),
        [
            (None, 60.0, False),
            (4.0, 60.0, False),  # it could have waited itself
            (5.0, 60.0, True),
            (6.0, 60.0, True),
            (6.0, 11.5, True),
            (6.0, 11.0, False),  # too late for this one, too
            (6.0, 9.0, False),
        ],
    )
    def test_or_for_a_provider_that_comes_back_in_time_for_them(
        self, retry_after: float | None, deadline: float, lacked: bool
    ) -> None:
        kind = FailureKind.RATE_LIMITED
        cause = ProviderFailure("a", kind, retry_after_seconds=retry_after)
        error = AllProvidersFailedError.of([cause])
        assert error.retry_after_seconds == retry_after
        assert begun_by(10.0).lacked_time(error, 5.0, deadline) is lacked
