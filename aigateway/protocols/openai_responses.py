"""OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses.

A body is turned into a chat. Tools in forms that no chat has become functions, and their calls get
the form of the tool again. What a vendor wants back with its own answers travels in
`encrypted_content` of reasoning items. Nothing is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import orjson

from aigateway.clock import SYSTEM_CLOCK
from aigateway.envelope import OWN_ITEM, is_envelope, opened_envelope, sealed
from aigateway.errors import RequestRejectedError, error_refusal
from aigateway.messages import (
    ChatResponse,
    Choice,
    Chunk,
    Completion,
    NativeRequest,
    Opening,
    ToolCallDelta,
    Usage,
)
from aigateway.protocols.protocol import (
    CallerProtocol,
    EventWriter,
    ReadRequest,
    ServerSentEvent,
    encoded,
)
from aigateway.request.checks import CheckedMessages, fit_fields, refuse_field

__all__ = ["RESPONSES", "ResponsesRequest", "ResponsesWriter"]

_Json = dict[str, Any]

_Only = tuple[str, str]
"""`only` and `instead` of `NativeRequest`."""

_MARK = OWN_ITEM
"""In ids of items that were made here, behind the prefix of the item's type."""

_MOST_CALLS = 2048
"""Tool calls of a conversation, as in a chat."""

_MOST_TOOLS = 1024
"""Functions of a request, likewise."""

_NEEDS_STORAGE = {
    "previous_response_id": "send the whole conversation in input",
    "conversation": "send the whole conversation in input",
    "prompt": "send instructions and input",
    "background": "wait for the answer, or stream it",
}
"""Fields for which OpenAI has to store something, and what to do without."""


def _dumped(value: Any, path: str) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # a parser takes more than a writer
        refuse_field(path, "is nested too deeply")


# ── tools ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool, as the caller has declared it; in the chat it is a function."""

    type: str
    name: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class ResponsesRequest(ReadRequest):
    """A request in OpenAI's Responses.

    Attributes:
        tools: The tools by the names of their functions in the chat.
    """

    tools: Mapping[str, _Tool] = field(default_factory=dict)


_CLIENTS = ""
"""Namespace of tools that have a type of their own, and no name."""

_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")


def _text(description: str) -> _Json:
    return {"type": "string", "description": description}


def _schema(required: Sequence[str], **properties: Any) -> _Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_MILLISECONDS = {"type": "integer", "description": "Milliseconds after which to stop."}
_TEXTS = {"type": "array", "items": {"type": "string"}}

