"""What every protocol has: a request that was read, an answer, a stream of events."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import orjson
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.messages import CacheMode, ChatResponse, Chunk, NativeRequest, Opening, Origin
from aigateway.request.stream import ChatStream
from aigateway.wires.json_bodies import parsed

__all__ = [
    "CallerProtocol",
    "EventWriter",
    "ProtocolOptions",
    "ProtocolResponse",
    "ProtocolStream",
    "ReadRequest",
    "ServerSentEvent",
    "encoded",
]


def encoded(value: Any) -> bytes:
    """Write JSON. Half a character, which a vendor may have sent, goes on as an escape."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


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


@dataclass(frozen=True, slots=True)
class CallerProtocol:
    """One protocol.

    Attributes:
        read: Checks a body and turns it into a chat; the second argument has the headers that
            belong to the protocol. It raises `RequestRejectedError`, with `param` as the protocol
            names the field.
        write: Returns an answer as the protocol's object.
        writer: Makes the writer of one stream, from its opening, the request and the request id.
    """

    read: Callable[[dict[str, Any], Mapping[str, str]], ReadRequest]
    write: Callable[[ChatResponse, ReadRequest], dict[str, Any]]
    writer: Callable[[Opening, ReadRequest, str], EventWriter]


@dataclass(frozen=True, slots=True)
class ProtocolResponse:
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
        """Return the bytes of the events that came with the last one, and leave them out."""
        if not self._ready:
            return b""
        raw = b"".join([event.raw for event in self._ready])
        self._ready.clear()
        return raw

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
