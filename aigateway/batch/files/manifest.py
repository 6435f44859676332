"""A note beside the output that says of which input and which options it is.

Without it, a job that goes on could mix the answers of two prompts under one id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from aigateway.batch.files.atomic_file import written_anew
from aigateway.errors import ConfigurationError

__all__ = ["begin", "manifest_of", "resume"]

_FORMAT = 1


def manifest_of(output: Path) -> Path:
    """Where the note for this output is."""
    return output.with_name(f"{output.name}.job")


def begin(output: Path, fingerprint: str, options: Mapping[str, Any]) -> None:
    """Write the note, whole or not at all.

    Raises:
        ConfigurationError: It cannot be written.
    """
    path = manifest_of(output)
    note = {"format": _FORMAT, "input_sha256": fingerprint, "options": _digests(options)}
    try:
        with written_anew(path) as file:
            file.write(orjson.dumps(note, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None


def resume(output: Path, source: Path, fingerprint: str, options: Mapping[str, Any]) -> None:
    """See that the output is of this input and these options.

    Raises:
        ConfigurationError: It is not, or nothing says so.
    """
    path = manifest_of(output)
    try:
        note = orjson.loads(path.read_bytes())
        known = (note["input_sha256"], dict(note["options"])) if note["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known is None:
        raise ConfigurationError(
            f"{path} is missing or cannot be read, so nothing says of which input {output} is."
            " Name another output, and everything is asked anew."
        )
    if known[0] != fingerprint:
        raise ConfigurationError(
            f"{source} has changed since {output} was begun, so answers and questions might not"
            " belong together. Restore it, or name another output for the new one."
        )
    now = _digests(options)
    then = known[1]
    others = sorted(name for name in now | then if then.get(name) != now.get(name))
    if others:
        raise ConfigurationError(
            f"{output} was begun with another {', '.join(others)}; what is left would be asked"
            " differently. Give the same, or name another output."
        )


def _digests(options: Mapping[str, Any]) -> dict[str, str]:
    """What is another for another value, and tells none: a template is the user's own text.

    None is the same as not given.
    """
    return {
        name: hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
        for name, value in options.items()
        if value is not None
    }
