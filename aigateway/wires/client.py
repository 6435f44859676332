"""What the rest of the house knows of a vendor: three calls, one kind of failure.

A `VendorClient` belongs to one provider and one event loop. Everything that can be worked out
once per provider (URL, headers, pool, price) is worked out when it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aigateway.clock import Clock
from aigateway.errors import FailureKind, ProviderFailure
from aigateway.events import Operation
from aigateway.messages import ChatRequest, Chunk, Completion, EmbeddingRequest, Embeddings
from aigateway.settings import LLMConfig

__all__ = ["Failure", "VendorCallError", "VendorClient", "VendorClientFactory", "VendorStream"]


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
        """Make the cause that errors carry for it.

        Args:
            provider: Its name.
            longest: Seconds after which the provider is asked again, whatever the vendor wishes.
        """
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
    """The one exception that a `VendorClient` raises for a vendor's failure."""

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
        """What has come so far, as one answer, with its price as far as usage has come."""

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
    def operations(self) -> frozenset[Operation] | None:
        """What the model does; None where nothing is known. Asked only after `prepare`."""

    @property
    def accepts_prefill(self) -> bool:
        """Whether the model goes on from a trailing message of the assistant, as far as is known.

        Asked only after `prepare`.
        """

    async def prepare(self) -> None:
        """Load what the first call would otherwise wait for (importing litellm takes seconds).

        Cheap once it has been done. The time it takes is not held against the vendor.
        """

    def dropped(
        self, params: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] = ()
    ) -> Sequence[str]:
        """Name the parameters of a chat that would be left out. Asked only after `prepare`.

        Args:
            params: Of the chat.
            messages: What is said before may leave no room for some.
        """

    async def chat(self, request: ChatRequest) -> Completion:
        """Ask for an answer."""

    async def stream(self, request: ChatRequest) -> VendorStream:
        """Ask for an answer piece by piece. Returns when the vendor has begun to answer."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Ask for vectors."""

    def pause(self) -> float | None:
        """Seconds until the vendor's own limits allow a call again, if it says none is left now.

        From the headers of the latest response; said once.
        """

    async def aclose(self) -> None:
        """Close every connection this client opened. May be called twice."""


VendorClientFactory = Callable[[LLMConfig, Clock], VendorClient]
"""Makes the client of one provider. Called on the event loop that will use it."""
