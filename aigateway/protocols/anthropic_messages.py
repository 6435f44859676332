"""Anthropic's Messages: https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aigateway.errors import RequestRejectedError
from aigateway.messages import ChatResponse, Chunk, NativeRequest, Opening
from aigateway.protocols.protocol import CallerProtocol, ReadRequest, ServerSentEvent

__all__ = ["MESSAGES"]


def _read(body: dict[str, Any], headers: Mapping[str, str]) -> ReadRequest:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise RequestRejectedError("messages must be a list.", param="messages")
    options = {"model": body.get("model"), "max_tokens": body.get("max_tokens")}
    native = NativeRequest("messages", body, headers)
    return ReadRequest(messages, options, native, bool(body.get("stream")))


def _write(response: ChatResponse, _request: ReadRequest) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "text", "text": response.text}]}


class _Events:
    def __init__(self, opening: Opening, request: ReadRequest, request_id: str) -> None:
        self._opening = opening

    def events(self, chunk: Chunk) -> Iterable[ServerSentEvent]:
        return ()

    def end(self, response: ChatResponse) -> Iterable[ServerSentEvent]:
        return ()


MESSAGES = CallerProtocol("messages", _read, _write, _Events)
