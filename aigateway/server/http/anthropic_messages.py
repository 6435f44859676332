"""Anthropic's Messages: https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Literal

from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.gateway import AsyncGateway
from aigateway.protocols.anthropic_messages import MESSAGES, MESSAGES_COUNT
from aigateway.server.http.bodies import json_body
from aigateway.server.http.call import AdmittedRequest
from aigateway.server.http.doors import DoorRouter
from aigateway.server.http.json_responses import json_response
from aigateway.server.http.openapi import documented_call
from aigateway.server.http.protocols import ProtocolDoor

__all__ = ["router"]

router = DoorRouter()

_DOOR = ProtocolDoor(
    MESSAGES,
    AsyncGateway.messages,
    AsyncGateway.stream_messages,
    (b"anthropic-beta", b"anthropic-version"),
)


class _ErrorOfMessages(TypedDict):
    type: str
    message: str


class AnthropicErrorBody(TypedDict):
    """Anthropic's form of an error."""

    type: Literal["error"]
    error: _ErrorOfMessages
    request_id: str | None


class MessageUsage(TypedDict):
    """Tokens of a message; those of the vendor's prompt cache are not in `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnsweredMessage(TypedDict):
    """Anthropic's answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class CountedTokens(TypedDict):
    """An estimate of the tokens of a request."""

    input_tokens: int


@router.door(
    "/v1/messages",
    summary="Answer in Anthropic's Messages protocol",
    **documented_call(
        "AnthropicMessagesRequest",
        AnsweredMessage,
        {"text/event-stream": "Anthropic's events, from message_start to message_stop or error."},
        anthropic=AnthropicErrorBody,
    ),
)
async def messages(request: AdmittedRequest) -> Response:
    """Answer a request in Anthropic's Messages protocol, whole or as a stream."""
    return await _DOOR.respond(request, await _DOOR.read(request))


@router.door(
    "/v1/messages/count_tokens",
    summary="Estimate the tokens of a request in Anthropic's Messages protocol",
    **documented_call("AnthropicCountRequest", CountedTokens, anthropic=AnthropicErrorBody),
)
async def count_tokens(request: AdmittedRequest) -> Response:
    """Estimate the tokens of a request. No provider is called."""
    read = await json_body(request, lambda body: MESSAGES_COUNT.read(body, {}))
    with await request.enter_gateway(read.options.get("model"), None) as use:
        read = replace(read, options={**read.options, "model": use.options["model"]})
        tokens = await asyncio.to_thread(use.gateway.count_tokens, read)  # for a long one 50 ms
    return json_response({"input_tokens": tokens})
