"""Conversations that change vendors: each turn is taken by the next, which is as strict as it is.

The first turn is at one vendor, the second at another, the third back at the first. The simulated
vendors refuse what the real ones do: foreign fields, ids that are too long, missing signatures.
"""

import json
import re
from typing import Any

import openai
import pytest
from aiohttp import web

from aigateway import AsyncGateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import ChatRequest, ChatResponse
from aigateway.settings import LLMConfig
from aigateway.simulator import Answer
from aigateway.testing import FakeClock
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.history import History
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.server.services import served
from tests.wires.bodies import COMPATIBLE, GEMINI, Vendor, gemini, read_out
from tests.wires.calls import LITELLM, in_turn

VENDORS = ("openai", "azure", "gemini", "anthropic", "lenient", "strict")
EACH_KIND = tuple(name for name in VENDORS if name != "azure")
"""Azure takes conversations as OpenAI does."""
MODELS = {"lenient": {"model": "local"}, "strict": {"model": "local"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
ASK: Any = [{"role": "user", "content": [{"type": "text", "text": "Weather?"}, PICTURE]}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "strict": True, "parameters": PARAMETERS}
TOOLS: Any = [{"type": "function", "function": WEATHER}]
THINKING = {"type": "enabled", "budget_tokens": 1024}
PARAMS: Any = {"tools": TOOLS, "thinking": THINKING, "max_tokens": 4096}
CALLS = [("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})]


EACH_WAY = in_turn(VENDORS, (False, True))
"""Each vendor in each lane, whole or streamed."""


def calling(prefix, thinking="shown"):
    """An answer with two calls; ids of vLLM are longer than OpenAI takes."""
    calls = [
        {"name": name, "arguments": arguments, "id": f"{prefix}-{place}"}
        for place, (name, arguments) in enumerate(CALLS)
    ]
    return Answer("Let me see.", tool_calls=calls, reasoning="hm hm", thinking=thinking)


@pytest.fixture
async def vendors(simulator):
    named = {name: getattr(simulator, name) for name in VENDORS[:4]}
    for name in VENDORS[4:]:
        named[name] = await simulator.add("openai_compatible", name)
    named["strict"].strict = True
    return named


@pytest.fixture
async def clients(request, vendors):
    # For models that it takes for Llama, litellm fetches a tokenizer.
    configs = {n: v.config(**MODELS.get(n, {})) for n, v in vendors.items()}
    made = {name: request.param(config, SYSTEM_CLOCK) for name, config in configs.items()}
    yield made
    for client in made.values():
        await client.aclose()


async def message_of(client, messages, *, streamed):
    """The message of an answer, as a caller of the library has it."""
    request = ChatRequest(tuple(messages), params=PARAMS)
    if not streamed:
        reply = ChatResponse(await client.chat(request), "p")
        return reply.to_openai()["choices"][0]["message"]
    stream = await client.stream(request)
    text, blocks, signatures = "", [], []
    calls: dict[int, dict[str, Any]] = {}
    while (chunks := await stream.read()) is not None:
        for chunk in chunks:
            text += chunk.text
            blocks += chunk.thinking_blocks
            signatures += chunk.thought_signatures
            for delta in chunk.tool_calls:
                function = {"name": delta.name, "arguments": ""}
                new = {"id": delta.id, "type": "function", "function": function}
                call = calls.setdefault(delta.index, new)
                call["function"]["arguments"] += delta.arguments
                if delta.thought_signature:
                    signed = {"thought_signature": delta.thought_signature}
                    call["provider_specific_fields"] = signed
    await stream.aclose()
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "tool_calls": list(calls.values()),
    }
    if blocks:
        message["thinking_blocks"] = blocks
    if signatures:
        message["provider_specific_fields"] = {"thought_signatures": signatures}
    return message


def bare(message):
    """What most frameworks keep of a message."""
    calls = [
        {name: call[name] for name in ("id", "type", "function")}
        for call in message.get("tool_calls") or ()
    ]
    kept = {"role": "assistant", "content": message["content"]}
    return kept | ({"tool_calls": calls} if calls else {})


def results(message):
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": "5 C"}
        for call in message.get("tool_calls") or ()
    ]


def signatures_in(vendor):
    """The signatures that the last request to a vendor carries, with those of Gemini's calls."""
    body = vendor.received[-1].body
    parts = [p for c in body.get("contents") or () for p in c["parts"]]
    blocks = [
        b for m in body.get("messages") or () for b in m.get("content") or () if isinstance(b, dict)
    ]
    signed = [p.get("thoughtSignature") for p in parts]
    signed += [b.get("signature") or b.get("data") for b in blocks]
    return [signature for signature in signed if signature]


def own_signatures(message):
    blocks = [b.get("signature") or b.get("data") for b in message.get("thinking_blocks") or ()]
    calls = message.get("tool_calls") or ()
    return blocks + [
        c["provider_specific_fields"]["thought_signature"]
        for c in calls
        if "provider_specific_fields" in c
    ]


@pytest.mark.parametrize(
    ("clients", "kept", "ways"),
    [
        (DirectClient, "whole", "both"),
        (DirectClient, "bare", "in turn"),
        (LiteLLMClient, "whole", "in turn"),
    ],
    indirect=["clients"],
    ids=["direct-whole", "direct-bare", "litellm-whole"],
)
@pytest.mark.parametrize("first", EACH_KIND)
async def test_a_tool_loop_changes_vendors(vendors, clients, first, kept, ways):
    keep = bare if kept == "bare" else dict
    thinkings = ["shown", *(["redacted", "omitted"] if first == "anthropic" else [])]
    if LITELLM < (1, 109):  # it drops signed blocks without a text
        thinkings = thinkings[:2]
    for place, second in enumerate(EACH_KIND):
        for turn, thinking in enumerate(thinkings, place + EACH_KIND.index(first)):
            for streamed in (False, True) if ways == "both" else (turn % 2 == 1,):
                vendors[second].answer(calling("chatcmpl-tool-" + "b" * 32))
                vendors[first].answer(calling("chatcmpl-tool-" + "a" * 32, thinking))
                one = await message_of(clients[first], ASK, streamed=streamed)
                assert len(one["tool_calls"]) == 2
                assert all("__thought__" not in call["id"] for call in one["tool_calls"])
                talk = [*ASK, keep(one), *results(one)]
                two = await message_of(clients[second], talk, streamed=streamed)
                if second != first:
                    sent = json.dumps(vendors[second].received[-1].body)
                    assert not any(signed in sent for signed in own_signatures(one))
                talk += [keep(two), *results(two)]
                vendors[first].answer("Cold.")
                three = await message_of(clients[first], talk, streamed=streamed)
                assert three["content"] == "Cold."
                body = vendors[first].received[-1].body
                if kept == "whole":
                    assert set(own_signatures(one)) <= set(signatures_in(vendors[first]))
                if first == "anthropic":
                    assert ("thinking" in body) == (kept == "whole")
                    assert bool(own_signatures(one))
                # The turn ends, the user goes on, and the model may think again.
                talk += [keep(three), {"role": "user", "content": "Thanks."}]
                vendors[second].answer("You are welcome.")
                last = await message_of(clients[second], talk, streamed=streamed)
                assert last["content"] == "You are welcome."
                if second == "anthropic":
                    assert "thinking" in vendors[second].received[-1].body


@pytest.mark.parametrize("first", EACH_KIND)
async def test_through_the_service(vendors, first):
    async with (
        served(*vendors.values(), cache_enabled=False) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        ask = {"tools": TOOLS, "max_tokens": 4096, "extra_body": {"thinking": THINKING}}

        async def answer(name, messages, *, streamed):
            model = vendors[name].config().name
            chat = client.chat.completions
            if not streamed:
                reply = await chat.create(model=model, messages=messages, **ask)
            else:
                async with chat.stream(model=model, messages=messages, **ask) as stream:
                    reply = await stream.get_final_completion()
            return reply.choices[0].message.model_dump(exclude_none=True)

        for turn, second in enumerate(EACH_KIND, EACH_KIND.index(first)):
            streamed = turn % 2 == 1
            vendors[second].answer(calling("chatcmpl-tool-" + "b" * 32))
            vendors[first].answer(calling("chatcmpl-tool-" + "a" * 32))
            one = await answer(first, ASK, streamed=streamed)
            talk = [*ASK, one, *results(one)]
            two = await answer(second, talk, streamed=streamed)
            talk += [two, *results(two)]
            vendors[first].answer("Cold.")
            three = await answer(first, talk, streamed=streamed)
            assert three["content"] == "Cold."
            assert set(own_signatures(one)) <= set(signatures_in(vendors[first]))
            assert bool(own_signatures(one)) == (first in {"anthropic", "gemini"})


# ── what else histories hold ─────────────────────────────────────────────────────────────────────

SIGNATURE = "c2lnbmVk" * 60
CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}


def told(call, **message):
    """A history whose last turn is the result of a tool."""
    answer = {"role": "assistant", "content": None, "tool_calls": [{**CALL, **call}], **message}
    return [*ASK, answer, {"role": "tool", "tool_call_id": call["id"], "content": "5 C"}]


async def body_of(vendor, messages, lane=DirectClient, *, config=None, streamed=False, **params):
    """What a vendor gets of a history."""
    client = lane(vendor.config(**(config or {})), SYSTEM_CLOCK)
    request = ChatRequest(tuple(messages), params={"tools": TOOLS, **params})
    try:
        if streamed:
            stream = await client.stream(request)
            await read_out(stream)
            await stream.aclose()
        else:
            await client.chat(request)
    finally:
        await client.aclose()
    return vendor.received[-1].body


def ids_in(body):
    """The ids of calls and results, on any wire."""
    messages = body["messages"]
    blocks = [b for m in messages for b in m.get("content") or () if isinstance(b, dict)]
    calls = [c["id"] for m in messages for c in m.get("tool_calls") or ()]
    calls += [b["id"] for b in blocks if b["type"] == "tool_use"]
    given = [m["tool_call_id"] for m in messages if "tool_call_id" in m]
    return calls, given + [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_a_signature_within_an_id(vendors, lane):
    history = told({"id": f"call_1__thought__{SIGNATURE}"})
    for name in ("openai", "azure", "anthropic", "lenient", "strict"):
        body = await body_of(vendors[name], history, lane)
        assert ids_in(body) == (["call_1"], ["call_1"])
        assert SIGNATURE not in json.dumps(body)
    async with Vendor() as vendor:
        gemini(vendor, [{"text": "ok"}])
        client = lane(vendor.config(GEMINI, model="gemini-3.1-pro-preview"), SYSTEM_CLOCK)
        await client.chat(ChatRequest(tuple(history), params={"tools": TOOLS}))
        await client.aclose()
        (call,) = (
            p for c in vendor.received["contents"] for p in c["parts"] if "function_call" in p
        )
        assert call["thoughtSignature"] == SIGNATURE
        assert "__thought__" not in json.dumps(vendor.received)


@pytest.mark.parametrize(
    ("name", "config", "pattern"),
    [
        ("openai", {}, r".{1,40}"),
        ("azure", {}, r".{1,40}"),
        ("lenient", {"model": "local"}, r"[a-zA-Z0-9_.:-]{1,40}"),
        ("lenient", {"model": "mistral-large-latest"}, r"[a-zA-Z0-9]{9}"),
        ("anthropic", {}, r"[a-zA-Z0-9_-]{1,64}"),
    ],
)
async def test_ids_fit_and_stay_apart(vendors, name, config, pattern):
    given = ["functions.weather:0", "a" * 70 + "1", "a" * 70 + "2", "Straße 1", "call_1", "x y"]
    given += [f"call_1__thought__{SIGNATURE}", f"call_1__thought__{SIGNATURE}2"]
    calls = [{**CALL, "id": each} for each in given]
    history = [*ASK, {"role": "assistant", "content": None, "tool_calls": calls}]
    history += [{"role": "tool", "tool_call_id": each, "content": "5 C"} for each in given]
    calls, answered = ids_in(await body_of(vendors[name], history, config=config))
    assert calls == answered
    assert len(set(calls)) == len(given)
    assert all(re.fullmatch(pattern, each) for each in calls)
    again, _ = ids_in(await body_of(vendors[name], history, config=config))
    assert again == calls  # another client, as if it were another process


async def test_ids_that_a_server_gives_anew_in_each_turn(vendors):
    history = told({"id": "call_0"}) + told({"id": "call_0"})
    calls, answered = ids_in(await body_of(vendors["anthropic"], history))
    assert calls == answered
    assert calls[0] == "call_0" != calls[1]


async def test_a_call_without_a_signature_gets_googles_stand_in(vendors):
    body = await body_of(vendors["gemini"], told({"id": "call_1"}))
    (call,) = (p for c in body["contents"] for p in c["parts"] if "function_call" in p)
    assert call["thoughtSignature"] == "skip_thought_signature_validator"


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_a_signature_that_anthropic_refuses(vendors, lane):
    vendor = vendors["anthropic"]
    foreign = [{"type": "thinking", "thinking": "hm", "signature": SIGNATURE}]
    history = told({"id": "call_1"}, thinking_blocks=foreign)
    body = await body_of(vendor, history, lane, thinking=THINKING, max_tokens=4096)
    assert len(vendor.received) == 2
    assert "thinking" not in json.dumps(body)


async def test_thinking_that_is_left_out_is_named(vendors):
    config = vendors["anthropic"].config()
    async with AsyncGateway([config], retry_rounds=0, cache_enabled=False) as gateway:
        reply = await gateway.chat(told({"id": "call_1"}), **PARAMS)
        assert reply.attempts[-1].dropped == ("thinking",)
        begun = [*told({"id": "call_1"}), {"role": "assistant", "content": "Cold."}, ASK[0]]
        reply = await gateway.chat(begun, **PARAMS)
        assert reply.attempts[-1].dropped == ()


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_reasoning_goes_back_where_it_may_be_wanted(vendors, lane):
    history = told({"id": "call_1"}, reasoning_content="hm", refusal=None, annotations=[])
    local = {"model": "local"}
    body = await body_of(vendors["lenient"], history, lane, config=local)
    assert body["messages"][1]["reasoning_content"] == "hm"
    assert body["messages"][1].keys() <= {"role", "content", "tool_calls", "reasoning_content"}
    body = await body_of(vendors["strict"], history, lane, config=local)
    assert len(vendors["strict"].received) == 2
    assert "reasoning_content" not in body["messages"][1]
    signed = told({"id": "call_1", "provider_specific_fields": {"thought_signature": "x"}})
    signed[1]["reasoning_content"] = "hm"  # Gemini's
    body = await body_of(vendors["lenient"], signed, lane, config=local)
    assert "reasoning_content" not in body["messages"][1]
    for name in ("openai", "azure", "anthropic", "gemini"):
        assert "hm" not in json.dumps(await body_of(vendors[name], history, lane)).split('"')
        vendors[name].clear()


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
@pytest.mark.parametrize("name", VENDORS)
async def test_answers_that_are_no_text(vendors, name, lane):
    picture = {"index": 0, **PICTURE}
    speech = {"id": "audio_1", "data": "UklG", "transcript": "Hello", "expires_at": 1}
    answers: Any = [
        {"content": "", "images": [picture], "refusal": None},
        {"content": None, "refusal": "No.", "annotations": []},
        {"content": None, "audio": speech, "citations": ["x"]},
        {"content": None, "audio": {**speech, "id": "4f1e", "transcript": "Foreign"}},
        {"content": None, "audio": {"data": "UklG", "transcript": "", "expires_at": 0}},
    ]
    history = []
    for answer in answers:
        history += [*ASK, {"role": "assistant", **answer}]
    vendors[name].answer("ok")
    config = MODELS.get(name)
    body = json.dumps(await body_of(vendors[name], [*history, *ASK], lane, config=config))
    knows = name in {"openai", "azure"}
    assert "No." in body
    assert ('"audio": {"id": "audio_1"}' in body, "Hello" in body) == (knows, not knows)
    assert "Foreign" in body
    assert "[audio]" in body
    assert "UklG" not in body
    assert "4f1e" not in body


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_calls_of_functions_before_there_were_tools(vendors, lane):
    called = {"role": "assistant", "content": "", "function_call": CALL["function"]}
    result = {"role": "function", "name": "weather", "content": "5 C"}
    history = [*ASK, called, result, *ASK, called, {**result, "content": "6 C"}]
    thinking = {"thinking": THINKING, "max_tokens": 4096}
    bodies = [await body_of(vendors["anthropic"], history, lane, **thinking) for _ in range(2)]
    calls, answered = ids_in(bodies[0])
    assert calls == answered
    assert len(set(calls)) == 2
    assert bodies[0] == bodies[1]
    assert "thinking" not in bodies[0]  # the turn does not begin with a thought
    assert "5 C" in json.dumps(bodies[0]["messages"])
    body = await body_of(vendors["gemini"], history, lane)
    names = [name for c in body["contents"] for p in c["parts"] for name in p]
    assert names.count("function_call") == names.count("function_response") == 2
    for name in ("openai", "azure"):
        body = await body_of(vendors[name], history, lane)
        assert body["messages"][1:3] == [called, result]


MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
@pytest.mark.parametrize("name", VENDORS)
async def test_marks_for_a_cache_go_to_anthropic_alone(vendors, name, lane):
    part = {"type": "text", "text": "Hi " * 2000, **MARK}
    history = [{"role": "system", "content": [part]}, *told({"id": "call_1"}, **MARK)]
    history[-1] |= MARK
    marked = [{**TOOLS[0], **MARK}]
    for messages in (history, [{"role": "user", "content": "Hi"}]):
        body = await body_of(vendors[name], messages, lane, config=MODELS.get(name), tools=marked)
        assert ("cache_control" in json.dumps(body)) == (name == "anthropic")


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"api_base": "https://openrouter.ai/api/v1"}, True),
        ({"model": "anthropic/claude-haiku-4-5", "api_base": "http://localhost:4000"}, True),
        ({"api_base": "https://api.groq.com/openai/v1"}, False),
        ({"api_base": "https://api.mistral.ai/v1"}, False),
        ({"api_base": "http://localhost:8000/v1"}, False),
    ],
)
def test_servers_that_hand_marks_on(config, kept):
    part = {"type": "text", "text": "Hi", **MARK}
    request = ChatRequest(({"role": "user", "content": [part]},))
    server = LLMConfig(COMPATIBLE, **{"model": "local"} | config)
    fitted = History(server, SYSTEM_CLOCK).fitted(request)
    assert ("cache_control" in str(fitted.messages)) == kept


