"""The Gemini wire."""

from __future__ import annotations

from collections.abc import Callable
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
    embed=_embed,
)
