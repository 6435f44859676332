"""Plain requests: texts, calls of tools and their results, with any parameters.

litellm translates the first request with certain parameters. If the wire's own arrangement of the
messages gives the same bytes, everything else that litellm has made is kept as a `RequestFrame`.
The next requests with these parameters are put together from both, without litellm. A litellm that
translates differently therefore costs time, and changes no request.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import orjson

from aigateway.wires.content import IN_ID

__all__ = [
    "ASKED",
    "CALLED",
    "NOT_PLAIN",
    "PARTS",
    "SAID_BY",
    "SYSTEM",
    "NotPlainError",
    "PlainCall",
    "RequestFrame",
    "RequestFrames",
    "Shape",
    "arguments_of",
    "calls_of",
    "checked",
    "texts_of",
]

Shape = int
"""What occurs in messages, so that each kind of conversation is compared with litellm's once."""
SYSTEM, ASKED, CALLED, PARTS = 1, 2, 4, 8
"""Instructions, turns of an assistant, calls of tools, contents in several parts."""
SAID_BY: Mapping[str, Shape] = {"assistant": ASKED, "system": SYSTEM, "user": 0}
"""What a text in one piece adds to a shape, by role."""

_MOST_FRAMES = 256
_MOST_BYTES = 1 << 22
_LONGEST_KEY = 1 << 16
_USES = 1000
"""Requests after which litellm is asked again: its settings may have changed."""

_EXACT = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)

_SETTINGS = (
    "disable_add_prefix_to_prompt",
    "drop_params",
    "enable_gemini_default_thinking_level_low",
    "gemini_include_thoughts_default",
    "modify_params",
    "openai_system_messages_first",
    "vertex_ai_safety_settings",
)
"""litellm's settings for the whole process that change translations."""

_ROLES: Mapping[str, frozenset[str]] = {
    "system": frozenset({"content", "role"}),
    "user": frozenset({"content", "role"}),
    "assistant": frozenset({"content", "role", "tool_calls"}),
    "tool": frozenset({"content", "name", "role", "tool_call_id"}),
}
_CALL = frozenset({"function", "id", "type"})
_FUNCTION = frozenset({"arguments", "name"})
_THINKING = frozenset({"reasoning_effort", "thinking"})
_TEXT_PART = frozenset({"text", "type"})


class NotPlainError(Exception):
    """A message is not plain: litellm has to translate the request."""


NOT_PLAIN = (
    NotPlainError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,  # half a character, a large integer, or no JSON at all
    ValueError,
)
"""What is raised while messages of unknown form are read as plain ones."""


class PlainCall(NamedTuple):
    """A call of a tool in an assistant's message; `arguments` are JSON."""

    id: str
    name: str
    arguments: str


class RequestFrame:
    """A translated request without its messages.

    Attributes:
        headers: All but those of a caller.
        options: The parameters in the vendor's form. Shared: to be copied before litellm gets them.
        notes: What the translation has left for that of the answer. Shared likewise.
        uses: How many more times it may be used.
    """

    __slots__ = ("_pieces", "_slots", "headers", "notes", "options", "uses")

    def __init__(
        self,
        body: Mapping[str, Any],
        slots: Mapping[str, Any],
        headers: Mapping[str, str],
        options: Mapping[str, Any],
        notes: Mapping[str, Any],
    ) -> None:
        self.headers, self.options, self.notes = dict(headers), options, notes
        self._slots = [name for name in body if name in slots]
        self._pieces = [b"{"]
        self.uses = _USES
        for name, value in body.items():
            if self._pieces[-1] != b"{" or len(self._pieces) > 1:
                self._pieces[-1] += b","
            self._pieces[-1] += orjson.dumps(name) + b":"
            if name in slots:
                self._pieces.append(b"")
            else:
                self._pieces[-1] += orjson.dumps(value)
        self._pieces[-1] += b"}"

    def body(self, slots: Mapping[str, Any]) -> bytes:
        """Return the body with these messages."""
        pieces = self._pieces
        if len(self._slots) == 1:
            return b"".join((pieces[0], orjson.dumps(slots[self._slots[0]]), pieces[1]))
        filled = [pieces[0]]
        for name, piece in zip(self._slots, pieces[1:], strict=True):
            filled += (orjson.dumps(slots[name]), piece)
        return b"".join(filled)

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(map(len, self._pieces))


