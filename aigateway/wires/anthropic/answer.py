"""Plain answers of the Anthropic wire: see `wires/plain.py`."""

from __future__ import annotations

from typing import Any

from aigateway.messages import Choice, Completion
from aigateway.wires.plain import UnusualError, counted_usage, is_name, is_nothing, is_said

__all__ = ["anthropic_completion"]


def anthropic_completion(body: Any) -> Completion | None:
    """The answer, or None if it is not of the plain kind."""
    try:
        (block,) = body["content"]
        usage, text, model = body["usage"], block["text"], body["model"]
        if body.get("error") or not (is_name(body["id"]) and is_name(model)):
            return None
        finish = _FINISHES[body["stop_reason"]]
        if not (body["type"] == "message" and block["type"] == "text" and is_said(text)):
            return None
        if block.get("citations") or not all(
            is_nothing(usage[name]) for name in usage.keys() - _USAGE
        ):
            return None
        counted = counted_usage(usage["input_tokens"], usage["output_tokens"])
        return Completion(body["id"], model, (Choice(text, finish),), counted)
    except (UnusualError, KeyError, TypeError, AttributeError, ValueError):
        return None


_FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
_USAGE = frozenset({"input_tokens", "output_tokens", "service_tier"})
