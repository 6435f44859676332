"""From a line to what is asked: whether it may be, how it is called, what it is the same as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from aigateway.batch.files.index import Index
from aigateway.batch.files.lines import Line, Problem
from aigateway.errors import RequestRejectedError
from aigateway.messages import ChatRequest

__all__ = ["BREATH", "WITHOUT_EFFECT", "Check", "asked_of", "judged", "name_of", "repeated"]

Check = Callable[..., ChatRequest]
"""`AsyncGateway.check`."""

BREATH = 256
"""Lines that need no vendor, after which others on the event loop have their turn."""

WITHOUT_EFFECT = ("agent", "cache", "cache_ttl", "hedge", "timeout")
"""Options that change how an answer comes, and not which."""


def judged(
    line: Line | Problem, check: Check, shared: Mapping[str, Any]
) -> tuple[Line, ChatRequest] | Problem:
    """A line that may be asked, with its request; or what is wrong with it.

    Args:
        line: As it was read.
        check: Refuses what no vendor should be asked.
        shared: Options for every line; its own stand over them.
    """
    if isinstance(line, Problem):
        return line
    try:
        return line, check(line.prompt, **{**shared, **line.options})
    except RequestRejectedError as error:
        what = str(error).rstrip(".")
    except TypeError:  # a field of the line that cannot be a keyword
        what = "it has a field that is no option of chat"
    return Problem(line.number, what, line.id)


def asked_of(line: Line, shared: Mapping[str, Any]) -> bytes | None:
    """What two lines have in common if one answer serves both; None if each wants its own.

    Args:
        line: One that has been judged, and may be asked.
        shared: Options for every line.
    """
    options = {**shared, **line.options}
    if options.get("cache", True) is not True:
        return None
    for name in WITHOUT_EFFECT:
        options.pop(name, None)
    prompt = line.prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return orjson.dumps([prompt, options], option=orjson.OPT_SORT_KEYS)


def name_of(problem: Problem, index: Index) -> str:
    """What a line is called that cannot be asked: as it says, unless another is called so."""
    name = problem.id
    if name is None or index.find(name)[0] not in {0, problem.number}:
        name = f"(line {problem.number})"
    while index.find(name)[0] not in {0, problem.number}:
        name += "'"
    return name


def repeated(line: Line, first: int) -> Problem:
    """A line that is called as an earlier one is. It has no id of its own, then."""
    return Problem(line.number, f"its id is that of line {first} already")
