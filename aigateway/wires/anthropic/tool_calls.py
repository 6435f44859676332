"""Tool calls of the Anthropic wire, beside what `wires/tool_calls.py` mends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["InputKeeper", "server_calls_in"]


class InputKeeper:
    """Says what Anthropic's tool calls hold whose input comes with the start of their block."""

    __slots__ = ("_inputs",)

    def __init__(self) -> None:
        self._inputs: dict[Any, str] = {}

    def before(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """The event that has to come before this one, if one is missing."""
        kind, index = event.get("type"), event.get("index")
        if kind == "content_block_start":
            block = event.get("content_block")
            given = block.get("input") if isinstance(block, Mapping) else None
            if given and isinstance(given, Mapping) and type(index) is int:
                self._inputs[index] = json.dumps(given)
        elif kind == "content_block_delta" and index in self._inputs:
            delta = event.get("delta")
            if isinstance(delta, Mapping) and delta.get("partial_json"):
                del self._inputs[index]
        elif kind == "content_block_stop" and index in self._inputs:
            delta = {"type": "input_json_delta", "partial_json": self._inputs.pop(index)}
            return {"type": "content_block_delta", "index": index, "delta": delta}
        return None


def server_calls_in(body: Any) -> frozenset[str]:
    """The ids of the calls that Anthropic makes itself: in a whole answer, or a block's start."""
    if not isinstance(body, Mapping):
        return frozenset()
    blocks = body.get("content")
    given = [*blocks] if isinstance(blocks, list) else [body.get("content_block")]
    return frozenset(
        str(block.get("id"))
        for block in given
        if isinstance(block, Mapping) and block.get("type") == "server_tool_use"
    )
