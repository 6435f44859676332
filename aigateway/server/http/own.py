"""The service's own endpoints: a plain chat, health, readiness, metrics, and forced circuits."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, NotRequired

from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.errors import ConfigurationError
from aigateway.events import CircuitOrder
from aigateway.messages import Attempt, ChatResponse, openai_beside, openai_media
from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import ProviderStatus
from aigateway.server.auth.keys import Caller
from aigateway.server.auth.middleware import caller_of
from aigateway.server.http.bodies import json_body, read_chat
from aigateway.server.http.call import AdmittedRequest
from aigateway.server.http.doors import DoorRouter
from aigateway.server.http.errors import Refusal
from aigateway.server.http.json_responses import json_response
from aigateway.server.http.openai_chat import CalledTool, MediaFields, TokenCounts, called_tool
from aigateway.server.http.openapi import body_of, documented_call, documented_read, refusals
from aigateway.server.service import service_of
from aigateway.telemetry.prometheus import wants_prometheus

__all__ = ["router"]

router = DoorRouter()


# ── POST /chat ───────────────────────────────────────────────────────────────────────────────


class _AllTokenCounts(TokenCounts):
    cached_tokens: int
    reasoning_tokens: int
    cache_write_tokens: int


class _AttemptEntry(TypedDict):
    provider: str
    model: str
    failure: str | None
    status: int | None
    latency_seconds: float
    cost_usd: float | None


class ChatAnswer(MediaFields):
    """An answer, and how it came about."""

    response: str
    provider: str
    model: str
    cached: bool
    stale: bool
    coalesced: bool
    usage: _AllTokenCounts
    cost_usd: float | None
    latency_seconds: float
    attempts: list[_AttemptEntry]
    request_id: str
    finish_reason: str | None
    refusal: str | None
    tool_calls: list[CalledTool]
    system_fingerprint: NotRequired[str]
    service_tier: NotRequired[str]


@router.door("/chat", summary="Answer a message", **documented_call("ChatRequest", ChatAnswer))
async def chat(request: AdmittedRequest) -> Response:
    """Answer a message or a conversation, whole."""
    body = await json_body(request, read_chat, request.service.settings.pass_params)
    response, headers = await request.chat(body)
    # Half a character, which a vendor may have sent, is nothing that FastAPI could write.
    return json_response(_chat_answer(response), headers=headers)


def _chat_answer(response: ChatResponse) -> dict[str, Any]:
    usage = response.usage
    answer: ChatAnswer = {
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
        "tool_calls": list(map(called_tool, response.tool_calls)),
    }
    return {**answer, **openai_media(response.choices[0]), **openai_beside(response.completion)}


def _attempt(attempt: Attempt) -> _AttemptEntry:
    return {
        "provider": attempt.provider,
        "model": attempt.model,
        "failure": attempt.failure,
        "status": attempt.status,
        "latency_seconds": attempt.latency_seconds,
        "cost_usd": attempt.cost_usd,
    }


# ── health, readiness, metrics ───────────────────────────────────────────────────────────────


class Alive(TypedDict):
    """The process is alive."""

    status: Literal["ok"]


class Ready(TypedDict):
    """A request would find a provider."""

    status: Literal["ready"]


class NotReady(TypedDict):
    """A request would not find a provider."""

    status: Literal["unavailable"]
    reason: str


@router.get(
    "/health", summary="Whether the process is alive", **documented_read(Alive, with_key=False)
)
async def health() -> Alive:
    """Report that the process is alive. Needs no key."""
    return {"status": "ok"}


_PROCESS = {
    "name": "process",
    "in": "query",
    "required": False,
    "description": "true: whether this process takes requests, whatever the state of providers.",
    "schema": {"type": "boolean", "default": False},
}


@router.get(
    "/ready",
    summary="Whether a request would find a provider",
    **documented_read(Ready, with_key=False, not_ready=NotReady)
    | {"openapi_extra": {"parameters": [_PROCESS]}},
)
async def ready(request: Request) -> Any:
    """Report whether a request would find a provider. Needs no key, and names none.

    With `process=true` the state of providers does not count: a load balancer must not take all
    processes out at once because a vendor fails.
    """
    service = service_of(request)
    if service.draining:
        return _not_ready("The service is stopping; it takes no new requests.")
    with service.in_use() as gateway:
        providers = gateway.providers
    if not providers:
        return _not_ready("No provider is configured.")
    process_only = request.query_params.get("process") == "true"
    if process_only or any(provider.active for provider in providers):
        return Ready(status="ready")
    states = Counter(map(_state, providers))
    listed = ", ".join(f"{count} {state}" for state, count in states.items())
    return _not_ready(f"No provider could take a request now: {listed}.")


def _not_ready(reason: str) -> Response:
    return JSONResponse(NotReady(status="unavailable", reason=reason), 503)


def _state(provider: ProviderStatus) -> str:
    if provider.disabled_reason is not None:
        return f"disabled ({provider.disabled_reason})"
    if provider.circuit_state is CircuitState.CLOSED:
        return "cooling down"
    return f"with a circuit that is {str(provider.circuit_state).replace('_', '-')}"


@router.get(
    "/metrics",
    summary="The metrics, as JSON or for Prometheus",
    **documented_read(dict[str, Any], texts=("text/plain", "application/openmetrics-text")),
)
async def metrics(request: Request) -> Response:
    """Return the metrics: JSON, unless a scraper's `Accept` asks for its own form.

    A key sees its own account; the admin's key, and one with `monitor`, see all. A key with
    `models` sees no more than its account and the state of the providers that it may ask.
    """
    service = service_of(request)
    caller = caller_of(request)
    accept = request.headers.get("accept", "")
    if service.scrape is not None and wants_prometheus(accept):
        kind, body = service.scrape(accept, caller)
        return Response(body, headers={"content-type": kind})
    return json_response(service.figures(caller))


# ── forced circuits ──────────────────────────────────────────────────────────────────────────

_ORDERS: dict[object, CircuitOrder] = {"open": "open", "closed": "closed", "auto": "auto"}


@with_config(ConfigDict(extra="forbid"))
class CircuitRequest(TypedDict):
    """The state to force, or "auto" to end that."""

    state: CircuitOrder


class ForcedCircuit(CircuitRequest):
    """What is in force now."""

    provider: Annotated[str, Field(description="The provider's name.")]


@router.post(
    "/admin/providers/{name:path}/circuit",
    summary="Force a provider's circuit open or closed",
    responses=refusals(400, 401, 403, 404, 415, 500),
    openapi_extra=body_of(TypeAdapter(CircuitRequest).json_schema()),
)
async def force_circuit(name: str, request: Request) -> ForcedCircuit:
    """Force a provider's circuit open or closed, or leave it to itself again ("auto")."""
    service = service_of(request)
    caller = _admin(request)
    # The type JSON matters: a page of another site may not send it unasked.
    state = await json_body(AdmittedRequest.of(request), _order)
    try:
        await service.force_circuit(name, state, caller.name)
    except ConfigurationError as error:
        raise Refusal(404, str(error), code="provider_not_found", param="name") from None
    return {"provider": name, "state": state}


def _admin(request: Request) -> Caller:
    caller = caller_of(request)
    if not caller.is_admin:
        raise Refusal(
            403, "Only the admin key may do this.", "permission_error", "admin_key_required"
        )
    # Without keys, a page from elsewhere could do it with a browser of this machine.
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Refusal(
            403, "A page of another site may not do this.", "permission_error", "other_site"
        )
    return caller


def _order(body: dict[str, Any]) -> CircuitOrder:
    state = body.get("state")
    if not isinstance(state, str) or state not in _ORDERS or len(body) > 1:
        raise Refusal(400, 'The body must be {"state": "open"}, "closed" or "auto".', param="state")
    return _ORDERS[state]
