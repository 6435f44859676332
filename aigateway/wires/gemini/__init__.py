"""The Gemini wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aigateway.messages import ChatRequest
from aigateway.wires.gemini.ends import given
from aigateway.wires.gemini.parameters import fit
from aigateway.wires.wire import Wire, part_types

if TYPE_CHECKING:
    from aigateway.wires.translation import Translation

__all__ = ["GEMINI", "not_taken"]


def _translation() -> type[Translation]:
    from aigateway.wires.gemini.translation import GeminiTranslation  # noqa: PLC0415 - litellm

    return GeminiTranslation


def _embed() -> Callable[..., Any]:
    from aigateway.wires.gemini.embeddings import gemini_embedding  # noqa: PLC0415 - httpx

    return gemini_embedding


_CARRIED: Mapping[str, frozenset[str]] = {
    "system": frozenset({"text"}),
    "user": frozenset({"file", "image_url", "input_audio", "text"}),
    "assistant": frozenset({"text"}),
    "tool": frozenset({"file", "image_url", "text"}),
}
"""The parts of messages that every version of litellm translates, by role."""


def not_taken(request: ChatRequest) -> str | None:
    """Gemini may always make several calls, and litellm leaves the wish out without a word."""
    params = request.params
    has_tools = params.get("tools") or params.get("functions")
    return (
        "parallel_tool_calls" if params.get("parallel_tool_calls") is False and has_tools else None
    )


def _dropped(request: ChatRequest) -> str | None:
    """What litellm leaves out without a word."""
    lost = any(kind not in _CARRIED.get(role, ()) for role, kind in part_types(request))
    return "messages" if lost else not_taken(request)


GEMINI = Wire(
    litellm_name="gemini",
    base="https://generativelanguage.googleapis.com/v1beta",
    translation=_translation,
    ends=given,
    sdk="http",
    think_tags=False,
    takes_extra_body=False,
    takes_cache_marks=False,
    like_openai=False,
    foreign_params=frozenset({"cache_control"}),
    fit=fit,
    dropped=_dropped,
    embed=_embed,
)