ARGUMENTS = {
    "": {},
    " ": {},
    '{"city": "Oslo"}': {"city": "Oslo"},
    **{text: {"arguments": text} for text in ('{"bad', "null", "[1]", "3", '"x"', "{}{}")},
}


def sent_calls(body):
    """The arguments of the calls in a body, on any wire."""
    parts = [p for c in body.get("contents") or () for p in c["parts"]]
    given = [p["function_call"]["args"] for p in parts if "function_call" in p]
    for message in body.get("messages") or ():
        blocks = message.get("content") or ()
        given += [b["input"] for b in blocks if isinstance(b, dict) and b["type"] == "tool_use"]
        given += [c["function"]["arguments"] for c in message.get("tool_calls") or ()]
    return given


@pytest.mark.parametrize(("name", "streamed", "lane"), EACH_WAY)
async def test_arguments_that_are_no_object(vendors, name, lane, streamed):
    for text, read in ARGUMENTS.items():
        function = {"name": "weather", "arguments": text}
        history = told({"id": "call_1", "function": function})
        config = MODELS.get(name)
        body = await body_of(vendors[name], history, lane, config=config, streamed=streamed)
        assert sent_calls(body) == [read if name in {"anthropic", "gemini"} else text]


async def test_arguments_of_an_old_function_call(vendors):
    called: dict[str, Any] = {"role": "assistant", "content": None}
    called["function_call"] = {"name": "weather", "arguments": "{bad"}
    result = {"role": "function", "name": "weather", "content": "5 C"}
    body = await body_of(vendors["gemini"], [*ASK, called, result])
    assert sent_calls(body) == [{"arguments": "{bad"}]


