"""Check requests by the schema, and word the mistakes.

A mistake is found without looking at what follows it, whatever the size of a request.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from aigateway.errors import RequestRejectedError, refuse
from aigateway.request.json_copy import check_size, copied, encoded_json, is_plain, json_length
from aigateway.request.schema import FORMS, MOST_MESSAGES, ROLE_PROBLEM, ROLES, TOKENS_END, whole
from aigateway.settings import suggestion

__all__ = [
    "LONGEST_NAME",
    "MOST_CALLS",
    "CheckedMessages",
    "build_validators",
    "check_body",
    "check_extra_body",
    "check_headers",
    "check_inputs",
    "check_messages",
    "check_name",
    "check_patience",
    "check_seconds",
    "fit_fields",
    "refuse_field",
    "refuse_unknown",
]

MOST_CALLS = 2048
"""Tool calls in all messages: the more there are, the longer takes the search for the call that a
result belongs to."""


def build_validators() -> None:
    """Build what would otherwise hold up the first request for 30 ms."""
    for form in FORMS:
        _validator(form)


@functools.cache  # not at import, which has no time for them
def _validator(name: str) -> Callable[[Any], Any]:
    return TypeAdapter(FORMS[name]).validator.validate_python


class CheckedMessages(list[Any]):
    """Messages that have been checked, and that nothing else can change: they are not copied."""

    __slots__ = ()


def check_messages(messages: Sequence[object], max_bytes: int | None = None) -> None:
    """Check a list of messages.

    Args:
        messages: OpenAI chat messages.
        max_bytes: Bytes that their texts may have, as JSON.

    Raises:
        RequestRejectedError: Names the first mistake.
    """
    if not messages:
        refuse_field("messages", "must have at least one message")
    if len(messages) > MOST_MESSAGES:
        refuse_field("messages", f"has {len(messages):,} messages; give at most {MOST_MESSAGES:,}")
    if max_bytes is None and all(map(_is_plain_message, messages)):
        return
    validate = _validator("message")
    size = calls = 0
    for index, given in enumerate(messages):
        message: Any = given
        mistakes = _mistakes(given, validate)
        if mistakes:
            message = _as_json(given, validate, mistakes, f"messages[{index}]")
        content = message.get("content")
        if max_bytes is not None and isinstance(content, str):
            size += json_length(content)
            if size > max_bytes:
                check_size(size, max_bytes, or_more=True)
        made = message.get("tool_calls")
        calls += len(made) if isinstance(made, list) else 0
        if calls > MOST_CALLS:
            refuse_field("messages", f"must have at most {MOST_CALLS:,} tool calls")


def _is_plain_message(given: Any) -> bool:
    """Return whether a message is a role and a text, as most are: the schema would only say so.

    A lone surrogate, which the schema refuses, is not ASCII.
    """
    if type(given) is not dict or len(given) != 2:
        return False
    content, role = given.get("content"), given.get("role")
    return (
        type(content) is str
        and content.isascii()
        and type(role) is str
        and (role in _MAY_SAY_NOTHING or (role == "user" and content != ""))
    )


_MAY_SAY_NOTHING = frozenset({"system", "developer", "assistant"})


def _refuse_message(path: str, message: object) -> NoReturn:
    fix = 'give an object with "role" and "content"'
    if isinstance(message, BaseModel):
        fix = "give its .model_dump(exclude_none=True)"
    refuse_field(path, f"is {type(message).__name__}, not an object; {fix}")


def fit_fields(form: str, given: dict[str, Any]) -> None:
    """Check the fields of a request, and write 5.0 as 5 where a whole number is due.

    Args:
        form: Which names it has: a key of `FORMS`. Other names have been refused before.
        given: The fields.

    Raises:
        RequestRejectedError: Names the first mistake.
    """
    validate = _validator(form)
    while mistakes := _mistakes(given, validate):
        name = str(mistakes[0]["loc"][0])
        given[name] = _as_json({name: given[name]}, validate, mistakes)[name]
    for name, value in given.items():
        if type(value) is float and value.is_integer():
            given[name] = validate({name: value})[name]


def check_body(form: str, body: dict[str, Any]) -> None:
    """Check the whole body of another protocol, which names a field `messages.0.content`.

    Args:
        form: Its name in `FORMS`.
        body: As a JSON parser returns it.

    Raises:
        RequestRejectedError: Names the first mistake.
    """
    mistakes = _mistakes(body, _validator(form))
    if mistakes:
        place, problem = _worded(body, mistakes)
        missing = re.fullmatch(r'must have "(\w+)"', problem)
        if missing:  # as Anthropic says it
            place, problem = [*place, missing[1]], "Field required"
        path = ".".join(str(step)[:64] for step in place)
        raise RequestRejectedError(f"{path}: {problem}" if path else problem, param=path or None)


def _mistakes(value: Any, validate: Callable[[Any], Any]) -> Sequence[ErrorDetails]:
    try:
        validate(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return ()


def _as_json(
    value: Any,
    validate: Callable[[Any], Any],
    mistakes: Sequence[ErrorDetails],
    path: str = "",
) -> Any:
    """Return a value as JSON has it, a tuple as a list and an enum as its value, if that fits."""
    if isinstance(value, BaseModel):
        _refuse_message(path, value)
    try:
        plain = is_plain(value)
    except RecursionError:
        plain = False
    if not plain:
        value = copied(value, encoded_json(value, path or "params"))
        mistakes = _mistakes(value, validate)
    if mistakes:
        _refuse_misfit(value, mistakes, path)
    return value


_PROBLEMS = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "invalid_key": "is a key that is not a text",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a text",
    "string_unicode": "must be a text without surrogates",
    "too_long": "must have at most {max_length} items",
    "too_short": "must not be empty",
}


def _refuse_misfit(value: Any, details: Sequence[ErrorDetails], path: str) -> NoReturn:
    """Put a mistake into words, which never quote the value. The deepest place says most."""
    if path and not isinstance(value, dict):
        _refuse_message(path, value)
    place, problem = _worded(value, details)
    refuse_field((path + _path(place)).removeprefix("."), problem)


def _worded(value: Any, details: Sequence[ErrorDetails]) -> tuple[list[int | str], str]:
    """Return the deepest place of a mistake, and its problem."""
    places = [_place(value, detail["loc"]) for detail in details]
    best = max(range(len(places)), key=lambda index: len(places[index]))
    detail = details[best]
    if detail["type"] == "missing":
        field = detail.get("ctx", {}).get("field") or detail["loc"][-1]
        return places[best], f'must have "{field}"'
    if detail["type"] == "choice":
        problem = detail["msg"]
        if problem == ROLE_PROBLEM and isinstance(role := value.get("role"), str):
            problem += suggestion(role[:32], ROLES)
        return places[best], problem
    limits = {n: f"{v:g}" if isinstance(v, float) else v for n, v in detail.get("ctx", {}).items()}
    return places[best], _PROBLEMS.get(detail["type"], "is not valid").format_map(limits)


def _place(value: Any, loc: Sequence[int | str]) -> list[int | str]:
    """Return the part of pydantic's location that is in the value; the rest names forms."""
    place: list[int | str] = []
    for step in loc:
        in_list = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if in_list or (isinstance(value, dict) and step in value):
            value = value[step]
            place.append(step)
    return place


