"""JSON of every shape, as text: also what Python's own writer would not write."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

__all__ = ["VALUES", "mutated", "written"]

_EXTREMES = {
    "@deep 100@": "[" * 100 + "]" * 100,
    "@deep 980@": "[" * 980 + "]" * 980,
    "@deep objects@": '{"a":' * 800 + "1" + "}" * 800,
    "@deep 100000@": "[" * 100_000,
    "@digits@": "9" * 5000,
    "@long@": '"' + "x" * 5_000_000 + '"',
}
"""What stands for values that would not go through `json.dumps`, or be shown."""

_TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)
_WORDS = st.sampled_from(
    ["", "stop", "length", "tool_calls", "STOP", "end_turn", "error", "text", "\ud83d", "<think>"]
)
_NUMBERS = st.sampled_from(
    [
        0,
        -1,
        1,
        255,
        256,
        2**31,
        2**63,
        2**64,
        10**30,
        10**400,
        -(10**400),
        0.0,
        -0.0,
        1.5,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        float("-inf"),
    ]
)
_LEAVES = (
    st.none()
    | st.booleans()
    | _NUMBERS
    | st.integers()
    | _WORDS
    | _TEXTS
    | st.sampled_from(["@deep 100@", "@deep 980@", "@deep objects@", "@deep 100000@", "@digits@"])
)

VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | _TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Anything."""

_LONG = st.just("@long@")


@st.composite
def mutated(draw: st.DrawFn, templates: list[Any]) -> Any:
    """One of the templates with a few of its values replaced, left out or doubled."""
    value = copy.deepcopy(draw(st.sampled_from(templates)))
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, value)
    return value


def _mutate(draw: st.DrawFn, value: Any) -> None:
    places = list(_places(value))
    if not places:
        return
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "double", "long"]))
    if how == "drop":
        del holder[key]
    elif how == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        rarely_long = _LONG if how == "long" and draw(st.integers(0, 19)) == 7 else VALUES
        holder[key] = draw(rarely_long)


def _places(value: Any) -> Any:
    """Every place in a value, as its holder and the key there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def written(value: Any) -> bytes:
    """The value as JSON, half characters and numbers that are none included."""
    text = json.dumps(value)
    for name, instead in _EXTREMES.items():
        text = text.replace(f'"{name}"', instead)
    return text.encode()
