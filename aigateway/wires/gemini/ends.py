"""How answers end on the Gemini wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.wires.ends import Given, listed

__all__ = ["GEMINI_ENDS", "blocks_prompt", "given"]

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
    """Whether this body of Gemini's says that the prompt may not be answered."""
    feedback = body.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def given(body: Mapping[str, Any]) -> Given | None:
    """What a body or an event says of the ends of its answers; None if it is of another wire."""
    candidates = body.get("candidates")
    if blocks_prompt(body):
        return iter([(0, GEMINI_ENDS, "PROHIBITED_CONTENT", None)])
    if isinstance(candidates, list):
        return listed(candidates, GEMINI_ENDS, "finishReason")
    return iter(()) if isinstance(body.get("usageMetadata"), Mapping) else None  # only a count