@pytest.mark.parametrize(("name", "streamed", "lane"), EACH_WAY)
async def test_an_assistant_who_said_nothing(vendors, name, lane, streamed):
    kept: Any = [{}, {"refusal": None, "tool_calls": None, "annotations": []}]
    for more in kept:
        history = [*ASK, {"role": "assistant", "content": None, **more}, *ASK]
        config = MODELS.get(name)
        body = await body_of(vendors[name], history, lane, config=config, streamed=streamed)
        said = body.get("messages") or body.get("contents")
        assert [m["role"] for m in said][1:] == [
            "model" if name == "gemini" else "assistant",
            "user",
        ]
        assert "[no answer]" in json.dumps(said[1])


async def test_an_assistant_who_said_nothing_is_taken(vendors):
    history = [*ASK, {"role": "assistant", "content": None}, *ASK]
    async with (
        AsyncGateway([vendors["openai"].config()]) as gateway,
        served(vendors["openai"]) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk,
    ):
        assert (await gateway.chat(history)).text
        history[1]["refusal"] = None
        reply = await sdk.chat.completions.create(model="auto", messages=history)
        assert reply.choices[0].message.content
    bodies = [received.body for received in vendors["openai"].received]
    assert [body["messages"][1]["content"] for body in bodies] == ["[no answer]"] * 2


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_a_document_in_the_place_of_a_picture(vendors, lane):
    url = "data:application/pdf;base64,JVBERi0="
    part = {"type": "image_url", "image_url": {"url": url}}
    body = await body_of(vendors["anthropic"], [{"role": "user", "content": [part]}], lane)
    (block,) = body["messages"][0]["content"]
    assert (block["type"], block["source"]["media_type"]) == ("document", "application/pdf")


