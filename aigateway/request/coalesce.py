"""One call for all identical requests in flight.

The work runs in a task of its own. Each caller waits on a future without a result, which the end of
the work sets; so a cancelled caller removes its own future only. (`asyncio.shield` does not show
when the last caller has left, and asyncio reports a result in many futures as "never retrieved" for
callers that left in the same tick.)

A cancellation is never swallowed here, so `asyncio.timeout` and `Task.uncancel` work around `share`
as around any other await.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
import math
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from aigateway.clock import SYSTEM_CLOCK, Clock, Timer
from aigateway.errors import AllProvidersFailedError, DeadlineExceededError, GatewayError

__all__ = ["Coalescer", "SharedCall"]

T = TypeVar("T")

_serials = itertools.count()  # so that heaps need not compare futures


class SharedCall(Generic[T]):
    """Work in progress, and the callers that wait for it.

    Attributes:
        deadline: Of the request that began it, on the clock's own scale.
        left: That request was cancelled, and others still wait.
        key: Under which others join it.
        waiters: What they wait on.
        task: Does the work.
        result: Of the work.
        error: That ended the work.
    """

    __slots__ = (
        "_cancelled", "_coalescer", "_deadlines", "_inherited", "_traceback", "deadline", "error",
        "key", "left", "result", "task", "waiters",
    )  # fmt: skip

    result: T
    task: asyncio.Task[None]

    def __init__(self, coalescer: Coalescer[T], key: str, deadline: float) -> None:
        self._coalescer = coalescer
        self.key = key
        self.deadline = deadline
        self.left = self._inherited = self._cancelled = False
        self.waiters: set[asyncio.Future[bool]] = set()
        self.error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._deadlines: _Deadlines | None = None

    def shares(self) -> bool:
        """Return whether a request that joined shares the answer of the one that began it.

        If that has left, the first other request owns the answer: it is counted once.
        """
        if self.left and not self._inherited:
            self._inherited = True
            return False
        return True

    def lacked_time(
        self, error: AllProvidersFailedError | DeadlineExceededError, now: float, deadline: float
    ) -> bool:
        """Return whether it lacked time that a request with `deadline` has."""
        if isinstance(error, DeadlineExceededError):
            return now < deadline
        wait = error.retry_after_seconds
        return wait is not None and self.deadline <= now + wait < deadline

    def cancel(self) -> None:
        """Cancel the work, once: a second time would interrupt its cleanup."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    async def run(self, work: Coroutine[Any, Any, T], keep: Callable[[T], object] | None) -> None:
        """Do the work, from the second step on."""
        try:
            await _FIRST_STEP
            self.result = await work
            if keep is not None:
                keep(self.result)
        except BaseException as error:
            work.close()  # it may not have begun
            # The error's own traceback grows with each frame that it passes.
            self.error, self._traceback = error, error.__traceback__
            self._coalescer.forget(self)  # the next caller begins anew
            if not isinstance(error, Exception):
                raise
        finally:
            # The end of the task would wake them one turn of the loop later.
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(False)
            self.waiters.clear()
            if self._deadlines is not None:
                self._deadlines.end()
            self._coalescer.running.discard(self)
            del self  # see `fail`

    def bound(self, waiter: asyncio.Future[bool], deadline: float, clock: Clock) -> None:
        """Bound one caller's wait."""
        if self._deadlines is None:
            self._deadlines = _Deadlines(clock)
        self._deadlines.add(waiter, deadline)

    def fail(self, *, joined: bool) -> NoReturn:
        """Raise the error of the work that failed, for those that joined as a copy."""
        error = self.error
        assert error is not None  # noqa: S101 - the caller has looked
        try:
            if isinstance(error, asyncio.CancelledError):
                raise GatewayError("The call was cancelled before it had an answer.") from None
            raise (_copied(error) if joined else error).with_traceback(self._traceback)
        finally:
            del error, self  # breaks a reference cycle with the traceback


class _Deadlines:
    """Those of the callers that wait for one call. All of them share one timer."""

    __slots__ = ("_clock", "_due", "_heap", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, asyncio.Future[bool]]] = []
        self._due = math.inf  # what the timer is set to
        self._timer: Timer | None = None

    def add(self, waiter: asyncio.Future[bool], deadline: float) -> None:
        heapq.heappush(self._heap, (deadline, next(_serials), waiter))
        if deadline < self._due:
            self._set_timer()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._heap[0][0]
        seconds = max(0.0, self._due - self._clock.now())
        self._timer = self._clock.call_later(seconds, self._expire)

    def _expire(self) -> None:
        now = max(self._clock.now(), self._due)  # a timer may fire a little early
        self._timer, self._due = None, math.inf
        while self._heap and self._heap[0][0] <= now:
            waiter = heapq.heappop(self._heap)[2]
            if not waiter.done():
                waiter.set_result(True)
        if self._heap:
            self._set_timer()