def _path(place: Sequence[int | str]) -> str:
    """Write `messages[0].content`. Names that are the caller's own are cut short."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in place]
    return "".join(parts)


def check_inputs(inputs: Any, name: str, max_bytes: int | None = None) -> list[Any]:
    """Check the inputs of an embedding request.

    Args:
        inputs: A text or a list of texts, or the same as tokens: a list of whole numbers, or a
            list of such lists. None of them is empty.
        name: The field's.
        max_bytes: Bytes that they may have together, as JSON.

    Returns:
        The list of texts, or of lists of tokens.

    Raises:
        RequestRejectedError: Names the first mistake.
    """
    if isinstance(inputs, str) or (_is_list(inputs) and inputs and _is_token_like(inputs[0])):
        inputs = [inputs]
    if not _is_list(inputs) or not inputs:
        refuse_field(name, "must be a text or a list of texts, or tokens in their place")
    size = 0
    most = float("inf") if max_bytes is None else max_bytes
    if len(inputs) > most:
        check_size(len(inputs), int(most), or_more=True)
    as_tokens = _is_list(inputs[0])
    fit: list[Any] = []
    for index, given in enumerate(inputs):
        if as_tokens:
            if not _is_list(given) or not given:
                refuse_field(f"{name}[{index}]", "must be a list of at least one token")
            size += 2 * len(given)  # a digit and a comma, at least
        elif not isinstance(given, str) or not given:
            refuse_field(f"{name}[{index}]", "must be a text that is not empty")
        else:
            size += len(given)
        if size > most:
            check_size(size, int(most), or_more=True)
        fit.append(_tokens(given, f"{name}[{index}]") if as_tokens else given)
    return fit


def _tokens(given: Sequence[Any], path: str) -> Sequence[int]:
    tokens = list(map(whole, given)) if float in set(map(type, given)) else given
    if not all(type(token) is int and 0 <= token < TOKENS_END for token in tokens):
        refuse_field(path, "must have tokens only: whole numbers from 0 to 2^31 - 1")
    return tokens


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _is_token_like(value: object) -> bool:
    return type(value) is int or type(value) is float


# ── refusals ─────────────────────────────────────────────────────────────────────────────────


def refuse_field(path: str, problem: str) -> NoReturn:
    """Refuse a request for a field: `temperature must be a number.`."""
    end = "" if problem.endswith("?") else "."
    raise RequestRejectedError(f"{path} {problem}{end}", param=path)


def refuse_unknown(
    name: object,
    known: Iterable[str],
    instead: Mapping[str, str],
    otherwise: str,
    further: str = "",
) -> NoReturn:
    """Refuse a request for a name that it may not have.

    Args:
        name: The name.
        known: Names that it may have.
        instead: What to do in place of some others.
        otherwise: What to do with the rest.
        further: More about the rest, as a sentence after a space.
    """
    text = str(name)[:64]
    if text in instead:
        message = f'"{text}" cannot be given with a request: {instead[text]}.'
    else:
        hint = suggestion(text, sorted(known)) or f"; {otherwise}."
        message = f'There is no parameter "{text}"{hint}{further}'
    raise RequestRejectedError(message, param=text, code="unknown_parameter")


# ── options that only the library takes ──────────────────────────────────────────────────────

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")

LONGEST_NAME = 1024


def check_name(name: str, value: object) -> None:
    """Refuse a value that cannot be the name of a model or an agent."""
    if not isinstance(value, str) or not value:
        refuse(f"{name} must be a text that is not empty; leave it out for none.")
    if len(value) > LONGEST_NAME:
        refuse(f"{name} is longer than {LONGEST_NAME:,} characters; no name is.")


def check_seconds(name: str, value: object) -> None:
    """Refuse a value that is no time to wait."""
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        refuse(f"{name} must be a finite number of seconds above 0; leave it out for the default.")


def check_patience(name: str, value: object) -> None:
    """Refuse a value that is no time to wait; 0 is one."""
    if not _is_number(value) or not 0 <= value <= sys.float_info.max:
        refuse(f"{name} must be a finite number of seconds, 0 for none, or None for no end.")


def check_headers(name: str, value: object) -> None:
    """Refuse headers that HTTP could not carry."""
    if type(value) is not dict and not isinstance(value, Mapping):
        refuse(f"{name} must be a mapping of texts.")
    for header, text in value.items():
        if not (isinstance(header, str) and _HEADER.fullmatch(header)):
            refuse(f"{name} has a name that no HTTP header may have.")
        if not isinstance(text, str) or not (
            (text.isascii() and text.isprintable()) or _HEADER_VALUE.fullmatch(text)
        ):
            refuse(
                f"{name}[{header[:64]!r}] must be a text of printable ASCII, without line breaks."
            )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_extra_body(name: str, value: Mapping[str, object]) -> None:
    """Refuse fields of a body that the gateway itself sends."""
    for field in ("messages", "model", "stream"):
        if field in value:
            refuse(f"{name} must not have {field}, which the gateway itself sends.")
