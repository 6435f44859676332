"""One call for all who ask the same at the same time.

The work runs in a task of its own, and each caller waits for a bell of its own (a bare future that
the work's end rings; it carries nothing). So a caller that is cancelled takes away its own bell and
nothing else. `asyncio.shield` would do that too, but it does not say when the last caller has gone,
and an outcome carried by many futures is "never retrieved" by those who left in the same tick.

A cancellation is never swallowed here, so `asyncio.timeout` and `Task.uncancel` work around
`share` as around any other await.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from aigateway.errors import AllProvidersFailedError, DeadlineExceededError, GatewayError

__all__ = ["Flights", "Lead"]

T = TypeVar("T")


class Lead:
    """The request that began a flight, as those who join it see it.

    Attributes:
        deadline: When its time is over, on the clock's own scale.
        left: It went away and left the flight to the others.
    """

    __slots__ = ("_inherited", "deadline", "left")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.left = False
        self._inherited = False

    def shares(self) -> bool:
        """Whether one who joined gets a share of the leader's answer.

        If the leader has left, the first to ask gets the answer as its own, so that it is counted
        and paid for once.
        """
        if self.left and not self._inherited:
            self._inherited = True
            return False
        return True

    def lacked_time(
        self, error: AllProvidersFailedError | DeadlineExceededError, now: float, deadline: float
    ) -> bool:
        """Whether the flight failed for want of time that one with `deadline` has."""
        if isinstance(error, DeadlineExceededError):
            return now < deadline
        wait = error.retry_after_seconds
        return wait is not None and self.deadline <= now + wait < deadline


class _Flight(Generic[T]):
    """Work under way, and who waits for it."""

    __slots__ = ("_cancelled", "_traceback", "bells", "key", "lead", "task")

    def __init__(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], lead: Lead | None
    ) -> None:
        self.key = key
        self.lead = lead
        self.bells: set[asyncio.Future[None]] = set()
        self._cancelled = False
        self._traceback: TracebackType | None = None
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self._fly(start), name=f"aigateway-flight-{key[:16]}")

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

    async def _fly(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            result = await start()
            # The task's end would be heard of one turn of the loop later.
            self._ring()
            return result
        finally:
            del self  # see `outcome`

    def _ring(self) -> None:
        """Wake everybody who waits: the work is over before they run."""
        for bell in self.bells:
            if not bell.done():
                bell.set_result(None)
        self.bells.clear()

    def land(self) -> None:
        """Note how the work ended, and wake who still waits."""
        if not self.task.cancelled():
            # Asking for it also marks it as retrieved, for the case that nobody is left to do so.
            error = self.task.exception()
            # Kept, because the error itself grows a traceback with each frame it passes.
            self._traceback = error.__traceback__ if error is not None else None
        self._ring()

    def outcome(self, *, joined: bool) -> T:
        """What the work came to. Those who joined get the error as an object of their own."""
        if self.task.cancelled():
            raise GatewayError("The call was cancelled before it had an answer.")
        error = self.task.exception()
        if error is None:
            return self.task.result()
        try:
            raise (_own(error) if joined else error).with_traceback(self._traceback)
        finally:
            del error, self  # else the traceback and what it refers to hold each other


class Flights(Generic[T]):
    """The calls under way, by key. Belongs to one event loop.

    Nothing is remembered: when a call is over, with an answer or an error, the next caller begins
    another one.
    """

    __slots__ = ("_flights", "_tasks")

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}
        # More than the flights: work that was given up and has not ended yet is here too.
        self._tasks: dict[asyncio.Task[T], _Flight[T]] = {}

    def __len__(self) -> int:
        """Calls under way that a caller could join."""
        return len(self._flights)

    def __bool__(self) -> bool:
        return True  # having nothing to do is no reason to be replaced

    def lead(self, key: str) -> Lead | None:
        """Who leads the work that `join` would join; None if there is none."""
        flight = self._flights.get(key)
        return None if flight is None or flight.failed else flight.lead

    async def join(self, key: str) -> T:
        """Wait for the work that is under way for this key, and has a lead. As `share` does."""
        result, _ = await self.share(key, _nothing_to_begin)
        return result

    async def share(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], lead: Lead | None = None
    ) -> tuple[T, bool]:
        """Wait for the work that is under way for this key, or begin it.

        The work sees the context variables of the caller that began it, and is bounded by no
        caller's time: put a timeout around this call, and it ends the wait of that caller only.
        When every caller has left, the work is cancelled, and the last one to leave waits until
        it has ended (a second cancellation ends that wait). Whoever comes after that begins anew.

        Args:
            key: Which work it is; `cache_key`'s for instance.
            start: Makes the work. Called only if none is under way.
            lead: Whose work it is, for those who join.

        Returns:
            The result, and whether this call joined work that another had begun.

        Raises:
            GatewayError: The work was cancelled by something other than its callers, such as
                `aclose`.
            BaseException: Whatever the work raised. It reaches all who wait; each gets an object
                of its own if the error can be copied.
        """
        flight = self._flights.get(key)
        if flight is not None and flight.failed:
            flight = None
        joined = flight is not None
        if flight is None:
            flight = self._begin(key, start, lead)
        try:
            if not flight.task.done():
                await self._wait(flight)
            # Here too, since whoever was woken may ask again before the task's end is heard of.
            self._forget(flight)
            return flight.outcome(joined=joined), joined
        finally:
            del flight  # see `outcome`

    async def aclose(self) -> None:
        """Cancel everything that is under way, and wait until it has ended."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        self._flights.clear()
        for task in tasks:
            self._tasks[task].cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(
        self, key: str, start: Callable[[], Coroutine[Any, Any, T]], lead: Lead | None
    ) -> _Flight[T]:
        flight = self._flights[key] = _Flight(key, start, lead)
        self._tasks[flight.task] = flight
        flight.task.add_done_callback(self._over)
        return flight

    async def _wait(self, flight: _Flight[T]) -> None:
        bell = asyncio.get_running_loop().create_future()
        flight.bells.add(bell)
        try:
            await bell
        except asyncio.CancelledError:
            flight.bells.discard(bell)
            if not flight.bells and not flight.task.done():
                self._forget(flight)
                flight.cancel()
                await asyncio.wait([flight.task])
            raise

    def _over(self, task: asyncio.Task[T]) -> None:
        flight = self._tasks.pop(task)
        self._forget(flight)
        flight.land()

    def _forget(self, flight: _Flight[T]) -> None:
        # A later flight of the same key is not ours to forget.
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


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
