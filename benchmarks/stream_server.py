"""A loopback vendor that streams, quicker than any client reads, in a process of its own.

Every event is made beforehand and written by itself, as one HTTP chunk and one `send`, without a
pause unless the path asks for one: `/chunks-1000/...` streams a thousand pieces at once,
`/chunks-10-pause-20/...` ten of them, 20 ms apart and the first at once. The wire is told by the
rest of the path. There is no framework, which would be what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.server import NOT_FOUND, Connection

WORDS = (" The", " answer", " is", " of", " course", " four", ",", " as", " everybody", " knows")
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def text_of(chunks: int) -> str:
    """What a stream of so many pieces says."""
    return "".join(WORDS[index % len(WORDS)] for index in range(chunks))


def _event(body: dict[str, Any], name: str = "") -> bytes:
    text = json.dumps(body, separators=(",", ":"))
    return (f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n").encode()


# ── the wires, as the vendors write them ─────────────────────────────────────────────────────


def _openai(words: Sequence[str]) -> list[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**head, "choices": [choice], "usage": None})

    head = {
        "id": "chatcmpl-CJ5EGhWKMe9sWyrY4fvrrFv2xHeb5",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_560af6e559",
    }
    count = len(words)
    usage = {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": count + 20}
    return [
        event({"role": "assistant", "content": "", "refusal": None}),
        *(event({"content": word}) for word in words),
        event({}, "stop"),
        _event({**head, "choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    ]


def _anthropic(words: Sequence[str]) -> list[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, **fields}, kind)

    message = {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude-haiku-4-5",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": 1},
    }
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        event("message_start", message=message),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            for word in words
        ),
        event("content_block_stop", index=0),
        event("message_delta", delta=end, usage={"output_tokens": len(words)}),
        event("message_stop"),
    ]


def _responses(words: Sequence[str]) -> list[bytes]:
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    def response(status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": "resp_68c9f0",
            "object": "response",
            "created_at": 1760000000,
            "status": status,
            "model": "gpt-4o-mini-2024-07-18",
            "output": [],
            "usage": None,
            **fields,
        }

    def item(status: str, *content: dict[str, Any]) -> dict[str, Any]:
        head = {"id": name, "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": list(content)}

    name, text = "msg_68c9f1", "".join(words)
    place = {"item_id": name, "output_index": 0, "content_index": 0}
    begun = {"type": "output_text", "text": "", "annotations": []}
    said, done = {**begun, "text": text}, "response.output_item.done"
    whole = item("completed", said)
    count = len(words)
    usage = {"input_tokens": 20, "output_tokens": count, "total_tokens": count + 20}
    return [
        event("response.created", response=response("in_progress")),
        event("response.in_progress", response=response("in_progress")),
        event("response.output_item.added", output_index=0, item=item("in_progress")),
        event("response.content_part.added", **place, part=begun),
        *(event("response.output_text.delta", **place, delta=word) for word in words),
        event("response.output_text.done", **place, text=text),
        event("response.content_part.done", **place, part=said),
        event(done, output_index=0, item=whole),
        event("response.completed", response=response("completed", output=[whole], usage=usage)),
    ]


def _gemini(words: Sequence[str]) -> list[bytes]:
    def event(place: int, word: str) -> bytes:
        candidate: dict[str, Any] = {
            "content": {"parts": [{"text": word}], "role": "model"},
            "index": 0,
        }
        if place == len(words):
            candidate["finishReason"] = "STOP"
        usage = {
            "promptTokenCount": 20,
            "candidatesTokenCount": place,
            "totalTokenCount": place + 20,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}],
        }
        return _event(
            {
                "candidates": [candidate],
                "usageMetadata": usage,
                "modelVersion": "gemini-3.5-flash-lite",
                "responseId": "mAitaLmkHPPlz7IPvtfUqQ4",
            }
        )

    return [event(place, word) for place, word in enumerate(words, 1)]


_WIRES = {
    "messages": _anthropic,
    "gemini": _gemini,
    "openai": _openai,
    "responses": _responses,
}
_FIRST = {"messages": 4, "gemini": 1, "openai": 2, "responses": 5}
"""Events up to and with the first content."""


@functools.cache
def _script(wire: str, chunks: int) -> tuple[bytes, ...]:
    """The HTTP chunks of one stream. The first write is its head, and all up to the first content.

    The last is the last event and the end of the body: vendors do not wait between these two.
    """
    words = [WORDS[index % len(WORDS)] for index in range(chunks)]
    pieces = [b"%x\r\n%s\r\n" % (len(each), each) for each in _WIRES[wire](words)]
    first = _FIRST[wire]
    return (HEAD + b"".join(pieces[:first]), *pieces[first:-1], pieces[-1] + END)


# ── the connections ──────────────────────────────────────────────────────────────────────────

_PATH = re.compile(r"/chunks-(\d+)(?:-pause-(\d+))?(/.*)")


class _Streaming(Connection):
    """One client's connection: a request, its stream, the next request."""

    _task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # So that a client who reads slowly is no reason to join what was written apart.
        self.transport.set_write_buffer_limits(high=1 << 24)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        if self._task is not None:
            self._task.cancel()

    def asked(self, path: str) -> None:
        asked = _PATH.fullmatch(path)
        if asked is None:
            self.transport.write(NOT_FOUND)
            return
        script = _script(_wire(asked[3]), int(asked[1]))
        if asked[2] is None:
            for piece in script:
                self.transport.write(piece)
        else:
            self._task = asyncio.create_task(self._slowly(script, int(asked[2]) / 1000))

    async def _slowly(self, script: Sequence[bytes], pause: float) -> None:
        for piece in script[:-1]:
            self.transport.write(piece)
            await asyncio.sleep(pause)
        self.transport.write(script[-1])


def _wire(path: str) -> str:
    if path.endswith("/messages"):
        return "messages"
    if path.endswith("/responses"):
        return "responses"
    return "gemini" if ":streamGenerateContent" in path else "openai"


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Streaming, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"vendor": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # ends when the process that started this one does


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve())
    os._exit(0)
