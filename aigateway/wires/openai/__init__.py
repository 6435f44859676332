"""The OpenAI wire: OpenAI, Azure, and the many servers that imitate OpenAI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aigateway.wires.anthropic import ANTHROPIC_ENDS
from aigateway.wires.gemini import GEMINI_ENDS
from aigateway.wires.wire import Ends, LimitHeaders, Wire, ends_of_list, lazily

__all__ = ["AZURE", "OPENAI", "OPENAI_COMPATIBLE", "OPENAI_ENDS"]

OPENAI_ENDS: Mapping[str, str] = {
    # Servers that imitate OpenAI often hand on the words of what is behind them.
    **GEMINI_ENDS,
    **ANTHROPIC_ENDS,
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "function_call",
    "content_filter": "content_filter",
    "complete": "stop",  # Cohere
    "completed": "stop",
    "done": "stop",
    "end": "stop",
    "finished": "stop",
    "eos": "stop",  # Together
    "eos_token": "stop",  # Hugging Face
    "stop_token": "stop",
    "model_length": "length",  # Mistral
    "max_output_tokens": "length",
    "tool_call": "tool_calls",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",  # Bedrock
    "sensitive": "content_filter",  # Zhipu
    "error_toxic": "content_filter",  # Cohere
}


def _ends(body: Mapping[str, Any]) -> Ends | None:
    """Return what a body or an event says about the ends of answers; None for another wire."""
    choices = body.get("choices")
    return (
        ends_of_list(choices, OPENAI_ENDS, "finish_reason") if isinstance(choices, list) else None
    )


OPENAI = Wire(
    litellm_name="openai",
    base="https://api.openai.com/v1",
    translation=lazily("aigateway.wires.openai.translation", "OpenAITranslation"),
    ends=_ends,
    limits=LimitHeaders(
        tuple(
            (f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}")
            for what in ("requests", "tokens")
        )
    ),
    sdk="openai",
    counts_searches=False,
    foreign_params=frozenset({"cache_control", "safety_settings", "thinking", "top_k"}),
    native={
        "completions": lazily("aigateway.wires.openai.native", "CompletionsProtocol"),
        "responses": lazily("aigateway.wires.openai.native", "ResponsesProtocol"),
    },
    native_is_sure=True,
)
OPENAI_COMPATIBLE = replace(
    OPENAI,
    base=None,
    counts_searches=True,
    lists_models=False,
    foreign_params=frozenset({"cache_control", "thinking"}),
    native_is_sure=False,
)
AZURE = replace(
    OPENAI,
    litellm_name="azure",
    base=None,
    translation=lazily("aigateway.wires.openai.translation", "AzureTranslation"),
    sdk="azure",
    names_deployments=True,
    native={"responses": lazily("aigateway.wires.openai.native", "AzureResponsesProtocol")},
    native_is_sure=False,
)
