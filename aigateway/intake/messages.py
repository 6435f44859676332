"""The prompt, as a list of messages that a vendor can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel

from aigateway.intake.encoding import check_size, encoded_json
from aigateway.intake.refusal import refuse
from aigateway.settings import suggestion

__all__ = ["copied_messages"]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")


def copied_messages(prompt: object, system: object, max_bytes: int) -> tuple[dict[str, Any], ...]:
    """Check a prompt and put the system's text in front of it.

    Args:
        prompt: Text, or a list of OpenAI chat messages.
        system: Text of the system message; None or "" is none.
        max_bytes: Longest prompt, as JSON.
    """
    encoded = _encoded_prompt(prompt)
    if system is not None and not isinstance(system, str):
        refuse("system must be a text; pass a message with parts inside the list of messages.")
    front = encoded_json({"role": "system", "content": system}, "system") if system else b""
    check_size(len(front) + len(encoded), max_bytes)
    if type(prompt) is str and not front:  # a text cannot change: JSON would give the same again
        return ({"role": "user", "content": prompt},)
    messages: list[dict[str, Any]] = orjson.loads(encoded)
    for index, message in enumerate(messages):
        problem = _problem(message)
        if problem is not None:
            refuse(f"messages[{index}]: {problem}.")
    if not front:
        return tuple(messages)
    if messages[0]["role"] in {"system", "developer"}:
        refuse("system= is given and the messages begin with a system message; give only one.")
    return (orjson.loads(front), *messages)


def _encoded_prompt(prompt: object) -> bytes:
    if isinstance(prompt, str):
        if not prompt or prompt.isspace():
            refuse("The prompt is empty; give it some text.")
        return encoded_json([{"role": "user", "content": prompt}], "The prompt")
    if not isinstance(prompt, list | tuple):
        refuse(f"The prompt must be a text or a list of messages, not {type(prompt).__name__}.")
    if not prompt:
        refuse("messages is empty; give at least one message.")
    for index, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            kind, fix = type(message).__name__, 'give a mapping with "role" and "content"'
            if isinstance(message, BaseModel):
                fix = "give its .model_dump(exclude_none=True)"
            refuse(f"messages[{index}] is {kind}, not a mapping; {fix}.")
    return encoded_json(prompt, "messages")


def _problem(message: dict[str, Any]) -> str | None:
    """What is wrong with a message that is already plain JSON."""
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        hint = suggestion(role[:32], _ROLES) if isinstance(role, str) else ""
        return f"role must be one of {', '.join(_ROLES)}{hint}"
    call = message.get("tool_call_id")
    if role == "tool" and not (isinstance(call, str) and call):
        return "a tool message needs the tool_call_id that it answers"
    content = message.get("content")
    if isinstance(content, str) and (content or role != "user"):
        return None
    return _content_problem(message, content)


def _content_problem(message: dict[str, Any], content: object) -> str | None:
    if content is None:
        role = message["role"]
        if role == "assistant" and any(message.get(name) for name in _INSTEAD_OF_CONTENT):
            return None
        return "content is missing; only an assistant's message with tool_calls may have none"
    if content in ("", []):
        return "content is empty; give it a text or a list of at least one part"
    if not isinstance(content, list):
        return "content must be a text or a list of parts"
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return f'content[{index}] must be a mapping with a "type", such as "text"'
    return None
