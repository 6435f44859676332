"""The values of the YAML: numbers, texts and names, and how a message shows them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from aigateway.cli.from_litellm.secrets import is_secret_text

__all__ = [
    "MOST_NAMES",
    "Remark",
    "as_mapping",
    "as_number",
    "as_text",
    "as_texts",
    "as_whole",
    "is_toml",
    "referenced_variable",
    "shown",
]

Remark = tuple[str, str]
"""An option of litellm, and what became of it."""

MOST_NAMES = 1_000
_REFERENCE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)


def shown(value: object) -> str:
    """Return a name of the YAML for one line of a message or comment; never a secret."""
    if is_secret_text(str(value)):
        return "(hidden)"
    text = json.dumps(str(value), ensure_ascii=True)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_text(value: object) -> str | None:
    """Return a value as text that one line can hold; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return text if text and text.isprintable() else None


def as_number(value: object) -> float | None:
    """Return a value as a number, whether or not it stands in quotes; None if it is none."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def as_whole(value: object) -> int | None:
    """Return a value as a whole number; None if it is none."""
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_texts(value: object) -> list[str]:
    """Return the texts of a list, or the one that stands in place of a list."""
    given = value if isinstance(value, list) else [value]
    return [text for text in map(as_text, given) if text is not None]


def referenced_variable(value: object) -> str | None:
    """Return the variable that `os.environ/NAME` names."""
    match = _REFERENCE.fullmatch(value.strip()) if isinstance(value, str) else None
    return match[1] if match and not is_secret_text(match[1]) else None


def as_mapping(value: object) -> dict[str, Any]:
    """Return a mapping; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def is_toml(value: object) -> bool:
    """Return whether a value can stand in the file as it is."""
    if isinstance(value, dict):
        return all(is_toml(each) for each in (*value, *value.values()))
    if isinstance(value, list):
        return all(map(is_toml, value))
    return isinstance(value, str | bool | int) or (
        isinstance(value, float) and math.isfinite(value)
    )
