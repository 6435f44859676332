"""What becomes a request, and what is refused before anybody is asked."""

from __future__ import annotations

import math
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
from aigateway.messages import ChatRequest, EmbeddingRequest
from aigateway.settings import GatewaySettings

SECRET = "the-prompts-own-words"
SETTINGS = GatewaySettings.model_construct(max_prompt_bytes=10_000)
NAN, INF = math.nan, math.inf
USER = {"role": "user", "content": SECRET}


def chat(prompt: Any = SECRET, /, **given: Any) -> ChatRequest:
    options = ("system", "model", "temperature", "max_tokens", "timeout", "agent", "cache")
    named = {name: given.pop(name) for name in (*options, "cache_ttl") if name in given}
    return intake.chat_request(prompt, params=given, settings=SETTINGS, **named)


def embed(inputs: Any = SECRET, /, **given: Any) -> EmbeddingRequest:
    named = {name: given.pop(name) for name in ("model", "timeout") if name in given}
    return intake.embedding_request(inputs, params=given, settings=SETTINGS, **named)


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(RequestRejectedError) as caught:
        make()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value)


# --- what goes through --------------------------------------------------------------------------


def test_text() -> None:
    request = chat()
    assert request.messages == (USER,)
    assert request.params == {}
    assert request.cache is True
    assert len(request.request_id) == 16


def test_ids_differ() -> None:
    assert len({chat().request_id for _ in range(1000)}) == 1000


def test_all_options() -> None:
    request = chat(
        system="be terse",
        model="fast",
        temperature=0,
        max_tokens=5,
        timeout=2.5,
        agent="a",
        cache="refresh",
        cache_ttl=60,
        seed=1,
        stop=None,
        tools=[{"type": "function"}],
    )
    assert request.messages == ({"role": "system", "content": "be terse"}, USER)
    assert request.params == {
        "temperature": 0,
        "max_tokens": 5,
        "seed": 1,
        "tools": [{"type": "function"}],
    }
    assert request.model == "fast"
    assert request.timeout == 2.5
    assert request.agent == "a"
    assert request.cache == "refresh"
    assert request.cache_ttl == 60


def test_an_empty_system_is_none() -> None:
    assert chat(system="").messages == (USER,)


def test_what_comes_out_is_a_copy() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    messages: list[Any] = [message]
    tools: list[Any] = [{"type": "function", "function": {"name": "f"}}]
    request = chat(messages, tools=tools)
    before = orjson.dumps([request.messages, request.params])
    messages.append(1)
    message["content"] = "changed"
    tools[0]["function"]["name"] = "changed"
    assert orjson.dumps([request.messages, request.params]) == before


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "s"},
        {"role": "user", "content": "", "name": "n"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "function_call": {"name": "f"}},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "function", "name": "f", "content": "42"},
        MappingProxyType({"role": "user", "content": "frozen"}),
    ],
)
def test_messages_that_are_fine(message: Any) -> None:
    assert chat([message]).messages == (dict(message),)
    assert chat((message,)).messages == (dict(message),)


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


def test_numpys_floats_are_floats() -> None:
    class Float64(float):
        """As numpy's: a float to Python, unknown to orjson."""

    assert chat(temperature=Float64(0.5)).params == {"temperature": 0.5}
    assert "temperature" in refused(lambda: chat(temperature=Float64("nan")))
    assert "NaN" in refused(lambda: chat(logit_bias={"1": Float64("nan")}))


def test_not_streaming_need_not_be_said() -> None:
    assert chat(stream=False).params == {}


# --- what is refused: messages ------------------------------------------------------------------

CYCLE: list[Any] = [USER]
CYCLE.append({"role": "user", "content": CYCLE})
DEEP: list[Any] = []
for _ in range(2000):
    DEEP = [DEEP]


class Message(BaseModel):
    role: str = "user"
    content: str = SECRET