def test_a_conversation_in_plain_text_is_not_copied(vendors):
    texts = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
    request = ChatRequest(tuple(texts))
    for vendor in vendors.values():
        assert History(vendor.config(), SYSTEM_CLOCK).fitted(request) is request


# ── what an answer says beside its text ──────────────────────────────────────────────────────────


async def test_thinking_is_given_out(simulator):
    for thinking in ("shown", "redacted", "omitted"):
        simulator.anthropic.answer(Answer("Hi", reasoning="hm hm", thinking=thinking))
        config = simulator.anthropic.config()
        async with AsyncGateway([config]) as gateway:
            reply = await gateway.chat("Hello")
            for _ in range(2):  # from the vendor, and from memory
                async with gateway.stream("Hello", model=config.name) as stream:
                    blocks = [
                        b for chunk in [c async for c in stream] for b in chunk.thinking_blocks
                    ]
                assert blocks == stream.response.thinking_blocks == reply.thinking_blocks
        (block,) = reply.thinking_blocks
        names = {"type", "data"} if thinking == "redacted" else {"type", "thinking", "signature"}
        assert block.keys() == names
        assert block.get("thinking", "") == ("hm hm" if thinking == "shown" else "")
        assert reply.to_openai()["choices"][0]["message"]["thinking_blocks"] == [block]


