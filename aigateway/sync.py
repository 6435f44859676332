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
from typing import Any, TypeVar, Unpack

from aigateway.errors import GatewayError, MisuseError
from aigateway.figures import GatewayMetrics
from aigateway.gateway import AsyncGateway
from aigateway.options import CallOptions, accepts, call_arguments

__all__ = ["BackgroundGateway", "call_llm", "get_gateway", "get_gateway_metrics"]

T = TypeVar("T")

_CLOSING_SECONDS = 5.0
"""The longest wait for connections to close at the end of the process."""


@accepts(CallOptions, cache=True)
def call_llm(
    system_prompt: str | None = None,
    user_prompt: str | None = None,
    temperature: float | None = None,
    *,
    system: str | None = None,
    user: str | None = None,
    **options: Unpack[CallOptions],
) -> str:
    """Send a prompt through the process's gateway, and return the answer's text.

    May be called from any number of threads at once. Ctrl-C cancels the request.

    Args:
        system_prompt: A system message; None sends none.
        user_prompt: The prompt. Required, by one of its names.
        temperature: From 0 to 2; None takes the vendor's default.
        system: Another name of `system_prompt`.
        user: Another name of `user_prompt`. Beside it, OpenAI's parameter `user`.
        **options: See `CallOptions`.

    Returns:
        The answer's text.

    Raises:
        ConfigurationError: The configuration in the environment is invalid.
        MisuseError: Called on a running event loop.
        GatewayError: As `AsyncGateway.chat`.
    """
    _refuse_on_a_loop()
    arguments = call_arguments(system_prompt, user_prompt, system, user, options)
    background = _started()
    return background.run(background.gateway.chat(temperature=temperature, **arguments)).text


def _refuse_on_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise MisuseError(
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


def get_gateway_metrics() -> GatewayMetrics:
    """Return `AsyncGateway.get_metrics` of the process's gateway.

    Raises:
        ConfigurationError: As `get_gateway`.
    """
    background = _started()
    if background.is_here:  # called by a hook: waiting for its own thread would deadlock
        return background.gateway.get_metrics()

    async def read() -> GatewayMetrics:
        return background.gateway.get_metrics()

    return background.run(read())


class BackgroundGateway:
    """A gateway, and the thread with its event loop."""

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
        """Whether the caller runs on that thread."""
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
_background: BackgroundGateway | None = None
_parents: list[BackgroundGateway] = []


def _started() -> BackgroundGateway:
    global _background  # noqa: PLW0603 - one per process
    background = _background
    if background is not None:
        return background
    with _lock:
        if _background is None:
            _background = BackgroundGateway(AsyncGateway())
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
