"""OpenAI's Responses and its completions of a prompt: requests, answers, streams.

https://platform.openai.com/docs/api-reference/responses and .../completions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aigateway.clock import SYSTEM_CLOCK
from aigateway.simulator.answers import ChatCall, Reply, SimulatedToolCall
from aigateway.simulator.faults import Fault, RefusedError
from aigateway.simulator.wires.wire import (
    Event,
    fresh_id,
    plain_text,
    signature,
    sse,
    text_tokens,
    texts,
    whole_number,
)

__all__ = [
    "CompletionCall",
    "ResponseCall",
    "StoredResponses",
    "completion",
    "completion_events",
    "read_completion",
    "read_response",
    "response",
    "response_error",
    "response_events",
]

_ENCRYPTED = "reasoning.encrypted_content"
_SEAL = "gAAAAA"
_MOST_STORED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCall(ChatCall):
    """A request for a response.

    Attributes:
        body: As it came; an answer repeats much of it.
        tools: Type and namespace of the tools that the client runs, by name.
        stored: Where the answer is stored, if it is.
    """

    body: Mapping[str, Any]
    tools: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    stored: StoredResponses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall(ChatCall):
    """A prompt to complete."""


class StoredResponses:
    """Items of the responses that a vendor has stored, by the id of the response."""

    def __init__(self) -> None:
        self._conversations: OrderedDict[str, list[Any]] = OrderedDict()

    def add(self, response_id: str, items: list[Any]) -> None:
        """Store a conversation up to this response; the oldest one is forgotten."""
        self._conversations[response_id] = items
        if len(self._conversations) > _MOST_STORED:
            self._conversations.popitem(last=False)

    def conversation(self, response_id: Any) -> list[Any]:
        """Return the items up to this response. `RefusedError` if there is none."""
        found = self._conversations.get(response_id) if isinstance(response_id, str) else None
        if found is None:
            text = f"Previous response with id '{response_id}' not found."
            raise _wrong(text, "previous_response_id", "previous_response_not_found")
        return found

    def has_item(self, item_id: Any) -> bool:
        """Return whether an item is stored."""
        return any(
            item.get("id") == item_id for items in self._conversations.values() for item in items
        )


def read_response(
    body: Mapping[str, Any], model: str, stored: StoredResponses, *, strict: bool
) -> ResponseCall:
    """Check the body of a request for a response.

    Args:
        body: The body.
        model: The model.
        stored: What `previous_response_id` and `item_reference` can name.
        strict: Refuse unknown fields and ids, and what the vendor has not signed.
    """
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list):
        text = "Missing required parameter: 'input'."
        raise _wrong(text, "input", "missing_required_parameter")
    previous = body.get("previous_response_id")
    before = [] if previous is None else stored.conversation(previous)
    if strict:
        _check_body(body)
        for index, item in enumerate(items):
            _check_item(f"input[{index}]", item, stored)
    _check_calls([*before, *items])
    tools = _tools(body, items)
    user_said = [item["content"] for item in items if item.get("role") == "user"]
    said = [plain_text(item.get("content") or item.get("output")) for item in [*before, *items]]
    form = (body.get("text") or {}).get("format") or {}
    if form.get("type") == "json_schema" and not (form.get("name") and form.get("schema")):
        name = "schema" if form.get("name") else "name"
        text = f"Missing required parameter: 'text.format.{name}'."
        raise _wrong(text, f"text.format.{name}", "missing_required_parameter")
    return ResponseCall(
        model=model,
        prompt=plain_text(user_said[-1]) if user_said else "",
        prompt_tokens=text_tokens([body.get("instructions"), *said]),
        stream=body.get("stream") is True,
        max_tokens=whole_number(body.get("max_output_tokens")),
        schema=form.get("schema"),
        json_mode=form.get("type") == "json_object",
        forced_tool=_forced_tool(body),
        body={**body, "input": [*before, *items]},
        tools=tools,
        stored=None if body.get("store") is False else stored,
    )


def response(call: ResponseCall, reply: Reply) -> dict[str, Any]:
    """Return a `response`."""
    items = list(_items(call, reply)) if reply.show_choices else []
    whole = _frame(call) | _ending(reply) | {"output": items}
    whole["usage"] = _usage(reply) if reply.show_usage else None
    if call.stored is not None:
        call.stored.add(whole["id"], [*call.body["input"], *items])
    return whole


def response_events(call: ResponseCall, reply: Reply) -> Iterator[Event]:
    """Yield `response.created` and what follows, up to the event with the whole response."""
    whole = response(call, reply)
    begun = whole | {
        "status": "in_progress",
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "completed_at": None,
    }
    for number, (name, data, content) in enumerate(_told(whole, begun, reply)):
        ending = "response" in data and name not in _FIRST
        kind = f"response.{name}"
        yield Event(sse({"type": kind, **data, "sequence_number": number}, kind), content, ending)


def response_error(error: Mapping[str, Any]) -> bytes:
    """Return the `error` event of a stream."""
    about = {name: error.get(name) for name in ("code", "message", "param")}
    about["code"] = about["code"] or error.get("type")
    return sse({"type": "error", **about, "sequence_number": 2}, "error")


def read_completion(body: Mapping[str, Any], model: str) -> CompletionCall:
    """Check the body of a request to complete a prompt. Token arrays count as texts of numbers."""
    given = body.get("prompt", "<|endoftext|>")
    if isinstance(given, list) and given and isinstance(given[0], (str, list)):
        given = given[0]
    prompt = " ".join(map(str, given)) if isinstance(given, list) else given
    if not isinstance(prompt, str):
        raise _wrong("Invalid type for 'prompt'.", "prompt", "invalid_type")
    return CompletionCall(
        model=model,
        prompt=prompt,
        prompt_tokens=text_tokens([prompt]),
        stream=body.get("stream") is True,
        n=whole_number(body.get("n")) or 1,
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        max_tokens=whole_number(body.get("max_tokens")) or 16,
        stop=texts(body.get("stop")),
    )


def completion(call: CompletionCall, reply: Reply) -> dict[str, Any]:
    """Return a `text_completion`."""
    choices = [
        _completed(index, reply.text, reply.finish_reason)
        for index in range(reply.n * reply.show_choices)
    ]
    usage = {"usage": _counted(reply)} if reply.show_usage else {}
    return _completion_frame(call) | {"choices": choices} | usage


def completion_events(call: CompletionCall, reply: Reply) -> Iterator[Event]:
    """Yield the answer piece by piece, then `[DONE]`."""
    frame = _completion_frame(call)
    for index in range(reply.n * reply.show_choices):
        for piece in reply.pieces:
            yield Event(sse(frame | {"choices": [_completed(index, piece, None)]}), content=True)
        last = _completed(index, "", reply.finish_reason)
        yield Event(sse(frame | {"choices": [last]}), ending=True)
    if call.include_usage and reply.show_usage:
        yield Event(sse(frame | {"choices": [], "usage": _counted(reply)}))
    yield Event(b"data: [DONE]\n\n")


def _completion_frame(call: CompletionCall) -> dict[str, Any]:
    return {
        "id": fresh_id("cmpl-"),
        "object": "text_completion",
        "created": int(SYSTEM_CLOCK.wall()),
        "model": call.model,
    }


def _completed(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _counted(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.total_tokens,
    }


# Checks.


_FIELDS = frozenset(
    {
        "background", "client_metadata", "context_management", "conversation", "include", "input",
        "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
        "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier",
        "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice",
        "tools", "top_logprobs", "top_p", "truncation", "user",
    }
)  # fmt: skip
_INCLUDED = frozenset(
    {
        "code_interpreter_call.outputs", "computer_call_output.output.image_url",
        "file_search_call.results", "message.input_image.image_url",
        "message.output_text.logprobs", _ENCRYPTED, "web_search_call.action.sources",
        "web_search_call.results",
    }
)  # fmt: skip
_LIMITS = {"temperature": (0, 2), "top_p": (0, 1), "max_output_tokens": (16, 10**9)}
_ITEM = frozenset({"id", "status", "type"})
_CALL = _ITEM | {"call_id", "name", "namespace"}
_OF_ITEMS = {
    "additional_tools": _ITEM | {"role", "tools"},
    "custom_tool_call": _CALL | {"input"},
    "custom_tool_call_output": _ITEM | {"call_id", "output"},
    "function_call": _CALL | {"arguments"},
    "function_call_output": _ITEM | {"call_id", "output"},
    "item_reference": _ITEM,
    "message": _ITEM | {"content", "phase", "role"},
    "reasoning": _ITEM | {"content", "encrypted_content", "summary"},
}
_IDS = {
    "custom_tool_call": "ctc",
    "function_call": "fc",
    "message": "msg",
    "reasoning": "rs",
}
_PARTS = frozenset({"input_audio", "input_file", "input_image", "input_text"})
_OF_ASSISTANTS = frozenset({"output_text", "refusal"})
_LONGEST_ID = 64
_OUTPUTS = {
    "custom_tool_call_output": "custom tool call output",
    "function_call_output": "function call output",
}
_OTHERS = frozenset({"developer", "system", "user"})


def _check_body(body: Mapping[str, Any]) -> None:
    for name in body.keys() - _FIELDS:
        raise _wrong(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    for name, (low, high) in _LIMITS.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(f"Invalid type for '{name}'.", name, "invalid_type")
        if not low <= value <= high:
            text = f"Invalid '{name}': expected a value between {low} and {high}, got {value}."
            raise _wrong(text, name, "integer_below_min_value")
    for name in body.get("include") or ():
        if name not in _INCLUDED:
            text = f"Invalid value: '{name}'. Supported values are: {', '.join(sorted(_INCLUDED))}."
            raise _wrong(text, "include[0]", "invalid_value")


def _check_item(where: str, item: Any, stored: StoredResponses) -> None:
    """Check one item of the input by itself."""
    if not isinstance(item, Mapping):
        raise _wrong(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    kind = str(item.get("type") or "message")
    known = _OF_ITEMS.get(kind)
    if known is None:
        if kind.endswith(("_call", "_call_output")):
            return  # of a tool that the vendor runs
        text = f"Invalid value: '{kind}'."
        raise _wrong(text, f"{where}.type", "invalid_value")
    for name in item.keys() - known:
        raise _wrong(f"Unknown parameter: '{where}.{name}'.", f"{where}.{name}", _UNKNOWN)
    _check_ids(where, item, _IDS.get(kind))
    if kind == "message":
        _check_message(where, item)
    elif kind == "reasoning":
        _check_reasoning(where, item, stored)
    elif kind == "item_reference" and not stored.has_item(item.get("id")):
        raise _not_stored(item)


_UNKNOWN = "unknown_parameter"


def _check_ids(where: str, item: Mapping[str, Any], begins: str | None) -> None:
    for name in ("id", "call_id"):
        if len(str(item.get(name) or "")) > _LONGEST_ID:
            text = f"Invalid '{where}.{name}': string too long."
            raise _wrong(text, f"{where}.{name}", "string_above_max_length")
    if begins and item.get("id") and not str(item["id"]).startswith(begins):
        text = f"Invalid '{where}.id': '{item['id']}'. Expected an ID that begins with '{begins}'."
        raise _wrong(text, f"{where}.id", "invalid_value")


def _check_message(where: str, item: Mapping[str, Any]) -> None:
    role = item.get("role")
    if role not in {"assistant", "developer", "system", "user"}:
        text = f"Invalid value: '{role}'."
        raise _wrong(text, f"{where}.role", "invalid_value")
    content = item.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        text = f"Missing required parameter: '{where}.content'."
        raise _wrong(text, f"{where}.content", "missing_required_parameter")
    allowed = _OF_ASSISTANTS if role == "assistant" else _PARTS
    for place, part in enumerate(content):
        if part.get("type") not in allowed:
            known = ", ".join(f"'{name}'" for name in sorted(allowed))
            text = f"Invalid value: '{part.get('type')}'. Supported values are: {known}."
            raise _wrong(text, f"{where}.content[{place}].type", "invalid_value")


def _check_reasoning(where: str, item: Mapping[str, Any], stored: StoredResponses) -> None:
    sealed = item.get("encrypted_content")
    if sealed is None:
        if not stored.has_item(item.get("id")):
            raise _not_stored(item)
    elif not str(sealed).startswith(_SEAL) or len(sealed) != len(_sealed("")):
        text = (
            f"The encrypted content for item {item.get('id')} could not be verified. Reason: "
            "Encrypted content could not be decrypted or parsed."
        )
        raise _wrong(text, f"{where}.encrypted_content", "invalid_encrypted_content")
    if not isinstance(item.get("summary"), list):
        text = f"Missing required parameter: '{where}.summary'."
        raise _wrong(text, f"{where}.summary", "missing_required_parameter")


def _check_calls(items: Sequence[Mapping[str, Any]]) -> None:
    """Check that calls and their outputs, and reasoning and what follows it, belong together."""
    calls: set[str] = set()
    answered: set[str] = set()
    for item, following in zip(items, [*items[1:], {"role": "user"}], strict=True):
        kind = item.get("type")
        if kind in _IDS and kind.endswith("_call"):
            calls.add(item["call_id"])
        elif kind in _OUTPUTS:
            answered.add(item["call_id"])
            if item["call_id"] not in calls:
                text = f"No tool call found for {_OUTPUTS[kind]} with call_id {item['call_id']}."
                raise _wrong(text, "input")
        elif kind == "reasoning" and following.get("role") in _OTHERS:
            text = (
                f"Item '{item.get('id')}' of type 'reasoning' was provided without its required "
                "following item."
            )
            raise _wrong(text, "input")
    for missing in calls - answered:
        raise _wrong(f"No tool output found for function call {missing}.", "input")


def _tools(
    body: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, str | None]]:
    """Return the tools that the client runs; further ones may stand in the input."""
    found: dict[str, tuple[str, str | None]] = {}
    waiting = [
        (f"tools[{place}]", tool, None) for place, tool in enumerate(body.get("tools") or ())
    ]
    for item in items:
        if item.get("type") == "additional_tools":
            waiting += [("input.tools", tool, None) for tool in item["tools"]]
    while waiting:
        where, tool, namespace = waiting.pop(0)
        kind = tool.get("type")
        if kind in {"custom", "function", "namespace"} and not tool.get("name"):
            text = f"Missing required parameter: '{where}.name'."
            raise _wrong(text, f"{where}.name", "missing_required_parameter")
        if kind == "namespace":
            waiting += [(f"{where}.tools", inner, tool["name"]) for inner in tool["tools"]]
        elif kind in {"custom", "function"}:
            found[tool["name"]] = (kind, namespace)
        elif not kind:
            text = f"Missing required parameter: '{where}.type'."
            raise _wrong(text, f"{where}.type", "missing_required_parameter")
    return found


def _forced_tool(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    functions = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping):
        if choice.get("type") != "function":
            return None
        functions = [tool for tool in functions if tool["name"] == choice.get("name")]
        if not functions:
            text = f"Tool choice '{choice.get('name')}' not found in 'tools' parameter."
            raise _wrong(text, "tool_choice")
    elif choice != "required":
        return None
    if not functions:
        text = "Tool choice 'required' must be specified with 'tools' parameter."
        raise _wrong(text, "tool_choice")
    return functions[0]["name"], functions[0].get("parameters") or {}


def _not_stored(item: Mapping[str, Any]) -> RefusedError:
    text = (
        f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set "
        "to false. Try again with `store` set to true, or remove this item from your input."
    )
    return RefusedError(Fault("status", code=404, message=text, param="input"))


def _wrong(text: str, param: str | None = None, code: str | None = None) -> RefusedError:
    return RefusedError(Fault("bad_request", message=text, param=param, code_name=code))


# Answers.


def _frame(call: ResponseCall) -> dict[str, Any]:
    body = call.body
    reasoning = body.get("reasoning") or {}
    now = int(SYSTEM_CLOCK.wall())
    return {
        "id": fresh_id("resp_"),
        "object": "response",
        "created_at": now,
        "status": "completed",
        "background": False,
        "completed_at": now,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": call.model,
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": None,
        "service_tier": "default",
        "store": call.stored is not None,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}, "verbosity": "medium"} | (body.get("text") or {}),
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": body.get("metadata") or {},
    }


def _ending(reply: Reply) -> dict[str, Any]:
    """Return how the response ended; "failed" is a finish reason for one that failed."""
    match reply.finish_reason:
        case "length":
            details = {"reason": "max_output_tokens"}
            return {"status": "incomplete", "incomplete_details": details, "completed_at": None}
        case "content_filter":
            details = {"reason": "content_filter"}
            return {"status": "incomplete", "incomplete_details": details, "completed_at": None}
        case "failed":
            error = {"code": "server_error", "message": "The model failed to generate a response."}
            return {"status": "failed", "error": error, "completed_at": None}
        case _:
            return {"status": "completed"}


def _items(call: ResponseCall, reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning is not None:
        yield _thought(call, reply.reasoning)
    status = "incomplete" if reply.finish_reason in {"content_filter", "length"} else "completed"
    if reply.text or not reply.tool_calls:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": reply.text}
        yield {
            "id": fresh_id("msg_"),
            "type": "message",
            "status": status,
            "content": [part],
            "role": "assistant",
        }
    for tool in reply.tool_calls:
        yield _called(call, tool)


def _thought(call: ResponseCall, text: str) -> dict[str, Any]:
    wants_summary = (call.body.get("reasoning") or {}).get("summary")
    item: dict[str, Any] = {
        "id": fresh_id("rs_"),
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}] if wants_summary else [],
    }
    if _ENCRYPTED in (call.body.get("include") or ()):
        item["encrypted_content"] = _sealed(text)
    return item


def _sealed(text: str) -> str:
    return _SEAL + signature("openai", text)


def _called(call: ResponseCall, tool: SimulatedToolCall) -> dict[str, Any]:
    kind, namespace = call.tools.get(tool.name, ("function", None))
    about = {"status": "completed", "call_id": tool.id, "name": tool.name}
    if namespace:
        about["namespace"] = namespace
    if kind == "custom":
        given = tool.arguments if isinstance(tool.arguments, str) else tool.as_text()
        return {"id": fresh_id("ctc_"), "type": "custom_tool_call", "input": given, **about}
    return {
        "id": fresh_id("fc_"),
        "type": "function_call",
        "arguments": tool.as_text(),
        **about,
    }


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
        "total_tokens": reply.total_tokens,
    }


# Streams.


_FIRST = frozenset({"created", "in_progress"})
_Told = Iterator[tuple[str, dict[str, Any], bool]]
"""Name without "response.", fields, and whether there is content in it."""


def _told(whole: dict[str, Any], begun: dict[str, Any], reply: Reply) -> _Told:
    yield "created", {"response": begun}, False
    yield "in_progress", {"response": begun}, False
    for index, item in enumerate(whole["output"]):
        started = {**item, "status": "in_progress"}
        match item["type"]:
            case "message":
                parts = _message_events(index, item, reply)
                started["content"] = []
            case "reasoning":
                parts = _summary_events(index, item)
                started = {**item, "summary": []}
            case _:
                name = "input" if item["type"] == "custom_tool_call" else "arguments"
                parts = _call_events(index, item, name)
                started[name] = ""
        yield "output_item.added", {"output_index": index, "item": started}, False
        yield from parts
        yield "output_item.done", {"output_index": index, "item": item}, False
    yield whole["status"], {"response": whole}, False


def _message_events(index: int, item: dict[str, Any], reply: Reply) -> _Told:
    where = {"item_id": item["id"], "output_index": index, "content_index": 0}
    part = item["content"][0]
    yield "content_part.added", {**where, "part": {**part, "text": ""}}, False
    for piece in reply.pieces:
        yield "output_text.delta", {**where, "delta": piece, "logprobs": []}, True
    yield "output_text.done", {**where, "text": part["text"], "logprobs": []}, False
    yield "content_part.done", {**where, "part": part}, False


def _summary_events(index: int, item: dict[str, Any]) -> _Told:
    for place, part in enumerate(item["summary"]):
        where = {"item_id": item["id"], "output_index": index, "summary_index": place}
        yield "reasoning_summary_part.added", {**where, "part": {**part, "text": ""}}, False
        yield "reasoning_summary_text.delta", {**where, "delta": part["text"]}, True
        yield "reasoning_summary_text.done", {**where, "text": part["text"]}, False
        yield "reasoning_summary_part.done", {**where, "part": part}, False


def _call_events(index: int, item: dict[str, Any], name: str) -> _Told:
    where = {"item_id": item["id"], "output_index": index}
    kind = "custom_tool_call_input" if name == "input" else "function_call_arguments"
    text = item[name]
    middle = max(1, len(text) // 2)
    for part in filter(None, (text[:middle], text[middle:])):
        yield f"{kind}.delta", {**where, "delta": part}, True
    yield f"{kind}.done", {**where, name: text}, False
