"""Deep copies by way of JSON, which also prove that a value can be sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from aigateway.errors import RequestRejectedError, refuse

__all__ = ["check_size", "copied", "encoded_json", "is_plain", "json_length"]

LONG = 65_536
"""Bytes of JSON above which a copy shares its texts with the caller."""

_ATOMS = frozenset({bool, float, int, str, type(None)})


def encoded_json(value: Any, name: str, *, within: bool = True) -> bytes:
    """Return a value as JSON, or refuse what JSON cannot say.

    Args:
        value: The value.
        name: Its name in the error.
        within: Whether the error says which item of the value is at fault.
    """
    problem, encoded = None, b""
    try:
        encoded = orjson.dumps(value, _plain, orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError as error:
        problem = str(error)  # names a type, never a value
    # orjson writes NaN as null, so without a null there is nothing to look for.
    if b"null" in encoded and _has_nan(value):
        problem = "a number is NaN or infinite"
    if problem is not None:
        place = _culprit(value) if within else ""
        refuse(f"{name}{place} cannot be written as JSON: {problem}.")
    return encoded


def copied(value: Any, encoded: bytes) -> Any:
    """Return a deep copy of a value, given also as JSON.

    Parsing a long text would hold up the caller's other tasks. It cannot change, so the copy
    shares it.
    """
    return orjson.loads(encoded) if len(encoded) <= LONG else _copy(value)


def json_length(text: str) -> int:
    """Return the bytes that a text takes as JSON, at least, without writing it."""
    return len(text) + (0 if len(text) <= LONG else sum(map(text.count, ('"', "\\", "\n"))))


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {str(name): _copy(item) for name, item in value.items()}
    if kind is list or kind is tuple:
        return [_copy(item) for item in value]
    return orjson.loads(orjson.dumps(value, _plain, orjson.OPT_PASSTHROUGH_DATACLASS))


def is_plain(value: Any) -> bool:
    """Return whether a value is what a JSON parser returns, for example without tuples."""
    kind = type(value)
    if kind is dict:
        return all(map(is_plain, value.values()))
    return kind in _ATOMS or (kind is list and all(map(is_plain, value)))


def _plain(value: object) -> object:
    """Convert types unknown to orjson that are plain enough: frozen mappings, numpy's floats."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError


def _has_nan(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_nan, value))


def _culprit(value: object) -> str:
    """Return the item of a list or mapping that is at fault, as an index."""
    if isinstance(value, list | tuple) and len(value) > 1:
        items: Iterable[tuple[object, object]] = enumerate(value)
    elif isinstance(value, Mapping):
        items = value.items()
    else:
        return ""
    for index, item in items:
        try:
            encoded_json(item, "", within=False)
        except RequestRejectedError:
            return f"[{index!r}]"
    return ""


def check_size(size: int, most: int, what: str = "prompt has", *, or_more: bool = False) -> None:
    """Refuse a prompt of too many bytes.

    Args:
        size: Its bytes.
        most: The bytes allowed.
        what: The subject of the message, with "has".
        or_more: Whether counting stopped early.
    """
    if size > most:
        refuse(
            f"The {what} {size:,} bytes{' or more' * or_more}, more than the {most:,} allowed; "
            "shorten it, or raise GatewaySettings(max_prompt_bytes=...)."
        )
