"""Write tables of `aigateway.toml`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["assignments", "table_lines", "toml_value"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def table_lines(heading: str, table: Mapping[str, Any]) -> str:
    """Return a table with its heading, as lines."""
    return "".join(f"{line}\n" for line in (heading, *assignments(table)))


def assignments(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each value that is not None."""
    for name, value in table.items():
        if value is not None:
            key = name if _BARE_KEY.fullmatch(name) else toml_value(name)
            yield f"{key} = {toml_value(value)}"


def toml_value(value: Any) -> str:
    """Return a value as TOML, which has no form for None."""
    if isinstance(value, Mapping):
        inside = ", ".join(assignments({str(name): each for name, each in value.items()}))
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return f"[{', '.join(map(toml_value, value))}]"
    # A JSON string is a TOML string, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