@pytest.mark.parametrize(
    ("host", "has", "has_not"),
    [
        ("api.groq.com/openai/v1", (), ("reasoning_content", "extra_content")),
        ("api.mistral.ai/v1", (), ("reasoning_content", "call_1")),
        ("generativelanguage.googleapis.com/v1beta/openai", ("extra_content",), ("hm",)),
        ("api.deepseek.com/v1", ("reasoning_content",), ("refusal",)),
    ],
)
def test_servers_that_are_known_by_their_address(host, has, has_not):
    signed = {} if "deepseek" in host else {"thought_signature": SIGNATURE}
    call = {"id": "call_1", "provider_specific_fields": signed}
    history = told(call, reasoning_content="hm", refusal=None)
    config = LLMConfig(COMPATIBLE, "local", api_base=f"https://{host}")
    nowhere = config.model_copy(update={"api_base": None})
    for rules in (
        History(config, SYSTEM_CLOCK),
        History(nowhere, SYSTEM_CLOCK, f"https://{host}"),  # the wire's own address
    ):
        sent = json.dumps(rules.fitted(ChatRequest(tuple(history))).messages)
        assert all(name in sent for name in has)
        assert not any(name in sent for name in has_not)


async def test_calls_that_are_alike_keep_their_results(vendors):
    calls = [{**CALL, "id": f"call_{number}"} for number in range(2)]
    history = [*ASK, {"role": "assistant", "content": None, "tool_calls": calls}]
    history += [
        {"role": "tool", "tool_call_id": "call_1", "content": "6 C"},
        {"role": "tool", "tool_call_id": "call_0", "content": "5 C"},
    ]
    for model, count in (("gemini-2.5-flash", 1), ("gemini-3.1-pro-preview", 2)):
        body = await body_of(vendors["gemini"], history, config={"model": model})
        parts = [name for c in body["contents"] for p in c["parts"] for name in p]
        assert parts.count("function_call") == parts.count("function_response") == count
        assert "5 C" in str(body)
        assert "6 C" in str(body)


