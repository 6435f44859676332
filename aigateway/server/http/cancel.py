"""Cancel work whose answer is no longer wanted, or no longer possible.

A caller that has closed its connection reads no answer, and a service that stops ends what is still
under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

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

    return _cancel_after(disconnected, CallerGoneError)


def cancel_on_shutdown(stopping: asyncio.Event) -> contextlib.AbstractAsyncContextManager[None]:
    """Cancel the block when the service stops.

    Args:
        stopping: Is set then.

    Raises:
        StoppingError: At the end of the block, if that is what ended it.
    """
    return _cancel_after(stopping.wait, StoppingError)


@contextlib.asynccontextmanager
async def _cancel_after(
    event: Callable[[], Awaitable[object]], error: type[Exception]
) -> AsyncIterator[None]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - it runs in one
    cancelling = task.cancelling()
    over = False

    async def watch() -> None:
        nonlocal over
        await event()
        over = True
        task.cancel()

    watcher = asyncio.create_task(watch(), name=f"aigateway-{error.__name__}")
    cancelled: asyncio.CancelledError | None = None
    try:
        yield
    except asyncio.CancelledError as caught:
        cancelled = caught
    finally:
        watcher.cancel()
        is_ours = over and task.uncancel() <= cancelling
    if cancelled is not None:
        if is_ours:
            raise error from cancelled
        raise cancelled
