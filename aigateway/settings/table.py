"""A record of settings, read from keywords, the environment, `.env` and a table of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from aigateway.errors import ConfigurationError
from aigateway.settings.explain import explain, unknown_name
from aigateway.settings.fields import Frozen
from aigateway.settings.sources import File, Variables

__all__ = ["TableSettings", "table_config"]


def table_config(prefix: str) -> SettingsConfigDict:
    """How a record of settings is read whose variables begin with `prefix`."""
    return SettingsConfigDict(
        frozen=True,
        env_prefix=prefix,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        dotenv_filtering="only_existing",
        extra="ignore",  # unknown names are refused below, with the place they were read from
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class TableSettings(Frozen, BaseSettings):
    """The base: each field may be a keyword, a variable, or a key in `[table]` of the file.

    Raises:
        ConfigurationError: A value cannot work, or a keyword, a variable with the prefix or a key
            in the table is not known; the message names it, where it was read, and the fix.
    """

    table: ClassVar[str]
    """The table of `aigateway.toml`."""

    if not TYPE_CHECKING:  # type checkers see the fields themselves

        def __init__(self, /, **values: Any) -> None:
            problem = unknown_name("setting", values, type(self).model_fields)
            if problem is None:
                Variables()  # refuses a broken .env, which pydantic would let through raw
                try:
                    super().__init__(**values)
                except ValidationError as error:
                    problem = explain(error, self._places(values))
                except (SettingsError, RecursionError):
                    problem = self._broken_json()
            if problem is not None:  # raised here, so that pydantic's error is not its context
                raise ConfigurationError(f"{type(self).__name__}: {problem}")

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings from every source; the constructor, by a name that says so.

        Args:
            **overrides: Fields that stand over the environment and the files.

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
        """Order the sources, and refuse names in them that no setting has."""
        variables = Variables()
        file = File(variables)
        variables.refuse_unknown(cls.model_fields, cls._prefix())
        values = file.table(cls.table)
        problem = unknown_name("setting", values, cls.model_fields)
        if problem is not None:
            raise ConfigurationError(f"{file.path}, [{cls.table}]: {problem}")
        table = InitSettingsSource(settings_cls, init_kwargs=values)
        return init_settings, env_settings, dotenv_settings, table

    @classmethod
    def _prefix(cls) -> str:
        return cls.model_config["env_prefix"]

    @classmethod
    def _broken_json(cls) -> str:
        """What to say of a variable that should be JSON and is not."""
        return "a variable that must be JSON is not"

    @classmethod
    def _places(cls, keywords: Iterable[str]) -> dict[str, str]:
        """Where each setting that is not a default was read."""
        variables = Variables()
        file = File(variables)
        prefix = cls._prefix()
        places = dict.fromkeys(file.table(cls.table), str(file.path))
        for name in variables.settings(prefix):
            places[name[len(prefix) :].lower()] = f"{name} in the environment or .env"
        return places | dict.fromkeys(keywords, "keyword")
