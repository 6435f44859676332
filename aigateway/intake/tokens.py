"""How many tokens a request may use, before anybody has counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aigateway.messages import ChatRequest

__all__ = ["USUAL_ANSWER", "answer_tokens", "estimated_tokens", "prompt_tokens"]

_CHARACTERS = 4
"""For each token: OpenAI's rule of thumb for English, and near enough for a rate."""

USUAL_ANSWER = 256
"""Tokens of an answer whose length the request does not bound."""

_PART = 256
"""Tokens of a message part that is no text: what a small picture costs."""


def estimated_tokens(request: ChatRequest) -> int:
    """An estimate for keeping a rate; what the vendor counts replaces it."""
    return prompt_tokens(request) + (answer_tokens(request) or USUAL_ANSWER)


def prompt_tokens(request: ChatRequest) -> int:
    """An estimate of the prompt's part."""
    return sum(map(_of_message, request.messages))


def answer_tokens(request: ChatRequest) -> int | None:
    """How many the answer may have at most, if the request says so."""
    bound = request.params.get("max_completion_tokens") or request.params.get("max_tokens")
    return bound if isinstance(bound, int) else None


def _of_message(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content) // _CHARACTERS + 1
    return sum(map(_of_part, content)) if isinstance(content, list | tuple) else 1


def _of_part(part: Any) -> int:
    text = part.get("text") if isinstance(part, Mapping) else part
    return len(text) // _CHARACTERS + 1 if isinstance(text, str) else _PART
