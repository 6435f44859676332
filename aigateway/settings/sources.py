"""Read settings and providers from keywords, the environment, `.env` and `aigateway.toml`.

Objects here that hold keys show nothing of them, also not in a traceback printed with its locals.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from aigateway.errors import ConfigurationError
from aigateway.settings.fields import Frozen, explain, suggestion, unknown_name
from aigateway.settings.provider import (
    VENDORS,
    LLMConfig,
    ProviderType,
    Vendor,
    with_distinct_names,
)

__all__ = [
    "PREFIX",
    "SERVER_PREFIX",
    "FoundProvider",
    "TableSettings",
    "environment_providers",
    "expanded",
    "load_providers",
    "place_of_variable",
    "read_providers",
    "settings_file",
    "variable_value",
]

PREFIX = "AIGATEWAY_"
SERVER_PREFIX = "AIGATEWAY_SERVER_"
_CONFIG_VARIABLE = "AIGATEWAY_CONFIG"
_TOML_NAME = "aigateway.toml"


class _Variables:
    """The environment over `.env`, without empty values.

    A class and not a dict, so that a traceback printed with its locals shows no key.
    """

    __slots__ = ("_environment", "_values")

    def __init__(self, env: Mapping[str, str] | None = None, dotenv: Path | None = None) -> None:
        found = {name: value for name, value in _read_dotenv(dotenv).items() if value}
        environment = {n: v for n, v in (os.environ if env is None else env).items() if v}
        self._environment = frozenset(environment)
        self._values = found | environment

    def place(self, name: str) -> str | None:
        """Return where the variable is set, without its value; None if it is not."""
        if name not in self._values:
            return None
        return f"{name} in {'the environment' if name in self._environment else '.env'}"

    def get(self, name: str) -> str | None:
        """Return the value; None if it is unset or empty."""
        return self._values.get(name)

    def key(self, name: str) -> SecretStr | None:
        """Return the value, wrapped so that nothing prints it."""
        return SecretStr(self._values[name]) if name in self._values else None

    def with_prefix(self, prefix: str = PREFIX) -> list[str]:
        """Return the variables with this prefix, in any case, as pydantic reads them.

        The server's variables have the gateway's prefix too, and are left out there.
        """
        names = [name for name in self._values if name.upper().startswith(prefix)]
        if prefix == PREFIX:
            return [name for name in names if not name.upper().startswith(SERVER_PREFIX)]
        return names

    def refuse_unknown(self, fields: Iterable[str], prefix: str = PREFIX) -> None:
        """Raise for a variable that has the prefix and names no setting."""
        known = [f"{prefix}{field.upper()}" for field in fields]
        if prefix == PREFIX:
            known.insert(0, _CONFIG_VARIABLE)
        for name in self.with_prefix(prefix):
            if name.upper() not in known:
                hint = suggestion(name.upper(), known)
                raise ConfigurationError(
                    f"{name} (environment or .env) is no setting{hint}; rename or unset it."
                )


class _File:
    """The content of `aigateway.toml`; like `_Variables`, its repr shows nothing of it."""

    __slots__ = ("path", "providers", "tables")

    def __init__(self, variables: _Variables, path: Path | None = None) -> None:
        named = path or variables.get(_CONFIG_VARIABLE)
        self.path = expanded(named or _TOML_NAME)
        self.tables: dict[str, dict[str, Any]] = {"gateway": {}, "server": {}}
        self.providers: list[dict[str, Any]] = []
        if not named and not self.path.is_file():
            return
        content = _read_toml(self.path)
        for name in self.tables:
            self.tables[name] = content.pop(name, {})
        self.providers = content.pop("providers", [])
        problem = unknown_name("table", content, ("gateway", "providers", "server"))
        if problem is not None:
            content.clear()  # it may hold a key, under [[provider]] say
            raise ConfigurationError(f"{self.path}: {problem}.")
        for name, table in self.tables.items():
            if not _are_tables([table]):
                raise ConfigurationError(f"{self.path}: {name} must be a table, headed [{name}].")
        if not _are_tables(self.providers):
            raise ConfigurationError(
                f"{self.path}: providers must be tables, each headed [[providers]]."
            )


def place_of_variable(name: str) -> str | None:
    """Return where a variable is set ("NAME in .env"), without its value; None if it is not.

    Raises:
        ConfigurationError: `.env` cannot be read.
    """
    return _Variables().place(name)


def variable_value(name: str) -> str | None:
    """Return a variable that holds no secret, from the environment or `.env`; None if not set.

    Raises:
        ConfigurationError: `.env` cannot be read.
    """
    return _Variables().get(name)


def settings_file() -> Path:
    """Return where `aigateway.toml` is looked for, whether it exists or not.

    Raises:
        ConfigurationError: `.env`, which may name the file, cannot be read.
    """
    return expanded(_Variables().get(_CONFIG_VARIABLE) or _TOML_NAME)


def expanded(name: str | Path) -> Path:
    """Return a path with `~` as the home directory that it stands for."""
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # no such user, so no such file
        return path.expanduser()
    return path


def _are_tables(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _read_dotenv(path: Path | None) -> dict[str, str | None]:
    file = path or Path(".env")
    if path is None and not file.is_file():  # a directory of that name is a virtual environment
        return {}
    try:
        # A stream, not a path: a missing path would silently be empty.
        with file.open(encoding="utf-8-sig") as stream:
            return dotenv_values(stream=stream)
    except UnicodeDecodeError:
        problem = "is not UTF-8; save it as that"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise ConfigurationError(f"{file} {problem}.")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows may write a mark
    except tomllib.TOMLDecodeError as error:  # its text holds no values
        problem = f"is not valid TOML: {error}; correct that line"
    except UnicodeDecodeError:
        problem = "is not UTF-8; save it as that"
    except OSError as error:
        problem = (
            f"cannot be read ({error.strerror}); correct --config, {_CONFIG_VARIABLE} or the file"
        )
    except (RecursionError, ValueError):  # also of a path with a NUL in it
        problem = "cannot be read: it is nested too deeply, or a number in it is too long"
    raise ConfigurationError(f"{path} {problem}.")


class TableSettings(Frozen, BaseSettings):
    """The base: each field may be a keyword, a variable, or a key in `[table]` of the file.

    Raises:
        ConfigurationError: A value cannot work, or a keyword, a variable with the prefix or a key
            in the table is not known; the message names it, where it was read, and the fix.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_file=".env",
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        dotenv_filtering="only_existing",
        extra="ignore",  # unknown names are rejected below, with the place they were read from
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )
    table: ClassVar[str]
    """The table of `aigateway.toml`."""
    _broken_json: ClassVar[str]
    """The message for a variable that must be JSON and is not."""

    if not TYPE_CHECKING:  # type checkers see the fields themselves

        def __init__(self, /, **values: Any) -> None:
            problem = unknown_name("setting", values, type(self).model_fields)
            if problem is None:
                _Variables()  # raises for a broken .env, whose error pydantic would not wrap
                try:
                    super().__init__(**values)
                except ValidationError as error:
                    problem = explain(error, self.places(values))
                except (SettingsError, RecursionError):
                    problem = self._broken_json
            if problem is not None:  # raised here, so that pydantic's error is not its context
                raise ConfigurationError(f"{type(self).__name__}: {problem}")

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings from every source, as the constructor does.

        Args:
            **overrides: Fields that take precedence over the environment and the files.

        Raises:
            ConfigurationError: As the constructor.
        """
        return cls(**overrides)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, and reject unknown names in them."""
        variables = _Variables()
        file = _File(variables)
        variables.refuse_unknown(cls.model_fields, cls.model_config["env_prefix"])
        values = file.tables[cls.table]
        problem = unknown_name("setting", values, cls.model_fields)
        if problem is not None:
            raise ConfigurationError(f"{file.path}, [{cls.table}]: {problem}")
        table = InitSettingsSource(settings_cls, init_kwargs=values)
        return init_settings, env_settings, dotenv_settings, table

    @classmethod
    def places(cls, keywords: Iterable[str] = ()) -> dict[str, str]:
        """Return where each setting that is not a default was read.

        Args:
            keywords: Fields that are given by keyword.

        Raises:
            ConfigurationError: A file cannot be read.
        """
        variables = _Variables()
        file = _File(variables)
        prefix = cls.model_config["env_prefix"]
        places = dict.fromkeys(file.tables[cls.table], str(file.path))
        for name in variables.with_prefix(prefix):
            places[name[len(prefix) :].lower()] = f"{variables.place(name)}"
        return places | dict.fromkeys(keywords, "keyword")


