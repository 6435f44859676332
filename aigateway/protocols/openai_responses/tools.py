"""Tools of Responses: declared as functions of a chat, their calls read and written as items."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from aigateway.request.checks import refuse_field

__all__ = [
    "CALL_FIELDS",
    "CALL_INPUTS",
    "CALL_ITEMS",
    "CLIENT_NAMESPACE",
    "Json",
    "NativeOnly",
    "ResponsesTool",
    "ToolFunctions",
    "custom_input",
    "object_in",
]

Json = dict[str, Any]

NativeOnly = tuple[str, str]
"""`only` and `instead` of `NativeRequest`."""

_MOST_TOOLS = 1024
"""Functions of a request, as in a chat."""


@dataclass(frozen=True, slots=True)
class ResponsesTool:
    """A tool, as the caller has declared it; in the chat it is a function."""

    type: str
    name: str
    namespace: str | None = None


CLIENT_NAMESPACE = ""
"""Namespace of tools that have a type of their own, and no name."""

_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")


def _text(description: str) -> Json:
    return {"type": "string", "description": description}


def _schema(required: Sequence[str], **properties: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_MILLISECONDS = {"type": "integer", "description": "Milliseconds after which to stop."}
_TEXTS = {"type": "array", "items": {"type": "string"}}

_CLIENT_TOOLS: Mapping[str, tuple[str, Json]] = {
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


class ToolFunctions:
    """Turns the tools of a request into functions of a chat, each with a name of its own."""

    __slots__ = ("_chosen_only", "_hosted", "_searches", "by_name", "declared", "names")

    def __init__(self) -> None:
        self.declared: list[Json] = []
        self.by_name: dict[str, ResponsesTool] = {}
        self.names: dict[tuple[str | None, str], str] = {}
        self._hosted: NativeOnly | None = None
        self._chosen_only: NativeOnly | None = None
        self._searches: NativeOnly | None = None

    @property
    def only(self) -> NativeOnly | None:
        """A tool that the vendor itself would have to run.

        Agents offer a web search along with their own tools, whether or not they need it, and go on
        without one.
        """
        hosted = self._hosted or (None if self.declared else self._searches)
        return self._chosen_only or hosted

    def add(self, tools: Iterable[Json], path: str) -> None:
        """Declare tools that stand at this path of the body."""
        for index, tool in enumerate(tools):
            kind = tool["type"]
            if kind in {"function", "custom"}:
                self._add(kind, tool)
            elif kind == "namespace":
                self._add_namespace(tool)
            elif kind == "tool_search":
                # OpenAI's own search finds only tools that are declared anyway.
                if tool.get("execution") == "client":
                    what = tool.get("description") or "Search for more tools."
                    given = tool.get("parameters") or _SEARCH_SCHEMA
                    self._declare(ResponsesTool(kind, kind, CLIENT_NAMESPACE), what, given)
            elif kind in _CLIENT_TOOLS and _runs_at_the_client(tool):
                self._declare(ResponsesTool(kind, kind, CLIENT_NAMESPACE), *_CLIENT_TOOLS[kind])
            else:
                instead = f'declare a function of your program in place of the tool "{kind}"'
                if kind.startswith("web_search"):
                    self._searches = self._searches or (f"{path}[{index}]", instead)
                else:
                    self._hosted = self._hosted or (f"{path}[{index}]", instead)

    def _add_namespace(self, tool: Json) -> None:
        note = tool.get("description")
        for member in tool["tools"]:
            kind = member["type"]
            if kind in {"function", "custom"}:
                self._add(kind, member, tool["name"], note)
                note = None  # one function has it

    def _add(
        self, kind: str, tool: Json, namespace: str | None = None, note: str | None = None
    ) -> None:
        what = "\n\n".join(text for text in (note, tool.get("description")) if text)
        called = ResponsesTool(kind, tool["name"], namespace)
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
        self,
        tool: ResponsesTool,
        what: str,
        parameters: Json,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        key = (tool.namespace, tool.name)
        if key in self.names:
            return  # an earlier search returned it
        if len(self.declared) >= _MOST_TOOLS:
            refuse_field("tools", f"must have at most {_MOST_TOOLS:,} functions")
        name = _qualified_name(*key)
        if name in self.by_name:
            name = _hashed_name(*key)
        self.names[key] = name
        self.by_name[name] = tool
        described = {"description": what} if what else {}
        function = {"name": name, **described, "parameters": parameters, **(more or {})}
        self.declared.append({"type": "function", "function": function})

    def name_of(self, name: str, namespace: str | None = None) -> str:
        """Return the name of a tool's function, also of a tool that is not declared any more."""
        return self.names.get((namespace, name)) or _qualified_name(namespace, name)

    def choice(self, choice: Any) -> tuple[Any, list[Json]]:
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

    def _chosen(self, choice: Json) -> str | None:
        kind, name = choice.get("type"), choice.get("name")
        if kind in {"function", "custom"}:
            if not isinstance(name, str):
                refuse_field("tool_choice", "must have the name of a tool")
            namespace = choice.get("namespace")
            return self.name_of(name, namespace if isinstance(namespace, str) else None)
        if (CLIENT_NAMESPACE, kind) in self.names:
            return self.names[CLIENT_NAMESPACE, str(kind)]
        self._chosen_only = ("tool_choice", "choose a function")
        return None


