"""A thousand slow streams at once, on one worker with the settings that it has by itself."""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from tests.processes import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.proof]

MANY = 1000
PIECES = 6
"""Of each answer, and as many pauses."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for both ends of the streams that are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * MANY + 500
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def words_of(number: int) -> list[str]:
    return [f"caller {number}", *(f" says {number * place}" for place in range(1, PIECES))]


class Patient:
    """A vendor on OpenAI's wire who begins every stream, and ends none before all have begun."""

    def __init__(self) -> None:
        self.begun = 0
        self._all_have_begun = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = json.loads(await request.read())
        first, *others = words_of(int(asked["messages"][0]["content"]))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event(first))
        self.begun += 1
        if self.begun == MANY:
            self._all_have_begun.set()
        await self._all_have_begun.wait()
        for word in others:
            await asyncio.sleep(0.2)
            await response.write(event(word))
        await response.write(event("", "stop") + b"data: [DONE]\n\n")
        return response


def event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


async def streamed(client: aiohttp.ClientSession, url: str, number: int) -> tuple[str, str]:
    """What came of one stream: how it ended, and its text."""
    body = {"messages": [{"role": "user", "content": str(number)}], "stream": True}
    async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            return f"{answer.status} {await answer.text()}", ""
        raw = (await answer.read()).decode()
    lines = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    errors = [str(chunk["error"]) for chunk in chunks if "error" in chunk]
    text = "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk.get("choices", ())
    )
    return errors[0] if errors else lines[-1], text


async def test_each_of_a_thousand_slow_streams_is_whole(start, many_descriptors):
    vendor = Patient()
    async with RawTestServer(vendor.answer) as server:
        service = start(
            toml=f"[gateway]\ntimeout = {PATIENCE}\nattempt_timeout = {PATIENCE}\n"
            f"first_token_timeout = {PATIENCE}\nidle_timeout = {PATIENCE}\n"
            f"[server]\nrequest_timeout = {PATIENCE}\n"
            '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "k"\n'
            f'api_base = "{server.make_url("/v1")}"\n'
        )
        url = await asyncio.to_thread(lambda: service.url)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        ) as client:
            answers = await asyncio.gather(
                *(streamed(client, url, number) for number in range(MANY))
            )
    assert Counter(end for end, _ in answers) == {"[DONE]": MANY}
    assert [text for _, text in answers] == ["".join(words_of(number)) for number in range(MANY)]
    assert vendor.begun == MANY
    assert "descriptors.few" not in service.log
