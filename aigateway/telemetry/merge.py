"""Merge the figures of several processes into those of one.

`/metrics` as JSON, the status page and Prometheus all use `merge_metrics`, so they agree.
`_RULES` is the one table of how a figure merges. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["CIRCUIT_STATES", "CONDITIONS", "merge", "merge_metrics"]

CIRCUIT_STATES = ("open", "half_open", "closed")
"""Worst first."""

CONDITIONS = (
    *("disabled", "open", "half_open", "half-open", "probe is due", "cooling", "degraded"),
    "closed",
)
"""Conditions of a provider and states of a circuit, worst first."""


class _Rule(NamedTuple):
    """How a figure merges, and whether it still counts when its process has exited."""

    merge: Callable[[Sequence[Any]], Any]
    lasting: bool = False


def _total(values: Sequence[Any]) -> Any:
    total = sum(values)
    return round(total, 10) if isinstance(total, float) else total


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _worst(values: Sequence[Any]) -> Any:
    return min(values, key=CONDITIONS.index)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("in_flight", "waiting", "entries", "bytes"), _Rule(_total)),
    # Each process has limits of its own: all together may do so much.
    **dict.fromkeys(("max_in_flight", "max_entries", "max_bytes"), _Rule(_total)),
    **dict.fromkeys(("budget_usd", "rpm"), _Rule(_total)),
    "requests_last_minute": _Rule(_total),
    # The highest percentile is an upper bound of the percentile of all.
    **dict.fromkeys(("p50", "p95", "p99", "consecutive_failures"), _Rule(max)),
    "wait_seconds": _Rule(min),
    # Of the fleet: each process has a connection of its own, and counts all of them.
    "available": _Rule(all),
    "members": _Rule(max),
    **dict.fromkeys(("active", "forced", "shared"), _Rule(any)),
    **dict.fromkeys(("circuit_state", "state"), _Rule(_worst)),
    **dict.fromkeys(("degraded", "disabled_reason", "priority", "reason"), _Rule(_first)),
    # Worked out again from the sums.
    **dict.fromkeys(("cache_hit_rate_percent", "providers_active"), _Rule(_first)),
}
"""Everything else: numbers add up and outlast their process, of words the first one counts."""

_COUNT, _WORD = _Rule(_total, lasting=True), _Rule(_first, lasting=True)
_CREATED = _Rule(min, lasting=True)
"""Prometheus' time at which a metric began."""


def merge_metrics(
    running: Sequence[Mapping[str, Any]], exited: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Merge `AsyncGateway.get_metrics()` of several processes with the same providers.

    Args:
        running: Of each process that runs; at least one.
        exited: The last ones of processes that have exited: their counts stay, their state does
            not. Providers that no running process has are left out.
    """
    whole = merge(running, exited)
    total, hits = whole.get("total_requests", 0), whole.get("cache_hits", 0)
    whole["cache_hit_rate_percent"] = round(100 * hits / total, 2) if total else 0.0
    present = dict.fromkeys(name for part in running for name in part["providers"])
    whole["providers"] = {name: whole["providers"][name] for name in present}
    whole["providers_active"] = sum(each["active"] for each in whole["providers"].values())
    if "keys" in whole:
        accounts = [[part["keys"] for part in each if "keys" in part] for each in (running, exited)]
        whole["keys"] = {n: _account(n, key, *accounts) for n, key in whole["keys"].items()}
    return whole


def _account(
    name: str,
    summed: Mapping[str, Any],
    running: Sequence[Mapping[str, Any]],
    exited: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the account of one key. One that processes share is the same in each: no sum."""
    whole = {figure: value for figure, value in summed.items() if figure not in {"shared", "day"}}
    shared = [keys[name] for keys in running if keys.get(name, {}).get("shared")]
    if shared:
        bounded = ("rpm", "requests_last_minute") if _known("rpm", shared) else ()
        for figure in ("budget_usd", *bounded):
            whole[figure] = max(_known(figure, shared), default=None)
        # Others hear within seconds of what one has spent: also of today, if it has just exited.
        today = max(_known("day", shared), default=None)
        of_exited = [keys[name] for keys in exited if name in keys]
        late = [each for each in of_exited if today is not None and each.get("day") == today]
        whole["spent_usd"] = max(_known("spent_usd", shared + late), default=None)
    return whole


def merge(
    running: Sequence[Mapping[Any, Any]], exited: Sequence[Mapping[Any, Any]] = ()
) -> dict[Any, Any]:
    """Merge mappings of any depth, each figure by the rule for its name."""
    # In this order, so that a first value is one of a running process.
    names = dict.fromkeys(name for part in (*running, *exited) for name in part)
    whole = {name: _merged(name, _known(name, running), _known(name, exited)) for name in names}
    present = {name for part in running for name in part}
    return {name: value for name, value in whole.items() if value is not None or name in present}


def _known(name: Any, parts: Sequence[Mapping[Any, Any]]) -> list[Any]:
    return [part[name] for part in parts if part.get(name) is not None]


def _merged(name: Any, running: list[Any], exited: list[Any]) -> Any:
    """One figure; None where no process has one that still counts."""
    first = next(iter((*running, *exited)), None)
    if first is None:
        return None
    if isinstance(first, Mapping):
        return merge(running, exited) or ({} if running else None)
    rule = _rule(name, first)
    values = running + exited if rule.lasting else running
    return rule.merge(values) if values else None


def _rule(name: Any, value: Any) -> _Rule:
    rule = _RULES.get(name)
    if rule is not None:
        return rule
    if isinstance(value, str):
        return _WORD
    return _CREATED if isinstance(name, str) and name.endswith("_created") else _COUNT
