"""A stream of the direct lane: what comes over the connection, read and judged as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aigateway.messages import Choice, Chunk, Completion, ToolCallDelta
from aigateway.wires.answers import chunk_of, empty_answer_kind
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.content import Content
from aigateway.wires.failures import classify, classify_response
from aigateway.wires.stream_reading import LONGEST_EVENT, EventParser, StreamReading
from aigateway.wires.wire import BrokenOffError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, StreamReader

    from aigateway.wires.http import VendorAnswer

__all__ = ["DirectStream", "StreamOwner"]

_AT_ONCE = 16_384
"""Bytes that are taken in one go: about a millisecond's work, where all that waits may be ten."""

_NO_EVENTS = (b"{", b"[", b"<")
"""How a body begins that is one JSON text or a page, whatever its headers say."""


@dataclass(frozen=True, slots=True)
class StreamOwner:
    """What a stream needs of the client that opened it.

    `wall` is for `Retry-After` dates. `cost` prices what has come, from litellm's `Usage` where
    plain figures do not do. `whole` reads an answer that came in one piece. `leave` gives up the
    connection; `kept` where it can be used again. `stops` says whether the request has `stop`.
    """

    wall: Callable[[], float]
    cost: Callable[[Completion, Any], float | None]
    whole: Callable[[bytes], Completion]
    leave: Callable[..., None]
    stops: bool


class DirectStream:
    """A `VendorStream` over one response, whose headers say success."""

    def __init__(
        self, response: ClientResponse | VendorAnswer, reading: StreamReading, owner: StreamOwner
    ) -> None:
        self._content = response.content
        self._status = response.status
        self._headers: Mapping[str, str] = response.headers
        self._reading = reading
        self._owner = owner
        self._events = EventParser()
        self._begun = False
        self._whole: bytearray | None = None  # a body that is no stream
        self._completion: Completion | None = None
        self._failure: Failure | None = None
        self._is_empty_answer = False
        self._ended = False
        self._left = False

    @property
    def finished(self) -> bool:
        """See `VendorStream`."""
        return self._reading.assembly.finished or (self._ended and self._failure is None)

    async def read(self) -> Sequence[Chunk] | None:
        """See `VendorStream.read`."""
        chunks = () if self._ended else await self._next()
        if self._ended and not chunks:
            # Raised where nothing that came can be seen.
            if self._failure is not None:
                # An empty answer has its price all the same.
                raise VendorCallError(
                    self._failure, self.completion() if self._is_empty_answer else None
                )
            return None
        return chunks

    def completion(self) -> Completion:
        """See `VendorStream`."""
        if self._completion is not None:
            return self._completion
        reading = self._reading
        counted = reading.count()
        completion = reading.assembly.completion()
        cost = self._owner.cost(completion, counted)
        completion = replace(completion, cost_usd=cost, native=reading.native)
        if self._ended:
            self._completion = completion
        return completion

    async def aclose(self) -> None:
        """See `VendorStream`."""
        if not self._left:
            self._left = True
            self._owner.leave(kept=self._reading.over or self._content.at_eof())

    async def _next(self) -> Sequence[Chunk]:
        try:
            received = await self._content.read(_AT_ONCE)
        except Exception as error:  # noqa: BLE001 - judged, whatever it is
            failure = classify(error, now_wall=self._owner.wall())
            unread = _unread(self._content)
            chunks = self._take(unread) if unread and self._whole is None else ()
            if not self._ended:
                # A connection that breaks after the answer does no harm.
                whole = self._reading.assembly.is_whole(closed=False, broken=True)
                self._end(self._judged() if whole else failure)
                chunks = [*chunks, *self._last_pieces()]
            return chunks
        if not self._begun:
            start = received.lstrip()[:1]
            self._begun = bool(start)
            if start in _NO_EVENTS:
                self._whole = bytearray()
        if self._whole is not None:
            return self._take_whole(self._whole, received)
        return self._take(received)

    def _take(self, received: bytes) -> Sequence[Chunk]:
        """Read a piece of the stream; an empty one is its end."""
        events = self._events.feed(received) if received else self._events.end()
        reading = self._reading
        chunks = reading.take(events)
        if reading.problem is not None:
            self._end(self._no_answer(reading.problem))
        elif reading.over or not received:
            self._end(self._judged())
            return [*chunks, *self._last_pieces()]
        elif self._events.is_too_long:
            self._end(self._no_answer(None))
        return chunks

    def _last_pieces(self) -> list[Chunk]:
        return self._reading.assembly.last_pieces() if self._failure is None else []

    def _take_whole(self, body: bytearray, received: bytes) -> Sequence[Chunk]:
        """Collect an answer that comes in one piece: some servers never stream."""
        body += received
        if len(body) > LONGEST_EVENT:
            self._end(self._no_answer(None))
            return ()
        if received:
            return ()
        try:
            self._completion = self._owner.whole(bytes(body))
        except VendorCallError as error:
            self._end(error.failure)
            return ()
        self._end(None)
        return tuple(_chunk(index, choice) for index, choice in enumerate(self._completion.choices))

    def _end(self, failure: Failure | None) -> None:
        self._ended = True
        self._failure = failure

    def _judged(self) -> Failure | None:
        """Return what is wrong with an answer that came to its end."""
        assembly = self._reading.assembly
        if not assembly.is_whole(closed=self._reading.over):
            ending = assembly.broken_off
            return self._no_answer(None if ending is None else BrokenOffError(ending.body))
        if self._reading.has_more:
            return None
        silence = empty_answer_kind(assembly.completion().choices, stops=self._owner.stops)
        self._is_empty_answer = silence is not None
        return None if silence is None else Failure(silence, self._status)

    def _no_answer(self, problem: Exception | None) -> Failure:
        body = problem.body if isinstance(problem, BrokenOffError) else None
        now = self._owner.wall()
        return classify_response(self._status, self._headers, body, now_wall=now)


def _unread(content: StreamReader) -> bytes:
    """Return what came before the connection broke. aiohttp does not hand it on by itself."""
    content.set_exception(None)  # type: ignore[arg-type]  # which takes an earlier one back
    return content.read_nowait()


def _chunk(index: int, choice: Choice) -> Chunk:
    calls = tuple(
        ToolCallDelta(
            position, call.id, call.name, call.arguments, call.type, call.thought_signature
        )
        for position, call in enumerate(choice.tool_calls)
    )
    content = Content(*(getattr(choice, name) for name in Content._fields))
    return chunk_of(content, index, calls) or Chunk(index=index)
