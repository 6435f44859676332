"""A caller who does not read what he asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import httpx
import uvicorn
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from uvicorn.server import ServerState

from aigateway import AsyncGateway, LLMConfig
from aigateway.server.http.app import service_app
from aigateway.server.http.connections import protocol_for
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from tests.gateways import until
from tests.processes import PATIENCE
from tests.server.callers import scripted_service
from tests.server.running import running

STALL = 0.3
ASKED = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
JSON = {"content-type": "application/json"}
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(ASKED), ASKED)
)


def event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


class Talker:
    """A vendor on OpenAI's wire who says more than the buffers on the way hold."""

    def __init__(self) -> None:
        self.talking = 0
        self.pieces = 10**9

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        self.talking += 1
        try:
            await response.prepare(request)
            for _ in range(self.pieces):
                await response.write(event("x" * 50_000))
            await response.write(event("", "stop") + b"data: [DONE]\n\n")
        finally:
            self.talking -= 1
        return response


@contextlib.asynccontextmanager
async def talked_to(talker: Talker) -> AsyncIterator[tuple[Service, str]]:
    async with RawTestServer(talker.answer) as vendor:
        config = LLMConfig(
            "openai", "m", name="a", api_key="k", api_base=str(vendor.make_url("/v1"))
        )
        async with AsyncGateway([config], retry_rounds=0) as gateway:
            await gateway.warmup()
            service = Service(gateway, ServerSettings())
            async with running(service, stall_seconds=STALL) as url:
                yield service, url


@contextlib.contextmanager
def caller(url: str) -> Iterator[socket.socket]:
    """A connection with small buffers, which has asked for a stream."""
    parts = urlsplit(url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((parts.hostname, parts.port))
        line.setblocking(False)
        line.send(REQUEST)
        yield line


async def test_who_takes_nothing_is_cut_off_and_the_vendor_is_let_go():
    talker = Talker()
    async with talked_to(talker) as (service, url):
        with caller(url) as line:
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(line, 12)) == b"HTTP/1.1 200"
            assert talker.talking == 1
            await until(lambda: not talker.talking)
            await until(lambda: service.gateway.providers[0].in_flight == 0)
        counted = service.gateway.get_metrics()["providers"]["a"]
        assert counted["failures"] == {"cancelled": 1}
        assert counted["consecutive_failures"] == 0
        assert not service._uses


async def test_who_reads_slowly_gets_all_of_it():
    talker = Talker()
    talker.pieces = 40
    async with talked_to(talker) as (_, url), httpx.AsyncClient(timeout=PATIENCE) as client:
        loop = asyncio.get_running_loop()
        began, came = loop.time(), b""
        async with client.stream(
            "POST", f"{url}/v1/chat/completions", content=ASKED, headers=JSON
        ) as answer:
            async for piece in answer.aiter_raw(100_000):
                came += piece
                await asyncio.sleep(0.02)
        assert loop.time() - began > STALL
    assert came.count(b"x" * 50_000) == 40
    assert came.endswith(b"data: [DONE]\n\n")


class Line(asyncio.Transport):
    """A connection of which the system takes so much, and so much, and then nothing."""

    def __init__(self, *waiting: int) -> None:
        super().__init__()
        self.waiting = list(waiting)
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.waiting.pop(0)

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        pass


async def test_it_is_only_cut_off_when_nothing_more_is_taken():
    async with scripted_service() as service:
        config = uvicorn.Config(service_app(service), log_config=None)
        make = protocol_for(service, stall_seconds=0.02)
        protocol = make(config, ServerState(), {}, asyncio.get_running_loop())
        line = Line(100, 80, 50, 50, 10)
        protocol.connection_made(line)
        protocol.pause_writing()
        await line.aborted.wait()
        assert line.waiting == [10]
        protocol.connection_lost(None)