class RequestFrames:
    """The frames of one provider. `slots` are the names under which its bodies have messages."""

    def __init__(self, litellm: ModuleType, slots: frozenset[str]) -> None:
        self._litellm = litellm
        self._slots = slots
        self._settings = attrgetter(*[n for n in _SETTINGS if hasattr(litellm, n)])
        self._lock = threading.Lock()  # long requests are translated in threads
        self._valid_for = self.settings()
        self._frames: dict[tuple[Any, ...], RequestFrame | None] = {}
        self._bytes = 0

    def settings(self) -> Any:
        """Return litellm's settings that change translations, as they are now."""
        try:
            return copy.deepcopy(self._settings(self._litellm))  # lists may be changed in place
        except Exception:  # noqa: BLE001 - an object of the user's
            return object()  # equals nothing: litellm is asked each time

    def key(self, params: Mapping[str, Any], shape: Shape, *others: Any) -> tuple[Any, ...]:
        """Return which frame fits to these parameters, and to what else a body depends on.

        Raises:
            NotPlainError: None does.
            TypeError: The same.
        """
        if not self._slots.isdisjoint(params.get("extra_body") or ()):
            raise NotPlainError
        if shape & CALLED and not _THINKING.isdisjoint(params):
            raise NotPlainError  # litellm looks for the thoughts that belong to calls
        written = orjson.dumps(params, option=_EXACT)
        if len(written) > _LONGEST_KEY:
            raise NotPlainError
        return (shape, *others, written)

    def find(self, key: tuple[Any, ...]) -> RequestFrame | None:
        """Return the frame for a request, if there is one."""
        frame = self._frames.get(key)
        if frame is None:
            return None
        frame.uses -= 1
        if frame.uses < 0 or self._settings(self._litellm) != self._valid_for:
            with self._lock:
                self._clear(self.settings())
            return None
        return frame

    def learn(
        self, key: tuple[Any, ...], settings: Any, make: Callable[[], RequestFrame | None]
    ) -> None:
        """Keep a frame, if this kind of request is new.

        Args:
            key: The kind of request.
            settings: `settings()` before litellm translated the request.
            make: Makes the frame; None if litellm does not translate such requests in the same way.
        """
        if settings == self._valid_for and key in self._frames:
            return  # known to differ
        frame = make()
        with self._lock:
            if settings != self._settings(self._litellm):
                return  # changed meanwhile, and perhaps for this one request
            if settings != self._valid_for:
                self._clear(settings)
            if key in self._frames:
                return  # another thread was first
            while self._frames and (len(self._frames) >= _MOST_FRAMES or self._bytes > _MOST_BYTES):
                oldest = next(iter(self._frames))
                self._bytes -= _size(oldest, self._frames.pop(oldest))
            self._frames[key] = frame
            self._bytes += _size(key, frame)

    def _clear(self, settings: Any) -> None:
        self._frames.clear()
        self._bytes = 0
        self._valid_for = settings


def _size(key: tuple[Any, ...], frame: RequestFrame | None) -> int:
    written = key[-1]
    return (len(written) if isinstance(written, bytes) else 0) + (
        0 if frame is None else frame.size
    )


def checked(message: Mapping[str, Any]) -> str:
    """Return the role of a message that has only fields which are known."""
    role: str = message["role"]
    if not message.keys() <= _ROLES[role]:
        raise NotPlainError
    return role


def texts_of(content: Any) -> Sequence[str]:
    """Return the texts of a content, none of which is empty."""
    given = (content,) if type(content) is str else tuple(map(_text_of, content))
    for text in given:
        if not text or text.isspace():
            raise NotPlainError
    if not given:
        raise NotPlainError
    return given


def _text_of(part: Mapping[str, Any]) -> str:
    text: str = part["text"]
    if type(text) is not str or part["type"] != "text" or part.keys() != _TEXT_PART:
        raise NotPlainError
    return text


def calls_of(message: Mapping[str, Any]) -> Iterator[PlainCall]:
    """Yield the calls in an assistant's message."""
    for call in message.get("tool_calls") or ():
        function = call["function"]
        name, arguments, given = function["name"], function["arguments"], call["id"]
        if (
            call.keys() != _CALL
            or call["type"] != "function"
            or function.keys() != _FUNCTION
            or {type(name), type(arguments), type(given)} != {str}
            or not (name and given)
            or IN_ID in given
        ):
            raise NotPlainError
        yield PlainCall(given, name, arguments)


def arguments_of(call: PlainCall) -> dict[str, Any]:
    """Return the arguments of a call, which are an object. Raises one of `NOT_PLAIN`."""
    arguments = json.loads(call.arguments)
    if type(arguments) is not dict:
        raise NotPlainError
    return arguments
