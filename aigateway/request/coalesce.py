"""One call for all identical requests in flight.

The work runs in a task of its own, and each caller waits on a bare future that the end of the work
sets; it carries no result. So a cancelled caller takes away its own future and nothing else.
`asyncio.shield` would do that too, but it does not say when the last caller has gone, and a result
carried by many futures is "never retrieved" by those that left in the same tick.

A cancellation is never swallowed here, so `asyncio.timeout` and `Task.uncancel` work around `share`
as around any other await.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from aigateway.errors import AllProvidersFailedError, DeadlineExceededError, GatewayError

__all__ = ["Coalescer", "Leader"]

T = TypeVar("T")


class Leader:
    """The request that began a call, as those that join it see it.

    Attributes:
        deadline: When its time is over, on the clock's own scale.
        left: It went away and left the call to the others.
    """

    __slots__ = ("_inherited", "deadline", "left")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.left = False
        self._inherited = False

    def shares(self) -> bool:
        """Return whether a request that joined shares the leader's answer.

        If the leader has left, the first one to ask gets the answer as its own, so that it is
        counted and paid for once.
        """
        if self.left and not self._inherited:
            self._inherited = True
            return False
        return True

    def lacked_time(
        self, error: AllProvidersFailedError | DeadlineExceededError, now: float, deadline: float
    ) -> bool:
        """Return whether the call lacked time that a request with `deadline` has."""
        if isinstance(error, DeadlineExceededError):
            return now < deadline
        wait = error.retry_after_seconds
        return wait is not None and self.deadline <= now + wait < deadline


class _SharedCall(Generic[T]):
    """Work under way, and the callers that wait for it."""

    __slots__ = ("_cancelled", "_traceback", "key", "leader", "task", "waiters")

    def __init__(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], leader: Leader | None
    ) -> None:
        self.key = key
        self.leader = leader
        self.waiters: set[asyncio.Future[None]] = set()
        self._cancelled = False
        self._traceback: TracebackType | None = None
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self._run(start), name=f"aigateway-shared-{key[:16]}")

    @property
    def failed(self) -> bool:
        """Whether the work is over and has nothing to give."""
        task = self.task
        return task.done() and (task.cancelled() or task.exception() is not None)

    def cancel(self) -> None:
        """Cancel the work, once: a second time would break into its cleaning up."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    async def _run(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            result = await start()
            # The task's own end would wake them one turn of the loop later.
            self._ring()
            return result
        finally:
            del self  # see `outcome`

    def _ring(self) -> None:
        """Wake the waiting callers: the work is over before they run."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def settle(self) -> None:
        """Note how the work ended, and wake callers that still wait."""
        if not self.task.cancelled():
            # Also marks the error as retrieved, in case no caller is left to do so.
            error = self.task.exception()
            # Kept, because the error itself grows a traceback with each frame it passes.
            self._traceback = error.__traceback__ if error is not None else None
        self._ring()

    def outcome(self, *, joined: bool) -> T:
        """Return the result. Those that joined get an error as an object of their own."""
        if self.task.cancelled():
            raise GatewayError("The call was cancelled before it had an answer.")
        error = self.task.exception()
        if error is None:
            return self.task.result()
        try:
            raise (_own(error) if joined else error).with_traceback(self._traceback)
        finally:
            del error, self  # else the traceback and what it refers to hold each other


class Coalescer(Generic[T]):
    """Calls under way, by key. Belongs to one event loop.

    Nothing is remembered: when a call is over, with an answer or an error, the next caller begins
    another one.
    """

    __slots__ = ("_calls", "_tasks")

    def __init__(self) -> None:
        self._calls: dict[str, _SharedCall[T]] = {}
        # More than the calls: work that was given up and has not ended yet is here too.
        self._tasks: dict[asyncio.Task[T], _SharedCall[T]] = {}

    def __len__(self) -> int:
        """Calls under way that a caller could join."""
        return len(self._calls)

    def __bool__(self) -> bool:
        return True  # having nothing to do is no reason to be replaced

    def leader(self, key: str) -> Leader | None:
        """Return the leader of the work that `join` would join; None if there is none."""
        call = self._calls.get(key)
        return None if call is None or call.failed else call.leader

    async def join(self, key: str) -> T:
        """Wait for the work that is under way for this key, and has a leader. As `share` does."""
        result, _ = await self.share(key, _nothing_to_begin)
        return result

    async def share(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], leader: Leader | None = None
    ) -> tuple[T, bool]:
        """Wait for the work that is under way for this key, or begin it.

        The work sees the context variables of the caller that began it, and is bounded by no
        caller's time: put a timeout around this call, and it ends the wait of that caller only.
        When every caller has left, the work is cancelled, and the last one to leave waits until
        it has ended (a second cancellation ends that wait). The next caller begins anew.

        Args:
            key: Which work it is; `cache_key`'s for instance.
            start: Makes the work. Called only if none is under way.
            leader: The request whose work it is, for those that join.

        Returns:
            The result, and whether this call joined work that another had begun.

        Raises:
            GatewayError: The work was cancelled by something other than its callers, such as
                `aclose`.
            BaseException: Whatever the work raised. It reaches all that wait; each gets an object
                of its own if the error can be copied.
        """
        call = self._calls.get(key)
        if call is not None and call.failed:
            call = None
        joined = call is not None
        if call is None:
            call = self._begin(key, start, leader)
        try:
            if not call.task.done():
                await self._wait(call)
            # Here too: a caller that was woken may ask again before `_over` runs.
            self._forget(call)
            return call.outcome(joined=joined), joined
        finally:
            del call  # see `outcome`

    async def aclose(self) -> None:
        """Cancel everything that is under way, and wait until it has ended."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        self._calls.clear()
        for task in tasks:
            self._tasks[task].cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], leader: Leader | None
    ) -> _SharedCall[T]:
        call = self._calls[key] = _SharedCall(key, start, leader)
        self._tasks[call.task] = call
        call.task.add_done_callback(self._over)
        return call

    async def _wait(self, call: _SharedCall[T]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        call.waiters.add(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            call.waiters.discard(waiter)
            if not call.waiters and not call.task.done():
                self._forget(call)
                call.cancel()
                await asyncio.wait([call.task])
            raise

    def _over(self, task: asyncio.Task[T]) -> None:
        call = self._tasks.pop(task)
        self._forget(call)
        call.settle()

    def _forget(self, call: _SharedCall[T]) -> None:
        # A later call of the same key is not ours to forget.
        if self._calls.get(call.key) is call:
            del self._calls[call.key]


async def _nothing_to_begin() -> Any:
    raise AssertionError("There was nothing to join.")


def _own(error: BaseException) -> BaseException:
    """A copy of an error, or the error itself where a copy would not say the same.

    Python copies an exception by calling its class with its `args`, which not every class bears.
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
