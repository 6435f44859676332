"""Gemini's bodies, in a form in which litellm reads all of what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["unify_candidates"]

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
    """Bring what Gemini says into a form that litellm reads. Changes the body.

    Calls get arguments. Code that the model has run, and what came of it, becomes text. What was
    said before the answer was stopped is kept.

    Returns:
        Whether anything was changed.
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
        if candidate.get("finishReason") in _WITHHOLDING and any(map(_says_something, parts)):
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
    """A block of code in Markdown; "" if there is none."""
    if not isinstance(code, str) or not code.strip():
        return ""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"\n{fence}{language}\n{code.rstrip()}\n{fence}\n"


def _says_something(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("text") != "" and not part.get("thought")
