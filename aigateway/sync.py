"""The one-line face for scripts and threads: no `await`, no setting up, one gateway per process.

A thread of its own runs one event loop, and on it the gateway that the environment describes. Both
begin at the first use and end with the process. No policy lives here: every request is `chat`.
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
"""How long the end of the process may wait for connections to close."""


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
    """Ask the process's gateway, wait, and get the answer's text.

    May be called from any number of threads at once. Ctrl-C cancels the request.

    Args:
        system_prompt: A system message; None sends none.
        user_prompt: What is asked. Needed.
        temperature: From 0 to 2; None leaves it to the vendor.
        model: A provider's model, name or alias; None leaves the choice to the gateway.
        max_tokens: Upper bound of the answer's length.
        timeout: Seconds for everything, failover and waiting included; None takes the setting.
        agent: Selects a time to live from `agent_ttls`, and labels logs.
        cache: True reads and fills the cache, False does neither, "refresh" only fills it.
        cache_ttl: Seconds to remember this answer; None takes the agent's, then the setting.
        **params: Other OpenAI chat parameters, passed through untouched.

    Returns:
        The answer's text.

    Raises:
        ConfigurationError: The environment does not describe a gateway that can work.
        GatewayError: Called where an event loop runs, or whatever `AsyncGateway.chat` raises.
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
    """Get the process's gateway: the same object each time, made from the environment.

    It belongs to the event loop of a background thread. Use it to look (`providers`, `settings`)
    and to set up (`add_provider`, `remove_provider`); ask it through `call_llm`. From an event loop
    of your own, make your own `AsyncGateway` and `await gateway.chat()`.

    Raises:
        ConfigurationError: The environment does not describe a gateway that can work.
        NoProvidersError: It describes no provider.
    """
    return _started().gateway


def get_gateway_metrics() -> dict[str, Any]:
    """Get what `AsyncGateway.get_metrics` tells about the process's gateway.

    Raises:
        ConfigurationError: As `get_gateway`, which this makes if need be.
    """
    background = _started()
    if background.is_here:  # a hook asks: waiting for this very thread would never end
        return background.gateway.get_metrics()

    async def read() -> dict[str, Any]:
        return background.gateway.get_metrics()

    return background.run(read())


class _Background:
    """The gateway, and the thread whose event loop it belongs to."""

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
        """Run it over there, and wait. Whatever ends the waiting early also ends the work."""
        outcome: Future[T] = Future()  # before anything runs: from here on Ctrl-C may come
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
            outcome.cancel()  # changes nothing when it is done

    def _begin(self, work: Coroutine[Any, Any, T], outcome: Future[T]) -> None:
        """On the loop: run the work, and bind its end and the caller's to each other."""
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
                with contextlib.suppress(InvalidStateError):  # cancelled in this very moment
                    if error is not None:
                        outcome.set_exception(error)
                    else:
                        outcome.set_result(task.result())

        outcome.add_done_callback(left)
        task.add_done_callback(ended)

    def close(self) -> None:
        """End what is in flight, close the connections, and stop the thread; bounded in time."""
        with self._submitting:  # what was let in before is on the loop before it stops
            already, self._closing = self._closing, True
        if not already:
            self._loop.call_soon_threadsafe(self._stop.set)
        if not self.is_here:
            self._thread.join(_CLOSING_SECONDS)

    def _live(self) -> None:
        try:
            asyncio.run(self._serve())  # it cancels what is in flight when `_serve` is over
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # for whoever waits for the thread to be ready

    async def _serve(self) -> None:
        stop = asyncio.Event()
        async with self.gateway:
            self._ready.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()


_lock = threading.Lock()
_background: _Background | None = None
_of_the_parent: list[_Background] = []


def _started() -> _Background:
    global _background  # noqa: PLW0603 - one for the process is what this module is about
    background = _background
    if background is not None:
        return background
    with _lock:
        if _background is None:
            _background = _Background(AsyncGateway())
        return _background


def _reset() -> None:
    """Close the process's gateway, if there is one; the next use makes another."""
    global _background
    with _lock:
        background, _background = _background, None
    if background is not None:
        background.close()


def _close_for_good() -> None:
    if _background is not None:
        _background.close()  # kept: late callers hear that it is closed


def _forget_the_parents() -> None:
    """In a forked child: threads do not come along, so neither loop nor gateway works here."""
    global _background, _lock  # noqa: PLW0603 - as above
    _lock = threading.Lock()  # a thread that is not here may have held the old one
    if _background is not None:
        # Kept alive: a loop that is collected closes its selector, and that is the parent's too.
        _of_the_parent.append(_background)
        _background = None


atexit.register(_close_for_good)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
