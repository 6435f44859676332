"""Healthy chat on every wire: bodies, streams, tools, structured output, usage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aigateway.simulator import Answer, Received, Simulator, ToolCall

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
}
WEATHER = ToolCall("get_weather", {"city": "Bern", "days": 3}, id="call_9")


def text_of(wire: str, body: Any) -> str:
    match wire:
        case "gemini":
            parts = body["candidates"][0]["content"]["parts"]
            return "".join(p.get("text", "") for p in parts if not p.get("thought"))
        case "anthropic":
            return "".join(b["text"] for b in body["content"] if b["type"] == "text")
        case _:
            return str(body["choices"][0]["message"]["content"])


def streamed_text(wire: str, data: list[Any]) -> str:
    match wire:
        case "gemini":
            return "".join(text_of(wire, chunk) for chunk in data)
        case "anthropic":
            return "".join(
                d["delta"].get("text", "") for d in data if "index" in d and "delta" in d
            )
        case _:
            chunks = [d for d in data if d != "[DONE]" and d["choices"]]
            return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


async def test_the_default_answer_echoes_the_last_words(vendor, ask):
    reply = await ask.chat(vendor, "What do you hear?")
    assert reply.status == 200
    assert text_of(vendor.wire, reply.json) == "What do you hear?"


@pytest.mark.parametrize("prompt", ["What is 2+2?", "2 + 2 = ?"])
async def test_the_default_answer_can_add(vendor, ask, prompt):
    assert text_of(vendor.wire, (await ask.chat(vendor, prompt)).json) == "4"


async def test_a_set_answer_comes_until_it_is_taken_back(vendor, ask):
    vendor.answer("Grüezi 👋")
    assert text_of(vendor.wire, (await ask.chat(vendor)).json) == "Grüezi 👋"
    vendor.answer(None)
    assert text_of(vendor.wire, (await ask.chat(vendor, "x")).json) == "x"


async def test_an_answer_may_depend_on_the_request(vendor, ask):
    def shout(received: Received) -> str:
        return f"{received.method} {received.headers['User-Agent'][:6]}"

    vendor.answer(shout)
    assert text_of(vendor.wire, (await ask.chat(vendor)).json) == "POST Python"


async def test_a_stream_carries_the_same_text_in_pieces(vendor, ask):
    reply = await ask.chat(vendor, "one two three", stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert streamed_text(vendor.wire, reply.data) == "one two three"


async def test_chunks_follow_the_answer(vendor, ask):
    vendor.answer(Answer(chunks=["He", "ll", "o"]))
    data = (await ask.chat(vendor, stream=True)).data
    assert streamed_text(vendor.wire, data) == "Hello"
    assert sum('"ll"' in json.dumps(chunk) for chunk in data) == 1


async def test_openai_frames_a_stream_as_it_does(sim: Simulator, ask):
    options = {"include_usage": True}
    data = (await ask.chat(sim.openai, "a b", stream=True, stream_options=options)).data
    assert data[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["delta"] for c in data[1:3]] == [{"content": "a"}, {"content": " b"}]
    assert data[3]["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "delta": {},
        "finish_reason": "stop",
        "logprobs": None,
    }
    assert data[4]["choices"] == []
    assert data[4]["usage"]["completion_tokens"] == 2
    assert all(chunk["usage"] is None for chunk in data[:4])
    assert data[5:] == ["[DONE]"]
    assert len({chunk["id"] for chunk in data[:5]}) == 1


async def test_openai_sends_no_usage_in_a_stream_unasked(sim: Simulator, ask):
    data = (await ask.chat(sim.openai, stream=True)).data
    assert not any("usage" in chunk for chunk in data[:-1])


async def test_azure_begins_a_stream_with_its_content_filter(sim: Simulator, ask):
    data = (await ask.chat(sim.azure, stream=True)).data
    assert data[0]["choices"] == []
    assert data[0]["prompt_filter_results"][0]["content_filter_results"]["jailbreak"]
    assert data[1]["choices"][0]["content_filter_results"]["hate"]["severity"] == "safe"


async def test_gemini_ends_a_stream_with_reason_and_usage(sim: Simulator, ask):
    data = (await ask.chat(sim.gemini, "a b", stream=True)).data
    assert data[-1]["candidates"][0]["finishReason"] == "STOP"
    assert data[-1]["usageMetadata"]["candidatesTokenCount"] == 2
    assert not any("finishReason" in chunk["candidates"][0] for chunk in data[:-1])


async def test_gemini_streams_an_array_without_alt_sse(sim: Simulator, ask):
    body = {"contents": [{"parts": [{"text": "a b c"}]}]}
    reply = await ask.post(sim.gemini, "/v1beta/models/g:streamGenerateContent", body)
    assert reply.headers["content-type"].startswith("application/json")
    assert streamed_text("gemini", reply.json) == "a b c"


async def test_gemini_takes_the_key_from_the_query(sim: Simulator, ask):
    body = {"contents": [{"parts": [{"text": "a"}]}]}
    reply = await ask.post(sim.gemini, "/v1beta/models/g:generateContent?key=k", body, headers={})
    assert reply.status == 200


async def test_anthropic_frames_a_stream_as_it_does(sim: Simulator, ask):
    reply = await ask.chat(sim.anthropic, "a b", stream=True)
    assert reply.events == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [d["type"] for d in reply.data] == reply.events
    assert reply.data[-2]["delta"]["stop_reason"] == "end_turn"
    assert reply.data[-2]["usage"]["output_tokens"] == 2


async def test_usage_is_counted_or_as_given(vendor, ask):
    counted = (await ask.chat(vendor, "one two three")).json
    told = {"prompt_tokens": 50, "completion_tokens": 9, "cached_tokens": 30, "reasoning_tokens": 4}
    vendor.answer(Answer("x", usage=told))
    set_ = (await ask.chat(vendor)).json
    match vendor.wire:
        case "gemini":
            assert counted["usageMetadata"]["promptTokenCount"] == 3
            assert set_["usageMetadata"]["promptTokenCount"] == 50
            assert set_["usageMetadata"]["candidatesTokenCount"] == 5
            assert set_["usageMetadata"]["thoughtsTokenCount"] == 4
            assert set_["usageMetadata"]["totalTokenCount"] == 59
        case "anthropic":
            assert counted["usage"]["input_tokens"] == counted["usage"]["output_tokens"] == 3
            assert set_["usage"]["input_tokens"] == 20
            assert set_["usage"]["cache_read_input_tokens"] == 30
            assert set_["usage"]["output_tokens"] == 9
        case _:
            assert counted["usage"]["total_tokens"] == 6
            assert set_["usage"]["prompt_tokens_details"]["cached_tokens"] == 30
            assert set_["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


async def test_tool_calls(vendor, ask):
    vendor.answer(Answer(tool_calls=[WEATHER, ("other", {}), {"name": "third", "arguments": "{}"}]))
    body = (await ask.chat(vendor)).json
    match vendor.wire:
        case "gemini":
            calls = [p["functionCall"] for p in body["candidates"][0]["content"]["parts"]]
            assert calls[0] == {"name": "get_weather", "args": WEATHER.arguments}
            assert body["candidates"][0]["finishReason"] == "STOP"
        case "anthropic":
            assert [b["type"] for b in body["content"]] == ["tool_use"] * 3
            assert body["content"][0]["input"] == WEATHER.arguments
            assert body["content"][0]["id"].startswith("toolu_")
            assert body["stop_reason"] == "tool_use"
        case _:
            message = body["choices"][0]["message"]
            assert message["content"] is None
            assert [c["function"]["name"] for c in message["tool_calls"]] == [
                "get_weather",
                "other",
                "third",
            ]
            assert (
                json.loads(message["tool_calls"][0]["function"]["arguments"]) == WEATHER.arguments
            )
            assert body["choices"][0]["finish_reason"] == "tool_calls"


async def test_tool_calls_in_a_stream(vendor, ask):
    # Twice the same tool: the arguments must not get mixed up.
    vendor.answer(Answer(tool_calls=[WEATHER, ("get_weather", {"city": "Rom"})]))
    data = (await ask.chat(vendor, stream=True)).data
    match vendor.wire:
        case "gemini":
            parts = [p for c in data for p in c["candidates"][0]["content"]["parts"]]
            found = [p["functionCall"]["args"] for p in parts if "functionCall" in p]
        case "anthropic":
            texts = {0: "", 1: ""}
            for event in data:
                if event["type"] == "content_block_delta":
                    texts[event["index"]] += event["delta"]["partial_json"]
            found = [json.loads(text) for text in texts.values()]
        case _:
            texts = {0: "", 1: ""}
            for chunk in data[:-1]:
                for choice in chunk["choices"]:
                    for call in choice["delta"].get("tool_calls", ()):
                        texts[call["index"]] += call["function"]["arguments"]
            found = [json.loads(text) for text in texts.values()]
    assert found == [WEATHER.arguments, {"city": "Rom"}]


async def test_reasoning_comes_before_the_words(vendor, ask):
    vendor.answer(Answer("yes", reasoning="hm hm"))
    body = (await ask.chat(vendor)).json
    raw = (await ask.chat(vendor, stream=True)).raw.decode()
    assert raw.index("hm hm") < raw.index('"yes"')
    match vendor.wire:
        case "gemini":
            parts = body["candidates"][0]["content"]["parts"]
            assert parts[0] == {"text": "hm hm", "thought": True}
        case "anthropic":
            assert body["content"][0]["thinking"] == "hm hm"
        case _:
            assert body["choices"][0]["message"]["reasoning_content"] == "hm hm"


def structured(wire: str) -> dict[str, Any]:
    match wire:
        case "gemini":
            config = {"responseMimeType": "application/json", "responseSchema": SCHEMA}
            return {"generationConfig": config}
        case "anthropic":
            return {"output_format": {"type": "json_schema", "schema": SCHEMA}}
        case _:
            json_schema = {"name": "place", "schema": SCHEMA, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


async def test_a_schema_is_answered_with_an_instance(vendor, ask):
    body = (await ask.chat(vendor, **structured(vendor.wire))).json
    assert json.loads(text_of(vendor.wire, body)) == {"city": "text", "people": 1}


def forced(wire: str) -> dict[str, Any]:
    match wire:
        case "gemini":
            declaration = {"name": "place", "parameters": SCHEMA}
            config = {"functionCallingConfig": {"mode": "ANY"}}
            return {"tools": [{"functionDeclarations": [declaration]}], "toolConfig": config}
        case "anthropic":
            tools = [{"name": "place", "input_schema": SCHEMA}]
            return {"tools": tools, "tool_choice": {"type": "tool", "name": "place"}}
        case _:
            function = {"name": "place", "parameters": SCHEMA}
            tools = [{"type": "function", "function": function}]
            choice = {"type": "function", "function": {"name": "place"}}
            return {"tools": tools, "tool_choice": choice}


async def test_a_forced_tool_is_called_with_an_instance(vendor, ask):
    raw = (await ask.chat(vendor, **forced(vendor.wire))).raw.decode().replace("\\", "")
    assert '"place"' in raw
    assert '"people":1' in raw.replace(" ", "")


async def test_a_tool_that_was_not_offered_cannot_be_forced(vendor, ask):
    body = forced(vendor.wire)
    del body["tools"]
    assert (await ask.chat(vendor, **body)).status == 400


def short(wire: str) -> dict[str, Any]:
    match wire:
        case "gemini":
            return {"generationConfig": {"maxOutputTokens": 2}}
        case _:
            return {"max_tokens": 2}


async def test_the_echo_keeps_to_the_length_asked_for(vendor, ask):
    body = (await ask.chat(vendor, "a b c d", **short(vendor.wire))).json
    assert text_of(vendor.wire, body) == "a b"
    assert {"length", "MAX_TOKENS", "max_tokens"} & set(json.dumps(body).split('"'))


@pytest.mark.parametrize("wire", ["openai", "azure", "gemini"])
async def test_several_choices(sim: Simulator, ask, wire):
    more = {"generationConfig": {"candidateCount": 3}} if wire == "gemini" else {"n": 3}
    vendor = getattr(sim, wire)
    body = (await ask.chat(vendor, **more)).json
    choices = body["candidates" if wire == "gemini" else "choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    data = (await ask.chat(vendor, stream=True, **more)).data
    assert sum("finish" in json.dumps(d) for d in data) >= 1


async def test_logprobs_when_asked(sim: Simulator, ask):
    body = (await ask.chat(sim.openai, "a b", logprobs=True, top_logprobs=2)).json
    content = body["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == ["a", " b"]
    assert [len(token["top_logprobs"]) for token in content] == [2, 2]
    assert (await ask.chat(sim.openai)).json["choices"][0]["logprobs"] is None


async def test_a_withheld_answer(vendor, ask):
    vendor.answer(Answer(finish_reason="content_filter"))
    raw = (await ask.chat(vendor)).raw.decode()
    expected = {"gemini": '"SAFETY"', "anthropic": '"refusal"'}
    assert expected.get(vendor.wire, '"content_filter"') in raw


async def test_a_tool_result_is_understood(sim: Simulator, ask):
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    reply = await ask.chat(sim.openai, messages=messages)
    assert text_of("openai", reply.json) == "weather?"
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]
    call = [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": call},
        {"role": "user", "content": result},
    ]
    assert (
        text_of("anthropic", (await ask.chat(sim.anthropic, messages=messages)).json) == "weather?"
    )


async def test_a_compatible_server_needs_no_key(sim: Simulator, ask):
    local = await sim.add("openai_compatible")
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert (await ask.post(local, "/v1/chat/completions", body, headers={})).status == 200


async def test_azure_has_a_versionless_path_too(sim: Simulator, ask):
    body = {"model": "dep", "messages": [{"role": "user", "content": "hi"}]}
    assert (await ask.post(sim.azure, "/openai/v1/chat/completions", body)).json["model"] == "dep"


async def test_models_are_listed(vendor, ask):
    path = {"gemini": "/v1beta/models", "azure": "/openai/v1/models"}.get(vendor.wire, "/v1/models")
    reply = await ask.get(vendor, path)
    assert reply.status == 200
    assert vendor.model in reply.raw.decode()
