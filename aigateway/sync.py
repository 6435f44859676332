"""The synchronous interface for scripts and threads: one gateway per process, no `await`.

A background thread runs an event loop with the gateway that the environment configures. Both start
at the first use and end with the process. Every request is a `chat`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

from aigateway.errors import GatewayError, RequestRejectedError
from aigateway.gateway import AsyncGateway
from aigateway.messages import CacheMode

__all__ = ["call_llm", "get_gateway", "get_gateway_metrics"]

T = TypeVar("T")

_CLOSING_SECONDS = 5.0
"""The longest wait for connections to close at the end of the process."""


def call_llm(
    system_prompt: str | None = None,
    user_prompt: str | None = None,
    temperature: float | None = None,
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    agent: str | None = None,
    cache: CacheMode = True,
    cache_ttl: float | None = None,
    **params: Any,
) -> str:
    """Send a prompt through the process's gateway, and return the answer's text.

    May be called from any number of threads at once. Ctrl-C cancels the request.

    Args:
        system_prompt: A system message; None sends none.
        user_prompt: The prompt. Required.
        temperature: From 0 to 2; None takes the vendor's default.
        model: A provider's model, name or alias; None lets the gateway choose.
        max_tokens: Upper bound of the answer's length.
        timeout: Seconds in total, failover and waiting included; None takes the setting.
        agent: Selects a time to live from `agent_ttls`, and labels logs.
        cache: True reads and fills the cache, False does neither, "refresh" only fills it.
        cache_ttl: Seconds to keep this answer; None takes the agent's, then the setting.
        **params: Other OpenAI chat parameters, passed on unchanged.

    Returns:
        The answer's text.

    Raises:
        ConfigurationError: The configuration in the environment is invalid.
        GatewayError: Called on a running event loop; or as `AsyncGateway.chat`.
    """
    _refuse_on_a_loop()
    if user_prompt is None:
        raise RequestRejectedError("user_prompt is missing; use call_llm(user_prompt=...).")
    background = _started()
    answer = background.gateway.chat(
        user_prompt,
        system=system_prompt,
        model=model,
        temperature=temperature,
        max_tokens=max_tokens,
        timeout=timeout,
        agent=agent,
        cache=cache,
        cache_ttl=cache_ttl,
        **params,
    )
    return background.run(answer).text


def _refuse_on_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise GatewayError(
        "call_llm() would block the event loop that is running here. Make an AsyncGateway"
        " and use `await gateway.chat()`."
    )


def get_gateway() -> AsyncGateway:
    """Return the process's gateway, the same object each time, configured by the environment.

    It belongs to the event loop of a background thread. Use it to read (`providers`, `settings`)
    and to configure (`add_provider`, `remove_provider`); send requests through `call_llm`. On your
    own event loop, create your own `AsyncGateway` and `await gateway.chat()`.

    Raises:
        ConfigurationError: The configuration in the environment is invalid.
        NoProvidersError: No provider is configured.
    """
    return _started().gateway


def get_gateway_metrics() -> dict[str, Any]:
    """Return `AsyncGateway.get_metrics` of the process's gateway.

    Raises:
        ConfigurationError: As `get_gateway`.
    """
    background = _started()
    if background.is_here:  # called by a hook: waiting for its own thread would deadlock
        return background.gateway.get_metrics()

    async def read() -> dict[str, Any]:
        return background.gateway.get_metrics()

    return background.run(read())


class _Background:
    """The gateway, and the thread with its event loop."""

    def __init__(self, gateway: AsyncGateway) -> None:
        self.gateway = gateway
        self._submitting = threading.Lock()
        self._closing = False
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._live, name="aigateway", daemon=True)
        self._thread.start()
        self._loop, self._stop = self._ready.result()

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work on the thread's loop, and wait. An interrupted wait cancels the work."""
        outcome: Future[T] = Future()  # created first: Ctrl-C may come at any time from here on
        try:
            with self._submitting:
                if self._closing:
                    work.close()
                    raise GatewayError("The process's gateway is closed: the process is ending.")
                self._loop.call_soon_threadsafe(self._begin, work, outcome)
            return outcome.result()
        except CancelledError:
            raise GatewayError("The process's gateway was closed during this call.") from None
        finally:
            outcome.cancel()  # no effect when it is done

    def _begin(self, work: Coroutine[Any, Any, T], outcome: Future[T]) -> None:
        """Run the work on the loop; the end of either side ends the other."""
        if outcome.cancelled():
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)

        def left(outcome: Future[T]) -> None:
            if outcome.cancelled() and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(task.cancel)

        def ended(task: asyncio.Task[T]) -> None:
            error = None if task.cancelled() else task.exception()
            if task.cancelled():
                outcome.cancel()
            elif not outcome.cancelled():
                with contextlib.suppress(InvalidStateError):  # cancelled in the same moment
                    if error is not None:
                        outcome.set_exception(error)
                    else:
                        outcome.set_result(task.result())

        outcome.add_done_callback(left)
        task.add_done_callback(ended)

    def close(self) -> None:
        """Cancel requests, close connections, and stop the thread, within a time limit."""
        with self._submitting:  # earlier work reaches the loop before it stops
            already, self._closing = self._closing, True
        if not already:
            self._loop.call_soon_threadsafe(self._stop.set)
        if not self.is_here:
            self._thread.join(_CLOSING_SECONDS)

    def _live(self) -> None:
        try:
            asyncio.run(self._serve())  # cancels requests in flight when `_serve` ends
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # raised by the constructor

    async def _serve(self) -> None:
        stop = asyncio.Event()
        async with self.gateway:
            self._ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()


_lock = threading.Lock()
_background: _Background | None = None
_parents: list[_Background] = []


def _started() -> _Background:
    global _background  # noqa: PLW0603 - one per process
    background = _background
    if background is not None:
        return background
    with _lock:
        if _background is None:
            _background = _Background(AsyncGateway())
        return _background


def _reset() -> None:
    """Close the process's gateway, if any; the next use makes another one."""
    global _background
    with _lock:
        background, _background = _background, None
    if background is not None:
        background.close()


def _close_at_exit() -> None:
    if _background is not None:
        _background.close()  # kept, so that later calls are refused


def _drop_the_parents_gateway() -> None:
    """Drop the gateway in a forked child, which does not inherit threads."""
    global _background, _lock  # noqa: PLW0603 - as above
    _lock = threading.Lock()  # a thread of the parent may have held the old one
    if _background is not None:
        # Kept alive: a collected loop closes its selector, which the parent still uses.
        _parents.append(_background)
        _background = None


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_the_parents_gateway)
