"""Server-sent events of OpenAI's chat: chunks, errors, and comments during silence."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from aigateway.clock import Clock
from aigateway.errors import error_refusal
from aigateway.messages import (
    ChatResponse,
    Chunk,
    Opening,
    Usage,
    openai_beside,
    openai_delta,
    openai_usage,
)
from aigateway.wires.json_bodies import encoded

__all__ = ["DONE", "PING", "PING_SECONDS", "ChunkWriter", "error_event", "with_pings"]

PING_SECONDS = 15.0
"""Silence of a stream after which a comment is sent: proxies cut at 30 to 60 seconds."""

DONE = b"data: [DONE]\n\n"

PING = b": waiting\n\n"
"""A comment: readers of event streams skip it, and proxies see that the connection lives."""


def error_event(error: Exception) -> bytes:
    """Return the event with which a stream that has begun ends after an error."""
    return b"data: " + encoded(error_refusal(error).body) + b"\n\n"


async def with_pings(
    events: AsyncGenerator[bytes, None], ping: bytes, seconds: float, clock: Clock
) -> AsyncGenerator[bytes, None]:
    """Yield events, and a ping after each silence of some seconds."""
    context = contextvars.copy_context()  # one for all steps, as without the tasks
    async with contextlib.aclosing(events):
        while True:
            step = asyncio.create_task(_next(events), context=context)
            try:
                while not await _is_done(step, seconds, clock):
                    yield ping
                event = step.result()
            finally:
                if not step.done():
                    step.cancel()
                    await asyncio.wait((step,))
            if event is None:
                return
            yield event


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)


async def _is_done(step: asyncio.Task[Any], seconds: float, clock: Clock) -> bool:
    with contextlib.suppress(TimeoutError):
        async with clock.timeout(seconds):
            await asyncio.wait((step,))
    return step.done()


_MARK = "\0text\0"


def _is_plain(chunk: Chunk) -> bool:
    """Return whether a chunk is a piece of the first answer's text, and nothing else."""
    return bool(chunk.text) and not (
        chunk.index
        or chunk.tool_calls
        or chunk.reasoning
        or chunk.refusal
        or chunk.finish_reason is not None
        or chunk.usage is not None
        or chunk.restarted
        or chunk.images
        or chunk.audio
        or chunk.sources_json
        or chunk.thinking_json
        or chunk.thought_signatures
    )


class ChunkWriter:
    """Writes one stream's chunks as events.

    Args:
        opening: The beginning of the stream.
        request_id: The answer's id where its vendor gives none.
        now: Unix time in seconds, likewise.
        with_usage: Whether usage was asked for: OpenAI then adds a chunk without choices.
        whole: Returns the whole answer, once its content has been sent.
    """

    __slots__ = ("_begun", "_blocks", "_frame", "_head", "_whole", "_with_usage")

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
        self._blocks: dict[int, int] = {}
        self._frame: tuple[bytes, bytes] | None = None
        self._with_usage = with_usage
        self._whole = whole

    def events(self, chunk: Chunk) -> bytes:
        """Return one chunk, and after the last one usage if it was asked for."""
        if 0 in self._begun and _is_plain(chunk):
            before, after = self._frame or self._framed()
            return before + encoded(chunk.text) + after
        if chunk.usage is not None:
            self._head |= openai_beside(self._whole().completion)
        written = self._event([self._choice(chunk)], None, restarted=chunk.restarted)
        if chunk.usage is not None and self._with_usage:
            written += self._event([], chunk.usage)
        return written

    def _framed(self) -> tuple[bytes, bytes]:
        """Return what stands before and after the text of a plain chunk."""
        event = self._event([self._choice(Chunk(_MARK))], None)
        before, _, after = event.partition(encoded(_MARK))
        self._frame = before, after
        return self._frame

    def _event(
        self, choices: list[dict[str, Any]], usage: Usage | None, *, restarted: bool = False
    ) -> bytes:
        body: dict[str, Any] = {**self._head, "choices": choices}
        if restarted:  # only clients that have asked for it know this
            body["aigateway"] = {"restarted": True}
        if self._with_usage:
            body["usage"] = None if usage is None else openai_usage(usage)
        return b"data: " + encoded(body) + b"\n\n"

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        delta = openai_delta(chunk)
        for block in delta.get("thinking_blocks") or ():
            # OpenAI's SDK puts lists together by it.
            block["index"] = place = self._blocks.get(chunk.index, 0)
            self._blocks[chunk.index] = place + 1
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
        """Return those of the whole answer, with its end: chunks have none."""
        text = self._whole().choices[index].logprobs_json
        return None if text is None else json.loads(text)
