"""What became of each request: counted once, told once.

Between a request's beginning and its end stands `open`; exactly one of the other methods, an
error or a cancellation closes the entry.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

from aigateway.clock import Clock
from aigateway.errors import GatewayError
from aigateway.events import CacheHit, RequestFailed, RequestServed
from aigateway.messages import Usage
from aigateway.telemetry.emitter import Emitter
from aigateway.telemetry.metrics import RequestCounters

__all__ = ["Ledger"]


class _Asked(Protocol):
    @property
    def request_id(self) -> str: ...


class _Answered(Protocol):
    @property
    def model(self) -> str: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def cost_usd(self) -> float | None: ...


class _Entry:
    """One request in the books; see `Ledger.open`.

    A class, since every request passes here and a generator costs three times as much.
    """

    __slots__ = ("_agent", "_began", "_clock", "_counters", "_emitter", "_request")

    def __init__(
        self,
        counters: RequestCounters,
        emitter: Emitter,
        clock: Clock,
        request: _Asked,
        agent: str | None,
    ) -> None:
        self._counters = counters
        self._emitter = emitter
        self._clock = clock
        self._request = request
        self._agent = agent
        self._began = 0.0

    def __enter__(self) -> float:
        self._counters.total += 1
        self._began = began = self._clock.now()
        return began

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
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
                    self._clock.now() - self._began,
                )
            )


class Ledger:
    """Counts requests and tells hooks and log about them."""

    __slots__ = ("_clock", "_emitter", "counters")

    def __init__(self, clock: Clock, emitter: Emitter) -> None:
        self._clock = clock
        self._emitter = emitter
        self.counters = RequestCounters()

    def open(self, request: _Asked, agent: str | None) -> AbstractContextManager[float, None]:
        """Enter a request; gives the moment it began. An error inside is its end."""
        return _Entry(self.counters, self._emitter, self._clock, request, agent)

    def served(
        self,
        request: _Asked,
        agent: str | None,
        provider: str,
        answer: _Answered,
        *,
        attempts: int,
        latency: float,
    ) -> None:
        """A vendor answered this request itself."""
        self.counters.served += 1
        if self._emitter.wants(RequestServed):
            self._emitter.emit(
                RequestServed(
                    request.request_id,
                    provider,
                    answer.model,
                    agent,
                    attempts,
                    latency,
                    answer.usage.total_tokens,
                    answer.cost_usd,
                )
            )

    def coalesced(self) -> None:
        """It shared the answer to an identical request."""
        self.counters.coalesced += 1

    def remembered(self, request: _Asked, agent: str | None, provider: str, *, stale: bool) -> None:
        """It was answered from the cache."""
        if stale:
            self.counters.stale += 1
        else:
            self.counters.cache_hits += 1
        if self._emitter.wants(CacheHit):
            self._emitter.emit(CacheHit(request.request_id, provider, agent, stale))

    def snapshot(self) -> dict[str, Any]:
        """The counters as plain values."""
        return self.counters.snapshot()
