"""How answers end on the Anthropic wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.wires.ends import Given

__all__ = ["ANTHROPIC_ENDS", "given"]

ANTHROPIC_ENDS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "compaction": "length",
    "pause_turn": "length",  # the vendor's own tools took too long: there is more to come
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_KINDS = frozenset(
    {
        "message",
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "ping",
    }
)


def given(body: Mapping[str, Any]) -> Given | None:
    """What a body or an event says of the end of its answer; None if it is of another wire."""
    kind = body.get("type")
    if kind not in _KINDS:
        return None
    holder = body if kind == "message" else body.get("delta")
    reason = holder.get("stop_reason") if isinstance(holder, Mapping) else None
    return iter([(0, ANTHROPIC_ENDS, reason, None)])