_CLIENTS_TOOLS: Mapping[str, tuple[str, _Json]] = {
    "local_shell": (
        "Run a program on the user's machine.",
        _schema(
            ["command"],
            command={**_TEXTS, "description": "The program and its arguments."},
            working_directory=_text("Where to run it."),
            timeout_ms=_MILLISECONDS,
        ),
    ),
    "shell": (
        "Run commands in a shell on the user's machine.",
        _schema(
            ["commands"],
            commands={**_TEXTS, "description": "Shell commands."},
            timeout_ms=_MILLISECONDS,
            max_output_length={"type": "integer", "description": "Characters of output to keep."},
        ),
    ),
    "apply_patch": (
        "Create, change or delete one file, by a diff in the V4A format.",
        _schema(
            ["type", "path"],
            type={"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
            path=_text("The file."),
            diff=_text('Lines that begin with " ", "+" or "-", in sections that begin with "@@".'),
        ),
    ),
}
"""Tools that the client runs: what they do, and the JSON schema of their input."""

_SEARCH_SCHEMA = _schema(["query"], query=_text("What to search for."))


class _Tools:
    """Turns the tools of a request into functions of a chat, each with a name of its own."""

    __slots__ = ("_chosen_only", "_hosted", "_searches", "by_name", "declared", "names")

    def __init__(self) -> None:
        self.declared: list[_Json] = []
        self.by_name: dict[str, _Tool] = {}
        self.names: dict[tuple[str | None, str], str] = {}
        self._hosted: _Only | None = None
        self._chosen_only: _Only | None = None
        self._searches: _Only | None = None

    @property
    def only(self) -> _Only | None:
        """A tool that the vendor itself would have to run.

        Agents offer a web search along with their own tools, whether or not they need it, and go on
        without one.
        """
        hosted = self._hosted or (None if self.declared else self._searches)
        return self._chosen_only or hosted

    def add(self, tools: Iterable[_Json], path: str) -> None:
        for index, tool in enumerate(tools):
            kind = tool["type"]
            if kind in {"function", "custom"}:
                self._add(kind, tool)
            elif kind == "namespace":
                self._add_namespace(tool)
            elif kind == "tool_search":
                # At OpenAI a search of its own finds tools among those that are declared anyway.
                if tool.get("execution") == "client":
                    what = tool.get("description") or "Search for more tools."
                    given = tool.get("parameters") or _SEARCH_SCHEMA
                    self._declare(_Tool(kind, kind, _CLIENTS), what, given)
            elif kind in _CLIENTS_TOOLS and _runs_at_the_client(tool):
                self._declare(_Tool(kind, kind, _CLIENTS), *_CLIENTS_TOOLS[kind])
            else:
                instead = f'declare a function of your program in place of the tool "{kind}"'
                if kind.startswith("web_search"):
                    self._searches = self._searches or (f"{path}[{index}]", instead)
                else:
                    self._hosted = self._hosted or (f"{path}[{index}]", instead)

    def _add_namespace(self, tool: _Json) -> None:
        note = tool.get("description")
        for member in tool["tools"]:
            kind = member["type"]
            if kind in {"function", "custom"}:
                self._add(kind, member, tool["name"], note)
                note = None  # once is enough

    def _add(
        self, kind: str, tool: _Json, namespace: str | None = None, note: str | None = None
    ) -> None:
        what = "\n\n".join(text for text in (note, tool.get("description")) if text)
        called = _Tool(kind, tool["name"], namespace)
        if kind == "function":
            more = {} if tool.get("strict") is None else {"strict": tool["strict"]}
            given = tool.get("parameters") or {"type": "object", "properties": {}}
            self._declare(called, what, given, more)
            return
        grammar = tool.get("format") or {}
        definition = grammar.get("definition")
        if isinstance(definition, str):
            syntax = grammar.get("syntax")
            what += f"\n\nThe input must match this grammar ({syntax}):\n{definition}"
        self._declare(called, what, _schema(["input"], input=_text("The whole input, as text.")))

    def _declare(
        self, tool: _Tool, what: str, parameters: _Json, more: Mapping[str, Any] | None = None
    ) -> None:
        key = (tool.namespace, tool.name)
        if key in self.names:
            return  # a search has found it before
        if len(self.declared) >= _MOST_TOOLS:
            refuse_field("tools", f"must have at most {_MOST_TOOLS:,} functions")
        name = _flat(*key)
        if name in self.by_name:
            name = _hashed(*key)
        self.names[key] = name
        self.by_name[name] = tool
        described = {"description": what} if what else {}
        function = {"name": name, **described, "parameters": parameters, **(more or {})}
        self.declared.append({"type": "function", "function": function})

    def name_of(self, name: str, namespace: str | None = None) -> str:
        """Return the name of a tool's function, also of a tool that is not declared any more."""
        return self.names.get((namespace, name)) or _flat(namespace, name)

    def choice(self, choice: Any) -> tuple[Any, list[_Json]]:
        """Return the choice of a tool in a chat, and the functions that may be chosen."""
        if isinstance(choice, str):
            if choice not in {"auto", "none", "required"}:
                refuse_field("tool_choice", 'must be "auto", "none", "required" or an object')
            return choice, self.declared
        kind = choice["type"]
        if kind == "allowed_tools":
            chosen = {self._chosen(tool) for tool in choice.get("tools") or ()}
            allowed = [tool for tool in self.declared if tool["function"]["name"] in chosen]
            return choice.get("mode") or "auto", allowed
        name = self._chosen(choice)
        if name is None:
            return None, self.declared
        if name not in self.by_name:
            refuse_field("tool_choice", "names a tool that is not in tools")
        return {"type": "function", "function": {"name": name}}, self.declared

    def _chosen(self, choice: _Json) -> str | None:
        kind, name = choice.get("type"), choice.get("name")
        if kind in {"function", "custom"}:
            if not isinstance(name, str):
                refuse_field("tool_choice", "must have the name of a tool")
            namespace = choice.get("namespace")
            return self.name_of(name, namespace if isinstance(namespace, str) else None)
        if (_CLIENTS, kind) in self.names:
            return self.names[_CLIENTS, str(kind)]
        self._chosen_only = ("tool_choice", "choose a function")
        return None


def _runs_at_the_client(tool: _Json) -> bool:
    where = tool.get("environment")
    return tool["type"] != "shell" or (where or {"type": "local"}) == {
        **(where if isinstance(where, dict) else {}),
        "type": "local",
    }


def _flat(namespace: str | None, name: str) -> str:
    if not namespace:
        return name
    flat = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    return flat if _FUNCTION_NAME.fullmatch(flat) else _hashed(namespace, name)


def _hashed(namespace: str | None, name: str) -> str:
    """Return a name that any vendor takes, and that no other tool has."""
    whole = orjson.dumps([namespace, name])
    digest = hashlib.sha256(whole, usedforsecurity=False).hexdigest()[:8]
    return f"{_NOT_IN_NAMES.sub('_', name)[:55]}_{digest}"


# ── requests ─────────────────────────────────────────────────────────────────────────────────

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


def _read(body: _Json, headers: Mapping[str, str]) -> ResponsesRequest:
    fit_fields("responses", body)
    for name in _REPEATED:
        if body.get(name) is not None:
            _dumped(body[name], name)
    fields = ((name, instead) for name, instead in _NEEDS_STORAGE.items() if body.get(name))
    only = next(fields, None)
    tools = _Tools()
    tools.add(body.get("tools") or (), "tools")
    given = body.get("input")
    if given is None and only is None:
        refuse_field("input", "must be a text or a list of items")
    items: list[_Json] = given if isinstance(given, list) else []
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


def _with_one_system(messages: list[_Json]) -> list[_Json]:
    """Join the instructions before the first answer; later ones become reminders of the user.

    Many servers take one system message, at the beginning. If a later one went there, it would
    change the beginning, and no prompt cache would hold.
    """
    system: list[str] = []
    others: list[_Json] = []
    answered = False
    for message in messages:
        content = message.get("content")
        if message["role"] != "system":
            answered = answered or message["role"] == "assistant"
            others.append(message)
            continue
        text = content if isinstance(content, str) else _joined(content or (), "\n\n")
        if answered:
            text = f"<system-reminder>\n\n{text}\n\n</system-reminder>"
            others.append({"role": "user", "content": text})
        else:
            system.append(text)
    if not system:
        return others
    return [{"role": "system", "content": "\n\n".join(system)}, *others]


def _options(body: _Json, tools: _Tools) -> _Json:
    options: _Json = {"model": body.get("model"), "max_tokens": body.get("max_output_tokens")}
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
        options |= _of_text(body["text"])
    return options


def _of_text(text: _Json) -> _Json:
    options = {n: text[n] for n in ("verbosity",) if text.get(n) is not None}
    form = text.get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        schema = {n: v for n, v in form.items() if n != "type" and v is not None}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form["type"] != "text":
        options["response_format"] = form
    return options


_CALLS: Mapping[str, Callable[[_Json], Any]] = {
    "function_call": lambda item: item["arguments"],
    "custom_tool_call": lambda item: {"input": item["input"]},
    "local_shell_call": lambda item: {n: v for n, v in item["action"].items() if n != "type"},
    "shell_call": lambda item: item["action"],
    "apply_patch_call": lambda item: item["operation"],
    "tool_search_call": lambda item: item.get("arguments"),
}
"""The input of a call in an item: JSON as text, or its value."""

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
"""What a conversation does not need: the answers that follow say what was found."""


def _is_own(item_id: object) -> bool:
    return isinstance(item_id, str) and item_id.partition("_")[2].startswith(_MARK)


class _Conversation:
    """Turns items into messages of a chat.

    What a model has said between two inputs is one message, with its calls; the results follow it.

    Args:
        tools: The tools of the request.
        only: What no chat can say, if anything. Then the conversation need not be whole.
    """

    def __init__(self, tools: _Tools, only: _Only | None) -> None:
        self.messages: list[_Json] = []
        self.only = only
        self._tools = tools
        self._results: dict[str, deque[Any]] = {}
        self._calls = 0
        self._signatures: dict[str, str] = {}  # Gemini's of calls
        self._begin()

    def _begin(self) -> None:
        self._said: list[str] = []
        self._refused: list[str] = []
        self._called: list[_Json] = []
        self._thought: dict[str, list[Any]] = {
            n: [] for n in ("thinking", "signatures", "reasoning")
        }
        self._missing: int | None = None  # where an own message is referred to

    def read(self, items: Sequence[_Json]) -> None:
        thoughts = [self._collect(item, index) for index, item in enumerate(items)]
        for index, item in enumerate(items):
            kind = item.get("type") or ("message" if "role" in item else "item_reference")
            if kind == "message":
                self._message(item, f"input[{index}].content")
            elif kind == "reasoning":
                self._think(thoughts[index])
            elif kind in _RESULTS:
                self._end_turn()
            elif kind in _CALLS:
                self._call(kind, item, f"input[{index}]")
            elif kind == "item_reference":
                self._refer(item["id"], index)
            elif kind not in _LEFT_OUT and not _is_own(item.get("id")):
                self._only(f"input[{index}]", f'leave out items of the type "{kind}"')
        self._end_turn()
        left = next((call_id for call_id, results in self._results.items() if results), None)
        if left is not None and self.only is None:
            _refuse_pair("call", "output", left)

    def _refer(self, item_id: str, index: int) -> None:
        """Take a reference to an item, which was not stored.

        The SDK of Vercel refers to what it takes for stored. An answer is right without reasoning,
        and without what was said before a call, but not without another message.
        """
        if item_id.startswith(f"msg_{_MARK}"):
            self._missing = index
        elif not item_id.startswith(f"rs_{_MARK}"):
            self._need_item(index, own=f"_{_MARK}" in item_id)

    def _need_item(self, index: int, *, own: bool = False) -> None:
        instead = "send the item itself, as clients do with store=false"
        if own:  # no vendor has it
            refuse_field(f"input[{index}]", f"refers to an item that was not stored; {instead}")
        self._only(f"input[{index}]", instead)

    def _only(self, what: str, instead: str) -> None:
        self.only = self.only or (what, instead)

    def _collect(self, item: _Json, index: int) -> _Json:
        """Take the result in an item, or return the thoughts in it."""
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

    def _result(self, item: _Json, index: int) -> Any:
        if item["type"] == "tool_search_output":
            names = [self._tools.name_of(n, s) for n, s in _names_in(item["tools"])]
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

    def _message(self, item: _Json, path: str) -> None:
        role, content = item["role"], item["content"]
        if role == "assistant":
            self._answer(content, path)
            return
        self._end_turn()
        if not isinstance(content, str):
            parts = self._parts(content, path)
            plain = len(parts) == 1 and parts[0]["type"] == "text"
            content = parts[0]["text"] if plain else parts
        if content:  # nothing was said otherwise
            # Not every server knows the role "developer".
            self.messages.append(
                {"role": "user" if role == "user" else "system", "content": content}
            )

    def _answer(self, content: Any, path: str) -> None:
        if (self._said or self._refused) and not self._called:
            self._end_turn()
        if isinstance(content, str):
            self._said += [content] if content else []
            return
        for part in content:
            if part["type"] == "refusal":
                self._refused.append(part["refusal"])
        parts = self._parts([p for p in content if p["type"] != "refusal"], path)
        self._said += [text for text in [_joined(parts, "")] if text]

    def _call(self, kind: str, item: _Json, path: str) -> None:
        if item.get("call_id") is None:
            return  # a search that OpenAI has made
        if kind in {"function_call", "custom_tool_call"}:
            name = self._tools.name_of(item["name"], item.get("namespace"))
        else:
            name = self._tools.name_of(kind.removesuffix("_call"), _CLIENTS)
        given = _CALLS[kind](item)
        called = {
            "name": name,
            "arguments": given if isinstance(given, str) else _dumped(given, path),
        }
        self._calls += 1
        if self._calls > _MOST_CALLS:
            refuse_field("input", f"must have at most {_MOST_CALLS:,} tool calls")
        call = {"id": item["call_id"], "type": "function", "function": called}
        signature = self._signatures.get(item["call_id"])
        if signature is not None:
            call["provider_specific_fields"] = {"thought_signature": signature}
        self._called.append(call)

    def _think(self, thoughts: _Json) -> None:
        """Add thoughts to what was said, or begin what comes next with them."""
        begins = thoughts.get("thinking") or thoughts.get("reasoning")
        if begins and (self._said or self._refused) and not self._called:
            self._end_turn()
        for name, known in self._thought.items():
            given = thoughts.get(name)
            known.extend(given if isinstance(given, list) else [given])

    def _thoughts(self) -> _Json:
        """Return what goes into the message, in the form that answers of a chat have."""
        fields: _Json = {}
        blocks = [block for block in self._thought["thinking"] if _is_block(block)]
        signatures = [text for text in self._thought["signatures"] if isinstance(text, str)]
        reasoning = [text for text in self._thought["reasoning"] if isinstance(text, str)]
        if blocks:
            fields["thinking_blocks"] = blocks
        if reasoning:
            fields["reasoning_content"] = "".join(reasoning)
        if signatures:
            fields["provider_specific_fields"] = {"thought_signatures": signatures}
        return fields

    def _end_turn(self) -> None:
        """Write what the model has said, and the results of its calls."""
        if self._missing is not None and not self._called:
            self._need_item(self._missing, own=True)
        if self._said or self._refused or self._called:
            message: _Json = {"role": "assistant"}
            message["content"] = "\n\n".join(self._said) or (None if self._called else "")
            if self._refused:
                message["refusal"] = "".join(self._refused)
            message |= self._thoughts()
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
            _refuse_pair("output", "call", call_id)

    # ── parts ────────────────────────────────────────────────────────────────────────────────

    def _parts(self, given: Sequence[_Json], path: str) -> list[_Json]:
        parts = (self._part(part, f"{path}[{index}]") for index, part in enumerate(given))
        return [part for part in parts if part is not None]

    def _part(self, part: _Json, path: str) -> _Json | None:
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
            self._only(path, f'leave out parts of the type "{kind}"')
        else:
            self._only(f"{path}.{where}", "send the data itself, as a data: URL")
        return None


def _is_block(block: Any) -> bool:
    return isinstance(block, dict) and all(isinstance(value, str) for value in block.values())


def _joined(parts: Iterable[_Json], between: str) -> str:
    return between.join(part["text"] for part in parts if part["type"] == "text")


def _names_in(tools: Iterable[_Json]) -> Iterable[tuple[str, str | None]]:
    for tool in tools:
        if tool["type"] == "namespace":
            yield from (
                (member["name"], tool["name"]) for member in tool["tools"] if "name" in member
            )
        elif isinstance(tool.get("name"), str):
            yield tool["name"], None


def _refuse_pair(missing: str, there: str, call_id: str) -> NoReturn:
    message = f"No tool {missing} found for the {there} with the call_id {call_id[:64]}."
    raise RequestRejectedError(message, param="input")


# ── answers ──────────────────────────────────────────────────────────────────────────────────


def _new_token() -> str:
    return _MARK + os.urandom(16).hex()


def _response(request: ReadRequest, token: str, model: str, created: int) -> _Json:
    """Return a Response without its output: what was asked, as OpenAI repeats it."""
    given = request.native.body
    reasoning = given.get("reasoning") or {}
    return {
        "id": f"resp_{token}",
        "object": "response",
        "created_at": created or int(SYSTEM_CLOCK.wall()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata") or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {
            "effort": reasoning.get("effort"),
            "summary": reasoning.get("summary"),
        },
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": given.get("service_tier") or "default",
        "store": False,
        "temperature": 1.0 if (warmth := given.get("temperature")) is None else warmth,
        "text": {"format": {"type": "text"}, **_given(given.get("text"))},
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": [_repeated(tool) for tool in given.get("tools") or ()],
        "top_logprobs": given.get("top_logprobs") or 0,
        "top_p": 1.0 if (share := given.get("top_p")) is None else share,
        "truncation": given.get("truncation") or "disabled",
        "usage": None,
        "user": given.get("user"),
    }


def _given(fields: Any) -> _Json:
    return {n: v for n, v in (fields or {}).items() if v is not None}


def _repeated(tool: _Json) -> _Json:
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def _usage(usage: Usage) -> _Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is not complete, by its finish reason."""


def _finish(response: _Json, completion: Completion, output: _Output) -> None:
    """Write the end of an answer, and close what is open in it."""
    choice = completion.choices[0] if completion.choices else Choice()
    output.reason = reason = _INCOMPLETE.get(choice.finish_reason or "")
    output.end(choice)
    response["status"] = "completed" if reason is None else "incomplete"
    if reason is not None:
        response["incomplete_details"] = {"reason": reason}
    if completion.service_tier is not None:
        response["service_tier"] = completion.service_tier
    response["output"] = output.items
    response["usage"] = _usage(completion.usage)


def _write(response: ChatResponse, request: ReadRequest) -> _Json:
    completion, token = response.completion, _new_token()
    output = _Output(request, token, streamed=False)
    for choice in completion.choices[:1]:
        output.say(choice)
        for index, call in enumerate(choice.tool_calls):
            given = (call.id, call.name, call.arguments, call.type, call.thought_signature)
            output.call(ToolCallDelta(index, *given))
    written = _response(request, token, completion.model, completion.created)
    _finish(written, completion, output)
    return written


class _Open:
    """An item that is being written."""

    __slots__ = ("head", "index", "item", "pieces", "tool")

    def __init__(self, index: int, item: _Json) -> None:
        self.index = index
        self.item = item
        self.head = b'"item_id":"%b","output_index":%d,' % (item["id"].encode(), index)
        self.pieces: list[str] = []
        self.tool = _Tool("function", "")


class _Output:
    """Collects the output items of an answer, and writes each step as an event.

    A reasoning item precedes what it belongs to; what a vendor wants back with a call stands in one
    before that call. Calls stay open until the end: servers may send their parts in any order.

    Args:
        request: The request.
        token: In the ids of the items.
        streamed: Whether events are wanted.

    Attributes:
        items: The items.
        reason: Why the answer is not complete; known only at its end.
        events: The events since this was set.
        written: All events so far.
    """

    __slots__ = (
        "_calls",
        "_message",
        "_pending",
        "_reasoning",
        "_streamed",
        "_token",
        "_tools",
        "events",
        "items",
        "reason",
        "written",
    )

    def __init__(self, request: ReadRequest, token: str, *, streamed: bool) -> None:
        self.items: list[_Json] = []
        self.reason: str | None = None
        self.events: list[ServerSentEvent] = []
        self.written = 0
        self._tools = request.tools if isinstance(request, ResponsesRequest) else {}
        self._token = token
        self._streamed = streamed
        self._calls: dict[int, _Open] = {}
        self._message: _Open | None = None
        self._reasoning: _Open | None = None
        self._pending: _Json = {}  # what the next reasoning item seals

    def emit(self, name: bytes, head: bytes, last: bytes, value: Any) -> None:
        """Write an event, if events are wanted.

        Args:
            name: Its type.
            head: Its fields in JSON, each with a comma at its end.
            last: The name of its last field.
            value: The value of that.
        """
        if self._streamed:
            raw = b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b"%b":%b}\n\n' % (
                name,
                name,
                self.written,
                head,
                last,
                encoded(value),
            )
            self.written += 1
            self.events.append(ServerSentEvent(raw))

    def say(self, chunk: Chunk | Choice) -> None:
        """Take what a chunk, or a whole answer, says beside its calls."""
        if chunk.reasoning or chunk.thinking_json:
            self._think(chunk)
        if chunk.text:
            self._speak("output_text", chunk.text)
        if chunk.refusal:
            self._speak("refusal", chunk.refusal)
        if chunk.sources_json:
            self._cite(chunk.sources_json)
        for image in chunk.images:
            self._picture(image)
        if chunk.thought_signatures:
            self._pending.setdefault("signatures", []).extend(chunk.thought_signatures)

    # ── reasoning ────────────────────────────────────────────────────────────────────────────

    def _think(self, chunk: Chunk | Choice) -> None:
        opened = self._reasoning or self._open_reasoning()
        if chunk.reasoning:
            head = opened.head + b'"summary_index":0,'
            if not opened.pieces:
                part = {"type": "summary_text", "text": ""}
                self.emit(b"response.reasoning_summary_part.added", head, b"part", part)
            opened.pieces.append(chunk.reasoning)
            self.emit(b"response.reasoning_summary_text.delta", head, b"delta", chunk.reasoning)
        if chunk.thinking_json:
            self._pending.setdefault("thinking", []).extend(chunk.thinking_blocks)

    def _open_reasoning(self) -> _Open:
        self._close_message()
        self._reasoning = self._open("rs", {"type": "reasoning", "summary": []})
        return self._reasoning

    def _close_reasoning(self) -> None:
        opened, self._reasoning = self._reasoning, None
        if opened is None:
            return
        text = "".join(opened.pieces)
        if text:
            part = {"type": "summary_text", "text": text}
            opened.item["summary"] = [part]
            head = opened.head + b'"summary_index":0,'
            self.emit(b"response.reasoning_summary_text.done", head, b"text", text)
            self.emit(b"response.reasoning_summary_part.done", head, b"part", part)
            if "thinking" not in self._pending:
                self._pending["reasoning"] = text
        opened.item["encrypted_content"] = _sealed(self._pending)
        self._pending = {}
        self._done(opened)

    def _seal_pending(self) -> None:
        """Write what is to be sealed into a reasoning item, if there is anything."""
        if self._reasoning is None and self._pending:
            self._open_reasoning()
        self._close_reasoning()

    # ── messages ─────────────────────────────────────────────────────────────────────────────

    def _speak(self, kind: str, text: str) -> None:
        message = self._message
        if message is None:
            self._close_reasoning()
            item = {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
            self._message = message = self._open("msg", item)
        content = message.item["content"]
        if not content or content[-1]["type"] != kind:
            self._close_part(message)
            part: _Json = {"type": kind, "refusal": ""}
            if kind == "output_text":
                part = {"type": kind, "text": "", "annotations": [], "logprobs": []}
            content.append(part)
            self.emit(b"response.content_part.added", _part_head(message), b"part", part)
        if text:
            message.pieces.append(text)
            head = message.head + b'"content_index":%d,' % (len(content) - 1)
            if kind == "output_text":
                self.emit(b"response.output_text.delta", head + b'"logprobs":[],', b"delta", text)
            else:
                self.emit(b"response.refusal.delta", head, b"delta", text)

    def _close_part(self, message: _Open, logprobs: Sequence[_Json] = ()) -> None:
        if not message.item["content"]:
            return
        part, text = message.item["content"][-1], "".join(message.pieces)
        message.pieces.clear()
        head = _part_head(message)
        if part["type"] == "output_text":
            part["text"] = text
            part["logprobs"] = logprobs = list(logprobs)
            done = head + b'"logprobs":%b,' % encoded(logprobs)
            self.emit(b"response.output_text.done", done, b"text", text)
        else:
            part["refusal"] = text
            self.emit(b"response.refusal.done", head, b"refusal", text)
        self.emit(b"response.content_part.done", head, b"part", part)

    def _close_message(self, logprobs: Sequence[_Json] = ()) -> None:
        message, self._message = self._message, None
        if message is not None:
            self._close_part(message, logprobs)
            self._complete(message)
            self._done(message)

    def _cite(self, sources_json: str) -> None:
        """Add the sources that have OpenAI's form to the text that is open."""
        message = self._message
        if message is None or message.item["content"][-1]["type"] != "output_text":
            return
        known = message.item["content"][-1]["annotations"]
        for given in json.loads(sources_json).get("annotations") or ():
            cited = given.get("url_citation") if isinstance(given, dict) else None
            if isinstance(cited, dict) and isinstance(cited.get("url"), str):
                annotation = {
                    "type": "url_citation",
                    "start_index": cited.get("start_index") or 0,
                    "end_index": cited.get("end_index") or 0,
                    "title": cited.get("title") or cited["url"],
                    "url": cited["url"],
                }
                head = _part_head(message) + b'"annotation_index":%d,' % len(known)
                known.append(annotation)
                name = b"response.output_text.annotation.added"
                self.emit(name, head, b"annotation", annotation)

    def _picture(self, url: str) -> None:
        self._close_reasoning()
        self._close_message()
        result = url.partition(";base64,")[2] or url
        item = {"type": "image_generation_call", "status": "completed", "result": result}
        self._done(self._open("ig", item))

    # ── calls ────────────────────────────────────────────────────────────────────────────────

    def call(self, delta: ToolCallDelta) -> None:
        """Take the next part of a call."""
        opened = self._calls.get(delta.index)
        if opened is None:
            opened = self._open_call(delta)
        if delta.arguments:
            opened.pieces.append(delta.arguments)
            if opened.tool.type == "function":
                name = b"response.function_call_arguments.delta"
                self.emit(name, opened.head, b"delta", delta.arguments)

    def _open_call(self, delta: ToolCallDelta) -> _Open:
        if delta.thought_signature is not None:
            self._pending["calls"] = {delta.id: delta.thought_signature}
        self._close_message()
        self._seal_pending()
        kind = "custom" if delta.type == "custom" else "function"
        tool = self._tools.get(delta.name) or _Tool(kind, delta.name)
        prefix, item = _FORMS[tool.type](tool)
        status = {} if kind == "custom" else {"status": "in_progress"}
        opened = self._open(prefix, {**item, "call_id": delta.id, **status})
        opened.tool = tool
        self._calls[delta.index] = opened
        return opened

    def _close_call(self, opened: _Open) -> None:
        given = "".join(opened.pieces)
        kind = opened.tool.type
        if kind == "function":
            opened.item["arguments"] = given
            name = b"response.function_call_arguments.done"
            self.emit(name, opened.head, b"arguments", given)
        elif kind == "custom":
            opened.item["input"] = text = _custom_input(given)
            self.emit(b"response.custom_tool_call_input.delta", opened.head, b"delta", text)
            self.emit(b"response.custom_tool_call_input.done", opened.head, b"input", text)
        else:
            opened.item |= _ARGUMENTS[kind](_object_in(given))
        if "status" in opened.item:
            self._complete(opened)
        self._done(opened)

    # ── all items ────────────────────────────────────────────────────────────────────────────

    def _open(self, prefix: str, item: _Json) -> _Open:
        index = len(self.items)
        opened = _Open(index, {"id": f"{prefix}_{self._token}{index:02x}", **item})
        self.items.append(opened.item)
        head = b'"output_index":%d,' % index
        self.emit(b"response.output_item.added", head, b"item", opened.item)
        return opened

    def _complete(self, opened: _Open) -> None:
        cut = self.reason is not None and opened.index == len(self.items) - 1
        opened.item["status"] = "incomplete" if cut else "completed"

    def _done(self, opened: _Open) -> None:
        head = b'"output_index":%d,' % opened.index
        self.emit(b"response.output_item.done", head, b"item", opened.item)

    def end(self, choice: Choice) -> None:
        """Close what is open."""
        silent = all(item["type"] == "reasoning" for item in self.items)
        if silent and self.reason is None:
            self._speak("output_text", "")  # clients read a message
        self._close_message(_logprobs(choice))
        self._seal_pending()
        for opened in self._calls.values():
            self._close_call(opened)


def _part_head(message: _Open) -> bytes:
    return message.head + b'"content_index":%d,' % (len(message.item["content"]) - 1)


def _sealed(content: _Json) -> str:
    try:
        return sealed(content)
    except orjson.JSONEncodeError:
        text = json.dumps(content, ensure_ascii=False)  # it has half a character
        return sealed(json.loads(text.encode("utf-8", "replace")))


def _logprobs(choice: Choice) -> list[_Json]:
    if choice.logprobs_json is None:
        return []
    content = json.loads(choice.logprobs_json).get("content")
    return content if isinstance(content, list) else []


_FORMS: Mapping[str, Callable[[_Tool], tuple[str, _Json]]] = {
    "function": lambda tool: ("fc", {"type": "function_call", **_names(tool), "arguments": ""}),
    "custom": lambda tool: ("ctc", {"type": "custom_tool_call", **_names(tool), "input": ""}),
    "local_shell": lambda _: ("lsh", {"type": "local_shell_call", "action": _local_action({})}),
    "shell": lambda _: ("sh", {"type": "shell_call", "action": _shell_action({})}),
    "apply_patch": lambda _: ("apc", {"type": "apply_patch_call", "operation": _operation({})}),
    "tool_search": lambda _: (
        "tsc",
        {"type": "tool_search_call", "execution": "client", "arguments": {}},
    ),
}
"""The prefix of the id, and the item, of a call by the type of its tool."""


def _names(tool: _Tool) -> _Json:
    namespace = {} if tool.namespace is None else {"namespace": tool.namespace}
    return {"name": tool.name, **namespace}


def _local_action(given: _Json) -> _Json:
    command = given.get("command")
    return {
        "type": "exec",
        "command": [command] if isinstance(command, str) else _texts(command),
        "env": {},
        **_known(given, working_directory=str, timeout_ms=int),
    }


def _shell_action(given: _Json) -> _Json:
    more = _known(given, timeout_ms=int, max_output_length=int)
    return {"commands": _texts(given.get("commands")), **more}


def _operation(given: _Json) -> _Json:
    kind = given.get("type")
    changed = kind in {"create_file", "update_file"}
    return {
        "type": kind if changed or kind == "delete_file" else "update_file",
        "path": str(given.get("path") or ""),
        **({} if kind == "delete_file" else {"diff": str(given.get("diff") or "")}),
    }


_ARGUMENTS: Mapping[str, Callable[[_Json], _Json]] = {
    "local_shell": lambda given: {"action": _local_action(given)},
    "shell": lambda given: {"action": _shell_action(given)},
    "apply_patch": lambda given: {"operation": _operation(given)},
    "tool_search": lambda given: {"arguments": given},
}


def _texts(given: Any) -> list[str]:
    return [text for text in given if isinstance(text, str)] if isinstance(given, list) else []


def _known(given: _Json, **kinds: type) -> _Json:
    return {n: given[n] for n, kind in kinds.items() if type(given.get(n)) is kind}


def _object_in(arguments: str) -> _Json:
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _custom_input(arguments: str) -> str:
    """Return the input of a custom tool; all of it, if the model did not keep to the form."""
    given = _object_in(arguments)
    text = given.get("input")
    return text if len(given) == 1 and isinstance(text, str) else arguments


# ── events ───────────────────────────────────────────────────────────────────────────────────


class ResponsesWriter:
    """Writes one stream as the events of OpenAI's Responses.

    Args:
        opening: The beginning of the answer.
        request: The request.
        request_id: As in logs.
    """

    __slots__ = ("_opening", "_output", "_response")

    def __init__(self, opening: Opening, request: ReadRequest, request_id: str) -> None:
        del request_id  # a caller may use it twice, but no two responses have the same id
        token = _new_token()
        self._opening = opening
        self._output = _Output(request, token, streamed=True)
        self._response = _response(request, token, opening.model, opening.created)

    def events(self, chunk: Chunk) -> Iterable[ServerSentEvent]:
        """Return the events for a chunk."""
        output = self._output
        output.events = []
        if not output.written:
            begun = orjson.Fragment(encoded(self._response))
            output.emit(b"response.created", b"", b"response", begun)
            output.emit(b"response.in_progress", b"", b"response", begun)
        output.say(chunk)
        for delta in chunk.tool_calls:
            output.call(delta)
        return output.events

    def end(self, response: ChatResponse) -> Iterable[ServerSentEvent]:
        """Return the events that end the stream."""
        output = self._output
        output.events = []
        _finish(self._response, response.completion, output)
        name = b"response.completed" if output.reason is None else b"response.incomplete"
        output.emit(name, b"", b"response", self._response)
        return output.events

    def failed(self, error: Mapping[str, Any], written: int) -> Iterable[ServerSentEvent]:
        """Return the events that end a stream that broke.

        Args:
            error: OpenAI's object of an error.
            written: The events before; also those that the provider has written itself.
        """
        output = self._output
        if not output.written and self._opening.id:
            self._response["id"] = self._opening.id  # as the provider's events say
        output.events, output.written = [], written
        self._response |= _failure(error)
        output.emit(b"response.failed", b"", b"response", self._response)
        # As documented, and as OpenAI really sends it: its SDK raises an exception for the latter.
        fields = {name: error.get(name) for name in ("code", "message", "param")}
        head = encoded(fields)[1:-1] + b","
        output.emit(b"error", head, b"error", error)
        return output.events


def _failure(error: Mapping[str, Any]) -> _Json:
    known = error.get("code") == "rate_limit_exceeded"
    code = "rate_limit_exceeded" if known else "server_error"
    return {"status": "failed", "error": {"code": code, "message": error.get("message")}}


def _failed(error: Exception, writer: EventWriter | None, written: int) -> bytes:
    """Return the events that end a stream that broke: `response.failed` and `error`."""
    assert isinstance(writer, ResponsesWriter)  # noqa: S101 - `RESPONSES` makes no other
    said = error_refusal(error).body["error"]
    return b"".join(event.raw for event in writer.failed(said, written))


RESPONSES = CallerProtocol(_read, _write, ResponsesWriter, _failed)