@dataclass
class Record:
    role: str = "user"
    content: float = NAN


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["empty"]),
        (" \n\t", ["empty"]),
        ([], ["messages is empty"]),
        ((), ["messages is empty"]),
        (None, ["NoneType", "list of messages"]),
        (5, ["int"]),
        ({"role": "user", "content": SECRET}, ["dict", "list of messages"]),
        (iter([USER]), ["list of messages"]),
        (SECRET.encode(), ["bytes"]),
        ("\ud800" + SECRET, ["The prompt", "surrogates"]),
        ([SECRET], ["messages[0] is str", "mapping"]),
        ([USER, None], ["messages[1]", "NoneType"]),
        ([Message()], ["messages[0] is Message", "model_dump"]),
        ([Record()], ["messages[0]", "Record"]),
        ([{}], ["messages[0]", "role"]),
        ([{"role": SECRET, "content": "x"}], ["messages[0]", "system, developer"]),
        ([{"role": "usr", "content": "x"}], ['did you mean "user"?']),
        ([{"role": ["user"], "content": "x"}], ["messages[0]", "role"]),
        ([{"role": {}, "content": "x"}], ["messages[0]", "role"]),
        ([USER, {"role": "user"}], ["messages[1]", "content is missing"]),
        ([{"role": "user", "content": None}], ["content is missing"]),
        ([{"role": "user", "tool_calls": [{}]}], ["content is missing"]),
        ([{"role": "assistant", "content": None}], ["content is missing"]),
        ([{"role": "assistant", "tool_calls": []}], ["content is missing"]),
        ([{"role": "user", "content": 5}], ["content must be"]),
        ([{"role": "user", "content": {"type": "text"}}], ["content must be"]),
        ([{"role": "user", "content": []}], ["content must be"]),
        ([{"role": "user", "content": [SECRET]}], ["content[0]", "type"]),
        ([{"role": "user", "content": [{"text": SECRET}]}], ["content[0]", "type"]),
        ([{"role": "tool", "content": SECRET}], ["tool_call_id"]),
        ([{"role": "tool", "content": SECRET, "tool_call_id": ""}], ["tool_call_id"]),
        ([{"role": "tool", "content": SECRET, "tool_call_id": 5}], ["tool_call_id"]),
        ([USER, {"role": "user", "content": {SECRET}}], ["messages[1]", "JSON", "set"]),
        ([USER, {"role": "user", "content": SECRET.encode()}], ["messages[1]", "bytes"]),
        ([USER, {"role": "user", "content": "\udfff"}], ["messages[1]", "surrogates"]),
        ([USER, {"role": "user", "content": "x", 5: SECRET}], ["messages[1]", "key"]),
        ([USER, {"role": "user", "content": "x", "a": NAN}], ["messages[1]", "NaN"]),
        ([USER, {"role": "user", "content": "x", "a": [{"b": (-INF,)}]}], ["messages[1]", "NaN"]),
        ([USER, {"role": "user", "content": "x", "a": 2**64}], ["messages[1]", "64-bit"]),
        (CYCLE, ["messages[1]", "Recursion"]),
        ([{"role": "user", "content": DEEP}], ["Recursion"]),
        ([USER, {"role": "user", "content": "x", "a": Record()}], ["messages[1]", "Record"]),
    ],
)
def test_refused_prompts(prompt: Any, words: list[str]) -> None:
    message = refused(lambda: chat(prompt))
    for word in words:
        assert word in message


def test_a_null_is_no_nan() -> None:
    assert chat([{**USER, "name": None}]).messages == ({**USER, "name": None},)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_two_system_messages_are_ambiguous(role: str) -> None:
    messages = [{"role": role, "content": SECRET}, USER]
    assert len(chat(messages).messages) == 2
    assert "give only one" in refused(lambda: chat(messages, system="b"))


