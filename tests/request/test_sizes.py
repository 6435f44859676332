"""A mistake is found without looking at the rest, and no list is without bound."""

from __future__ import annotations

from typing import Any

import pytest

from aigateway import GatewaySettings
from aigateway.request.schema import MOST_MESSAGES
from aigateway.request.validate import chat_request
from tests.request.helpers import SECRET, USER, chat, embed, refused

CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}}


class Counted(dict[str, Any]):
    """A message that counts how often messages are looked at."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        type(self).looks += 1
        return super().get(key, default)


@pytest.mark.parametrize(
    "messages",
    [
        [Counted()] * MOST_MESSAGES,
        [Counted()] * 1_000_000,
        [Counted(USER), *[Counted(role="usr", content="x")] * 9000],
        [Counted(USER, content="x" * 9000)] * 9000,
    ],
)
def test_a_mistake_at_the_beginning_is_found_at_once(messages: list[Any]) -> None:
    Counted.looks = 0
    refused(lambda: chat(messages))
    assert Counted.looks < 20


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: chat([USER] * (MOST_MESSAGES + 1)), "10,001 messages"),
        (
            lambda: chat([{"role": "user", "content": [{"type": "text", "text": "a"}] * 10_001}]),
            "messages[0].content must have at most 10000 items",
        ),
        (
            lambda: chat([USER, *[{"role": "assistant", "tool_calls": [CALL] * 500}] * 5]),
            "at most 2,048 tool calls",
        ),
        (lambda: chat(" " * 20_000), "20,000 bytes or more"),
        (lambda: chat(system="x" * 20_000), "20,000 bytes or more"),
        (lambda: chat(user="x" * 20_000), "The parameters have 20,011 bytes"),
        (lambda: chat(model="x" * 2000), "model is longer"),
        (lambda: chat(agent="x" * 2000), "agent is longer"),
        (lambda: embed([SECRET] * 20_000), "20,000 bytes or more"),
        (lambda: embed(["x" * 6000] * 3), "12,000 bytes or more"),
        (lambda: embed(user="x" * 20_000), "The parameters have 20,011 bytes"),
    ],
    ids=range(11),
)
def test_nothing_is_without_bound(ask: Any, words: str) -> None:
    assert words in refused(ask)


def test_a_long_prompt_is_a_copy_all_the_same() -> None:
    part: dict[str, Any] = {"type": "text", "text": "x" * 70_000, "more": (1, {"a": [None, 1.5]})}
    given = [{"role": "user", "content": [part]}]
    made = chat_request(given, params={}, settings=GatewaySettings())
    assert made.messages[0]["content"][0]["more"] == [1, {"a": [None, 1.5]}]
    part["text"] = "other"
    part["more"][1]["a"].append(2)
    assert made.messages[0]["content"][0]["text"] == "x" * 70_000
    assert made.messages[0]["content"][0]["more"] == [1, {"a": [None, 1.5]}]
    assert made.size > 70_000
