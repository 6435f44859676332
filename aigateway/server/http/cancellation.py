"""Cancel work whose answer is no longer wanted, or no longer possible.

A caller that has closed its connection reads no answer, and a service that stops ends what is still
under way.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import ClassVar, Self

from starlette.types import Receive

__all__ = ["CallerGoneError", "CancelOnDisconnect", "StoppingError", "WhileServing"]


class CallerGoneError(Exception):
    """The connection was closed before the answer was given."""


class StoppingError(Exception):
    """The service's time was over before the answer was."""


class _While:
    """A block that is cancelled when something ends, which is then raised as an error."""

    __slots__ = ("_cancelling", "_over", "_task", "_watch")

    error: ClassVar[type[Exception]]

    def __init__(self) -> None:
        self._over = False
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def _until(self) -> None:
        """Come back when it ends."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._watch = asyncio.create_task(self._wait(), name=f"aigateway-{type(self).__name__}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if not self._over or self._task is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self.error from error

    async def _wait(self) -> None:
        await self._until()
        if self._task is not None:
            self._over = True
            self._task.cancel()


class CancelOnDisconnect(_While):
    """A block that is cancelled when the caller closes the connection.

    The body must have been read to its end: what is received here is only that there is no more.

    Args:
        receive: Of ASGI.

    Raises:
        CallerGoneError: At the end of the block, if that is what ended it.
    """

    __slots__ = ("_receive",)

    error = CallerGoneError

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive

    async def _until(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class WhileServing(_While):
    """A block that is cancelled when the service's time is over.

    Args:
        stopping: Is set then.

    Raises:
        StoppingError: At the end of the block, if that is what ended it.
    """

    __slots__ = ("_stopping",)

    error = StoppingError

    def __init__(self, stopping: asyncio.Event) -> None:
        super().__init__()
        self._stopping = stopping

    async def _until(self) -> None:
        await self._stopping.wait()
