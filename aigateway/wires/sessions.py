"""One pool of connections for each event loop, shared by all providers that are carried directly.

The number of connections has no limit here: the gateway's own limiter rules. An idle connection
is kept for a minute. Time has no limit either (but, where no stream is asked for, one that keeps a
forgotten call from living for ever): the caller bounds it. No redirect is followed and no cookie
kept.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import aiohttp
from yarl import URL

from aigateway.version import __version__
from aigateway.wires.litellm.connections import environment_proxy, tls_context
from aigateway.wires.litellm.pools import ConnectionPool

__all__ = ["SharedSession"]

_LAST_BYTES = 0.25
"""Seconds that the end of a body may take once its content is whole. A connection that ends its
body in time is used again; opening another takes two or three journeys to the vendor."""

_UNBOUNDED = aiohttp.ClientTimeout(total=None)


class _Shared:
    __slots__ = ("__weakref__", "loop", "pool", "users")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop  # kept, so that no other loop has its id
        self.pool: ConnectionPool | None = None
        self.users: weakref.WeakSet[SharedSession] = weakref.WeakSet()


_shared: weakref.WeakValueDictionary[int, _Shared] = weakref.WeakValueDictionary()
"""By the id of the event loop. The users keep an entry, which keeps its loop."""


class SharedSession:
    """A provider's share in the running loop's pool. The last to be closed closes the connections.

    Args:
        url: Where the provider is; what depends on it is worked out once.
        stream_url: Where its streams are; None if it is the same.
    """

    __slots__ = ("__weakref__", "_open", "_proxy", "_shared", "_stream_url", "_tls", "_url")

    def __init__(self, url: str, stream_url: str | None = None) -> None:
        self._url = URL(url, encoded=True)
        self._stream_url = URL(stream_url or url, encoded=True)
        self._open: set[aiohttp.ClientResponse] = set()
        self._tls = tls_context() if self._url.scheme == "https" else True
        self._proxy = environment_proxy(self._url.scheme, self._url.host or "", self._url.port)
        loop = asyncio.get_running_loop()
        shared = _shared.setdefault(id(loop), _Shared(loop))
        shared.users.add(self)
        self._shared: _Shared | None = shared

    def post(
        self, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send one request, and give its response to read.

        Raises:
            RuntimeError: This share is closed.
        """
        return self._session().post(
            self._url,
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=self._proxy,
            ssl=self._tls,
        )

    async def stream(self, headers: Mapping[str, str], body: bytes) -> aiohttp.ClientResponse:
        """Send one request, and give its response as soon as it begins; `leave` it afterwards.

        Raises:
            RuntimeError: This share is closed.
        """
        response = await self._session().post(
            self._stream_url,
            headers=headers,
            data=body,
            allow_redirects=False,
            proxy=self._proxy,
            ssl=self._tls,
            timeout=_UNBOUNDED,
        )
        self._open.add(response)
        return response

    def leave(self, response: aiohttp.ClientResponse, *, kept: bool) -> None:
        """Be done with a stream's response.

        Args:
            response: As `stream` gave it.
            kept: Its content is whole, so the connection may be used again.
        """
        if kept and not response.content.at_eof():
            asyncio.get_running_loop().call_later(_LAST_BYTES, self._close, response)
        else:
            self._close(response)

    def _close(self, response: aiohttp.ClientResponse) -> None:
        # At the end of a body aiohttp has taken the connection back by itself.
        self._open.discard(response)
        response.close()

    def _session(self) -> aiohttp.ClientSession:
        shared = self._shared
        if shared is None:
            raise RuntimeError("This vendor client is closed.")
        if shared.pool is None or shared.pool.session.closed:
            shared.pool = ConnectionPool(headers={"User-Agent": f"aigateway/{__version__}"})
        return shared.pool.session

    async def aclose(self) -> None:
        """Give the share back. May be called twice."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        for response in tuple(self._open):
            self._close(response)
        shared.users.discard(self)
        if not shared.users and shared.pool is not None:
            pool, shared.pool = shared.pool, None
            await pool.aclose()
