"""The Gemini wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aigateway.wires.gemini.ends import given
from aigateway.wires.gemini.parameters import fit
from aigateway.wires.wire import Wire

if TYPE_CHECKING:
    from aigateway.wires.translation import Translation

__all__ = ["GEMINI"]


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


def _has_part(role: str, kind: str) -> bool:
    return kind in _CARRIED.get(role, ())


def _not_taken(params: Mapping[str, Any]) -> str | None:
    """Gemini may always make several calls."""
    has_tools = params.get("tools") or params.get("functions")
    only_one = params.get("parallel_tool_calls") is False
    return "parallel_tool_calls" if only_one and has_tools else None


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
    has_part=_has_part,
    not_taken=_not_taken,
    embed=_embed,
)
