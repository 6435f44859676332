"""What the value of a parameter must look like."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from aigateway.errors import refuse

__all__ = ["CHECKS", "check_headers", "check_name", "check_patience", "check_seconds"]

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")


_LONGEST_NAME = 1024


def check_name(name: str, value: object) -> None:
    """Refuse what cannot be the name of a model or an agent."""
    if not _is_text(value):
        refuse(f"{name} must be a text that is not empty; leave it out for none.")
    if len(value) > _LONGEST_NAME:
        refuse(f"{name} is longer than {_LONGEST_NAME:,} characters; no name is.")


def check_seconds(name: str, value: object) -> None:
    """Refuse what no clock can wait for."""
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        refuse(f"{name} must be a finite number of seconds above 0; leave it out for the default.")


def check_patience(name: str, value: object) -> None:
    """Refuse what is no time to wait, however short."""
    if not _is_number(value) or not 0 <= value <= sys.float_info.max:
        refuse(f"{name} must be a finite number of seconds, 0 for none, or None for no end.")


def check_headers(name: str, value: object) -> None:
    """Refuse what cannot go over the wire as headers."""
    if not isinstance(value, Mapping):
        refuse(f"{name} must be a mapping of texts.")
    for header, text in value.items():
        if not (isinstance(header, str) and _HEADER.fullmatch(header)):
            refuse(f"{name} has a name that no HTTP header may have.")
        if not (isinstance(text, str) and _HEADER_VALUE.fullmatch(text)):
            refuse(f"{name}[{header[:64]!r}] must be a text of printable ASCII.")


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(least: float, most: float) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not _is_number(value) or not least <= value <= most:
            refuse(f"{name} must be a number from {least} to {most}.")

    return check


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_between(least: int, most: int) -> Callable[[str, Any], None]:
    def check(name: str, value: object) -> None:
        if not _is_whole(value) or not least <= value <= most:
            refuse(f"{name} must be a whole number from {least} to {most}.")

    return check


def _check_whole(name: str, value: object) -> None:
    if not _is_whole(value):
        refuse(f"{name} must be a whole number.")


def _check_count(name: str, value: object) -> None:
    if not _is_whole(value) or value < 1:
        refuse(f"{name} must be a whole number, at least 1.")


def _check_headers(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) and part.isascii() and part.isprintable()
        for item in value.items()
        for part in item
    ):
        refuse(f"{name} must be a mapping of ASCII texts without line breaks.")


def _check_body(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        refuse(f"{name} must be a mapping.")
    for field in ("messages", "model", "stream"):
        if field in value:
            refuse(f"{name} must not hold {field}, which the gateway itself sends.")


def _check_encoding(name: str, value: object) -> None:
    if value != "float":
        refuse(f'{name} must be "float" or left out: vectors come as numbers.')


_NO_TYPE = "of the vendor's own"


def _check_tools(name: str, value: object) -> None:
    if not isinstance(value, list | tuple):
        refuse(f"{name} must be a list of tools.")
    for index, tool in enumerate(value):
        # Gemini's own tools ({"googleSearch": {}}) have no type.
        if not isinstance(tool, Mapping) or not _is_text(tool.get("type", _NO_TYPE)):
            refuse(f'{name}[{index}] must be a mapping with a "type", such as "function".')
        if "function" not in tool and tool.get("type") != "function":
            continue  # a vendor's own kind of tool, with fields of its own
        function = tool.get("function")
        if not isinstance(function, Mapping) or not _is_text(function.get("name")):
            refuse(f'{name}[{index}] must have a mapping "function" with a "name".')


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "dimensions": _check_count,
    "encoding_format": _check_encoding,
    "extra_body": _check_body,
    "extra_headers": _check_headers,
    "frequency_penalty": _between(-2, 2),
    "max_completion_tokens": _check_count,
    "max_tokens": _check_count,
    "n": _check_count,
    "presence_penalty": _between(-2, 2),
    "seed": _check_whole,
    "temperature": _between(0, 2),
    "tools": _check_tools,
    "top_logprobs": _whole_between(0, 20),
    "top_p": _between(0, 1),
}
