"""Plain answers are read as litellm would read them; all others are left to it."""

import copy
import dataclasses
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.messages import ToolCall, Usage
from aigateway.wires.answers import completion_from
from aigateway.wires.anthropic.translation import anthropic_completion
from aigateway.wires.gemini.translation import gemini_completion
from aigateway.wires.litellm.lane import call_options
from aigateway.wires.loading import load_litellm
from aigateway.wires.openai.translation import openai_completion
from aigateway.wires.translation import translation_for
from aigateway.wires.wire import VendorResponse
from tests.wires.calls import asking

BODY = {
    "id": "1",
    "object": "chat.completion",
    "created": 7,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "4", "refusal": None, "annotations": []},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def changed(*path, to):
    body: Any = copy.deepcopy(BODY)
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return body


MESSAGE = ("choices", 0, "message")


def test_a_plain_answer():
    answer = openai_completion(BODY)
    assert answer is not None
    assert (answer.id, answer.model, answer.created) == ("1", "m", 7)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("4", "stop")
    assert answer.usage == Usage(3, 2, 5, 1, 1)


def test_tool_calls():
    body = changed(*MESSAGE, "tool_calls", to=[CALL])
    assert openai_completion(body) is None, "litellm corrects the finish reason"
    body["choices"][0]["finish_reason"] = "tool_calls"
    answer = openai_completion(body)
    assert answer is not None
    assert answer.choices[0].tool_calls == (ToolCall("c", "f", "{}"),)


@pytest.mark.parametrize(
    "body",
    [
        changed(*MESSAGE, "content", to=None),
        changed(*MESSAGE, "content", to=[{"type": "text"}]),
        changed(*MESSAGE, "tool_calls", to=[{**CALL, "type": "custom"}]),
        changed(*MESSAGE, "tool_calls", to=[{**CALL, "function": {"name": "f"}}]),
        changed("choices", 0, "finish_reason", to="eos"),
        changed("choices", 0, "logprobs", to={"content": []}),
        changed("choices", to=[]),
        changed("choices", to=None),
        changed("usage", to=None),
        changed("usage", "prompt_tokens", to="3"),
        changed("usage", "prompt_tokens", to=-1),
        changed("usage", "prompt_tokens_details", to={"audio_tokens": 4}),
        changed("id", to=None),
        changed("model", to=""),
        BODY | {"error": {"message": "x"}},
        BODY | {"service_tier": "priority"},
        {"error": {"message": "no"}},
    ],
    ids=str,
)
def test_what_is_out_of_the_ordinary_is_left_to_litellm(body):
    assert openai_completion(body) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


ANTHROPIC: dict[str, Any] = {
    "id": "1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "4"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 0},
}
GEMINI: dict[str, Any] = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "4"}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
    "modelVersion": "m",
}


@pytest.mark.parametrize(
    ("read", "body"), [(anthropic_completion, ANTHROPIC), (gemini_completion, GEMINI)]
)
def test_plain_answers_of_the_other_wires(read, body):
    answer = read(body)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("4", "stop")
    assert answer.usage == Usage(3, 2, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"content": []},
        {"content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}]},
        {"content": [{"type": "text", "text": ""}]},
        {"content": [{"type": "text", "text": "4", "citations": [{}]}]},
        {"stop_reason": "refusal"},
        {"stop_reason": None},
        {"usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1}},
        {"usage": {"input_tokens": 3, "output_tokens": 2, "cache_creation": {"x": 1}}},
        {"usage": {"input_tokens": 3, "output_tokens": 2, "inference_geo": "us"}},
        {"usage": None},
        {"type": "error"},
        {"error": {"message": "x"}},
        {"model": None},
    ],
    ids=str,
)
def test_anthropics_unusual_answers(change):
    assert anthropic_completion(ANTHROPIC | change) is None


@pytest.mark.parametrize(
    "change",
    [
        {"candidates": []},
        {"candidates": [{"finishReason": "SAFETY"}]},
        {"candidates": [{**GEMINI["candidates"][0], "groundingMetadata": {}}]},
        {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}]},
        {"usageMetadata": {**GEMINI["usageMetadata"], "thoughtsTokenCount": 1}},  # not in the total
        {"usageMetadata": {**GEMINI["usageMetadata"], "cachedContentTokenCount": 1}},
        {
            "usageMetadata": {
                **GEMINI["usageMetadata"],
                "promptTokensDetails": [{"modality": "AUDIO"}],
            }
        },
        {"usageMetadata": {**GEMINI["usageMetadata"], "totalTokenCount": 9}},
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"modelVersion": 3},
    ],
    ids=str,
)
def test_geminis_unusual_answers(change):
    assert gemini_completion(GEMINI | change) is None


REAL: dict[str, dict[str, Any]] = {
    "openai": {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion",
        "created": 1741570283,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Four.",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 10,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 6,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_fc9f1d7035",
    },
    "anthropic": {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": [{"type": "text", "text": "Four."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 19,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 10,
            "service_tier": "standard",
        },
    },
    "gemini": {
        "candidates": [
            {
                "content": {
                    "parts": [{"text": "Four.", "thoughtSignature": "CtwCAb4+9vt="}],
                    "role": "model",
                },
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 19,
            "candidatesTokenCount": 2,
            "totalTokenCount": 29,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 19}],
            "thoughtsTokenCount": 8,
        },
        "modelVersion": "gemini-3.5-flash-lite",
        "responseId": "mAitaLmkHPPlz7IPvtfUqQ4",
    },
}
"""Answers with the fields that the vendors really send."""


@pytest.mark.parametrize("wire", sorted(REAL))
async def test_real_answers_are_plain_and_read_as_litellm_reads_them(simulator, wire):
    config = simulator.vendor(wire).config()
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(await load_litellm(), config, options)
    assert translation is not None
    sent = translation.request(asking())
    assert sent is not None
    received = VendorResponse(200, {}, orjson.dumps(REAL[wire]))
    plain = translation.read_plain(received.json())
    whole = completion_from(translation.answer(asking(), sent, received), model=config.model)
    assert plain is not None
    # litellm makes the time up where the vendor says none, and for Anthropic the name.
    assert plain == dataclasses.replace(whole, created=plain.created, id=plain.id)
    assert plain.id in REAL[wire].values()


READERS = (anthropic_completion, gemini_completion, openai_completion)


@given(json_values, st.sampled_from([(), ("choices",), ("choices", 0), MESSAGE, ("usage",)]))
def test_no_body_raises(value, path):
    for read in READERS:
        read(changed(*path, to=value) if path else value)


@given(json_values, st.sampled_from(sorted(ANTHROPIC)), st.sampled_from(sorted(GEMINI)))
def test_no_body_of_the_other_wires_raises(value, of_anthropic, of_gemini):
    anthropic_completion({**ANTHROPIC, of_anthropic: value})
    gemini_completion({**GEMINI, of_gemini: value})


@pytest.mark.parametrize(
    "body",
    [b'{"a": "ok\\ud83d"}', b'\xef\xbb\xbf{"a": 1}', b'{"a": NaN}'],
    ids=["half", "bom", "nan"],
)
def test_json_that_servers_send_and_orjson_refuses(body):
    assert "a" in VendorResponse(200, {}, body).json()
