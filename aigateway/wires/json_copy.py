"""Copies that litellm may write into, and does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["fresh_copy"]


def fresh_copy(value: Any, without: str | None = None) -> Any:
    """A deep copy of JSON values. Texts, however long, are shared.

    Args:
        value: What the caller keeps.
        without: A key that is left out wherever it stands.
    """
    if isinstance(value, Mapping):
        return {key: fresh_copy(part, without) for key, part in value.items() if key != without}
    if isinstance(value, list | tuple):
        return [fresh_copy(part, without) for part in value]
    return value
