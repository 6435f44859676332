"""Which parameters there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel

from aigateway import intake
from aigateway.errors import RequestRejectedError
from aigateway.intake.params import CHAT_PARAMS
from aigateway.messages import ChatRequest
from tests.intake.helpers import CYCLE, INF, NAN, SECRET, SETTINGS, USER, chat, embed, refused


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 2},
        {"temperature": 0.0},
        {"top_p": 0},
        {"top_p": 1.0},
        {"n": 3},
        {"max_completion_tokens": 1},
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"guided_choice": ["a"]}},
        {"extra_headers": {"X-Trace": "1"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"reasoning_effort": "low", "top_k": 5, "safety_settings": []},
        {"logit_bias": {"50256": -100}, "user": "u", "stop": ["\n"]},
    ],
)
def test_params_that_are_fine(params: dict[str, Any]) -> None:
    assert chat(**params).params == params


def test_not_streaming_need_not_be_said() -> None:
    assert chat(stream=False).params == {}


class Message(BaseModel):
    role: str = "user"
    content: str = SECRET


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"temperature": -0.1}, ["temperature", "0 to 2"]),
        ({"temperature": 2.1}, ["temperature"]),
        ({"temperature": NAN}, ["temperature"]),
        ({"temperature": INF}, ["temperature"]),
        ({"temperature": True}, ["temperature"]),
        ({"temperature": SECRET}, ["temperature"]),
        ({"top_p": 1.1}, ["top_p", "0 to 1"]),
        ({"top_p": "1"}, ["top_p"]),
        ({"max_tokens": 0}, ["max_tokens", "at least 1"]),
        ({"max_tokens": True}, ["max_tokens"]),
        ({"max_tokens": 5.0}, ["max_tokens", "whole number"]),
        ({"max_completion_tokens": -1}, ["max_completion_tokens"]),
        ({"max_tokens": 2**64}, ["params['max_tokens']", "64-bit"]),
        ({"n": 0}, ["n must"]),
        ({"n": "2"}, ["n must"]),
        ({"timeout": 0}, ["timeout", "seconds"]),
        ({"timeout": -1}, ["timeout"]),
        ({"timeout": NAN}, ["timeout"]),
        ({"timeout": INF}, ["timeout"]),
        ({"timeout": 10**400}, ["timeout"]),
        ({"timeout": True}, ["timeout"]),
        ({"timeout": "5"}, ["timeout"]),
        ({"cache_ttl": 0}, ["cache_ttl"]),
        ({"cache_ttl": NAN}, ["cache_ttl"]),
        ({"cache": 1}, ["cache must be", "refresh"]),
        ({"cache": None}, ["cache must be"]),
        ({"cache": SECRET}, ["cache must be"]),
        ({"cache": []}, ["cache must be"]),
        ({"model": ""}, ["model"]),
        ({"model": 5}, ["model"]),
        ({"agent": ""}, ["agent"]),
        ({"agent": ["a"]}, ["agent"]),
        ({"temprature": 1}, ['"temprature"', 'did you mean "temperature"?']),
        ({"max_token": 1}, ['did you mean "max_tokens"?']),
        ({"cachettl": 1}, ['did you mean "cache_ttl"?']),
        ({"zzz": SECRET}, ['"zzz"', "extra_body"]),
        ({"z" * 1000: 1}, ["extra_body"]),
        ({"extra_body": [1]}, ["extra_body", "mapping"]),
        ({"extra_body": {"model": SECRET}}, ["extra_body", "model"]),
        ({"extra_body": {"stream": True}}, ["extra_body", "stream"]),
        ({"extra_headers": [SECRET]}, ["extra_headers"]),
        ({"extra_headers": {"X": SECRET + "\r\nY: z"}}, ["extra_headers", "line breaks"]),
        ({"extra_headers": {"X": 5}}, ["extra_headers"]),
        ({"extra_headers": {"X": "\N{EURO SIGN}"}}, ["extra_headers", "ASCII"]),
        ({"tools": [{SECRET}]}, ["params['tools']", "set"]),
        ({"tools": CYCLE}, ["params['tools']", "Recursion"]),
        ({"logit_bias": {"1": NAN}}, ["params['logit_bias']", "NaN"]),
        ({"seed": 2**70}, ["params['seed']", "64-bit"]),
        ({"stop": "\ud800"}, ["params['stop']", "surrogates"]),
        ({"response_format": "json"}, ["response_format", "pydantic model class"]),
        ({"response_format": dict}, ["response_format"]),
        ({"response_format": Message()}, ["response_format"]),
        ({"stream": True}, ["stream", "does not stream"]),
        ({"stream": 0}, ["stream", "does not stream"]),
        ({"stream_options": {}}, ["does not stream"]),
        ({"metadata": {"a": "b"}}, ["metadata", "agent="]),
        ({"max_retries": 2}, ["retry_rounds"]),
        ({"num_retries": 2}, ["retry_rounds"]),
        ({"fallbacks": []}, ["priority"]),
        ({"model_list": []}, ["LLMConfig"]),
        ({"base_url": "http://h"}, ["LLMConfig(api_base=...)"]),
        ({"api_base": "http://h"}, ["LLMConfig(api_base=...)"]),
        ({"api_key": SECRET}, ["LLMConfig(api_key=...)"]),
        ({"api_version": "v1"}, ["LLMConfig(api_version=...)"]),
        ({"custom_llm_provider": "x"}, ["LLMConfig(provider=...)"]),
        ({"caching": True}, ["cache=True"]),
        ({"mock_response": SECRET}, ["tests"]),
        ({"client": object()}, ["connections"]),
        ({"input_cost_per_token": 1}, ["prices"]),
        ({"headers": {}}, ["extra_headers"]),
        ({"request_timeout": 1}, ["timeout="]),
        ({"messages": [USER]}, ["first argument"]),
    ],
)
def test_refused_options(given_: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: chat(**given_))
    for word in words:
        assert word in message


def test_names_need_not_be_text() -> None:
    params: Any = {5: SECRET}
    message = refused(
        lambda: intake.chat_request("a", params=params, settings=SETTINGS),
    )
    assert '"5"' in message


def test_nothing_of_litellms_own_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_MODE", "PRODUCTION")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm import OPENAI_CHAT_COMPLETION_PARAMS
    from litellm.types.utils import all_litellm_params

    assert not CHAT_PARAMS & set(all_litellm_params)
    # Those not among OpenAI's common ones are other vendors'.
    assert CHAT_PARAMS - set(OPENAI_CHAT_COMPLETION_PARAMS) <= {
        "extra_body",
        "safety_settings",
        "top_k",
    }
