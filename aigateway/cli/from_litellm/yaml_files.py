"""Read YAML that may be hostile, with the files that it includes; no error quotes what they hold.

A first pass counts the values that the text expands to and builds nothing, so a refusal is cheap.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from aigateway.cli.from_litellm.values import shown
from aigateway.errors import ConfigurationError

__all__ = ["read_yaml"]

_MOST_BYTES: Final = 1_000_000
_MOST_FILES: Final = 32
_MOST_VALUES: Final = 100_000
"""In all files together; aliases count as often as they repeat a value."""
_MOST_DEPTH: Final = 50
_MOST_BITS: Final = 64
_TEXT_OF_A_VALUE: Final = 100
"""A text counts as one value more for each so many characters."""

_FAST: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")
"""Escaped surrogates, as JSON writes an emoji; libyaml refuses them."""
_NUMBER = re.compile(r"[-+.]?\d").match


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a file with its includes merged, as litellm merges them.

    Raises:
        ConfigurationError: A file cannot be read, is no plain YAML, or is large beyond reason.
    """
    return _Files().read(path)


class _Files:
    def __init__(self) -> None:
        self._files = 0
        self._values = 0

    def read(self, path: Path, outer: tuple[Path, ...] = ()) -> dict[str, Any]:
        self._files += 1
        if path in outer or self._files > _MOST_FILES:
            raise ConfigurationError(
                f"{shown(path)}: `include` goes round in a circle, or names more than"
                f" {_MOST_FILES} files"
            )
        content = self._parsed(path, outer)
        names = content.pop("include", None) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(f"{shown(path)}: `include` must be a list of files")
        for name in names:
            if "://" in name:
                raise ConfigurationError(f"{shown(path)}: `include` may only name local files")
            for key, value in self.read(path.parent / name, (*outer, path)).items():
                both = isinstance(value, list) and isinstance(content.get(key), list)
                content[key] = [*content[key], *value] if both else value
        return content

    def _parsed(self, path: Path, outer: tuple[Path, ...]) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1).decode()
            if len(text) > _MOST_BYTES:
                problem = f"is longer than {_MOST_BYTES:,} bytes"
            else:
                loader = yaml.SafeLoader if _HALVES.search(text) else _FAST
                self._count(text, loader)
                content = _plain(yaml.load(text, Loader=loader))  # noqa: S506 - both are safe
                if isinstance(content, dict):
                    return content
                problem = "is no YAML mapping with a model_list"
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        except UnicodeDecodeError:
            problem = "is not UTF-8; save it as that"
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" (line {mark.line + 1})" if mark else ""
            problem = f"is not plain YAML{line}; tags of Python objects are refused, too"
        except OverflowError:
            problem = f"stands for more than {_MOST_VALUES:,} values; split it"
        except (RecursionError, ValueError):  # also a path with a NUL in it
            problem = "is nested too deeply, or holds a value that cannot be read"
        name = shown(path)
        if outer:
            name = f"{shown(outer[0])} includes {name}, which"
        raise ConfigurationError(f"{name} {problem}.")

    def _count(self, text: str, loader: Any) -> None:
        """Raise as soon as the text expands to too much; a few lines can expand without end.

        An alias weighs what its anchor holds, so nothing that is built later can be larger.
        """
        weights, left = dict[Any, int](), list[tuple[Any, int]]()
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                left.append((event.anchor, self._values))
                self._values += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = left.pop()
                weights[anchor] = self._values - before
            elif isinstance(event, yaml.ScalarEvent):
                weights[event.anchor] = _weight(event)
                self._values += weights[event.anchor]
            elif isinstance(event, yaml.AliasEvent):  # an unknown anchor contains itself
                self._values += weights.get(event.anchor, _MOST_VALUES)
            if self._values > _MOST_VALUES:
                raise OverflowError
            if len(left) > _MOST_DEPTH:
                raise RecursionError


def _weight(event: Any) -> int:
    """Return how much one value counts."""
    text = getattr(event, "value", "")
    if len(text) > _TEXT_OF_A_VALUE and (event.implicit[0] or event.tag) and _NUMBER(text):
        raise ValueError  # a long number takes long to build
    return 1 + len(text) // _TEXT_OF_A_VALUE


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a copy with texts as keys, of kinds that JSON has."""
    if depth > _MOST_DEPTH or (isinstance(value, int) and value.bit_length() > _MOST_BITS):
        raise RecursionError
    if isinstance(value, dict):
        return {_sound(str(key)): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, dt.date):
        return value.isoformat()
    return _sound(value) if isinstance(value, str) else value


def _sound(text: str) -> str:
    """Return a text that can be encoded as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
