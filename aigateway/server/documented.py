"""The service's own endpoints: a plain chat, and what watches it."""

from __future__ import annotations

import contextlib
from collections import Counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import ProviderStatus
from aigateway.server.answers import chat_answer, headers_of, json_response
from aigateway.server.bodies import json_body
from aigateway.server.exchange import Exchange, service_of
from aigateway.server.presence import WhilePresent
from aigateway.server.questions import chat_question

__all__ = ["ROUTES"]


async def chat(request: Request) -> Response:
    """Answer a message."""
    exchange = Exchange.begin(request)
    question = chat_question(await json_body(request))
    options = {**exchange.terms.options(), **question.options}
    async with contextlib.AsyncExitStack() as stack:
        turn = exchange.turn(stack, question.model, options.get("timeout"))
        options |= turn.options
        async with WhilePresent(request.receive):
            response = await turn.gateway.chat(question.prompt, **options)
        turn.use.spent(response.cost_usd)
        word = exchange.cache_word(response, turn.gateway, options)
    return json_response(chat_answer(response), headers=headers_of(response, word))


async def health(_: Request) -> Response:
    """Say that the process is alive. Needs no key."""
    return json_response({"status": "ok"})


async def ready(request: Request) -> Response:
    """Say whether a request would find a provider. Needs no key, and names nobody."""
    service = service_of(request)
    if service.draining:
        return _not_ready("The service is told to stop; it takes no new requests.")
    with service.in_use() as gateway:
        providers = gateway.providers
    if any(provider.active for provider in providers):
        return json_response({"status": "ready"})
    if not providers:
        return _not_ready("No provider is configured.")
    states = Counter(map(_state, providers))
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    return _not_ready(f"No provider could take a request now: {told}.")


def _not_ready(reason: str) -> Response:
    return json_response({"status": "unavailable", "reason": reason}, 503)


def _state(provider: ProviderStatus) -> str:
    if provider.disabled_reason is not None:
        return f"disabled ({provider.disabled_reason})"
    if provider.circuit_state is CircuitState.CLOSED:
        return "cooling down"
    return f"with a circuit that is {str(provider.circuit_state).replace('_', '-')}"


async def metrics(request: Request) -> Response:
    """Give the metrics: JSON, unless a scraper's `Accept` asks for its own form."""
    service = service_of(request)
    service.access.admit(request.headers)
    accept = request.headers.get("accept", "")
    if service.scrape is not None and _is_scraper(accept):
        kind, body = service.scrape(accept)
        return Response(body, headers={"content-type": kind})
    with service.in_use() as gateway:
        return json_response(gateway.get_metrics())


_SCRAPED = ("application/openmetrics-text", "text/plain")


def _is_scraper(accept: str) -> bool:
    """Whether the text form is named, and liked better than JSON. `*/*` names nothing."""
    liked: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        liked[kind] = max(liked.get(kind, 0.0), _quality(parameters))
    text = max(liked.get(kind, 0.0) for kind in _SCRAPED)
    return text > liked.get("application/json", 0.0)


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


ROUTES = (
    Route("/chat", chat, methods=["POST"]),
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
)
