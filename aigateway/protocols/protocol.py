"""What all protocols share: a request that was read, an answer, a stream of events."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict

import orjson

from aigateway.errors import GatewayError, RequestRejectedError
from aigateway.messages import CacheMode, ChatResponse, Chunk, NativeRequest, Opening, Origin
from aigateway.records import Record
from aigateway.request.json_copy import check_size, copied, encoded_json
from aigateway.request.sse import PING, PING_SECONDS, error_event
from aigateway.request.stream import ChatStream
from aigateway.wires.json_bodies import encoded, parsed

__all__ = [
    "CallerProtocol",
    "EventWriter",
    "ProtocolOptions",
    "ProtocolResponse",
    "ProtocolStream",
    "ReadRequest",
    "ServerSentEvent",
    "encoded",
    "system_reminder",
]


class ProtocolOptions(TypedDict, total=False):
    """The gateway's own options of a call, as for `AsyncGateway.chat`.

    `model` replaces the model that the body names; None leaves the choice to the gateway.
    """

    model: str | None
    timeout: float | None
    agent: str | None
    cache: CacheMode
    cache_ttl: float | None
    hedge: bool | None
    session: str | None
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request of a protocol, checked and turned into a chat.

    Attributes:
        messages: OpenAI chat messages.
        options: Keywords of `chat`: `model`, `max_tokens`, `tools`, ...
        native: The request as it was.
        stream: Whether the answer is to be streamed.
    """

    messages: list[Any]
    options: Mapping[str, Any]
    native: NativeRequest
    stream: bool = False


def system_reminder(*texts: str) -> dict[str, str]:
    """Return a system message after an answer as a message of the user.

    Many servers accept system messages only at the beginning. If a later one were moved there, the
    beginning would change, and every prompt cache would miss.
    """
    content = "\n\n".join(["<system-reminder>", *texts, "</system-reminder>"])
    return {"role": "user", "content": content}


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a streamed answer.

    Attributes:
        raw: Its bytes as sent over HTTP, with the empty line at its end.
    """

    raw: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, data: Mapping[str, Any]) -> ServerSentEvent:
        """Write an event with a name and data in JSON."""
        return cls(b"event: " + name.encode() + b"\ndata: " + encoded(data) + b"\n\n")

    @property
    def name(self) -> str:
        """Its name; empty if it has none."""
        return self._field(b"event").decode("utf-8", "replace")

    @property
    def data(self) -> Any:
        """Its data, parsed anew each time."""
        return orjson.loads(self._field(b"data"))

    def _field(self, wanted: bytes) -> bytes:
        lines = (line.partition(b":") for line in self.raw.splitlines())
        return b"\n".join(value.removeprefix(b" ") for name, _, value in lines if name == wanted)


class EventWriter(Protocol):
    """Writes one stream in a protocol."""

    def events(self, chunk: Chunk) -> Iterable[ServerSentEvent]:
        """Return the events for a chunk; for the first one with those that begin the stream."""

    def end(self, response: ChatResponse) -> Iterable[ServerSentEvent]:
        """Return the events that end the stream, once its content has been written."""


def _failed(error: Exception, writer: EventWriter | None, written: int) -> bytes:  # noqa: ARG001
    """Return OpenAI's event of an error."""
    return error_event(error)


@dataclass(frozen=True, slots=True)
class CallerProtocol:
    """One protocol.

    Attributes:
        read: Checks a body and turns it into a chat; the second argument has the headers that
            belong to the protocol. It raises `RequestRejectedError`, with `param` as the protocol
            names the field.
        write: Returns an answer as the protocol's object.
        writer: Makes the writer of one stream, from its opening, the request and the request id.
        failed: Returns the events that end a stream after an error, from the error, the stream's
            writer and the number of its events so far.
        ping: Sent while a stream has nothing to say.
    """

    read: Callable[[dict[str, Any], Mapping[str, str]], ReadRequest]
    write: Callable[[ChatResponse, ReadRequest], dict[str, Any]]
    writer: Callable[[Opening, ReadRequest, str], EventWriter]
    failed: Callable[[Exception, EventWriter | None, int], bytes] = _failed
    ping: bytes = PING

    def read_copy(
        self, body: Mapping[str, Any], headers: Mapping[str, str], max_bytes: int
    ) -> ReadRequest:
        """Read a copy of a body that its caller may change later."""
        if not isinstance(body, Mapping):
            kind = type(body).__name__
            raise RequestRejectedError(f"The body must be a mapping, as of JSON, not {kind}.")
        encoded_body = encoded_json(body, "body")
        check_size(len(encoded_body), max_bytes)
        return self.read(copied(body, encoded_body), headers)


