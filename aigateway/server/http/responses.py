"""Answers as they go out: plain ones in JSON, and what the headers say of them."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response

from aigateway.messages import (
    Attempt,
    ChatResponse,
    EmbeddingResponse,
    Opening,
    openai_beside,
    openai_call,
    openai_media,
)
from aigateway.server.http.errors import Refusal

__all__ = [
    "cache_word",
    "chat_answer",
    "completion",
    "embeddings",
    "encoded",
    "headers_of",
    "headers_of_opening",
    "json_response",
    "refused",
]


def encoded(value: Any) -> bytes:
    """JSON. Half a character, which a vendor may have sent, goes on as an escape."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON."""
    return Response(encoded(value), status, headers, "application/json")


def refused(refusal: Refusal) -> Response:
    """A refusal, in OpenAI's form."""
    return json_response(refusal.body, refusal.status, refusal.headers)


# ── bodies ───────────────────────────────────────────────────────────────────────────────────


def completion(response: ChatResponse, now: float) -> dict[str, Any]:
    """A `chat.completion` of OpenAI's.

    Args:
        response: What the gateway gave.
        now: Unix time in seconds, for an answer whose vendor names none.
    """
    body = response.to_openai()
    body["id"] = body["id"] or f"chatcmpl-{response.request_id}"
    body["created"] = body["created"] or int(now)
    return body


def chat_answer(response: ChatResponse) -> dict[str, Any]:
    """What `POST /chat` answers."""
    usage = response.usage
    return {
        "response": response.text,
        "provider": response.provider,
        "model": response.model,
        "cached": response.cached,
        "stale": response.stale,
        "coalesced": response.coalesced,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "cost_usd": response.cost_usd,
        "latency_seconds": response.latency_seconds,
        "attempts": [_attempt(attempt) for attempt in response.attempts],
        "request_id": response.request_id,
        "finish_reason": response.finish_reason,
        "refusal": response.choices[0].refusal,
        "tool_calls": list(map(openai_call, response.tool_calls)),
        **openai_media(response.choices[0]),
        **openai_beside(response.completion),
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "provider": attempt.provider,
        "model": attempt.model,
        "failure": attempt.failure,
        "status": attempt.status,
        "latency_seconds": attempt.latency_seconds,
        "cost_usd": attempt.cost_usd,
    }


def embeddings(response: EmbeddingResponse, *, in_base64: bool) -> dict[str, Any]:
    """OpenAI's list of embeddings, as numbers or as their packed 32-bit floats in base64."""
    usage = response.usage
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if in_base64 else vector,
            }
            for index, vector in enumerate(response.vectors)
        ],
        "model": response.model,
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens},
    }


def _packed(vector: tuple[float, ...]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


# ── headers ──────────────────────────────────────────────────────────────────────────────────


def cache_word(answer: ChatResponse | Opening, *, in_use: bool) -> str:
    """What the cache had to do with it: hit, miss, stale, coalesced or off."""
    if answer.stale:
        return "stale"
    if answer.cached:
        return "hit"
    if isinstance(answer, ChatResponse) and answer.coalesced:
        return "coalesced"
    return "miss" if in_use else "off"


def headers_of(response: ChatResponse | EmbeddingResponse, cache: str) -> dict[str, str]:
    """Who served, and for how much."""
    headers = _headers(response.provider, cache, len(response.attempts))
    if response.cost_usd is not None:
        cost = f"{response.cost_usd:.10f}".rstrip("0").rstrip(".")
        headers["x-aigateway-cost"] = cost
    return headers


def headers_of_opening(opening: Opening, cache: str) -> dict[str, str]:
    """The same for a stream that has just begun: what it costs is not known yet."""
    return _headers(opening.provider, cache, opening.attempts)


def _headers(provider: str, cache: str, attempts: int) -> dict[str, str]:
    plain = provider.isascii() and provider.isprintable()
    return {
        "x-aigateway-provider": provider if plain else quote(provider),
        "x-aigateway-cache": cache,
        "x-aigateway-attempts": str(attempts),
    }