@pytest.mark.parametrize("system", [5, ["parts"], "\ud800"])
def test_refused_systems(system: Any) -> None:
    assert "system" in refused(lambda: chat(system=system))


def test_the_index_is_the_callers_own_with_a_system_too() -> None:
    assert "messages[0]" in refused(lambda: chat([{"role": "user"}], system="s"))


@pytest.mark.parametrize("system", [None, "\N{EURO SIGN}" * 100])
def test_size_is_counted_in_bytes_with_the_system(system: Any) -> None:
    settings = SETTINGS.model_copy(update={"max_prompt_bytes": 400})

    def ask(length: int) -> ChatRequest:
        return intake.chat_request("x" * length, system=system, params={}, settings=settings)

    most = 400 - len('[{"role":"user","content":""}]')
    if system:
        most -= 300 + len('{"role":"system","content":""}')
    assert ask(most).messages
    message = refused(lambda: ask(most + 1))
    for word in ("401 bytes", "400 allowed", "max_prompt_bytes"):
        assert word in message


# --- what is refused: options and parameters ----------------------------------------------------


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

    assert not intake._CHAT_PARAMS & set(all_litellm_params)
    # Those not among OpenAI's common ones are other vendors'.
    assert intake._CHAT_PARAMS - set(OPENAI_CHAT_COMPLETION_PARAMS) <= {
        "extra_body",
        "safety_settings",
        "top_k",
    }


# --- response_format ----------------------------------------------------------------------------


class City(BaseModel):
    name: str
    population: int | None = None
    default: str = "a property may have this name"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Tree(BaseModel):
    left: Tree | None = None
    root: City = Field(description="why it is here")
    pets: list[Cat | Dog] = []
    pet: Cat | Dog = Field(discriminator="kind")
    pair: tuple[City, int]


class Open(BaseModel):
    counts: dict[str, City]


class Broken(BaseModel):
    call: Callable[[], None]


def schema_of(model: Any) -> Any:
    form = chat(response_format=model).params["response_format"]
    assert form["type"] == "json_schema"
    return form["json_schema"]


def test_a_model_class_becomes_a_strict_schema() -> None:
    request = chat(response_format=City)
    assert request.response_model is City
    assert request.params["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "City",
            "strict": True,
            "schema": {
                "title": "City",
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "population", "default"],
                "properties": {
                    "name": {"title": "Name", "type": "string"},
                    "population": {
                        "title": "Population",
                        "anyOf": [{"type": "integer"}, {"type": "null"}],
                    },
                    "default": {"title": "Default", "type": "string"},
                },
            },
        },
    }


