"""Events that no vendor would send: whatever comes, a reading ends with an answer or a problem."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigateway.settings import LLMConfig, ProviderType
from aigateway.wires.answers import empty_answer_kind
from aigateway.wires.litellm.lane import call_options
from aigateway.wires.loading import load_litellm
from aigateway.wires.translation import translation_for
from tests.wires.calls import asking

MODELS = {
    ProviderType.OPENAI: "gpt-4o-mini",
    ProviderType.ANTHROPIC: "claude-haiku-4-5",
    ProviderType.GEMINI: "gemini-2.5-flash",
}


def openai(delta, finish=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "1", "created": 7, "model": "m", "choices": [choice], "usage": None} | more


CALL = {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
OPENAI = [
    openai({"role": "assistant", "content": "", "refusal": None}),
    openai({"content": "Hi"}, service_tier="default"),
    openai({"content": "Hi", "annotations": []}),
    openai({"reasoning_content": "Hm", "refusal": "No"}),
    openai({"tool_calls": [CALL]}),
    openai({}, "stop"),
    openai({"content": "x"}, "eos_token"),
    openai({}, "stop", usage=USAGE),
]
OPENAI[1]["choices"][0]["logprobs"] = {"content": [{"token": "Hi", "logprob": -1}]}

ANTHROPIC = [
    {
        "type": "message_start",
        "message": {"id": "1", "model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}},
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "x", "name": "f", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": "{}"},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "thinking_delta", "thinking": "Hm"},
    },
    {"type": "content_block_stop", "index": 1},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 2, "cache_read_input_tokens": 1},
    },
]

COUNT = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}


def gemini(*parts, **more):
    candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}} | more
    return {
        "candidates": [candidate],
        "usageMetadata": COUNT | {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 3}]},
        "modelVersion": "m",
        "responseId": "1",
    }


GEMINI = [
    gemini({"text": "Hi"}),
    gemini({"text": "Hm", "thought": True}),
    gemini({"functionCall": {"name": "f", "args": {"a": 1}}}),
    gemini({"text": "Hi"}, finishReason="STOP"),
    gemini({"text": "Hi"}, groundingMetadata={"webSearchQueries": ["x"]}),
    {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": COUNT | {"thoughtsTokenCount": 1},
    },
    gemini(finishReason="SAFETY"),
]
EVENTS = {
    ProviderType.OPENAI: OPENAI,
    ProviderType.ANTHROPIC: ANTHROPIC,
    ProviderType.GEMINI: GEMINI,
}

JUNK = st.sampled_from(
    [None, True, 0, -1, 7, 10**30, 1.5, "", "x", [], ["x"], [7], [None], {}, {"x": 1}, {"text": 7}]
)


def places_in(value, here=()):
    """Where something stands in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield (*here, key)
        if isinstance(part, dict | list):
            yield from places_in(part, (*here, key))


@st.composite
def spoilt(draw, events):
    """One of the events, mostly with something wrong in it."""
    event = copy.deepcopy(draw(st.sampled_from(events)))
    place = draw(st.none() | st.sampled_from(list(places_in(event))))
    if place is not None:
        holder = event
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = draw(JUNK)
    return event


@pytest.mark.parametrize("provider", MODELS)
@pytest.mark.hypothesis
async def test_whatever_comes(provider):
    litellm = await load_litellm()
    config = LLMConfig(provider, MODELS[provider], api_key="k")
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(litellm, config, options)
    assert translation is not None
    sent = translation.request(asking(), streamed=True)
    assert sent is not None

    @settings(max_examples=2 * settings().max_examples)
    @given(st.lists(spoilt(EVENTS[provider]), min_size=1, max_size=4))
    def check(events):
        reading = translation.reading(sent)
        chunks = reading.take((b"", json.dumps(event).encode()) for event in events)
        reading.count()
        completion = reading.assembly.completion()
        empty_answer_kind(completion.choices, stops=False)
        hash(completion)  # nothing in it can be changed
        assert len(completion.choices) <= 256
        for index, choice in enumerate(completion.choices):
            assert choice.text == "".join(c.text for c in chunks if c.index == index)
            assert choice.finish_reason is None or isinstance(choice.finish_reason, str)

    check()
