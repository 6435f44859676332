"""The Anthropic wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aigateway.messages import ChatRequest
from aigateway.wires.anthropic.ends import given
from aigateway.wires.anthropic.parameters import fit
from aigateway.wires.wire import Limits, Wire, part_types

if TYPE_CHECKING:
    from aigateway.wires.translation import Translation

__all__ = ["ANTHROPIC"]


def _translation() -> type[Translation]:
    from aigateway.wires.anthropic.translation import (  # noqa: PLC0415 - litellm
        AnthropicTranslation,
    )

    return AnthropicTranslation


_CARRIED: Mapping[str, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"document", "file", "image_url", "text"}),
    "assistant": frozenset({"redacted_thinking", "server_tool_use", "text", "thinking"}),
    "tool": frozenset({"file", "image_url", "text", "tool_reference"}),
}
"""The parts of messages that litellm translates, by role."""


def _dropped(request: ChatRequest) -> str | None:
    """What Anthropic does not have; litellm leaves it out without a word."""
    for role, kind in part_types(request):
        own_result = role == "assistant" and kind.endswith("_tool_result")  # of its own tools
        if kind not in _CARRIED.get(role, ()) and not own_result:
            return "messages"
    wanted = request.params.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_object":
        return "response_format"
    return None


ANTHROPIC = Wire(
    litellm_name="anthropic",
    base="https://api.anthropic.com",
    translation=_translation,
    ends=given,
    limits=Limits(
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
    fit=fit,
    dropped=_dropped,
)
