"""What a parameter's value must look like."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from tests.request.helpers import INF, NAN, SECRET, chat, refused

TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": -2, "frequency_penalty": 2.0},
        {"presence_penalty": 0},
        {"seed": 0},
        {"seed": -5},
        {"top_logprobs": 0, "logprobs": True},
        {"top_logprobs": 20},
        {"tools": []},
        {"tools": [{"googleSearch": {}}]},
        {"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
    ],
)
def test_values_that_are_fine(params: dict[str, Any]) -> None:
    assert chat(**params).params == params


@pytest.mark.parametrize("name", ["max_tokens", "seed", "n", "top_k", "top_logprobs"])
def test_a_whole_number_may_be_written_as_a_float(name: str) -> None:
    (value,) = chat(**{name: 5.0}).params.values()
    assert (type(value), value) == (int, 5)


def test_tools_may_be_a_tuple_of_frozen_mappings() -> None:
    assert chat(tools=(MappingProxyType(TOOL),)).params == {"tools": [TOOL]}


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"temperature": -0.1}, ["temperature must be at least 0"]),
        ({"temperature": 2.1}, ["temperature must be at most 2."]),
        ({"temperature": NAN}, ["temperature"]),
        ({"temperature": INF}, ["temperature"]),
        ({"temperature": True}, ["temperature"]),
        ({"temperature": SECRET}, ["temperature"]),
        ({"top_p": 1.1}, ["top_p must be at most 1."]),
        ({"top_p": "1"}, ["top_p"]),
        ({"max_tokens": 0}, ["max_tokens", "at least 1"]),
        ({"max_tokens": True}, ["max_tokens"]),
        ({"max_tokens": 5.5}, ["max_tokens", "whole number"]),
        ({"max_completion_tokens": -1}, ["max_completion_tokens"]),
        ({"n": 0}, ["n must"]),
        ({"n": "2"}, ["n must"]),
        ({"extra_body": [1]}, ["extra_body", "object"]),
        ({"extra_body": {"model": SECRET}}, ["extra_body", "model"]),
        ({"extra_body": {"stream": True}}, ["extra_body", "stream"]),
        ({"extra_headers": [SECRET]}, ["extra_headers"]),
        ({"extra_headers": {"X": SECRET + "\r\nY: z"}}, ["extra_headers", "line breaks"]),
        ({"extra_headers": {"": "x"}}, ["extra_headers", "name"]),
        ({"extra_headers": {"X Y": "x"}}, ["extra_headers", "name"]),
        ({"extra_headers": {"X": 5}}, ["extra_headers"]),
        ({"extra_headers": {"X": "\N{EURO SIGN}"}}, ["extra_headers", "ASCII"]),
        ({"presence_penalty": -2.1}, ["presence_penalty must be at least -2."]),
        ({"presence_penalty": NAN}, ["presence_penalty"]),
        ({"frequency_penalty": 3}, ["frequency_penalty must be at most 2."]),
        ({"frequency_penalty": INF}, ["frequency_penalty"]),
        ({"frequency_penalty": "1"}, ["frequency_penalty"]),
        ({"seed": 1.5}, ["seed", "whole number"]),
        ({"seed": True}, ["seed"]),
        ({"seed": SECRET}, ["seed"]),
        ({"top_logprobs": -1}, ["top_logprobs must be at least 0."]),
        ({"top_logprobs": 21}, ["top_logprobs"]),
        ({"top_logprobs": 5.5}, ["top_logprobs"]),
        ({"top_logprobs": True}, ["top_logprobs"]),
        ({"tools": TOOL}, ["tools must be a list"]),
        ({"tools": SECRET}, ["tools must be a list"]),
        ({"tools": [SECRET]}, ["tools[0]", "type"]),
        ({"tools": [TOOL, {"function": SECRET}]}, ["tools[1]", "function"]),
        ({"tools": [{"type": ""}]}, ["tools[0]", "type"]),
        ({"tools": [{"type": 5}]}, ["tools[0]", "type"]),
        ({"tools": [TOOL, {"type": "function"}]}, ["tools[1]", "function"]),
        ({"tools": [{"type": "function", "name": SECRET}]}, ["tools[0]", "function"]),
        ({"tools": [{"type": "function", "function": SECRET}]}, ["tools[0]", "function"]),
        ({"tools": [{"type": "function", "function": {}}]}, ["tools[0]", "name"]),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, ["tools[0]", "name"]),
    ],
)
def test_refused_values(given_: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: chat(**given_))
    for word in words:
        assert word in message
