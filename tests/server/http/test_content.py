"""Pictures, speech, sources and the vendor's counts, through the service to the official SDK."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.processes import PATIENCE
from tests.server.services import served
from tests.wires import bodies

USER: Any = [{"role": "user", "content": "Draw."}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SPEECH = {"id": "audio_1", "data": "UklG", "transcript": "Hi", "expires_at": 1700003600}
NOTE = {"url": "https://source.test", "title": "T", "start_index": 0, "end_index": 4}
NOTES = [{"type": "url_citation", "url_citation": NOTE}]
MESSAGE = {"content": "fact", "images": [PICTURE], "audio": SPEECH, "annotations": NOTES}
BESIDE = {
    "system_fingerprint": "fp_1",
    "service_tier": "default",
    "citations": ["https://source.test"],
}
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 2,
    "total_tokens": 32,
    "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 10},
}


@pytest.fixture
async def vendor():
    async with bodies.Vendor() as made:
        yield made


@pytest.fixture
async def service(vendor):
    bodies.openai(vendor, MESSAGE, MESSAGE, usage=USAGE, **BESIDE)

    class Compatible:
        def config(self, **more):
            return vendor.config(bodies.COMPATIBLE, **more)

    async with served(Compatible(), cache_enabled=True) as (_, url):
        yield url


@pytest.fixture
async def client(service):
    async with openai.AsyncOpenAI(base_url=f"{service}/v1", api_key="any", max_retries=0) as made:
        yield made


async def test_half_a_character_is_none(vendor, service):
    """`max_tokens` may cut an emoji; not every JSON reader takes what is left of it."""
    deltas = [{"content": text} for text in ("\ud83d", "\ude00", "\ud83d")]
    bodies.openai(vendor, {"content": "a\ud83d"}, *deltas, finish="length")
    request = {"model": "auto", "messages": USER, "max_tokens": 5}
    async with httpx.AsyncClient(base_url=f"{service}/v1", timeout=PATIENCE) as client:
        for _ in range(2):  # the second time, remembered
            said = await client.post("/chat/completions", json=request | {"stream": True})
            pieces = [json.loads(line[6:]) for line in said.text.splitlines() if "content" in line]
            texts = [choice["delta"].get("content") for p in pieces for choice in p["choices"]]
            assert "".join(filter(None, texts)) == "\U0001f600\ufffd"
            assert "\\ud8" not in said.text
        whole = await client.post("/chat/completions", json=request | {"max_tokens": 6})
        assert whole.json()["choices"][0]["message"]["content"] == "a\ufffd"
        vendor.status, vendor.events = 400, []
        vendor.whole = {"error": {"message": "You said a\ud83d.", "param": "stop"}}
        refused = await client.post("/chat/completions", json=request | {"max_tokens": 7})
        assert refused.json()["error"]["detail"] == "You said a\ufffd."


def holds_all(message, answer):
    assert message["content"] == "fact"
    assert message["images"] == [{"index": 0, **PICTURE}]
    assert message["audio"] == SPEECH
    assert message["annotations"] == NOTES
    assert {name: answer[name] for name in BESIDE} == BESIDE
    details = answer["usage"]["prompt_tokens_details"]
    assert (details["cached_tokens"], details["cache_write_tokens"]) == (8, 10)


async def whole(client, **more):
    reply = await client.chat.completions.create(model="auto", messages=USER, **more)
    return reply.model_dump()


async def streamed(client):
    stream = await client.chat.completions.create(
        model="auto", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk.model_dump() async for chunk in stream]
    message = {"content": ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            given = {name: value for name, value in choice["delta"].items() if value}
            message["content"] += given.pop("content", "")
            message |= given
    return message, chunks[-1]


async def test_a_whole_answer_then_remembered(client):
    for _ in range(2):
        answer = await whole(client)
        holds_all(answer["choices"][0]["message"], answer)


async def test_a_stream_then_a_stream_of_what_is_remembered(client):
    for _ in range(2):
        holds_all(*await streamed(client))


async def test_whole_after_streamed(client):
    await streamed(client)
    answer = await whole(client)
    holds_all(answer["choices"][0]["message"], answer)


async def test_parameters_that_ask_for_more_than_text(client):
    answer = await whole(
        client,
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
    )
    holds_all(answer["choices"][0]["message"], answer)


async def test_the_plain_endpoint(service):
    async with httpx.AsyncClient(base_url=service, timeout=PATIENCE) as http:
        reply = await http.post("/chat", json={"message": "Draw."})
    answer = reply.json()
    assert (answer["response"], answer["audio"]) == ("fact", SPEECH)
    assert answer["images"] == [{"index": 0, **PICTURE}]
    assert answer["usage"]["cache_write_tokens"] == 10


async def test_an_answer_goes_back_into_the_conversation(client):
    answer = await whole(client)
    message = answer["choices"][0]["message"]
    history = [*USER, message, {"role": "user", "content": "Again."}]
    reply = await client.chat.completions.create(model="auto", messages=history)
    assert reply.choices[0].message.content == "fact"


CUSTOM = {"id": "call_1", "type": "custom", "custom": {"name": "grep", "input": '{"half'}}
GREP: Any = [{"type": "custom", "custom": {"name": "grep"}}]


async def test_a_custom_tools_calls_there_and_back():
    async with bodies.Vendor() as vendor:
        pieces = [
            {"index": 0, **CUSTOM, "custom": {"name": "grep", "input": ""}},
            {"index": 0, "custom": {"input": '{"half'}},
        ]
        deltas = [{"tool_calls": [piece]} for piece in pieces]
        bodies.openai(
            vendor, {"content": None, "tool_calls": [CUSTOM]}, *deltas, finish="tool_calls"
        )

        class Compatible:
            def config(self, **more):
                return vendor.config(bodies.COMPATIBLE, **more)

        async with (
            served(Compatible(), cache_enabled=False) as (_, url),
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        ):
            asked: Any = {"model": "auto", "messages": USER, "tools": GREP}
            reply = await client.chat.completions.create(**asked)
            message = reply.choices[0].message
            assert [call.model_dump() for call in message.tool_calls or ()] == [CUSTOM]
            stream = await client.chat.completions.create(stream=True, **asked)
            calls = [
                piece
                async for chunk in stream
                for choice in chunk.model_dump(exclude_unset=True)["choices"]
                for piece in choice["delta"].get("tool_calls") or ()
            ]
            assert calls == pieces
            async with httpx.AsyncClient(timeout=PATIENCE) as plain:
                body = {"message": "Find it.", "tools": GREP}
                told = (await plain.post(f"{url}/chat", json=body)).json()
            assert told["tool_calls"] == [CUSTOM]
            result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "found"}
            history: Any = [*USER, message.model_dump(exclude_none=True), result]
            await client.chat.completions.create(model="auto", messages=history, tools=GREP)
            assert vendor.received["messages"][1]["tool_calls"] == [CUSTOM]
