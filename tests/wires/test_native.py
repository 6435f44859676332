"""Requests that go to a provider of their own protocol as they are, over real HTTP."""

import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from aigateway import AllProvidersFailedError, AsyncGateway, LLMConfig, RequestRejectedError
from aigateway.envelope import sealed
from aigateway.errors import StreamInterruptedError
from aigateway.messages import NativeRequest
from aigateway.protocols.protocol import ReadRequest

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x-20990101",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s1"},
        {"type": "text", "text": "Hello"},
        {"type": "new_kind", "anything": [1]},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 40, "output_tokens": 5, "new": {}},
    "new_field": "kept",
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 7,
    "status": "completed",
    "model": "gpt-x-2099",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "theirs"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
    ],
    "usage": {
        "input_tokens": 43,
        "input_tokens_details": {"cached_tokens": 40},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 48,
    },
    "new_field": "kept",
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 7,
    "model": "base-x",
    "choices": [{"index": 0, "text": " world", "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
}


CHAT = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "by chat"},
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def events_of(*datas):
    return [f"event: {d['type']}\ndata: {json.dumps(d)}\n\n".encode() for d in datas]


MESSAGE_EVENTS = events_of(
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta", "x": 1}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'},
    },
    {"type": "content_block_stop", "index": 1},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 5},
    },
    {"type": "message_stop"},
)
RESPONSE_EVENTS = events_of(
    {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "output": []}},
    {
        "type": "response.output_item.added",
        "sequence_number": 1,
        "output_index": 0,
        "item": {"type": "message", "id": "msg_1", "content": []},
    },
    {
        "type": "response.output_text.delta",
        "sequence_number": 2,
        "output_index": 0,
        "content_index": 0,
        "item_id": "msg_1",
        "delta": "Hello",
    },
    {"type": "response.brand_new", "sequence_number": 3},
    {
        "type": "response.output_item.added",
        "sequence_number": 4,
        "output_index": 1,
        "item": {"type": "function_call", "call_id": "c1", "name": "f", "arguments": ""},
    },
    {
        "type": "response.function_call_arguments.delta",
        "sequence_number": 5,
        "output_index": 1,
        "delta": '{"a": 1}',
    },
    {"type": "response.completed", "sequence_number": 6, "response": RESPONSE},
)
COMPLETION_EVENTS = [
    b'data: {"id": "cmpl-1", "model": "base-x", "choices": [{"index": 0, "text": " wor"}]}\n\n',
    (
        b'data: {"id": "cmpl-1", "model": "base-x", "choices": [{"index": 0, "text": "ld",'
        b' "finish_reason": "stop"}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}\n\n'
    ),
    b"data: [DONE]\n\n",
]


class Vendor:
    """A server whose replies are scripted, and which remembers what it got."""

    def __init__(self):
        self.received = []
        self.replies = []
        self.base = ""

    @property
    def last(self):
        return self.received[-1]

    async def answer(self, request):
        body = json.loads(await request.read())
        self.received.append((request.path_qs, request.headers, body))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, tuple):
            return web.json_response(reply[1], status=reply[0])
        if isinstance(reply, dict):
            return web.json_response(reply)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in reply:
            await response.write(event)
        return response


