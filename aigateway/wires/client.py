"""The face of the wires: a vendor's client with three calls and one kind of failure.

A `VendorClient` belongs to one provider and one event loop. It works out once, when it is made,
what does not depend on a request (URL, headers, pool, price).

`ChangingKeyClient` is for a provider whose key comes from a function: tokens that expire, secrets
that are rotated. Each key has a client of its own. A call ends with the client that it began with,
and a client without calls is collected; all of them share the connections below.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar

from pydantic import SecretStr

from aigateway.clock import Clock
from aigateway.errors import FailureKind, ProviderFailure
from aigateway.events import Operation
from aigateway.messages import (
    Capability,
    ChatRequest,
    Chunk,
    Completion,
    EmbeddingRequest,
    Embeddings,
    ProtocolName,
)
from aigateway.settings import KeyFunction, LLMConfig, checked_key

__all__ = [
    "ChangingKeyClient",
    "Failure",
    "VendorCallError",
    "VendorClient",
    "VendorClientFactory",
    "VendorStream",
    "call_function",
    "retrieve_exception",
    "without_stop",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """A vendor's failure, with everything foreign removed.

    Attributes:
        kind: What happened; decides failover, breaker and gate.
        status: The HTTP status that the vendor really sent, if any.
        retry_after: Seconds the vendor asks to be left alone, if it said.
        code: The vendor's machine-readable code ("insufficient_quota"), if it sent a tame one.
        param: The parameter that the vendor's error is about, if it names one.
        detail: The vendor's own words, with keys masked. They may quote the prompt, so they are
            never logged.
        mendable: Asked again, the provider would be asked without the hint that it refused.
        unreachable: No connection could be made at all (refused, DNS, TLS, no route).
        certain: For AUTHENTICATION, PERMISSION, NO_CREDIT and MODEL_NOT_FOUND: the vendor's own
            words or code speak of key, region, model, deployment or billing. A bare status, or a
            code that only repeats it, is not certain: it may be about this one request.
    """

    kind: FailureKind
    status: int | None = None
    retry_after: float | None = None
    code: str | None = None
    param: str | None = None
    detail: str | None = field(default=None, repr=False, compare=False)
    mendable: bool = False
    unreachable: bool = False
    certain: bool = False

    def of(self, provider: str, longest: float = math.inf) -> ProviderFailure:
        """Return the public form of this failure. `longest` bounds the vendor's `Retry-After`."""
        after = self.retry_after
        return ProviderFailure(
            provider,
            self.kind,
            self.status,
            None if after is None else min(after, longest),
            self.code,
            self.param,
            self.detail,
        )


class VendorCallError(Exception):
    """A vendor's failure: the one exception that a `VendorClient` raises for it."""

    def __init__(self, failure: Failure, answer: Completion | None = None) -> None:
        super().__init__(str(failure.kind))
        self.failure = failure
        self.answer = answer
        """An answer that came and is of no use: it has been paid for."""


class VendorStream(Protocol):
    """An answer that is being given, over a connection of its own until `aclose`.

    One task reads at a time. Time is the caller's to bound; a read that is cancelled is the last.
    """

    @property
    def finished(self) -> bool:
        """Whether the vendor has said why the answer ended: what is missing is not content."""

    async def read(self) -> Sequence[Chunk] | None:
        """Wait for what comes next over the wire.

        Returns:
            The content that came: text, reasoning, refusal, pieces of tool calls. Empty where
            the vendor sent something else (a role, a ping, a comment). None when the answer is
            whole; its end and its usage are in `completion()`.

        Raises:
            VendorCallError: It broke, is no answer, or ended without a finish reason.
        """

    def completion(self) -> Completion:
        """Return what has come so far as one answer, priced as far as usage has come."""

    async def aclose(self) -> None:
        """Close the connection, unless the answer was read to its end. May be called twice."""


class VendorClient(Protocol):
    """One provider's connection to its vendor.

    All calls raise `VendorCallError` for anything the vendor (or the way to it) did wrong, and
    let cancellation through. None retries, and none bounds its own time: the caller does.
    """

    @property
    def max_input_tokens(self) -> int | None:
        """The model's context window for input, if it is known. Asked only after `prepare`."""

    @property
    def has_price(self) -> bool:
        """Whether it is known what calls cost. Asked only after `prepare`."""

    @property
    def operations(self) -> frozenset[Operation] | None:
        """What the model does; None where nothing is known. Asked only after `prepare`."""

    @property
    def capabilities(self) -> Mapping[Capability, bool]:
        """What the model can do and what it cannot, as far as litellm's map knows.

        Asked only after `prepare`.
        """

    @property
    def accepts_prefill(self) -> bool:
        """Whether the model goes on from a trailing message of the assistant, as far as is known.

        Asked only after `prepare`.
        """

    def speaks(self, protocol: ProtocolName) -> bool | None:
        """Return whether the provider speaks a protocol beside OpenAI's chat; None: ask it."""

    async def prepare(self) -> None:
        """Load what the first call would otherwise wait for (importing litellm takes seconds).

        Cheap once it has been done. The time it takes is not held against the vendor.
        """

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """Name the parameters of a chat that would be left out. Asked only after `prepare`.

        What is said before, in `messages`, may leave no room for some.
        """

    async def chat(self, request: ChatRequest) -> Completion:
        """Ask for an answer."""

    async def stream(self, request: ChatRequest) -> VendorStream:
        """Ask for an answer piece by piece. Return when the vendor has begun to answer."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Ask for vectors."""

    def pause(self) -> float | None:
        """Return the seconds until the vendor's limits allow a call again, if it says none is left.

        From the headers of the latest response; said once.
        """

    async def aclose(self) -> None:
        """Close every connection this client opened. May be called twice."""


