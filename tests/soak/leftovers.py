"""What must not pile up or stay behind: memory, open files, tasks, warnings."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Complaints", "Footprint", "open_files"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds while nothing is in flight.

    Attributes:
        requests: How many had been asked until then.
        objects: Those that the garbage collector watches.
        resident_bytes: Memory in use, as the system counts it.
        tasks: Unfinished tasks on the loop.
        files: Open file descriptors.
    """

    requests: int
    objects: int
    resident_bytes: int
    tasks: int
    files: int

    @classmethod
    def now(cls, requests: int) -> Self:
        """Measure, after a collection."""
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE
        tasks, files = len(asyncio.all_tasks()), len(open_files())
        return cls(requests, len(gc.get_objects()), resident, tasks, files)


def open_files() -> dict[str, str]:
    """Each open descriptor, and what it leads to."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:  # the directory's own, for this listing
            continue
    return found


class Complaints:
    """Collects what Python says of things forgotten: unclosed, never awaited, never retrieved.

    asyncio's debug mode would say more, but makes the loop several times slower and keeps a
    traceback for every task, which is memory that this run measures.
    """

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()
        self._recorder = warnings.catch_warnings(record=True)
        self._warnings: list[warnings.WarningMessage] = []
        self._handler = _Listener(self.heard)
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> Self:
        self._warnings = self._recorder.__enter__() or []
        warnings.simplefilter("ignore")
        for kind in (ResourceWarning, RuntimeWarning):
            warnings.simplefilter("always", kind)
        for name in ("asyncio", "aigateway"):
            logging.getLogger(name).addHandler(self._handler)
        sys.unraisablehook = self._note_unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.unraisablehook = self._unraisable
        for name in ("asyncio", "aigateway"):
            logging.getLogger(name).removeHandler(self._handler)
        self.collect()
        self._recorder.__exit__(kind, error, traceback)

    def collect(self) -> None:
        """Let garbage complain, and take up what was warned of."""
        gc.collect()
        for warning in self._warnings:
            self.heard[f"{warning.category.__name__}: {warning.message}"] += 1
        self._warnings.clear()

    def _note_unraisable(self, raised: Any) -> None:
        self.heard[f"raised where nobody can catch it: {raised.exc_value!r}"] += 1


class _Listener(logging.Handler):
    """asyncio's complaints, and errors of ours that no vendor caused."""

    def __init__(self, heard: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio" or record.exc_info:
            message = record.getMessage().splitlines()[0]
            error = record.exc_info[1] if record.exc_info else None
            self._heard[f"log of {record.name}: {message} {error or ''}".strip()] += 1
