"""OpenAI's embeddings.

https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Literal

from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.messages import EmbeddingResponse
from aigateway.server.http.bodies import json_body, read_embedding
from aigateway.server.http.call import AdmittedRequest
from aigateway.server.http.doors import DoorRouter
from aigateway.server.http.json_responses import answer_headers, json_response
from aigateway.server.http.openapi import documented_call

__all__ = ["router"]

router = DoorRouter()


class _Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: Sequence[float] | str


class _PromptTokenCounts(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """OpenAI's answer to an embedding request."""

    object: Literal["list"]
    data: list[_Embedding]
    model: str
    usage: _PromptTokenCounts


@router.door(
    "/v1/embeddings",
    summary="Turn texts into vectors",
    **documented_call("EmbeddingRequest", EmbeddingList),
)
async def create_embeddings(request: AdmittedRequest) -> Response:
    """Turn texts into vectors."""
    body = await json_body(request, read_embedding)
    with await request.enter_gateway(body.model, request.options.get("timeout")) as use:
        response = await use.gateway.embed(body.inputs, **body.options, **use.options)
    answer = _embedding_list(response, in_base64=body.in_base64)
    headers = answer_headers(response.provider, "off", len(response.attempts), response.cost_usd)
    return json_response(answer, headers=headers)


def _embedding_list(response: EmbeddingResponse, *, in_base64: bool) -> EmbeddingList:
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
    """Pack a vector as OpenAI does: 32-bit floats, little-endian, in base64."""
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
