"""Bodies of requests: JSON of the right form, or a refusal that says what is wrong with them.

No body may hold up the other requests of the process. The number of JSON values is bounded before
a body is parsed, the first error ends the check, and a long body is read in a thread: one at a
time, so that the event loop waits for no more than one call that holds the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from aigateway.server.http.errors import Refusal
from aigateway.settings import suggestion

__all__ = ["MOST_VALUES", "checked", "json_body"]

_Read = TypeVar("_Read")

MOST_VALUES = 100_000
"""JSON values in a body, about. A chat of 10,000 messages has 30,000."""

_SHORT = 65_536
"""Bytes of a body that is read at once: a few milliseconds, whatever is in it."""

_WINDOW = 65_536
"""Bytes that are looked at in one go."""

_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)

_readers = ThreadPoolExecutor(1, thread_name_prefix="aigateway-bodies")

_BY_SERVICE = "the service decides that"
_BY_HEADER = "use the header"
_ELSEWHERE = {
    **dict.fromkeys(("agent",), f"{_BY_HEADER} x-aigateway-agent"),
    **dict.fromkeys(("cache", "caching"), f"{_BY_HEADER} x-aigateway-cache"),
    "cache_ttl": f"{_BY_HEADER} x-aigateway-cache-ttl",
    **dict.fromkeys(
        ("request_timeout", "stream_timeout", "timeout"), f"{_BY_HEADER} x-aigateway-timeout"
    ),
    **dict.fromkeys(
        (
            "api_base",
            "api_key",
            "api_version",
            "base_url",
            "custom_llm_provider",
            "extra_body",
            "extra_headers",
            "fallbacks",
            "headers",
            "hedge",
            "max_retries",
            "model_list",
            "num_retries",
        ),
        _BY_SERVICE,
    ),
    "stream": "use /v1/chat/completions for a stream",
    "stream_options": "use /v1/chat/completions for a stream",
}


async def json_body(request: Request, read: Callable[[dict[str, Any]], _Read]) -> _Read:
    """Read a body.

    Args:
        request: Whose body it is.
        read: Makes of the JSON object what the endpoint wants. May raise a `Refusal`; of a long
            body it runs in a thread.

    Raises:
        Refusal: 415, it is not said to be JSON; 400, it is no JSON object, or has too many values.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "The body must be JSON: send Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "The body must not be compressed: send no Content-Encoding.")
    raw = await request.body()
    if len(raw) <= _SHORT:
        return read(_parsed(raw))
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_readers, lambda: read(_parsed(raw)))


def _parsed(raw: bytes) -> dict[str, Any]:
    if _has_too_many_values(raw):
        raise Refusal(400, f"The body has more than {MOST_VALUES:,} JSON values.")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        problem = f"{error.msg}: line {error.lineno} column {error.colno}"
    else:
        if isinstance(body, dict):
            return body
        problem = "it is not an object"
    raise Refusal(400, f"The body must be a JSON object in UTF-8 ({problem[:200]}).")


def _has_too_many_values(raw: bytes) -> bool:
    """Whether there are more than `MOST_VALUES`, in pieces that each take a millisecond at most.

    A value follows a comma or an opening bracket. Those within strings do not count; most bodies
    have so few of them that it does not matter where the strings are.
    """
    if len(raw) <= _SHORT or _marks(raw, 0, len(raw)) <= MOST_VALUES:
        return False
    values = strings = at = 0
    while at < len(raw):
        quote = raw.find(b'"', at, at + _WINDOW)
        end = at + _WINDOW if quote < 0 else quote
        values += _marks(raw, at, end)
        strings += quote >= 0
        if values > MOST_VALUES or strings > 2 * MOST_VALUES:  # a key is a string, too
            return True
        at = end if quote < 0 else _after_string(raw, quote + 1)
    return False


def _marks(raw: bytes, start: int, end: int) -> int:
    return sum(raw.count(mark, start, end) for mark in (b",", b"[", b"{"))


def _after_string(raw: bytes, at: int) -> int:
    """Where the string ends whose content begins at a place."""
    while at < len(raw):
        end = at + _WINDOW
        quote = raw.find(b'"', at, end)
        escape = raw.find(b"\\", at, end if quote < 0 else quote)
        if escape < 0:
            if quote >= 0:
                return quote + 1
            at = end
            continue
        content = _IN_STRING.match(raw, escape, end)
        assert content is not None  # noqa: S101 - it matches nothing, too
        at = content.end()
        if raw[at : at + 1] == b'"':
            return at + 1
        if at + 1 == len(raw):  # a backslash is the last of all
            break
    return len(raw)


def checked(body: dict[str, Any], form: TypeAdapter[Any], known: frozenset[str]) -> dict[str, Any]:
    """See that a body has its form.

    Args:
        body: As it came.
        form: What it must look like.
        known: The names that may stand at its top.

    Returns:
        The body, its numbers of the right kind.

    Raises:
        Refusal: 400 that names the place.
    """
    for name in body:
        if name not in known:
            raise _unknown(name, known)
    try:
        fit: dict[str, Any] = form.validate_python(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    else:
        return fit
    raise _misfit(body, details)


def _misfit(body: dict[str, Any], details: list[ErrorDetails]) -> Refusal:
    """The refusal of a body. Of a choice of forms, the one that fits best says what is wrong."""
    places = [_place(body, detail["loc"]) for detail in details]
    best = max(range(len(places)), key=lambda index: len(places[index]))
    place = places[best]
    what = details[best]["msg"]
    if details[best]["type"] == "missing":
        what = f"{details[best]['loc'][-1]} is missing"
    elif details[best]["type"] == "union_tag_invalid":  # its own words quote what was given
        what = "{discriminator} must be one of {expected_tags}".format_map(details[best]["ctx"])
    path = _path(place)
    return Refusal(400, f"{path}: {what}." if path else f"{what}.", param=path or None)


def _unknown(name: str, known: frozenset[str]) -> Refusal:
    text = name[:64]
    hint = _ELSEWHERE.get(text)
    if hint is not None:
        message = f'"{text}" cannot be given in a request: {hint}.'
    else:
        message = f'There is no parameter "{text}"{suggestion(text, known) or "; leave it out."}'
    return Refusal(400, message, code="unknown_parameter", param=text)


def _place(body: object, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The part of pydantic's location that is in the body; the rest names branches of a choice."""
    place: list[int | str] = []
    here: Any = body
    for step in loc:
        in_list = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if in_list or (isinstance(here, dict) and step in here):
            here = here[step]
            place.append(step)
    return tuple(place)


def _path(place: tuple[int | str, ...]) -> str:
    """`messages[0].content`. Names that are the caller's own are cut short."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in place]
    return "".join(parts).removeprefix(".")
