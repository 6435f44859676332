"""Estimates of the tokens and bytes of a request, before the vendor counts them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from aigateway.messages import ChatRequest, Choice, EmbeddingRequest

__all__ = [
    "USUAL_ANSWER",
    "answer_bytes",
    "answer_tokens",
    "counted_tokens",
    "estimated_tokens",
    "prompt_size",
    "prompt_tokens",
]

_CHARACTERS = 4
"""Characters of a token: OpenAI's rule of thumb for English, good enough for a rate."""

USUAL_ANSWER = 256
"""Tokens assumed for an answer whose length the request does not limit."""

_PART = 256
"""Tokens of a message part that is not text: the cost of a small picture."""

_BYTES = 3.8
"""Bytes of a token in UTF-8: prose has more, code and other scripts have fewer."""

_PICTURE = 1500
"""Tokens of a picture of the largest size that Anthropic takes, or of a page of a document."""

_FRAME = 4
"""Tokens that a message takes besides its content."""

_SENT_AS_TEXT = frozenset({"functions", "response_format", "tools"})
"""Parameters that vendors put into the prompt and count."""


def estimated_tokens(request: ChatRequest) -> int:
    """Estimate all tokens of a request; the vendor's count replaces this."""
    return prompt_tokens(request) + (answer_tokens(request) or USUAL_ANSWER)


def prompt_tokens(request: ChatRequest) -> int:
    """Estimate the tokens of the prompt."""
    return sum(_part_tokens(part) for message in request.messages for part in _parts(message))


def answer_tokens(request: ChatRequest) -> int | None:
    """Return the most tokens that the answer may have, or None if the request sets no limit."""
    bound = request.params.get("max_completion_tokens") or request.params.get("max_tokens")
    return bound if isinstance(bound, int) else None


def counted_tokens(request: ChatRequest) -> int:
    """Estimate the tokens of a prompt with its tools, for a caller who asks before sending it.

    More exact than `prompt_tokens`, and not as fast.
    """
    size, _ = prompt_size(request)
    parts = (part for message in request.messages for part in _parts(message))
    media = sum(isinstance(part, Mapping) and not _is_written(part) for part in parts)
    return math.ceil(size / _BYTES) + media * _PICTURE + len(request.messages) * _FRAME


def _is_written(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str)


def prompt_size(request: ChatRequest | EmbeddingRequest) -> tuple[int, int]:
    """Measure the prompt.

    Returns:
        Bytes of all text, including tools and schemas, and tokens of the parts that are not text
        or are given as tokens.
    """
    if isinstance(request, EmbeddingRequest):
        texts = [each for each in request.inputs if isinstance(each, str)]
        return sum(map(_bytes, texts)), sum(map(len, request.inputs)) * (not texts)
    size, other = 0, 0
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, str):
            size += _bytes(content)
        else:
            for part in _parts(message):
                text = _text(part)
                if isinstance(text, str):
                    size += _bytes(text)
                elif text is not None or isinstance(part, Mapping):
                    other += _PART
        if message.get("tool_calls"):
            size += _json_bytes(message["tool_calls"])
    for name in _SENT_AS_TEXT & request.params.keys():
        size += _json_bytes(request.params[name])
    return size, other


def answer_bytes(choices: Iterable[Choice]) -> int:
    """Return the bytes of all text, visible reasoning, refusals and tool calls."""
    size = 0
    for choice in choices:
        size += _bytes(choice.text)
        if choice.reasoning:
            size += _bytes(choice.reasoning)
        if choice.refusal:
            size += _bytes(choice.refusal)
        for call in choice.tool_calls:
            size += _bytes(call.name) + _bytes(call.arguments)
    return size


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _json_bytes(value: Any) -> int:
    return len(orjson.dumps(value, default=str))


def _parts(message: Mapping[str, Any]) -> Iterable[Any]:
    content = message.get("content")
    return content if isinstance(content, list | tuple) else (content,)


def _text(part: Any) -> Any:
    return part.get("text") if isinstance(part, Mapping) else part


def _part_tokens(part: Any) -> int:
    text = _text(part)
    if isinstance(text, str):
        return len(text) // _CHARACTERS + 1
    return 1 if part is None else _PART  # None: the message has only tool calls
