"""JSON bodies: read leniently, repaired, copied, merged.

Vendors send JSON that orjson refuses and Python's own reader takes: half of a character (an emoji
that `max_tokens` has cut), a byte order mark, NaN.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from typing import Any

import orjson

__all__ = [
    "encoded",
    "fresh_copy",
    "is_text_only",
    "mend_usage",
    "parsed",
    "whole_characters",
    "with_extra_body",
]


def encoded(value: Any) -> bytes:
    """Write JSON. Half a character, which a vendor may have sent, goes on as an escape."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def parsed(data: bytes, *, whole: bool = False) -> Any:
    """Read JSON.

    In a `whole` body U+FFFD replaces each half of a character. Else halves are kept: the other one
    may be in the next event of a stream.

    Raises:
        ValueError: It is no JSON, or nested too deeply to be read.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        read = json.loads(data)
        if whole:
            read = json.loads(whole_characters(json.dumps(read, ensure_ascii=False)))
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None
    return read


def whole_characters(text: str) -> str:
    """Join halves of characters that stand side by side, and put U+FFFD for each other one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def mend_usage(body: Any, *, whole: bool = False) -> bool:
    """Remove what is no count from the vendor's usage, so that it costs no answer.

    In a `whole` answer, zeros replace counts that litellm needs. Returns whether anything changed.
    """
    if not isinstance(body, dict):
        return False
    changed = _mend_usage_of(body)
    message = body.get("message")  # Anthropic's streams begin with one
    if isinstance(message, dict):
        changed |= _mend_usage_of(message)
    if whole:
        if body.get("type") == "message":
            changed |= _fill(body, "usage", ("input_tokens", "output_tokens"))
        elif "candidates" in body:
            changed |= _fill(body, "usageMetadata", ("promptTokenCount", "totalTokenCount"))
    return changed


def _mend_usage_of(holder: dict[str, Any]) -> bool:
    changed = False
    for name in _USAGES:
        if name not in holder:
            continue
        usage = holder[name]
        if isinstance(usage, dict):
            changed |= _mend(usage)
        elif usage is not None or "choices" not in holder:
            del holder[name]
            changed = True
    return changed


_USAGES = ("usage", "usageMetadata")
_COUNTS = ("okens", "Count", "_requests")
"""How the names of counts end."""
_DETAILS = {"_details": dict, "Details": list}
"""How the names of what else is counted end, and what it must be."""


def _mend(usage: dict[str, Any], levels: int = 3) -> bool:
    changed = False
    for name, count in list(usage.items()):
        form = next((f for end, f in _DETAILS.items() if name.endswith(end)), None)
        if name.endswith(_COUNTS) and not (name == "tokens" and isinstance(count, dict)):  # Cohere
            if type(count) is int and 0 <= count < _MOST:
                continue
            changed = True
            read = _count(count)
            if read is None:
                del usage[name]
            else:
                usage[name] = read
        elif (form is not None and count is not None and not isinstance(count, form)) or (
            isinstance(count, dict | list) and not levels
        ):
            del usage[name]
            changed = True
        elif isinstance(count, dict):
            changed |= _mend(count, levels - 1)
        elif isinstance(count, list):
            usage[name] = [part for part in count if isinstance(part, dict)]
            changed |= len(usage[name]) < len(count)
            for part in usage[name]:
                changed |= _mend(part, levels - 1)
    return changed


_MOST = 2**53


def _count(given: Any) -> int | None:
    """Read a count that a server wrote as 7.0 or "7"; None if it is none."""
    if isinstance(given, str) and given.isdecimal() and given.isascii() and len(given) < 16:
        return int(given)
    whole = isinstance(given, float) and given.is_integer() and 0 <= given < _MOST
    return int(given) if whole else None


def _fill(body: dict[str, Any], name: str, counts: tuple[str, ...]) -> bool:
    usage = body.setdefault(name, {})
    lacking = [count for count in counts if count not in usage]
    usage.update(dict.fromkeys(lacking, 0))
    return bool(lacking)


def fresh_copy(value: Any, without: str | None = None) -> Any:
    """Copy JSON values deeply, for litellm to write into, without one key. Texts are shared."""
    if isinstance(value, Mapping):
        return {key: fresh_copy(part, without) for key, part in value.items() if key != without}
    if isinstance(value, list | tuple):
        return [fresh_copy(part, without) for part in value]
    return value


def with_extra_body(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Put `extra_body` over a body. Objects at its top (`generationConfig`) are put together."""
    merged = dict(body)
    for name, value in extra.items():
        own = merged.get(name)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            merged[name] = {**own, **value}
        else:
            merged[name] = value
    return merged


def is_text_only(messages: Iterable[Mapping[str, Any]], roles: Container[str]) -> bool:
    """Return whether each message is one of these roles and a text, and nothing else."""
    for message in messages:
        if (
            len(message) != 2
            or type(message.get("content")) is not str
            or message.get("role") not in roles
        ):
            return False
    return True
