"""The tree that `AsyncGateway.get_metrics()` returns: plain values, fit for JSON."""

from __future__ import annotations

from typing import NotRequired, TypedDict

__all__ = [
    "CacheMetrics",
    "FleetMetrics",
    "GatewayMetrics",
    "Percentiles",
    "ProviderCounts",
    "ProviderMetrics",
    "RequestMetrics",
    "SecondLevelMetrics",
    "SessionMetrics",
]


class Percentiles(TypedDict):
    """Seconds."""

    p50: float
    p95: float
    p99: float


class RequestMetrics(TypedDict):
    """How many requests there were, and how they ended."""

    total_requests: int
    cache_hits: int
    cache_hit_rate_percent: float
    """With two decimals."""
    failures: int
    """Requests that ended in an error."""
    rejected: int
    """Those of them that were at fault themselves (`RequestRejectedError`)."""
    stale_answers: int
    coalesced: int
    served: int
    cancelled: int


class SecondLevelMetrics(TypedDict):
    """Values that were written to the second level, and those that were not or are too long."""

    second_writes: int
    second_dropped: int


class CacheMetrics(TypedDict):
    """The cache. Without `second_` it is the memory; the rest is there with a second level."""

    hits: int
    misses: int
    stale_hits: int
    evictions: int
    expirations: int
    entries: int
    max_entries: int
    bytes: int
    """Memory that they take, as estimated."""
    max_bytes: int
    too_large: int
    """Values that were not held, since they take more than an eighth of `max_bytes`."""
    second_hits: NotRequired[int]
    second_misses: NotRequired[int]
    second_damaged: NotRequired[int]
    """Values that could not be read."""
    second_writes: NotRequired[int]
    second_dropped: NotRequired[int]
    """Values that could not be written, or are too long."""


class SessionMetrics(TypedDict):
    """Turns of sessions that are new, stayed at their provider and moved, and sessions known."""

    entries: int
    begun: int
    kept: int
    moved: int


class FleetMetrics(TypedDict):
    """The fleet that `redis_url` connects."""

    available: bool
    """Whether Redis can be asked."""
    members: int
    """Processes that share it."""


class ProviderCounts(TypedDict):
    """Attempts, tokens and dollars of one provider."""

    attempts: int
    """Attempts that have ended."""
    successes: int
    failures: dict[str, int]
    """By `FailureKind` value."""
    latency_seconds: Percentiles | None
    """Of the last 512 answers."""
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float


class ProviderMetrics(ProviderCounts):
    """One provider since it was added."""

    active: bool
    """Whether it could take a request now."""
    circuit_state: str
    consecutive_failures: int
    late_results: int
    """Results that came when their circuit had changed meanwhile, and were not counted."""
    disabled_reason: str | None
    degraded: str | None
    first_content_seconds: Percentiles | None
    """Of streams: to the first content."""
    in_flight: int
    max_in_flight: int


class GatewayMetrics(RequestMetrics):
    """Counters and gauges of a gateway."""

    providers_active: int
    """Providers that could take a request now."""
    in_flight: int
    """Calls to vendors in flight."""
    waiting: int
    """Requests that wait for a free slot."""
    cost_usd: float
    cache: CacheMetrics
    sessions: SessionMetrics
    fleet: NotRequired[FleetMetrics]
    """Only with a `redis_url`."""
    providers: dict[str, ProviderMetrics]
    """By name."""
