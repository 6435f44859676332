"""Checked kinds of values, the frozen base of all settings, and the texts of configuration errors.

A message names the field, where it was read, and what was probably meant. It never quotes a value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, Never, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError

from aigateway.errors import ConfigurationError
from aigateway.settings.secrets import keep_secret

__all__ = [
    "CacheUrl",
    "Count",
    "CountOrZero",
    "DollarsOrZero",
    "Frozen",
    "Header",
    "Key",
    "KeyFunction",
    "Label",
    "Percent",
    "Positive",
    "Seconds",
    "SecondsOrZero",
    "Url",
    "checked_key",
    "explain",
    "is_token",
    "suggestion",
    "unknown_name",
]


def _label(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("must be visible text without whitespace at its ends")
    return text


def _key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text.strip():
        raise ValueError("is empty; give the key, or None where none is needed")
    if not text.isascii() or not text.isprintable() or " " in text:
        # It could not be sent as a header. A line break at the end is the usual case.
        raise ValueError("has whitespace or a character that keys do not have; use .strip()")
    return key


def checked_key(given: object) -> SecretStr:
    """Check a key that a function returned, and keep it out of logs and errors.

    Raises:
        TypeError: It is no text.
        ValueError: It cannot be sent as a key.
    """
    if not isinstance(given, str):
        raise TypeError(type(given).__name__)
    key = _key(SecretStr(given))
    keep_secret((given,))
    return key


def is_token(key: str) -> bool:
    """Return whether a key is a JSON Web Token, as Entra ID issues them."""
    return key.startswith("eyJ") and key.count(".") == 2


def _header(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("has a line break or another character that headers cannot carry")
    return value


_BRACKETS = re.compile(r"(?!.*[\[\]])|\[[^\[\]]+\](:\d*)?\Z", re.DOTALL)
"""Brackets stand around the whole of an IPv6 address, or nowhere (RFC 3986, section 3.2.2)."""


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("ascii").decode("idna")  # as it is looked up
        sound = parts.scheme in {"http", "https"} and host and parts.port != 0
        sound = bool(sound and _BRACKETS.match(parts.netloc))
    except ValueError:  # its text would quote the URL
        sound = False
    if not sound or not url.isprintable() or " " in url:
        raise ValueError('must be a URL like "https://host/v1"')
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user or password; use api_key or headers")
    if parts.query or parts.fragment:
        raise ValueError('must end before "?" or "#"; give a key as api_key')
    return url.rstrip("/?#")


def _cache_url(url: str) -> str:
    scheme, _, path = url.partition("://")
    if url == "memory://":
        return url
    if scheme in {"redis", "rediss", "valkey"}:
        raise ValueError("answers are in the Redis of redis_url; leave cache_url out")
    if path == "/:memory:":
        raise ValueError('is no file; "memory://" keeps answers in memory alone')
    if scheme != "sqlite" or not path.startswith("/") or path.endswith("/") or "?" in path:
        raise ValueError(
            'must be a file like "sqlite:///cache.db", with four slashes if its path is absolute,'
            ' or "memory://"'
        )
    return url


CacheUrl = Annotated[str, AfterValidator(_cache_url)]
Label = Annotated[str, AfterValidator(_label)]
Key = Annotated[SecretStr, AfterValidator(_key)]
KeyFunction = Callable[[], str | Awaitable[str]]
"""Returns the current key. A function that is not async is called in a thread."""
Url = Annotated[str, AfterValidator(_url)]
Header = Annotated[str, AfterValidator(_header)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Positive
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DollarsOrZero = SecondsOrZero
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class Frozen(BaseModel):
    """Rejects changes, and validates any mapping; raises `ConfigurationError`."""

    def __setattr__(self, name: str, value: object) -> None:
        del value  # it may be a key, and a traceback printed with its locals would show it
        self._refuse_change(name)

    def __delattr__(self, name: str) -> None:
        self._refuse_change(name)

    def _refuse_change(self, name: str) -> Never:
        kind = type(self).__name__
        raise ConfigurationError(f"{kind}.{name} cannot be changed; make another {kind}.")

    @classmethod
    def model_validate(cls, obj: Any, **_options: Any) -> Self:
        """Make one from a mapping of its fields.

        Raises:
            ConfigurationError: A field is missing, unknown or wrong.
        """
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise ConfigurationError(f"{cls.__name__} is made from a mapping of its fields.")
        return cls(**{str(name): value for name, value in obj.items()})


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "..."?` if a known name resembles `name`, else an empty text."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if not near:  # "budgt" is near the first word of "budget_usd" only
        words = {each.partition("_")[0]: each for each in reversed(names)}
        near = [words[word] for word in difflib.get_close_matches(name, list(words), n=1)]
    return f'; did you mean "{near[0]}"?' if near else ""


def unknown_name(kind: str, given: Iterable[str], known: Iterable[str]) -> str | None:
    """Return a message about the first name that is not known, or None if all are."""
    for name in given:
        if name not in known:
            return f'there is no {kind} "{name}"{suggestion(name, known)}'
    return None


def explain(error: ValidationError, places: Mapping[str, str] | None = None) -> str:
    """Return all problems that pydantic found on one line, without the values."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "there is no such setting; leave it out, or correct its name"
        parts = [str(part) for part in detail["loc"] if "[" not in str(part)]  # else pydantic's own
        if parts[1:] == ["callable"]:
            continue  # of a key that may also be a function; the other kind says what is wrong
        field = ".".join(parts)
        place = (places or {}).get(field.partition(".")[0])
        given = f" ({place})" if place else ""
        problems.append(f"{field}{given}: {message}" if field else message)
    return "; ".join(problems)
