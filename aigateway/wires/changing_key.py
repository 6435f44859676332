"""A provider whose key comes from a function: tokens that expire, secrets that are rotated.

Each key has a client of its own. Calls that are out end with the one that they began with, and what
no call uses any more is collected; the connections below are shared by all of them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import SecretStr

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.events import Operation
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings
from aigateway.settings import KeyFunction, LLMConfig, checked_key
from aigateway.wires.client import (
    Failure,
    VendorCallError,
    VendorClient,
    VendorStream,
)

__all__ = ["ChangingKeyClient"]

_log = logging.getLogger(__name__)

ASK_AGAIN = 60.0
"""Seconds for which a key is used before the function is asked again. One that renews a token some
minutes before it expires is asked in time, so that no call meets an old one."""

_UNAUTHORIZED = 401

T = TypeVar("T")


class Renewable(VendorClient, Protocol):
    """A client that another one of the same provider, with another key, can replace."""

    def learn_from(self, other: Any) -> None:
        """Go on with what another one has learned of the provider. Called before `prepare`."""


class ChangingKeyClient:
    """One provider on one event loop, with whatever key its function gives at the moment.

    Args:
        config: The provider; its `api_key` is a function.
        clock: The gateway's.
        make: Makes the client for one key.
    """

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
        """As `VendorClient`."""
        return self._client.max_input_tokens

    @property
    def operations(self) -> frozenset[Operation] | None:
        """As `VendorClient`."""
        return self._client.operations

    @property
    def accepts_prefill(self) -> bool:
        """As `VendorClient`."""
        return self._client.accepts_prefill

    async def prepare(self) -> None:
        """As `VendorClient`. Asks for no key: that is part of the first call, and of its time."""
        await self._client.prepare()

    async def chat(self, request: ChatRequest) -> Completion:
        """As `VendorClient`."""
        return await self._call(lambda client: client.chat(request))

    async def stream(self, request: ChatRequest) -> VendorStream:
        """As `VendorClient`."""
        return await self._call(lambda client: client.stream(request))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `VendorClient`."""
        return await self._call(lambda client: client.embed(request))

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """As `VendorClient`."""
        return self._client.dropped(params, messages)

    def pause(self) -> float | None:
        """As `VendorClient`."""
        return self._client.pause()

    async def aclose(self) -> None:
        """As `VendorClient`."""
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
        """The client for the key as it is now.

        Args:
            instead_of: The vendor refuses the key of this one.

        Raises:
            VendorCallError: There is no key.
        """
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
            # In a thread: one that is not async may wait for the network.
            waits = inspect.iscoroutinefunction(self._function)
            given = self._function() if waits else await asyncio.to_thread(self._function)
            key = checked_key(await given if inspect.isawaitable(given) else given)
        except Exception as error:  # noqa: BLE001 - it is the application's, and may raise anything
            told = type(error).__name__  # not its text: that may quote a key
            _log.warning("The key of provider %s could not be had: %s.", self._config.name, told)
            if self._key is None:
                failure = Failure(
                    FailureKind.UNKNOWN,
                    code="api_key_function_failed",
                    detail=f"The function given as api_key gave no key: {told}.",
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
