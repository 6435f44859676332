"""The Gemini wire: what is its own, beside its translation.

How its answers end, which thinking budgets it takes, and what its bodies need before litellm reads
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aigateway.wires.wire import Ends, Wire, ends_of_list, lazily

if TYPE_CHECKING:
    from aigateway.wires.parameters import ParameterDraft

__all__ = ["GEMINI", "GEMINI_ENDS", "blocks_prompt", "unify_candidates"]

GEMINI_ENDS: Mapping[str, str] = {
    "stop": "stop",
    "max_tokens": "length",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "model_armor": "content_filter",
    "image_safety": "content_filter",
    "image_prohibited_content": "content_filter",
    "image_recitation": "content_filter",
}


def blocks_prompt(body: Mapping[str, Any]) -> bool:
    """Return whether this body of Gemini's refuses the prompt."""
    feedback = body.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def _ends(body: Mapping[str, Any]) -> Ends | None:
    """Return what a body or an event says about the ends of answers; None for another wire."""
    candidates = body.get("candidates")
    if blocks_prompt(body):
        return iter([(0, GEMINI_ENDS, "PROHIBITED_CONTENT", None)])
    if isinstance(candidates, list):
        return ends_of_list(candidates, GEMINI_ENDS, "finishReason")
    return iter(()) if isinstance(body.get("usageMetadata"), Mapping) else None  # only a count


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


def _fit(
    draft: ParameterDraft, model: str, mapped: Callable[..., Mapping[str, Any] | None]
) -> None:
    """Keep a thinking budget in the range of the model, and below the limit of the answer.

    Thoughts count towards that limit: a budget as large as it leaves no room for an answer.
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


_WITHHOLDING = (
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
)
"""For these ends litellm leaves out what has been said."""
_LIKE_WITHHOLDING = "MODEL_ARMOR"
"""An end that means the same, for which it does not."""


def unify_candidates(body: Any) -> bool:
    """Change a body of Gemini's into a form that litellm reads; return whether anything changed.

    Calls get arguments. Code that the model has run, and its output, become text. What was said
    before the answer was stopped is kept.
    """
    changed = False
    candidates = body.get("candidates") if isinstance(body, Mapping) else None
    for candidate in candidates if isinstance(candidates, list) else ():
        content = candidate.get("content") if isinstance(candidate, dict) else None
        parts = content.get("parts") if isinstance(content, Mapping) else None
        if not isinstance(parts, list) or not parts:
            continue
        if any(list(_unify(parts))):
            changed = True
        reason = candidate.get("finishReason")
        withheld = isinstance(reason, str) and reason in _WITHHOLDING
        if withheld and any(map(_has_content, parts)):
            candidate["finishReason"] = _LIKE_WITHHOLDING
            changed = True
    return changed


def _unify(parts: list[Any]) -> Iterator[bool]:
    for place, part in enumerate(parts):
        if not isinstance(part, Mapping):
            continue
        call, code = part.get("functionCall"), part.get("executableCode")
        result = part.get("codeExecutionResult")
        if isinstance(call, dict) and call.get("args") is None:
            call["args"] = {}
            yield True
        elif isinstance(code, Mapping):
            language = str(code.get("language") or "").lower()
            known = "" if "unspecified" in language else language
            parts[place] = {"text": _block(code.get("code"), known)}
            yield True
        elif isinstance(result, Mapping):
            parts[place] = {"text": _block(result.get("output"), "")}
            yield True


def _block(code: Any, language: str) -> str:
    """Return a block of code in Markdown; "" if there is none."""
    if not isinstance(code, str) or not code.strip():
        return ""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"\n{fence}{language}\n{code.rstrip()}\n{fence}\n"


def _has_content(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("text") != "" and not part.get("thought")


_CARRIED: Mapping[str, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"file", "image_url", "input_audio", "text"}),
    "assistant": frozenset({"text"}),
    "tool": frozenset({"file", "image_url", "text"}),
}
"""The parts of messages that every version of litellm translates, by role."""


def _not_taken(params: Mapping[str, Any]) -> str | None:
    """Refuse a limit to one call: Gemini may always make several."""
    has_tools = params.get("tools") or params.get("functions")
    only_one = params.get("parallel_tool_calls") is False
    return "parallel_tool_calls" if only_one and has_tools else None


GEMINI = Wire(
    litellm_name="gemini",
    base="https://generativelanguage.googleapis.com/v1beta",
    translation=lazily("aigateway.wires.gemini.translation", "GeminiTranslation"),
    ends=_ends,
    sdk="http",
    think_tags=False,
    takes_extra_body=False,
    takes_cache_marks=False,
    like_openai=False,
    foreign_params=frozenset({"cache_control"}),
    fit=_fit,
    has_part=lambda role, kind: kind in _CARRIED.get(role, ()),
    not_taken=_not_taken,
    embed=lazily("aigateway.wires.gemini.translation", "gemini_embedding"),
)
