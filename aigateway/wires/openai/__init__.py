"""The OpenAI wire: OpenAI, Azure, and the many servers that imitate OpenAI."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aigateway.wires.openai.ends import given
from aigateway.wires.wire import LimitHeaders, Wire

if TYPE_CHECKING:
    from aigateway.wires.translation import Translation

__all__ = ["AZURE", "OPENAI", "OPENAI_COMPATIBLE"]


def _translation() -> type[Translation]:
    from aigateway.wires.openai.translation import OpenAITranslation  # noqa: PLC0415 - litellm

    return OpenAITranslation


def _azure_translation() -> type[Translation]:
    from aigateway.wires.openai.translation import AzureTranslation  # noqa: PLC0415 - litellm

    return AzureTranslation


OPENAI = Wire(
    litellm_name="openai",
    base="https://api.openai.com/v1",
    translation=_translation,
    ends=given,
    limits=LimitHeaders(
        tuple(
            (f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}")
            for what in ("requests", "tokens")
        )
    ),
    sdk="openai",
    counts_searches=False,
    foreign_params=frozenset({"cache_control", "safety_settings", "thinking", "top_k"}),
)
OPENAI_COMPATIBLE = replace(
    OPENAI,
    base=None,
    counts_searches=True,
    lists_models=False,
    foreign_params=frozenset({"cache_control", "thinking"}),
)
AZURE = replace(
    OPENAI,
    litellm_name="azure",
    base=None,
    translation=_azure_translation,
    sdk="azure",
    names_deployments=True,
)
