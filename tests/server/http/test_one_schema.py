"""The library and the service give the same verdict on every request, in the same words."""

from __future__ import annotations

import copy
import inspect
import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway, GatewaySettings, RequestRejectedError
from aigateway.messages import CHAT_PARAMS
from aigateway.request.schema import CHAT_FIELDS
from aigateway.request.validate import _CHAT_OPTIONS, chat_request
from aigateway.server.http.bodies import COMPLETION_NAMES, MAY_BE_PASSED, read_completion
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.services import scripted

ACCEPTED = None
USER = {"role": "user", "content": "Hi."}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CUSTOM = {"id": "1", "type": "custom", "custom": {"name": "f", "input": "x"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TEXT = {"type": "text", "text": "a"}


def said(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more}]}


def answered(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", **fields}]}


# What is asked, beside one message of a user, and the message of the refusal.
PROBES: tuple[tuple[dict[str, Any], str | None], ...] = (
    # messages
    ({}, ACCEPTED),
    ({"messages": []}, "messages must have at least one message."),
    (
        {"messages": [5]},
        'messages[0] is int, not an object; give an object with "role" and "content".',
    ),
    (
        {"messages": [{"role": "usr", "content": "a"}]},
        "messages[0] must have a role: system, developer, user, assistant, tool, function; did you",
    ),
    ({"messages": [{"role": "user"}]}, 'messages[0] must have "content".'),
    (said(None), "messages[0].content must be a text or a list of parts."),
    (said(""), "messages[0].content must not be empty."),
    (said(" "), ACCEPTED),
    (said([]), "messages[0].content must not be empty."),
    (said(5), "messages[0].content must be a text or a list of parts."),
    (said("a", "system"), ACCEPTED),
    (said("", "developer"), ACCEPTED),
    (said("a", name=5), "messages[0].name must be a text."),
    (said("a", name=None, cache_control={"type": "ephemeral"}), ACCEPTED),
    (said("a", "tool"), 'messages[0] must have "tool_call_id".'),
    (said("", "tool", tool_call_id="1"), ACCEPTED),
    (said("a", "function"), 'messages[0] must have "name".'),
    # parts
    (said([TEXT]), ACCEPTED),
    (said(["a"]), 'messages[0].content[0] must be an object with a "type", such as "text".'),
    (said([{"type": "text"}]), 'messages[0].content[0] must have "text".'),
    (said([{"type": "text", "text": 1}]), "messages[0].content[0].text must be a text."),
    (said([{"type": "image_url", "image_url": {"url": "data:"}}]), ACCEPTED),
    (said([{"type": "image_url", "image_url": "data:"}]), ACCEPTED),
    (
        said([{"type": "image_url", "image_url": {}}]),
        'messages[0].content[0].image_url must have "url".',
    ),
    (said([{"type": "document", "source": {"type": "text", "data": "a"}}]), ACCEPTED),
    # answers of the assistant
    (answered(), 'messages[1] must have "content".'),
    (answered(content=None), ACCEPTED),
    (answered(content=""), ACCEPTED),
    (answered(refusal="No."), ACCEPTED),
    (answered(tool_calls=[CALL]), ACCEPTED),
    (answered(tool_calls=[CUSTOM]), ACCEPTED),
    (answered(tool_calls=[]), 'messages[1] must have "content".'),
    (answered(tool_calls=[{}]), 'messages[1].tool_calls[0] must have "id".'),
    (answered(tool_calls=[{"id": "1"}]), 'messages[1].tool_calls[0] must have "function".'),
    (
        answered(tool_calls=[{"id": "1", "function": {"name": "f", "arguments": {}}}]),
        "messages[1].tool_calls[0].function.arguments must be a text.",
    ),
    (answered(function_call={"name": "f"}), 'messages[1].function_call must have "arguments".'),
    # numbers
    ({"temperature": 2}, ACCEPTED),
    ({"temperature": 2.1}, "temperature must be at most 2."),
    ({"temperature": -1}, "temperature must be at least 0."),
    ({"temperature": True}, "temperature must be a number."),
    ({"temperature": "1"}, "temperature must be a number."),
    ({"temperature": None}, ACCEPTED),
    ({"top_p": 1.5}, "top_p must be at most 1."),
    ({"presence_penalty": -3}, "presence_penalty must be at least -2."),
    ({"max_tokens": 5.0}, ACCEPTED),
    ({"max_tokens": 5.5}, "max_tokens must be a whole number."),
    ({"max_tokens": 0}, "max_tokens must be at least 1."),
    ({"max_completion_tokens": "5"}, "max_completion_tokens must be a whole number."),
    ({"n": 128}, ACCEPTED),
    ({"n": 129}, "n must be at most 128."),
    ({"seed": -5}, ACCEPTED),
    ({"seed": 2**63}, "seed must be at most 9223372036854775807."),
    ({"seed": "x"}, "seed must be a whole number."),
    ({"top_k": -1}, ACCEPTED),
    ({"top_logprobs": 21}, "top_logprobs must be at most 20."),
    ({"logprobs": 1}, "logprobs must be true or false."),
    ({"logit_bias": {"5": -100}}, ACCEPTED),
    ({"logit_bias": {"5": "much"}}, "logit_bias.5 must be a number."),
    ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias must have at most 1024"),
    # texts and lists
    ({"stop": "a"}, ACCEPTED),
    ({"stop": ["a", "b"]}, ACCEPTED),
    ({"stop": [1]}, "stop[0] must be a text."),
    ({"stop": 1}, "stop must be a text or a list of texts."),
    ({"stop": ["a"] * 1025}, "stop must have at most 1024 items."),
    ({"user": 5}, "user must be a text."),
    ({"reasoning_effort": {}}, "reasoning_effort must be a text."),
    ({"modalities": ["text", 1]}, "modalities[1] must be a text."),
    ({"metadata": {"a": "b"}}, ACCEPTED),
    ({"metadata": "a"}, "metadata must be an object."),
    ({"thinking": []}, "thinking must be an object."),
    # formats and tools
    ({"response_format": {"type": "json_object"}}, ACCEPTED),
    ({"response_format": {"type": "grammar", "grammar": "root ::= 'a'"}}, ACCEPTED),
    ({"response_format": "json"}, 'response_format must be an object with a "type", such as "json'),
    ({"response_format": {}}, 'response_format must be an object with a "type", such as "json'),
    ({"response_format": {"type": "json_schema"}}, 'response_format must have "json_schema".'),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        'response_format.json_schema must have "name".',
    ),
    ({"tools": [FUNCTION]}, ACCEPTED),
    ({"tools": []}, ACCEPTED),
    ({"tools": [{"function": {"name": "f"}}]}, ACCEPTED),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ACCEPTED),
    ({"tools": [{"googleSearch": {}}]}, ACCEPTED),
    ({"tools": FUNCTION}, "tools must be a list."),
    ({"tools": [{}]}, 'tools[0] must be an object with a "type", such as "function".'),
    ({"tools": [{"type": "function"}]}, 'tools[0] must have "function".'),
    (
        {"tools": [FUNCTION, {"type": "function", "function": {"name": ""}}]},
        "tools[1].function.name must not be empty.",
    ),
    ({"tool_choice": "auto"}, ACCEPTED),
    ({"tool_choice": 5}, "tool_choice must be a text or an object."),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, ACCEPTED),
    ({"tool_choice": {}}, 'tool_choice must have "type".'),
    ({"functions": [{}]}, 'functions[0] must have "name".'),
    # names
    ({"temprature": 1}, 'There is no parameter "temprature"; did you mean "temperature"?'),
    ({"stream": False}, ACCEPTED),
)

