"""The recipe for FastAPI in `docs/guides/streams.md`, under uvicorn, with vendors that break."""

import asyncio
import contextlib
import json
import types

import httpx
import pytest
import pytest_asyncio
import uvicorn

from aigateway.simulator import Answer, Fault, Simulator
from tests.docs.pages import blocks
from tests.gateways import until
from tests.processes import PATIENCE
from tests.server.browsing import browser, visiting

__all__ = ["browser"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "docs/guides/streams.md"


class Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield  # they are pytest's


@contextlib.asynccontextmanager
async def serving(app):
    """Run an application under uvicorn; yields a client of it."""
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5)
    server = Quiet(config)
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or running.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await running


@pytest_asyncio.fixture(loop_scope="module")
async def client(monkeypatch):
    """A client of the recipe's application, whose only vendor is the simulated OpenAI."""
    monkeypatch.setenv("AIGATEWAY_RETRY_ROUNDS", "0")
    (recipe,) = [block for block in blocks("python", PAGE) if "FastAPI" in block.text]
    module = types.ModuleType("app")
    exec(compile(recipe.text, str(recipe), "exec", dont_inherit=True), module.__dict__)
    async with Simulator() as simulator:
        monkeypatch.setenv("OPENAI_API_KEY", simulator.openai.key)
        monkeypatch.setenv("OPENAI_BASE_URL", simulator.openai.api_base)
        async with serving(module.app) as client:
            client.vendor = simulator.openai
            yield client


async def test_the_recipe_streams_and_refuses_before_any_header(client):
    client.vendor.answer(Answer(text="Once upon a time."))
    answer = await client.post("/chat", json={"prompt": "A tale."})
    *events, done = answer.text.removesuffix("\n\n").split("\n\n")
    assert (answer.status_code, done) == (200, "data: [DONE]")
    assert answer.headers["content-type"].startswith("text/event-stream")
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "Once upon a time."

    client.vendor.behave(Fault.reset())  # a dead vendor
    answer = await client.post("/chat", json={"prompt": "Another tale."})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "all_providers_failed"

    answer = await client.post("/chat", json={"prompt": ""})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_break_is_an_event_and_a_user_who_leaves_frees_the_vendor(client):
    vendor = client.vendor
    vendor.answer(Answer(text="one two three four"))
    vendor.behave(Fault.cut_stream(after=2))
    answer = await client.post("/chat", json={"prompt": "A tale."})
    last = answer.text.removesuffix("\n\n").split("\n\n")[-1]
    assert answer.status_code == 200
    assert json.loads(last[6:])["error"]["code"] == "stream_interrupted"

    vendor.behave(Fault.stall_stream(after=1))
    async with client.stream("POST", "/chat", json={"prompt": "A longer tale."}) as answer:
        assert "data: " in await anext(answer.aiter_lines())
        assert vendor.open_connections == 1
    await until(lambda: vendor.open_connections == 0)


async def test_the_pages_script_shows_what_comes_and_says_what_fails(client, browser):
    (script,) = blocks("js", PAGE)
    ask = f"""prompt => {{
        let shown = "";
        {script.text}
        return ask(prompt, text => {{ shown += text; }})
            .then(() => shown, error => shown + "|" + error.message);
    }}"""
    vendor = client.vendor
    vendor.answer(Answer(text="Grüße, one two three."))
    async with visiting(browser, str(client.base_url.join("/openapi.json"))) as visit:
        assert await visit.page.evaluate(ask, "A tale.") == "Grüße, one two three."
        vendor.behave(Fault.cut_stream(after=2))
        shown, _, error = (await visit.page.evaluate(ask, "Another.")).partition("|")
        assert shown
        assert "broke after its first content" in error
        vendor.behave(Fault.reset())
        shown, _, error = (await visit.page.evaluate(ask, "A third.")).partition("|")
        assert (shown, error.startswith("All LLM providers failed")) == ("", True)
