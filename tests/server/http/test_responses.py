"""OpenAI's SDK speaks Responses to the service, in front of vendors that do not."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from aigateway.simulator import Answer, Fault
from tests.server.services import served

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Look up the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwAD"
    "hgGAWjR9awAAAABJRU5ErkJggg=="
)
WIRES = ["openai", "azure", "gemini", "anthropic", "openai_compatible"]


@pytest.fixture(params=WIRES)
async def vendor(request, simulator):
    made = getattr(simulator, request.param, None)
    made = made or await simulator.add(request.param)
    made.strict = True
    if request.param in {"openai", "azure", "openai_compatible"}:
        made.behave(Fault.not_offered(), times=1)  # it speaks chat only, for an hour
    return made


@pytest.fixture
async def client(vendor):
    models = {"gemini": "gemini-3-pro-preview", "anthropic": "claude-sonnet-4-5"}
    fields = {"model": models.get(vendor.wire, vendor.model)}
    async with (
        served(vendor, fields=fields, cache_enabled=False) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made,
    ):
        yield made


def chats(vendor):
    return [r.body for r in vendor.received if not r.path.endswith("/responses")]


def said_in(body):
    return json.dumps(body)


async def streamed(client, **request):
    """The events of a stream, put together by the SDK, and its response."""
    async with client.responses.stream(**request) as stream:
        names = [event.type async for event in stream]
        return names, await stream.get_final_response()


async def whole(client, **request):
    return await client.responses.create(**request)


async def put_together(client, **request):
    return (await streamed(client, **request))[1]


async def test_text(client, vendor):
    response = await client.responses.create(
        model="auto",
        instructions="Be brief.",
        input="What is 2+2?",
        max_output_tokens=100,
        store=True,
        metadata={"team": "a"},
        include=["reasoning.encrypted_content"],
        extra_body={"client_metadata": {"x": "y"}},
    )
    assert response.output_text == "4"
    assert response.status == "completed"
    assert (response.instructions, response.metadata) == ("Be brief.", {"team": "a"})
    assert response.to_dict()["store"] is False
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert "Be brief." in said_in(chats(vendor)[-1])
    Response.model_validate(response.to_dict(), strict=True)
    names, response = await streamed(client, model="auto", input="one two three")
    assert response.output_text == "one two three"
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert response.usage.total_tokens > 0


async def test_a_loop_with_tools_and_reasoning(client, vendor):
    looks = Answer("So.", [("weather", {"city": "Rome"})], reasoning="Let me look it up.")
    user: Any = {"role": "user", "content": "How is Rome?"}
    request: Any = {
        "model": "auto",
        "tools": [WEATHER],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
    }
    for ask in (whole, put_together):
        vendor.answer(looks)
        response = await ask(client, input=[user], **request)
        call = next(item for item in response.output if item.type == "function_call")
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
        thoughts = [item.summary for item in response.output if item.type == "reasoning"]
        shown = [part.text for summary in thoughts for part in summary]
        assert shown == ["Let me look it up."]

        vendor.answer("Sunny.")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        items = [item.to_dict(mode="json") for item in response.output]
        # Vercel's SDK refers to what it takes for stored; an answer may do without some of it.
        kept = [i if "call_id" in i else {"type": "item_reference", "id": i["id"]} for i in items]
        for history in (kept, items):
            response = await ask(client, input=[user, *history, result], **request)
            assert response.output_text == "Sunny."
        sent = said_in(chats(vendor)[-1]["contents" if vendor.wire == "gemini" else "messages"])
        # The simulated vendors check the signatures.
        assert ("signature" in sent) is (vendor.wire == "anthropic")
        assert ("thoughtSignature" in sent) is (vendor.wire == "gemini")


class Sum(BaseModel):
    value: int


async def test_a_form_and_an_image(client, vendor):
    picture = {"type": "input_image", "image_url": PNG, "detail": "low"}
    parts: Any = [{"type": "input_text", "text": "What is this?"}, picture]
    vendor.answer('{"value": 4}')
    request: Any = {"model": "auto", "input": [{"role": "user", "content": parts}]}
    assert (await client.responses.parse(text_format=Sum, **request)).output_parsed == Sum(value=4)
    _, response = await streamed(client, text_format=Sum, **request)
    assert response.output_parsed == Sum(value=4)
    for body in chats(vendor)[-2:]:
        assert PNG.partition(",")[2] in said_in(body)
        assert "value" in said_in(body)


CLIENTS_TOOLS: Any = [
    {"type": "custom", "name": "run", "description": "Run code.", "format": {"type": "text"}},
    {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [WEATHER]},
    {"type": "local_shell"},
    {"type": "shell", "environment": {"type": "local"}},
    {"type": "apply_patch"},
    {"type": "tool_search", "execution": "client", "description": "Find tools."},
    {"type": "web_search"},
]
CALLED: Any = {
    "run": {"input": 'print("hi")'},
    "crm__weather": {"city": "Rome"},
    "local_shell": {"command": ["ls", "-l"]},
    "shell": {"commands": ["ls"], "timeout_ms": 5},
    "apply_patch": {"type": "create_file", "path": "a", "diff": "+b"},
    "tool_search": {"query": "mail"},
}
RESULTS: Any = {
    "custom_tool_call": {"output": "hi"},
    "function_call": {"output": [{"type": "input_text", "text": "sun"}]},
    "local_shell_call": {"output": "a"},
    "shell_call": {
        "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    },
    "apply_patch_call": {"status": "completed"},
    "tool_search_call": {"tools": [{**WEATHER, "name": "found"}], "execution": "client"},
}


async def test_tools_in_other_forms(client, vendor):
    request: Any = {"model": "auto", "tools": CLIENTS_TOOLS}
    user: Any = {"role": "user", "content": "Do it."}
    for ask in (whole, put_together):
        vendor.answer(Answer(tool_calls=list(CALLED.items())))
        response = await ask(client, input=[user], **request)
        calls = {item.type: item for item in response.output if item.type != "reasoning"}
        assert calls["custom_tool_call"].input == 'print("hi")'
        assert (calls["function_call"].name, calls["function_call"].namespace) == ("weather", "crm")
        assert calls["local_shell_call"].action.command == ["ls", "-l"]
        assert calls["shell_call"].action.commands == ["ls"]
        assert calls["apply_patch_call"].operation.type == "create_file"
        assert calls["tool_search_call"].arguments == {"query": "mail"}

        replayed: list[Any] = [item.to_dict(mode="json") for item in response.output]
        outputs = [
            {"type": kind.replace("tool_search_call", "tool_search") + "_output", **RESULTS[kind]}
            | {"call_id": call.call_id}
            for kind, call in calls.items()
        ]
        vendor.answer("Done.")
        response = await ask(client, input=[user, *replayed, *outputs], **request)
        assert response.output_text == "Done."
        first, second = chats(vendor)[-2:]
        assert "found" not in said_in(first)
        assert "found" in said_in(second)
        assert all(name in said_in(second) for name in CALLED)


@pytest.mark.parametrize("name", ["gemini", "openai"])
async def test_failover_and_a_break(simulator, name):
    """Events of the service's own, and those that a provider of the protocol writes."""
    vendor = getattr(simulator, name)
    simulator.anthropic.behave(Fault.status(500))
    async with (
        served(simulator.anthropic, vendor, cache_enabled=False) as (service, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        request: Any = {"model": "auto", "input": "one two three four"}
        _, response = await streamed(client, **request)
        assert response.output_text == "one two three four"
        for fault, code in (
            (Fault.cut_stream(6, clean=False), "stream_interrupted"),
            (Fault.stall_stream(6), "stopping"),
        ):
            vendor.behave(fault)
            request["input"] = "one " * 20
            events: list[Any] = []
            stream = await client.responses.create(stream=True, **request)
            with pytest.raises(openai.APIError) as caught:  # noqa: PT012
                async for event in stream:
                    events.append(event)
                    if code == "stopping":
                        service.stopping.set()
            assert caught.value.code == code
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert events[-1].type == "response.failed"
            assert events[-1].response.error.code == "server_error"
            assert events[-1].response.id == events[0].response.id
        service.stopping.clear()
        vendor.behave(Fault.status(500))
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(stream=True, **request)


DEEP: Any = json.loads("[" * 600 + "]" * 600)
USER: Any = {"role": "user", "content": "x"}
BAD: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "input"),
    "no input": ({"input": []}, "input"),
    "empty": ({"input": [{"role": "user", "content": []}]}, "input"),
    "number": ({"input": 1}, "input"),
    "role": ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role"),
    "type": ({"input": [USER, {"type": 3}]}, "input[1]"),
    "part": ({"input": [{"role": "user", "content": [{"text": "x"}]}]}, "input[0].content[0]"),
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0]",
    ),
    "no call": (
        {"input": [{"type": "function_call_output", "call_id": "a", "output": ""}]},
        "input",
    ),
    "no output": (
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}]},
        "input",
    ),
    "broken envelope": (
        {"input": [USER, {"type": "reasoning", "encrypted_content": "aigateway1.e30x"}]},
        "input[1].encrypted_content",
    ),
    "tool": ({"input": "x", "tools": [{"type": "function"}]}, "tools[0]"),
    "tools": ({"input": "x", "tools": [{"type": "local_shell"}] * 2000}, "tools"),
    "choice": ({"input": "x", "tool_choice": "any"}, "tool_choice"),
    "unknown choice": (
        {"input": "x", "tool_choice": {"type": "function", "name": "f"}},
        "tool_choice",
    ),
    "form": ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format"),
    "deep": ({"input": "x", "metadata": {"a": DEEP}}, "metadata"),
    "deep call": (
        {"input": [{"type": "shell_call", "call_id": "a", "action": {"a": DEEP}}]},
        "input[0]",
    ),
    "tokens": ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    "calls": (
        {"input": [{"type": "custom_tool_call", "call_id": "a", "name": "f", "input": ""}] * 5000},
        "input",
    ),
}


