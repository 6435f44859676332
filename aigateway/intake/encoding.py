"""The way through JSON: the first half of a deep copy, and the proof that it can be sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from aigateway.intake.refusal import refuse

__all__ = ["check_size", "encoded_json"]


def encoded_json(value: Any, name: str) -> bytes:
    """The value as JSON: the first half of a deep copy, and the proof that it can be sent."""
    encoded, problem = _tried(value)
    if problem is not None:
        refuse(f"{name}{_culprit(value)} cannot be written as JSON: {problem}.")
    return encoded


def _tried(value: object) -> tuple[bytes, str | None]:
    try:
        encoded = orjson.dumps(value, default=_plain, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError as error:
        return b"", str(error)  # names a type, never a value
    # orjson writes NaN as null, so without a null there is nothing to look for.
    if b"null" in encoded and _has_nan(value):
        return b"", "a number is NaN or infinite"
    return encoded, None


def _plain(value: object) -> object:
    """What orjson does not know but is plain enough: frozen mappings, numpy's floats."""
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
    """Which item of a list or mapping is at fault, as an index."""
    if isinstance(value, list | tuple) and len(value) > 1:
        items: Iterable[tuple[object, object]] = enumerate(value)
    elif isinstance(value, Mapping):
        items = value.items()
    else:
        return ""
    return next((f"[{index!r}]" for index, item in items if _tried(item)[1] is not None), "")


def check_size(size: int, most: int) -> None:
    """Refuse a prompt of too many bytes."""
    if size > most:
        refuse(
            f"The prompt has {size:,} bytes, more than the {most:,} allowed; shorten it, or raise "
            "GatewaySettings(max_prompt_bytes=...)."
        )
