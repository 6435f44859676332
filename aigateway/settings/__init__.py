"""What can be configured, where it is read from, and why it was refused.

Three records: `LLMConfig` is one provider, `GatewaySettings` is everything else about the gateway,
`ServerSettings` what the service adds. All are frozen, checked when they are made, and raise
`ConfigurationError` with one message that names the field and never a key's value. Nothing here
knows how a provider is called.

A value is taken from the first of: keyword, environment, `.env` in the current directory,
`aigateway.toml` (or the file that `AIGATEWAY_CONFIG` names), default. A name nobody knows is an
error in each of them: a setting with a typo must not be silently without effect. For the same
reason an empty environment variable counts as unset.
"""

from __future__ import annotations

from aigateway.settings.explain import suggestion
from aigateway.settings.fields import KeyFunction, checked_key, is_token
from aigateway.settings.gateway import GatewaySettings
from aigateway.settings.load import load_providers
from aigateway.settings.provider import LLMConfig, ProviderType
from aigateway.settings.server import ApiKey, ServerSettings
from aigateway.settings.sources import settings_file

__all__ = [
    "ApiKey",
    "GatewaySettings",
    "KeyFunction",
    "LLMConfig",
    "ProviderType",
    "ServerSettings",
    "checked_key",
    "is_token",
    "load_providers",
    "settings_file",
    "suggestion",
]
