"""The service's own endpoints: a plain chat, and what watches it."""

from __future__ import annotations

import contextlib
from collections import Counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import ProviderStatus
from aigateway.server.http.bodies import json_body
from aigateway.server.http.cancellation import CancelOnDisconnect
from aigateway.server.http.exchange import Exchange, service_of
from aigateway.server.http.requests import chat_question
from aigateway.server.http.responses import chat_answer, headers_of, json_response
from aigateway.telemetry.prometheus import wants_prometheus

__all__ = ["ROUTES"]


async def chat(request: Request) -> Response:
    """Answer a message."""
    exchange = Exchange.begin(request)
    question = await json_body(request, chat_question)
    options = {**exchange.terms.options(), **question.options}
    async with contextlib.AsyncExitStack() as stack:
        turn = exchange.turn(stack, question.model, options.get("timeout"))
        options |= turn.options
        async with CancelOnDisconnect(request.receive):
            response = await turn.gateway.chat(question.prompt, **options)
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
    """Give the metrics: JSON, unless a scraper's `Accept` asks for its own form.

    A key sees its own account, the admin's all.
    """
    service = service_of(request)
    caller = service.access.admit(request.headers)
    accept = request.headers.get("accept", "")
    if service.scrape is not None and wants_prometheus(accept):
        kind, body = service.scrape(accept)
        return Response(body, headers={"content-type": kind})
    figures = service.figures()
    if not caller.is_admin:
        keys = figures["keys"]
        figures["keys"] = {name: keys[name] for name in (caller.name,) if name in keys}
    return json_response(figures)


ROUTES = (
    Route("/chat", chat, methods=["POST"]),
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
)
