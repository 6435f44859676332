"""Anthropic's wire: the Messages API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aigateway.simulator.answers import (
    Call,
    ChatCall,
    EmbeddingCall,
    ModelsCall,
    Received,
    Reply,
    TokensCall,
)
from aigateway.simulator.faults import Fault, RefusedError
from aigateway.simulator.wires.wire import (
    Event,
    Peek,
    SimulatedFailure,
    Words,
    fresh_id,
    json_body,
    plain_text,
    retry_headers,
    signature,
    sse,
    text_tokens,
    texts,
    whole_number,
    words_for,
)

__all__ = ["AnthropicWire"]

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


_METHODS = {"/v1/messages": "POST", "/v1/messages/count_tokens": "POST", "/v1/models": "GET"}
_FIELDS = frozenset(
    {
        "cache_control", "inference_geo", "max_tokens", "messages", "metadata", "model",
        "output_config", "output_format", "service_tier", "stop_sequences", "stream",
        "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
    }
)  # fmt: skip
_FIELDS_OF_BETAS = {
    "container": "skills",
    "context_management": "context-management",
    "mcp_servers": "mcp-client",
    "speed": "fast-mode",
}
_SYSTEM_BETA = "mid-conversation"


class AnthropicWire:
    """`POST /v1/messages`, its `/count_tokens`, and `GET /v1/models`. Any beta is known."""

    def __init__(self) -> None:
        self.name = "anthropic"
        self.default_model = "claude-haiku-4-5"

    def peek(self, received: Received) -> Peek:
        """Return the model and whether to stream, as far as the body shows."""
        body = received.body if isinstance(received.body, Mapping) else {}
        return Peek(str(body.get("model") or self.default_model), body.get("stream") is True)

    def read(self, received: Received, keys: frozenset[str] | None) -> Call:
        """Check path, key, version header and body."""
        if received.path not in _METHODS:
            raise RefusedError(Fault("wrong_path"))
        if received.method != _METHODS[received.path]:
            raise RefusedError(Fault("wrong_method"))
        bearer = received.headers.get("authorization", "").removeprefix("Bearer ")
        key = received.headers.get("x-api-key") or bearer
        if not key:
            raise RefusedError(Fault("missing_key"))
        if keys is not None and key not in keys:
            raise RefusedError(Fault.bad_key())
        if "anthropic-version" not in received.headers:
            raise _wrong("anthropic-version: header is required")
        if received.path == "/v1/models":
            return ModelsCall()
        body, betas = json_body(received), received.headers.get("anthropic-beta", "")
        for name in body.keys() - _FIELDS:
            if name not in _FIELDS_OF_BETAS or _FIELDS_OF_BETAS[name] not in betas:
                raise _wrong(f"{name}: Extra inputs are not permitted")
        if received.path == "/v1/messages":
            return _read_messages(body, betas)
        counted = _read_messages({**body, "max_tokens": 1, "stream": False}, betas)
        return TokensCall(counted.model, counted.prompt_tokens)

    def chat(self, call: ChatCall, reply: Reply) -> dict[str, Any]:
        """Return a `message`."""
        return _message(call) | {
            "content": list(_blocks(reply)) if reply.show_choices else [],
            "stop_reason": _stop_reason(reply),
            **({"usage": _usage(reply)} if reply.show_usage else {}),
        }

    def events(self, call: ChatCall, reply: Reply) -> Iterator[Event]:
        """`message_start`, the blocks piece by piece, `message_delta`, `message_stop`."""
        message = _message(call)
        if reply.show_usage:
            message["usage"] = _usage(reply) | {"output_tokens": 1}
        yield _event("message_start", message=message)
        yield _event("ping")
        blocks = list(_blocks(reply)) if reply.show_choices else []
        for index, block in enumerate(blocks):
            yield from _block_events(index, block, reply)
        ending: dict[str, Any] = {
            "delta": {"stop_reason": _stop_reason(reply), "stop_sequence": None}
        }
        if reply.show_usage:
            ending["usage"] = {"output_tokens": reply.completion_tokens}
        yield _event("message_delta", ending=True, **ending)
        yield _event("message_stop")

    def embeddings(self, call: EmbeddingCall) -> dict[str, Any]:
        """Anthropic has none; no request is read as one."""
        raise NotImplementedError

    def models(self, call: ModelsCall) -> dict[str, Any]:
        """Return a list with one model."""
        del call
        model = {
            "type": "model",
            "id": self.default_model,
            "display_name": "Simulated",
            "created_at": "2025-10-01T00:00:00Z",
        }
        first = last = self.default_model
        return {"data": [model], "has_more": False, "first_id": first, "last_id": last}

    def failure(self, fault: Fault, model: str) -> SimulatedFailure:
        """`{"type": "error", "error": {"type", "message"}, "request_id"}`."""
        words = words_for(fault, _ERRORS, _BY_STATUS, model)
        kind = words.code or words.kind
        kind = kind or ("api_error" if words.status >= 500 else "invalid_request_error")
        request_id = fresh_id("req_")
        body = {
            "type": "error",
            "error": {"type": kind, "message": words.message},
            "request_id": request_id,
        }
        headers = {"request-id": request_id} | retry_headers(fault.retry_after)
        return SimulatedFailure(words.status, body, headers)

    def error_event(self, call: ChatCall) -> bytes:
        """Return the documented `error` event: overloaded in mid-stream."""
        return sse(self.failure(Fault.overloaded(), call.model).body, "error")

    def headers(self) -> dict[str, str]:
        """Return the header with the request id."""
        return {"request-id": fresh_id("req_"), "anthropic-organization-id": "org-simulated"}


def _read_messages(body: Mapping[str, Any], betas: str) -> ChatCall:
    for name in ("model", "messages", "max_tokens"):
        if body.get(name) is None:
            raise _wrong(f"{name}: Field required")
    max_tokens = whole_number(body["max_tokens"])
    if max_tokens is None or max_tokens < 1:
        raise _wrong("max_tokens: Input should be greater than or equal to 1")
    messages = body["messages"]
    if _SYSTEM_BETA in betas and isinstance(messages, list):
        # Instructions between the turns, which change nothing about whose turn it is.
        messages = [message for message in messages if message.get("role") != "system"]
    _check_messages(messages)
    _check_turns(messages, thinks=(body.get("thinking") or {}).get("type") in _THINKS)
    temperature = body.get("temperature")
    if temperature is not None and not 0 <= temperature <= 1:
        raise _wrong("temperature: range: 0..1")
    user_said = [text for m in messages if m["role"] == "user" and (text := _said(m["content"]))]
    format_ = body.get("output_format") or (body.get("output_config") or {}).get("format") or {}
    return ChatCall(
        model=str(body["model"]),
        prompt=user_said[-1] if user_said else "",
        prompt_tokens=text_tokens([body.get("system"), *(m["content"] for m in messages)]),
        stream=body.get("stream") is True,
        max_tokens=max_tokens,
        stop=texts(body.get("stop_sequences")),
        schema=format_.get("schema"),
        forced_tool=_forced_tool(body),
    )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise _wrong("messages: Input should be a valid list")
    if not messages:
        raise _wrong("messages: at least one message is required")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "system":
            raise _wrong(
                'messages: Unexpected role "system". The Messages API accepts a top-level '
                '`system` parameter, not "system" as an input message role.'
            )
        if role not in {"user", "assistant"}:
            raise _wrong(f"messages.{index}.role: Input should be 'user' or 'assistant'")
        content = message.get("content")
        if not isinstance(content, (str, list)):
            raise _wrong(f"messages.{index}.content: Input should be a valid string or list")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        if any(block.get("type") == "text" and not block.get("text") for block in blocks):
            raise _wrong("messages: text content blocks must be non-empty")


_NAME = "anthropic"
_THINKS = frozenset({"adaptive", "enabled"})
_THOUGHTS = frozenset({"redacted_thinking", "thinking"})
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FIELDS_OF_THOUGHTS = frozenset({"data", "signature", "thinking", "type"})


def _check_turns(messages: list[Any], *, thinks: bool) -> None:
    """Reject what does not fit the messages before: tools and their results, reasoning."""
    used: set[str] = set()
    waiting: set[str] = set()
    turn: list[Any] = []
    for index, message in enumerate(messages):
        content = message["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        if message["role"] == "assistant":
            if not blocks:
                raise _wrong(f"messages.{index}: all messages must have non-empty content")
            turn += blocks
            waiting = _calls(index, blocks, used)
            continue
        results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        for missing in waiting - results:
            raise _wrong(
                f"messages.{index}: `tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {missing}."
            )
        for unknown in results - waiting:
            raise _wrong(
                f"messages.{index}.content.0: unexpected `tool_use_id` found in `tool_result` "
                f"blocks: {unknown}."
            )
        waiting = set()
        turn = turn if results else []
    calls = any(block["type"] == "tool_use" for block in turn)
    if thinks and calls and turn[0]["type"] not in _THOUGHTS:
        raise _wrong(
            "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
            f"`{turn[0]['type']}`. When `thinking` is enabled, a final `assistant` message must "
            "start with a thinking block."
        )


def _calls(index: int, blocks: list[Any], used: set[str]) -> set[str]:
    calls: set[str] = set()
    for place, block in enumerate(blocks):
        where = f"messages.{index}.content.{place}"
        if block["type"] == "tool_use":
            if not _ID.fullmatch(block["id"]):
                text = f"{where}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"
                raise _wrong(text)
            if block["id"] in used:
                raise _wrong("messages: `tool_use` ids must be unique")
            used.add(block["id"])
            calls.add(block["id"])
        elif block["type"] in _THOUGHTS:
            _check_thought(where, block)
    return calls


def _check_thought(where: str, block: Mapping[str, Any]) -> None:
    if block.keys() - _FIELDS_OF_THOUGHTS:
        raise _wrong(f"{where}.thinking: Extra inputs are not permitted")
    if block["type"] == "thinking":
        if block["signature"] != signature(_NAME, block["thinking"]):
            raise _wrong(f"{where}: Invalid `signature` in `thinking` block")
    elif len(block["data"]) != len(signature(_NAME, "")):
        raise _wrong(f"{where}: Invalid `data` in `redacted_thinking` block")


def _said(content: Any) -> str:
    """Return the user's text; a tool's result is a user message without text."""
    if isinstance(content, str):
        return content
    return plain_text([block for block in content if block.get("type") == "text"])


def _forced_tool(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    tools = {tool["name"]: tool for tool in body.get("tools") or ()}
    choice = body.get("tool_choice") or {}
    if choice.get("type") not in {"any", "tool"}:
        return None
    if not tools:
        raise _wrong("tool_choice: may only be specified while providing tools")
    name = choice.get("name", next(iter(tools)))
    if name not in tools:
        raise _wrong(f"Tool '{name}' not found in provided tools")
    return name, tools[name].get("input_schema") or {}


def _wrong(text: str) -> RefusedError:
    return RefusedError(Fault.bad_request(text))


def _message(call: ChatCall) -> dict[str, Any]:
    return {
        "id": fresh_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _blocks(reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning is not None and reply.thinking == "redacted":
        yield {"type": "redacted_thinking", "data": signature(_NAME, reply.reasoning)}
    elif reply.reasoning is not None:
        thought = "" if reply.thinking == "omitted" else reply.reasoning
        signed = signature(_NAME, thought)
        yield {"type": "thinking", "thinking": thought, "signature": signed}
    if reply.text or not reply.tool_calls:
        yield {"type": "text", "text": reply.text}
    for tool in reply.tool_calls:
        name = (tool.id or "").replace("call_", "toolu_")
        yield {"type": "tool_use", "id": name, "name": tool.name, "input": tool.as_object()}


def _block_events(index: int, block: dict[str, Any], reply: Reply) -> Iterator[Event]:
    empty: dict[str, Any]
    deltas: list[dict[str, Any]]
    match block["type"]:
        case "thinking":
            empty = {"thinking": "", "signature": ""}
            thoughts = [block["thinking"]] if block["thinking"] else []
            deltas = [{"type": "thinking_delta", "thinking": thought} for thought in thoughts]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "redacted_thinking":
            empty, deltas = {}, []
        case "text":
            empty = {"text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in reply.pieces]
        case _:
            empty = {"input": {}}
            text = json.dumps(block["input"])
            middle = max(1, len(text) // 2)
            parts = ("", text[:middle], text[middle:])
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    yield _event("content_block_start", index=index, content_block=block | empty)
    for delta in deltas:
        yield _event("content_block_delta", content=True, index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _event(kind: str, *, content: bool = False, ending: bool = False, **data: Any) -> Event:
    return Event(sse({"type": kind, **data}, kind), content, ending)


def _stop_reason(reply: Reply) -> str:
    return _STOP_REASONS.get(reply.finish_reason, reply.finish_reason)


def _usage(reply: Reply) -> dict[str, Any]:
    # Here the prompt's cached part is not counted in `input_tokens`.
    return {
        "input_tokens": reply.prompt_tokens - reply.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reply.cached_tokens,
        "output_tokens": reply.completion_tokens,
        "service_tier": "standard",
    }


_INVALID = "invalid_request_error"

_ERRORS = {
    "bad_request": Words(400, _INVALID, "messages: Input should be valid"),
    "broken_json": Words(400, _INVALID, "The request body is not valid JSON"),
    "wrong_path": Words(404, "not_found_error", "Not Found"),
    "wrong_method": Words(405, _INVALID, "Method Not Allowed"),
    "missing_key": Words(401, "authentication_error", "x-api-key header is required"),
    "bad_key": Words(401, "authentication_error", "invalid x-api-key"),
    "forbidden": Words(
        403,
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    "region": Words(
        403,
        "permission_error",
        "Access to Anthropic models is not allowed from unsupported countries, regions, or "
        "territories. Please refer to https://www.anthropic.com/supported-countries for more "
        "information on the countries and regions Anthropic currently supports.",
    ),
    "too_large": Words(413, "request_too_large", "Request exceeds the maximum size"),
    "unsupported_media": Words(415, _INVALID, "Content-Type must be application/json"),
    "context_window": Words(400, _INVALID, "prompt is too long: 208310 tokens > 200000 maximum"),
    "content_policy": Words(400, _INVALID, "Output blocked by content filtering policy"),
    "retired_model": Words(404, "not_found_error", "model: {model}"),
    "model_not_found": Words(404, "not_found_error", "model: {model}"),
    "not_a_chat_model": Words(404, "not_found_error", "model: {model}"),
    "not_an_embedding_model": Words(404, "not_found_error", "Not Found"),
    "file_not_found": Words(404, "not_found_error", "File not found: file_simulated"),
    "no_tools": Words(400, _INVALID, "'{model}' does not support tool use."),
    "billing": Words(
        402,
        "billing_error",
        "There is an issue with your billing or payment information.",
    ),
    "no_credit": Words(
        400,
        _INVALID,
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
        "Billing to upgrade or purchase credits.",
    ),
    "insufficient_quota": Words(
        400,
        _INVALID,
        "You have reached your specified API usage limits. You will regain access on 2030-01-01 "
        "at 00:00 UTC.",
    ),
    "rate_limited": Words(
        429,
        "rate_limit_error",
        "This request would exceed your account's rate limit.{retry} Please try again later.",
    ),
    "server_error": Words(500, "api_error", "Internal server error"),
    "timeout": Words(504, "timeout_error", "Request timed out"),
    "overloaded": Words(529, "overloaded_error", "Overloaded"),
}

_BY_STATUS = {
    400: "bad_request",
    401: "bad_key",
    402: "billing",
    403: "forbidden",
    404: "model_not_found",
    405: "wrong_method",
    413: "too_large",
    429: "rate_limited",
    500: "server_error",
    504: "timeout",
    503: "overloaded",
    529: "overloaded",
}
