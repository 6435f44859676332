"""Prompts and answers in OpenTelemetry's form, for users who have asked to see them in spans.

https://github.com/open-telemetry/semantic-conventions-genai (`gen_ai.input.messages` and
`gen_ai.output.messages`): messages of parts, as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aigateway.messages import Choice

__all__ = ["input_messages", "output_messages"]


def input_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """OpenAI's chat messages as `gen_ai.input.messages`."""
    return _json([_input(message) for message in messages])


def output_messages(choices: Sequence[Choice]) -> str:
    """All answers as `gen_ai.output.messages`."""
    return _json(
        [
            {
                "role": "assistant",
                "parts": _answer_parts(choice),
                "finish_reason": choice.finish_reason or "",
            }
            for choice in choices
        ]
    )


def _input(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        answer = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        return {"role": role, "parts": [{**answer, "response": content}]}
    parts = [{"type": "text", "content": content}] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [_content_part(part) for part in content]
    for call in message.get("tool_calls") or ():
        called = call.get("custom") or call.get("function") or {}
        given = called.get("input") or called.get("arguments") or ""
        parts.append(_tool_call(call.get("id"), called.get("name"), given))
    return {"role": role, "parts": parts}


def _content_part(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return {"type": "text", "content": part.get("text")}
    if isinstance(part, Mapping):
        return dict(part)  # pictures and sounds have no form of their own yet that all agree on
    return {"type": "text", "content": str(part)}


def _answer_parts(choice: Choice) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if choice.reasoning:
        parts.append({"type": "reasoning", "content": choice.reasoning})
    if choice.text or choice.refusal:
        parts.append({"type": "text", "content": choice.text or choice.refusal})
    parts.extend(_tool_call(call.id, call.name, call.arguments) for call in choice.tool_calls)
    return parts


def _tool_call(call_id: object, name: object, arguments: str) -> dict[str, Any]:
    try:
        read = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        read = arguments  # as the model wrote it
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": read}


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
