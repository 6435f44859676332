"""Where values are read from: the environment, `.env` and `aigateway.toml`.

Reading keeps keys out of sight: what holds them shows nothing of them, in no traceback either.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr

from aigateway.errors import ConfigurationError
from aigateway.settings.explain import suggestion, unknown_name

__all__ = ["PREFIX", "SERVER_PREFIX", "File", "Variables", "settings_file"]

PREFIX = "AIGATEWAY_"
SERVER_PREFIX = "AIGATEWAY_SERVER_"
_CONFIG_VARIABLE = "AIGATEWAY_CONFIG"
_TOML_NAME = "aigateway.toml"


class Variables:
    """The environment over `.env`, without empty values.

    A class rather than a dict so that a traceback printed with its locals shows no key.
    """

    __slots__ = ("_values",)

    def __init__(self, env: Mapping[str, str] | None = None, dotenv: Path | None = None) -> None:
        found = {name: value for name, value in _read_dotenv(dotenv).items() if value}
        found |= {n: v for n, v in (os.environ if env is None else env).items() if v}
        self._values = found

    def get(self, name: str) -> str | None:
        """The value; None if it is unset or empty."""
        return self._values.get(name)

    def key(self, name: str) -> SecretStr | None:
        """The value, wrapped so that nothing prints it."""
        return SecretStr(self._values[name]) if name in self._values else None

    def settings(self, prefix: str = PREFIX) -> list[str]:
        """Names of our own variables. Like pydantic, we do not look at their case.

        The server's begin as the gateway's do, and are none of those.
        """
        names = [name for name in self._values if name.upper().startswith(prefix)]
        if prefix == PREFIX:
            return [name for name in names if not name.upper().startswith(SERVER_PREFIX)]
        return names

    def refuse_unknown(self, fields: Iterable[str], prefix: str = PREFIX) -> None:
        """Raise for a variable that looks like a setting and is none."""
        known = [f"{prefix}{field.upper()}" for field in fields]
        if prefix == PREFIX:
            known.insert(0, _CONFIG_VARIABLE)
        for name in self.settings(prefix):
            if name.upper() not in known:
                hint = suggestion(name.upper(), known)
                raise ConfigurationError(
                    f"{name} (environment or .env) is no setting{hint}; rename it or unset it."
                )


class File:
    """What `aigateway.toml` holds; like `Variables`, its repr shows nothing of it."""

    __slots__ = ("gateway", "path", "providers", "server")

    def __init__(self, variables: Variables, path: Path | None = None) -> None:
        named = path or variables.get(_CONFIG_VARIABLE)
        self.path = _expanded(named or _TOML_NAME)
        self.gateway: dict[str, Any] = {}
        self.server: dict[str, Any] = {}
        self.providers: list[dict[str, Any]] = []
        if not named and not self.path.is_file():
            return
        content = _read_toml(self.path)
        self.gateway = content.pop("gateway", {})
        self.server = content.pop("server", {})
        self.providers = content.pop("providers", [])
        problem = unknown_name("table", content, ("gateway", "providers", "server"))
        if problem is not None:
            content.clear()  # it may hold a key, under [[provider]] say
            raise ConfigurationError(f"{self.path}: {problem}.")
        for name in ("gateway", "server"):
            if not _are_tables([self.table(name)]):
                raise ConfigurationError(f"{self.path}: {name} must be a table, headed [{name}].")
        if not _are_tables(self.providers):
            raise ConfigurationError(
                f"{self.path}: providers must be tables, each headed [[providers]]."
            )

    def table(self, name: str) -> dict[str, Any]:
        """What stands under `[gateway]` or `[server]`."""
        found: dict[str, Any] = {"gateway": self.gateway, "server": self.server}[name]
        return found


def settings_file() -> Path:
    """Where `aigateway.toml` is looked for, whether it is there or not.

    Raises:
        ConfigurationError: `.env`, which may say it, cannot be read.
    """
    return _expanded(Variables().get(_CONFIG_VARIABLE) or _TOML_NAME)


def _expanded(name: str | Path) -> Path:
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # there is no such user: nor such a file
        return path.expanduser()
    return path


def _are_tables(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _read_dotenv(path: Path | None) -> dict[str, str | None]:
    file = path or Path(".env")
    if path is None and not file.is_file():  # a directory of that name is a virtual environment
        return {}
    try:
        # A stream, not a path: a path that is missing would be silently empty.
        with file.open(encoding="utf-8") as stream:
            return dotenv_values(stream=stream)
    except UnicodeDecodeError:
        problem = "is not UTF-8; save it as that"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise ConfigurationError(f"{file} {problem}.")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:  # its text has line and column, but no values
        problem = f"is not valid TOML: {error}; correct that line"
    except UnicodeDecodeError:
        problem = "is not UTF-8; save it as that"
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); correct {_CONFIG_VARIABLE} or the file"
    except (RecursionError, ValueError):  # also of a path with a NUL in it
        problem = "cannot be read: it is nested too deeply, or holds a number that is too long"
    raise ConfigurationError(f"{path} {problem}.")
