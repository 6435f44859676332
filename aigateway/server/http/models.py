"""The list of models, in OpenAI's form or Anthropic's.

https://platform.openai.com/docs/api-reference/models, https://platform.claude.com/docs/en/api/models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.routing.capabilities import WORDS
from aigateway.routing.provider import ProviderStatus
from aigateway.server.auth.keys import Caller
from aigateway.server.auth.middleware import caller_of
from aigateway.server.http.errors import Refusal, speaks_anthropic
from aigateway.server.http.json_responses import json_response
from aigateway.server.http.openapi import documented_read
from aigateway.server.service import service_of
from aigateway.settings.server import AUTO

__all__ = ["router"]

router = APIRouter()


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


class AnthropicModel(TypedDict):
    """The same in Anthropic's form."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    max_input_tokens: NotRequired[int]


class AnthropicModelList(TypedDict):
    """All of them in Anthropic's form, on one page."""

    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None


@router.get(
    "/v1/models",
    summary="List the models that may be asked for",
    **documented_read(ModelList | AnthropicModelList),
)
async def list_models(request: Request) -> Response:
    """List the models that the caller may ask for, in Anthropic's form for its clients."""
    models = _models(request)
    if not speaks_anthropic(request.scope):
        return json_response(ModelList(object="list", data=list(models.values())))
    data = list(map(_of_anthropic, models.values()))
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return json_response(
        AnthropicModelList(data=data, has_more=False, first_id=first, last_id=last)
    )


@router.get(
    "/v1/models/{model:path}",
    summary="Describe one model",
    **documented_read(ModelEntry | AnthropicModel, 404),
)
async def one_model(model: str, request: Request) -> Response:
    """Describe one model, likewise."""
    found = _models(request).get(model)
    if found is None:
        raise Refusal(
            404,
            "There is no such model, or this key may not ask for it; GET /v1/models lists those"
            " that it may.",
            code="model_not_found",
            param="model",
        )
    return json_response(_of_anthropic(found) if speaks_anthropic(request.scope) else found)


def _of_anthropic(entry: ModelEntry) -> AnthropicModel:
    name = entry["id"]
    # Anthropic's own word for a model whose date is not known is the epoch.
    epoch = "1970-01-01T00:00:00Z"
    model = AnthropicModel(type="model", id=name, display_name=name, created_at=epoch)
    if "max_input_tokens" in entry:
        model["max_input_tokens"] = entry["max_input_tokens"]
    return model


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
