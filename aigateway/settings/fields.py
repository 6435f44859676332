"""What both records are made of: checked kinds of values, and a base that cannot be changed."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Never, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr

from aigateway.errors import ConfigurationError
from aigateway.settings.secrets import keep_secret

__all__ = [
    "Count",
    "CountOrZero",
    "Frozen",
    "Header",
    "Key",
    "KeyFunction",
    "Label",
    "Percent",
    "Seconds",
    "SecondsOrZero",
    "Url",
    "checked_key",
    "is_token",
]


def _label(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("must be visible text with no whitespace at its ends")
    return text


def _key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text.strip():
        raise ValueError("is empty; give the key, or None where none is needed")
    if not text.isascii() or not text.isprintable() or " " in text:
        # It could not be sent as a header. A line break at the end is the usual case.
        raise ValueError("holds whitespace or a character no key has; read it with .strip()")
    return key


def checked_key(given: object) -> SecretStr:
    """Check what a function has given as a key, and see that no log or error quotes it.

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
    """Whether a key is a JSON Web Token, as Entra ID gives them, and no key of a vendor's own."""
    return key.startswith("eyJ") and key.count(".") == 2


def _header(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("holds a line break or another character no header can carry")
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
        raise ValueError("must hold no user or password; use api_key or headers")
    if parts.query or parts.fragment:
        raise ValueError('must have nothing from "?" or "#" on; a key is for api_key')
    return url.rstrip("/?#")


Label = Annotated[str, AfterValidator(_label)]
Key = Annotated[SecretStr, AfterValidator(_key)]
KeyFunction = Callable[[], str | Awaitable[str]]
"""Gives the key as it is now. One that is not async is called in a thread."""
Url = Annotated[str, AfterValidator(_url)]
Header = Annotated[str, AfterValidator(_header)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class Frozen(BaseModel):
    """Refuses changes, and validates any mapping, with our own error."""

    def __setattr__(self, name: str, value: object) -> None:
        del value  # no traceback printed with its locals shows it, should it be a key
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
