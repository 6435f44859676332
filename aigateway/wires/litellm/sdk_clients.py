"""The client objects that litellm sends through, made by us over our own connections.

Each is of the class that litellm expects for the vendor. Environment variables that the SDKs read
by themselves are kept out: a provider is what its `LLMConfig` says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from aigateway.settings import LLMConfig, is_token
from aigateway.wires.litellm.connections import OneShotTransport
from aigateway.wires.litellm.pools import LONGEST_CALL
from aigateway.wires.registry import wire_of

__all__ = ["SDKClient", "sdk_client"]


@dataclass(frozen=True, slots=True)
class SDKClient:
    """What is passed to litellm as `client`, and how it is closed."""

    handle: Any
    close: Callable[[], Awaitable[None]]


class _AsConfigured:
    """An SDK client that stays what it was made.

    litellm writes into the client it is given: `organization` from an environment variable, and
    for embeddings its own default where it is told `max_retries=0`.
    """

    _fixed = frozenset({"max_retries", "organization"})

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._fixed or name not in vars(self):
            super().__setattr__(name, value)


class _OpenAI(_AsConfigured, openai.AsyncOpenAI):
    """For OpenAI, its imitators, and Azure's v1 API."""


class _Azure(_AsConfigured, openai.AsyncAzureOpenAI):
    """For Azure's dated API versions."""

    def __sizeof__(self) -> int:
        """Claim to be huge.

        litellm puts every Azure client it is given into a cache that the whole process shares.
        There, another user of litellm with the same key and address would find ours, and go on
        using it after we closed it. The cache turns away what is too large.
        """
        return 1 << 30


def sdk_client(config: LLMConfig, options: Mapping[str, Any]) -> SDKClient | None:
    """Make a provider's client; None for `LITELLM`, where litellm picks its own.

    Args:
        config: The provider.
        options: What is passed to litellm with every call; key and base URL are taken from it.
    """
    sdk = wire_of(config).sdk
    if sdk is None:
        return None
    if sdk == "http":
        return _handler()
    client = _openai_client(config, options)
    # The SDK reads these from the environment where they are not given.
    vars(client)["organization"] = options.get("organization")
    client.project = None
    client.admin_api_key = None
    client._custom_headers = {}  # noqa: SLF001 - OPENAI_CUSTOM_HEADERS has no other way out
    return SDKClient(client, client.close)


def _openai_client(config: LLMConfig, options: Mapping[str, Any]) -> _OpenAI | _Azure:
    key, base = options["api_key"], options["api_base"]
    common: dict[str, Any] = {
        "api_key": key,
        "max_retries": 0,
        "timeout": LONGEST_CALL,
        "http_client": httpx.AsyncClient(
            transport=OneShotTransport(),
            timeout=LONGEST_CALL,
            follow_redirects=False,
            trust_env=False,
        ),
    }
    if wire_of(config).sdk == "openai":
        return _OpenAI(base_url=base, **common)
    if config.api_version in {"v1", "latest", "preview"}:
        return _OpenAI(base_url=f"{base}/openai/v1", **common)
    client = _Azure(azure_endpoint=base, api_version=config.api_version, **common)
    # Given in any case, else AZURE_OPENAI_AD_TOKEN would replace the key.
    client._azure_ad_token = key if is_token(key) else None  # noqa: SLF001
    return client


def _handler() -> SDKClient:
    from litellm.llms.custom_httpx.http_handler import (  # noqa: PLC0415 - loaded by now
        AsyncHTTPHandler,
    )

    handler = AsyncHTTPHandler(
        timeout=httpx.Timeout(LONGEST_CALL), transport=OneShotTransport(), follow_redirects=False
    )
    client = handler.client
    handler.client = client  # not its own: its finalizer would close it in a task on any loop
    return SDKClient(handler, client.aclose)
