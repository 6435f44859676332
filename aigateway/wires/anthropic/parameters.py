"""What Anthropic takes of sampling and thinking."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigateway.wires.parameters import Draft

__all__ = ["fit"]

_LEAST_TOP_P = 0.95
"""Lowest `top_p` that Anthropic takes from a model that thinks."""
_ONE_SAMPLER = re.compile(
    r"claude-(?:(?:opus|sonnet|haiku)-)?(?:4-[1-9](?!\d)|[5-9])", re.IGNORECASE
)
"""Claude models that take `temperature` or `top_p`, and not both."""
_LEAST_BUDGET = 1024
"""Tokens that Anthropic wants a thinking budget to have at least."""
_COOL = {"temperature": 0.5}
"""What a model takes that takes sampling at all."""


def fit(draft: Draft, model: str, mapped: Callable[..., Mapping[str, Any] | None]) -> None:
    """Keep what Anthropic documents about sampling and thinking.

    https://platform.claude.com/docs/en/build-with-claude/extended-thinking

    Args:
        draft: What would be sent; changed.
        model: Its name.
        mapped: Gives parameters in the vendor's words; None if litellm refuses them.
    """
    left = draft.left
    warmth = left.get("temperature")
    if isinstance(warmth, int | float) and warmth > 1:
        draft.put("temperature", 1.0, was="temperature")
    if "temperature" in left and "top_p" in left and _ONE_SAMPLER.search(model):
        draft.drop("top_p")
    if "top_k" in left and mapped(_COOL) is None:  # litellm finds that out only when it is late
        draft.drop("top_k")
    _let_it_think(draft, mapped)


def _let_it_think(draft: Draft, mapped: Callable[..., Mapping[str, Any] | None]) -> None:
    left, limit = draft.left, draft.limit
    thinking = draft.asks_to_think(mapped).get("thinking")
    if not isinstance(thinking, Mapping) or thinking.get("type") not in {"enabled", "adaptive"}:
        return
    budget = thinking.get("budget_tokens") or 0
    if _is_forced(left.get("tool_choice")) or limit <= min(budget, _LEAST_BUDGET):
        draft.do_not_think()
        return
    if budget >= limit:
        fitting = max(_LEAST_BUDGET, limit // 2)
        draft.think({**thinking, "budget_tokens": fitting})
    if left.get("temperature", 1) != 1:
        draft.drop("temperature")
    if left.get("top_p", 1) < _LEAST_TOP_P:
        draft.drop("top_p")
    draft.drop("top_k")


def _is_forced(tool_choice: object) -> bool:
    return tool_choice == "required" or isinstance(tool_choice, Mapping)
