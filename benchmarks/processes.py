"""What other processes cost, from Linux' /proc: CPU and memory of one and of all that it began."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of all processes together.

    Attributes:
        peak: The most that was resident since the start, each process by itself.
        resident: What is now. Pages that processes share count in each.
        shared_once: The same, but a page that several share counts once.
    """

    peak: float
    resident: float
    shared_once: float


@dataclass(frozen=True, slots=True)
class Processes:
    """A process and its descendants of the moment."""

    pid: int

    def cpu_seconds(self) -> float:
        """User's and system's time of all, since each began, threads that have ended included."""
        return sum(_cpu_seconds(pid) for pid in _with_descendants(self.pid))

    def busiest(self) -> int:
        """The one that has used the most CPU by itself."""
        return max(_with_descendants(self.pid), key=_cpu_seconds)

    def memory(self) -> Memory:
        """What they hold and have held."""
        pids = list(_with_descendants(self.pid))
        return Memory(
            peak=sum(_megabytes(pid, "status", "VmHWM") for pid in pids),
            resident=sum(_megabytes(pid, "status", "VmRSS") for pid in pids),
            shared_once=sum(_megabytes(pid, "smaps_rollup", "Pss") for pid in pids),
        )


def _with_descendants(pid: int) -> Iterator[int]:
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [pid]
    while found:
        each = found.pop()
        yield each
        found += [child for child, parent in parents.items() if parent == each]


def _cpu_seconds(pid: int) -> float:
    """Read the clock of a process as clock_getcpuclockid(3) has it: nanoseconds, not ticks."""
    return time.clock_gettime((~pid << 3) | 2)


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may have spaces; see proc(5)."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _megabytes(pid: int, file: str, name: str) -> float:
    text = (_PROC / str(pid) / file).read_text()
    found = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{file} of process {pid} has no {name}")
    return int(found[1]) / 1024
