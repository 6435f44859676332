"""The native lane: a request goes to a provider of its own protocol as it is, and the answer back.

Only the model and the key are the provider's. What comes back is read all the same: how it ended,
what it cost, and whether it is an answer. Unknown fields pass in both directions.
"""

from __future__ import annotations

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any, ClassVar, TypeVar

import orjson

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.messages import (
    ChatRequest,
    Chunk,
    Completion,
    NativeAnswer,
    ProtocolName,
    Usage,
)
from aigateway.settings import LLMConfig
from aigateway.wires.assembly import Assembly
from aigateway.wires.client import Failure, VendorCallError, VendorStream
from aigateway.wires.failures import classify_response
from aigateway.wires.json_bodies import parsed, with_extra_body
from aigateway.wires.stream_reading import Event, StreamReading
from aigateway.wires.wire import BrokenOffError, Received, VendorRequest, caller_headers

T = TypeVar("T")

__all__ = ["NativeLane", "NativeProtocol", "NativeReading"]

_log = logging.getLogger(__name__)

_ASKED_AGAIN = 3600.0
"""Seconds after which a server that did not speak a protocol is asked again."""
_NOT_THERE = frozenset({404, 405, 501})
_NAMES_A_THING = re.compile(
    r"\b(batch|container|conversation|file|item|message|prompt|response|skill|store|tool)s?\b"
    r".{0,160}\b(not found|not exist|no longer|expired|deleted)|\bwith id\b",
    re.IGNORECASE | re.DOTALL,
)
"""A 404 with such words is about something that the request refers to, not about the server."""
_FOR_ANOTHER_MODEL = re.compile(
    r"\b(context_management|effort|max_(output_)?tokens|reasoning|service_tier|temperature|thinking"
    r"|top_[kp]|verbosity)\b",
    re.IGNORECASE,
)
"""Words about what depends on the model."""
_REFUSED = frozenset({400, 422})
_REFUSES_SIGNATURES = re.compile(
    r"signature|thinking`? block|expected `?thinking|thinking.*found"
    r"|encrypted[_ ]content|reasoning.{0,40}(?:item|content)",
    re.IGNORECASE,
)

_DEFAULTS = ("service_tier", "temperature", "top_k", "top_p")
"""Chat parameters of a provider's `extra` that have the same name in each protocol."""


_MOST_HEADERS = 64
"""Sets of a caller's headers for which those that are sent are kept."""


class NativeReading(StreamReading):
    """One stream of a protocol, whose events are kept as they came.

    A chunk has the events since the last one. An event without text, such as the delta of an
    unknown kind, makes a chunk of its own (`_pass`). The events of the end are in `native`.
    """

    protocol: ClassVar[ProtocolName]

    def __init__(self, model: str, expected: int = 1) -> None:
        super().__init__(Assembly(model, expected), lambda: None)
        self._held: list[bytes] = []
        self.begun = False
        """Whether there has been content."""

    @property
    def native(self) -> NativeAnswer:
        """See `StreamReading`."""
        body = b""
        if self.assembly.finished:
            with contextlib.suppress(Exception):  # then it is written from what was read
                whole = self._whole()
                body = b"" if whole is None else orjson.dumps(whole)
        return NativeAnswer(self.protocol, body, (*self._held, *self._missing_end()))

    def take(self, events: Iterable[Event]) -> list[Chunk]:
        """Read what came, and return its content."""
        # The content of others has gone out within the events of these.
        return [chunk for chunk in super().take(events) if chunk.native_events]

    def _take(self, name: bytes, data: bytes) -> None:
        if not data:
            return
        self._held.append(_as_sent(name, data))
        before = len(self._chunks)
        super()._take(name, data)
        if len(self._chunks) > before:
            self.begun = True
            first = self._chunks[before]
            self._chunks[before] = replace(first, native_events=tuple(self._held))
            self._held = []

    def _pass(self) -> None:
        """Hand on an event that says nothing to a chat."""
        self._chunks.append(Chunk())

    def _whole(self) -> Any:
        """Return the whole answer, once it has come to its end; None if it cannot be made."""

    def _missing_end(self) -> Iterable[bytes]:
        """Return the events with which the stream has to end, if they did not come."""
        return ()

    def _usage(self, counted: Any) -> tuple[Usage, Any]:
        return self.counted(counted), None

    @staticmethod
    @abstractmethod
    def counted(usage: Mapping[str, Any]) -> Usage:
        """Return the vendor's count."""


