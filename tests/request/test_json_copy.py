"""What cannot be written as JSON, and how the culprit is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.request.helpers import CYCLE, INF, NAN, SECRET, USER, chat, refused

FUNCTION = {"type": "function", "function": {"name": "f"}}
DEEP: list[Any] = []
for _ in range(2000):
    DEEP = [DEEP]


@dataclass
class Record:
    role: str = "user"
    content: float = NAN


def test_a_null_is_no_nan() -> None:
    assert chat([{**USER, "name": None}]).messages == ({**USER, "name": None},)


def test_numpys_floats_are_floats() -> None:
    class Float64(float):
        """As numpy's: a float to Python, unknown to orjson."""

    assert chat(temperature=Float64(0.5)).params == {"temperature": 0.5}
    assert "temperature" in refused(lambda: chat(temperature=Float64("nan")))
    assert "finite" in refused(lambda: chat(logit_bias={"1": Float64("nan")}))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("\ud800" + SECRET, ["The prompt", "surrogates"]),
        ([USER, {"role": "user", "content": {SECRET}}], ["messages[1]", "content", "set"]),
        ([USER, {"role": "user", "content": SECRET.encode()}], ["messages[1]", "bytes"]),
        ([USER, {"role": "user", "content": "\udfff"}], ["messages[1]", "surrogates"]),
        ([USER, {"role": "user", "content": "x", 5: SECRET}], ["messages[1]", "key"]),
        ([USER, {"role": "user", "content": "x", "a": NAN}], ["messages[1]", "NaN"]),
        ([USER, {"role": "user", "content": "x", "a": [{"b": (-INF,)}]}], ["messages[1]", "NaN"]),
        ([USER, {"role": "user", "content": "x", "a": 2**64}], ["messages[1]", "64-bit"]),
        (CYCLE, ["messages[1]", "Recursion"]),
        ([{"role": "user", "content": "x", "a": DEEP}], ["Recursion"]),
        ([USER, {"role": "user", "content": "x", "a": Record()}], ["messages[1]", "Record"]),
    ],
)
def test_refused_prompts(prompt: Any, words: list[str]) -> None:
    message = refused(lambda: chat(prompt))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"extra_body": {"a": 2**64}}, ["params['extra_body']", "64-bit"]),
        ({"extra_body": {"1": NAN}}, ["params['extra_body']", "NaN"]),
        ({"thinking": {"budget_tokens": 2**70}}, ["params['thinking']", "64-bit"]),
        ({"stop": "\ud800"}, ["params['stop']", "surrogates"]),
        ({"tools": [FUNCTION | {"more": {SECRET}}]}, ["params['tools']", "set"]),
        ({"tools": [FUNCTION | {"more": CYCLE}]}, ["params['tools']", "Recursion"]),
    ],
)
def test_refused_params(given_: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: chat(**given_))
    for word in words:
        assert word in message