EMBEDDINGS: tuple[tuple[Any, str | None], ...] = (
    ("a", ACCEPTED),
    (["a", "b"], ACCEPTED),
    ([1, 2.0], ACCEPTED),
    ([[1], [2]], ACCEPTED),
    (["a"] * 3000, ACCEPTED),
    (None, " must be a text or a list of texts, or tokens in their place."),
    ([], " must be a text or a list of texts, or tokens in their place."),
    ("", "[0] must be a text that is not empty."),
    (["a", 5], "[1] must be a text that is not empty."),
    ([[1], []], "[1] must be a list of at least one token."),
    ([1, 2.5], "[0] must have tokens only: whole numbers from 0 to 2^31 - 1."),
    ([1, True], "[0] must have tokens only: whole numbers from 0 to 2^31 - 1."),
    ([2**31], "[0] must have tokens only: whole numbers from 0 to 2^31 - 1."),
)


class Both:
    """The library and the service: each gives None, or the message of the refusal."""

    def __init__(self, gateway: AsyncGateway, vendor: ScriptedVendor, client: httpx.AsyncClient):
        self.gateway = gateway
        self.vendor = vendor
        self.client = client

    async def chat(self, fields):
        body = {"messages": [USER], **fields}
        options = {name: value for name, value in body.items() if name != "messages"}
        asked = self.gateway.chat(body["messages"], cache=False, **options)
        return await refusal(asked), await self.service("/v1/chat/completions", body)

    async def embed(self, inputs):
        asked = self.gateway.embed(inputs)
        return await refusal(asked), await self.service("/v1/embeddings", {"input": inputs})

    async def service(self, path, body):
        answer = await self.client.post(path, json=body, headers={"x-aigateway-cache": "false"})
        assert answer.status_code in {200, 400}
        if answer.status_code == 200:
            return ACCEPTED
        # The library has no such setting: it has extra_body.
        return answer.json()["error"]["message"].removesuffix(MAY_BE_PASSED)


