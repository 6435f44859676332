"""Right answers of each wire, to be spoiled: whole ones, streams, and errors."""

from __future__ import annotations

from typing import Any

from aigateway.messages import ProtocolName

__all__ = ["ANSWERS", "EMBEDDINGS", "ERRORS", "NATIVE", "STREAMS", "WIRES", "sse"]

WIRES = ("openai", "azure", "gemini", "anthropic")

_TOOL_CALL = {
    "id": "call_1",
    "index": 0,
    "type": "function",
    "function": {"name": "look", "arguments": '{"a": 1}'},
}
_LOGPROBS = {"content": [{"token": "4", "logprob": -0.1, "bytes": [52], "top_logprobs": []}]}
_OPENAI_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
_GEMINI_USAGE = {
    "promptTokenCount": 9,
    "candidatesTokenCount": 3,
    "totalTokenCount": 12,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
}


def _openai(message: dict[str, Any], finish: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, **more}],
        "usage": _OPENAI_USAGE,
        "service_tier": "default",
    }


def _openai_chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "service_tier": "default",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}],
    }


def _gemini(*parts: dict[str, Any], finish: str | None = "STOP") -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": _GEMINI_USAGE,
        "modelVersion": "gemini-3.5-flash-lite",
        "responseId": "r1",
    }


def _anthropic(*blocks: dict[str, Any], stop: str | None = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": list(blocks),
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 0},
    }


_OPENAI_ANSWERS = [
    _openai({"role": "assistant", "content": "It is 4."}, "stop"),
    _openai({"role": "assistant", "content": "It is 4."}, "stop", logprobs=_LOGPROBS),
    _openai({"role": "assistant", "content": None, "tool_calls": [_TOOL_CALL]}, "tool_calls"),
    _openai({"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}, "length"),
    _openai({"role": "assistant", "content": None, "refusal": "No."}, "stop"),
]
ANSWERS: dict[str, list[Any]] = {
    "openai": _OPENAI_ANSWERS,
    "azure": _OPENAI_ANSWERS,
    "gemini": [
        _gemini({"text": "It is 4."}),
        _gemini({"text": "hm", "thought": True}, {"text": "4"}),
        _gemini({"functionCall": {"name": "look", "args": {"a": 1}}}),
    ],
    "anthropic": [
        _anthropic({"type": "text", "text": "It is 4."}),
        _anthropic(
            {"type": "thinking", "thinking": "2 and 2", "signature": "x"},
            {"type": "text", "text": "4"},
        ),
        _anthropic(
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}}, stop="tool_use"
        ),
    ],
}
"""By wire."""

_OPENAI_STREAM = [
    _openai_chunk({"role": "assistant", "content": ""}),
    _openai_chunk({"content": "It is "}, logprobs=_LOGPROBS),
    _openai_chunk({"content": "4."}),
    _openai_chunk({"reasoning_content": "hm", "refusal": None}),
    _openai_chunk({"tool_calls": [_TOOL_CALL]}),
    _openai_chunk({"annotations": []}, "stop"),
    {**_openai_chunk({}), "choices": [], "usage": _OPENAI_USAGE},
    "[DONE]",
]
STREAMS: dict[str, list[Any]] = {
    "openai": _OPENAI_STREAM,
    "azure": _OPENAI_STREAM,
    "gemini": [
        _gemini({"text": "It is "}, finish=None),
        _gemini({"text": "hm", "thought": True}, finish=None),
        _gemini({"text": "4."}),
    ],
    "anthropic": [
        {"type": "message_start", "message": _anthropic(stop=None)},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "It is 4."},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'},
        },
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ],
}
"""By wire: the events in their order."""

_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_700_000_000,
    "status": "completed",
    "model": "gpt-4o-mini",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "It is 4.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12},
}
ANSWERS["responses"] = [
    _RESPONSE,
    {**_RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
]
STREAMS["responses"] = [
    {"type": "response.created", "response": {**_RESPONSE, "output": []}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message"}},
    {"type": "response.output_text.delta", "output_index": 0, "delta": "It is 4."},
    {
        "type": "response.output_item.added",
        "output_index": 1,
        "item": {"type": "function_call", "call_id": "c1", "name": "look"},
    },
    {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
    {"type": "response.completed", "response": _RESPONSE},
]
NATIVE: dict[str, tuple[ProtocolName, str]] = {
    "anthropic": ("messages", "anthropic"),
    "responses": ("responses", "openai"),
}
"""Answers and streams of a protocol beside OpenAI's chat, and a wire that speaks it."""

ERRORS: list[Any] = [
    {
        "error": {
            "message": "Rate limit",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    },
    {
        "error": {
            "code": 429,
            "message": "Quota exceeded",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"},
            ],
        }
    },
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    {"object": "error", "message": "The model `m` does not exist.", "code": 404},
]
"""Of any wire."""

EMBEDDINGS: dict[str, list[Any]] = {
    "openai": [
        {
            "object": "list",
            "model": "text-embedding-3-small",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]},
                {"object": "embedding", "index": 1, "embedding": [0.5, -1.0]},
            ],
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
    ],
    "gemini": [{"embeddings": [{"values": [0.5, 1.0]}, {"values": [0.5, -1.0]}]}],
}
"""By wire."""


def sse(wire: str, events: list[bytes], ends: bytes = b"\n\n") -> bytes:
    """These events (each one JSON text) as this wire's stream."""
    marks = [b"event: message\n" if wire == "anthropic" else b"" for _ in events]
    return b"".join(
        mark + b"data: " + event + ends for mark, event in zip(marks, events, strict=True)
    )
