"""Providers out of `aigateway.toml`, or else out of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aigateway.errors import ConfigurationError
from aigateway.settings.provider import VENDORS, LLMConfig, ProviderType, Vendor
from aigateway.settings.sources import File, Variables

__all__ = ["load_providers"]


def load_providers(
    env: Mapping[str, str] | None = None, dotenv: Path | None = None, toml: Path | None = None
) -> tuple[LLMConfig, ...]:
    """Read the providers from `aigateway.toml`, or else from the environment and `.env`.

    A file with `[[providers]]` says exactly who is asked: the environment then adds nobody, and
    only lends its keys. An entry has the fields of `LLMConfig`; instead of `api_key` it may give
    `api_key_env`, the name of a variable, and with neither the vendor's own variable is read.

    From the environment, Azure's model is `AZURE_OPENAI_DEPLOYMENT`; `AZURE_OPENAI_MODEL` is an
    alias for it, and the name its price is looked up by.

    Args:
        env: The environment; None is the process's own.
        dotenv: Read instead of `.env` in the current directory; must exist.
        toml: Read instead of `AIGATEWAY_CONFIG` or `aigateway.toml`; must exist.

    Returns:
        One configuration per provider; empty if nothing is configured.

    Raises:
        ConfigurationError: A file cannot be read, or a provider is incomplete or wrong.
    """
    variables = Variables(env, dotenv)
    del env  # so that no traceback printed with its locals shows a key
    file = File(variables, toml)
    if file.providers:
        return tuple(
            _from_table(f"{file.path}, providers[{index}]", table, variables)
            for index, table in enumerate(file.providers)
        )
    return tuple(
        _from_variables(provider, vendor, variables)
        for provider, vendor in VENDORS.items()
        if variables.get(f"{vendor.prefix}API_KEY") is not None
    )


def _from_variables(provider: ProviderType, vendor: Vendor, variables: Variables) -> LLMConfig:
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
        # There `model` is the deployment; what runs behind it is another name for it, and what
        # its price goes by.
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
    return _build(f"{prefix}* variables (environment or .env)", fields)


def _from_table(place: str, table: dict[str, Any], variables: Variables) -> LLMConfig:
    provider = table.get("provider")
    variable = table.pop("api_key_env", None)
    if variable is not None:
        key = variables.key(variable) if isinstance(variable, str) else None
        if key is None or "api_key" in table:
            table.clear()
            raise ConfigurationError(
                f"{place}: api_key_env must name a variable that is set, and stand without api_key."
            )
        table["api_key"] = key
    elif "api_key" not in table and isinstance(provider, str) and provider in VENDORS:
        table["api_key"] = variables.key(f"{VENDORS[ProviderType(provider)].prefix}API_KEY")
    return _build(place, table)


def _build(place: str, fields: dict[str, Any]) -> LLMConfig:
    try:
        return LLMConfig(**fields)
    except ConfigurationError as error:
        problem = str(error)
    fields.clear()
    raise ConfigurationError(f"{place}: {problem}")
