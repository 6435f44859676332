"""Requests a real vendor would refuse, and the words it would use."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigateway.simulator import Simulator
from aigateway.simulator.listener import MAX_BODY_BYTES

USER = [{"role": "user", "content": "hi"}]


def error_of(wire: str, body: Any) -> Any:
    """Checks the form of the error and returns its inside."""
    error = body["error"]
    match wire:
        case "anthropic":
            assert body["type"] == "error"
            assert body["request_id"].startswith("req_")
            assert error.keys() == {"type", "message"}
        case "gemini":
            assert error.keys() >= {"code", "message", "status"}
        case "azure":
            assert error.keys() >= {"code", "message"}
        case _:
            assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


async def test_a_missing_key(vendor, ask):
    body = {"model": "m", "max_tokens": 5, "messages": USER}
    paths = {
        "azure": "/openai/deployments/d/chat/completions?api-version=1",
        "gemini": "/v1beta/models/m:generateContent",
        "anthropic": "/v1/messages",
    }
    headers = {"anthropic-version": "2023-06-01"}
    path = paths.get(vendor.wire, "/v1/chat/completions")
    reply = await ask.post(vendor, path, body, headers=headers)
    assert reply.status == (403 if vendor.wire == "gemini" else 401)
    error_of(vendor.wire, reply.json)


async def test_a_wrong_key_where_keys_are_checked(vendor, ask):
    vendor.keys = frozenset({vendor.key})
    reply = await ask.chat(vendor)
    error = error_of(vendor.wire, reply.json)
    if vendor.wire == "gemini":
        assert reply.status == 400
        assert error["details"][0]["reason"] == "API_KEY_INVALID"
    else:
        assert reply.status == 401


@pytest.mark.parametrize("path", ["/", "/chat/completions", "/v1/nothing", "/v1beta/models/m:cook"])
async def test_a_wrong_path(vendor, ask, path):
    reply = await ask.post(vendor, path, {"contents": [{"parts": [{"text": "a"}]}]})
    assert reply.status == 404
    error_of(vendor.wire, reply.json)


async def test_a_wrong_method(sim: Simulator, ask):
    assert (await ask.get(sim.openai, "/v1/chat/completions")).status == 405
    assert (await ask.get(sim.anthropic, "/v1/messages")).status == 405


async def test_azure_wants_an_api_version(sim: Simulator, ask):
    path = "/openai/deployments/d/chat/completions"
    assert (await ask.post(sim.azure, path, {"messages": USER})).status == 404


async def test_anthropic_wants_its_version_header(sim: Simulator, ask):
    body = {"model": "m", "max_tokens": 5, "messages": USER}
    reply = await ask.post(sim.anthropic, "/v1/messages", body, headers={"x-api-key": "k"})
    assert reply.status == 400
    assert "anthropic-version" in reply.json["error"]["message"]


async def test_anthropic_wants_max_tokens(sim: Simulator, ask):
    reply = await ask.post(sim.anthropic, "/v1/messages", {"model": "m", "messages": USER})
    assert reply.status == 400
    assert reply.json["error"] == {
        "type": "invalid_request_error",
        "message": "max_tokens: Field required",
    }


async def test_no_messages(vendor, ask):
    name = "contents" if vendor.wire == "gemini" else "messages"
    nothings: list[Any] = [[], None, "text"]
    for nothing in nothings:
        reply = await ask.chat(vendor, **{name: nothing})
        assert reply.status == 400
        error_of(vendor.wire, reply.json)


async def test_an_unknown_role(vendor, ask):
    if vendor.wire == "gemini":
        reply = await ask.chat(vendor, contents=[{"role": "robot", "parts": [{"text": "a"}]}])
    else:
        reply = await ask.chat(vendor, messages=[{"role": "robot", "content": "a"}])
    assert reply.status == 400
    assert "role" in error_of(vendor.wire, reply.json)["message"] or "robot" in reply.raw.decode()


async def test_openai_names_the_parameter(sim: Simulator, ask):
    reply = await ask.chat(sim.openai, messages=[*USER, {"role": "robot", "content": "a"}])
    assert reply.json["error"]["param"] == "messages[1].role"
    reply = await ask.chat(sim.openai, temperature=3)
    assert reply.json["error"]["param"] == "temperature"
    reply = await ask.chat(sim.openai, n="two")
    assert reply.json["error"]["param"] == "n"
    reply = await ask.chat(sim.openai, response_format={"type": "object", "properties": {}})
    assert reply.json["error"]["param"] == "response_format.type"


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": None},
        {"messages": ["hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"stream_options": {"include_usage": True}},
        {"tools": [], "tool_choice": "required"},
    ],
)
async def test_more_that_openai_refuses(sim: Simulator, ask, wrong):
    assert (await ask.chat(sim.openai, **wrong)).status == 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": None}]},
        {"max_tokens": 0},
        {"temperature": 1.5},
    ],
)
async def test_more_that_anthropic_refuses(sim: Simulator, ask, wrong):
    assert (await ask.chat(sim.anthropic, **wrong)).status == 400


@pytest.mark.parametrize("wrong", [{"temperature": 1}, {"contents": [{"role": "user"}]}])
async def test_more_that_gemini_refuses(sim: Simulator, ask, wrong):
    assert (await ask.chat(sim.gemini, **wrong)).status == 400


async def test_gemini_takes_both_spellings(sim: Simulator, ask):
    more = {"generation_config": {"max_output_tokens": 1}}
    reply = await ask.chat(sim.gemini, "a b", **more)
    assert reply.json["candidates"][0]["finishReason"] == "MAX_TOKENS"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"nonsense"])
async def test_broken_json(vendor, ask, body):
    path = {
        "azure": "/openai/deployments/d/chat/completions?api-version=1",
        "gemini": "/v1beta/models/m:generateContent",
        "anthropic": "/v1/messages",
    }.get(vendor.wire, "/v1/chat/completions")
    reply = await ask.post(vendor, path, body)
    assert reply.status == 400
    error_of(vendor.wire, reply.json)


async def test_a_big_body_is_taken(sim: Simulator, ask):
    reply = await ask.chat(sim.openai, "x" * 5_000_000, max_tokens=1)
    assert reply.status == 200


async def test_a_body_over_the_limit_is_too_large(sim: Simulator, ask):
    reply = await ask.post(sim.anthropic, "/v1/messages", b" " * (MAX_BODY_BYTES + 1))
    assert reply.status == 413
    assert reply.json["error"]["type"] == "request_too_large"


@pytest.mark.parametrize(
    ("wire", "model", "status"),
    [
        ("openai", "gpt-4o-mini", 403),
        ("openai", "text-embedding-3-small", 200),
        ("openai", "gpt-embed", 200),
        ("openai", "mine", 200),
        ("azure", "gpt-4o-mini", 400),
        ("azure", "mine", 200),
        ("gemini", "gemini-3.5-flash-lite", 404),
        ("gemini", "gemini-embedding-001", 200),
    ],
)
async def test_embeddings_asked_of_a_model_that_chats(sim: Simulator, ask, wire, model, status):
    body: dict[str, Any] = {"model": model, "input": "a"}
    path = "/v1/embeddings"
    if wire == "azure":
        path = f"/openai/deployments/{model}/embeddings?api-version=1"
    if wire == "gemini":
        path, body = f"/v1beta/models/{model}:embedContent", {"content": {"parts": [{"text": "a"}]}}
    assert (await ask.post(getattr(sim, wire), path, body)).status == status


async def test_compatible_servers_embed_with_any_model(sim: Simulator, ask):
    vendor = await sim.add("openai_compatible")
    body = {"model": "gpt-oss", "input": "a"}
    assert (await ask.post(vendor, "/v1/embeddings", body)).status == 200


async def test_a_chat_asked_of_a_model_that_embeds(vendor, ask):
    model = vendor.embedding_model
    body = {"model": model, "max_tokens": 5, "messages": USER}
    paths = {
        "azure": f"/openai/deployments/{model}/chat/completions?api-version=1",
        "gemini": f"/v1beta/models/{model}:generateContent",
        "anthropic": "/v1/messages",
    }
    if vendor.wire == "gemini":
        body = {"contents": [{"parts": [{"text": "a"}]}]}
    reply = await ask.post(vendor, paths.get(vendor.wire, "/v1/chat/completions"), body)
    assert reply.status == (400 if vendor.wire == "azure" else 404)
    error_of(vendor.wire, reply.json)


FILES: dict[str, Any] = {
    "openai": {"type": "file", "file": {"file_id": "file-1"}},
    "anthropic": {"type": "document", "source": {"type": "file", "file_id": "file-1"}},
    "gemini": {"fileData": {"fileUri": "https://h/v1beta/files/file-1"}},
}


async def test_a_file_that_is_not_there(vendor, ask):
    part = FILES.get(vendor.wire, FILES["openai"])
    text = {"text": "a"} if vendor.wire == "gemini" else {"type": "text", "text": "a"}
    more: dict[str, Any] = {"messages": [{"role": "user", "content": [text, part]}]}
    if vendor.wire == "gemini":
        more = {"contents": [{"role": "user", "parts": [text, part]}]}
    reply = await ask.chat(vendor, **more)
    assert reply.status == (403 if vendor.wire == "gemini" else 404)
    error_of(vendor.wire, reply.json)
    vendor.files = frozenset({"file-1"})
    assert (await ask.chat(vendor, **more)).status == 200


async def test_a_page_of_the_web_is_no_file_of_the_vendors(sim: Simulator, ask):
    part = {"fileData": {"fileUri": "https://www.youtube.com/watch?v=1"}}
    contents = [{"role": "user", "parts": [{"text": "a"}, part]}]
    assert (await ask.chat(sim.gemini, contents=contents)).status == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "parts", "text", "type", "function", "name", "file_id", "file"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
NAMES = {
    "gemini": ["contents", "tools", "toolConfig", "generationConfig", "systemInstruction"],
    "anthropic": ["messages", "tools", "tool_choice", "output_format", "stream", "max_tokens"],
}
COMMON = ["messages", "tools", "tool_choice", "response_format", "n", "stop", "stream_options"]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_no_body_breaks_the_server(vendor, ask, data):
    names = st.sampled_from(NAMES.get(vendor.wire, COMMON))
    wrong = data.draw(st.dictionaries(names, JSON, min_size=1, max_size=2))
    reply = await ask.chat(vendor, **wrong)
    assert reply.status in {200, 400, 404}, (json.dumps(wrong), reply)