@pytest.fixture
async def vendors():
    """Start servers, as many as are asked for."""
    runners = []

    async def start(count):
        started = []
        for _ in range(count):
            vendor, app = Vendor(), web.Application()
            app.router.add_post("/{path:.*}", vendor.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            vendor.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.append(vendor)
        return started

    yield start
    for runner in runners:
        await runner.cleanup()


def config(kind, vendor, **more):
    suffix = "" if kind == "anthropic" else "/v1"
    given = {"api_key": "sk-own", "api_base": vendor.base + suffix, "name": kind, **more}
    return LLMConfig(kind, given.pop("model", "own-model"), **given)


PROTOCOLS = {
    "messages": ("anthropic", "/v1/messages", MESSAGE, MESSAGE_EVENTS),
    "responses": ("openai_compatible", "/v1/responses", RESPONSE, RESPONSE_EVENTS),
}
BODIES: dict[str, dict[str, Any]] = {
    "messages": {
        "model": "theirs",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "brand_new": {"x": [1]},
    },
    "responses": {"model": "theirs", "input": "hi", "brand_new": {"x": [1]}},
}


def read(protocol, body, **native):
    """The request of a protocol; here its chat does not matter."""
    chat = [{"role": "user", "content": json.dumps(body)}]
    return ReadRequest(chat, {}, NativeRequest(protocol, body, **native))


def call(gateway, protocol, body, **native):
    return getattr(gateway, protocol)(read(protocol, body, **native))


def stream(gateway, protocol, body, **native):
    return getattr(gateway, f"stream_{protocol}")(read(protocol, body, **native))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_body_goes_and_the_answer_comes_as_it_is(vendors, protocol):
    kind, path, answer, _ = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    vendor.replies = [answer]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        got = await call(gateway, protocol, BODIES[protocol])
        sent_to, headers, body = vendor.last
        assert sent_to == path
        assert body == {**BODIES[protocol], "model": "own-model", "stream": False}
        assert "sk-own" in (headers.get("x-api-key") or headers["authorization"])
        assert got.body == answer
        response = got.response
        assert (response.text, response.finish_reason) == ("Hello", "tool_calls")
        (made,) = response.tool_calls
        assert (made.name, json.loads(made.arguments)) == ("f", {"a": 1})
        usage = response.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (43, 40, 5)
        # From the cache it is the same; but a stream of it would say less.
        assert (await call(gateway, protocol, BODIES[protocol])).body == answer
        assert len(vendor.received) == 1
        # A field that no chat has makes another request, and so does one that is echoed.
        await call(gateway, protocol, {**BODIES[protocol], "brand_new": 2})
        await call(gateway, protocol, {**BODIES[protocol], "metadata": {"a": "1"}})
        assert len(vendor.received) == 3
        # What the vendor keeps or does is not remembered.
        for _ in range(2):
            await call(gateway, protocol, BODIES[protocol], only="conversation")
        assert len(vendor.received) == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_events_of_a_stream_come_as_they_are(vendors, protocol):
    kind, _, _, events = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    vendor.replies = [events]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        async with stream(gateway, protocol, BODIES[protocol]) as answer:
            got = [event.raw async for event in answer]
        assert vendor.last[2]["stream"] is True
        assert b"".join(got) == b"".join(events)
        response = answer.response
        assert response.text == "Hello"
        assert [c.arguments for c in response.tool_calls] == ['{"a": 1}']
        assert response.usage.completion_tokens == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_whole_answer_over_a_stream_is_put_together(vendors, protocol):
    kind, _, _, events = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    vendor.replies = [[event for event in events if b"new_delta" not in event], events]
    async with AsyncGateway([config(kind, vendor)], chat_over_stream=True) as gateway:
        got = await call(gateway, protocol, BODIES[protocol])
        assert vendor.last[2]["stream"] is True
        if protocol == "responses":
            assert got.body == RESPONSE
        else:
            content = [
                {"type": "text", "text": "Hello"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
            ]
            assert got.body == {**MESSAGE, "content": content}
            # What has come in an unknown form cannot be put together, so it is not remembered.
            for _ in range(2):
                await call(gateway, protocol, {**BODIES[protocol], "other": 1})
            assert len(vendor.received) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_of_a_stream_the_cache_keeps_no_events(vendors, protocol):
    kind, _, _, events = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    vendor.replies = [[event for event in events if b"new_delta" not in event]]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        async with stream(gateway, protocol, BODIES[protocol]) as answer:
            assert [event.raw async for event in answer]
        native = answer.response.completion.native
        assert native is not None
        assert native.events
        hit = await call(gateway, protocol, BODIES[protocol])
        assert len(vendor.received) == 1
        assert hit.response.cached
        assert hit.raw == native.body
        assert hit.response.completion == replace(
            answer.response.completion, native=replace(native, events=())
        )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_failover_before_the_first_content(vendors, protocol, streamed):
    kind, _, answer, events = PROTOCOLS[protocol]
    first, second = await vendors(2)
    first.replies = [events[:1]] if streamed else [(500, {"error": {"message": "down"}})]
    second.replies = [events if streamed else answer]
    providers = [
        config(kind, first, priority=2),
        config(kind, second, name="second"),
    ]
    async with AsyncGateway(providers) as gateway:
        if streamed:
            async with stream(gateway, protocol, BODIES[protocol]) as got:
                raw = b"".join([event.raw async for event in got])
            assert raw == b"".join(events)
            response = got.response
        else:
            response = (await call(gateway, protocol, BODIES[protocol])).response
        assert response.provider == "second"
        assert len(first.received) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_cut_stream_is_no_whole_answer(vendors, protocol):
    kind, _, _, events = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    vendor.replies = [events[:-2] if protocol == "messages" else events[:-1]]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        with pytest.raises(StreamInterruptedError):
            async with stream(gateway, protocol, BODIES[protocol]) as got:
                [event async for event in got]


@pytest.mark.parametrize(
    "broken",
    [
        {**MESSAGE, "stop_reason": None},
        {**MESSAGE, "content": []},
        {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
        {},
    ],
)
async def test_what_is_no_whole_message_fails_over(vendors, broken):
    first, second = await vendors(2)
    first.replies, second.replies = [broken], [MESSAGE]
    providers = [config("anthropic", first, priority=2), config("anthropic", second, name="b")]
    async with AsyncGateway(providers) as gateway:
        got = await call(gateway, "messages", BODIES["messages"])
        assert got.response.provider == "b"


@pytest.mark.parametrize(
    "broken",
    [
        {**RESPONSE, "status": "failed", "error": {"code": "server_error", "message": "x"}},
        {**RESPONSE, "status": "cancelled"},
        {**RESPONSE, "output": []},
        {"object": "response"},
        {},
    ],
)
async def test_what_is_no_whole_response_fails_over(vendors, broken):
    first, second = await vendors(2)
    first.replies, second.replies = [broken], [RESPONSE]
    providers = [
        config("openai_compatible", first, priority=2),
        config("openai_compatible", second, name="b"),
    ]
    async with AsyncGateway(providers) as gateway:
        got = await call(gateway, "responses", BODIES["responses"])
        assert got.response.provider == "b"


async def test_betas_and_version_of_the_caller_go_along(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [MESSAGE]
    own = config("anthropic", vendor, headers={"anthropic-beta": "ours,both"})
    async with AsyncGateway([own]) as gateway:
        await call(
            gateway,
            "messages",
            BODIES["messages"],
            headers={"anthropic-beta": "both, theirs", "anthropic-version": "2099-01-01"},
        )
        headers = vendor.last[1]
        assert headers["anthropic-beta"] == "ours,both,theirs"
        assert headers["anthropic-version"] == "2099-01-01"


async def test_what_others_have_signed_does_not_reach_anthropic(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [MESSAGE]
    foreign = sealed({"any": 1})
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": foreign}]},
        {"role": "user", "content": "go on"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "x", "signature": foreign}, use],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}],
        },
    ]
    body = {
        **BODIES["messages"],
        "messages": messages,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2000,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    async with AsyncGateway([config("anthropic", vendor)]) as gateway:
        await call(gateway, "messages", body)
    sent = vendor.last[2]
    assert "aigateway1." not in json.dumps(sent)
    assert [m["role"] for m in sent["messages"]] == ["user", "user", "assistant", "user"]
    assert sent["messages"][2]["content"] == [use]
    assert "thinking" not in sent  # the present turn does not begin with a thought


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_signatures_of_another_account_are_left_out_at_the_second_try(vendors, protocol):
    kind, _, answer, _ = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    if protocol == "messages":
        refusal = {"type": "invalid_request_error", "message": "Invalid `signature` in block"}
        thought = {"type": "thinking", "thinking": "x", "signature": "other account"}
        said = {"role": "assistant", "content": [thought, {"type": "text", "text": "y"}]}
        turns = [*BODIES["messages"]["messages"], said, {"role": "user", "content": "more"}]
        body = {**BODIES["messages"], "messages": turns}
    else:
        refusal = {
            "type": "invalid_request_error",
            "code": "invalid_encrypted_content",
            "message": "The encrypted content could not be verified.",
        }
        item = {"type": "reasoning", "id": "rs_9", "summary": [], "encrypted_content": "other"}
        body = {**BODIES["responses"], "input": [item, {"role": "user", "content": "more"}]}
    vendor.replies = [(400, {"type": "error", "error": refusal}), answer]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        got = await call(gateway, protocol, body)
    assert got.body == answer
    assert "other" in json.dumps(vendor.received[0][2])
    assert "other" not in json.dumps(vendor.received[1][2])


async def test_a_server_that_does_not_speak_responses_is_asked_once(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [(404, {"detail": "Not Found"}), CHAT]
    async with AsyncGateway([config("openai_compatible", vendor)]) as gateway:
        for prompt in ("hi", "again"):
            body = {"input": [{"role": "user", "content": prompt}], "model": "m"}
            got = await call(gateway, "responses", body)
            assert got.response.text == "by chat"
        paths = [path for path, _, _ in vendor.received]
        assert paths == ["/v1/responses", "/v1/chat/completions", "/v1/chat/completions"]
        (status,) = gateway.providers
        assert status.active


async def test_what_only_the_protocol_can_say_is_not_translated(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [(404, {"detail": "Not Found"})]
    async with AsyncGateway([config("openai_compatible", vendor)]) as gateway:
        for _ in range(2):
            with pytest.raises((RequestRejectedError, AllProvidersFailedError)):
                await call(gateway, "responses", {"input": "hi"}, only="previous_response_id")
    # One caller's reference says nothing about the server.
    assert [path for path, _, _ in vendor.received] == ["/v1/responses"] * 2


async def test_a_server_that_was_asked_and_refuses_gets_the_chat(vendors):
    (vendor,) = await vendors(1)
    refusal = {"error": {"message": "tools[0].type: unknown", "type": "invalid_request_error"}}
    vendor.replies = [(400, refusal), CHAT, RESPONSE]
    async with AsyncGateway([config("openai_compatible", vendor)]) as gateway:
        got = await call(gateway, "responses", {"input": "hi"})
        assert got.response.text == "by chat"
        assert len(got.response.attempts) == 1
        # That says nothing about the next request.
        assert (await call(gateway, "responses", {"input": "x"})).body == RESPONSE
    chat, responses = "/v1/chat/completions", "/v1/responses"
    assert [path for path, _, _ in vendor.received] == [responses, chat, responses]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stream_is_not_written_from_less_than_was_answered(vendors, protocol):
    kind, _, answer, events = PROTOCOLS[protocol]
    (vendor,) = await vendors(1)
    vendor.replies = [answer, events]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        await call(gateway, protocol, BODIES[protocol])
        async with stream(gateway, protocol, BODIES[protocol]) as got:
            raw = b"".join([event.raw async for event in got])
    assert raw == b"".join(events)


@pytest.mark.parametrize(
    "words",
    [
        "Item with id 'rs_x' not found. Items are not persisted when `store` is set to false.",
        "Prompt with id 'pmpt_x' not found.",
        "Response with id 'resp_x' not found.",
        "Skill skill_x not found",
    ],
)
@pytest.mark.parametrize("kind", ["openai", "openai_compatible"])
async def test_what_a_request_names_in_vain_blames_no_provider(vendors, words, kind):
    (vendor,) = await vendors(1)
    error = {"error": {"message": words, "type": "invalid_request_error", "code": None}}
    vendor.replies = [(404, error), (404, error), RESPONSE]
    async with AsyncGateway([config(kind, vendor)]) as gateway:
        for prompt in ("hi", "again"):
            with pytest.raises(RequestRejectedError):
                await call(gateway, "responses", {"input": prompt}, only="previous_response_id")
        (status,) = gateway.providers
        assert status.active
        assert (await call(gateway, "responses", {"input": "x"})).body == RESPONSE


async def test_long_ids_of_calls_are_shortened_alike(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [RESPONSE]
    name = "call_" + "x" * 100
    given = [
        {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": name, "output": "1"},
    ]
    async with AsyncGateway([config("openai_compatible", vendor)]) as gateway:
        await call(gateway, "responses", {"input": given})
    first, second = (item["call_id"] for item in vendor.last[2]["input"])
    assert first == second
    assert len(first) <= 64


async def test_what_the_model_does_not_take_is_left_out_by_the_chat(vendors):
    (vendor,) = await vendors(1)
    words = "This model does not support the effort parameter."
    refusal = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
    whole = {**MESSAGE, "content": [{"type": "text", "text": "4"}], "stop_reason": "end_turn"}
    vendor.replies = [(400, refusal), whole]
    async with AsyncGateway([config("anthropic", vendor)]) as gateway:
        got = await call(gateway, "messages", {**BODIES["messages"], "output_config": {}})
    assert got.response.text == "4"
    assert len(got.response.attempts) == 1
    assert "output_config" not in vendor.last[2]


async def test_a_wish_for_single_calls_excludes_no_vendor(simulator):
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    body = {**BODIES["messages"], "tools": [tool], "tool_choice": choice}
    del body["model"], body["brand_new"]
    async with AsyncGateway([simulator.gemini.config()]) as gateway:
        assert (await gateway.messages(body)).body["type"] == "message"


async def test_references_to_what_was_never_stored_do_not_reach_openai(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [RESPONSE]
    kept = {"role": "user", "content": "hi"}
    given = [{"type": "item_reference", "id": "rs_aigw00"}, {"id": "msg_aigw00"}, kept]
    async with AsyncGateway([config("openai_compatible", vendor)]) as gateway:
        await call(gateway, "responses", {"input": given})
    assert vendor.last[2]["input"] == [kept]


async def test_a_new_reason_to_stop_is_an_end(vendors):
    (vendor,) = await vendors(1)
    new = {**MESSAGE, "stop_reason": "brand_new"}
    events = [
        event.replace(b'"tool_use", "stop_seq', b'"brand_new", "stop_seq')
        for event in MESSAGE_EVENTS
    ]
    vendor.replies = [new, events]
    async with AsyncGateway([config("anthropic", vendor)]) as gateway:
        assert (await call(gateway, "messages", BODIES["messages"])).body == new
        async with stream(gateway, "messages", BODIES["messages"]) as got:
            raw = b"".join([event.raw async for event in got])
    assert b"brand_new" in raw
    assert raw == b"".join(events)


async def test_arguments_that_come_whole_are_in_the_answer(vendors):
    (vendor,) = await vendors(1)
    done = {"type": "response.function_call_arguments.done", "output_index": 1}
    whole = events_of({**done, "arguments": '{"a": 1}'})
    vendor.replies = [[*RESPONSE_EVENTS[:5], *whole, RESPONSE_EVENTS[-1]]]
    async with AsyncGateway([config("openai_compatible", vendor)]) as gateway:
        async with stream(gateway, "responses", BODIES["responses"]) as got:
            [event async for event in got]
        (made,) = got.response.tool_calls
        assert made.arguments == '{"a": 1}'


TOO_LARGE = {
    "openai": "max_tokens is too large: 128000. This model supports at most 16384.",
    "vllm": (
        "This model's maximum context length is 8192 tokens. However, you requested 128050"
        " tokens (50 in the messages, 128000 in the completion). Please reduce the length."
    ),
}


@pytest.mark.parametrize("words", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_limit_that_is_too_large_for_the_next_vendor_costs_no_answer(vendors, words):
    first, second = await vendors(2)
    first.replies = [(503, {"error": {"message": "down"}})]
    second.replies = [(400, {"error": {"message": words, "code": "invalid_value"}}), CHAT]
    providers = [
        config("anthropic", first, priority=2),
        config("openai_compatible", second, model="unknown"),
    ]
    body = {**BODIES["messages"], "max_tokens": 128000}
    del body["model"]
    async with AsyncGateway(providers) as gateway:
        got = await gateway.messages(body)
    assert got.response.text == "by chat"
    assert [b.get("max_tokens") for _, _, b in second.received] == [128000, None]


async def test_a_limit_above_the_known_one_of_the_model_is_lowered(vendors):
    (vendor,) = await vendors(1)
    vendor.replies = [CHAT]
    async with AsyncGateway([config("openai", vendor, model="gpt-4o-mini")]) as gateway:
        await gateway.messages({"max_tokens": 128000, "messages": BODIES["messages"]["messages"]})
        await gateway.chat("hi", max_tokens=20000, cache=False)
    assert [body["max_tokens"] for _, _, body in vendor.received] == [16384, 16384]
