"""Cancel work whose answer is no longer wanted, or no longer possible.

A caller that has closed its connection reads no answer, and a service that stops ends what is still
under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from starlette.types import Receive, Scope

__all__ = [
    "CONNECTION",
    "CallerGoneError",
    "CancellableBlock",
    "StopSignal",
    "StoppingError",
    "watch_caller",
]

CONNECTION = "aigateway.connection"
"""The extension of the scope for a connection that reports by itself that it was closed:
`on_disconnect` is called then, and `disconnected` tells whether it was before."""

_LOOK_SECONDS = 0.005
"""A request gets a task that waits for the disconnect when it has taken that long, or up to twice
that: an answer from the cache is out by then."""


class CallerGoneError(Exception):
    """The connection was closed before the answer was given."""


class StoppingError(Exception):
    """The service's time was over before the answer was."""


# ── callers that leave ───────────────────────────────────────────────────────────────────────


def watch_caller(
    scope: Scope, receive: Receive, gone: Callable[[], object]
) -> Callable[[], object]:
    """Call `gone` once when the caller closes the connection.

    The body must have been read to its end, since everything received from now on is dropped.

    Args:
        scope: Of ASGI; its server may report a disconnect by itself.
        receive: Of ASGI.
        gone: Called within the event loop, or at once if the caller is gone already.

    Returns:
        A function that ends the watch.
    """
    extensions = scope.get("extensions")
    connection = extensions.get(CONNECTION) if extensions else None
    if connection is None:
        return _Watch(receive, gone).end
    if connection.disconnected:
        gone()
    else:
        connection.on_disconnect = gone
    return functools.partial(setattr, connection, "on_disconnect", None)


class _Watch:
    """Waits for `http.disconnect` in a task, but only if the request is not over soon."""

    __slots__ = ("_gone", "_receive", "_task", "_unwatched")

    def __init__(self, receive: Receive, gone: Callable[[], object]) -> None:
        self._receive = receive
        self._gone = gone
        self._task: asyncio.Task[None] | None = None
        self._unwatched = _watches.add(self)

    def begin(self) -> None:
        """Begin to wait."""
        self._task = asyncio.create_task(self._disconnected(), name="aigateway-disconnect")

    def end(self) -> None:
        """Wait no more."""
        self._unwatched.discard(self)
        if self._task is not None:
            self._task.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()


class _YoungWatches(threading.local):
    """Watches of this thread's event loop that have no task yet: one timer serves all of them."""

    _loop: asyncio.AbstractEventLoop | None = None

    def add(self, watch: _Watch) -> set[_Watch]:
        """Begin a watch if it is not over soon. Returns the set to leave when it is over."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._young: set[_Watch] = set()
            self._timer: asyncio.TimerHandle | None = None
        young = self._young
        young.add(watch)
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_SECONDS, self._look, loop, young, set())
        return young

    def _look(self, loop: asyncio.AbstractEventLoop, young: set[_Watch], old: set[_Watch]) -> None:
        """Begin the older watches, and let the others be the older ones."""
        while old:
            old.pop().begin()
        following: set[_Watch] = set()
        timer = None
        if young:
            timer = loop.call_later(_LOOK_SECONDS, self._look, loop, following, young)
        if loop is self._loop:
            self._young, self._timer = following, timer


_watches = _YoungWatches()


# ── a service that stops ─────────────────────────────────────────────────────────────────────


class CancellableBlock(contextlib.AbstractAsyncContextManager["CancellableBlock"]):
    """A context whose block ends when `cancel` is called, and then raises the error given there."""

    __slots__ = ("_cancelling", "_error", "_task")

    _cancelling: int

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None  # while it is in the block
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        self._task = task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it runs in one
        self._cancelling = task.cancelling()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if (
            self._error is not None
            and task is not None
            and task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise self._error from error

    def cancel(self, error: Exception) -> None:
        """End the block with an error; nothing happens outside of it, or a second time."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()


class StopSignal(asyncio.Event):
    """An event that also ends blocks when it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: set[CancellableBlock] = set()

    def add(self, block: CancellableBlock) -> None:
        """End a block with `StoppingError` when the event is set."""
        self._blocks.add(block)
        if self.is_set():
            block.cancel(StoppingError())

    def discard(self, block: CancellableBlock) -> None:
        """Forget a block."""
        self._blocks.discard(block)

    def set(self) -> None:
        """Set the event, and end the blocks."""
        super().set()
        for block in tuple(self._blocks):
            block.cancel(StoppingError())
