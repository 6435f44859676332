"""Vendors' SDKs whose requests a gateway of this process answers, without a port.

Their transport calls the application that `aigateway serve` runs, so that every endpoint, every
error and every stream is the service's. Needs the extra `[server]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from aigateway.errors import ConfigurationError, MisuseError
from aigateway.gateway import AsyncGateway

if TYPE_CHECKING:
    import anthropic
    import openai
    from fastapi import FastAPI

    from aigateway.settings import ServerSettings

__all__ = [
    "ADDRESS",
    "KEY",
    "anthropic_client",
    "async_client",
    "blocking_client",
    "missing",
    "openai_client",
]

T = TypeVar("T")

ADDRESS = "http://aigateway"
"""What requests are addressed to. It is never looked up."""
KEY = "in-process"
"""What SDKs that insist on a key get."""

_HELD = 16
"""Messages of a response that wait for their reader."""
_LEAVING_SECONDS = 5.0
_REQUEST_SECONDS = 86_400.0
"""The bound of the service, out of the way: those of the gateway and of the client count."""


def openai_client(
    gateway: AsyncGateway, *, settings: ServerSettings | None = None, **options: Any
) -> openai.AsyncOpenAI:
    """Return OpenAI's client, answered by a gateway in this process.

    Chats, streams, embeddings and responses work as at the service. No key is needed. Closing the
    client leaves the gateway open; any number of clients may share one.

    Args:
        gateway: Answers the requests. Its maker closes it.
        settings: Of the endpoints, such as `pass_params`; keys mean nothing. None takes defaults
            without a bound on time, and reads neither `aigateway.toml` nor the environment.
        **options: Of `openai.AsyncOpenAI`. `max_retries` is 0 by default: the gateway retries.

    Raises:
        ConfigurationError: The extra `server` is not installed.
    """
    import openai  # noqa: PLC0415 - most processes need none

    http = async_client(gateway, openai.DefaultAsyncHttpxClient, settings)
    defaults: dict[str, Any] = {"base_url": f"{ADDRESS}/v1", "api_key": KEY, "max_retries": 0}
    return openai.AsyncOpenAI(http_client=http, **(defaults | options))


def anthropic_client(
    gateway: AsyncGateway, *, settings: ServerSettings | None = None, **options: Any
) -> anthropic.AsyncAnthropic:
    """Return Anthropic's client, answered by a gateway in this process: see `openai_client`.

    Args:
        gateway: Answers the requests. Its maker closes it.
        settings: As for `openai_client`.
        **options: Of `anthropic.AsyncAnthropic`. `max_retries` is 0 by default.

    Raises:
        ConfigurationError: The extra `anthropic` or `server` is not installed.
    """
    try:
        import anthropic  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise missing("anthropic_client", "anthropic") from None
    http = async_client(gateway, anthropic.DefaultAsyncHttpxClient, settings)
    defaults: dict[str, Any] = {"base_url": ADDRESS, "api_key": KEY, "max_retries": 0}
    return anthropic.AsyncAnthropic(http_client=http, **(defaults | options))


def async_client(gateway: AsyncGateway, kind: type[T], settings: ServerSettings | None = None) -> T:
    """Return an HTTP client whose requests a gateway answers.

    They run on the gateway's event loop, and may come from any other one.

    Args:
        gateway: The gateway.
        kind: `AsyncClient` of httpx, or of a package with its interface (httpx2), or a subclass.
        settings: As for `openai_client`.
    """
    http = _package(kind)
    transport = type("InProcessTransport", (_AsyncTransport, http.AsyncBaseTransport), {})
    return kind(transport=transport(_GatewayApp(gateway, http, settings)))  # type: ignore[call-arg]


def blocking_client(gateway: AsyncGateway, kind: type[T]) -> T:
    """Return an HTTP client for code without an event loop, likewise.

    A gateway that is not in use on a loop is used on a thread of this module's own.

    Args:
        gateway: The gateway.
        kind: `Client` of httpx, as for `async_client`.
    """
    http = _package(kind)
    transport = type("BlockingTransport", (_Transport, http.BaseTransport), {})
    return kind(transport=transport(_GatewayApp(gateway, http)))  # type: ignore[call-arg]


def _package(kind: type) -> Any:
    """Return httpx, or what an SDK uses in its place."""
    names = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return sys.modules[next(name for name in names if name.startswith("httpx"))]


class _AsyncTransport:
    def __init__(self, service: _GatewayApp) -> None:
        self._service = service

    async def handle_async_request(self, request: Any) -> Any:
        """Answer a request."""
        body = await request.aread()
        home = self._service.home(asyncio.get_running_loop())
        exchange = await _there(home, self._service.ask(request, body))
        return self._service.response(exchange, _AsyncBody, "AsyncByteStream")

    async def aclose(self) -> None:
        """End the responses that are still under way."""
        for exchange in tuple(self._service.exchanges):
            await _there(exchange.loop, exchange.close())


class _Transport:
    def __init__(self, service: _GatewayApp) -> None:
        self._service = service

    def handle_request(self, request: Any) -> Any:
        """Answer a request; `MisuseError` on the event loop of the gateway."""
        body = request.read()
        exchange = _wait(self._service.home(None), self._service.ask(request, body))
        return self._service.response(exchange, _Body, "SyncByteStream")

    def close(self) -> None:
        """End the responses that are still under way."""
        for exchange in tuple(self._service.exchanges):
            if exchange.loop.is_running() and not _is_of_a_parent(exchange.loop):
                _wait(exchange.loop, exchange.close())


class _GatewayApp:
    """The application of a gateway, made anew for each event loop."""

    def __init__(
        self, gateway: AsyncGateway, http: Any, settings: ServerSettings | None = None
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._http = http
        self._loop: asyncio.AbstractEventLoop | None = None
        self._app = _application(gateway, settings)
        self.exchanges: set[_Exchange] = set()

    def home(self, here: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """Return the event loop that requests run on, if a caller is on this one."""
        bound = self._gateway.event_loop
        if bound is None or not bound.is_running() or _is_of_a_parent(bound):
            return here or _own_loop()
        return bound

    async def ask(self, request: Any, body: bytes) -> _Exchange:
        """Return the exchange of a request whose response has begun."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                self._app = _application(self._gateway, self._settings)
            self._loop = loop
        exchange = _Exchange(self._app, self._http, request, body)
        self.exchanges.add(exchange)
        exchange.task.add_done_callback(lambda _: self.exchanges.discard(exchange))
        try:
            await exchange.begin()
        except BaseException:
            await exchange.close()
            raise
        return exchange

    def response(self, exchange: _Exchange, body: type, stream: str) -> Any:
        """Return the response of an exchange, with a body that is a stream of the package."""
        kind = type(body.__name__, (body, getattr(self._http, stream)), {})
        return self._http.Response(**exchange.head, stream=kind(exchange))