FILE: Any = {"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}
NATIVE: dict[str, tuple[Any, str]] = {
    "tools[0]": ({"input": "x", "tools": [{"type": "file_search"}]}, "declare a function"),
    "tools[1]": ({"input": "x", "tools": [WEATHER, {"type": "mcp"}]}, "declare a function"),
    "tool_choice": (
        {"input": "x", "tools": [WEATHER], "tool_choice": {"type": "web_search"}},
        "choose a function",
    ),
    "previous_response_id": (
        {"input": "x", "previous_response_id": "resp_1"},
        "send the whole conversation",
    ),
    "background": ({"input": "x", "background": True}, "wait for the answer"),
    "prompt": ({"prompt": {"id": "p"}}, "send instructions"),
    "input[1]": ({"input": [USER, {"type": "item_reference", "id": "msg_1"}]}, "store=false"),
    "input[0]": ({"input": [{"id": "msg_aigw1"}, USER]}, "store=false"),
    "input[0].content[0].file_id": ({"input": [FILE]}, "a data: URL"),
}


async def test_refusals(simulator):
    simulator.gemini.answer("fine")
    async with (
        served(simulator.gemini) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=10) as client,
    ):
        bad = [(body, param, None) for body, param in BAD.values()]
        native = [(body, param, instead) for param, (body, instead) in NATIVE.items()]
        for body, param, instead in [*bad, *native]:
            for stream in (False, True):
                answer = await client.post("/v1/responses", json={"stream": stream, **body})
                error = answer.json()["error"]
                assert answer.status_code == 400, (param, error)
                assert error["type"] == "invalid_request_error"
                assert error["param"] == param
                assert instead is None or instead in error["message"], error
        assert not simulator.gemini.received
        for method, path in (
            ("GET", "resp_1"),
            ("DELETE", "resp_1"),
            ("GET", "resp_1/input_items"),
            ("POST", "resp_1/cancel"),
            ("POST", "input_tokens"),
            ("POST", "compact"),
        ):
            answer = await client.request(method, f"/v1/responses/{path}")
            assert answer.status_code == 404
            assert "POST /v1/responses" in answer.json()["error"]["message"]
