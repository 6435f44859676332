"""The state of the service at one moment, as plain values.

Each process makes a `Report` of itself; `snapshot` turns the reports of all into what the status
page shows. Pure; everything here survives JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from aigateway.figures import Percentiles
from aigateway.routing.provider import ProviderStatus, Word, condition
from aigateway.server.status.history import NOT_THE_PROVIDERS
from aigateway.server.status.recent_events import KEPT, RecentEvent
from aigateway.telemetry.merge import merge, merge_metrics
from aigateway.version import __version__

__all__ = [
    "KeyFigures", "ProviderFigures", "Report", "ServiceFigures", "Snapshot", "report",
    "restricted_metrics", "restricted_snapshot", "snapshot",
]  # fmt: skip


class Report(TypedDict):
    """What one process says of itself."""

    version: str
    at: float
    metrics: dict[str, Any]
    """`AsyncGateway.get_metrics()`, and the service's own figures."""
    providers: dict[str, dict[str, Any]]
    latency_seconds: Percentiles | None
    events: list[RecentEvent]
    """Newest first."""
    scraped: list[dict[str, Any]]
    """`Prometheus.snapshot()`."""


class ServiceFigures(TypedDict):
    """Totals. Counts are since the service was started."""

    requests: int
    failures: int
    """Requests whose caller got an error that was not the request's own fault."""
    rejected: int
    """Requests that were at fault themselves."""
    cache_hits: int
    cache_hit_rate_percent: float
    in_flight: int
    waiting: int
    tokens: int
    cost_usd: float
    refused: dict[str, int]
    """Requests that the service itself refused, by code."""
    latency_seconds: Percentiles | None
    """Of the answers of the last minute, with failover; the highest of all processes."""


class ProviderFigures(TypedDict):
    """One provider. Counts are since it was added."""

    name: str
    vendor: str
    model: str
    priority: int
    active: bool
    state: Word
    wait_seconds: float | None
    """Until it is asked again, if that is known."""
    reason: str | None
    """Why it is disabled or degraded."""
    forced: bool
    in_flight: int
    max_in_flight: int
    answered: int
    failed: int
    """Failed attempts, without those that are the caller's doing."""
    failures: dict[str, int]
    """The same by kind."""
    latency_seconds: Percentiles | None
    """Of its last 512 answers; the highest of all processes."""
    tokens: int
    cost_usd: float
    processes: int
    """How many have it."""
    in_this_state: int
    """How many of those see it in this state: each has its own circuit."""


class KeyFigures(TypedDict):
    """What one key has used."""

    name: str
    spent_usd: float
    """US dollars of today (UTC)."""
    budget_usd: float | None
    requests_last_minute: int
    rpm: int | None
    in_flight: int


class Snapshot(TypedDict):
    """What the status page shows."""

    version: str
    at: float
    """Seconds since the Unix epoch."""
    processes: int
    totals: ServiceFigures
    providers: list[ProviderFigures]
    """In the order in which they are asked."""
    keys: list[KeyFigures]
    """In the order of the settings."""
    events: list[RecentEvent]
    """Newest first."""


def report(
    providers: Iterable[ProviderStatus],
    metrics: dict[str, Any],
    events: list[RecentEvent],
    *,
    latency: Percentiles | None,
    at: float,
    scraped: list[dict[str, Any]],
) -> Report:
    """Return the report of one process.

    Args:
        providers: `gateway.providers`.
        metrics: `gateway.get_metrics()` of the same moment.
        events: The last ones, newest first.
        latency: Of the last minute's answers, if there were any.
        at: Seconds since the Unix epoch.
        scraped: `Prometheus.snapshot()`.
    """
    return {
        "version": __version__,
        "at": at,
        "metrics": metrics,
        # Another thread may have removed one between the two.
        "providers": {
            each.name: _seen(each) for each in providers if each.name in metrics["providers"]
        },
        "latency_seconds": latency,
        "events": events,
        "scraped": scraped,
    }


def _seen(status: ProviderStatus) -> dict[str, Any]:
    state = condition(status)
    return {
        "vendor": status.vendor,
        "model": status.model,
        "priority": status.priority,
        "forced": status.forced,
        "state": state.word,
        "states": {
            state.word: {"processes": 1, "wait_seconds": state.wait, "reason": state.reason}
        },
    }


