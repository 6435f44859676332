"""OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from aigateway.gateway import AsyncGateway
from aigateway.protocols.openai_responses import RESPONSES
from aigateway.server.http.errors import error_event
from aigateway.server.http.protocols import Door

__all__ = ["router"]

router = APIRouter()

_DOOR = Door(
    RESPONSES,
    AsyncGateway.responses,
    AsyncGateway.stream_responses,
    error_event,
    b": waiting\n\n",
)


@router.post("/v1/responses", summary="Answer in OpenAI's Responses protocol")
async def responses(request: Request) -> Response:
    """Answer a request in OpenAI's Responses protocol."""
    return await _DOOR.answer(request)
