"""OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.gateway import AsyncGateway
from aigateway.protocols.openai_responses import RESPONSES
from aigateway.server.http.call import AdmittedRequest
from aigateway.server.http.doors import DoorRouter
from aigateway.server.http.errors import Refusal
from aigateway.server.http.openapi import documented_call
from aigateway.server.http.protocols import ProtocolDoor

__all__ = ["router"]

router = DoorRouter()


_DOOR = ProtocolDoor(RESPONSES, AsyncGateway.responses, AsyncGateway.stream_responses)


class _TokensOfResponse(TypedDict):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponseBody(TypedDict):
    """OpenAI's answer in this protocol."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: _TokensOfResponse
    incomplete_details: NotRequired[dict[str, str] | None]


@router.door(
    "/v1/responses",
    summary="Answer in OpenAI's Responses, whole or as a stream",
    **documented_call(
        "ResponsesRequest",
        ResponseBody,
        {"text/event-stream": "OpenAI's events: response.created to response.completed, or error."},
    ),
)
async def responses(request: AdmittedRequest) -> Response:
    """Answer a request in OpenAI's Responses, whole or as a stream."""
    return await _DOOR.respond(request, await _DOOR.read(request))


async def nothing_there(request: Request) -> None:
    """Say what is offered."""
    raise Refusal(
        404,
        f"There is nothing at {request.url.path[:128]}: the service stores no responses, and offers"
        " POST /v1/responses only. Send the whole conversation in its input.",
    )


router.add_api_route(
    "/v1/responses/{path:path}",
    nothing_there,
    methods=["DELETE", "GET", "POST"],
    include_in_schema=False,
)
