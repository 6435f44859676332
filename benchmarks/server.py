"""Two loopback vendors that answer at once, in a process of their own, and break on command.

Answers are made beforehand and written by a bare protocol, so that what is measured is the client.
Every upstream speaks the OpenAI, Anthropic and Gemini wires, told apart by the path. The process
prints its addresses as one line of JSON and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any, Self, cast

import aiohttp
import httptools
import uvloop
from aiohttp import web

from benchmarks.process import running

TEXT = "The answer is four. " * 5
NAMES = ("primary", "backup")
OPENAI = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "gpt-4o-mini",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 25, "total_tokens": 45},
}
ANTHROPIC = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 20, "output_tokens": 25},
}
RESPONSES = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1760000000,
    "status": "completed",
    "model": "gpt-4o-mini",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
        }
    ],
    "usage": {"input_tokens": 20, "output_tokens": 25, "total_tokens": 45},
}
GEMINI = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": TEXT}]},
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 25, "totalTokenCount": 45},
    "modelVersion": "gemini-3.5-flash-lite",
    "responseId": "r1",
}
BODIES = {
    name: json.dumps(body).encode()
    for name, body in globals().items()
    if name.isupper() and isinstance(body, dict)
}
MODELS = {
    "object": "list",
    "data": [
        {"id": name, "object": "model", "created": 1, "owned_by": "loopback"}
        for name in (OPENAI["model"], ANTHROPIC["model"])
    ],
}
"""Some gateways look it up before they lead a request anywhere."""


def http(body: object, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole answer, as it goes over the connection."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


ANSWERS = {name: http(body) for name, body in BODIES.items()}
LISTED = http(MODELS)
NOT_FOUND = http({"error": {"message": "no such path"}}, "404 Not Found")
FAILURES = {
    "500": http(
        {"error": {"message": "broken", "type": "server_error", "code": None}},
        "500 Internal Server Error",
    ),
    "429": http(
        {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}},
        "429 Too Many Requests",
        "Retry-After: 1\r\n",
    ),
}


TAIL = (0.02, 2.0)
"""In mode `tail`: the share of answers that are slow, and the seconds they take."""


HANG_SECONDS = 60.0


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other; their bodies are not looked at."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers are written to."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Parse what has come; the parser calls the three below."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._path = b""

    def on_url(self, url: bytes) -> None:
        """Add a piece of its path."""
        self._path += url

    def on_message_complete(self) -> None:
        """Answer what asks for models here; the rest is `asked`."""
        path = self._path.decode()
        if self._parser.get_method() == b"GET":
            self.transport.write(LISTED if path.endswith("/models") else NOT_FOUND)
        elif chat_only(path):
            self.transport.write(NOT_FOUND)
        else:
            self.asked(path)

    def asked(self, path: str) -> None:
        """Answer a request that has come whole."""
        raise NotImplementedError


class _Client(Connection):
    """A connection to one of the vendors below."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__()
        self._upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._upstream.connected.add(self.transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._upstream.connected.discard(self.transport)

    def asked(self, path: str) -> None:
        self._upstream.answer(self.transport, path)


class Upstream:
    """One vendor: a port, what it does now, and what it saw since that was last said."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.mode = "ok"
        self.delay = 0.0
        self.port = 0
        self.received = 0
        self.changed_at = 0.0
        self.first_answer: float | None = None
        self.connected: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None
        self._chance = random.Random()

    async def listen(self) -> None:
        """Open the port; the same one again after a refusal."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Client(self), "127.0.0.1", self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def set(self, mode: str, delay: float) -> None:
        """Behave so from now on, and count anew."""
        self.mode, self.delay = mode, delay
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
            for transport in list(self.connected):
                transport.abort()
        elif mode != "refuse" and self._server is None:
            await self.listen()
        self.received, self.first_answer = 0, None
        self._chance.seed(self._seed)  # so that each client meets the same slow answers
        self.changed_at = asyncio.get_running_loop().time()

    def state(self) -> dict[str, Any]:
        """Requests since the last change, and seconds from it to the first answer."""
        return {"received": self.received, "first_answer_seconds": self.first_answer}

    def answer(self, transport: asyncio.Transport, path: str) -> None:
        """Count a request, and answer it as the mode says."""
        self.received += 1
        if self.mode in FAILURES:
            transport.write(FAILURES[self.mode])
        elif self.mode == "reset":
            reset(transport)
        elif wait := self._wait():
            asyncio.get_running_loop().call_later(wait, self._write, transport, path)
        else:
            self._write(transport, path)

    def _wait(self) -> float:
        if self.mode == "hang":
            return HANG_SECONDS
        slow = self.mode == "tail" and self._chance.random() < TAIL[0]
        return TAIL[1] if slow else self.delay

    def _write(self, transport: asyncio.Transport, path: str) -> None:
        if transport.is_closing():
            return
        if self.first_answer is None:
            self.first_answer = asyncio.get_running_loop().time() - self.changed_at
        transport.write(ANSWERS[wire_of(path)])


def reset(transport: asyncio.Transport) -> None:
    """Close so that the peer sees a reset and not an end."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


CHAT_ONLY = "chat-only"
"""A folder of the address: a server there has no `/responses`."""


def chat_only(path: str) -> bool:
    return f"/{CHAT_ONLY}/" in path and not path.endswith("/chat/completions")


def wire_of(path: str) -> str:
    if path.endswith("/messages"):
        return "ANTHROPIC"
    if path.endswith("/responses"):
        return "RESPONSES"
    return "GEMINI" if path.endswith(":generateContent") else "OPENAI"


async def serve() -> None:
    upstreams = {name: Upstream(seed) for seed, name in enumerate(NAMES)}
    for upstream in upstreams.values():
        await upstream.listen()

    async def control(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            order = await request.json()
            await upstreams[order["name"]].set(order["mode"], order["delay"])
        return web.json_response({name: each.state() for name, each in upstreams.items()})

    loop = asyncio.get_running_loop()
    door = await loop.create_server(web.Server(control, access_log=None), "127.0.0.1", 0)
    ports = {name: upstream.port for name, upstream in upstreams.items()}
    print(json.dumps({**ports, "control": door.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # ends when the process that started this one does


class Servers:
    """The measuring side's handle on that process."""

    def __init__(self, ports: dict[str, int], session: aiohttp.ClientSession) -> None:
        self._control = f"http://127.0.0.1:{ports['control']}/"
        self._session = session
        self.roots = {name: f"http://127.0.0.1:{ports[name]}" for name in NAMES}

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls) -> AsyncIterator[Self]:
        """Run the process for as long as the context lasts."""
        with running("benchmarks.server") as ports:
            async with aiohttp.ClientSession() as session:
                yield cls(ports, session)

    async def set(self, name: str, mode: str = "ok", delay: float = 0.0) -> None:
        """Make an upstream behave so from now on: ok, 500, 429, refuse, reset, hang, tail."""
        order = {"name": name, "mode": mode, "delay": delay}
        async with self._session.post(self._control, json=order) as answer:
            answer.raise_for_status()

    async def state(self, name: str = "primary") -> dict[str, Any]:
        """What the upstream saw since it was last set."""
        async with self._session.get(self._control) as answer:
            return (await answer.json())[name]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve())
    os._exit(0)  # hanging requests are not waited for
