"""Whether whoever asked is still there. Nobody is asked for an answer that nobody reads."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

__all__ = ["CallerGoneError", "WhilePresent"]


class CallerGoneError(Exception):
    """The connection was closed before the answer was given."""


class WhilePresent:
    """A block that is cancelled when the caller closes the connection.

    The body must have been read to its end: what is received here is only that there is no more.

    Args:
        receive: Of ASGI.

    Raises:
        CallerGoneError: At the end of the block, if that is what ended it.
    """

    __slots__ = ("_cancelling", "_gone", "_receive", "_task", "_watch")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._cancelling = 0
        self._task: asyncio.Task[object] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._watch = asyncio.create_task(self._until_gone(), name="aigateway-presence")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if not self._gone or self._task is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise CallerGoneError from error

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._gone = True
            self._task.cancel()
