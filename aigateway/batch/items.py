"""Read one element of a batch's input as a prompt and its options. The prompt is not checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from aigateway.errors import RequestRejectedError, refuse
from aigateway.messages import ChatRequest, Origin

__all__ = ["Prompt", "read_request", "row_reader", "template_fields"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request as it was read.

    Attributes:
        prompt: A prompt, or messages.
        options: Keywords of `chat`.
        id: The caller's name for it, if any.
    """

    prompt: Any
    options: Mapping[str, Any]
    id: str | None = None


def read_request(given: Any) -> Prompt:
    """Read a prompt, a list of messages, a mapping or a `ChatRequest`.

    A mapping has "prompt" or "messages" and optionally an "id"; its other fields are options of
    `chat`. A field that is None counts as absent.

    Raises:
        RequestRejectedError: A mapping has neither or both of "prompt" and "messages".
    """
    if isinstance(given, ChatRequest):
        return _from_chat_request(given)
    if not isinstance(given, Mapping):
        return Prompt(given, {})
    options = {name: value for name, value in given.items() if value is not None}
    name = _checked_id(options.pop("id", None))
    if ("prompt" in options) == ("messages" in options):
        refuse('A request needs either "prompt" or "messages".')
    return Prompt(options.pop("prompt" if "prompt" in options else "messages"), options, name)


def _from_chat_request(request: ChatRequest) -> Prompt:
    options = dict(request.params)
    for name in ("model", "timeout", "agent", "cache_ttl", "hedge", "session"):
        value = getattr(request, name)
        if value is not None:
            options[name] = value
    if request.cache is not True:
        options["cache"] = request.cache
    if request.response_model is not None:
        options["response_format"] = request.response_model
    if request.partition or request.headers or request.on_cost or request.tenant:
        options["origin"] = Origin(
            partition=request.partition,
            headers=request.headers,
            on_cost=request.on_cost,
            tenant=request.tenant,
        )
    return Prompt(request.messages, options, request.request_id or None)


def _checked_id(given: object) -> str | None:
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        refuse(f'"id" must be a text or a whole number, not {type(given).__name__}.')
    return None if given is None or given == "" else str(given)


def row_reader(template: str) -> Callable[[Any], Prompt]:
    """Return a function that fills the template from a row.

    `{field}` stands for that field of the row, `{{` and `}}` for braces. A row's "id" becomes the
    item's. A field that is None counts as missing (as does `{a[b]}` or `{a.b}` that leads to None),
    so that no prompt contains the word "None".

    Raises:
        RequestRejectedError: The template is invalid.
    """
    _check_template(template)
    needs = f"The template needs {', '.join(_fields(template)) or 'no field'}; this row"

    def read(row: Any) -> Prompt:
        if not isinstance(row, Mapping):
            refuse(f"A row must be a mapping of field names to values, not {type(row).__name__}.")
        try:
            prompt = _filler.vformat(template, (), row)
        except KeyError as missing:
            problem = f"{needs} has no {str(missing)[:64]}."
        except _NoneError as none:
            problem = f"{needs} has None for {str(none)[:64]!r}."
        except Exception as exc:  # noqa: BLE001 - a value may raise anything when it is formatted
            problem = f"{needs} has a value that cannot be formatted ({type(exc).__name__})."
        else:
            return Prompt(prompt, {}, _checked_id(row.get("id")))
        raise RequestRejectedError(problem)

    return read


class _NoneError(Exception):
    """A field of a row is None; names the field."""


class _Filler(Formatter):
    """`str.format_map` that refuses None."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        found = super().get_field(field_name, args, kwargs)
        if found[0] is None:
            raise _NoneError(field_name)
        return found


_filler = _Filler()


def _fields(template: str) -> list[str]:
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def template_fields(template: str) -> list[str]:
    """Return the fields of a row that a template needs; for `{a.b}` and `{a[b]}` that is `a`."""
    return list(
        dict.fromkeys(re.split(r"[.\[]", name, maxsplit=1)[0] for name in _fields(template))
    )


def _check_template(template: object) -> None:
    if not isinstance(template, str):
        refuse(f"template must be a text, not {type(template).__name__}.")
    fix = "write {{ and }} for braces, and {name} for a field"
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        names = None
    if names is None:
        refuse(f"The template's braces are not balanced; {fix}.")
    if any(not name or name[0].isdigit() for name in names):
        refuse(f"The template has a field without a name; {fix}.")
    if any("._" in name for name in names):
        refuse(f"The template reads a private attribute of a value; {fix}.")
