"""The Anthropic wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aigateway.wires.anthropic.ends import given
from aigateway.wires.anthropic.parameters import fit
from aigateway.wires.wire import LimitHeaders, Wire

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


def _has_part(role: str, kind: str) -> bool:
    own_result = role == "assistant" and kind.endswith("_tool_result")  # of its own tools
    return own_result or kind in _CARRIED.get(role, ())


def _not_taken(params: Mapping[str, Any]) -> str | None:
    """Anthropic knows no JSON without a schema."""
    wanted = params.get("response_format")
    is_any = isinstance(wanted, Mapping) and wanted.get("type") == "json_object"
    return "response_format" if is_any else None


ANTHROPIC = Wire(
    litellm_name="anthropic",
    base="https://api.anthropic.com",
    translation=_translation,
    ends=given,
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
    fit=fit,
    has_part=_has_part,
    not_taken=_not_taken,
)
