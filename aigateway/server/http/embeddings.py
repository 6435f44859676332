"""OpenAI's embeddings and list of models.

https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
import contextlib
import sys
from array import array
from collections.abc import Sequence
from typing import Literal, NotRequired

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.messages import EmbeddingResponse
from aigateway.routing.capabilities import WORDS
from aigateway.routing.provider import ProviderStatus
from aigateway.server.auth.keys import Caller
from aigateway.server.auth.middleware import caller_of
from aigateway.server.http.bodies import AUTO, json_body, read_embedding
from aigateway.server.http.call import AdmittedRequest, service_of
from aigateway.server.http.cancel import cancel_on_disconnect
from aigateway.server.http.errors import Refusal
from aigateway.server.http.json_responses import headers_of, json_response
from aigateway.server.http.openapi import documented_call, documented_read

__all__ = ["router"]

router = APIRouter()


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


class ModelEntry(TypedDict):
    """A model that may be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    capabilities: NotRequired[dict[str, bool]]
    max_input_tokens: NotRequired[int]


class ModelList(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[ModelEntry]


@router.post(
    "/v1/embeddings",
    summary="Turn texts into vectors",
    **documented_call("EmbeddingRequest", EmbeddingList),
)
async def create_embeddings(request: Request) -> Response:
    """Turn texts into vectors."""
    admitted = AdmittedRequest.admit(request)
    body = await json_body(request, read_embedding)
    async with contextlib.AsyncExitStack() as stack:
        gateway, own = admitted.enter_gateway(stack, body.model, admitted.asked.timeout)
        async with cancel_on_disconnect(request.receive):
            response = await gateway.embed(body.inputs, **body.options, **own)
    answer = _embedding_list(response, in_base64=body.in_base64)
    return json_response(answer, headers=headers_of(response, "off"))


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


@router.get(
    "/v1/models",
    summary="List the models that may be asked for",
    **documented_read(ModelList),
)
async def list_models(request: Request) -> Response:
    """List the models that the caller may ask for."""
    models = list(_models(request).values())
    return json_response(ModelList(object="list", data=models))


@router.get(
    "/v1/models/{model:path}",
    summary="Describe one model",
    **documented_read(ModelEntry, 404),
)
async def one_model(model: str, request: Request) -> Response:
    """Describe one model."""
    found = _models(request).get(model)
    if found is None:
        raise Refusal(404, "There is no such model here.", code="model_not_found", param="model")
    return json_response(found)


def _models(request: Request) -> dict[str, ModelEntry]:
    service = service_of(request)
    caller = caller_of(request)
    with service.in_use() as gateway:
        return _models_for(caller, gateway.providers)


def _models_for(caller: Caller, providers: Sequence[ProviderStatus]) -> dict[str, ModelEntry]:
    """Return the models by name: `auto`, then models, names and aliases, best provider first."""
    served_by: dict[str, list[ProviderStatus]] = {AUTO: []}
    for provider in providers:
        for name in dict.fromkeys((provider.model, provider.name, *provider.aliases)):
            served_by.setdefault(name, []).append(provider)
    return {
        name: _entry(name, own or providers, known=bool(own))
        for name, own in served_by.items()
        if caller.may_ask(name if own else None)
    }


def _entry(name: str, providers: Sequence[ProviderStatus], *, known: bool) -> ModelEntry:
    """Describe a model: it can do what one of its providers can, as far as that is known."""
    vendors = dict.fromkeys(provider.vendor for provider in providers) if known else ["aigateway"]
    # 0, since no vendor says when a model was made and clients want a number.
    entry = ModelEntry(id=name, object="model", created=0, owned_by=", ".join(vendors))
    can: dict[str, bool] = {}
    for capability in WORDS:
        said = [provider.capabilities.get(capability) for provider in providers]
        if True in said or None not in said:
            can[capability] = True in said
    if can:
        entry["capabilities"] = can
    windows = [provider.max_input_tokens for provider in providers if provider.max_input_tokens]
    if windows:
        entry["max_input_tokens"] = max(windows)
    return entry
