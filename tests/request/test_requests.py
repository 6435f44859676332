"""Arguments that become a request, and arguments that are refused before a vendor is asked."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from aigateway.cache.key import request_digest
from aigateway.tokens import prompt_size
from tests.request.helpers import INF, NAN, SECRET, USER, chat, embed, refused

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


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
        tools=[TOOL],
    )
    assert request.messages == ({"role": "system", "content": "be terse"}, USER)
    assert request.params == {
        "temperature": 0,
        "max_tokens": 5,
        "seed": 1,
        "tools": [TOOL],
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
    ("given_", "words"),
    [
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
    ],
)
def test_refused_options(given_: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: chat(**given_))
    for word in words:
        assert word in message


def test_embedding() -> None:
    request = embed(["a", "b"], model="m", timeout=5, dimensions=8, user=None)
    assert request.inputs == ("a", "b")
    assert request.params == {"dimensions": 8}
    assert request.model == "m"
    assert request.timeout == 5
    assert len(request.request_id) == 16
    assert embed("a").inputs == ("a",)
    first = [1, 2]
    tokens = embed([first, (3,)])
    first.append(9)
    assert tokens.inputs == ((1, 2), (3,))
    assert embed([7, 2**31 - 1]).inputs == ((7, 2**31 - 1),)
    assert prompt_size(tokens) == (0, 3)
    assert request_digest(tokens) == request_digest(embed([[1, 2], [3]]))
    assert request_digest(tokens) != request_digest(embed([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("inputs", "given_", "words"),
    [
        ("", {}, ["inputs[0]"]),
        ([], {}, ["inputs"]),
        (None, {}, ["inputs"]),
        (["a", ""], {}, ["inputs[1]"]),
        (["a", [1, 2]], {}, ["inputs[1]", "text"]),
        ([[1, 2], "a"], {}, ["inputs[1]", "token"]),
        ([[1], []], {}, ["inputs[1]", "token"]),
        ([1, "a"], {}, ["inputs[0]", "tokens only"]),
        ([[1, -1]], {}, ["inputs[0]", "tokens only"]),
        ([[1, 2**31]], {}, ["inputs[0]", "tokens only"]),
        ([[1, True]], {}, ["inputs[0]", "tokens only"]),
        ([True], {}, ["inputs[0]"]),
        ([[5] * 5_001], {}, ["10,002 bytes or more", "max_prompt_bytes"]),
        ([[123456] * 2_000], {}, ["14,003 bytes", "max_prompt_bytes"]),
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
