"""litellm takes the simulator for the four vendors. It is slow to import, so it is only here."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from aigateway.simulator import Answer, Fault, Received, SimulatedVendor

# pydantic builds some of litellm's classes at first use, and warns then.
pytestmark = pytest.mark.filterwarnings("ignore:Item .* on TypedDict class:UserWarning")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "place",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    import litellm

    litellm.suppress_debug_info = True
    return litellm


@pytest.fixture
async def call(litellm, vendor: SimulatedVendor):
    """`litellm.acompletion` to the vendor."""

    async def ask(content: str = "What is 2+2?", **more: Any) -> Any:
        version = {"api_version": "2024-10-21"} if vendor.wire == "azure" else {}
        return await litellm.acompletion(
            model=f"{vendor.wire}/{vendor.model}",
            messages=[{"role": "user", "content": content}],
            api_base=vendor.api_base,
            api_key=vendor.key,
            max_retries=0,
            num_retries=0,
            **version,
            **more,
        )

    yield ask
    await litellm.close_litellm_async_clients()
    await litellm.module_level_aclient.close()  # Gemini streams go through it; not in the cache
    litellm.in_memory_llm_clients_cache.flush_cache()


async def test_chat(call, vendor):
    vendor.keys = frozenset({vendor.key})
    vendor.answer(Answer("four", usage={"prompt_tokens": 11, "completion_tokens": 3}))
    reply = await call()
    assert reply.choices[0].message.content == "four"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (11, 3)


async def test_stream(call, vendor):
    stream = await call("one two three", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "one two three"
    assert any(c.choices and c.choices[0].finish_reason == "stop" for c in chunks)
    assert getattr(chunks[-1], "usage", None) is None or chunks[-1].usage.completion_tokens == 3


async def test_a_tool_round_trip(call, vendor):
    reply = await call(tools=TOOLS, tool_choice="required")
    tool = reply.choices[0].message.tool_calls[0]
    assert tool.function.name == "place"
    assert json.loads(tool.function.arguments) == {"city": "text"}


async def test_tools_in_a_stream(call, vendor):
    vendor.answer(Answer(tool_calls=[("place", {"city": "Bern"})]))
    stream = await call(tools=TOOLS, stream=True)
    arguments = ""
    async for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or ():
            arguments += part.function.arguments or ""
    assert json.loads(arguments) == {"city": "Bern"}


async def test_structured_output(call, vendor):
    schema = TOOLS[0]["function"]["parameters"]  # type: ignore[index]
    json_schema = {"name": "place", "schema": schema, "strict": True}
    reply = await call(response_format={"type": "json_schema", "json_schema": json_schema})
    assert json.loads(reply.choices[0].message.content) == {"city": "text"}


async def test_reasoning_and_system(call, vendor):
    vendor.answer(lambda received: Answer(str(system_of(received)), reasoning="hm"))
    # Newer ones of litellm know that the latest models of Gemini take no temperature.
    reply = await call(temperature=0.5, stop=["END"], drop_params=True)
    assert reply.choices[0].message.reasoning_content == "hm"


def system_of(received: Received) -> bool:
    return "system" in str(received.body)


@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        (Fault.context_window(), {"ContextWindowExceededError"}),
        (Fault.content_policy(), {"ContentPolicyViolationError", "content_filter"}),
        (Fault.bad_key(), {"AuthenticationError"}),
        (Fault.model_not_found(), {"NotFoundError"}),
        (Fault.rate_limited(), {"RateLimitError"}),
        (Fault.server_error(), {"InternalServerError", "APIError"}),
        (Fault.overloaded(), {"ServiceUnavailableError", "InternalServerError"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_errors_are_recognised(call, vendor, fault, errors):
    vendor.behave(fault)
    try:
        reply = await call()
    except Exception as error:  # noqa: BLE001 - the class is the point
        assert type(error).__name__ in errors  # noqa: PT017 - Gemini raises none for a refusal
    else:
        assert reply.choices[0].finish_reason in errors
