"""Settings: their fields, where they are read from, and the messages when they cannot work.

Three records: `LLMConfig` is one provider, `GatewaySettings` is everything else about the gateway,
`ServerSettings` is what the service adds. All are frozen, checked when they are made, and raise
`ConfigurationError` with one message that names the field and never a key's value.

A value is taken from the first of: keyword, environment, `.env` in the current directory,
`aigateway.toml` (or the file that `AIGATEWAY_CONFIG` names), default. An unknown name is an error
in each of them, because a setting with a typo would silently have no effect. An empty environment
variable counts as unset.
"""

from __future__ import annotations

from aigateway.settings.fields import KeyFunction, checked_key, is_token, suggestion
from aigateway.settings.gateway import GatewaySettings, TokenPrices
from aigateway.settings.provider import LLMConfig, ProviderType
from aigateway.settings.server import ApiKey, ServerSettings
from aigateway.settings.sources import (
    FoundProvider,
    environment_providers,
    load_providers,
    place_of_variable,
    read_providers,
    settings_file,
    variable_value,
)

__all__ = [
    "ApiKey",
    "FoundProvider",
    "GatewaySettings",
    "KeyFunction",
    "LLMConfig",
    "ProviderType",
    "ServerSettings",
    "TokenPrices",
    "checked_key",
    "environment_providers",
    "is_token",
    "load_providers",
    "place_of_variable",
    "read_providers",
    "settings_file",
    "suggestion",
    "variable_value",
]