class _Exchange:
    """One request to the application and its response."""

    def __init__(self, app: FastAPI, http: Any, request: Any, body: bytes) -> None:
        self.loop = asyncio.get_running_loop()
        self.head: dict[str, Any] = {}
        self._http = http
        self._request = request
        self._body: bytes | None = body
        self._seconds = (request.extensions.get("timeout") or {}).get("read")
        self._messages: deque[dict[str, Any]] = deque()
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._left = asyncio.Event()
        self.task = self.loop.create_task(
            app(_scope(request), self._receive, self._send),  # type: ignore[arg-type]
            name="aigateway-in-process",
        )
        self.task.add_done_callback(lambda _: self._came.set())

    async def begin(self) -> None:
        """Wait for the head of the response."""
        start = await self._next()
        self.head = {"status_code": start["status"], "headers": start["headers"]}

    async def read(self) -> bytes | None:
        """Return the next part of the body; None after the last."""
        if self._left.is_set():
            return None
        message = await self._next()
        if not message.get("more_body"):
            self._left.set()  # there is nothing to leave any more
        return bytes(message.get("body", b""))

    async def close(self) -> None:
        """Disconnect, and wait until the application has seen it."""
        self._left.set()
        self._room.set()
        if not self.task.done():
            await asyncio.wait({self.task}, timeout=_LEAVING_SECONDS)
            self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if self.task.done():
                self.task.exception()  # the client has left, and hears of none

    async def _next(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._seconds):
                while not self._messages:
                    if self.task.done():
                        text = "The application ended without a complete response."
                        raise self._http.RemoteProtocolError(text, request=self._request)
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise self._http.ReadTimeout("Read timed out.", request=self._request) from None
        self._room.set()
        return self._messages.popleft()

    async def _receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        while len(self._messages) >= _HELD and not self._left.is_set():
            self._room.clear()
            await self._room.wait()
        if self._left.is_set():
            raise OSError("The client has left.")
        self._messages.append(message)
        self._came.set()


class _AsyncBody:
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await _there(self._exchange.loop, self._exchange.read())) is not None:
            yield part

    async def aclose(self) -> None:
        await _there(self._exchange.loop, self._exchange.close())


class _Body:
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        while (part := _wait(self._exchange.loop, self._exchange.read())) is not None:
            yield part

    def close(self) -> None:
        _wait(self._exchange.loop, self._exchange.close())


def _scope(request: Any) -> dict[str, Any]:
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "server": (url.host, url.port),
        "client": ("127.0.0.1", 0),
    }


async def _there(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run work on a loop, from this one or another."""
    if loop is asyncio.get_running_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run work on a loop of another thread, and wait. An interrupted wait cancels the work."""
    with contextlib.suppress(RuntimeError):
        if loop is asyncio.get_running_loop():
            work.close()
            text = (
                "This call would block the event loop that the gateway is used on. Await instead."
            )
            raise MisuseError(text)
    outcome = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return outcome.result()
    finally:
        outcome.cancel()  # no effect when it is done


_own: dict[int, asyncio.AbstractEventLoop] = {}
"""The loops of threads of this module's own, by process. A forked child does not inherit threads,
but keeps the loops: a collected one closes its selector, which the parent still uses."""


def _own_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of a thread that ends with the process."""
    process = os.getpid()
    if process not in _own:
        loop = asyncio.new_event_loop()
        if _own.setdefault(process, loop) is loop:
            name = "aigateway-in-process"
            threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
        else:
            loop.close()  # another thread was faster
    return _own[process]


def _is_of_a_parent(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop looks as if it runs, but its thread is in a parent of this process."""
    return any(loop is known and process != os.getpid() for process, known in tuple(_own.items()))


def _application(gateway: AsyncGateway, settings: ServerSettings | None) -> FastAPI:
    try:
        from aigateway.server import create_app  # noqa: PLC0415 - an extra
        from aigateway.settings import ServerSettings  # noqa: PLC0415 - as above
    except ModuleNotFoundError:
        raise missing("An in-process client", "server") from None
    # Its callers are this process: what a service beside it has in its environment or its file is
    # not meant for them, and neither keys nor addresses are to be checked.
    if settings is None:
        settings = ServerSettings.model_construct(request_timeout=_REQUEST_SECONDS)
    return create_app(gateway, settings, tenant=lambda _: None)


def missing(what: str, extra: str) -> ConfigurationError:
    """Return the error for an extra that is not installed."""
    return ConfigurationError(
        f'{what} needs the extra "{extra}": pip install "aigateway[{extra}]".'
    )
