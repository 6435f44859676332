"""Bodies of requests: JSON of the right form, or a refusal that says what is wrong with them."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from aigateway.server.refusals import Refusal
from aigateway.settings import suggestion

__all__ = ["checked", "json_body"]

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


async def json_body(request: Request) -> dict[str, Any]:
    """Read a body.

    Raises:
        Refusal: 415, it is not said to be JSON; 400, it is no JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "The body must be JSON: send Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "The body must not be compressed: send no Content-Encoding.")
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        problem = f"{error.msg}: line {error.lineno} column {error.colno}"
    else:
        if isinstance(body, dict):
            return body
        problem = "it is not an object"
    raise Refusal(400, f"The body must be a JSON object in UTF-8 ({problem[:200]}).")


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
        details = error.errors(include_url=False, include_input=False, include_context=False)
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