class Coalescer(Generic[T]):
    """Shared calls in progress, by key. Belongs to one event loop.

    Results are not kept: after the end of a call, the next caller begins another one.

    Attributes:
        calls: Those that a caller can join.
        running: The calls whose work has not ended.
    """

    __slots__ = ("_loop", "calls", "running")
    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.calls: dict[str, SharedCall[T]] = {}
        # Also work that was cancelled and has not ended yet.
        self.running: set[SharedCall[T]] = set()

    def __len__(self) -> int:
        """Return the number of calls that a caller could join."""
        return len(self.calls)

    def __bool__(self) -> bool:
        return True  # also without calls

    def join(
        self, key: str, deadline: float = math.inf, clock: Clock = SYSTEM_CLOCK
    ) -> Coroutine[Any, Any, T]:
        """Wait, like `share`, for the work of this key, which is in progress.

        Args:
            key: As for `share`.
            deadline: On the clock's scale. It ends the wait of this caller only.
            clock: The source of time.

        Raises:
            TimeoutError: The deadline passed first.
        """
        call = self.calls.get(key)
        assert call is not None, "There was nothing to join."  # noqa: S101
        return self._wait_for(call, deadline, clock, joined=True)

    async def share(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], deadline: float = math.inf
    ) -> tuple[T, bool]:
        """Wait for the work of this key, or begin it.

        The work has the context variables of the caller that began it. A timeout around this call
        ends the wait of one caller only. When every caller has left, the work is cancelled, and the
        last one waits until it has ended (a second cancellation ends that wait). The next caller
        begins the work again.

        Args:
            key: Identifies the work; for example from `cache_key`.
            start: Makes the work. Called only if none is in progress.
            deadline: The caller's, on the clock's scale. It is only noted for `lacked_time`: the
                wait goes on after it.

        Returns:
            The result, and whether another caller had begun the work.

        Raises:
            GatewayError: The work was cancelled by something else than its callers, such as
                `aclose`.
            BaseException: The error of the work. Each caller gets a copy, if it can be copied.
        """
        call = self.calls.get(key)
        if call is not None:
            return await self._wait_for(call, joined=True), True
        return await self.begin(key, start(), deadline), False

    def begin(
        self,
        key: str,
        work: Coroutine[Any, Any, T],
        deadline: float,
        keep: Callable[[T], object] | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Begin the work of a key that is not in progress, and wait for it like `share`.

        `keep` is called with the result, before a caller has it.
        """
        call = self.calls[key] = SharedCall(self, key, deadline)
        self.running.add(call)
        run = call.run(work, keep)
        run.send(None)  # into its `try`: a task that is cancelled at once does not even begin
        self._loop = loop = asyncio.get_running_loop()
        call.task = loop.create_task(run, name=f"aigateway-shared-{key[:16]}")
        return self._wait_for(call)

    async def _wait_for(
        self,
        call: SharedCall[T],
        deadline: float = math.inf,
        clock: Clock = SYSTEM_CLOCK,
        *,
        joined: bool = False,
    ) -> T:
        try:
            if not call.task.done():  # one that was woken may call again before the others run
                waiter: asyncio.Future[bool] = self._loop.create_future()
                call.waiters.add(waiter)
                if deadline < math.inf:
                    call.bound(waiter, deadline, clock)
                try:
                    late = await waiter
                except asyncio.CancelledError:
                    if not joined:
                        call.left = True
                    await self._leave(call, waiter)
                    raise
                if late:
                    await self._leave(call, waiter)
                    raise TimeoutError
            if self.calls.get(call.key) is call:
                del self.calls[call.key]
            if call.error is not None:
                call.fail(joined=joined)
            return call.result
        finally:
            del call  # see `fail`

    async def aclose(self) -> None:
        """Cancel all work, and wait until it has ended."""
        current = asyncio.current_task()
        others = [call for call in self.running if call.task is not current]
        self.calls.clear()
        for call in others:
            call.cancel()
        if others:
            await asyncio.wait([call.task for call in others])

    async def _leave(self, call: SharedCall[T], waiter: asyncio.Future[bool]) -> None:
        """Remove a caller that leaves; if it is the last one, end the work."""
        call.waiters.discard(waiter)
        if not call.waiters:
            self.forget(call)
            if not call.task.done():
                call.cancel()
                await asyncio.wait([call.task])

    def forget(self, call: SharedCall[T]) -> None:
        """Let no further caller join a call."""
        if self.calls.get(call.key) is call:  # and not a later one of the same key
            del self.calls[call.key]


class _Pause:
    """Pauses a coroutine once, until its next step."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        return iter((None,))  # type: ignore[return-value]  # any iterator will do


_FIRST_STEP = _Pause()


def _copied(error: BaseException) -> BaseException:
    """Return a copy of an error, or the error itself if a copy would differ.

    Python copies an exception by calling its class with its `args`, which not every class allows.
    """
    try:
        twin = copy.copy(error)
        same = type(twin) is type(error) and twin.args == error.args and str(twin) == str(error)
    except Exception:  # noqa: BLE001  # a foreign constructor may raise anything
        return error
    if not same:
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    notes = getattr(error, "__notes__", None)
    if notes is not None:
        twin.__notes__ = list(notes)
    return twin
