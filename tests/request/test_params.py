"""Which parameters there are."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from aigateway.messages import CHAT_PARAMS
from aigateway.request.validate import chat_request
from tests.request.helpers import SECRET, SETTINGS, USER, chat, refused


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


def test_what_is_accepted_but_not_sent() -> None:
    assert chat(stream=False, metadata={"a": "b"}).params == {}


class Message(BaseModel):
    role: str = "user"
    content: str = SECRET


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"temprature": 1}, ['"temprature"', 'did you mean "temperature"?']),
        ({"max_token": 1}, ['did you mean "max_tokens"?']),
        ({"cachettl": 1}, ['did you mean "cache_ttl"?']),
        ({"zzz": SECRET}, ['"zzz"', "extra_body"]),
        ({"z" * 1000: 1}, ["extra_body"]),
        ({"response_format": "json"}, ["response_format", "pydantic model class"]),
        ({"response_format": dict}, ["response_format"]),
        ({"response_format": Message()}, ["response_format"]),
        ({"stream": True}, ["stream", "leave it out"]),
        ({"stream": 0}, ["stream", "leave it out"]),
        ({"stream_options": {}}, ["leave it out"]),
        ({"metadata": "a"}, ["metadata must be an object"]),
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
def test_refused_params(given_: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: chat(**given_))
    for word in words:
        assert word in message


def test_names_need_not_be_text() -> None:
    params: Any = {5: SECRET}
    message = refused(
        lambda: chat_request("a", params=params, settings=SETTINGS),
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
        "cache_control",
        "extra_body",
        "safety_settings",
        "top_k",
    }
