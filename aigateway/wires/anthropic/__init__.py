"""The Anthropic wire: what is its own, beside its translation.

How its answers end, which parameters it takes, and what its tool calls need before they read like
OpenAI's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aigateway.wires.wire import Ends, LimitHeaders, Wire, lazily

if TYPE_CHECKING:
    from aigateway.wires.parameters import ParameterDraft

__all__ = ["ANTHROPIC", "ANTHROPIC_ENDS", "InputKeeper", "server_calls_in"]

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


def _ends(body: Mapping[str, Any]) -> Ends | None:
    """Return what a body or an event says about the end of its answer; None for another wire."""
    kind = body.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    holder = body if kind == "message" else body.get("delta")
    reason = holder.get("stop_reason") if isinstance(holder, Mapping) else None
    return iter([(0, ANTHROPIC_ENDS, reason, None)])


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


def _fit(
    draft: ParameterDraft, model: str, mapped: Callable[..., Mapping[str, Any] | None]
) -> None:
    """Fit sampling and thinking to what Anthropic documents.

    https://platform.claude.com/docs/en/build-with-claude/extended-thinking
    """
    left = draft.left
    warmth = left.get("temperature")
    if isinstance(warmth, int | float) and warmth > 1:
        draft.put("temperature", 1.0, was="temperature")
    if "temperature" in left and "top_p" in left and _ONE_SAMPLER.search(model):
        draft.drop("top_p")
    if "top_k" in left and mapped(_COOL) is None:  # litellm finds that out only when it is late
        draft.drop("top_k")
    _fit_thinking(draft, mapped)


def _fit_thinking(draft: ParameterDraft, mapped: Callable[..., Mapping[str, Any] | None]) -> None:
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


class InputKeeper:
    """Keeps the input of Anthropic's tool calls that comes with the start of their block."""

    __slots__ = ("_inputs",)

    def __init__(self) -> None:
        self._inputs: dict[Any, str] = {}

    def before(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the event that is missing before this one, if any."""
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
    """Return the ids of Anthropic's own calls, from an answer or a block's start."""
    if not isinstance(body, Mapping):
        return frozenset()
    blocks = body.get("content")
    given = [*blocks] if isinstance(blocks, list) else [body.get("content_block")]
    return frozenset(
        str(block.get("id"))
        for block in given
        if isinstance(block, Mapping) and block.get("type") == "server_tool_use"
    )


_CARRIED: Mapping[str, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"document", "file", "image_url", "text"}),
    "assistant": frozenset({"redacted_thinking", "server_tool_use", "text", "thinking"}),
    "tool": frozenset({"file", "image_url", "text", "tool_reference"}),
}
"""The parts of messages that litellm translates, by role."""


def _has_part(role: str, kind: str) -> bool:
    own_result = role == "assistant" and kind.endswith("_tool_result")  # of its own tools
    return own_result or kind in _CARRIED.get(role, ())


def _not_taken(params: Mapping[str, Any]) -> str | None:
    """Refuse JSON without a schema, which Anthropic does not have."""
    wanted = params.get("response_format")
    is_any = isinstance(wanted, Mapping) and wanted.get("type") == "json_object"
    return "response_format" if is_any else None


ANTHROPIC = Wire(
    litellm_name="anthropic",
    base="https://api.anthropic.com",
    translation=lazily("aigateway.wires.anthropic.translation", "AnthropicTranslation"),
    ends=_ends,
    limits=LimitHeaders(
        tuple(
            (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
            for what in ("requests", "tokens", "input-tokens", "output-tokens")
        ),
        are_times=True,
    ),
    sdk="http",
    think_tags=False,
    takes_extra_body=False,
    like_openai=False,
    foreign_params=frozenset({"safety_settings"}),
    fit=_fit,
    has_part=_has_part,
    not_taken=_not_taken,
    native={"messages": lazily("aigateway.wires.anthropic.native", "MessagesProtocol")},
    native_is_sure=True,
)
