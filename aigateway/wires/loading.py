"""Import litellm once per process, off the event loop, and leave the process as it was.

Importing litellm takes seconds, and by default it reads a `.env` file, fetches a price map from the
network and changes other libraries' loggers. Here the first call that needs it imports it in a
worker thread, and all others, on any loop or thread, wait for that one import.

A litellm that was imported before stays exactly as it is.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from types import ModuleType
from typing import Any

__all__ = ["MUTE", "SILENT", "begin_loading", "load_litellm", "loaded_litellm", "silent"]

SILENT: ContextVar[bool] = ContextVar("aigateway_silent", default=False)
"""Whether litellm's advice and its debug logs are withheld in this context."""

MUTE: ContextVar[bool] = ContextVar("aigateway_mute", default=False)
"""Whether litellm's warnings are, too: what is mapped is only a trial."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Withhold litellm's advice and its debug logs."""
    token = SILENT.set(True)
    try:
        yield
    finally:
        SILENT.reset(token)


_ENVIRONMENT = {
    # The first two are read while importing, the third at the first call to Anthropic, which is
    # why that table is loaded here. Nothing reads them later.
    "LITELLM_MODE": "PRODUCTION",  # else a .env is searched from site-packages upwards
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else the price map comes from the network
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",  # else this comes from the network, too
}

_LOGGERS = (
    "apscheduler.executors.default",
    "apscheduler.scheduler",
    "asyncio",
    "backoff",
    "httpx",
    "uvicorn.access",
    "uvicorn.error",
)
"""Other libraries' loggers whose level and filters litellm changes."""

_PRINTING_MODULES = (
    "litellm.litellm_core_utils.exception_mapping_utils",
    "litellm.litellm_core_utils.get_llm_provider_logic",
)
"""The modules that print advice when a call fails."""

_TALKATIVE_LOGGERS = ("LiteLLM", "openai._base_client")

_lock = threading.Lock()
_import: Future[ModuleType] | None = None


async def load_litellm() -> ModuleType:
    """Return litellm, imported if need be. Loops and threads may call this at once."""
    ready = loaded_litellm()
    return ready if ready is not None else await asyncio.wrap_future(_importing())


def begin_loading() -> None:
    """Start importing litellm in its thread, without waiting."""
    _importing()


def loaded_litellm() -> ModuleType | None:
    """Return litellm if it has been loaded, without ever waiting for it."""
    done = _import
    if done is None or not done.done() or done.exception() is not None:
        return None
    return done.result()


def _importing() -> Future[ModuleType]:
    """Return the one import of this process; a failed one is tried again."""
    global _import  # noqa: PLW0603 - an import is a thing of the process
    with _lock:
        if _import is None or (_import.done() and _import.exception() is not None):
            # A pool of its own: the loops' default pools may be full of callers.
            pool = ThreadPoolExecutor(1, thread_name_prefix="aigateway-import")
            _import = pool.submit(_import_litellm)
            pool.shutdown(wait=False)
        return _import


def _import_litellm() -> ModuleType:
    spared = "litellm" in sys.modules  # also while another thread still imports it
    with _environment(), contextlib.nullcontext() if spared else _loggers_kept():
        import litellm  # noqa: PLC0415 - the point of this module
        import openai.resources  # noqa: F401, PLC0415 - else the first call waits for it
        from litellm import anthropic_beta_headers_manager  # noqa: PLC0415

        # Any of its functions fetches the table at its first call.
        anthropic_beta_headers_manager.get_provider_name("anthropic")
        _import_without_callback(litellm)
    _place_quiet_print()
    _place_log_filter()
    module: ModuleType = litellm
    return module


def _import_without_callback(litellm: Any) -> None:
    """Import the one module that registers a global callback on import, and remove that.

    Its first use (by any Gemini call) would make every later call run litellm's success logging.
    """
    lists = [
        getattr(litellm, name)
        for name in ("input_callback", "success_callback", "_async_success_callback")
        if "cache" not in getattr(litellm, name, ["cache"])
    ]
    with contextlib.suppress(ImportError):
        importlib.import_module("litellm.llms.vertex_ai.context_caching.vertex_ai_context_caching")
    for callbacks in lists:
        if "cache" in callbacks:
            callbacks.remove("cache")


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what keeps litellm off the network and the disk, where the user has not decided."""
    ours = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _loggers_kept() -> Iterator[None]:
    """Undo what importing litellm does to other libraries' loggers."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.level, list(logger.filters)) for logger in loggers]
    collecting = gc.isenabled()
    gc.disable()  # nothing that an import makes is garbage; this takes a fifth off it
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        for logger, level, filters in before:
            logger.setLevel(level)
            logger.filters[:] = filters


def _place_quiet_print() -> None:
    """Suppress litellm's printed advice for our own calls only.

    The switch that litellm offers (`suppress_debug_info`) is one for the whole process, and not
    ours to set. A name in the namespace of the modules that print affects nothing else.
    """
    for name in _PRINTING_MODULES:
        module = sys.modules.get(name)
        if module is not None and "print" not in vars(module):
            vars(module)["print"] = _print_unless_silent


def _place_log_filter() -> None:
    """Keep prompts and headers out of logs, unless litellm's or the SDK's logs are switched on.

    Both write them at DEBUG, which they inherit from a root logger that the user set for quite
    another library. LITELLM_LOG, OPENAI_LOG and a level on one of their loggers are still obeyed.
    """
    for name in _TALKATIVE_LOGGERS:
        logger = logging.getLogger(name)
        if _unless_silent not in logger.filters:
            logger.addFilter(_unless_silent)


def _unless_silent(record: logging.LogRecord) -> bool:
    if MUTE.get():
        return False
    return record.levelno >= logging.WARNING or not SILENT.get() or _has_own_level(record.name)


def _has_own_level(name: str) -> bool:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None and logger is not logging.root:
        if logger.level != logging.NOTSET:
            return True
        logger = logger.parent
    return False


def _print_unless_silent(*values: object, **options: Any) -> None:
    if not SILENT.get():
        builtins.print(*values, **options)  # noqa: T201 - what litellm would have done
