"""One pool of connections for each event loop, shared by all providers that are carried directly.

The number of connections has no limit here: the gateway's own limiter rules. An idle connection
is kept for a minute. Time has no limit either, but for one that only keeps a forgotten call from
living for ever: the caller bounds it. No redirect is followed and no cookie kept.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import aiohttp
from yarl import URL

from aigateway.vendor.connections import environment_proxy, open_session, tls_context
from aigateway.version import __version__

__all__ = ["SharedSession"]


class _Pool:
    __slots__ = ("__weakref__", "session", "users")

    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None
        self.users = 0


_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = weakref.WeakKeyDictionary()


class SharedSession:
    """A provider's share in the running loop's pool. The last to be closed closes the connections.

    Args:
        url: Where the provider is; what depends on it is worked out once.
    """

    __slots__ = ("_pool", "_proxy", "_tls", "_url")

    def __init__(self, url: str) -> None:
        self._url = URL(url, encoded=True)
        self._tls = tls_context() if self._url.scheme == "https" else True
        self._proxy = environment_proxy(self._url.scheme, self._url.host or "", self._url.port)
        pool = _pools.setdefault(asyncio.get_running_loop(), _Pool())
        pool.users += 1
        self._pool: _Pool | None = pool

    def post(
        self, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send one request, and give its response to read.

        Raises:
            RuntimeError: This share is closed.
        """
        pool = self._pool
        if pool is None:
            raise RuntimeError("This vendor client is closed.")
        if pool.session is None:
            pool.session = open_session(headers={"User-Agent": f"aigateway/{__version__}"})
        return pool.session.post(
            self._url,
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=self._proxy,
            ssl=self._tls,
        )

    async def aclose(self) -> None:
        """Give the share back. May be called twice."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.users -= 1
        if not pool.users and pool.session is not None:
            session, pool.session = pool.session, None
            await session.close()
