"""The kinds of work for a provider: a chat, a chat over a stream, a stream, or embeddings.

Each kind knows its call of the wire and how to check its answer. `failover.py` is the same for all:
it decides which provider is called, for how long, and what a failure means.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from aigateway.errors import FailureKind
from aigateway.messages import (
    ChatRequest,
    Choice,
    Chunk,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Usage,
)
from aigateway.routing.attempt import FIRST_TOKEN_TIMEOUT, Billable, PendingAttempt
from aigateway.structured import fits
from aigateway.wires.client import Failure, VendorCallError, VendorClient, VendorStream

__all__ = [
    "Bounded",
    "ChatOverStreamWork",
    "ChatWork",
    "EmbeddingWork",
    "OpenedStream",
    "StreamWork",
    "Work",
    "next_content",
]

_log = logging.getLogger(__name__)

LINGER = 1.0
"""Seconds to wait for usage after the finish reason."""

IDLE_TIMEOUT = "idle_timeout"
"""`Failure.code` of a stream that stopped sending content."""

T = TypeVar("T")
A = TypeVar("A", bound=Billable)


class Work(Protocol[A]):
    """One kind of work.

    Attributes:
        streamed: The attempt is served at the first content, with the call in flight; else at the
            whole answer.
    """

    streamed: ClassVar[bool]

    def ask(self, attempt: PendingAttempt) -> Awaitable[A]:
        """Call the vendor; raises `VendorCallError` for a failure."""

    def check(self, answer: A) -> None:
        """Raise `VendorCallError` for an answer that cannot be used."""

    async def discard(self, answer: A) -> None:
        """Close an answer that is not used after all."""

    def native_id(self, answer: A) -> str | None:
        """Return the id of an answer in OpenAI's Responses protocol; None for any other."""


class _WholeAnswer:
    """Work whose answer comes in one piece, and leaves nothing open."""

    __slots__ = ()
    streamed: ClassVar[bool] = False

    def check(self, answer: Any) -> None:
        """Accept it."""

    async def discard(self, answer: Any) -> None:
        """Do nothing."""

    def native_id(self, answer: Any) -> str | None:
        """See `Work`."""
        native = answer.native if isinstance(answer, Completion) else None
        return answer.id if native is not None and native.protocol == "responses" else None


@dataclass(slots=True)  # not frozen: that takes longer to make
class ChatWork(_WholeAnswer):
    """A chat."""

    request: ChatRequest

    def ask(self, attempt: PendingAttempt) -> Awaitable[Completion]:
        """Call the vendor."""
        return attempt.client.chat(attempt.outgoing(self.request))

    def check(self, answer: Completion) -> None:
        """Refuse an answer that does not parse as the request's `response_model`."""
        model = self.request.response_model
        if model is not None and not fits(model, answer):
            # Raised here and not from pydantic's error, which quotes the answer.
            raise VendorCallError(Failure(FailureKind.INVALID_OUTPUT), answer)


@dataclass(frozen=True, slots=True)
class EmbeddingWork(_WholeAnswer):
    """Embeddings of texts."""

    request: EmbeddingRequest

    def ask(self, attempt: PendingAttempt) -> Awaitable[Embeddings]:
        """Call the vendor."""
        return attempt.client.embed(attempt.outgoing(self.request))


