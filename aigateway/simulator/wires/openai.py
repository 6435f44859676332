"""OpenAI's wire: chat completions, responses, completions, embeddings, models."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aigateway.clock import SYSTEM_CLOCK
from aigateway.simulator.answers import (
    Call,
    ChatCall,
    EmbeddingCall,
    ModelsCall,
    Received,
    Reply,
    embed,
)
from aigateway.simulator.faults import Fault, RefusedError
from aigateway.simulator.wires.openai_errors import BY_STATUS, COMPATIBLE, ERRORS
from aigateway.simulator.wires.openai_responses import (
    CompletionCall,
    ResponseCall,
    StoredResponses,
    completion,
    completion_events,
    read_completion,
    read_response,
    response,
    response_error,
    response_events,
)
from aigateway.simulator.wires.wire import (
    Event,
    Peek,
    SimulatedFailure,
    fresh_id,
    json_body,
    plain_text,
    retry_headers,
    sse,
    text_tokens,
    texts,
    whole_number,
    words_for,
)

__all__ = ["OpenAIWire", "check_fields", "read_chat", "read_embeddings"]

_PATHS = frozenset(
    f"/v1/{name}"
    for name in ("chat/completions", "completions", "embeddings", "models", "responses")
)
_IS_A_CHAT_MODEL = (
    "This is a chat model and not supported in the v1/completions endpoint. Did you mean to use "
    "v1/chat/completions?"
)
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_DONE = Event(b"data: [DONE]\n\n")


class OpenAIWire:
    """OpenAI itself, and with `compatible=True` compatible servers, which need no key.

    Attributes:
        strict: Whether unknown fields of messages are rejected.
    """

    def __init__(self, *, compatible: bool = False) -> None:
        self.name = "openai_compatible" if compatible else "openai"
        self._imitates = compatible
        self.default_model = "llama-3.1-8b-instruct" if compatible else "gpt-4o-mini"
        self._needs_key = self.strict = not compatible
        self._errors = COMPATIBLE if compatible else ERRORS
        self._stored = StoredResponses()

    def peek(self, received: Received) -> Peek:
        """Return the model and whether to stream, as far as the body shows."""
        body = received.body if isinstance(received.body, Mapping) else {}
        return Peek(str(body.get("model") or self.default_model), body.get("stream") is True)

    def read(self, received: Received, keys: frozenset[str] | None) -> Call:
        """Check key, path, method and body, in the vendor's order."""
        self._check_key(received, keys)
        match received.method, received.path:
            case "POST", "/v1/chat/completions":
                if self.strict:
                    check_fields(received.body, _KNOWN_BY_IMITATORS if self._imitates else _KNOWN)
                return read_chat(json_body(received), _model(received.body))
            case "POST", "/v1/responses":
                return self._read_response(received)
            case "POST", "/v1/completions":
                model = _model(json_body(received))
                if not self._imitates and "instruct" not in model:
                    raise RefusedError(Fault("status", code=404, message=_IS_A_CHAT_MODEL))
                return read_completion(received.body, model)
            case "POST", "/v1/embeddings":
                return read_embeddings(json_body(received), _model(received.body))
            case "GET", "/v1/models":
                return ModelsCall()
            case method, path if path in _PATHS:
                raise RefusedError(
                    Fault("wrong_method", message=f"Not allowed to {method} on {path}.")
                )
            case method, path:
                raise RefusedError(Fault("wrong_path", message=f"Invalid URL ({method} {path})"))

    def chat(self, call: ChatCall, reply: Reply) -> dict[str, Any]:
        """Return a `chat.completion`, a `response` or a `text_completion`."""
        if isinstance(call, ResponseCall):
            return response(call, reply)
        if isinstance(call, CompletionCall):
            return completion(call, reply)
        choices = [_choice(index, call, reply) for index in range(reply.n * reply.show_choices)]
        body = self._frame(call, "chat.completion") | {"choices": choices}
        return body | ({"usage": _usage(reply)} if reply.show_usage else {})

    def events(self, call: ChatCall, reply: Reply) -> Iterator[Event]:
        """`chat.completion.chunk`s, then `[DONE]`; or the events of the other forms."""
        if isinstance(call, ResponseCall):
            return response_events(call, reply)
        if isinstance(call, CompletionCall):
            return completion_events(call, reply)
        return self._chunks(call, reply)

    def _chunks(self, call: ChatCall, reply: Reply) -> Iterator[Event]:
        frame = self._frame(call, "chat.completion.chunk")
        wants_usage = call.include_usage and reply.show_usage
        null_usage = {"usage": None} if wants_usage else {}
        for index in range(reply.n * reply.show_choices):
            for delta, finish, logprobs in _deltas(call, reply):
                choice = {"index": index, "delta": delta, "finish_reason": finish}
                choice["logprobs"] = logprobs
                chunk = frame | {"choices": [self._decorated(choice)]} | null_usage
                content = finish is None and "role" not in delta
                yield Event(sse(chunk), content=content, ending=finish is not None)
        if wants_usage:
            yield Event(sse(frame | {"choices": [], "usage": _usage(reply)}))
        yield _DONE

    def embeddings(self, call: EmbeddingCall) -> dict[str, Any]:
        """Return a list of vectors in input order."""
        tokens = text_tokens(call.inputs)
        return {
            "object": "list",
            "model": call.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": _vector(text, call)}
                for index, text in enumerate(call.inputs)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def models(self, call: ModelsCall) -> dict[str, Any]:
        """Return a list with one model."""
        del call
        model = {"id": self.default_model, "object": "model", "created": 0, "owned_by": "system"}
        return {"object": "list", "data": [model]}

    def failure(self, fault: Fault, model: str) -> SimulatedFailure:
        """`{"error": {"message", "type", "param", "code"}}`."""
        words = words_for(fault, self._errors, BY_STATUS, model)
        kind = words.kind or ("server_error" if words.status >= 500 else "invalid_request_error")
        error = {
            "message": words.message,
            "type": kind,
            "param": words.param,
            "code": words.code,
        }
        return SimulatedFailure(words.status, {"error": error}, retry_headers(fault.retry_after))

    def error_event(self, call: ChatCall) -> bytes:
        """Return an `error` object where a chunk should be."""
        body = self.failure(Fault("server_error"), call.model).body
        return response_error(body["error"]) if isinstance(call, ResponseCall) else sse(body)

    def headers(self) -> dict[str, str]:
        """Return the header with the request id."""
        return {"x-request-id": fresh_id("req_")}

    def _read_response(self, received: Received) -> ResponseCall:
        body = json_body(received)
        return read_response(body, _model(body), self._stored, strict=self.strict)

    def _check_key(self, received: Received, keys: frozenset[str] | None) -> None:
        scheme, _, key = received.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if not key and self._needs_key:
            raise RefusedError(Fault("missing_key"))
        if keys is not None and key not in keys:
            raise RefusedError(Fault.bad_key())

    def _frame(self, call: ChatCall, kind: str) -> dict[str, Any]:
        return {
            "id": fresh_id("chatcmpl-"),
            "object": kind,
            "created": int(SYSTEM_CLOCK.wall()),
            "model": call.model,
            "system_fingerprint": "fp_simulated",
        }

    def _decorated(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Hook for what Azure adds to each streamed choice."""
        return choice


def read_chat(body: Mapping[str, Any], model: str) -> ChatCall:
    """Check a chat body; shared with Azure, whose model is in the path."""
    messages = body.get("messages")
    _check_messages(messages)
    _check_numbers(body)
    if body.get("stream_options") is not None and body.get("stream") is not True:
        raise _wrong("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    assert isinstance(messages, Sequence)  # noqa: S101 - checked above
    format_ = body.get("response_format") or {}
    if format_ and format_.get("type") not in {"json_object", "json_schema", "text"}:
        supported = "Supported values are: 'json_object', 'json_schema', and 'text'."
        raise _wrong(
            f"Invalid value: '{format_.get('type')}'. {supported}",
            "response_format.type",
            "invalid_value",
        )
    user_said = [m["content"] for m in messages if m["role"] == "user"]
    return ChatCall(
        model=model,
        prompt=plain_text(user_said[-1]) if user_said else "",
        prompt_tokens=text_tokens(m.get("content") for m in messages),
        stream=body.get("stream") is True,
        n=whole_number(body.get("n")) or 1,
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        logprobs=int(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
        max_tokens=whole_number(body.get("max_completion_tokens") or body.get("max_tokens")),
        stop=texts(body.get("stop")),
        schema=(format_.get("json_schema") or {}).get("schema"),
        json_mode=format_.get("type") == "json_object",
        forced_tool=_forced_tool(body),
    )


def read_embeddings(body: Mapping[str, Any], model: str) -> EmbeddingCall:
    """Check an embeddings body. Token arrays count as texts of numbers."""
    given = body.get("input")
    if isinstance(given, str):
        inputs: Sequence[Any] = [given]
    elif isinstance(given, list) and given:
        inputs = [given] if all(isinstance(token, int) for token in given) else given
    else:
        raise _wrong("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    if "" in inputs:
        raise _wrong("Invalid 'input': input cannot be an empty string.", "input")
    return EmbeddingCall(
        model=model,
        inputs=tuple(i if isinstance(i, str) else " ".join(map(str, i)) for i in inputs),
        dimensions=whole_number(body.get("dimensions")),
        base64=body.get("encoding_format") == "base64",
    )


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("you must provide a model parameter")
    return model


def _check_messages(messages: Any) -> None:
    if messages is None:
        text = "Missing required parameter: 'messages'."
        raise _wrong(text, "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise _wrong("Invalid type for 'messages': expected an array.", "messages", "invalid_type")
    if not messages:
        text = (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead."
        )
        raise _wrong(text, "messages", "empty_array")
    for index, message in enumerate(messages):
        _check_message(index, message)
    _check_results(messages)


_KNOWN_BY_IMITATORS = frozenset(
    {"content", "function_call", "name", "role", "tool_call_id", "tool_calls"}
)
_KNOWN = _KNOWN_BY_IMITATORS | {"audio", "refusal"}
_KNOWN_OF_CALLS = frozenset({"custom", "function", "id", "type"})
_LONGEST_ID = 40


def check_fields(body: Any, known: frozenset[str] = _KNOWN) -> None:
    """Reject messages with fields or ids that the vendor does not accept."""
    messages = body.get("messages") if isinstance(body, Mapping) else None
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        where = f"messages[{index}]"
        _check_known(where, message, known)
        for place, call in enumerate(message.get("tool_calls") or ()):
            _check_known(f"{where}.tool_calls[{place}]", call, _KNOWN_OF_CALLS)
            kind = "custom" if call.get("type") == "custom" else "function"
            _check_known(f"{where}.tool_calls[{place}].{kind}", call[kind], _CALLED[kind])
            _check_id(f"{where}.tool_calls[{place}].id", call["id"])
        if message.get("role") == "tool":
            _check_id(f"{where}.tool_call_id", message.get("tool_call_id"))


_CALLED = {"function": frozenset({"arguments", "name"}), "custom": frozenset({"input", "name"})}


def _check_known(where: str, fields: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in fields.keys() - known:
        text = f"Unknown parameter: '{where}.{name}'."
        raise _wrong(text, f"{where}.{name}", "unknown_parameter")


def _check_id(where: str, given: Any) -> None:
    if isinstance(given, str) and len(given) > _LONGEST_ID:
        text = (
            f"Invalid '{where}': string too long. Expected a string with maximum length "
            f"{_LONGEST_ID}, but got a string with length {len(given)} instead."
        )
        raise _wrong(text, where, "string_above_max_length")


def _check_results(messages: list[Any]) -> None:
    """Reject tool results without a call, and calls without a result."""
    waiting: dict[str, None] = {}
    for message in [*messages, {}]:
        if message.get("role") == "tool":
            if message["tool_call_id"] not in waiting:
                text = (
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'."
                )
                raise _wrong(text, "messages")
            del waiting[message["tool_call_id"]]
        elif waiting:
            text = (
                "An assistant message with 'tool_calls' must be followed by tool messages "
                "responding to each 'tool_call_id'. The following tool_call_ids did not have "
                f"response messages: {', '.join(waiting)}"
            )
            raise _wrong(text, "messages")
        else:
            waiting = dict.fromkeys(call["id"] for call in message.get("tool_calls") or ())


def _check_message(index: int, message: Any) -> None:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise _wrong(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    role = message.get("role")
    if role not in _ROLES:
        known = ", ".join(f"'{name}'" for name in _ROLES)
        text = f"Invalid value: '{role}'. Supported values are: {known}."
        raise _wrong(text, f"{where}.role", "invalid_value")
    content = message.get("content")
    if role == "assistant" and content is None:
        return
    if not isinstance(content, (str, list)):
        text = f"Invalid value for 'content': expected a string, got {type(content).__name__}."
        raise _wrong(text, f"{where}.content", "invalid_type")
    if role == "tool" and not message.get("tool_call_id"):
        text = f"Missing required parameter: '{where}.tool_call_id'."
        raise _wrong(text, f"{where}.tool_call_id", "missing_required_parameter")


def _check_numbers(body: Mapping[str, Any]) -> None:
    limits = {"temperature": (0, 2), "top_p": (0, 1), "n": (1, 128), "max_tokens": (1, 10**9)}
    for name, (low, high) in limits.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(f"Invalid type for '{name}'.", name, "invalid_type")
        if not low <= value <= high:
            text = f"Invalid '{name}': expected a value between {low} and {high}, got {value}."
            raise _wrong(text, name, "decimal_out_of_range")


def _wrong(text: str, param: str | None = None, code: str | None = None) -> RefusedError:
    return RefusedError(Fault("bad_request", message=text, param=param, code_name=code))


def _forced_tool(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    functions = [tool["function"] for tool in body.get("tools") or () if "function" in tool]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "custom":
        return None  # its tools write no text of this kind
    if isinstance(choice, Mapping):
        wanted = (choice.get("function") or {}).get("name")
        functions = [f for f in functions if f["name"] == wanted]
        if not functions:
            raise _wrong(f"Tool choice '{wanted}' not found in 'tools'.", "tool_choice")
    elif choice != "required":
        return None
    if not functions:
        raise _wrong("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    return functions[0]["name"], functions[0].get("parameters") or {}


def _choice(index: int, call: ChatCall, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text if reply.text or not reply.tool_calls else None,
        "refusal": None,
        "annotations": [],
    }
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": tool.id,
                "type": "function",
                "function": {"name": tool.name, "arguments": tool.as_text()},
            }
            for tool in reply.tool_calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(reply.pieces, call.logprobs),
        "finish_reason": reply.finish_reason,
    }


def _deltas(
    call: ChatCall, reply: Reply
) -> Iterator[tuple[dict[str, Any], str | None, dict[str, Any] | None]]:
    """Delta, finish reason and logprobs of each chunk of one choice."""
    yield {"role": "assistant", "content": "", "refusal": None}, None, None
    if reply.reasoning is not None:
        yield {"reasoning_content": reply.reasoning}, None, None
    for piece in reply.pieces:
        yield {"content": piece}, None, _logprobs((piece,), call.logprobs)
    for index, tool in enumerate(reply.tool_calls):
        opening = {"name": tool.name, "arguments": ""}
        yield _tool_delta({"index": index, "id": tool.id, "type": "function"}, opening), None, None
        text = tool.as_text()
        middle = max(1, len(text) // 2)
        for part in filter(None, (text[:middle], text[middle:])):
            yield _tool_delta({"index": index}, {"arguments": part}), None, None
    yield {}, reply.finish_reason, None


def _tool_delta(call: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [call | {"function": function}]}


def _logprobs(pieces: Sequence[str], alternatives: int | None) -> dict[str, Any] | None:
    if alternatives is None:
        return None
    content = []
    for piece in pieces:
        token = {"token": piece, "logprob": -0.1, "bytes": list(piece.encode())}
        others = [
            token if rank == 0 else token | {"token": f"{piece}~{rank}", "logprob": -0.1 - rank}
            for rank in range(alternatives)
        ]
        content.append(token | {"top_logprobs": others})
    return {"content": content, "refusal": None}


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.total_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reply.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _vector(text: str, call: EmbeddingCall) -> list[float] | str:
    numbers = embed(text, call.dimensions)
    if not call.base64:
        return numbers
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
