"""A stub of one vendor at its own host name, which leads to loopback here."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from aiohttp import web

from aigateway import LLMConfig
from aigateway.cli.vendors import recipe_of

Reply = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]
HOSTS = ("api.mistral.ai", "api.groq.com", "openrouter.ai", "api.deepseek.com", "localhost")


class VendorStub:
    """Answers every request by `reply`, and keeps what was asked."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.reply = reply
        self.asked: list[tuple[str, Mapping[str, str], Any]] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text.startswith("{") else text
        self.asked.append((request.path, request.headers, body))
        assert self.reply is not None
        return await self.reply(request, body)

    @property
    def body(self) -> Any:
        """The body of the last request."""
        return self.asked[-1][2]

    def config(self, name: str, **fields: Any) -> LLMConfig:
        """Return the vendor's recipe, as it is but for the port and the key."""
        table = {"api_key": f"key-of-{name}", **recipe_of(name).table}
        table.pop("api_key_env", None)
        if "api_base" in table:
            parts = urlsplit(table["api_base"])
            table["api_base"] = f"http://{parts.hostname}:{self.port}{parts.path}"
        return LLMConfig(**{**table, **fields})


def lead_to_loopback(monkeypatch: Any) -> None:
    """Let the vendors' names lead here, so that what depends on them is tested, too."""
    real = socket.getaddrinfo

    def found(host: Any, *given: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host in HOSTS else host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)


def always(body: Any, status: int = 200, **headers: str) -> Reply:
    """Reply with this body to every request."""

    async def reply(request: web.Request, asked: Any) -> web.StreamResponse:
        del request, asked
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return reply


def pieces(*parts: str | bytes, kind: str = "text/event-stream", pause: float = 0) -> Reply:
    """Reply with these pieces to every request."""

    async def reply(request: web.Request, asked: Any) -> web.StreamResponse:
        del asked
        response = web.StreamResponse(headers={"content-type": kind})
        await response.prepare(request)
        for part in parts:
            await response.write(part.encode() if isinstance(part, str) else part)
            await asyncio.sleep(pause)
        await response.write_eof()
        return response

    return reply


def answer(message: Any = "4", finish: str = "stop", **more: Any) -> dict[str, Any]:
    """Return a whole answer of OpenAI's form."""
    if isinstance(message, str):
        message = {"role": "assistant", "content": message}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {**_head("chat.completion"), "choices": [choice], "usage": usage, **more}


def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
    """Return an event of a stream of OpenAI's form."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return data({**_head("chat.completion.chunk"), "choices": [choice], **more})


def data(body: Any) -> str:
    """Return an event with this body."""
    return f"data: {json.dumps(body)}\n\n"


def _head(kind: str) -> dict[str, Any]:
    return {"id": "c", "object": kind, "created": 1, "model": "m"}


DONE = "data: [DONE]\n\n"
