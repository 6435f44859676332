"""Responses in JSON, and the headers that say who answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from aigateway.messages import ChatResponse, EmbeddingResponse, Opening
from aigateway.protocols.protocol import encoded

__all__ = [
    "answer_headers",
    "encoded",
    "headers_of",
    "headers_of_opening",
    "json_response",
]


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Make a response of JSON."""
    return Response(encoded(value), status, headers, "application/json")


def headers_of(response: ChatResponse | EmbeddingResponse, cache: str) -> dict[str, str]:
    """Return the headers of an answer: provider, cache, attempts and cost."""
    return answer_headers(response.provider, cache, len(response.attempts), response.cost_usd)


def headers_of_opening(opening: Opening, cache: str) -> dict[str, str]:
    """Return the same for a stream that has just begun: its cost is not known yet."""
    return answer_headers(opening.provider, cache, opening.attempts)


def answer_headers(
    provider: str, cache: str, attempts: int, cost_usd: float | None = None
) -> dict[str, str]:
    """Write the headers of an answer; None: its cost is not known."""
    plain = provider.isascii() and provider.isprintable()
    headers = {
        "x-aigateway-provider": provider if plain else quote(provider),
        "x-aigateway-cache": cache,
        "x-aigateway-attempts": str(attempts),
    }
    if cost_usd is not None:
        headers["x-aigateway-cost"] = f"{cost_usd:.10f}".rstrip("0").rstrip(".")
    return headers