def _runs_at_the_client(tool: Json) -> bool:
    """Return whether the client runs a tool, and not the vendor in a container."""
    where = tool.get("environment") or {"type": "local"}
    return tool["type"] != "shell" or (isinstance(where, dict) and where.get("type") == "local")


def _qualified_name(namespace: str | None, name: str) -> str:
    if not namespace:
        return name
    flat = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    return flat if _FUNCTION_NAME.fullmatch(flat) else _hashed_name(namespace, name)


def _hashed_name(namespace: str | None, name: str) -> str:
    """Return a name that any vendor takes, and that no other tool has."""
    whole = orjson.dumps([namespace, name])
    digest = hashlib.sha256(whole, usedforsecurity=False).hexdigest()[:8]
    return f"{_NOT_IN_NAMES.sub('_', name)[:55]}_{digest}"


# ── calls ────────────────────────────────────────────────────────────────────────────────────

CALL_INPUTS: Mapping[str, Callable[[Json], Any]] = {
    "function_call": lambda item: item["arguments"],
    "custom_tool_call": lambda item: {"input": item["input"]},
    "local_shell_call": lambda item: {n: v for n, v in item["action"].items() if n != "type"},
    "shell_call": lambda item: item["action"],
    "apply_patch_call": lambda item: item["operation"],
    "tool_search_call": lambda item: item.get("arguments"),
}
"""The input of a call in an item: JSON as text, or its value."""

CALL_ITEMS: Mapping[str, Callable[[ResponsesTool], tuple[str, Json]]] = {
    "function": lambda tool: (
        "fc",
        {"type": "function_call", **_name_fields(tool), "arguments": ""},
    ),
    "custom": lambda tool: ("ctc", {"type": "custom_tool_call", **_name_fields(tool), "input": ""}),
    "local_shell": lambda _: ("lsh", {"type": "local_shell_call", "action": _local_action({})}),
    "shell": lambda _: ("sh", {"type": "shell_call", "action": _shell_action({})}),
    "apply_patch": lambda _: ("apc", {"type": "apply_patch_call", "operation": _operation({})}),
    "tool_search": lambda _: (
        "tsc",
        {"type": "tool_search_call", "execution": "client", "arguments": {}},
    ),
}
"""The prefix of the id, and the item, of a call by the type of its tool."""


def _name_fields(tool: ResponsesTool) -> Json:
    namespace = {} if tool.namespace is None else {"namespace": tool.namespace}
    return {"name": tool.name, **namespace}


def _local_action(given: Json) -> Json:
    command = given.get("command")
    return {
        "type": "exec",
        "command": [command] if isinstance(command, str) else _texts(command),
        "env": {},
        **_typed_fields(given, working_directory=str, timeout_ms=int),
    }


def _shell_action(given: Json) -> Json:
    more = _typed_fields(given, timeout_ms=int, max_output_length=int)
    return {"commands": _texts(given.get("commands")), **more}


def _operation(given: Json) -> Json:
    kind = given.get("type")
    changed = kind in {"create_file", "update_file"}
    return {
        "type": kind if changed or kind == "delete_file" else "update_file",
        "path": str(given.get("path") or ""),
        **({} if kind == "delete_file" else {"diff": str(given.get("diff") or "")}),
    }


CALL_FIELDS: Mapping[str, Callable[[Json], Json]] = {
    "local_shell": lambda given: {"action": _local_action(given)},
    "shell": lambda given: {"action": _shell_action(given)},
    "apply_patch": lambda given: {"operation": _operation(given)},
    "tool_search": lambda given: {"arguments": given},
}
"""The fields of an item that hold the input of a call, by the type of its tool."""


def _texts(given: Any) -> list[str]:
    return [text for text in given if isinstance(text, str)] if isinstance(given, list) else []


def _typed_fields(given: Json, **kinds: type) -> Json:
    return {n: given[n] for n, kind in kinds.items() if type(given.get(n)) is kind}


def object_in(arguments: str) -> Json:
    """Return the arguments of a call; empty if they are no object."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool; all of it, if the model did not keep to the form."""
    given = object_in(arguments)
    text = given.get("input")
    return text if len(given) == 1 and isinstance(text, str) else arguments
