"""What a request wants of a provider: a chat, a chat over a stream, a stream, or embeddings.

Each kind knows which call of the wire it is and how its answer is judged. Who is asked, for how
long, and what a failure means is decided by `failover.py`, which is the same for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
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
"""Seconds to wait for usage once the vendor has said why the answer ended."""

IDLE_TIMEOUT = "idle_timeout"
"""`Failure.code` of a stream that fell silent."""

T = TypeVar("T")
A = TypeVar("A", bound=Billable)


class Work(Protocol[A]):
    """What is wanted of a provider.

    Attributes:
        streamed: The attempt ends at the first content, and the call stays out; else at the answer.
    """

    streamed: ClassVar[bool]

    def ask(self, attempt: PendingAttempt) -> Awaitable[A]:
        """Make the call. It raises `VendorCallError` for what went wrong at the vendor."""

    def check(self, answer: A) -> None:
        """Raise `VendorCallError` for an answer that is of no use."""

    async def discard(self, answer: A) -> None:
        """Close an answer that is not used after all."""


class _Whole:
    """An answer that comes in one piece, and leaves nothing open."""

    __slots__ = ()
    streamed: ClassVar[bool] = False

    def check(self, answer: Any) -> None:
        """Accept it."""

    async def discard(self, answer: Any) -> None:
        """Leave it to the garbage collector."""


@dataclass(frozen=True, slots=True)
class ChatWork(_Whole):
    """An answer to a chat."""

    request: ChatRequest

    def ask(self, attempt: PendingAttempt) -> Awaitable[Completion]:
        """Call the vendor."""
        return attempt.provider.client.chat(attempt.outgoing(self.request))

    def check(self, answer: Completion) -> None:
        """Refuse an answer that does not parse as the request's `response_model`."""
        model = self.request.response_model
        if model is not None and not fits(model, answer):
            # Raised here and not from pydantic's error, which quotes the answer.
            raise VendorCallError(Failure(FailureKind.INVALID_OUTPUT), answer)


@dataclass(frozen=True, slots=True)
class EmbeddingWork(_Whole):
    """Embeddings of some texts."""

    request: EmbeddingRequest

    def ask(self, attempt: PendingAttempt) -> Awaitable[Embeddings]:
        """Call the vendor."""
        return attempt.provider.client.embed(attempt.outgoing(self.request))


class Bounded(Protocol):
    """Runs something that raises `TimeoutError` if it takes longer."""

    async def __call__(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """Run it."""


@dataclass(frozen=True, slots=True)
class ChatOverStreamWork(ChatWork):
    """An answer in one piece that the vendor is asked to stream, so that silence is noticed.

    Attributes:
        first: Seconds until the first content.
        idle: Seconds of silence after it.
        bounded: Runs something with a bound on its seconds.
    """

    first: float
    idle: float
    bounded: Bounded

    async def ask(self, attempt: PendingAttempt) -> Completion:
        """Stream from the vendor. Whatever breaks fails over: nothing has been delivered yet."""
        client, request = attempt.provider.client, attempt.outgoing(self.request)
        try:
            opened = await self.bounded(self.first, _open_stream(client, request))
        except TimeoutError:
            raise VendorCallError(Failure(FailureKind.TIMEOUT, code=FIRST_TOKEN_TIMEOUT)) from None
        try:
            whole = opened.whole
            while not whole:
                whole = await next_content(opened.stream, self.idle, self.bounded) is None
        except VendorCallError as error:
            # What came is of no use, but paid for.
            raise VendorCallError(error.failure, opened.part()) from None
        finally:
            await opened.stream.aclose()
        return opened.stream.completion()


@dataclass(frozen=True, slots=True)
class StreamWork:
    """A stream, up to its first content."""

    request: ChatRequest
    streamed: ClassVar[bool] = True

    def ask(self, attempt: PendingAttempt) -> Awaitable[OpenedStream]:
        """Open the stream, and read to its first content."""
        return _open_stream(attempt.provider.client, attempt.outgoing(self.request))

    def check(self, answer: OpenedStream) -> None:
        """Accept it: what follows is judged when the stream ends."""

    async def discard(self, answer: OpenedStream) -> None:
        """Close the stream."""
        await answer.stream.aclose()


class OpenedStream:
    """A stream that has given its first content (or is whole already)."""

    __slots__ = ("first", "stream", "whole")

    def __init__(self, stream: VendorStream, first: Sequence[Chunk], *, whole: bool) -> None:
        self.stream = stream
        self.first = first
        self.whole = whole

    def part(self) -> Completion:
        """Return what has come so far."""
        try:
            return self.stream.completion()
        except Exception as error:  # noqa: BLE001 - the call must be settled all the same
            _log.warning("A stream cannot say what has arrived: %s.", type(error).__name__)
            return Completion("", "", (Choice(),))

    @property
    def usage(self) -> Usage:
        """Tokens as far as the vendor has counted."""
        return self.part().usage

    @property
    def cost_usd(self) -> float | None:
        """US dollars as far as is known."""
        return self.part().cost_usd


async def _open_stream(client: VendorClient, request: ChatRequest) -> OpenedStream:
    """Open a stream and read to its first content. The caller bounds the time."""
    stream = await client.stream(request)
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

    Pings and comments are not content: a vendor may send those for ever. The time that the caller
    takes between two chunks does not count.

    Args:
        stream: Has given its first content.
        idle: Seconds without content that it may take.
        bounded: Runs something with a bound on its seconds.

    Raises:
        VendorCallError: It broke, or fell silent.
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
    """Read to the next content or the end; () once the vendor has said why the answer ended."""
    while True:
        chunks = await stream.read()
        if chunks is None or chunks:
            return chunks
        if stream.finished and not finished:
            return ()