class Bounded(Protocol):
    """A function that runs a coroutine and raises `TimeoutError` if it takes longer."""

    async def __call__(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """Run it."""


@dataclass(slots=True)
class ChatOverStreamWork(ChatWork):
    """A chat over a stream of the vendor, so that an idle timeout applies.

    Attributes:
        first: Seconds until the first content.
        idle: Seconds without content after it.
        bounded: Runs a coroutine with a bound on its seconds.
    """

    first: float
    idle: float
    bounded: Bounded

    async def ask(self, attempt: PendingAttempt) -> Completion:
        """Stream from the vendor. Any break fails over: nothing has been delivered yet."""
        client, request = attempt.client, attempt.outgoing(self.request)
        try:
            opened = await self.bounded(self.first, _open_stream(client, request))
        except TimeoutError:
            raise VendorCallError(Failure(FailureKind.TIMEOUT, code=FIRST_TOKEN_TIMEOUT)) from None
        try:
            whole = opened.whole
            while not whole:
                whole = await next_content(opened.stream, self.idle, self.bounded) is None
        except VendorCallError as error:
            # What came cannot be used, but costs money.
            raise VendorCallError(error.failure, opened.part()) from None
        finally:
            await opened.stream.aclose()
        return opened.stream.completion()


@dataclass(frozen=True, slots=True)
class StreamWork:
    """A stream, up to its first content.

    Attributes:
        bounded: Runs a coroutine with a bound on its seconds, where the first content may come
            much later than the beginning of the stream.
    """

    request: ChatRequest
    bounded: Bounded | None = None
    streamed: ClassVar[bool] = True

    def ask(self, attempt: PendingAttempt) -> Awaitable[OpenedStream]:
        """Open the stream and read to its first content."""
        begin = None
        if self.bounded is not None:
            begin = partial(self.bounded, attempt.provider.first_token_timeout)
        return _open_stream(attempt.client, attempt.outgoing(self.request), begin)

    def check(self, answer: OpenedStream) -> None:
        """Accept it: the rest is checked when the stream ends."""

    async def discard(self, answer: OpenedStream) -> None:
        """Close the stream."""
        await answer.stream.aclose()

    def native_id(self, answer: OpenedStream) -> str | None:
        """See `Work`."""
        native = self.request.native
        if native is None or native.protocol != "responses":
            return None
        part = answer.part()
        is_native = part.native is not None or any(chunk.native_events for chunk in answer.first)
        return part.id if is_native else None


class OpenedStream:
    """A stream with its first content, or one that is whole already."""

    __slots__ = ("first", "stream", "whole")

    def __init__(self, stream: VendorStream, first: Sequence[Chunk], *, whole: bool) -> None:
        self.stream = stream
        self.first = first
        self.whole = whole

    def part(self) -> Completion:
        """Return what has arrived so far."""
        try:
            return self.stream.completion()
        except Exception as error:  # noqa: BLE001 - the call must be settled nevertheless
            _log.warning("The partial answer of a stream cannot be read: %s.", type(error).__name__)
            return Completion("", "", (Choice(),))

    @property
    def usage(self) -> Usage:
        """Tokens as far as the vendor has counted."""
        return self.part().usage

    @property
    def cost_usd(self) -> float | None:
        """US dollars as far as known."""
        return self.part().cost_usd


async def _open_stream(
    client: VendorClient,
    request: ChatRequest,
    begin: Callable[[Coroutine[Any, Any, VendorStream]], Awaitable[VendorStream]] | None = None,
) -> OpenedStream:
    """Open a stream and read to its first content. The caller bounds the time.

    `begin` bounds the time until the provider begins to answer.
    """
    opening = client.stream(request)
    stream = await (opening if begin is None else begin(opening))
    try:
        while True:
            chunks = await stream.read()
            if chunks is None:
                return OpenedStream(stream, (), whole=True)
            if chunks:
                return OpenedStream(stream, chunks, whole=False)
    except BaseException:
        await stream.aclose()
        raise


async def next_content(
    stream: VendorStream, idle: float, bounded: Bounded
) -> Sequence[Chunk] | None:
    """Wait for the next content of a stream; None at its end.

    Pings and comments are not content. The time that the caller takes between two chunks does not
    count.

    Args:
        stream: An open stream, after its first content.
        idle: Most seconds without content.
        bounded: Runs a coroutine with a bound on its seconds.

    Raises:
        VendorCallError: The stream broke, or sent no content in time.
    """
    while True:
        finished = stream.finished
        try:
            chunks = await bounded(LINGER if finished else idle, _content(stream, finished))
        except TimeoutError:
            if stream.finished:
                return None
            break
        if chunks is None or chunks:
            return chunks
    raise VendorCallError(Failure(FailureKind.TIMEOUT, code=IDLE_TIMEOUT))


async def _content(stream: VendorStream, finished: bool) -> Sequence[Chunk] | None:
    """Read to the next content or the end; () at the finish reason."""
    while True:
        chunks = await stream.read()
        if chunks is None or chunks:
            return chunks
        if stream.finished and not finished:
            return ()
