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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from aigateway.errors import AllProvidersFailedError, DeadlineExceededError, GatewayError

__all__ = ["Coalescer", "Leader"]

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Leader:
    """The request that began a shared call.

    Attributes:
        deadline: Its deadline, on the clock's own scale.
        left: It was cancelled, and others still wait for the call.
    """

    deadline: float
    left: bool = False
    _inherited: bool = False

    def shares(self) -> bool:
        """Return whether a request that joined shares the leader's answer.

        If the leader has left, the first other request owns the answer: it is counted once.
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
    """Work in progress, and the callers that wait for it."""

    __slots__ = ("_cancelled", "key", "leader", "task", "traceback", "waiters")

    def __init__(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], leader: Leader | None
    ) -> None:
        self.key = key
        self.leader = leader
        self.waiters: set[asyncio.Future[None]] = set()
        self._cancelled = False
        self.traceback: TracebackType | None = None
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self._run(start), name=f"aigateway-shared-{key[:16]}")

    @property
    def failed(self) -> bool:
        """Whether the work has ended without a result."""
        task = self.task
        return task.done() and (task.cancelled() or task.exception() is not None)

    def cancel(self) -> None:
        """Cancel the work, once: a second time would interrupt its cleanup."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    async def _run(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            result = await start()
            # The end of the task would wake them one turn of the loop later.
            self.wake()
            return result
        finally:
            del self  # see `fail`

    def wake(self) -> None:
        """Wake the waiting callers: the work ends before they run."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def fail(self, *, joined: bool) -> NoReturn:
        """Raise the error of the work that failed, for those that joined as a copy."""
        if self.task.cancelled():
            raise GatewayError("The call was cancelled before it had an answer.")
        error = self.task.exception()
        assert error is not None  # noqa: S101 - the caller has looked
        try:
            raise (_copied(error) if joined else error).with_traceback(self.traceback)
        finally:
            del error, self  # breaks a reference cycle with the traceback


class Coalescer(Generic[T]):
    """Shared calls in progress, by key. Belongs to one event loop.

    Results are not kept: after the end of a call, the next caller begins another one.
    """

    __slots__ = ("_calls", "_tasks")

    def __init__(self) -> None:
        self._calls: dict[str, _SharedCall[T]] = {}
        # Also work that was cancelled and has not ended yet.
        self._tasks: dict[asyncio.Task[T], _SharedCall[T]] = {}

    def __len__(self) -> int:
        """Return the number of calls that a caller could join."""
        return len(self._calls)

    def __bool__(self) -> bool:
        return True  # also without calls

    def leader(self, key: str) -> Leader | None:
        """Return the leader of the work that `join` would join; None if there is none."""
        call = self._calls.get(key)
        return None if call is None or call.failed else call.leader

    async def join(self, key: str) -> T:
        """Wait, like `share`, for the work of this key, which is in progress and has a leader."""
        result, _ = await self.share(key, _nothing_to_begin)
        return result

    async def share(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], leader: Leader | None = None
    ) -> tuple[T, bool]:
        """Wait for the work of this key, or begin it.

        The work has the context variables of the caller that began it. A timeout around this call
        ends the wait of one caller only. When every caller has left, the work is cancelled, and the
        last one waits until it has ended (a second cancellation ends that wait). The next caller
        begins the work again.

        Args:
            key: Identifies the work; for example from `cache_key`.
            start: Makes the work. Called only if none is in progress.
            leader: The request that begins the work.

        Returns:
            The result, and whether another caller had begun the work.

        Raises:
            GatewayError: The work was cancelled by something else than its callers, such as
                `aclose`.
            BaseException: The error of the work. Each caller gets a copy, if it can be copied.
        """
        call = self._calls.get(key)
        if call is not None and call.failed:
            call = None
        joined = call is not None
        if call is None:
            call = self._calls[key] = _SharedCall(key, start, leader)
            self._tasks[call.task] = call
            call.task.add_done_callback(self._ended)
        task = call.task
        try:
            if not task.done():
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                call.waiters.add(waiter)
                try:
                    await waiter
                except asyncio.CancelledError:
                    await self._leave(call, waiter)
                    raise
            # Here too: a caller that was woken may call again before `_ended` runs.
            if self._calls.get(key) is call:
                del self._calls[key]
            if task.cancelled() or task.exception() is not None:
                call.fail(joined=joined)
            return task.result(), joined
        finally:
            del call, task  # see `fail`

    async def aclose(self) -> None:
        """Cancel all work, and wait until it has ended."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        self._calls.clear()
        for task in tasks:
            self._tasks[task].cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _leave(self, call: _SharedCall[T], waiter: asyncio.Future[None]) -> None:
        """Remove a caller that was cancelled; if it is the last one, end the work."""
        call.waiters.discard(waiter)
        if not call.waiters and not call.task.done():
            if self._calls.get(call.key) is call:
                del self._calls[call.key]
            call.cancel()
            await asyncio.wait([call.task])

    def _ended(self, task: asyncio.Task[T]) -> None:
        call = self._tasks.pop(task)
        if self._calls.get(call.key) is call:  # and not a later one of the same key
            del self._calls[call.key]
        if not task.cancelled():
            # This also marks the error as retrieved, if no caller is left.
            error = task.exception()
            # The error's own traceback grows with each frame that it passes.
            call.traceback = error.__traceback__ if error is not None else None
        if call.waiters:
            call.wake()


async def _nothing_to_begin() -> Any:
    raise AssertionError("There was nothing to join.")


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
