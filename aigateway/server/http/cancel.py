"""Cancel work whose answer is no longer wanted, or no longer possible.

A caller that has closed its connection reads no answer, and a service that stops ends what is still
under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType

from starlette.types import Receive

__all__ = ["CallerGoneError", "StoppingError", "cancel_on_disconnect", "cancel_on_shutdown"]


class CallerGoneError(Exception):
    """The connection was closed before the answer was given."""


class StoppingError(Exception):
    """The service's time was over before the answer was."""


def cancel_on_disconnect(receive: Receive) -> contextlib.AbstractAsyncContextManager[None]:
    """Cancel the block when the caller closes the connection.

    The body must have been read to its end, since everything received here is dropped.

    Args:
        receive: Of ASGI.

    Raises:
        CallerGoneError: At the end of the block, if that is what ended it.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return _CancelAfter(disconnected, CallerGoneError)


def cancel_on_shutdown(stopping: asyncio.Event) -> contextlib.AbstractAsyncContextManager[None]:
    """Cancel the block when the service stops.

    Args:
        stopping: Is set then.

    Raises:
        StoppingError: At the end of the block, if that is what ended it.
    """
    return _CancelAfter(stopping.wait, StoppingError)


class _CancelAfter(contextlib.AbstractAsyncContextManager[None]):
    """A context that cancels its block after an event, and then raises an error.

    A class, since `contextlib.asynccontextmanager` costs 2 us more for each request.
    """

    __slots__ = ("_cancelling", "_error", "_event", "_over", "_task", "_watcher")

    _task: asyncio.Task[object]
    _watcher: asyncio.Task[None]
    _cancelling: int

    def __init__(self, event: Callable[[], Awaitable[object]], error: type[Exception]) -> None:
        self._event = event
        self._error = error
        self._over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it runs in one
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._watch(), name=f"aigateway-{self._error.__name__}")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watcher.cancel()
        if (
            self._over
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise self._error from error

    async def _watch(self) -> None:
        await self._event()
        self._over = True
        self._task.cancel()
