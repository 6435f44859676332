"""Embeddings from Gemini, asked for directly.

`litellm.aembedding` loses the client it is given on this one path, so it would send over
connections that are not ours (and twice, after a reset); and it loads a tokenizer to count what
the vendor did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx

from aigateway.errors import FailureKind
from aigateway.wires.client import Failure, VendorCallError

__all__ = ["gemini_embedding"]

_PARAMS = {"dimensions": "outputDimensionality", "task_type": "taskType", "title": "title"}
"""OpenAI's (and litellm's) names, and the wire's."""

_WITHOUT_EFFECT = {"encoding_format": "float"}


async def gemini_embedding(
    *,
    client: Any,
    model: str,
    input: Sequence[str],  # noqa: A002
    api_key: str,
    api_base: str,
    extra_headers: dict[str, str] | None = None,
    drop_params: bool | None = None,
    max_retries: int = 0,  # noqa: ARG001
    num_retries: int = 0,  # noqa: ARG001
    timeout: float | None = None,  # noqa: ARG001, ASYNC109
    **params: Any,
) -> SimpleNamespace:
    """Stand in for `litellm.aembedding`.

    Returns:
        A response of OpenAI's shape.

    Raises:
        VendorCallError: A parameter that Gemini does not know, and may not be dropped.
        httpx.HTTPError: No answer, or not a good one.
    """
    name = f"models/{model.removeprefix('gemini/')}"
    options = {_PARAMS[key]: value for key, value in params.items() if key in _PARAMS}
    unknown = {
        key
        for key, value in params.items()
        if key not in _PARAMS and value != _WITHOUT_EFFECT.get(key)
    }
    if unknown and not drop_params:
        raise VendorCallError(Failure(FailureKind.UNSUPPORTED))
    connection: httpx.AsyncClient = client.client
    response = await connection.post(
        f"{api_base}/{name}:batchEmbedContents",
        headers={"x-goog-api-key": api_key, **(extra_headers or {})},
        json={
            "requests": [
                {"model": name, "content": {"parts": [{"text": text}]}, **options} for text in input
            ]
        },
    )
    response.raise_for_status()
    body = response.json()
    tokens = (body.get("usageMetadata") or {}).get("promptTokenCount", 0)
    return SimpleNamespace(
        model=model.removeprefix("gemini/"),
        data=[
            {"index": index, "embedding": entry["values"]}
            for index, entry in enumerate(body["embeddings"])
        ],
        usage={"prompt_tokens": tokens, "total_tokens": tokens},
    )
