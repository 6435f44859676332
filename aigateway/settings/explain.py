"""What a refusal says: the name, the place and a guess at what was meant, never a value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

__all__ = ["explain", "suggestion", "unknown_name"]


def suggestion(name: str, known: Iterable[str]) -> str:
    """The part of a message that guesses what was meant.

    Args:
        name: What was given.
        known: What could have been.

    Returns:
        `; did you mean "..."?` or nothing.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def unknown_name(kind: str, given: Iterable[str], known: Iterable[str]) -> str | None:
    """The complaint about the first name that is not known, if there is one."""
    for name in given:
        if name not in known:
            return f'there is no {kind} "{name}"{suggestion(name, known)}'
    return None


def explain(error: ValidationError, places: Mapping[str, str] | None = None) -> str:
    """All of pydantic's complaints on one line, without the values it complains about."""
    complaints = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
        field = ".".join(map(str, detail["loc"]))
        place = (places or {}).get(field.partition(".")[0])
        given = f" ({place})" if place else ""
        complaints.append(f"{field}{given}: {message}" if field else message)
    return "; ".join(complaints)