class Picky(Vendor):
    """An OpenAI-compatible server that refuses what its rules refuse."""

    def __init__(self, *rules):
        super().__init__()
        self.rules = rules
        answer = {"role": "assistant", "content": "ok"}
        choices = [{"index": 0, "finish_reason": "stop", "message": answer}]
        self.whole = {"id": "1", "object": "chat.completion", "choices": choices}
        self.bodies = []

    async def _answer(self, request):
        self.bodies.append(await request.json())
        for rule in self.rules:
            for place, message in enumerate(self.bodies[-1]["messages"]):
                error = rule(place, message)
                if error is not None:
                    return web.json_response({"error": error}, status=400)
        return await super()._answer(request)

    async def ask(self, client, history):
        """What arrived of the answer in this history."""
        await client.chat(ChatRequest(tuple(history)))
        return self.bodies[-1]["messages"][1]


def misses(place, message):
    if message.get("tool_calls") and "reasoning_content" not in message:
        return {"message": f"Missing `reasoning_content` field at message index {place}."}
    return None


def refuses(*names):
    def rule(place, message):
        for name in names:
            if name in message or any(name in call for call in message.get("tool_calls") or ()):
                words = "Extra inputs are not permitted"
                return {"message": f"messages.{place}.assistant.{name}: {words}"}
        return None

    return rule