async def refusal(asked):
    try:
        await asked
    except RequestRejectedError as error:
        return str(error)
    return ACCEPTED


@pytest.fixture
async def both():
    vendor = ScriptedVendor()
    async with (
        AsyncGateway(scripted_configs("a"), vendor=vendor, retry_rounds=0) as gateway,
        scripted(vendor) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        yield Both(gateway, vendor, client)


def test_there_are_enough_probes():
    assert len(PROBES) >= 60
    assert 20 < sum(verdict is ACCEPTED for _, verdict in PROBES) < 50


async def test_a_chat_is_judged_alike(both):
    for fields, expected in PROBES:
        before = len(both.vendor.calls)
        library, service = await both.chat(fields)
        assert library == service, fields
        asked = len(both.vendor.calls) - before
        assert asked == (2 if expected is ACCEPTED else 0), fields
        assert (library or "").startswith(expected or ""), fields
        assert (library is ACCEPTED) == (expected is ACCEPTED), fields


async def test_an_embedding_is_judged_alike(both):
    for inputs, expected in EMBEDDINGS:
        wanted = tuple(name + expected if expected else None for name in ("inputs", "input"))
        assert await both.embed(inputs) == wanted, inputs


async def test_a_check_names_the_field(both):
    for fields, expected in PROBES:
        options = {name: value for name, value in fields.items() if name != "messages"}
        if expected is not ACCEPTED:
            with pytest.raises(RequestRejectedError) as caught:
                both.gateway.check(fields.get("messages", [USER]), **options)
            assert caught.value.param
            assert copy.copy(caught.value).param == caught.value.param


WORDS = st.sampled_from(
    [
        *("role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "id"),
        *("user", "assistant", "tool", "tool_call_id", "image_url", "url", "json_schema", "custom"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.text(max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS, inner, max_size=4)
        | st.fixed_dictionaries({"role": WORDS, "content": inner})
        | st.fixed_dictionaries({"type": WORDS, "function": inner})
    ),
    max_leaves=10,
)
NAMES = sorted(COMPLETION_NAMES - {"messages", "model", "stream", "stream_options"})


@given(
    st.lists(VALUES, max_size=3) | st.just([USER]),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
)
def test_any_request_is_judged_alike(messages, fields):
    def library():
        return chat_request(messages, params=fields, settings=GatewaySettings())

    def service():
        return read_completion({"messages": messages, **fields})

    verdicts: list[tuple[str, str | None, str | None] | None] = []
    for judge in (library, service):
        try:
            judge()
        except RequestRejectedError as error:
            verdicts.append((str(error), error.param, error.code))
        else:
            verdicts.append(ACCEPTED)
    assert verdicts[0] == verdicts[1]


ONLY_LIBRARY = {
    "agent": "a",
    "cache": "refresh",
    "cache_ttl": 5,
    "extra_body": {"a": 1},
    "extra_headers": {"X-A": "1"},
    "timeout": 5,
}


async def test_what_only_the_library_takes(both):
    """In a body these would say where a request goes, or are headers of the service."""
    for name, value in ONLY_LIBRARY.items():
        both.gateway.check("Hi.", **{name: value})
        service = await both.service("/v1/chat/completions", {"messages": [USER], name: value})
        assert service.startswith(f'"{name}" cannot be given with a request'), service


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_what_json_cannot_say(both, value):
    with pytest.raises(RequestRejectedError, match="temperature must be a finite number"):
        both.gateway.check("Hi.", temperature=value)
    body = json.dumps({"messages": [USER], "temperature": value}).encode()
    kind = {"content-type": "application/json"}
    answer = await both.client.post("/v1/chat/completions", content=body, headers=kind)
    assert answer.status_code == 400


def test_the_schema_and_the_wires_know_the_same_parameters():
    own = {"metadata", "model", "stream", "stream_options"}  # not sent as they are
    assert CHAT_FIELDS.keys() == CHAT_PARAMS | own


def test_the_options_that_errors_suggest_are_those_of_chat():
    taken = inspect.signature(AsyncGateway.chat).parameters.keys()
    assert set(_CHAT_OPTIONS) <= taken