@dataclass(frozen=True, slots=True)
class FoundProvider:
    """A provider, and where it was read; nothing of this shows a key.

    Attributes:
        config: The provider.
        place: The table of the file, or the variables.
        key_place: Where its key was read; None if it has none.
    """

    config: LLMConfig
    place: str
    key_place: str | None


def load_providers(
    env: Mapping[str, str] | None = None, dotenv: Path | None = None, toml: Path | None = None
) -> tuple[LLMConfig, ...]:
    """Read the providers from `aigateway.toml`, or else from the environment and `.env`.

    A file with `[[providers]]` is the whole list: the environment adds no provider, only keys. An
    entry has the fields of `LLMConfig`. Instead of `api_key` it may give `api_key_env`, the name of
    a variable; with neither, the vendor's own variable is read.

    From the environment, Azure's model is `AZURE_OPENAI_DEPLOYMENT`. `AZURE_OPENAI_MODEL` becomes
    an alias, and the name under which its price is looked up.

    Args:
        env: The environment; None is the process's own.
        dotenv: Read instead of `.env` in the current directory; must exist.
        toml: Read instead of `AIGATEWAY_CONFIG` or `aigateway.toml`; must exist.

    Returns:
        One configuration for each provider; empty if nothing is configured.

    Raises:
        ConfigurationError: A file cannot be read, or a provider is incomplete or wrong.
    """
    variables = _Variables(env, dotenv)
    del env  # a traceback printed with its locals would show its keys
    return tuple(found.config for found in _providers(variables, _File(variables, toml)))


