"""Pieces of an answer as OpenAI streams them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from aigateway.messages import (
    TOOL_INPUTS,
    ChatResponse,
    Chunk,
    Opening,
    ToolCallDelta,
    Usage,
    openai_beside,
    openai_media,
    openai_signature,
    openai_usage,
)
from aigateway.server.http.errors import Refusal
from aigateway.server.http.responses import encoded

__all__ = ["DONE", "PING", "ChunkWriter", "error_event"]

DONE = b"data: [DONE]\n\n"
"""After the last chunk of a whole answer."""

PING = b": waiting\n\n"
"""A comment: readers of event streams pass over it, and what lies between sees that it lives."""


class ChunkWriter:
    """Writes one stream's chunks as events.

    Args:
        opening: Whose they are.
        request_id: Names the answer where its vendor names none.
        now: Unix time in seconds, likewise.
        with_usage: Whether usage was asked for: OpenAI then adds a chunk without choices.
        whole: Gives the whole answer, once its content is through.
    """

    __slots__ = ("_begun", "_blocks", "_head", "_whole", "_with_usage")

    def __init__(
        self,
        opening: Opening,
        request_id: str,
        now: float,
        *,
        with_usage: bool,
        whole: Callable[[], ChatResponse],
    ) -> None:
        self._head = {
            "id": opening.id or f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": opening.created or int(now),
            "model": opening.model,
        }
        self._begun: set[int] = set()
        self._blocks: Counter[int] = Counter()
        self._with_usage = with_usage
        self._whole = whole

    def events(self, chunk: Chunk) -> bytes:
        """One chunk, and after the very last one usage if it was asked for."""
        if chunk.usage is not None:
            self._head |= openai_beside(self._whole().completion)
        written = self._event([self._choice(chunk)], None, restarted=chunk.restarted)
        if chunk.usage is not None and self._with_usage:
            written += self._event([], chunk.usage)
        return written

    def _event(
        self, choices: list[dict[str, Any]], usage: Usage | None, *, restarted: bool = False
    ) -> bytes:
        body: dict[str, Any] = {**self._head, "choices": choices}
        if restarted:  # no client knows this but those that have asked for it
            body["aigateway"] = {"restarted": True}
        if self._with_usage:
            body["usage"] = None if usage is None else openai_usage(usage)
        return b"data: " + encoded(body) + b"\n\n"

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        delta = _delta(chunk)
        for block in delta.get("thinking_blocks") or ():
            # OpenAI's SDK puts lists together by it.
            block["index"] = self._blocks[chunk.index]
            self._blocks[chunk.index] += 1
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            delta = {"role": "assistant", "content": None if chunk.tool_calls else "", **delta}
        return {
            "index": chunk.index,
            "delta": delta,
            "logprobs": None if chunk.finish_reason is None else self._logprobs(chunk.index),
            "finish_reason": chunk.finish_reason,
        }

    def _logprobs(self, index: int) -> Any:
        """Those of the whole answer, with its end: they are not known piece by piece."""
        text = self._whole().choices[index].logprobs_json
        return None if text is None else json.loads(text)


def error_event(refusal: Refusal) -> bytes:
    """How a stream says that it broke."""
    return b"data: " + encoded(refusal.body) + b"\n\n"


def _delta(chunk: Chunk) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if (
        chunk.images
        or chunk.audio
        or chunk.sources_json
        or chunk.thinking_json
        or chunk.thought_signatures
    ):
        delta.update(openai_media(chunk))
    if chunk.refusal:
        delta["refusal"] = chunk.refusal
    if chunk.tool_calls:
        delta["tool_calls"] = [_tool_call(call) for call in chunk.tool_calls]
    return delta


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    """A piece of a tool call. Clients join what they are given, so nothing empty is said."""
    named = {"name": call.name} if call.name else {}
    begun = {"id": call.id, "type": call.type} if call.id else {}
    piece = {**named, TOOL_INPUTS[call.type]: call.arguments}
    return {"index": call.index, **begun, call.type: piece, **openai_signature(call)}