VendorClientFactory = Callable[[LLMConfig, Clock], VendorClient]
"""Makes the client of one provider. Called on the event loop that will use it."""


_log = logging.getLogger(__name__)

ASK_AGAIN = 60.0
"""Seconds for which a key is used before the function is asked again. One that renews a token some
minutes before it expires is asked in time, so that no call meets an old one."""

_UNAUTHORIZED = 401

P = ParamSpec("P")
T = TypeVar("T")


class Renewable(VendorClient, Protocol):
    """A client that another one of the same provider, with another key, can replace."""

    def learn_from(self, other: Any) -> None:
        """Take over what another client of this provider has learned. Called before `prepare`."""


class ChangingKeyClient:
    """One provider on one event loop, with the current key; `make` makes the client for one."""

    def __init__(
        self, config: LLMConfig, clock: Clock, make: Callable[[LLMConfig, Clock], Renewable]
    ) -> None:
        assert callable(config.api_key)  # noqa: S101 - else the ordinary client does
        self._function: KeyFunction = config.api_key
        self._config = config
        self._clock = clock
        self._make = make
        self._key: str | None = None
        self._asked_at = -math.inf
        self._asking = asyncio.Lock()
        # Without a key it knows the model already. It is never called.
        nothing = config.model_copy(update={"api_key": SecretStr("not-known-yet")})
        self._client = make(nothing, clock)
        self._closed = False

    @property
    def max_input_tokens(self) -> int | None:
        """See `VendorClient`."""
        return self._client.max_input_tokens

    @property
    def has_price(self) -> bool:
        """See `VendorClient`."""
        return self._client.has_price

    @property
    def operations(self) -> frozenset[Operation] | None:
        """See `VendorClient`."""
        return self._client.operations

    @property
    def capabilities(self) -> Mapping[Capability, bool]:
        """See `VendorClient`."""
        return self._client.capabilities

    @property
    def accepts_prefill(self) -> bool:
        """See `VendorClient`."""
        return self._client.accepts_prefill

    def speaks(self, protocol: ProtocolName) -> bool | None:
        """See `VendorClient`."""
        return self._client.speaks(protocol)

    async def prepare(self) -> None:
        """See `VendorClient`. Gets no key: that is part of the first call, and of its time."""
        await self._client.prepare()

    async def chat(self, request: ChatRequest) -> Completion:
        """See `VendorClient`."""
        return await self._call(lambda client: client.chat(request))

    async def stream(self, request: ChatRequest) -> VendorStream:
        """See `VendorClient`."""
        return await self._call(lambda client: client.stream(request))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `VendorClient`."""
        return await self._call(lambda client: client.embed(request))

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """See `VendorClient`."""
        return self._client.dropped(params, messages)

    def pause(self) -> float | None:
        """See `VendorClient`."""
        return self._client.pause()

    async def aclose(self) -> None:
        """See `VendorClient`."""
        self._closed = True
        await self._client.aclose()

    async def _call(self, call: Callable[[VendorClient], Awaitable[T]]) -> T:
        """Make a call, and once more with a new key where the vendor refuses the old one."""
        client = await self._with_key()
        try:
            return await call(client)
        except VendorCallError as error:
            if error.failure.status != _UNAUTHORIZED:
                raise
            renewed = await self._with_key(instead_of=client)
            if renewed is client:
                raise
        return await call(renewed)

    async def _with_key(self, *, instead_of: VendorClient | None = None) -> VendorClient:
        """Return the client for the current key; the vendor refuses the key of `instead_of`."""
        due = self._clock.now() >= self._asked_at + ASK_AGAIN
        # While one call asks, the others go on with the key that they have.
        if instead_of is None and self._key is not None and (not due or self._asking.locked()):
            return self._client
        async with self._asking:
            refused = instead_of is not None and instead_of is self._client
            due = self._clock.now() >= self._asked_at + ASK_AGAIN
            if refused or due or self._key is None:
                await self._ask()
        return self._client

    async def _ask(self) -> None:
        try:
            key = checked_key(await call_function(self._function))
        except Exception as error:  # noqa: BLE001 - it is the application's, and may raise anything
            name = type(error).__name__  # not its text: that may quote a key
            _log.warning("The api_key function of provider %s failed: %s.", self._config.name, name)
            if self._key is None:
                failure = Failure(
                    FailureKind.UNKNOWN,
                    code="api_key_function_failed",
                    detail=f"The function given as api_key gave no key: {name}.",
                )
                raise VendorCallError(failure) from None
            self._asked_at = self._clock.now()
            return
        self._asked_at = self._clock.now()
        if key.get_secret_value() != self._key and not self._closed:
            client = self._make(self._config.model_copy(update={"api_key": key}), self._clock)
            client.learn_from(self._client)
            await client.prepare()
            self._client, self._key = client, key.get_secret_value()


async def call_function(function: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
    """Call a function of the application; one that is not async in a thread, since it may wait."""
    is_plain = inspect.isroutine(function) or hasattr(function, "func")  # `functools.partial`
    if inspect.iscoroutinefunction(function if is_plain else type(function).__call__):
        return await function(*given, **named)
    result = await asyncio.to_thread(without_stop(function), *given, **named)
    return await result if inspect.isawaitable(result) else result


def without_stop(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function for a thread that raises no `StopIteration`, as no coroutine does.

    On Python 3.11 a future does not take one, and what awaits the thread would wait forever.
    """

    def call(*given: P.args, **named: P.kwargs) -> T:
        try:
            return function(*given, **named)
        except StopIteration as error:
            raise RuntimeError("The function raised StopIteration.") from error

    return call


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a cancelled call, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
