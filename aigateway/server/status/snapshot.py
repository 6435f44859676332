"""How it all stands at one moment, as plain values; and the sum of several processes' ones.

Pure. Whatever is here goes through JSON and back as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from aigateway.errors import FailureKind
from aigateway.routing.provider import ProviderStatus, Word, condition
from aigateway.server.status.recent_events import KEPT, Happening, Percentiles
from aigateway.version import __version__

__all__ = ["ProviderFigures", "Snapshot", "Totals", "merged", "snapshot"]

_CALLERS_SIDE = {
    str(kind)
    for kind in (
        FailureKind.REJECTED,
        FailureKind.CONTEXT_WINDOW,
        FailureKind.CONTENT_POLICY,
        FailureKind.CANCELLED,
        FailureKind.DEADLINE,
        FailureKind.OUTRUN,
    )
}
"""Attempts that ended so say nothing about the provider."""

_WORST_FIRST: tuple[Word, ...] = (
    "disabled",
    "open",
    "half-open",
    "probe is due",
    "cooling",
    "degraded",
    "closed",
)


class Totals(TypedDict):
    """Of everything together. Counts are since the gateway was made."""

    requests: int
    failures: int
    """Requests whose caller got an error."""
    cache_hits: int
    cache_hit_rate_percent: float
    in_flight: int
    waiting: int
    tokens: int
    cost_usd: float
    latency_seconds: Percentiles | None
    """Of the answers of the last minute, as callers saw them; of several processes the highest."""


class ProviderFigures(TypedDict):
    """One provider. Counts are since it was added."""

    name: str
    vendor: str
    model: str
    priority: int
    active: bool
    state: Word
    wait_seconds: float | None
    """Until it is asked again, where that is known."""
    reason: str | None
    """Why it is disabled."""
    forced: bool
    in_flight: int
    max_in_flight: int
    answered: int
    failed: int
    """Attempts that failed, those left out that are the caller's doing."""
    failures: dict[str, int]
    """The same by kind."""
    latency_seconds: Percentiles | None
    """Of its last 512 answers; of several processes the highest."""
    tokens: int
    cost_usd: float
    processes: int
    """Those that have it."""
    in_this_state: int
    """Those of them that see it in this state: each has a circuit of its own."""


class Snapshot(TypedDict):
    """How it all stands."""

    version: str
    at: float
    """Seconds since the Unix epoch."""
    processes: int
    totals: Totals
    providers: list[ProviderFigures]
    """In the order in which they are asked."""
    happenings: list[Happening]
    """Newest first."""


def snapshot(
    providers: Iterable[ProviderStatus],
    metrics: Mapping[str, Any],
    happenings: Sequence[Happening],
    latency: Percentiles | None,
    at: float,
) -> Snapshot:
    """Put it together for one process.

    Args:
        providers: `gateway.providers`.
        metrics: `gateway.get_metrics()` of the same moment.
        happenings: The last ones, newest first.
        latency: Of the last minute's answers, if there were any.
        at: Seconds since the Unix epoch.
    """
    known = metrics["providers"]  # another thread may have taken one out in between
    figures = [_provider(each, known[each.name]) for each in providers if each.name in known]
    return {
        "version": __version__,
        "at": at,
        "processes": 1,
        "totals": {
            "requests": metrics["total_requests"],
            "failures": metrics["failures"],
            "cache_hits": metrics["cache_hits"],
            "cache_hit_rate_percent": metrics["cache_hit_rate_percent"],
            "in_flight": metrics["in_flight"],
            "waiting": metrics["waiting"],
            "tokens": sum(each["tokens"] for each in figures),
            "cost_usd": metrics["cost_usd"],
            "latency_seconds": latency,
        },
        "providers": figures,
        "happenings": list(happenings),
    }


