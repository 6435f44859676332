"""Which prompts are sent, and which are refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel

from aigateway.messages import ChatRequest
from aigateway.request.validate import chat_request
from tests.request.helpers import SECRET, SETTINGS, USER, chat, refused

NO_CONTENT = 'must have "content"'
CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}}


class Role(enum.Enum):
    USER = "user"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "s"},
        {"role": "user", "content": " ", "name": "n"},
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{**CALL, "type": "function"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {"role": "function", "name": "f", "content": "42"},
        MappingProxyType({"role": "user", "content": "frozen"}),
    ],
)
def test_messages_that_are_fine(message: Any) -> None:
    assert chat([message]).messages == (dict(message),)
    assert chat((message,)).messages == (dict(message),)


class Message(BaseModel):
    role: str = "user"
    content: str = SECRET


@dataclass
class Record:
    role: str = "user"
    content: str = SECRET


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["empty"]),
        (" \n\t", ["empty"]),
        ([], ["messages must have at least one message"]),
        ((), ["messages must have at least one message"]),
        (None, ["NoneType", "list of messages"]),
        (5, ["int"]),
        ({"role": "user", "content": SECRET}, ["dict", "list of messages"]),
        (iter([USER]), ["list of messages"]),
        (SECRET.encode(), ["bytes"]),
        ([SECRET], ["messages[0] is str", "object"]),
        ([USER, None], ["messages[1]", "NoneType"]),
        ([Message()], ["messages[0] is Message", "model_dump"]),
        ([Record()], ["messages[0]", "Record"]),
        ([{}], ["messages[0]", "role"]),
        ([{"role": SECRET, "content": "x"}], ["messages[0]", "system, developer"]),
        ([{"role": "usr", "content": "x"}], ['did you mean "user"?']),
        ([{"role": ["user"], "content": "x"}], ["messages[0]", "role"]),
        ([{"role": {}, "content": "x"}], ["messages[0]", "role"]),
        ([USER, {"role": "user"}], ["messages[1]", NO_CONTENT]),
        ([{"role": "user", "content": None}], ["messages[0].content must be"]),
        ([{"role": "user", "tool_calls": [{}]}], [NO_CONTENT]),
        ([USER, {"role": "assistant"}], ["messages[1]", NO_CONTENT]),
        ([{"role": "assistant", "tool_calls": []}], [NO_CONTENT]),
        ([{"role": "user", "content": 5}], ["content must be"]),
        ([{"role": "user", "content": {"type": "text"}}], ["content must be"]),
        ([{"role": "user", "content": []}], ["messages[0]", "content must not be empty"]),
        ([{"role": "user", "content": ""}], ["messages[0]", "content must not be empty"]),
        ([USER, {"role": "user", "content": ""}], ["messages[1]", "content must not be empty"]),
        ([{"role": "assistant", "content": []}], ["messages[0]", "content must not be empty"]),
        ([{"role": "user", "content": [SECRET]}], ["content[0]", "type"]),
        ([{"role": "user", "content": [{"text": SECRET}]}], ["content[0]", "type"]),
        ([{"role": "tool", "content": SECRET}], ["tool_call_id"]),
        ([{"role": "tool", "content": SECRET, "tool_call_id": ""}], ["tool_call_id"]),
        ([{"role": "tool", "content": SECRET, "tool_call_id": 5}], ["tool_call_id"]),
    ],
)
def test_refused_prompts(prompt: Any, words: list[str]) -> None:
    message = refused(lambda: chat(prompt))
    for word in words:
        assert word in message


def test_messages_of_other_types_are_read_as_json() -> None:
    parts = ({"type": "text", "text": "a"}, MappingProxyType({"type": "text", "text": "b"}))
    (message,) = chat([MappingProxyType({"role": Role.USER, "content": parts})]).messages
    assert message == {"role": "user", "content": [dict(part) for part in parts]}
    wrong = [{"role": Role.USER, "content": (parts[0], {"type": "text"})}]
    assert 'messages[0].content[1] must have "text"' in refused(lambda: chat(wrong))


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
        return chat_request("x" * length, system=system, params={}, settings=settings)

    most = 400 - len('[{"role":"user","content":""}]')
    if system:
        most -= 300 + len('{"role":"system","content":""}')
    assert ask(most).messages
    message = refused(lambda: ask(most + 1))
    for word in ("401 bytes", "400 allowed", "max_prompt_bytes"):
        assert word in message


FUNCTION = {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("call", "place", "problem"),
    [
        ({"type": "function", "function": FUNCTION}, "", 'must have "id"'),
        ({"id": 5, "type": "function", "function": FUNCTION}, ".id", "must be a text"),
        ({"id": "", "function": FUNCTION}, ".id", "must not be empty"),
        ({"id": "1", "type": "other", "function": FUNCTION}, ".type", "must be 'function'"),
        ({"id": "1", "type": "function"}, "", 'must have "function"'),
        ({"id": "1", "function": {**FUNCTION, "name": 5}}, ".function.name", "must be a text"),
        ({"type": "custom", "custom": {"name": "f", "input": ""}}, "", 'must have "id"'),
    ],
)
def test_a_mistake_in_a_tool_call_is_reported_at_its_place(call, place, problem):
    result = {"role": "tool", "tool_call_id": "1", "content": "r"}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, result]
    assert refused(lambda: chat(messages)) == f"messages[1].tool_calls[0]{place} {problem}."


def test_a_call_without_a_name_may_go_back_as_the_model_made_it():
    call = {"id": "1", "type": "function", "function": {"name": "", "arguments": "{}"}}
    chat([USER, {"role": "assistant", "tool_calls": [call]}])
