"""Read tool calls as servers really send them into the form that OpenAI's clients read.

OpenAI numbers the calls of a stream, says the id and the name of each once, and its arguments are
JSON. Many servers that imitate it leave ids out or repeat them, jump in their numbers or give none,
or send the head and the tail of a call under different ones.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, NamedTuple

from aigateway.messages import ChatRequest, ToolCall, ToolCallDelta
from aigateway.wires.gemini import unify_candidates

__all__ = [
    "CallPiece",
    "ToolCallReader",
    "as_functions",
    "asks_for_custom_tools",
    "cleaned",
    "is_cut",
    "unify",
]

_BY_THE_VENDOR = "srvtoolu_"
"""The prefix of ids of calls that Anthropic makes itself. The caller does not get them."""


def cleaned(calls: Iterable[ToolCall], not_for_the_caller: frozenset[str]) -> Iterator[ToolCall]:
    """Yield the calls of a whole answer, each with an id of its own and with arguments."""
    ids: set[str] = set()
    for call in calls:
        if call.id in not_for_the_caller or call.id.startswith(_BY_THE_VENDOR):
            continue
        name = call.id if call.id and call.id not in ids else _new_id()
        ids.add(name)
        given = call.arguments if call.arguments.strip() or call.type == "custom" else "{}"
        yield ToolCall(name, call.name, given, call.type, call.thought_signature)


def is_cut(arguments: str) -> bool:
    """Return whether arguments stop in the middle. Other invalid JSON is the caller's to judge."""
    try:
        json.loads(arguments)
    except RecursionError:
        return False
    except ValueError:
        return _is_open(arguments)
    return False


def _is_open(text: str) -> bool:
    """Return whether the object or list that begins here is not closed."""
    depth, inside, escaped = 0, False, False
    if not text.lstrip().startswith(("{", "[")):
        return False
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
    return inside or depth > 0


class CallPiece(NamedTuple):
    """A piece of a tool call, as a server streams it; "" where nothing came.

    `number` is as the server counts, if it does. `type` is "function" or "custom".
    """

    number: Any
    id: str
    function: str
    arguments: str
    type: str = ""
    signature: str | None = None


