"""Tool calls of the Gemini wire, beside what `wires/tool_calls.py` mends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["add_missing_arguments"]


def add_missing_arguments(body: Any) -> bool:
    """Give Gemini's calls without `args` empty ones, which litellm needs. Changes the body.

    Returns:
        Whether one was missing.
    """
    changed = False
    candidates = body.get("candidates") if isinstance(body, Mapping) else None
    for candidate in candidates if isinstance(candidates, list) else ():
        content = candidate.get("content") if isinstance(candidate, Mapping) else None
        parts = content.get("parts") if isinstance(content, Mapping) else None
        for part in parts if isinstance(parts, list) else ():
            call = part.get("functionCall") if isinstance(part, Mapping) else None
            if isinstance(call, dict) and call.get("args") is None:
                call["args"] = {}
                changed = True
    return changed
