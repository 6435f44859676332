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
import importlib.resources
import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from types import CodeType, ModuleType
from typing import Any, TypeVar

__all__ = [
    "MUTE",
    "SILENT",
    "begin_loading",
    "in_thread",
    "load_litellm",
    "loaded_litellm",
    "missing_package",
    "silent",
]

T = TypeVar("T")

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
_freezes = False
"""Whether `gc.freeze` has been asked for."""


async def load_litellm() -> ModuleType:
    """Return litellm, imported if need be. Loops and threads may call this at once."""
    ready = loaded_litellm()
    return ready if ready is not None else await asyncio.wrap_future(_importing())


def begin_loading(*, freeze: bool = False) -> None:
    """Start importing litellm in its thread, without waiting.

    Args:
        freeze: Call `gc.freeze` when it is loaded, once per process.
    """
    global _freezes  # noqa: PLW0603 - a thing of the process, too
    loading = _importing()
    with _lock:
        if freeze and not _freezes:
            _freezes = True
            loading.add_done_callback(_freeze)


def loaded_litellm() -> ModuleType | None:
    """Return litellm if it has been loaded, without ever waiting for it."""
    done = _import
    if done is None or not done.done() or done.exception() is not None:
        return None
    return done.result()


_PACKAGES = {
    "bedrock": ("boto3", "boto3", "bedrock"),
    "sagemaker": ("boto3", "boto3", "bedrock"),
    "vertex_ai": ("google.auth", "google-auth", "vertex"),
}
"""What litellm needs for a vendor and does not depend on: module, package, extra of aigateway."""


def missing_package(model: str) -> str | None:
    """Return which package this model of litellm needs that is not installed, and how to get it."""
    for vendor, (module, package, extra) in _PACKAGES.items():
        if model.startswith((f"{vendor}/", f"{vendor}_")):
            with contextlib.suppress(ModuleNotFoundError):  # of the package that the module is in
                if importlib.util.find_spec(module) is not None:
                    return None
            return f'{package}; pip install "aigateway[{extra}]"'
    return None


def _importing() -> Future[ModuleType]:
    """Return the one import of this process; a failed one is tried again."""
    global _import  # noqa: PLW0603 - an import is a thing of the process
    with _lock:
        if _import is None or (_import.done() and _import.exception() is not None):
            _import = in_thread(_load)
            if _freezes:
                _import.add_done_callback(_freeze)
        return _import


def _freeze(loaded: Future[ModuleType]) -> None:
    if loaded.exception() is None:
        gc.freeze()


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Begin some work in a daemon thread of its own.

    The loops' pools may be full of callers, a pool of ours would not outlive a fork, and the end of
    the process must not wait for it.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # a waiter that leaves does not cancel it

    def settle() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - those who wait get it
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=settle, name="aigateway-import", daemon=True).start()
    return outcome


def _load() -> ModuleType:
    with _uncollected():
        _import_lanes()
        return _import_litellm()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector off, and spare it what has been loaded meanwhile.

    Nothing that an import makes is garbage: without the collector it takes a fifth less. The first
    collection afterwards would walk half a million new objects, and the event loop would stand
    still for it. `freeze` and `unfreeze` make them old ones without a walk.
    """
    collecting, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:  # else these would be unfrozen
            gc.freeze()
            gc.unfreeze()
        if collecting:
            gc.enable()


def _import_lanes() -> None:
    """Import what the first call needs beside litellm; the event loop would stand still for it."""
    from aigateway.wires import direct_lane, http, translation  # noqa: F401, PLC0415


def _import_litellm() -> ModuleType:
    spared = "litellm" in sys.modules  # also while another thread still imports it
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment())
        if not spared:
            stack.enter_context(_loggers_kept())
            stack.enter_context(_tokenizer_left_out())
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


_TOKENIZER = ("json_data", "claude_json_str")
"""Where `litellm.utils` keeps a tokenizer's file, parsed and as text: 16 MB that no call reads."""

_TOKENIZER_FILE = "anthropic_tokenizer.json"


@contextlib.contextmanager
def _tokenizer_left_out() -> Iterator[None]:
    """Have that file parsed where its content is asked for, and not by the import."""
    load, importer = json.load, threading.get_ident()

    def load_others(fp: Any, **options: Any) -> Any:
        name = str(getattr(fp, "name", ""))
        spared = name.endswith(_TOKENIZER_FILE) and threading.get_ident() == importer
        return {} if spared else load(fp, **options)

    json.load = load_others
    try:
        yield
    finally:
        json.load = load
        if "litellm.utils" in sys.modules:  # also where the rest of the import has failed
            _load_tokenizer_late()


def _load_tokenizer_late() -> None:
    module = vars(sys.modules["litellm.utils"])
    other = module.get("__getattr__")
    read = {
        name for each in module.values() for name in _names_read(getattr(each, "__code__", None))
    }
    late = [n for n in _TOKENIZER if n in module and n not in read and callable(other)]

    def __getattr__(name: str) -> Any:  # noqa: N807 - of the module, see PEP 562
        return _tokenizer(name) if name in late else other(name)  # type: ignore[misc]

    for name in _TOKENIZER:
        if name in late:
            del module[name]
        elif name in module:
            module[name] = _tokenizer(name)
    if late:
        module["__getattr__"] = __getattr__


def _tokenizer(name: str) -> Any:
    folder = importlib.resources.files("litellm.litellm_core_utils.tokenizers")
    data = json.loads((folder / _TOKENIZER_FILE).read_text("utf-8"))
    return data if name == "json_data" else json.dumps(data)


def _names_read(code: CodeType | None) -> Iterator[str]:
    """Yield the names that a function reads from its module, and functions in it."""
    if code is not None:
        yield from code.co_names
        for each in code.co_consts:
            if isinstance(each, CodeType):
                yield from _names_read(each)


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
    try:
        yield
    finally:
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
