"""Middleware behind the service: real HTTP on both sides, refusals, faults, each protocol."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from aigateway import ConfigurationError, Middleware, MiddlewareRefusedError, whole_words
from aigateway.server.process.configuration import read_configuration
from tests.processes import PATIENCE
from tests.server.services import served

SECRET = "the-prompts-own-words"
PATH = "/v1/chat/completions"


def hidden(text):
    return text.replace(SECRET, "***")


class Guard(Middleware):
    async def before(self, request):
        texts = str(request.messages)
        if "forbidden" in texts:
            raise MiddlewareRefusedError("Not that.", code="guarded", status=403)
        if "broken" in texts:
            raise ValueError(texts)
        return request.map_texts(hidden)

    async def before_embedding(self, request):
        return request.map_texts(hidden)

    async def after(self, request, response):
        return response.map_texts(hidden)

    async def stream(self, request, chunks):
        async for chunk in whole_words(chunks):
            if "poison" in chunk.text:
                raise MiddlewareRefusedError("Not this either.")
            yield chunk.map_texts(hidden)


@pytest.fixture
async def client(simulator):
    async with (
        served(simulator.openai, simulator.anthropic, middleware=[Guard]) as (service, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as made,
    ):
        made.gateway = service.gateway  # type: ignore[attr-defined]
        yield made


def body(text, **more):
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return [json.loads(line) for line in lines if line.startswith("{")]


def text_of(answer):
    deltas = [event["choices"][0]["delta"] for event in events(answer)]
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_the_vendor_and_the_caller_get_what_it_leaves(client, simulator):
    simulator.openai.answer(f"you said {SECRET} to me")
    whole = await client.post(PATH, json=body(SECRET))
    streamed = await client.post(PATH, json=body(f"{SECRET} again", stream=True))
    assert whole.json()["choices"][0]["message"]["content"] == "you said *** to me"
    assert text_of(streamed) == "you said *** to me"
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert SECRET not in whole.text + streamed.text
    assert [r.body["messages"][0]["content"] for r in simulator.openai.received] == [
        "***",
        "*** again",
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_its_status_and_no_vendor_is_asked(client, simulator, stream):
    answer = await client.post(PATH, json=body("forbidden", stream=stream))
    assert answer.status_code == 403
    error = {"message": "Not that.", "type": "invalid_request_error", "code": "guarded"}
    assert answer.json() == {"error": {**error, "param": None}}
    assert not simulator.openai.received


async def test_a_fault_is_the_services_and_shows_nothing(client, caplog):
    answer = await client.post(PATH, json=body(f"broken {SECRET}"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "middleware_failed"
    assert SECRET not in answer.text + caplog.text


async def test_a_refusal_in_the_middle_ends_the_stream_with_its_error(client, simulator):
    simulator.openai.answer("some good words and poison here")
    answer = await client.post(PATH, json=body("hi", stream=True))
    *content, last = events(answer)
    assert last["error"]["code"] == "middleware_refused"
    assert "poison" not in answer.text
    assert "[DONE]" not in answer.text
    assert content
    assert not simulator.anthropic.received
    assert all(provider.circuit_state.value == "closed" for provider in client.gateway.providers)


async def test_embeddings_pass_too(client, simulator):
    model = simulator.openai.embedding_model
    async with (
        served(simulator.openai, fields={"model": model}, middleware=[Guard]) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as other,
    ):
        answer = await other.post("/v1/embeddings", json={"model": model, "input": SECRET})
    assert answer.status_code == 200
    assert SECRET not in str(simulator.openai.received[-1].body)


# ── other protocols ──────────────────────────────────────────────────────────────────────────

DOORS = {
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 9},
    "/v1/responses": lambda text: {"input": text},
}


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
async def test_other_protocols_pass_it_also_as_they_are(simulator, path, vendor):
    asked = simulator.vendor(vendor)
    asked.answer(f"you said {SECRET} to me")
    async with (
        served(asked, middleware=[Guard]) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):

        async def ask(text, *, stream):
            body = {"model": "auto", "stream": stream, **DOORS[path](text)}
            return await client.post(path, json=body)

        for stream in (False, True):
            for text in (f"{SECRET} {stream}", f"nothing to hide, {stream}"):
                answer = await ask(text, stream=stream)
                assert answer.status_code == 200
                assert "***" in answer.text
                assert SECRET not in answer.text
            refused = await ask("forbidden", stream=stream)
            assert (refused.status_code, refused.json()["error"]["message"]) == (403, "Not that.")
        assert SECRET not in str([request.body for request in asked.received])
        asked.answer("some good words and poison here")
        ended = await ask("hi", stream=True)
        assert "Not this either." in ended.text
        assert "poison" not in ended.text
        broken = await ask(f"broken {SECRET}", stream=False)
        assert broken.status_code == 500
        assert SECRET not in broken.text


USER = {"role": "user", "content": "x"}
MCP = {"type": "mcp_tool_use", "id": "s1", "name": "f", "server_name": "x", "input": {"q": SECRET}}
TEXT = {"type": "text", "text": "x"}
UNSEEN: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown block": (
        "/v1/messages",
        {"messages": [{**USER, "content": [TEXT, {"type": "brandnew", "text": SECRET}]}]},
    ),
    "mcp block": (
        "/v1/messages",
        {"messages": [USER, {"role": "assistant", "content": [MCP, TEXT]}, USER]},
    ),
    "metadata": ("/v1/messages", {"messages": [USER], "metadata": {"user_id": SECRET}}),
    "unknown field": ("/v1/messages", {"messages": [USER], "brandnew": {"x": SECRET}}),
    "citation": (
        "/v1/messages",
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {**TEXT, "citations": [{"type": "char_location", "cited_text": SECRET}]}
                    ],
                },
                USER,
            ]
        },
    ),
    "prompt variables": (
        "/v1/responses",
        {"input": "x", "prompt": {"id": "p", "variables": {"x": SECRET}}},
    ),
    "mcp call": (
        "/v1/responses",
        {
            "input": [
                USER,
                {
                    "type": "mcp_call",
                    "id": "m",
                    "name": "n",
                    "server_label": "x",
                    "arguments": "{}",
                    "output": SECRET,
                },
                USER,
            ]
        },
    ),
    "reasoning": (
        "/v1/responses",
        {
            "input": [
                USER,
                {
                    "type": "reasoning",
                    "id": "r",
                    "summary": [{"type": "summary_text", "text": SECRET}],
                },
                USER,
            ]
        },
    ),
}


@pytest.mark.parametrize("reads", [False, True], ids=["a chat", "reads it"])
@pytest.mark.parametrize("path", DOORS)
async def test_what_it_does_not_see_does_not_pass(simulator, path, reads):
    class Strict(Middleware):
        async def before(self, request):
            if SECRET in str((request.messages, request.params)):
                raise MiddlewareRefusedError("Not that.", status=403)
            return request

    class Redact(Middleware):
        reads_native = True

        async def before(self, request):
            return request.map_texts(hidden)

    asked = simulator.anthropic if path == "/v1/messages" else simulator.openai
    named = {"model": "auto"} | ({"max_tokens": 9} if path == "/v1/messages" else {})
    async with (
        served(asked, middleware=[Redact if reads else Strict]) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        for what, (_, given) in ((w, g) for w, g in UNSEEN.items() if g[0] == path):
            for stream in (False, True):
                answer = await client.post(path, json={**named, **given, "stream": stream})
                assert answer.status_code in {200, 400, 403}, what
                assert SECRET not in str([request.body for request in asked.received]), what


# ── the configuration ────────────────────────────────────────────────────────────────────────


def test_the_service_does_not_start_with_one_that_cannot_work(simulator, monkeypatch):
    monkeypatch.setenv("AIGATEWAY_MIDDLEWARE", '["no_such_guards:Guard"]')
    with pytest.raises(ConfigurationError, match="no_such_guards:Guard"):
        read_configuration({}, [simulator.openai.config()])
