"""The whole configuration of a service, read at once, and the descriptors that it needs."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from aigateway.errors import ConfigurationError, NoProvidersError
from aigateway.events import Hook
from aigateway.gateway import AsyncGateway
from aigateway.routing.candidates import NO_PROVIDERS
from aigateway.settings import GatewaySettings, LLMConfig, ServerSettings, load_providers
from aigateway.settings.provider import with_distinct_names
from aigateway.telemetry.log import log_event

__all__ = [
    "MAX_CONCURRENCY",
    "NEEDS_RESTART",
    "Configuration",
    "Read",
    "raise_descriptor_limit",
    "read_configuration",
]

MAX_CONCURRENCY = 2048
"""Calls to vendors in flight in one process, unless set. `max_connections` bounds callers: a
thousand slow streams must not wait for each other."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was read from all sources.

    Attributes:
        gateway: `[gateway]`, with the service's own defaults for `max_concurrency` and `freeze_gc`.
        server: `[server]`.
        providers: The providers.
    """

    gateway: GatewaySettings
    server: ServerSettings
    providers: tuple[LLMConfig, ...]

    def make_gateway(self, hooks: Iterable[Hook] = ()) -> AsyncGateway:
        """Make a gateway. It opens nothing before its first request.

        Args:
            hooks: Get its events.

        Raises:
            ConfigurationError: Two providers conflict.
        """
        return AsyncGateway(self.providers, settings=self.gateway, hooks=hooks)

    def without_restart_changes(self, running: Configuration) -> Configuration:
        """Return the part of it that a running service can take over without a restart.

        Raises:
            ConfigurationError: It conflicts with what only a restart changes, such as no keys while
                it listens on a public address.
        """
        fields = {
            name: getattr(running.server if name in NEEDS_RESTART else self.server, name)
            for name in ServerSettings.model_fields
        }
        providers = with_distinct_names(self.providers, before=running.providers)
        return replace(self, server=ServerSettings(**fields), providers=providers)


NEEDS_RESTART = ("host", "port", "workers", "cors_origins", "otel", "state_dir")
"""Fields of `[server]` that a reload cannot change."""

Read = Callable[[], Configuration]
"""Reads everything again; raises `ConfigurationError`."""


def read_configuration(
    overrides: Mapping[str, Any], providers: Sequence[LLMConfig] | None = None
) -> Configuration:
    """Read everything and check that it works together.

    Args:
        overrides: Fields of `ServerSettings` from the command line.
        providers: Used in place of the configured ones.

    Raises:
        ConfigurationError: Something cannot work.
        NoProvidersError: No provider is configured.
    """
    server = ServerSettings.load(**overrides)
    found = load_providers() if providers is None else with_distinct_names(providers)
    gateway = GatewaySettings.load().with_defaults(max_concurrency=MAX_CONCURRENCY, freeze_gc=True)
    configuration = Configuration(gateway, server, found)
    if not found:
        raise NoProvidersError(NO_PROVIDERS)
    configuration.make_gateway()  # two of one name, say
    for provider in found:
        _check_is_elsewhere(provider, server)
    return configuration


_HERE = frozenset({"0.0.0.0", "127.0.0.1", "::", "::1", "localhost"})  # noqa: S104 - compared only


def _check_is_elsewhere(provider: LLMConfig, server: ServerSettings) -> None:
    """Raise `ConfigurationError` for a provider that is this service: it would call itself."""
    base = urlsplit(provider.api_base or "")
    port = base.port or (443 if base.scheme == "https" else 80)
    here = _HERE if server.host in _HERE else {server.host}
    if port == server.port and base.hostname in here:
        variable = f"{provider.provider.upper()}_BASE_URL"
        raise ConfigurationError(
            f"{provider.name}: api_base is {provider.api_base}, where this service itself listens."
            f" Clients read its address from {variable}; the service reads the same variable for"
            " the address of a provider. Unset it where the service starts."
        )


# ── descriptors ──────────────────────────────────────────────────────────────────────────────────

_OTHER_DESCRIPTORS = 64
"""Descriptors that are neither a caller's nor a vendor's connection."""


def raise_descriptor_limit(configuration: Configuration) -> None:
    """Raise this process's limit of open files and sockets, and log it if it is still too low.

    Many systems start a process with 1,024. Processes that it forks inherit the limit.
    """
    connections = configuration.server.max_connections
    calls = configuration.gateway.max_concurrency
    needed = connections + calls + _OTHER_DESCRIPTORS
    allowed = _raised_limit(needed)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        log_event(
            logging.WARNING,
            "descriptors.few",
            "This process may open {allowed} files and sockets; max_connections = {max_connections}"
            " and max_concurrency = {max_concurrency} can need {needed}. Beyond that, connections"
            " and calls fail. Raise the hard limit (ulimit -Hn, LimitNOFILE=, --ulimit nofile=), or"
            " lower these settings.",
            allowed=allowed,
            max_connections=connections,
            max_concurrency=calls,
            needed=needed,
        )


def _raised_limit(needed: int) -> int:
    """Raise the limit as far as possible and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wish in (hard, needed):  # macOS reports "unlimited" and allows less
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))
            return wish
    return soft
