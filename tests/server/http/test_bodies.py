"""Bodies that make no sense: refused in words, and no vendor is asked."""

from __future__ import annotations

import json

import httpx
import orjson
import pytest

from aigateway.testing import ScriptedVendor
from tests.processes import PATIENCE
from tests.server.services import scripted

JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "Hi."}
CHAT: dict[str, object] = {"message": "Hi."}
COMPLETION: dict[str, object] = {"messages": [USER], "model": "auto"}
EMBEDDING: dict[str, object] = {"input": "a", "model": "auto"}
ENDPOINTS: dict[str, dict[str, object]] = {
    "/chat": CHAT,
    "/v1/chat/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
}


@pytest.fixture
async def ask():
    """Send a body, which must be refused without a call to a vendor."""
    vendor = ScriptedVendor()
    async with (
        scripted(vendor) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):

        async def send(path, body, status=400, headers=JSON):
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            answer = await client.post(path, content=content, headers=headers)
            assert answer.status_code == status, (body, answer.text)
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
            return error

        yield send
    assert not vendor.calls


NO_OBJECTS = (
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b"5",
    b'"text"',
    b'{"message": NaN}',
    b'{"message": "\xff"}',
    b'{"message": "\\ud800"}',
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf" * 2 + b"{}",
    b"\xef\xbb\xbf[]",
    b"\xff\xfe{\x00}\x00",
    b"[" * 100_000,
    b'{"messages":' * 5000,
)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_what_is_no_json_object(ask, path):
    for body in NO_OBJECTS:
        assert "JSON object" in (await ask(path, body))["message"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("length", [0, 70_000])
async def test_a_byte_order_mark_is_ignored(path, length):
    """RFC 8259, 8.1."""
    async with (
        scripted(ScriptedVendor()) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        content = b"\xef\xbb\xbf" + orjson.dumps(ENDPOINTS[path]) + b" " * length
        assert (await client.post(path, content=content, headers=JSON)).status_code == 200


NO_JSON: tuple[dict[str, str], ...] = (
    {},
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": "multipart/form-data; boundary=x"},
    {**JSON, "content-encoding": "gzip"},
)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_what_is_not_said_to_be_json(ask, path):
    for headers in NO_JSON:
        await ask(path, ENDPOINTS[path], 415, headers)


NOT_THE_CALLERS = (
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "custom_llm_provider",
    "extra_body",
    "extra_headers",
    "fallbacks",
    "headers",
    "hedge",
    "max_retries",
    "mock_response",
    "model_list",
    "num_retries",
    "origin",
    "request_timeout",
    "stream_timeout",
)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_nothing_says_where_a_request_goes(ask, path):
    for name in NOT_THE_CALLERS:
        for value in ("x", None, {"a": "b"}):
            error = await ask(path, {**ENDPOINTS[path], name: value})
            assert error["param"] == name
            assert error["code"] == "unknown_parameter"


async def test_options_of_the_gateway_are_headers_in_openais_api(ask):
    for name in ("agent", "cache", "cache_ttl", "timeout"):
        error = await ask("/v1/chat/completions", {**COMPLETION, name: 1})
        assert f"x-aigateway-{name.replace('_', '-')}" in error["message"]


WRONG: tuple[tuple[dict[str, object], str], ...] = (
    ({"messages": "Hi."}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [USER, {"role": "nobody", "content": "a"}]}, "messages[1]"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text",
    ),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]"),
    ({"messages": [{"role": "assistant"}]}, "messages[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ({"model": 5}, "model"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"stop": [1]}, "stop[0]"),
    ({"seed": "x"}, "seed"),
    ({"seed": 10**30}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": ""}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"logit_bias": {"5": "much"}}, "logit_bias.5"),
    ({"metadata": 5}, "metadata"),
    ({"temprature": 1}, "temprature"),
)


async def test_wrong_types_are_named_with_their_place(ask):
    for change, param in WRONG:
        # The standard library writes numbers that orjson does not.
        error = await ask("/v1/chat/completions", json.dumps({**COMPLETION, **change}).encode())
        assert error["param"] == param, change


NO_CHATS: tuple[dict[str, object], ...] = (
    {},
    {"message": ""},
    {"message": " "},
    {"message": 5},
    {"message": "a", "messages": [USER]},
    {"message": None},
    {"messages": [USER], "system": "both"},
    {"message": "a", "stream": True},
    {"message": "a", "n": 2},
    {"message": "a", "cache": "sometimes"},
    {"message": "a", "timeout": 0},
    {"message": "a", "timeout": "5"},
    {"message": "a", "cache_ttl": -1},
    {"message": "a", "agent": ""},
    {"message": "a", "agent": "a\nb"},
)


async def test_chat_refuses_what_is_not_documented(ask):
    for body in NO_CHATS:
        await ask("/chat", body)


NO_INPUTS: tuple[dict[str, object], ...] = (
    {},
    {"input": ""},
    {"input": []},
    {"input": [""]},
    {"input": ["a", 5]},
    {"input": [[1, 2], []]},
    {"input": [[1, 2], "a"]},
    {"input": [1, 2.5]},
    {"input": [-1]},
    {"input": {"a": 1}},
    {"input": None},
    {"input": "a", "encoding_format": "hex"},
    {"input": "a", "dimensions": 0},
    {"input": "a", "model": ["m"]},
)


async def test_embeddings_refuse_what_openai_does(ask):
    for body in NO_INPUTS:
        await ask("/v1/embeddings", body)


async def test_an_error_quotes_no_value(ask):
    body = {**COMPLETION, "user": {"secret": "value"}, "stop": {"secret": "value"}}
    assert "secret" not in (await ask("/v1/chat/completions", body))["message"]


async def test_nesting_that_is_json_but_cannot_be_sent(ask):
    deep: object = "bottom"
    for _ in range(400):
        deep = {"properties": {"a": deep}}
    function = {"name": "f", "parameters": {"type": "object", "properties": deep}}
    body = {**COMPLETION, "tools": [{"type": "function", "function": function}]}
    error = await ask("/v1/chat/completions", json.dumps(body).encode())
    assert "JSON" in error["message"]
