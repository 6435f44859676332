"""What became of each request: counted once, told once.

Between a request's beginning and its end stands `open`; exactly one of the entry's methods, an
error or a cancellation closes the entry.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from aigateway.clock import Clock
from aigateway.errors import GatewayError
from aigateway.events import CacheHit, RequestFailed, RequestServed
from aigateway.messages import ChatRequest, Completion, EmbeddingRequest, Embeddings
from aigateway.settings.secrets import tells_a_key
from aigateway.telemetry.account import Account
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.metrics import RequestCounters

__all__ = ["Entry", "Ledger"]


class Entry:
    """One request in the books; see `Ledger.open`.

    A class, since every request passes here and a generator costs three times as much.

    Attributes:
        account: What it comes to; None if nobody wants to know.
        began: When it began, on the clock's own scale.
    """

    __slots__ = ("_agent", "_clock", "_counters", "_emitter", "_request", "account", "began")

    def __init__(
        self,
        counters: RequestCounters,
        emitter: Emitter,
        clock: Clock,
        request: ChatRequest | EmbeddingRequest,
        agent: str | None,
    ) -> None:
        self._counters = counters
        self._emitter = emitter
        self._clock = clock
        self._request = request
        self._agent = agent
        self.account: Account | None = None
        self.began = clock.now()

    def __enter__(self) -> Self:
        self._counters.total += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._broke_off(error)
        if self.account is not None:
            self.account.close(error)

    def _broke_off(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            self._counters.cancelled += 1
            return
        self._counters.failures += 1  # also of an error not foreseen: the books balance
        if isinstance(error, GatewayError):
            self._emitter.emit(
                RequestFailed(
                    self._request.request_id,
                    self._agent,
                    type(error).__name__,
                    getattr(error, "causes", ()),
                    self._clock.now() - self.began,
                )
            )

    def served(
        self, provider: str, answer: Completion | Embeddings, *, attempts: int, latency: float
    ) -> None:
        """A vendor answered this request itself."""
        if self.account is not None:
            self.account.answered("served", provider, answer)
        self._counters.served += 1
        if self._emitter.wants(RequestServed):
            self._emitter.emit(
                RequestServed(
                    self._request.request_id,
                    provider,
                    "" if tells_a_key(answer.model) else answer.model,
                    self._agent,
                    attempts,
                    latency,
                    answer.usage.total_tokens,
                    answer.cost_usd,
                )
            )

    def coalesced(self, provider: str, answer: Completion) -> None:
        """It shared the answer to an identical request."""
        if self.account is not None:
            self.account.answered("coalesced", provider, answer)
        self._counters.coalesced += 1

    def remembered(self, provider: str, answer: Completion, *, stale: bool) -> None:
        """It was answered from the cache."""
        if self.account is not None:
            self.account.answered("stale" if stale else "hit", provider, answer)
        if stale:
            self._counters.stale += 1
        else:
            self._counters.cache_hits += 1
        if self._emitter.wants(CacheHit):
            self._emitter.emit(CacheHit(self._request.request_id, provider, self._agent, stale))


class Ledger:
    """Counts requests and tells hooks and log about them."""

    __slots__ = ("_clock", "_emitter", "counters")

    def __init__(self, clock: Clock, emitter: Emitter) -> None:
        self._clock = clock
        self._emitter = emitter
        self.counters = RequestCounters()

    def open(
        self,
        request: ChatRequest | EmbeddingRequest,
        agent: str | None,
        *,
        streamed: bool = False,
    ) -> Entry:
        """Enter a request, for as long as it lasts. An error inside is its end."""
        emitter, clock = self._emitter, self._clock
        if request.tenant and agent != request.tenant:
            # What a caller calls itself does not stand in the place of its name.
            agent = f"{request.tenant}/{agent}" if agent else request.tenant
        entry = Entry(self.counters, emitter, clock, request, agent)
        if emitter.follows_requests():
            entry.account = Account(
                emitter, clock, request, agent, began=entry.began, streamed=streamed
            )
        return entry

    def snapshot(self) -> dict[str, Any]:
        """The counters as plain values."""
        return self.counters.snapshot()
