"""Groups, aliases and fallbacks of litellm, as aliases and priorities of providers."""

from __future__ import annotations

import graphlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aigateway.cli.from_litellm.deployments import Deployment
from aigateway.cli.from_litellm.secrets import is_secret_text
from aigateway.cli.from_litellm.settings import LitellmSettings
from aigateway.cli.from_litellm.values import (
    MOST_NAMES,
    as_mapping,
    as_text,
    as_texts,
    as_whole,
    shown,
)

__all__ = ["Routing", "add_aliases", "add_fallbacks", "named_providers"]

_MOST_FALLBACKS = 5
"""As in litellm, where `max_fallbacks` is not set; twice as many are followed where it is."""
_PRIORITY_STEP = 10
_NO_GROUP = "it is no group that was taken over"
_ANY_FAILURE = "the fallback answers after any failure, not only after this kind"
_Node = tuple[str, str]
"""A group, and the group that it stands in for as a copy ("" for the group itself)."""


_COPY = (
    "a copy that stands in for a group of higher priority (both name each other as fallbacks);"
    " its limits and its circuit are its own"
)


class Routing:
    """Turns groups and fallbacks into aliases and priorities.

    A provider has one priority, whatever is asked for. Where two groups fall back to each other,
    the second direction needs copies of the providers with a lower one.
    """

    def __init__(self, deployments: Sequence[Deployment]) -> None:
        self.groups: dict[str, list[Deployment]] = {}
        for each in deployments:
            self.groups.setdefault(each.group, []).append(each)
        self._own: dict[str, list[str]] = {group: [group] for group in self.groups}
        self._names: dict[_Node, list[str]] = {}
        self._after: dict[_Node, set[_Node]] = {(group, ""): set() for group in self.groups}

    def add_alias(self, alias: str, group: str) -> None:
        """Let a group answer to another name; before its fallbacks are added."""
        self._own[group].append(alias)

    def add_chain(self, group: str, fallbacks: Iterable[str]) -> None:
        """Let other groups answer for a group when it fails, in order."""
        last: _Node = (group, "")
        self._names.setdefault(last, []).extend(self._own[group])
        for name in dict.fromkeys(fallbacks):
            node: _Node = (name, "")
            if self._reaches(node, last):
                node = (name, group)
            self._after.setdefault(last, set()).add(node)
            self._after.setdefault(node, set())
            self._names.setdefault(node, []).extend(self._own[group])
            last = node

    def _reaches(self, start: _Node, goal: _Node) -> bool:
        seen, left = set[_Node](), [start]
        while left:
            node = left.pop()
            if node == goal:
                return True
            if node not in seen:
                seen.add(node)
                left += self._after.get(node, ())
        return False

    def tables(self) -> list[tuple[dict[str, Any], Deployment]]:
        """Return the providers of the file, the first asked first, each with its deployment."""
        levels: dict[_Node, int] = {}
        for node in graphlib.TopologicalSorter(self._after).static_order():
            levels[node] = 1 + max((levels[later] for later in self._after[node]), default=0)
        found = [
            (levels[node], each, names, bool(node[1]))
            for node, names in self._names.items()
            for each in self.groups[node[0]]
        ]
        ranks = sorted({(rank, -each.order) for rank, each, _, _ in found})
        merged: dict[str, tuple[dict[str, Any], Deployment]] = {}
        for rank, each, names, is_copy in found:
            place = ranks.index((rank, -each.order)) * _PRIORITY_STEP
            table = {**each.table, "priority": place}
            same = json.dumps([table, is_copy], sort_keys=True, default=str)
            kept = merged.setdefault(same, (table, replace(each, remarks=[])))
            kept[0]["aliases"] = list(dict.fromkeys([*kept[0].get("aliases", ()), *names]))
            kept[1].remarks.extend([] if is_copy else each.remarks)
            if is_copy:
                kept[1].remarks.append((shown(each.group), _COPY))
        return sorted(merged.values(), key=lambda pair: -pair[0]["priority"])


def named_providers(pairs: Sequence[tuple[dict[str, Any], Deployment]]) -> list[dict[str, Any]]:
    """Give each provider its name, and drop the aliases that say nothing new."""
    taken: set[str] = set()
    made = []
    for table, deployment in pairs:
        model = table["model"]
        default = model if table["provider"] == "litellm" else f"{table['provider']}/{model}"
        stem = deployment.name or default
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}#{count}"
        taken.add(name)
        aliases = [alias for alias in table["aliases"] if alias not in {model, name}]
        first = {"provider": table["provider"], "model": model}
        named = {} if name == default else {"name": name}
        made.append(first | named | table | {"aliases": aliases or None})
    return made


def _chains(value: object) -> Iterator[tuple[str, list[str]]]:
    """Yield what `fallbacks` says: `[{"group": ["other", ...]}, ...]`."""
    for entry in value if isinstance(value, list) else [value]:
        for group, others in as_mapping(entry).items():
            yield group, as_texts(others)


def add_aliases(routing: Routing, settings: LitellmSettings) -> None:
    """Let groups answer to the names in `model_group_alias`."""
    given = as_mapping(settings.get("model_group_alias"))
    if len(given) > MOST_NAMES:
        settings.remarks.append(("model_group_alias", f"the first {MOST_NAMES} are taken over"))
    for alias, target in itertools.islice(given.items(), MOST_NAMES):
        group = as_text(target.get("model") if isinstance(target, dict) else target)
        if group in routing.groups and as_text(alias) == alias and not is_secret_text(alias):
            routing.add_alias(alias, group)
        else:
            settings.remarks.append((f"model_group_alias.{shown(alias)}", _NO_GROUP))


def add_fallbacks(routing: Routing, settings: LitellmSettings) -> None:
    """Add the fallbacks of each group, each followed by its own, as litellm asks them."""
    listed: dict[str, dict[str, None]] = {}
    for option in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks"):
        for group, others in _chains(settings.get(option)):
            if group not in routing.groups:
                settings.remarks.append((f"{option}: {shown(group)}", _NO_GROUP))
            elif not routing.groups.keys() >= set(others):
                settings.remarks.append((f"{option}: {shown(group)}: a fallback of it", _NO_GROUP))
            known = {name: None for name in others if name in routing.groups}
            if option != "fallbacks" and known and group in routing.groups:
                settings.remarks.append((f"{option}: {shown(group)}", _ANY_FAILURE))
            listed[group] = listed.get(group, {}) | known
    if settings.get("content_policy_fallbacks"):
        settings.gateway["failover_on_content_policy"] = True
    given = dict.fromkeys(as_texts(settings.get("default_fallbacks")))
    default = [name for name in given if name in routing.groups]
    most = as_whole(settings.get("max_fallbacks"))
    if most is None or most < 0:
        most = _MOST_FALLBACKS
    elif most > 2 * _MOST_FALLBACKS:
        most = 2 * _MOST_FALLBACKS
        settings.remarks.append(
            ("max_fallbacks", f"the first {most} of each group are in the file")
        )
    for group in routing.groups:
        chain = itertools.chain(_followed(group, listed), default)
        # Each name stands at most twice in the chain.
        names = itertools.islice((name for name in chain if name != group), 2 * most)
        routing.add_chain(group, list(dict.fromkeys(names))[:most])


def _followed(group: str, listed: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield the fallbacks of a group, each followed by its own."""
    seen, left = {group}, [iter(listed.get(group, ()))]
    while left:
        name = next((name for name in left[-1] if name not in seen), None)
        if name is None:
            left.pop()
        else:
            seen.add(name)
            yield name
            left.append(iter(listed.get(name, ())))