@dataclass(frozen=True, slots=True, repr=False)
class ProtocolResponse(Record):
    """An answer in the protocol of its request.

    Attributes:
        response: The answer as a `ChatResponse`, with its provider, its attempts and its price.
        written: The answer in the protocol, where a provider of another protocol gave it.
        raw: The answer as JSON, as the provider of this protocol sent it; else empty.
    """

    response: ChatResponse
    written: dict[str, Any] | None = field(default=None, repr=False)
    raw: bytes = field(default=b"", repr=False)

    @property
    def body(self) -> dict[str, Any]:
        """The answer as the protocol's JSON object."""
        if self.written is not None:
            return self.written
        body: dict[str, Any] = parsed(self.raw, whole=True)
        return body

    def _words(self) -> Iterable[Any]:
        return self.response._words()  # noqa: SLF001 - the same record, in another form

    def _values(self) -> Iterator[tuple[str, Any]]:
        yield from (("body", self.body), ("response", self.response))


class ProtocolStream:
    """A streamed answer in the protocol of its request: its events as they arrive.

    Iterate it once; best inside `async with`. Leaving it early closes the vendor's connection.
    """

    def __init__(
        self, stream: ChatStream, protocol: CallerProtocol, request: ReadRequest, request_id: str
    ) -> None:
        self._stream = stream
        self._protocol = protocol
        self._request = request
        self._request_id = request_id
        self._batches = self._by_chunk()
        self._ready: deque[ServerSentEvent] = deque()
        self.writer: EventWriter | None = None
        """Writes the events; None before the first one."""
        self.written = 0
        """Events so far, with those that are ready."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerSentEvent:
        while not self._ready:
            self._ready.extend(await anext(self._batches))
        return self._ready.popleft()

    def take_ready(self) -> bytes:
        """Return the bytes of the events that came with the last one; iteration skips them."""
        if not self._ready:
            return b""
        raw = b"".join([event.raw for event in self._ready])
        self._ready.clear()
        return raw

    async def start(self) -> Self:
        """Call the vendor, and return the stream once its first event is there.

        See `ChatStream.start`.
        """
        while self.writer is None:
            self._ready.extend(await self._next_batch())
        return self

    async def _next_batch(self) -> Iterable[ServerSentEvent]:
        try:
            return await anext(self._batches)
        except StopAsyncIteration:
            raise GatewayError("The stream has failed or is closed: begin another one.") from None

    def sse(self, *, ping_seconds: float | None = PING_SECONDS) -> AsyncGenerator[bytes, None]:
        """Return the bytes of the events, with the protocol's event of an error if it breaks.

        See `ChatStream.sse`.

        Args:
            ping_seconds: Silence after which the protocol's ping is sent; None sends none.

        Raises:
            GatewayError: The stream has not started.
        """
        return self._stream.hand_over(self._raw_events(), self._protocol.ping, ping_seconds)

    async def _raw_events(self) -> AsyncGenerator[bytes, None]:
        # What comes at once is sent at once: each sending costs more than an event.
        try:
            async for event in self:
                yield event.raw + self.take_ready()
            self.response  # noqa: B018 - raises if the stream was closed before its end
        except GatewayError as error:
            yield self.failure(error)

    def failure(self, error: Exception) -> bytes:
        """Return the events that end the stream after an error."""
        return self._protocol.failed(error, self.writer, self.written)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Leave the stream and close the vendor's connection. May be called more than once."""
        await self._stream.aclose()

    @property
    def opening(self) -> Opening | None:
        """The provider that answers; None before the first event."""
        return self._stream.opening

    @property
    def response(self) -> ChatResponse:
        """The whole answer, once the stream has come to its end; else raises `GatewayError`."""
        return self._stream.response

    async def _by_chunk(self) -> AsyncGenerator[Iterable[ServerSentEvent], None]:
        """Yield the provider's own events or, if it speaks another protocol, written ones."""
        writer: EventWriter | None = None
        is_native = False
        async with aclosing(self._stream):
            async for chunk in self._stream:
                if writer is None:
                    opening = self._stream.opening
                    assert opening is not None  # noqa: S101 - its first chunk is here
                    self.writer = writer = self._protocol.writer(
                        opening, self._request, self._request_id
                    )
                    is_native = bool(chunk.native_events)
                if is_native:
                    yield self._counted(map(ServerSentEvent, chunk.native_events))
                else:
                    yield self._counted(writer.events(chunk))
            assert writer is not None  # noqa: S101 - every stream has a last chunk
            response = self._stream.response
            native = response.completion.native
            if is_native and native is not None:
                yield self._counted(map(ServerSentEvent, native.events))
            else:
                yield self._counted(writer.end(response))

    def _counted(self, events: Iterable[ServerSentEvent]) -> Sequence[ServerSentEvent]:
        counted = list(events)
        self.written += len(counted)
        return counted