def snapshot(running: Sequence[Report], exited: Sequence[Report] = ()) -> Snapshot:
    """Merge what the processes say of themselves.

    Args:
        running: Of each process that runs; at least one.
        exited: The last ones of those that have exited: their counts stay.
    """
    metrics = merge_metrics(*([each["metrics"] for each in part] for part in (running, exited)))
    seen = merge([each["providers"] for each in running])
    providers = [
        _provider(name, seen[name], figures)
        for name, figures in metrics["providers"].items()
        if name in seen
    ]
    events = [event for each in running for event in each["events"]]
    latencies = [{"latency": each["latency_seconds"]} for each in running]
    return {
        "version": running[0]["version"],
        "at": max(each["at"] for each in running),
        "processes": len(running),
        "totals": {
            "requests": metrics["total_requests"],
            "failures": metrics["failures"] - metrics["rejected"],
            "rejected": metrics["rejected"],
            "cache_hits": metrics["cache_hits"],
            "cache_hit_rate_percent": metrics["cache_hit_rate_percent"],
            "in_flight": metrics["in_flight"],
            "waiting": metrics["waiting"],
            "tokens": sum(each["tokens"] for each in providers),
            "cost_usd": metrics["cost_usd"],
            "refused": metrics.get("refused", {}),
            "latency_seconds": merge(latencies)["latency"],
        },
        "providers": sorted(providers, key=lambda each: -each["priority"]),
        "keys": [_key(name, account) for name, account in metrics.get("keys", {}).items()],
        "events": sorted(events, key=lambda each: -each["at"])[:KEPT],
    }


def _key(name: str, account: Mapping[str, Any]) -> KeyFigures:
    return {
        "name": name,
        "spent_usd": account["spent_usd"],
        "budget_usd": account["budget_usd"],
        "requests_last_minute": account["requests_last_minute"],
        "rpm": account["rpm"],
        "in_flight": account["in_flight"],
    }


def _provider(name: str, seen: Mapping[str, Any], metrics: Mapping[str, Any]) -> ProviderFigures:
    here = seen["states"][seen["state"]]
    failures = {
        kind: count
        for kind, count in sorted(metrics["failures"].items())
        if kind not in NOT_THE_PROVIDERS
    }
    return {
        "name": name,
        "vendor": seen["vendor"],
        "model": seen["model"],
        "priority": seen["priority"],
        "active": metrics["active"],
        "state": seen["state"],
        "wait_seconds": here["wait_seconds"],
        "reason": here["reason"],
        "forced": seen["forced"],
        "in_flight": metrics["in_flight"],
        "max_in_flight": metrics["max_in_flight"],
        "answered": metrics["successes"],
        "failed": sum(failures.values()),
        "failures": failures,
        "latency_seconds": metrics["latency_seconds"],
        "tokens": metrics["total_tokens"],
        "cost_usd": metrics["cost_usd"],
        "processes": sum(each["processes"] for each in seen["states"].values()),
        "in_this_state": here["processes"],
    }


# ── what a restricted key sees ───────────────────────────────────────────────────────────────────

_COUNTS = ("in_flight", "max_in_flight", "answered", "failed", "failures", "tokens", "cost_usd")
_STATE = ("active", "circuit_state", "degraded", "disabled_reason", "latency_seconds")


def restricted_snapshot(whole: Mapping[str, Any], providers: Collection[str]) -> dict[str, Any]:
    """Return the state of these providers: no counts, totals or events, which are of all keys.

    Args:
        whole: As of `snapshot`.
        providers: Names of those that the key may ask.
    """
    return {
        **whole,
        "totals": None,
        "providers": [
            {figure: value for figure, value in each.items() if figure not in _COUNTS}
            for each in whole["providers"]
            if each["name"] in providers
        ],
        "events": [],
    }


def restricted_metrics(whole: Mapping[str, Any], providers: Collection[str]) -> dict[str, Any]:
    """Return the same of `/metrics`."""
    seen = {
        name: {figure: figures[figure] for figure in _STATE}
        for name, figures in whole["providers"].items()
        if name in providers
    }
    active = sum(figures["active"] for figures in seen.values())
    return {"providers_active": active, "providers": seen, "keys": whole["keys"]}
