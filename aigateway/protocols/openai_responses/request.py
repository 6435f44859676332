"""Requests of Responses: their items become the messages of a chat."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import orjson

from aigateway.envelope import OWN_ITEM, is_envelope, opened_envelope
from aigateway.errors import RequestRejectedError
from aigateway.messages import NativeRequest
from aigateway.protocols.openai_responses.tools import (
    CALL_INPUTS,
    CLIENT_NAMESPACE,
    Json,
    NativeOnly,
    ResponsesTool,
    ToolFunctions,
)
from aigateway.protocols.protocol import ReadRequest, system_reminder
from aigateway.request.checks import MOST_CALLS, CheckedMessages, fit_fields, refuse_field

__all__ = ["ResponsesRequest", "read_request"]

_NEEDS_STORAGE = {
    "previous_response_id": "send the whole conversation in input",
    "conversation": "send the whole conversation in input",
    "prompt": "send instructions and input",
    "background": "wait for the answer, or stream it",
}
"""Fields for which OpenAI has to store something, and what to do without."""

_REPEATED = ("metadata", "text", "tool_choice", "tools")
"""Fields with values of any kind that a Response repeats."""

_SAME_IN_A_CHAT = (
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)


@dataclass(frozen=True, slots=True)
class ResponsesRequest(ReadRequest):
    """A request in OpenAI's Responses.

    Attributes:
        tools: The tools by the names of their functions in the chat.
    """

    tools: Mapping[str, ResponsesTool] = field(default_factory=dict)


def read_request(body: Json, headers: Mapping[str, str]) -> ResponsesRequest:
    """Check a body, and turn it into a chat."""
    fit_fields("responses", body)
    for name in _REPEATED:
        if body.get(name) is not None:
            _dumped(body[name], name)
    fields = ((name, instead) for name, instead in _NEEDS_STORAGE.items() if body.get(name))
    only = next(fields, None)
    tools = ToolFunctions()
    tools.add(body.get("tools") or (), "tools")
    given = body.get("input")
    if given is None and only is None:
        refuse_field("input", "must be a text or a list of items")
    items: list[Json] = given if isinstance(given, list) else []
    for index, item in enumerate(items):
        if item.get("type") in {"additional_tools", "tool_search_output"}:
            tools.add(item["tools"], f"input[{index}].tools")
    options = _options(body, tools)
    conversation = _Conversation(tools, only or tools.only)
    messages = conversation.messages
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        conversation.read(items)
    native = NativeRequest("responses", body, headers, *(conversation.only or ()))
    if not messages:
        if native.only is None:
            refuse_field("input", "must say something")
        messages.append({"role": "user", "content": " "})  # no provider gets it
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    messages = _with_one_system(messages)
    stream = bool(body.get("stream"))
    return ResponsesRequest(CheckedMessages(messages), options, native, stream, tools.by_name)


def _with_one_system(messages: list[Json]) -> list[Json]:
    """Join the system messages before the first answer; later ones become reminders."""
    system: list[str] = []
    others: list[Json] = []
    answered = False
    for message in messages:
        content = message.get("content")
        if message["role"] != "system":
            answered = answered or message["role"] == "assistant"
            others.append(message)
            continue
        text = content if isinstance(content, str) else _joined(content or (), "\n\n")
        if answered:
            others.append(system_reminder(text))
        else:
            system.append(text)
    if not system:
        return others
    return [{"role": "system", "content": "\n\n".join(system)}, *others]


def _options(body: Json, tools: ToolFunctions) -> Json:
    options: Json = {"model": body.get("model"), "max_tokens": body.get("max_output_tokens")}
    options |= {name: body[name] for name in _SAME_IN_A_CHAT if body.get(name) is not None}
    declared = tools.declared
    choice = body.get("tool_choice")
    if choice is not None:
        choice, declared = tools.choice(choice)
    if declared:
        options["tools"] = declared
        if choice is not None and choice != "auto":
            options["tool_choice"] = choice
    if options.get("parallel_tool_calls") is not False or not declared:
        options.pop("parallel_tool_calls", None)  # true is what every vendor does
    effort = (body.get("reasoning") or {}).get("effort")
    if effort is not None:
        options["reasoning_effort"] = effort
    if body.get("top_logprobs") or "message.output_text.logprobs" in (body.get("include") or ()):
        options |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    if body.get("text"):
        options |= _text_options(body["text"])
    return options


def _text_options(text: Json) -> Json:
    options = {n: text[n] for n in ("verbosity",) if text.get(n) is not None}
    form = text.get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        schema = {n: v for n, v in form.items() if n != "type" and v is not None}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form["type"] != "text":
        options["response_format"] = form
    return options


_RESULTS = frozenset(
    {
        "apply_patch_call_output",
        "custom_tool_call_output",
        "function_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "tool_search_output",
    }
)

_LEFT_OUT = frozenset(
    {
        "additional_tools",
        "code_interpreter_call",
        "file_search_call",
        "mcp_list_tools",
        "web_search_call",
    }
)
"""Items that a chat does not need: the answers that follow contain their results."""


def _was_made_here(item_id: object) -> bool:
    return isinstance(item_id, str) and item_id.partition("_")[2].startswith(OWN_ITEM)


class _Conversation:
    """Turns items into messages of a chat.

    The model's output between two inputs becomes one message with its calls; their results follow.

    Args:
        tools: The tools of the request.
        only: What a chat cannot express, if anything. Then results of calls may be missing.
    """

    def __init__(self, tools: ToolFunctions, only: NativeOnly | None) -> None:
        self.messages: list[Json] = []
        self.only = only
        self._tools = tools
        self._results: dict[str, deque[Any]] = {}
        self._calls = 0
        self._signatures: dict[str, str] = {}  # Gemini's of calls
        self._begin()

    def _begin(self) -> None:
        self._said: list[str] = []
        self._refused: list[str] = []
        self._called: list[Json] = []
        self._thinking: dict[str, list[Any]] = {
            n: [] for n in ("thinking", "signatures", "reasoning")
        }
        self._missing: int | None = None  # where an own message is referred to

    def read(self, items: Sequence[Json]) -> None:
        thoughts = [self._read_ahead(item, index) for index, item in enumerate(items)]
        for index, item in enumerate(items):
            kind = item.get("type") or ("message" if "role" in item else "item_reference")
            if kind == "message":
                self._add_message(item, f"input[{index}].content")
            elif kind == "reasoning":
                self._add_thinking(thoughts[index])
            elif kind in _RESULTS:
                self._append_turn()
            elif kind in CALL_INPUTS:
                self._add_call(kind, item, f"input[{index}]")
            elif kind == "item_reference":
                self._accept_reference(item["id"], index)
            elif kind not in _LEFT_OUT and not _was_made_here(item.get("id")):
                self._set_only(f"input[{index}]", f'leave out items of the type "{kind}"')
        self._append_turn()
        left = next((call_id for call_id, results in self._results.items() if results), None)
        if left is not None and self.only is None:
            _refuse_unpaired("call", "output", left)

    def _accept_reference(self, item_id: str, index: int) -> None:
        """Accept a reference to an item if it can be left out; no item was stored.

        Vercel's SDK sends references as if items were stored. Reasoning, and a text before a call,
        can be left out; another message cannot.
        """
        if item_id.startswith(f"msg_{OWN_ITEM}"):
            self._missing = index
        elif not item_id.startswith(f"rs_{OWN_ITEM}"):
            self._need_item(index, own=f"_{OWN_ITEM}" in item_id)

    def _need_item(self, index: int, *, own: bool = False) -> None:
        instead = "send the item itself, as clients do with store=false"
        if own:  # no vendor has it
            refuse_field(f"input[{index}]", f"refers to an item that was not stored; {instead}")
        self._set_only(f"input[{index}]", instead)

    def _set_only(self, what: str, instead: str) -> None:
        self.only = self.only or (what, instead)

    def _read_ahead(self, item: Json, index: int) -> Json:
        """Keep the result of a call, or return the thinking in a reasoning item."""
        kind = item.get("type")
        if kind in _RESULTS:
            call_id = item.get("call_id") or item.get("id")
            if call_id is not None:
                content = self._result(item, index)
                self._results.setdefault(call_id, deque()).append(content)
        elif kind == "reasoning" and is_envelope(item.get("encrypted_content")):
            thoughts = opened_envelope(item["encrypted_content"])
            if thoughts is None:
                refuse_field(f"input[{index}].encrypted_content", "was changed or cut off")
            calls = thoughts.get("calls")
            if isinstance(calls, dict):
                self._signatures |= {n: s for n, s in calls.items() if isinstance(s, str)}
            return thoughts
        return {}

    def _result(self, item: Json, index: int) -> Any:
        if item["type"] == "tool_search_output":
            names = [self._tools.name_of(n, s) for n, s in _tool_names(item["tools"])]
            return _dumped({"tools": names}, "input")
        output = item.get("output")
        if item["type"] == "shell_call_output":
            return _dumped(output, f"input[{index}].output")
        if output is None:
            return str(item.get("status") or "")
        if isinstance(output, str):
            return output
        parts = self._parts(output, f"input[{index}].output")
        return parts if any(p["type"] != "text" for p in parts) else _joined(parts, "\n")

    def _add_message(self, item: Json, path: str) -> None:
        role, content = item["role"], item["content"]
        if role == "assistant":
            self._add_answer(content, path)
            return
        self._append_turn()
        if not isinstance(content, str):
            parts = self._parts(content, path)
            plain = len(parts) == 1 and parts[0]["type"] == "text"
            content = parts[0]["text"] if plain else parts
        if content:  # else it is empty
            # Not every server knows the role "developer".
            self.messages.append(
                {"role": "user" if role == "user" else "system", "content": content}
            )

    def _add_answer(self, content: Any, path: str) -> None:
        if (self._said or self._refused) and not self._called:
            self._append_turn()
        if isinstance(content, str):
            self._said += [content] if content else []
            return
        for part in content:
            if part["type"] == "refusal":
                self._refused.append(part["refusal"])
        parts = self._parts([p for p in content if p["type"] != "refusal"], path)
        self._said += [text for text in [_joined(parts, "")] if text]

    def _add_call(self, kind: str, item: Json, path: str) -> None:
        if item.get("call_id") is None:
            return  # a search that OpenAI ran
        if kind in {"function_call", "custom_tool_call"}:
            name = self._tools.name_of(item["name"], item.get("namespace"))
        else:
            name = self._tools.name_of(kind.removesuffix("_call"), CLIENT_NAMESPACE)
        given = CALL_INPUTS[kind](item)
        called = {
            "name": name,
            "arguments": given if isinstance(given, str) else _dumped(given, path),
        }
        self._calls += 1
        if self._calls > MOST_CALLS:
            refuse_field("input", f"must have at most {MOST_CALLS:,} tool calls")
        call = {"id": item["call_id"], "type": "function", "function": called}
        signature = self._signatures.get(item["call_id"])
        if signature is not None:
            call["provider_specific_fields"] = {"thought_signature": signature}
        self._called.append(call)

    def _add_thinking(self, thoughts: Json) -> None:
        """Add thinking to the current message, or begin the next one with it."""
        begins = thoughts.get("thinking") or thoughts.get("reasoning")
        if begins and (self._said or self._refused) and not self._called:
            self._append_turn()
        for name, known in self._thinking.items():
            given = thoughts.get(name)
            known.extend(given if isinstance(given, list) else [given])

    def _thinking_fields(self) -> Json:
        """Return the thinking as fields of the message, in the form of a chat's answers."""
        fields: Json = {}
        blocks = [block for block in self._thinking["thinking"] if _is_block(block)]
        signatures = [text for text in self._thinking["signatures"] if isinstance(text, str)]
        reasoning = [text for text in self._thinking["reasoning"] if isinstance(text, str)]
        if blocks:
            fields["thinking_blocks"] = blocks
        if reasoning:
            fields["reasoning_content"] = "".join(reasoning)
        if signatures:
            fields["provider_specific_fields"] = {"thought_signatures": signatures}
        return fields

    def _append_turn(self) -> None:
        """Append the model's message, and the results of its calls."""
        if self._missing is not None and not self._called:
            self._need_item(self._missing, own=True)
        if self._said or self._refused or self._called:
            message: Json = {"role": "assistant"}
            message["content"] = "\n\n".join(self._said) or (None if self._called else "")
            if self._refused:
                message["refusal"] = "".join(self._refused)
            message |= self._thinking_fields()
            if self._called:
                message["tool_calls"] = self._called
            self.messages.append(message)
            for call in self._called:
                self._add_result(call["id"])
        self._begin()

    def _add_result(self, call_id: str) -> None:
        results = self._results.get(call_id)
        if results:
            content = results.popleft()
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        elif self.only is None:
            _refuse_unpaired("output", "call", call_id)

    # ── parts ────────────────────────────────────────────────────────────────────────────────

    def _parts(self, given: Sequence[Json], path: str) -> list[Json]:
        parts = (self._part(part, f"{path}[{index}]") for index, part in enumerate(given))
        return [part for part in parts if part is not None]

    def _part(self, part: Json, path: str) -> Json | None:
        kind = part["type"]
        if kind in {"input_text", "output_text"}:
            return {"type": "text", "text": part["text"]} if part["text"] else None
        if kind == "refusal":
            return {"type": "text", "text": part["refusal"]} if part["refusal"] else None
        if kind == "input_image" and part.get("image_url"):
            detail = part.get("detail")
            more = {"detail": detail} if detail in {"auto", "high", "low"} else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **more}}
        if kind == "input_file" and part.get("file_data"):
            file = {n: part[n] for n in ("file_data", "filename") if part.get(n)}
            return {"type": "file", "file": file}
        if kind == "input_audio":
            return {"type": kind, kind: part[kind]}
        where = next((n for n in ("file_id", "file_url") if part.get(n)), None)
        if kind == "input_image" and where != "file_id":
            refuse_field(path, 'must have "image_url" or "file_id"')
        if kind == "input_file" and where is None:
            refuse_field(path, 'must have "file_data", "file_url" or "file_id"')
        if where is None:
            self._set_only(path, f'leave out parts of the type "{kind}"')
        else:
            self._set_only(f"{path}.{where}", "send the data itself, as a data: URL")
        return None


def _is_block(block: Any) -> bool:
    return isinstance(block, dict) and all(isinstance(value, str) for value in block.values())


def _joined(parts: Iterable[Json], between: str) -> str:
    return between.join(part["text"] for part in parts if part["type"] == "text")


def _tool_names(tools: Iterable[Json]) -> Iterable[tuple[str, str | None]]:
    for tool in tools:
        if tool["type"] == "namespace":
            yield from (
                (member["name"], tool["name"]) for member in tool["tools"] if "name" in member
            )
        elif isinstance(tool.get("name"), str):
            yield tool["name"], None


def _refuse_unpaired(missing: str, there: str, call_id: str) -> NoReturn:
    message = f"No tool {missing} found for the {there} with the call_id {call_id[:64]}."
    raise RequestRejectedError(message, param="input")


def _dumped(value: Any, path: str) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # parsers accept deeper nesting than the serializer
        refuse_field(path, "is nested too deeply")
