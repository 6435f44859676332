"""JSON as vendors send it: what orjson refuses and Python's own reader takes does come from them.

That is half of a character (an emoji that `max_tokens` has cut), a byte order mark, and NaN.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["parsed", "parsed_whole", "whole_characters"]


def parsed(data: bytes) -> Any:
    """Read JSON, half of a character included: its rest may be in the next event of a stream.

    Raises:
        ValueError: It is no JSON, or nested too deeply to be read.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None


def parsed_whole(data: bytes) -> Any:
    """Read JSON of which nothing more comes: U+FFFD stands for each half of a character.

    Raises:
        ValueError: It is no JSON, or nested too deeply to be read.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(whole_characters(json.dumps(json.loads(data), ensure_ascii=False)))
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None


def whole_characters(text: str) -> str:
    """Join halves of characters that stand side by side, and put U+FFFD for each other one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
