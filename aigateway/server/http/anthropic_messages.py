"""Anthropic's Messages: https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from aigateway.gateway import AsyncGateway
from aigateway.protocols.anthropic_messages import MESSAGES
from aigateway.server.http.errors import error_event
from aigateway.server.http.protocols import Door

__all__ = ["router"]

router = APIRouter()

_DOOR = Door(
    MESSAGES,
    AsyncGateway.messages,
    AsyncGateway.stream_messages,
    error_event,
    b'event: ping\ndata: {"type": "ping"}\n\n',
    ("anthropic-beta", "anthropic-version"),
)


@router.post("/v1/messages", summary="Answer in Anthropic's Messages protocol")
async def messages(request: Request) -> Response:
    """Answer a request in Anthropic's Messages protocol."""
    return await _DOOR.answer(request)
