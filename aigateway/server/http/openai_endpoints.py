"""OpenAI's API: what speaks to it speaks to the gateway, unchanged.

https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aigateway.errors import GatewayError
from aigateway.messages import Chunk
from aigateway.request.stream import ChatStream
from aigateway.server.http.bodies import json_body
from aigateway.server.http.cancellation import CancelOnDisconnect
from aigateway.server.http.chunks import DONE, PING, ChunkWriter, error_event
from aigateway.server.http.errors import Refusal, refusal_of, stopping
from aigateway.server.http.exchange import Exchange, service_of
from aigateway.server.http.models import models_for
from aigateway.server.http.requests import Question, completion_question, embedding_question
from aigateway.server.http.responses import (
    completion,
    embeddings,
    headers_of,
    headers_of_opening,
    json_response,
)
from aigateway.server.http.sse import EventStream

__all__ = ["PING_SECONDS", "ROUTES"]

PING_SECONDS = 15.0
"""Silence of a stream after which a comment is sent: proxies cut at 30 to 60 seconds."""


_FAREWELL = error_event(stopping())


async def chat_completions(request: Request) -> Response:
    """Answer a chat, whole or piece by piece."""
    exchange = Exchange.begin(request)
    question = await json_body(request, completion_question)
    if question.stream:
        return await _streamed(request, exchange, question)
    options = {**exchange.terms.options(), **question.options}
    async with contextlib.AsyncExitStack() as stack:
        turn = exchange.turn(stack, question.model, exchange.terms.timeout)
        options |= turn.options
        async with CancelOnDisconnect(request.receive):
            response = await turn.gateway.chat(question.prompt, **options)
        word = exchange.cache_word(response, turn.gateway, options)
    body = completion(response, exchange.service.clock.wall())
    return json_response(body, headers=headers_of(response, word))


async def _streamed(request: Request, exchange: Exchange, question: Question) -> Response:
    """Wait for the first content, so that what fails before it is an error of HTTP."""
    clock = exchange.service.clock
    options = {**exchange.terms.options(), **question.options}
    async with contextlib.AsyncExitStack() as stack:
        turn = exchange.turn(stack, question.model, exchange.terms.timeout)
        options |= turn.options
        await exchange.service.turns.take()
        resume = exchange.terms.resume or exchange.service.settings.stream_resume
        if resume != "none":
            options["resume"] = resume
        stream = await stack.enter_async_context(turn.gateway.stream(question.prompt, **options))
        async with CancelOnDisconnect(request.receive):
            first = await anext(stream)
        opening = stream.opening
        assert opening is not None  # noqa: S101 - its first chunk is here
        writer = ChunkWriter(
            opening,
            exchange.origin.request_id,
            clock.wall(),
            with_usage=question.with_usage,
            whole=lambda: stream.response,
        )
        word = exchange.cache_word(opening, turn.gateway, options)
        return EventStream(
            _events(stream, first, writer),
            stack.pop_all(),
            headers_of_opening(opening, word),
            ping=PING,
            ping_seconds=PING_SECONDS,
            farewell=_FAREWELL,
            stopping=exchange.service.stopping,
            turns=exchange.service.turns,
            clock=clock,
        )


async def _events(
    stream: ChatStream, first: Chunk, writer: ChunkWriter
) -> AsyncGenerator[bytes, None]:
    """The stream as events. What breaks is said in one, and no `[DONE]` follows."""
    yield writer.events(first)
    try:
        async for chunk in stream:
            yield writer.events(chunk)
    except GatewayError as error:
        yield error_event(refusal_of(error))
        return
    yield DONE


async def create_embeddings(request: Request) -> Response:
    """Turn texts into vectors."""
    exchange = Exchange.begin(request)
    question = await json_body(request, embedding_question)
    async with contextlib.AsyncExitStack() as stack:
        turn = exchange.turn(stack, question.model, exchange.terms.timeout)
        async with CancelOnDisconnect(request.receive):
            response = await turn.gateway.embed(question.inputs, **question.options, **turn.options)
    body = embeddings(response, in_base64=question.in_base64)
    return json_response(body, headers=headers_of(response, "off"))


async def list_models(request: Request) -> Response:
    """Say which models the caller may ask for."""
    service = service_of(request)
    caller = service.access.admit(request.headers)
    with service.in_use() as gateway:
        models = models_for(caller, gateway.providers)
    return json_response({"object": "list", "data": list(models.values())})


async def one_model(request: Request) -> Response:
    """Say whose a model is."""
    service = service_of(request)
    caller = service.access.admit(request.headers)
    name: Any = request.path_params["model"]
    with service.in_use() as gateway:
        model = models_for(caller, gateway.providers).get(name)
    if model is None:
        raise Refusal(404, "There is no such model here.", code="model_not_found", param="model")
    return json_response(model)


ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/embeddings", create_embeddings, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", one_model, methods=["GET"]),
)
"""Plain routes: what FastAPI adds to its own would cost as much as all that is done here."""
