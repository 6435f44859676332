"""The Anthropic wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aigateway.messages import ChatRequest
from aigateway.wires.anthropic.ends import given
from aigateway.wires.anthropic.parameters import fit
from aigateway.wires.wire import Limits, Wire

if TYPE_CHECKING:
    from aigateway.wires.translation import Translation

__all__ = ["ANTHROPIC"]


def _translation() -> type[Translation]:
    from aigateway.wires.anthropic.translation import (  # noqa: PLC0415 - litellm
        AnthropicTranslation,
    )

    return AnthropicTranslation


def _dropped(request: ChatRequest) -> str | None:
    """Anthropic has neither, and litellm leaves them out without a word."""
    wanted = request.params.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_object":
        return "response_format"
    return "messages" if any(_has_audio(m.get("content")) for m in request.messages) else None


def _has_audio(content: object) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") == "input_audio" for part in content
    )


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