def test_every_level_is_strict() -> None:
    form = schema_of(Tree)
    assert form["strict"] is True

    def check(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                check(item)
        elif isinstance(node, dict):
            assert "oneOf" not in node
            assert not ("$ref" in node and len(node) > 1)
            if node.get("type") == "object":
                assert node["additionalProperties"] is False
                assert node["required"] == list(node["properties"])
            for item in node.values():
                check(item)

    check(form["schema"])
    assert form["schema"]["type"] == "object", "although it refers to itself"
    assert form["schema"]["properties"]["root"] == {
        "description": "why it is here",
        "anyOf": [{"$ref": "#/$defs/City"}],
    }


def test_an_open_mapping_is_not_promised() -> None:
    form = schema_of(Open)
    assert form["strict"] is False
    assert form["schema"]["properties"]["counts"]["additionalProperties"] == {
        "$ref": "#/$defs/City"
    }


def test_schemas_are_made_once_and_never_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(BaseModel):
        a: int

    first = schema_of(Once)
    monkeypatch.setattr(Once, "model_json_schema", None)
    second = schema_of(Once)
    assert first == second
    assert first is not second


def test_names_fit_the_vendors_pattern() -> None:
    class Generic(BaseModel):
        a: int

    Generic.__name__ = "Page[int]" + "x" * 100
    assert schema_of(Generic)["name"] == "Page_int_" + "x" * 55


@pytest.mark.parametrize("model", [Broken, RootModel[list[int]]])
def test_refused_models(model: Any) -> None:
    assert "response_format" in refused(lambda: chat(response_format=model))


# --- embeddings ---------------------------------------------------------------------------------


def test_embedding() -> None:
    request = embed(["a", "b"], model="m", timeout=5, dimensions=8, user=None)
    assert request.inputs == ("a", "b")
    assert request.params == {"dimensions": 8}
    assert request.model == "m"
    assert request.timeout == 5
    assert len(request.request_id) == 16
    assert embed("a").inputs == ("a",)


@pytest.mark.parametrize(
    ("inputs", "given_", "words"),
    [
        ("", {}, ["inputs[0]"]),
        ([], {}, ["inputs"]),
        (None, {}, ["inputs"]),
        (["a", ""], {}, ["inputs[1]"]),
        (["a", [1, 2]], {}, ["inputs[1]"]),
        (["a", "\ud800"], {}, ["inputs[1]", "surrogates"]),
        ("x" * 10_000, {}, ["bytes", "max_prompt_bytes"]),
        ("a", {"dimensions": 0}, ["dimensions"]),
        ("a", {"dimension": 5}, ['did you mean "dimensions"?']),
        ("a", {"temperature": 1}, ["temperature"]),
        ("a", {"encoding_format": "base64"}, ["encoding_format", "float"]),
        ("a", {"api_key": SECRET}, ["LLMConfig"]),
        ("a", {"model": ""}, ["model"]),
        ("a", {"timeout": 0}, ["timeout"]),
        ("a", {"user": {1}}, ["params['user']"]),
    ],
)
def test_refused_embeddings(inputs: Any, given_: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: embed(inputs, **given_))
    for word in words:
        assert word in message


# --- anything at all ----------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
)
NAMES = st.sampled_from(
    [
        *("role", "content", "type", "text", "tool_calls", "tool_call_id", "name"),
        *("user", "assistant", "system", "tool"),
    ]
)
JSON = st.recursive(
    SCALARS | NAMES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=5)
        | st.fixed_dictionaries({"role": NAMES, "content": inner})
    ),
    max_leaves=12,
)
PARAM_NAMES = st.sampled_from(sorted(intake._CHAT_PARAMS)) | st.text(max_size=8)


@given(
    JSON,
    st.dictionaries(PARAM_NAMES, JSON, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "system": JSON,
            "model": JSON,
            "temperature": JSON,
            "max_tokens": JSON,
            "timeout": JSON,
            "agent": JSON,
            "cache": JSON,
            "cache_ttl": JSON,
        },
    ),
)
def test_anything_is_a_request_or_refused(
    prompt: Any, params: dict[str, Any], options: dict[str, Any]
) -> None:
    try:
        request = intake.chat_request(prompt, params=params, settings=SETTINGS, **options)
    except RequestRejectedError as error:
        assert error.__context__ is None  # noqa: PT017  # either outcome is right
        return
    sent = orjson.dumps([request.messages, request.params])
    assert orjson.loads(sent) == [list(request.messages), request.params]
    assert request.messages
    assert request.timeout is None or 0 < request.timeout < INF


@given(st.lists(st.fixed_dictionaries({"role": NAMES, "content": SCALARS}), min_size=1))
def test_messages_come_out_as_they_went_in(messages: Any) -> None:
    try:
        request = chat(messages)
    except RequestRejectedError:
        return
    assert list(request.messages) == messages


@given(JSON, st.dictionaries(PARAM_NAMES, JSON, max_size=3))
def test_any_embedding_is_a_request_or_refused(inputs: Any, params: dict[str, Any]) -> None:
    try:
        request = intake.embedding_request(inputs, params=params, settings=SETTINGS)
    except RequestRejectedError:
        return
    assert all(request.inputs)
