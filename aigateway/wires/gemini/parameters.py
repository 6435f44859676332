"""What Gemini takes of thinking."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigateway.wires.parameters import Draft

__all__ = ["fit"]

_BUDGETS: tuple[tuple[str, int, float, bool], ...] = (
    ("gemini-2.5-pro", 128, 32_768, True),
    ("gemini-2.5-flash-lite", 512, 24_576, False),
    ("gemini-2.5-flash", 1, 24_576, False),
    ("", 1, math.inf, False),
)
"""How a model's name begins, the least and the most tokens that it may be given for thinking, and
whether it always thinks. The others take 0, too.

https://ai.google.dev/gemini-api/docs/thinking#set-budget
"""


def fit(draft: Draft, model: str, mapped: Callable[..., Mapping[str, Any] | None]) -> None:
    """Keep a thinking budget in the range of the model, and below the limit of the answer.

    Thoughts count towards that limit: a budget as large as it leaves no room for an answer.

    Args:
        draft: What would be sent; changed.
        model: Its name.
        mapped: Gives parameters in the vendor's words; None if litellm refuses them.
    """
    thinking = draft.asks_to_think(mapped).get("thinkingConfig") or {}
    budget = thinking.get("thinkingBudget")
    if not isinstance(budget, int) or budget < 0:  # the model itself says how much
        return
    least, most, always = next(row[1:] for row in _BUDGETS if row[0] in model)
    limit = draft.limit
    fitting: Any = min(max(budget, least), most) if budget or always else 0
    if fitting >= limit:
        fitting = max(least, limit // 2)
    if fitting >= limit:
        if always:
            draft.do_not_think()
            return
        fitting = 0
    if fitting != budget:
        draft.think({"type": "enabled", "budget_tokens": fitting})
