"""About how many bytes of memory an entry of the cache takes.

An answer is counted by the lengths of its texts: `sys.getsizeof` of each of its thirty objects
would take longer than storing it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from sys import getsizeof
from typing import Any

from aigateway.messages import Choice, Completion, Embeddings, Usage

__all__ = ["answer_size", "entry_size"]

_ENTRY = 500
"""What is around a key and its value: places in tables, deadlines, also outdated ones."""
_TEXT = getsizeof("")
_NUMBER = getsizeof(0.5) + 8
"""A number, and the reference to it."""
_COMPLETION = getsizeof(Completion("", "", ())) + getsizeof(Usage()) + 7 * _NUMBER + 4 * _TEXT
_CHOICE = getsizeof(Choice()) + 8 + _TEXT
_VECTOR = getsizeof(()) + 8


def entry_size(key: Hashable, value: object) -> int:
    """Return the size of a key, a value, and what containers and records in them hold.

    An object of any other class counts as `sys.getsizeof` has it.
    """
    return _ENTRY + _size(key) + _size(value)


def answer_size(key: str, answer: Completion) -> int:
    """Return the same for an answer, quickly."""
    size = _ENTRY + _TEXT + len(key) + _COMPLETION
    about = f"{answer.id}{answer.model}{answer.system_fingerprint}{answer.service_tier}"
    size += len(about) if about.isascii() else _text_size(about)
    if answer.sources_json:
        size += _text_size(answer.sources_json)
    native = answer.native
    if native is not None:
        size += getsizeof(native) + getsizeof(native.body)
        if native.events:
            size += _size(native.events)
    for choice in answer.choices:
        if (
            (choice.tool_calls or choice.reasoning or choice.refusal or choice.thinking_json)
            or (choice.sources_json or choice.logprobs_json or choice.thought_signatures)
            or (choice.images or choice.audio)
        ):
            size += _size(choice)
        else:
            text = choice.text  # most are ASCII, so that no call is needed
            size += _CHOICE + (len(text) if text.isascii() else _text_size(text))
    return size


def _text_size(text: str) -> int:
    if text.isascii():
        return _TEXT + len(text)
    return getsizeof(text) + 2 * len(text)  # when it was written as JSON, it has a copy in UTF-8


def _size(value: object) -> int:
    size, seen, left = 0, set[int](), [value]
    while left:
        each: Any = left.pop()
        if type(each) is str:
            size += _text_size(each)
        elif id(each) not in seen:
            seen.add(id(each))
            if type(each) is Embeddings:  # the walk would take long
                size += _COMPLETION + _text_size(each.model)
                size += sum(_VECTOR + _NUMBER * len(vector) for vector in each.vectors)
            else:
                size += getsizeof(each, 0)
                left += _parts(each)
    return size


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, tuple | list | AbstractSet):
        return [*value]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return []
