"""The client objects that litellm sends through, made by us over our own connections.

Each is of the class that litellm expects for the vendor. Environment variables that the SDKs read
by themselves are kept out: a provider is what its `LLMConfig` says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import openai

from aigateway.settings import LLMConfig, is_token
from aigateway.wires.http import LONGEST_CALL, LoopEnd, drop_session
from aigateway.wires.litellm.connections import OneShotTransport
from aigateway.wires.registry import wire_of

__all__ = ["SDKClient", "close_litellms_pools_with_the_loop", "sdk_client"]


@dataclass(frozen=True, slots=True)
class SDKClient:
    """What is passed to litellm as `client`, and how it is closed."""

    handle: Any
    close: Callable[[], Awaitable[None]]


class _AsConfigured:
    """An SDK client that keeps its configuration.

    litellm writes into the client it is given: `organization` from an environment variable, and
    for embeddings its own default in place of `max_retries=0`.
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
        """Report a huge size.

        litellm puts every Azure client it is given into a cache that the whole process shares.
        There, another user of litellm with the same key and address would find ours, and go on
        using it after we closed it. The cache turns away what is too large.
        """
        return 1 << 30


def sdk_client(config: LLMConfig, options: Mapping[str, Any]) -> SDKClient | None:
    """Make a provider's client; None for `LITELLM`, where litellm picks its own.

    `options` are passed to litellm with every call.
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
    # Always set, else AZURE_OPENAI_AD_TOKEN would replace the key.
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


_litellms: dict[int, LoopEnd] = {}


def close_litellms_pools_with_the_loop(litellm: ModuleType) -> None:
    """Close what litellm opens on the running event loop with that loop.

    litellm keeps its clients for an hour, a set for each loop. The connections below them are
    closed, which would be opened again where a caller of litellm has such a client, too, and
    litellm forgets the clients, which would keep the loop.
    """
    loop = asyncio.get_running_loop()
    if id(loop) in _litellms:
        return

    async def close() -> None:
        _litellms.pop(id(loop), None)
        for transport in _litellms_transports(litellm, loop):
            with contextlib.suppress(Exception):
                await transport.aclose()
        _forget_litellms_clients(litellm, loop)

    def drop() -> None:
        _litellms.pop(id(loop), None)
        for transport in _litellms_transports(litellm, loop):
            session = getattr(transport, "client", None)
            if isinstance(session, aiohttp.ClientSession):
                drop_session(session)
        _forget_litellms_clients(litellm, loop)

    # Not kept by a client: litellm's connections stay open when ours is closed.
    _litellms[id(loop)] = LoopEnd(close, drop)


def _litellms_transports(litellm: ModuleType, loop: asyncio.AbstractEventLoop) -> list[Any]:
    """Return the transports of litellm's own clients on this loop."""
    cached = dict(getattr(litellm.in_memory_llm_clients_cache, "cache_dict", {}))
    transports = []
    for key, client in (*cached.items(), ("", getattr(litellm, "module_level_aclient", None))):
        http = getattr(client, "_client", None) or getattr(client, "client", None)
        for transport in (
            getattr(http, "_transport", None),
            *getattr(http, "_mounts", {}).values(),
        ):
            session = getattr(transport, "client", None)
            if isinstance(session, aiohttp.ClientSession):
                is_of_the_loop = session._loop is loop  # noqa: SLF001 - its public name is deprecated
            else:
                is_of_the_loop = str(key).endswith(f"-{id(loop)}")
            if transport is not None and is_of_the_loop:
                transports.append(transport)
    return transports


def _forget_litellms_clients(litellm: ModuleType, loop: asyncio.AbstractEventLoop) -> None:
    cache = litellm.in_memory_llm_clients_cache
    for key in tuple(getattr(cache, "cache_dict", ())):
        if str(key).endswith(f"-{id(loop)}"):
            with contextlib.suppress(Exception):
                cache.delete_cache(key)
