"""The prompt, as a list of messages that a vendor can be sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from aigateway.errors import refuse
from aigateway.request.json_copy import check_size, copied, encoded_json, json_length, plain
from aigateway.settings import suggestion

__all__ = ["MOST_MESSAGES", "copied_messages"]

MOST_MESSAGES = 10_000
"""Messages of a request, and parts of a message."""

MOST_CALLS = 2048
"""Tool calls in all messages: to find the call that a result belongs to takes longer the more there
are."""


_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")


def copied_messages(
    prompt: object, system: object, max_bytes: int
) -> tuple[tuple[dict[str, Any], ...], int]:
    """Check a prompt and put the system's text in front of it.

    Args:
        prompt: Text, or a list of OpenAI chat messages.
        system: Text of the system message; None or "" is none.
        max_bytes: Longest prompt, as JSON.

    Returns:
        The messages, and their bytes as JSON.
    """
    if system is not None and not isinstance(system, str):
        refuse("system must be a text; pass a message with parts inside the list of messages.")
    if system:
        check_size(json_length(system), max_bytes, or_more=True)
    messages = _checked_messages(prompt, max_bytes)
    front: dict[str, Any] = {"role": "system", "content": system} if system else {}
    if front and messages[0].get("role") in {"system", "developer"}:
        refuse("system= is given and the messages begin with a system message; give only one.")
    encoded = encoded_json(messages, "The prompt" if isinstance(prompt, str) else "messages")
    encoded_front = encoded_json(front, "system") if front else b""
    size = len(encoded_front) + len(encoded)
    if size > max_bytes:
        check_size(size, max_bytes)
    if type(prompt) is not str:  # a text cannot change: JSON would give the same again
        messages = copied(messages, encoded)
    if front:
        return (copied(front, encoded_front), *messages), size
    return tuple(messages), size


def _checked_messages(prompt: object, max_bytes: int) -> Sequence[Any]:
    """The messages, not copied yet.

    Whatever the size of a prompt, a mistake at its beginning is found before the rest is looked at.
    """
    if isinstance(prompt, str):
        check_size(json_length(prompt), max_bytes, or_more=True)
        if not prompt or prompt.isspace():
            refuse("The prompt is empty; give it some text.")
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        refuse(f"The prompt must be a text or a list of messages, not {type(prompt).__name__}.")
    _check_list(prompt, max_bytes)
    return prompt


def _check_list(prompt: Sequence[object], max_bytes: int) -> None:
    if not prompt:
        refuse("messages is empty; give at least one message.")
    if len(prompt) > MOST_MESSAGES:
        refuse(f"There are {len(prompt):,} messages; give at most {MOST_MESSAGES:,}.")
    size = calls = 0
    for index, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            kind, fix = type(message).__name__, 'give a mapping with "role" and "content"'
            if isinstance(message, BaseModel):
                fix = "give its .model_dump(exclude_none=True)"
            refuse(f"messages[{index}] is {kind}, not a mapping; {fix}.")
        content = plain(message.get("content"))
        problem = _problem(message, content)
        if problem is not None:
            refuse(f"messages[{index}]: {problem}.")
        size += json_length(content) if isinstance(content, str) else 0
        check_size(size, max_bytes, or_more=True)
        made = message.get("tool_calls")
        if isinstance(made, list | tuple):
            calls += len(made)
            if calls > MOST_CALLS:
                refuse(f"messages hold more than {MOST_CALLS:,} tool calls.")


def _problem(message: Mapping[str, Any], content: Any) -> str | None:
    """What is wrong with a message, apart from what JSON cannot say."""
    role = plain(message.get("role"))
    if not isinstance(role, str) or role not in _ROLES:
        hint = suggestion(role[:32], _ROLES) if isinstance(role, str) else ""
        return f"role must be one of {', '.join(_ROLES)}{hint}"
    call = plain(message.get("tool_call_id")) if role == "tool" else None
    if role == "tool" and not (isinstance(call, str) and call):
        return "a tool message needs the tool_call_id that it answers"
    if isinstance(content, str) and (content or role != "user"):
        return None
    if content is not None:
        return _content_problem(content)
    if role == "assistant" and (
        "content" in message or any(message.get(name) for name in _INSTEAD_OF_CONTENT)
    ):
        return None  # frameworks keep null of an answer that was refused
    return "content is missing; only an assistant's message with tool_calls may have none"


def _content_problem(content: object) -> str | None:
    if not isinstance(content, str | list | tuple):
        return f"content must be a text or a list of parts, not {type(content).__name__}"
    if not content:
        return "content is empty; give it a text or a list of at least one part"
    if len(content) > MOST_MESSAGES:
        return f"content has {len(content):,} parts; give at most {MOST_MESSAGES:,}"
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or not isinstance(plain(part.get("type")), str):
            return f'content[{index}] must be a mapping with a "type", such as "text"'
    return None
