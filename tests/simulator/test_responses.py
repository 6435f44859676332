"""OpenAI's Responses and completions, read by its own SDK, and Anthropic's count of tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from aigateway.simulator import Answer, Fault, Simulator
from tests.simulator.conftest import Asker, key_headers

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PATCH = {"type": "custom", "name": "patch"}
INCLUDE = ["reasoning.encrypted_content"]


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=sim.openai.api_base, api_key="any", max_retries=0
    ) as client:
        yield client


async def test_a_response_is_whole_or_a_stream_of_numbered_events(
    client: openai.AsyncOpenAI,
) -> None:
    whole = await client.responses.create(model="gpt-5", input="one two", instructions="Be brief.")
    assert (whole.output_text, whole.status) == ("one two", "completed")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (4, 2)
    async with client.responses.stream(model="gpt-5", input="one two") as stream:
        events = [event async for event in stream]
        assert (await stream.get_final_response()).output_text == "one two"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


async def test_a_response_ends_early(client: openai.AsyncOpenAI, sim: Simulator) -> None:
    sim.openai.answer(Answer("cut", finish_reason="length"))
    cut = await client.responses.create(model="gpt-5", input="one", max_output_tokens=16)
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    sim.openai.answer(Answer("", finish_reason="failed"))
    stream = await client.responses.create(model="gpt-5", input="one", stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None


async def test_a_response_has_the_wanted_form(client: openai.AsyncOpenAI) -> None:
    class City(BaseModel):
        name: str

    parsed = await client.responses.parse(model="gpt-5", input="Where?", text_format=City)
    assert parsed.output_parsed == City(name="text")


async def test_tools_are_called_with_reasoning_before(
    client: openai.AsyncOpenAI, sim: Simulator
) -> None:
    calls = [("weather", {"city": "Oslo"}), ("patch", "*** Begin")]
    sim.openai.answer(Answer(tool_calls=calls, reasoning="Hmm."))
    asked: dict[str, Any] = {
        "model": "gpt-5",
        "tools": [WEATHER, PATCH],
        "store": False,
        "include": INCLUDE,
        "reasoning": {"summary": "auto"},
    }
    stream = await client.responses.create(input="Weather?", stream=True, **asked)
    events = [event async for event in stream]
    deltas = [event for event in events if event.type.endswith("arguments.delta")]
    assert "".join(event.delta for event in deltas) == '{"city": "Oslo"}'
    thought, called, patched = events[-1].response.output
    assert (thought.type, thought.summary[0].text) == ("reasoning", "Hmm.")
    assert (called.type, called.name) == ("function_call", "weather")
    assert (patched.type, patched.input) == ("custom_tool_call", "*** Begin")

    sim.openai.answer("Sunny.")
    turn: list[Any] = [item.to_dict() for item in events[-1].response.output]
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": called.call_id, "output": "sun"},
        {"type": "custom_tool_call_output", "call_id": patched.call_id, "output": "done"},
    ]
    said: list[Any] = [{"role": "user", "content": "Weather?"}]
    answer = await client.responses.create(input=[*said, *turn, *outputs], **asked)
    assert answer.output_text == "Sunny."
    turn[0]["encrypted_content"] = "somebody else's"
    for wrong, complaint in (
        ([*said, *turn, *outputs], "could not be verified"),
        ([*said, *turn[1:]], "No tool output found"),
        ([*said, *outputs], "No tool call found"),
        ([*said, {"type": "reasoning", "id": "rs_1", "summary": []}], "not persisted"),
    ):
        with pytest.raises(openai.APIStatusError, match=complaint):
            await client.responses.create(input=wrong, **asked)


async def test_a_stored_response_is_continued(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model="gpt-5", input="one two three")
    second = await client.responses.create(
        model="gpt-5", input="four", previous_response_id=first.id
    )
    assert second.usage is not None
    assert second.usage.input_tokens == 7
    unstored = await client.responses.create(model="gpt-5", input="one", store=False)
    with pytest.raises(openai.BadRequestError, match="not found") as refused:
        await client.responses.create(model="gpt-5", input="x", previous_response_id=unstored.id)
    assert refused.value.code == "previous_response_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"min_p": 0.1}, "min_p"),
        ({"max_output_tokens": 5}, "max_output_tokens"),
        ({"include": ["everything"]}, "include[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"input": [{"role": "user", "content": "x", "extra": 1}]}, "input[0].extra"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
async def test_what_openai_refuses(
    sim: Simulator, ask: Asker, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "gpt-5", "input": "x", **fields}
    reply = await ask.post(sim.openai, "/v1/responses", body)
    assert (reply.status, reply.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions"])
async def test_faults_strike_here_too(sim: Simulator, ask: Asker, path: str) -> None:
    vendor = await sim.add("openai_compatible")
    body = {"model": "m", "input": "one two", "prompt": "one two", "stream": True}
    vendor.behave(Fault.status(503))
    assert (await ask.post(vendor, path, body)).status == 503
    vendor.behave(Fault.cut_stream(after=1))
    cut = await ask.post(vendor, path, body)
    assert b"one" in cut.raw
    assert "response.completed" not in cut.events
    assert b"[DONE]" not in cut.raw
    vendor.behave(Fault.error_event(after=1))
    struck = await ask.post(vendor, path, body)
    assert struck.events[-1:] in ([], ["error"])
    assert "error" in struck.data[-1] or struck.data[-1]["type"] == "error"
    vendor.recover()
    vendor.offers = frozenset({"chat/completions"})
    assert (await ask.post(vendor, path, body)).status == 404
    assert (await ask.post(vendor, "/v1/chat/completions", {})).status == 400


async def test_a_prompt_is_completed(sim: Simulator) -> None:
    vendor = await sim.add("openai_compatible")
    async with openai.AsyncOpenAI(base_url=vendor.api_base, api_key="any") as client:
        whole = await client.completions.create(model="m", prompt="one two", n=2)
        assert [choice.text for choice in whole.choices] == ["one two"] * 2
        stream = await client.completions.create(model="m", prompt="one two", stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_openais_chat_models_complete_no_prompt(sim: Simulator, ask: Asker) -> None:
    reply = await ask.post(sim.openai, "/v1/completions", {"model": "gpt-5", "prompt": "x"})
    assert (reply.status, "chat model" in reply.json["error"]["message"]) == (404, True)


async def test_azure_answers_at_both_addresses(sim: Simulator, ask: Asker) -> None:
    body = {"model": "dep", "input": "one two"}
    for path in ("/openai/v1/responses", "/openai/responses?api-version=2025-03-01-preview"):
        reply = await ask.post(sim.azure, path, body)
        assert reply.json["output"][0]["content"][0]["text"] == "one two"


SAID: dict[str, Any] = {"model": "claude-x", "messages": [{"role": "user", "content": "one two"}]}


async def test_tokens_are_counted(sim: Simulator, ask: Asker) -> None:
    path = "/v1/messages/count_tokens"
    reply = await ask.post(sim.anthropic, path, SAID | {"system": "Be brief."})
    assert reply.json == {"input_tokens": 4}
    assert (await ask.post(sim.anthropic, path, {"model": "claude-x"})).status == 400


async def test_a_beta_allows_its_fields(sim: Simulator, ask: Asker) -> None:
    path = "/v1/messages?beta=true"
    system = {"role": "system", "content": [{"type": "text", "text": "Now in French."}]}
    body = SAID | {
        "max_tokens": 9,
        "context_management": {"edits": []},
        "messages": [*SAID["messages"], system],
    }
    assert (await ask.post(sim.anthropic, path, body)).status == 400
    betas = {"anthropic-beta": "context-management-2025-06-27,mid-conversation-x,unheard-of"}
    reply = await ask.post(sim.anthropic, path, body, key_headers(sim.anthropic) | betas)
    assert reply.json["content"][0]["text"] == "one two"
    wrong = await ask.post(
        sim.anthropic, path, body | {"min_p": 1}, key_headers(sim.anthropic) | betas
    )
    assert wrong.json["error"]["message"] == "min_p: Extra inputs are not permitted"
