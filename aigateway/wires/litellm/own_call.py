"""What sets our calls to litellm apart from everybody else's in the process.

litellm's behaviour is governed by globals, which are not ours to set. Context variables reach
exactly the calls that we make.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, TypeVar

from aigateway.wires.litellm.connections import WITNESS, Witness
from aigateway.wires.loading import SILENT

__all__ = ["has_callbacks", "own_call"]

_T = TypeVar("_T")

_CALLBACKS = (
    "callbacks",
    "failure_callback",
    "input_callback",
    "success_callback",
    "_async_failure_callback",
    "_async_success_callback",
)


@contextlib.contextmanager
def own_call(litellm: ModuleType, *, streamed: bool = False) -> Iterator[Witness]:
    """Mark the calls inside as ours, and watch what they send.

    Args:
        litellm: Loaded.
        streamed: Whether the answer is to be handed on as it comes. What is read later has to run
            in a copy of the context inside.
    """
    witness = Witness(streamed=streamed)
    internal = _internal_flag(litellm)
    with _value(WITNESS, witness), _value(SILENT, True):
        if internal is None:
            yield witness
        else:
            with _value(internal, True):
                yield witness


@contextlib.contextmanager
def _value(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def has_callbacks(litellm: ModuleType) -> bool:
    """Whether the user has registered callbacks with litellm, which are to see our calls too."""
    for name in _CALLBACKS:  # at every call, so without a generator
        callbacks = getattr(litellm, name, None)
        if callbacks and _users(callbacks):
            return True
    return False


def _users(callbacks: Any) -> bool:
    """Whether somebody registered one. litellm's cache and its Router register their own."""
    return any(
        entry != "cache" and not str(getattr(entry, "__module__", "")).startswith("litellm.router")
        for entry in callbacks or ()
    )


def _internal_flag(litellm: ModuleType) -> ContextVar[bool] | None:
    """Find litellm's own mark for calls whose outcome it need not log.

    Logging is for callbacks. Where there are none it costs time, and its worker outlives the loop
    it was started on. Where the user has registered some with litellm, they see our calls too.
    """
    if has_callbacks(litellm):
        return None
    try:
        from litellm._internal_context import is_internal_call  # noqa: PLC0415 - loaded by now
    except ImportError:
        return None
    flag: ContextVar[bool] = is_internal_call
    return flag
