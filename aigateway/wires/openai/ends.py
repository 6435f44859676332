"""How answers end on the OpenAI wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.wires.anthropic.ends import ANTHROPIC_ENDS
from aigateway.wires.ends import Given, listed
from aigateway.wires.gemini.ends import GEMINI_ENDS

__all__ = ["OPENAI_ENDS", "given"]

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


def given(body: Mapping[str, Any]) -> Given | None:
    """What a body or an event says of the ends of its answers; None if it is of another wire."""
    choices = body.get("choices")
    return listed(choices, OPENAI_ENDS, "finish_reason") if isinstance(choices, list) else None
