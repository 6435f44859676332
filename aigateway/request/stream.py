"""The result of `gateway.stream`: chunks as they arrive, and the whole answer afterwards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from types import TracebackType
from typing import Self

from aigateway.errors import GatewayError
from aigateway.messages import ChatResponse, Chunk, Completion, Opening, ToolCallDelta

__all__ = ["ChatStream", "StreamOutcome", "endings", "pieces"]

_PIECE = re.compile(r"\s*\S{1,64}\s?|\s+")
"""A word: about what a vendor sends at a time."""


class StreamOutcome:
    """The whole answer of a stream, once there is one, and before that its opening.

    Apart from the stream, so that the generator of the chunks does not refer to the stream: one
    that the caller drops is closed at once, and not by the next garbage collection.
    """

    __slots__ = ("opening", "response")

    def __init__(self) -> None:
        self.opening: Opening | None = None
        self.response: ChatResponse | None = None


class ChatStream:
    """A streamed answer. Iterate it once; best inside `async with`.

    The vendor is called when the first chunk is read.

    Leaving it before its end closes the vendor's connection: at once at the end of `async with` or
    by `aclose()`, and after `break` when nothing refers to the stream any more.
    """

    __slots__ = (
        "__weakref__",
        "_begin",
        "_chunks",
        "_closing",
        "_left",
        "_outcome",
        "_read_ended",
        "_reader",
        "_shut",
        "_whole",
    )

    def __init__(
        self, begin: Callable[[], AsyncGenerator[Chunk, None]], outcome: StreamOutcome
    ) -> None:
        self._begin = begin
        self._chunks: AsyncGenerator[Chunk, None] | None = None
        self._outcome = outcome
        self._closing = False
        self._left = False  # by `aclose`
        self._shut = False  # by the gateway
        self._reader: asyncio.Task[object] | None = None
        self._whole = False
        self._read_ended: asyncio.Event | None = None  # for `aclose` in another task

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._reader is not None:
            raise GatewayError("Another task is reading this stream; one at a time can.")
        if self._closing or (self._left and self._chunks is None):
            self._raise_if_cut()
            raise StopAsyncIteration
        if self._chunks is None:
            self._chunks = self._begin()
        self._reader = asyncio.current_task()
        chunk: Chunk | None = None
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._raise_if_cut()
            raise
        except asyncio.CancelledError:
            if not self._left or self._reader is None or self._reader.uncancel():
                raise
        finally:
            self._reader = None
            if self._read_ended is not None:
                self._read_ended.set()
        if chunk is None:
            raise StopAsyncIteration  # another task has called `aclose`
        self._whole = chunk.usage is not None  # only the last chunk has it
        return chunk

    def _raise_if_cut(self) -> None:
        """Raise if the stream was cut: its end must not look like the end of the answer."""
        if not (self._whole or self._left):
            why = "was closed" if self._shut else "lost this stream: its reader was cancelled"
            raise GatewayError(f"The gateway {why} while it streamed.") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream and close the vendor's connection. May be called more than once.

        If another task is waiting for a chunk, its iteration ends.
        """
        self._left = True
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._read_ended = asyncio.Event()
            self._reader.cancel()
            await self._read_ended.wait()
        else:
            await self._close()

    async def shut(self) -> None:
        """Close it because the gateway closes: its reader gets an error."""
        self._shut = True
        if self._reader is None:
            await self._close()

    async def _close(self) -> None:
        if self._chunks is not None and not self._closing:
            self._closing = True
            await self._chunks.aclose()

    @property
    def opening(self) -> Opening | None:
        """The provider that answers; None before the first chunk. A resumed stream has its last."""
        return self._outcome.opening

    @property
    def response(self) -> ChatResponse:
        """The whole answer, as from `chat`, once the stream has come to its end.

        Raises:
            GatewayError: It has not come to its end.
        """
        if self._outcome.response is None:
            raise GatewayError("The stream has not come to its end; there is no whole answer.")
        return self._outcome.response


def pieces(completion: Completion) -> Iterator[Chunk]:
    """Yield the content of a whole answer in chunks, as a vendor would send it."""
    for index, choice in enumerate(completion.choices):
        if choice.reasoning or choice.thinking_json:  # it precedes what the model says
            yield Chunk(reasoning=choice.reasoning, thinking_json=choice.thinking_json, index=index)
        for piece in _PIECE.findall(choice.text):
            yield Chunk(piece, index=index)
        if choice.refusal:
            yield Chunk(refusal=choice.refusal, index=index)
        beside = Chunk(
            index=index,
            images=choice.images,
            audio=choice.audio,
            sources_json=choice.sources_json,
            thought_signatures=choice.thought_signatures,
        )
        if beside != Chunk(index=index):
            yield beside
        for place, call in enumerate(choice.tool_calls):
            given = (call.id, call.name, call.arguments, call.type, call.thought_signature)
            delta = ToolCallDelta(place, *given)
            yield Chunk(tool_calls=(delta,), index=index)


def endings(completion: Completion) -> Iterator[Chunk]:
    """Yield the last chunks of a stream: the finish reasons, and on the very last the usage."""
    last = len(completion.choices) - 1
    for index, choice in enumerate(completion.choices):
        usage = completion.usage if index == last else None
        yield Chunk(finish_reason=choice.finish_reason, usage=usage, index=index)