def read_providers() -> tuple[FoundProvider, ...]:
    """Read what `load_providers` reads, with the places.

    Raises:
        ConfigurationError: As `load_providers`.
    """
    variables = _Variables()
    return _providers(variables, _File(variables))


def environment_providers() -> tuple[FoundProvider, ...]:
    """Return the providers that the environment and `.env` configure without a file.

    Raises:
        ConfigurationError: As `load_providers`.
    """
    return tuple(_environment_providers(_Variables()))


def _providers(variables: _Variables, file: _File) -> tuple[FoundProvider, ...]:
    if not file.providers:
        return tuple(_environment_providers(variables))
    found = [
        _from_table(f"{file.path}, providers[{index}]", table, variables)
        for index, table in enumerate(file.providers)
    ]
    named = with_distinct_names([provider.config for provider in found])
    return tuple(replace(p, config=config) for p, config in zip(found, named, strict=True))


def _environment_providers(variables: _Variables) -> Iterator[FoundProvider]:
    for provider, vendor in VENDORS.items():
        name = f"{vendor.prefix}API_KEY"
        if variables.get(name) is not None:
            place = f"{vendor.prefix}* variables (environment or .env)"
            config = _from_variables(provider, vendor, variables, place)
            yield FoundProvider(config, place, variables.place(name))


def _from_variables(
    provider: ProviderType, vendor: Vendor, variables: _Variables, place: str
) -> LLMConfig:
    prefix = vendor.prefix
    model = variables.get(f"{prefix}MODEL") or vendor.model
    bases = (variables.get(prefix + name) for name in vendor.bases)
    fields: dict[str, Any] = {
        "provider": provider,
        "model": model,
        "api_key": variables.key(f"{prefix}API_KEY"),
        "api_base": next(filter(None, bases), None),
        "priority": variables.get(f"{prefix}PRIORITY") or vendor.priority,
    }
    if provider is ProviderType.AZURE:
        # `model` is the deployment. The model behind it becomes an alias, and names the price.
        if model is not None:
            fields |= {"aliases": (model,), "extra": {"base_model": model}}
        fields["model"] = variables.get(f"{prefix}DEPLOYMENT")
        fields["api_version"] = variables.get(f"{prefix}API_VERSION")
        needed = {"api_base": f"{prefix}ENDPOINT", "model": f"{prefix}DEPLOYMENT"}
        missing = " and ".join(name for field, name in needed.items() if fields[field] is None)
        if missing:
            fields.clear()
            raise ConfigurationError(
                f"{prefix}API_KEY is set without {missing}; set what is missing, or unset the key."
            )
    return _build(place, fields)


def _from_table(place: str, table: dict[str, Any], variables: _Variables) -> FoundProvider:
    provider = table.get("provider")
    problem = unknown_name("field", table, (*LLMConfig.model_fields, "api_key_env"))
    if problem is not None:
        table.clear()
        raise ConfigurationError(f"{place}: {problem}")
    variable = table.pop("api_key_env", None)
    key_place = f"{place}, api_key" if "api_key" in table else None
    if variable is not None:
        key = variables.key(variable) if isinstance(variable, str) else None
        if key is None or "api_key" in table:
            table.clear()
            # A key that was put there by mistake is not shown.
            named = isinstance(variable, str) and re.fullmatch("[A-Z][A-Z0-9_]*", variable)
            which = f" ({variable} is not)" if key is None and named else ""
            raise ConfigurationError(
                f"{place}: api_key_env must name a variable that is set{which}, and stand without"
                " api_key."
            )
    elif key_place is None and isinstance(provider, str) and provider in VENDORS:
        variable = f"{VENDORS[ProviderType(provider)].prefix}API_KEY"
    if variable is not None:
        table["api_key"] = variables.key(variable)
        key_place = variables.place(variable)
    return FoundProvider(_build(place, table), place, key_place)


def _build(place: str, fields: dict[str, Any]) -> LLMConfig:
    try:
        return LLMConfig(**fields)
    except ConfigurationError as error:
        problem = str(error)
    fields.clear()
    raise ConfigurationError(f"{place}: {problem}")
