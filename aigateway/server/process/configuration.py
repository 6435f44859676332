"""Everything that is configured, read at once: what a service starts from, and reloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aigateway.errors import NoProvidersError
from aigateway.events import Hook
from aigateway.gateway import AsyncGateway
from aigateway.routing.candidates import NO_PROVIDERS
from aigateway.settings import GatewaySettings, LLMConfig, ServerSettings, load_providers

__all__ = ["MAX_CONCURRENCY", "NEEDS_RESTART", "Configuration", "Read", "read_configuration"]

MAX_CONCURRENCY = 2048
"""Calls to vendors in flight at once, of one process, where nobody sets it. A service asks for many
callers, and `max_connections` bounds those: a thousand slow streams must not wait for each other.
"""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was read, from every source.

    Attributes:
        gateway: `[gateway]`, with the service's own default for `max_concurrency`.
        server: `[server]`.
        providers: Whom to ask.
    """

    gateway: GatewaySettings
    server: ServerSettings
    providers: tuple[LLMConfig, ...]

    def make_gateway(self, hooks: Iterable[Hook] = ()) -> AsyncGateway:
        """Make a gateway of it. Opens nothing, so it may be thrown away again.

        Args:
            hooks: Get its events.

        Raises:
            ConfigurationError: The providers cannot be together.
        """
        return AsyncGateway(self.providers, settings=self.gateway, hooks=hooks)

    def beside(self, running: Configuration) -> Configuration:
        """What of it can be in force in a service that runs with another one.

        Raises:
            ConfigurationError: It cannot work with what only a restart changes: without keys, say,
                while it listens where others reach it.
        """
        fields = {
            name: getattr(running.server if name in NEEDS_RESTART else self.server, name)
            for name in ServerSettings.model_fields
        }
        return replace(self, server=ServerSettings(**fields))


NEEDS_RESTART = ("host", "port", "workers", "cors_origins", "otel")
"""What of `[server]` a socket, a process or the application was made with."""

Read = Callable[[], Configuration]
"""Reads everything anew; raises `ConfigurationError`."""


def read_configuration(
    overrides: Mapping[str, Any], providers: Sequence[LLMConfig] | None = None
) -> Configuration:
    """Read everything, and see that it can work together.

    Args:
        overrides: Fields of `ServerSettings` from the command line.
        providers: Whom to ask, whatever is configured; None reads that too.

    Raises:
        ConfigurationError: Something cannot work.
        NoProvidersError: There is nobody to ask.
    """
    server = ServerSettings.load(**overrides)
    found = load_providers() if providers is None else tuple(providers)
    configuration = Configuration(_gateway_settings(), server, found)
    if not found:
        raise NoProvidersError(NO_PROVIDERS)
    configuration.make_gateway()  # two of one name, say
    return configuration


def _gateway_settings() -> GatewaySettings:
    settings = GatewaySettings.load()
    if "max_concurrency" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"max_concurrency": MAX_CONCURRENCY})