def _provider(status: ProviderStatus, metrics: Mapping[str, Any]) -> ProviderFigures:
    state = condition(status)
    failures = {
        kind: count for kind, count in metrics["failures"].items() if kind not in _CALLERS_SIDE
    }
    return {
        "name": status.name,
        "vendor": status.vendor,
        "model": status.model,
        "priority": status.priority,
        "active": status.active,
        "state": state.word,
        "wait_seconds": state.wait,
        "reason": state.reason,
        "forced": status.forced,
        "in_flight": status.in_flight,
        "max_in_flight": status.max_in_flight,
        "answered": metrics["successes"],
        "failed": sum(failures.values()),
        "failures": failures,
        "latency_seconds": metrics["latency_seconds"],
        "tokens": metrics["total_tokens"],
        "cost_usd": metrics["cost_usd"],
        "processes": 1,
        "in_this_state": 1,
    }


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The sum of what several processes say, of which there is at least one.

    Counts are added. Of latencies the highest is taken: a percentile of all answers together is
    never above it. A provider is shown in the worst state that a process sees it in.
    """
    totals = [each["totals"] for each in snapshots]
    requests = sum(each["requests"] for each in totals)
    hits = sum(each["cache_hits"] for each in totals)
    by_name: dict[str, list[ProviderFigures]] = {}
    for each in snapshots:
        for provider in each["providers"]:
            by_name.setdefault(provider["name"], []).append(provider)
    happenings = [happening for each in snapshots for happening in each["happenings"]]
    return {
        "version": snapshots[0]["version"],
        "at": max(each["at"] for each in snapshots),
        "processes": sum(each["processes"] for each in snapshots),
        "totals": {
            "requests": requests,
            "failures": sum(each["failures"] for each in totals),
            "cache_hits": hits,
            "cache_hit_rate_percent": round(100 * hits / requests, 2) if requests else 0.0,
            "in_flight": sum(each["in_flight"] for each in totals),
            "waiting": sum(each["waiting"] for each in totals),
            "tokens": sum(each["tokens"] for each in totals),
            "cost_usd": round(sum(each["cost_usd"] for each in totals), 10),
            "latency_seconds": _highest(each["latency_seconds"] for each in totals),
        },
        "providers": sorted(map(_merged_provider, by_name.values()), key=lambda p: -p["priority"]),
        "happenings": sorted(happenings, key=lambda each: -each["at"])[:KEPT],
    }


def _merged_provider(parts: Sequence[ProviderFigures]) -> ProviderFigures:
    state = min((each["state"] for each in parts), key=_WORST_FIRST.index)
    there = [each for each in parts if each["state"] == state]
    waits = [each["wait_seconds"] for each in there if each["wait_seconds"] is not None]
    kinds = sorted({kind for each in parts for kind in each["failures"]})
    first = there[0]
    return {
        "name": first["name"],
        "vendor": first["vendor"],
        "model": first["model"],
        "priority": first["priority"],
        "active": any(each["active"] for each in parts),
        "state": state,
        "wait_seconds": min(waits, default=None),
        "reason": first["reason"],
        "forced": any(each["forced"] for each in parts),
        "in_flight": sum(each["in_flight"] for each in parts),
        "max_in_flight": sum(each["max_in_flight"] for each in parts),
        "answered": sum(each["answered"] for each in parts),
        "failed": sum(each["failed"] for each in parts),
        "failures": {kind: sum(each["failures"].get(kind, 0) for each in parts) for kind in kinds},
        "latency_seconds": _highest(each["latency_seconds"] for each in parts),
        "tokens": sum(each["tokens"] for each in parts),
        "cost_usd": round(sum(each["cost_usd"] for each in parts), 10),
        "processes": sum(each["processes"] for each in parts),
        "in_this_state": sum(each["in_this_state"] for each in there),
    }


def _highest(all_percentiles: Iterable[Percentiles | None]) -> Percentiles | None:
    known = [each for each in all_percentiles if each is not None]
    if not known:
        return None
    return {name: max(each[name] for each in known) for name in known[0]}