class _Call:
    """One call, as far as it has come."""

    __slots__ = ("arguments", "had_empty", "hidden", "id", "index", "name", "number", "type")

    def __init__(self, index: int, number: Any, name: str, kind: str) -> None:
        self.index = index
        self.number = number
        self.id = name  # as the server gave it; may be none
        self.name = ""
        self.arguments: list[str] = []
        self.had_empty = False  # "{}" came: a placeholder, or all that comes
        self.hidden = False
        self.type = kind

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are an object that is closed. Free text may always go on."""
        if self.type == "custom":
            return False
        text = "".join(self.arguments)
        try:
            return bool(text) and isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            return False

    def is_followed_by(self, function: str, arguments: str) -> bool:
        """Return whether a piece with this name, but without its own id, begins another call."""
        if not (function and self.name):
            return False
        if function != self.name:
            return self.had_empty or self.is_complete
        return bool(arguments.strip()) and self.is_complete


class ToolCallReader:
    """Separates the calls of one streamed answer.

    `not_for_the_caller` are the ids of calls that the vendor makes itself; they may become more.
    """

    __slots__ = ("_by_id", "_by_number", "_count", "_hidden", "_last", "_open")

    def __init__(self, not_for_the_caller: AbstractSet[str] = frozenset()) -> None:
        self._by_id: dict[str, _Call] = {}
        self._by_number: dict[Any, _Call] = {}
        self._open: list[_Call] = []  # without arguments so far
        self._last: _Call | None = None
        self._count = 0
        self._hidden = not_for_the_caller

    def read(self, piece: CallPiece) -> ToolCallDelta | None:
        """Take in a piece; return what is new in it, if anything is for the caller."""
        delta = self._read(*piece[:5])
        if delta is None or piece.signature is None:
            return delta
        return replace(delta, thought_signature=piece.signature)

    def _read(
        self, number: Any, name: str, function: str, arguments: str, kind: str
    ) -> ToolCallDelta | None:
        if not (name or function or arguments):
            return None
        call = self._known(number, name, function, arguments)
        if call is None:
            kind = "custom" if kind == "custom" else "function"
            return self._begin(_Call(self._count, number, name, kind), function, arguments)
        self._last = call
        if number is not None:
            self._by_number[number] = call
        if name and not call.id:
            call.id, self._by_id[name] = name, call
        function, call.name = ("", call.name) if call.name else (function, function)
        if not call.arguments:
            arguments = self._without_placeholder(call, arguments)
        return self._delta(call, "", function, arguments)

    def close(self) -> tuple[ToolCallDelta, ...]:
        """Return empty arguments for calls that have none, since nothing more comes."""
        deltas = tuple(ToolCallDelta(call.index, arguments="{}") for call in self._open)
        for call in self._open:
            call.arguments.append("{}")
        self._open = []
        return deltas

    def _known(self, number: Any, name: str, function: str, arguments: str) -> _Call | None:
        """Return the call that a piece continues, if it begins none."""
        if name and name in self._by_id:
            call = self._by_id[name]
            # Some servers give every call the same id.
            again = number != call.number and call.is_followed_by(function, arguments)
            return None if again else call
        if number is not None and number in self._by_number:
            call = self._by_number[number]
            if function and name and call.id:
                return call if name == call.id else None
            return None if call.is_followed_by(function, arguments) else call
        if function or self._last is None:
            return None
        if name and (number is not None or self._last.is_complete):
            return None
        return self._last  # the tail of a call whose head came under another number, or none

    def _begin(self, call: _Call, function: str, arguments: str) -> ToolCallDelta | None:
        call.name, name, number = function, call.id, call.number
        call.hidden = name in self._hidden or name.startswith(_BY_THE_VENDOR)
        given = name if name and name not in self._by_id else _new_id()
        self._last = self._by_id[given] = call
        if number is not None:
            self._by_number[number] = call
        if not call.hidden:
            self._count += 1
        if not call.hidden and call.type == "function":
            self._open.append(call)
            arguments = self._without_placeholder(call, arguments)
        return self._delta(call, given, function, arguments)

    @staticmethod
    def _without_placeholder(call: _Call, arguments: str) -> str:
        """Leave out "{}", which some servers send before the arguments come."""
        if arguments != "{}" or call.type != "function":
            return arguments
        call.had_empty = True
        return ""

    def _delta(self, call: _Call, name: str, function: str, arguments: str) -> ToolCallDelta | None:
        if arguments:
            call.arguments.append(arguments)
            if call in self._open:
                self._open.remove(call)
        if call.hidden or not (name or function or arguments):
            return None
        return ToolCallDelta(call.index, name, function, arguments, call.type)


def as_functions(said: Any) -> bool:
    """Give calls of custom tools the form of a function's as well; return whether there were any.

    Not every version of litellm knows another form. `said` is a message or a delta.
    """
    changed = False
    calls = said.get("tool_calls") if isinstance(said, Mapping) else None
    for call in calls if isinstance(calls, list) else ():
        custom = call.get("custom") if isinstance(call, dict) else None
        if isinstance(custom, Mapping) and not call.get("function"):
            call["function"] = {"name": custom.get("name"), "arguments": custom.get("input")}
            call["type"] = "custom"
            changed = True
    return changed


def unify(body: Any) -> bool:
    """Bring the calls in a body or event into litellm's form; return whether any changed."""
    if not isinstance(body, Mapping):
        return False
    choices = body.get("choices")
    said = [
        choice.get("delta") or choice.get("message")
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, Mapping)
    ]
    return any([unify_candidates(body), *map(as_functions, said)])


def asks_for_custom_tools(request: ChatRequest) -> bool:
    """Return whether a request offers custom tools, or has calls of them in its messages."""
    tools = request.params.get("tools") or ()
    return any(_is_custom(tool) for tool in tools) or any(
        _is_custom(call) for message in request.messages for call in message.get("tool_calls") or ()
    )


def _is_custom(tool: Any) -> bool:
    return isinstance(tool, Mapping) and tool.get("type") == "custom"


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
