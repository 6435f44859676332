"""Two keys and too few places, over real HTTP on both sides: one floods, the other gets its turn.

The vendor answers when it is told to, so that what counts is the order in which it is asked, and
no time that a loaded machine could make longer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import resource
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from aigateway import AsyncGateway, LLMConfig
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer
from tests.server.running import running

FLOOD = 1500


@pytest.fixture(autouse=True)
def many_descriptors():
    """Room for both ends of the connections that are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * FLOOD + 500
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Vendor:
    """Speaks OpenAI's wire, notes who asks, and answers one call for each `answer_one`."""

    def __init__(self):
        self.asked = []
        self._arrived = asyncio.Event()
        self._out: collections.deque[asyncio.Future[None]] = collections.deque()

    async def handle(self, request):
        body = await request.json()
        is_embedding = "input" in body
        self.asked.append(body["input"][0] if is_embedding else body["messages"][0]["content"])
        self._arrived.set()
        answered = asyncio.get_running_loop().create_future()
        self._out.append(answered)
        await answered
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if is_embedding:
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            answer: dict[str, Any] = {"object": "list", "data": data, "model": "m", "usage": usage}
        else:
            message = {"role": "assistant", "content": "ok"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            answer |= {"choices": [choice], "usage": usage}
        return web.json_response(answer)

    async def was_asked(self, times):
        while len(self.asked) < times:
            self._arrived.clear()
            await self._arrived.wait()

    def answer(self):
        """Answer the call that is out for longest."""
        self._out.popleft().set_result(None)

    async def answer_one(self):
        """Likewise, and wait for the one that takes its place; says whose that is."""
        before = len(self.asked)
        self.answer()
        await self.was_asked(before + 1)
        return self.asked[-1]


class Scene:
    def __init__(self, vendor, gateway, url, session):
        self.vendor = vendor
        self.gateway = gateway
        self._url = url
        self._session = session
        self.tasks = []

    def ask(self, key, *, embed=False):
        async def ask():
            path = "/v1/embeddings" if embed else "/v1/chat/completions"
            messages = [{"role": "user", "content": key}]
            body = {"model": "m", **({"input": key} if embed else {"messages": messages})}
            headers = bearer(key) | {"x-aigateway-cache": "false"}
            async with self._session.post(self._url + path, json=body, headers=headers) as answer:
                return answer.status, await answer.json()

        self.tasks.append(asyncio.create_task(ask()))
        return self.tasks[-1]

    async def queue_is(self, length):
        async with asyncio.timeout(PATIENCE):
            while self.gateway.get_metrics()["waiting"] != length:  # noqa: ASYNC110 - none is told
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def scene(**settings):
    vendor = Vendor()
    async with RawTestServer(vendor.handle) as server:
        config = LLMConfig(
            provider="openai_compatible",
            model="m",
            api_key="sk-vendor",
            api_base=f"http://127.0.0.1:{server.port}/v1",
        )
        settings = {"timeout": 600, "attempt_timeout": 600, "hedge": False} | settings
        keys = (api_key("red"), api_key("blue"))
        async with AsyncGateway([config], **settings) as gateway:
            await gateway.warmup()
            service = Service(gateway, ServerSettings(keys=keys, request_timeout=900))
            connector = aiohttp.TCPConnector(limit=0)
            async with (
                running(service) as url,
                aiohttp.ClientSession(connector=connector) as session,
            ):
                made = Scene(vendor, gateway, url, session)
                try:
                    yield made
                finally:
                    for task in made.tasks:
                        task.cancel()
                    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_a_flood_of_one_key_holds_another_up_for_one_place_at_most():
    places = 4
    async with scene(max_concurrency=places) as here:
        for _ in range(FLOOD):
            here.ask("red")
        await here.queue_is(FLOOD - places)
        await here.vendor.was_asked(places)
        await here.vendor.answer_one()
        waiting = FLOOD - places - 1
        for number in range(20):
            mine = here.ask("blue", embed=number % 2 == 1)
            await here.queue_is(waiting + 1)
            # The very next free place is this key's, though 1,400 of the other came before it.
            assert await here.vendor.answer_one() == "blue"
            for _ in range(places):
                assert await here.vendor.answer_one() == "red"
            status, _ = await mine
            assert status == 200
            waiting -= places


async def test_a_queue_filled_by_one_key_has_room_for_another():
    async with scene(max_concurrency=1, max_queue=40) as here:
        red = [here.ask("red") for _ in range(60)]
        await here.queue_is(40)
        await here.vendor.was_asked(1)
        async with asyncio.timeout(PATIENCE):
            while sum(task.done() for task in red) < 19:  # noqa: ASYNC110 - none is told
                await asyncio.sleep(0.01)
        blue = [here.ask("blue") for _ in range(20)]
        refused = 19
        async with asyncio.timeout(PATIENCE):
            while sum(task.done() for task in red) < refused + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for task in red:
            if task.done():
                status, body = await task
                assert (status, body["error"]["code"]) == (503, "overloaded")
        order = [await here.vendor.answer_one() for _ in range(40)]
        assert order == ["red", "blue"] * 20
        here.vendor.answer()
        assert [status for status, _ in await asyncio.gather(*blue)] == [200] * 20
