"""The result of `gateway.stream`: chunks as they arrive, and the whole answer afterwards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import GatewayError, MisuseError
from aigateway.messages import ChatResponse, Chunk, Completion, Opening, P_co, ToolCallDelta
from aigateway.request.sse import (
    DONE,
    PING,
    PING_SECONDS,
    ChunkWriter,
    error_event,
    with_pings,
)

__all__ = ["ChatStream", "StreamOutcome", "endings", "pieces"]

_ONE_READER = "Another task is reading this stream; one at a time can."

_PIECE = re.compile(r"\s*\S{1,64}\s?|\s+")
"""A word: about what a vendor sends at a time."""


class StreamOutcome:
    """The whole answer of a stream, once there is one, and before that its opening.

    It also has what belongs to the stream's request: the clock, and the request's id.

    Apart from the stream, so that the generator of the chunks does not refer to the stream: one
    that the caller drops is closed at once, and not by the next garbage collection.
    """

    __slots__ = ("clock", "has_more", "opening", "request_id", "response")

    def __init__(self, clock: Clock = SYSTEM_CLOCK, request_id: str = "") -> None:
        self.clock = clock
        self.request_id = request_id
        self.opening: Opening | None = None
        self.response: ChatResponse[Any] | None = None
        self.has_more = False  # the next chunk is at hand, and none is waited for


class ChatStream(Generic[P_co]):
    """A streamed answer. Iterate it once; best inside `async with`.

    The vendor is called when the first chunk is read, or by `start()`. `sse()` writes the stream
    for a browser.

    Leaving it before its end closes the vendor's connection: at once at the end of `async with` or
    by `aclose()`, and after `break` when nothing refers to the stream any more.
    """

    __slots__ = (
        "__weakref__",
        "_begin",
        "_chunks",
        "_closing",
        "_first",
        "_handed_over",
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
        self._first: Chunk | None = None  # read by `start`, and not taken yet
        self._handed_over = False  # to the events of `sse`, which have not begun
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
            raise MisuseError(_ONE_READER)
        if self._closing or (self._left and self._chunks is None):
            self._raise_if_cut()
            raise StopAsyncIteration
        chunk, self._first = self._first, None
        if chunk is not None:
            return chunk
        if self._chunks is None:
            self._chunks = self._begin()
        self._reader = asyncio.current_task()
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

    def __repr__(self) -> str:
        opening, outcome = self.opening, self._outcome
        state = "has not started" if opening is None else f"from {opening.provider}"
        if outcome.response is not None:
            return f"<ChatStream {state}, ended>"
        return f"<ChatStream {state}{', closed' if self._left or self._shut else ''}>"

    async def start(self) -> Self:
        """Call the vendor, and return the stream once its first content is there.

            stream = await gateway.stream("Tell me a story.").start()

        An error until then is raised here, while an application can still answer with an HTTP
        status. A stream that has started is returned at once.

        Raises:
            MisuseError: The stream is closed, or has failed before.
            GatewayError: As `chat`.
        """
        if self.opening is not None:
            return self
        if self._chunks is not None or self._left or self._reader is not None:
            raise MisuseError("The stream has failed, is closed or in use: begin another one.")
        try:
            self._first = await anext(self)
        except StopAsyncIteration:
            raise GatewayError("The stream was closed before its first content.") from None
        return self

    def sse(
        self, *, include_usage: bool = False, ping_seconds: float | None = PING_SECONDS
    ) -> AsyncGenerator[bytes, None]:
        """Return the stream as server-sent events, as OpenAI sends a chat.

        Each item is one or more whole events: `data: {...}` with a `chat.completion.chunk`; the
        last is `data: [DONE]`. If the stream breaks, it is an error in OpenAI's form instead.
        The events close the stream when they end or are closed; `async with` then leaves that to
        them, so that they may be handed to a response.

        Args:
            include_usage: Whether a chunk without choices tells the usage at the end.
            ping_seconds: Silence after which a comment is sent, because proxies cut silent
                connections; None sends none.

        Raises:
            MisuseError: The stream has not started: call `await stream.start()` first.
        """
        self._check_started()
        outcome, opening = self._outcome, self.opening
        assert opening is not None  # noqa: S101 - just checked
        writer = ChunkWriter(
            opening,
            outcome.request_id,
            outcome.clock.wall(),
            with_usage=include_usage,
            whole=lambda: self.response,
        )
        return self.hand_over(self._events(writer), PING, ping_seconds)

    async def _events(self, writer: ChunkWriter) -> AsyncGenerator[bytes, None]:
        """Yield the stream's events. After an error comes its event, and no `[DONE]`.

        What is at hand is sent in one piece: each sending costs more than an event.
        """
        written = b""
        try:
            async for chunk in self:
                written += writer.events(chunk)
                if not self._outcome.has_more:
                    yield written
                    written = b""
            self.response  # noqa: B018 - raises if the stream was closed before its end
        except GatewayError as error:
            yield written + error_event(error)
            return
        yield DONE

    def hand_over(
        self, events: AsyncGenerator[bytes, None], ping: bytes, ping_seconds: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Let events made of this stream close it; for `sse` of every protocol.

        Args:
            events: The stream's events.
            ping: Yielded during silence.
            ping_seconds: See `sse`.

        Raises:
            GatewayError: As `sse`.
        """
        self._check_started()
        self._handed_over = True
        if ping_seconds is not None:
            events = with_pings(events, ping, ping_seconds, self._outcome.clock)
        return _HandedOver(self, events)

    def _check_started(self) -> None:
        if self.opening is None:
            raise MisuseError(
                "The stream has not started. Call `await stream.start()` before `sse()`: an error"
                " before the first content is then raised while it can still get an HTTP status."
            )
        if self._left or self._handed_over:
            raise MisuseError("The stream is closed, or its events were taken before.")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None or not self._handed_over:
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
        """The provider that answers; None before the first chunk. A resumed stream has its last.

        `start()` reads the first chunk.
        """
        return self._outcome.opening

    @property
    def response(self) -> ChatResponse[P_co]:
        """The whole answer, as from `chat`, once the stream has come to its end.

        Raises:
            MisuseError: It has not come to its end.
        """
        if self._outcome.response is None:
            raise MisuseError("The stream has not come to its end; there is no whole answer.")
        return self._outcome.response


class _HandedOver(AsyncGenerator[bytes, None]):
    """A stream's events, which close it when they end, also before the first of them."""

    def __init__(self, stream: ChatStream[Any], events: AsyncGenerator[bytes, None]) -> None:
        self._stream = stream
        self._events = events
        self._reading = False

    async def __anext__(self) -> bytes:
        if self._reading:
            raise MisuseError(_ONE_READER)
        # They have begun, so `async with` closes the stream again.
        self._stream._handed_over = False  # noqa: SLF001 - the stream's own part
        self._reading = True
        try:
            return await anext(self._events)
        except BaseException:
            await self._stream.aclose()
            raise
        finally:
            self._reading = False

    async def asend(self, value: None) -> bytes:  # noqa: ARG002 - nothing takes it
        return await anext(self)

    async def athrow(self, *error: Any) -> bytes:
        try:
            return await self._events.athrow(*error)
        except BaseException:
            await self._stream.aclose()
            raise

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            await self._stream.aclose()


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
