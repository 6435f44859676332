"""Conversations that change vendors: each turn is taken by the next, which is as strict as it is.

The first turn is at one vendor, the second at another, the third back at the first. The simulated
vendors refuse what the real ones do: foreign fields, ids that are too long, missing signatures.
"""

import json
from typing import Any

import openai
import pytest

from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import ChatRequest, ChatResponse
from aigateway.simulator import Answer
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm_lane import LiteLLMClient
from tests.server.services import served

VENDORS = ("openai", "azure", "gemini", "anthropic", "lenient", "strict")
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
    message = {"role": "assistant", "content": text, "tool_calls": list(calls.values())}
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
        b for m in body.get("messages") or () for b in m["content"] or () if isinstance(b, dict)
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
    ("clients", "kept"),
    [(DirectClient, "whole"), (DirectClient, "bare"), (LiteLLMClient, "whole")],
    indirect=["clients"],
    ids=["direct-whole", "direct-bare", "litellm-whole"],
)
@pytest.mark.parametrize("first", VENDORS)
async def test_a_tool_loop_changes_vendors(vendors, clients, first, kept):
    keep = bare if kept == "bare" else dict
    thinkings = ("shown", "redacted", "omitted") if first == "anthropic" else ("shown",)
    for second in VENDORS:
        for thinking in thinkings:
            for streamed in (False, True):
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


@pytest.mark.parametrize("first", VENDORS)
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

        for second in VENDORS:
            for streamed in (False, True):
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