class NativeProtocol(ABC):
    """One protocol at one provider.

    Args:
        config: Of the provider.
        key: Its key.
        base: Its address.

    Attributes:
        name: The protocol.
        url: Where requests go.
        model: The provider's model.
        reading: Reads a stream.
        limit: Its name for the limit of the answer's tokens.
    """

    limit: ClassVar[str] = "max_tokens"
    name: ClassVar[ProtocolName]
    reading: ClassVar[type[NativeReading]]

    def __init__(self, config: LLMConfig, key: str, base: str) -> None:
        self._config = config
        self.model = config.model
        self._own_headers = dict(config.headers)
        extra = config.extra.get("extra_body")
        self._extra = extra if isinstance(extra, Mapping) else None
        self._defaults = {n: config.extra[n] for n in _DEFAULTS if n in config.extra}
        limits = [
            config.extra[n] for n in ("max_tokens", "max_completion_tokens") if n in config.extra
        ]
        if limits:
            self._defaults[self.limit] = limits[0]
        self.url = self._address(base)
        self._fixed_headers = {
            "Content-Type": "application/json",
            **self._key_headers(key),
            **self._own_headers,
        }
        self._known_headers: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def sent(
        self,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        callers: Mapping[str, str],
        *,
        streamed: bool,
    ) -> VendorRequest:
        """Make the request to send, from a body and the headers that belong to its protocol."""
        fitted = {**self._defaults, **self._fitted(body), "model": self.model, "stream": streamed}
        if self._extra is not None:
            fitted = with_extra_body(fitted, self._extra)
        given = tuple(headers.items())
        all_headers = self._known_headers.get(given)
        if all_headers is None:
            all_headers = self._with_headers(self._fixed_headers, headers)
            if len(self._known_headers) < _MOST_HEADERS:
                self._known_headers[given] = all_headers
        added = caller_headers(all_headers, callers) if callers else callers
        return VendorRequest(all_headers, {}, {}, orjson.dumps(fitted), added)

    @abstractmethod
    def _address(self, base: str) -> str: ...

    @abstractmethod
    def _key_headers(self, key: str) -> dict[str, str]: ...

    def _with_headers(self, own: Mapping[str, str], _given: Mapping[str, str]) -> Mapping[str, str]:
        return own

    def _fitted(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a body without what other vendors want back."""
        return body

    def without_signatures(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a body without what its vendor may have signed for another account."""
        return body

    @abstractmethod
    def completion(self, body: Any, content: bytes, *, stops: bool) -> Completion:
        """Read a whole answer.

        Args:
            body: The answer.
            content: The same as it came.
            stops: Whether the answer may be empty.

        Raises:
            BrokenOffError: It broke off.
            VendorCallError: It is no answer.
        """


class NativeLane:
    """One protocol at one provider, on one event loop.

    Args:
        protocol: Makes requests and reads answers.
        is_sure: Whether the provider speaks it. Otherwise it is asked, and asked again after an
            hour if it did not.
        asked_from: By protocol: when the provider may be asked again, on the clock's scale.
        clock: Time.
        exchange: Sends a request, and returns the response.
        open_stream: Sends a request whose answer is to be a stream. It gets the reading, a reader
            of an answer that comes in one piece all the same, and whether it may be empty.
        price: Sets the price of an answer, and returns it.
    """

    def __init__(
        self,
        protocol: NativeProtocol,
        *,
        is_sure: bool,
        asked_from: dict[ProtocolName, float],
        clock: Clock,
        exchange: Callable[[VendorRequest], Awaitable[Received]],
        open_stream: Callable[..., Awaitable[VendorStream]],
        price: Callable[[Completion], Completion],
    ) -> None:
        self._protocol = protocol
        self._is_sure = is_sure
        self._asked_from = asked_from
        self._clock = clock
        self._exchange = exchange
        self._open_stream = open_stream
        self._price = price
        self._has_answered = False

    @property
    def is_spoken(self) -> bool | None:
        """Whether the provider speaks the protocol; None if it has to be asked."""
        if self._is_sure:
            return True
        asked_from = self._asked_from.get(self._protocol.name, 0.0)
        return None if self._clock.now() >= asked_from else False

    def chat(self, request: ChatRequest) -> Awaitable[Completion | None]:
        """Ask for a whole answer; None if the provider does not speak the protocol."""
        return self._ask(request, self._whole)

    def stream(self, request: ChatRequest) -> Awaitable[VendorStream | None]:
        """Ask for a stream; likewise."""
        return self._ask(request, self._streamed)

    async def _ask(
        self, request: ChatRequest, ask: Callable[[ChatRequest, Mapping[str, Any]], Awaitable[T]]
    ) -> T | None:
        native = request.native
        assert native is not None  # noqa: S101 - else another lane is asked
        if not self._is_sure and self.is_spoken is False:
            self._not_spoken(request)
            return None
        try:
            return await ask(request, native.body)
        except VendorCallError as error:
            failure = error.failure
            if failure.status in _NOT_THERE and not failure.certain:
                self._not_there(request, failure)
                return None
            bare = self._protocol.without_signatures(native.body)
            if (
                bare is native.body
                or failure.status not in _REFUSED
                or not _REFUSES_SIGNATURES.search((failure.detail or "")[:1000])
            ):
                if native.only is not None or not self._may_take_a_chat(failure):
                    raise
                return None
        # Another account, which knows nothing of what this one has signed.
        return await ask(request, bare)

    def _may_take_a_chat(self, failure: Failure) -> bool:
        """Return whether the provider may take the translation of what it has refused.

        An imitation of a protocol may know less than the server's chat. And a body is made for
        another model: a chat leaves out what this one does not take.
        """
        if failure.kind is FailureKind.REJECTED and not self._is_sure:
            return True
        words = f"{failure.param or ''} {(failure.detail or '')[:1000]}"
        return failure.kind is FailureKind.UNSUPPORTED or (
            failure.status in _REFUSED and bool(_FOR_ANOTHER_MODEL.search(words))
        )

    def _not_there(self, request: ChatRequest, failure: Failure) -> None:
        """Judge a 404, 405 or 501: the server does not speak the protocol, or lacks a thing.

        One that has spoken it goes on to be asked: it is the request that names what is not there.
        """
        native = request.native
        if _NAMES_A_THING.search((failure.detail or "")[:1000]) or (
            self._is_sure and failure.status == 404
        ):
            raise VendorCallError(replace(failure, kind=FailureKind.REJECTED))
        if self._is_sure:
            raise VendorCallError(failure)
        if native is not None and native.only is None and not self._has_answered:
            self._asked_from[self._protocol.name] = self._clock.now() + _ASKED_AGAIN
        self._not_spoken(request)

    @staticmethod
    def _not_spoken(request: ChatRequest) -> None:
        """Leave a request to its translation. Raises `VendorCallError` if it has none."""
        if request.native is not None and request.native.only is not None:
            native = request.native
            what = (
                f"This server does not speak the protocol that {native.only} needs:"
                f" {native.instead}."
            )
            raise VendorCallError(Failure(FailureKind.UNSUPPORTED, detail=what))

    async def _whole(self, request: ChatRequest, body: Mapping[str, Any]) -> Completion:
        sent = self._sent(request, body, streamed=False)
        return self._read(request, await self._exchange(sent))

    async def _streamed(self, request: ChatRequest, body: Mapping[str, Any]) -> VendorStream:
        sent = self._sent(request, body, streamed=True)
        count = body.get("n")
        reading = self._protocol.reading(
            self._protocol.model, count if type(count) is int and 0 < count <= 128 else 1
        )
        stream = await self._open_stream(
            sent, reading, partial(self._read, request), stops=_may_be_empty(request)
        )
        self._has_answered = True
        return stream

    def _sent(
        self, request: ChatRequest, body: Mapping[str, Any], *, streamed: bool
    ) -> VendorRequest:
        assert request.native is not None  # noqa: S101 - `_ask` has looked
        headers = request.native.headers
        return self._protocol.sent(body, headers, request.headers, streamed=streamed)

    def _read(self, request: ChatRequest, received: Received) -> Completion:
        """Read a whole answer, and price it."""
        failure: Failure | None = None
        (status, headers, content), said = received, None
        if 200 <= status < 300:
            try:
                stops = _may_be_empty(request)
                try:
                    body = orjson.loads(content)
                except orjson.JSONDecodeError:
                    body = parsed(content, whole=True)
                read = self._protocol.completion(body, content, stops=stops)
                self._has_answered = True
                return self._price(read)
            except VendorCallError as error:
                failure = error.failure
            except BrokenOffError as error:
                said = error.body
            except Exception as error:  # noqa: BLE001 - the body says what it is
                _log.debug("Unreadable answer (%s).", type(error).__name__)
        if failure is None or failure.kind is FailureKind.BAD_ANSWER:
            failure = classify_response(
                status, headers, said or content, now_wall=self._clock.wall()
            )
        raise VendorCallError(failure)


_ROLE = methodcaller("get", "role")


def _may_be_empty(request: ChatRequest) -> bool:
    """Return whether an answer may be empty: after a tool's result a model may have no more to say.

    https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons
    """
    if request.params.get("stop"):
        return True
    return "tool" in map(_ROLE, request.messages[-2:])


def _as_sent(name: bytes, data: bytes) -> bytes:
    lines = b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
    return b"event: " + name + b"\n" + lines if name else lines
