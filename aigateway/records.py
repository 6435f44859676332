"""What public records have in common: `to_dict()`, and a repr of one line.

A repr names providers, models, tokens and costs. It shows no prompt, no answer and no key.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any, NoReturn

__all__ = ["Record", "plain", "shown_cost"]

_PLACES = {"usd": 10, "seconds": 6, "percent": 2}
"""Decimal places of figures, by the last word of their names."""


class Record:
    """A base of frozen dataclasses."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__setattr__" in vars(cls):  # a dataclass with slots; on Python 3.11 its own one breaks
            setattr(cls, "__setattr__", _refuse_change)  # noqa: B010 - a type checker forbids it
            setattr(cls, "__delattr__", _refuse_change)  # noqa: B010
            if vars(cls).get("__slots__") and not hasattr(cls, "__post_init__"):
                setattr(cls, "__init__", _quick_init(cls))  # noqa: B010

    def to_dict(self) -> dict[str, Any]:
        """Return it as a new dictionary of plain values, fit for JSON.

        Costs of the record have ten decimal places, seconds six. JSON that a field of it holds as
        text stands there as values, without `_json` in the name. Values of the caller stay as they
        are, except that what is infinite or not a number is None.
        """
        return {
            name.removesuffix("_json"): _plain_field(value, name) for name, value in self._values()
        }

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Yield what `to_dict` returns."""
        return self._fields_but()

    def _fields_but(self, *names: str) -> Iterator[tuple[str, Any]]:
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if field.name not in names:
                yield field.name, getattr(self, field.name)

    def __repr__(self) -> str:
        words = " ".join(str(word) for word in self._words() if word not in (None, ""))
        return f"<{type(self).__name__}{words and ' '}{words}>"

    def _words(self) -> Iterable[Any]:
        """Yield what the repr shows; nothing for what is empty."""
        return ()


def _quick_init(cls: type) -> Any:
    """Return an `__init__` of a frozen dataclass with slots that takes a third of the time.

    The one that dataclasses make calls `object.__setattr__` for each field. This one makes the new
    object an instance of a twin class, which has the same slots and can be changed; fills it by
    plain assignments; and makes it an instance of `cls` again.
    """
    made: Any = vars(cls)["__init__"]
    code, names = made.__code__, [field.name for field in fields(cls) if field.init]
    arguments = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    if sorted(names) != sorted(arguments) or len(names) < len(fields(cls)):
        return made  # it computes something, too
    same = {name: vars(cls)[name] for name in ("__slots__", "__orig_bases__") if name in vars(cls)}
    twin: Any = type(cls.__name__, cls.__bases__, same)
    twin.__setattr__ = object.__setattr__
    known = {field.name: field.default_factory for field in fields(cls)}
    given = inspect.signature(made).parameters
    lines, scope = [], {"_set_": object.__setattr__, "_twin_": twin, "_cls_": cls, "_made_": made}
    for name in arguments:
        value = name
        if known[name] is not MISSING:
            scope |= {f"_make_{name}": known[name], f"_none_{name}": given[name].default}
            value = f"_make_{name}() if {name} is _none_{name} else {name}"
        lines.append(f"    self.{name} = {value}")
    positional, named = arguments[: code.co_argcount - 1], arguments[code.co_argcount - 1 :]
    signature = ", ".join(("self", *positional, *(("*", *named) if named else ())))
    passed_on = ", ".join(("self", *positional, *(f"{name}={name}" for name in named)))
    source = (
        f"def __init__({signature}):\n",
        # An application may derive a class from this one.
        f"    if self.__class__ is not _cls_: return _made_({passed_on})\n",
        "    _set_(self, '__class__', _twin_)\n",
        *(f"{line}\n" for line in lines),
        "    self.__class__ = _cls_\n",
    )
    exec("".join(source), scope)  # noqa: S102 - as dataclasses do; it has names of fields only
    init: Any = scope["__init__"]
    init.__defaults__, init.__kwdefaults__ = made.__defaults__, made.__kwdefaults__
    init.__annotations__, init.__qualname__ = made.__annotations__, made.__qualname__
    init.__module__ = cls.__module__
    return init


def _refuse_change(_record: Record, name: str, _value: object = None) -> NoReturn:
    raise FrozenInstanceError(f"{name!r} cannot be changed; dataclasses.replace() makes a copy.")


def _plain_field(value: Any, name: str) -> Any:
    """Return `plain` of a record's own field: figures rounded, and what is JSON as its values."""
    places = _PLACES.get(name.rpartition("_")[2])
    if places and isinstance(value, float) and math.isfinite(value):
        return round(value, places)
    if isinstance(value, str) and name.endswith("_json"):
        value = json.loads(value)
    return plain(value)


def plain(value: Any) -> Any:
    """Return a value of JSON that says the same, as far as JSON can; None for what it cannot."""
    match value:
        case Enum():
            found = plain(value.value)
        case str():
            found = str.__str__(value)
        case bytes() | bytearray():
            found = value.decode(errors="backslashreplace")
        case None | int():  # also True and False
            found = value
        case Integral():
            found = int(value)
        case Real():
            found = float(value) if math.isfinite(value) else None
        case _:
            found = _plain_of_many(value)
    return found


def _plain_of_many(value: Any) -> Any:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Record):
        return value.to_dict()
    if hasattr(value, "to_dict") or hasattr(value, "model_dump"):
        return plain(_dumped(value))
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, BaseException):
        value = {"error": type(value).__name__, "message": str(value)}
    if isinstance(value, Mapping):
        return {_plain_name(name): plain(each) for name, each in value.items()}
    if isinstance(value, Iterable):
        each = map(plain, value)
        return sorted(each, key=str) if isinstance(value, AbstractSet) else list(each)
    return _as_pydantic_has_it(value)


def _dumped(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    try:
        return value.model_dump(mode="json")
    except (TypeError, ValueError):  # a set as a key, bytes that are no text
        return value.model_dump()


def _as_pydantic_has_it(value: Any) -> Any:
    """Return a date and the like as text; None for what JSON cannot hold."""
    from pydantic_core import to_jsonable_python  # noqa: PLC0415 - seldom needed

    try:
        return to_jsonable_python(value)
    except ValueError:
        return None


def _plain_name(name: Any) -> str:
    """Return the key of a mapping as `json` writes it."""
    name = plain(name)
    return name if isinstance(name, str) else json.dumps(name)


def shown_cost(cost_usd: float | None) -> str | None:
    """Return a cost with two figures that count, for a repr; None if it is not known."""
    if cost_usd is None:
        return None
    places = 2 if cost_usd == 0 else max(2, 1 - math.floor(math.log10(abs(cost_usd))))
    return f"${cost_usd:.{min(places, 12)}f}"
