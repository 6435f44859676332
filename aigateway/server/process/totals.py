"""The metrics of several processes as those of one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["summed_metrics"]

_HIGHEST = frozenset({"consecutive_failures", "max_entries", "max_in_flight", "p50", "p95", "p99"})
"""What would mean nothing if it were added. Of percentiles the highest is an upper bound."""

_WORST_FIRST = ("open", "half_open", "closed")


_OF_THE_MOMENT = frozenset(
    {
        *("in_flight", "waiting", "providers_active", "entries", "max_entries", "active"),
        *("circuit_state", "consecutive_failures", "max_in_flight", "disabled_reason"),
        *("latency_seconds", "first_content_seconds", "budget_usd"),
    }
)
"""What says nothing any more once a process is gone."""


def summed_metrics(
    living: Sequence[Mapping[str, Any]], departed: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """`AsyncGateway.get_metrics()` of several gateways with the same providers, as one.

    Counts are added. A provider is in the worst state that one of them sees it in, and active if
    any could ask it.

    Args:
        living: At least one.
        departed: The last of those that are gone, of which only the counts matter.
    """
    now = _summed(living)
    whole = _summed([*living, *map(_counts, departed)])
    total, hits = whole["total_requests"], whole["cache_hits"]
    whole["cache_hit_rate_percent"] = round(100 * hits / total, 2) if total else 0.0
    # A provider that nobody has any more is no matter of theirs.
    whole["providers"] = {name: whole["providers"][name] for name in now["providers"]}
    whole["providers_active"] = sum(each["active"] for each in whole["providers"].values())
    return whole


def _counts(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _counts(value) if isinstance(value, Mapping) else value
        for name, value in part.items()
        if name not in _OF_THE_MOMENT
    }


def _summed(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    return {name: _one(name, values) for name, values in found.items()}


def _one(name: str, values: Sequence[Any]) -> Any:
    """One value of several: of None and something, the something."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, Mapping):
        return _summed(known)
    if isinstance(first, bool):
        return any(known)
    if isinstance(first, str):
        return min(known, key=_badness)
    return max(known) if name in _HIGHEST else _rounded(sum(known))


def _badness(word: str) -> int:
    return _WORST_FIRST.index(word) if word in _WORST_FIRST else 0


def _rounded(number: Any) -> Any:
    """Dollars to the tenth digit; counts stay whole."""
    return round(number, 10) if isinstance(number, float) else number