def reads_no_pictures(place, message):
    if isinstance(message.get("content"), list):
        words = f"messages[{place}]: unknown variant `image_url`, expected `text`"
        return {"message": f"Failed to deserialize the JSON body into the target type: {words}"}
    return None


def quotes(place, message):
    if "quote" in (message.get("content") or ""):
        words = f"Invalid 'messages[{place}].content': '{message['content']}'"
        return {"message": words, "param": f"messages[{place}].content"}
    return None


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
class TestWhatServersRefuse:
    """What one caller's request is refused for changes no other caller's."""

    @pytest.mark.parametrize(
        ("rule", "odd"),
        [
            (reads_no_pictures, {"role": "user", "content": ASK[0]["content"]}),
            (refuses("foo"), {"role": "user", "content": "q", "foo": 1}),
            (quotes, {"role": "user", "content": "quote: unsupported reasoning_content"}),
        ],
        ids=["picture", "own field", "quoted"],
    )
    async def test_a_mistake_of_one_caller(self, lane, rule, odd):
        good = told({"id": "call_1"}, reasoning_content="hm")[1:]
        good = [{"role": "user", "content": "q"}, *good]
        async with Picky(rule, misses) as server:
            client = lane(server.config(COMPATIBLE, model="local"), FakeClock())
            with pytest.raises(VendorCallError):
                await server.ask(client, [*good, odd])
            assert len(server.bodies) == 1
            assert (await server.ask(client, good))["reasoning_content"] == "hm"
            await client.aclose()

    async def test_only_the_fields_that_are_named_are_left_out_for_an_hour(self, lane):
        clock = FakeClock()
        call = {"id": "call_1", "extra_content": {"google": {}}}
        history = told(call, reasoning="hm", reasoning_content="hm")[1:]
        history = [{"role": "user", "content": "q"}, *history]
        async with Picky(refuses("reasoning", "extra_content"), misses) as server:
            client = lane(server.config(COMPATIBLE, model="local"), clock)
            for count in (3, 4):
                sent = await server.ask(client, history)
                assert (sent["reasoning_content"], "reasoning" in sent) == ("hm", False)
                assert "extra_content" not in sent["tool_calls"][0]
                assert len(server.bodies) == count
            server.rules = ()
            await clock.advance(3601)
            assert (await server.ask(client, history))["reasoning"] == "hm"
            await client.aclose()

    async def test_a_field_that_is_missed_comes_back(self, lane):
        history = told({"id": "call_1"}, reasoning_content="hm")[1:]
        history = [{"role": "user", "content": "q"}, *history]
        async with Picky(refuses("reasoning_content")) as server:
            client = lane(server.config(COMPATIBLE, model="local"), FakeClock())
            assert "reasoning_content" not in await server.ask(client, history)
            server.rules = (misses,)
            assert (await server.ask(client, history))["reasoning_content"] == "hm"
            without = [history[0], told({"id": "call_1"})[1], history[2]]
            assert (await server.ask(client, without))["reasoning_content"] == " "
            server.rules = (misses, refuses("reasoning_content"))
            for _ in range(2):
                with pytest.raises(VendorCallError):  # and no endless loop
                    await server.ask(client, history)
            assert len(server.bodies) < 12
            await client.aclose()
