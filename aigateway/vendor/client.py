"""What the rest of the house knows of a vendor: two calls, one kind of failure.

A `VendorClient` belongs to one provider and one event loop. Everything that can be worked out
once per provider (URL, headers, pool, price) is worked out when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aigateway.clock import Clock
from aigateway.errors import FailureKind
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings
from aigateway.settings import LLMConfig

__all__ = ["Failure", "VendorCallError", "VendorClient", "VendorClientFactory"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A vendor's failure, with everything foreign removed.

    Attributes:
        kind: What happened; decides failover, breaker and gate.
        status: The HTTP status that the vendor really sent, if any.
        retry_after: Seconds the vendor asks to be left alone, if it said.
        code: The vendor's machine-readable code ("insufficient_quota"), if it sent a tame one.
    """

    kind: FailureKind
    status: int | None = None
    retry_after: float | None = None
    code: str | None = None


class VendorCallError(Exception):
    """The one exception that a `VendorClient` raises for a vendor's failure."""

    def __init__(self, failure: Failure, answer: Completion | None = None) -> None:
        super().__init__(str(failure.kind))
        self.failure = failure
        self.answer = answer
        """An answer that came and is of no use: it has been paid for."""


class VendorClient(Protocol):
    """One provider's connection to its vendor.

    Both calls raise `VendorCallError` for anything the vendor (or the way to it) did wrong, and
    let cancellation through. Neither retries, and neither bounds its own time: the caller does.
    """

    @property
    def max_input_tokens(self) -> int | None:
        """The model's context window for input, if it is known. Asked only after `prepare`."""

    async def prepare(self) -> None:
        """Load what the first call would otherwise wait for (importing litellm takes seconds).

        Cheap once it has been done. The time it takes is not held against the vendor.
        """

    async def chat(self, request: ChatRequest) -> Completion:
        """Ask for an answer."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Ask for vectors."""

    async def aclose(self) -> None:
        """Close every connection this client opened. May be called twice."""


VendorClientFactory = Callable[[LLMConfig, Clock], VendorClient]
"""Makes the client of one provider. Called on the event loop that will use it."""
