"""The script of a simulation as text: `openai:2s=status:500,openai:5s=ok`.

An entry is `vendor:time=fault`: the vendor's name (or `all`), when (seconds by default; `ms`, `s`
and `m` may follow), and a fault as in `aigateway.simulator.faults.fault_from`. Commas
or line ends separate entries; `#` begins a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from aigateway.errors import ConfigurationError
from aigateway.simulator.faults import fault_from
from aigateway.simulator.script import Step
from aigateway.simulator.vendor import SimulatedVendor

__all__ = ["Timeline", "follow", "parse_timeline", "read_timeline"]

Timeline = dict[str, list[Step]]
"""Steps by the name of the vendor, or "all"."""

_ENTRY = re.compile(r"(?P<vendor>[\w.-]+):(?P<at>\d+(?:\.\d+)?)(?P<unit>ms|s|m|)=(?P<fault>.+)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}


def parse_timeline(text: str) -> Timeline:
    """Read a timeline.

    Raises:
        ConfigurationError: An entry cannot be read; the message shows it and the reason.
    """
    timeline: Timeline = {}
    for line in text.splitlines():
        for entry in filter(None, map(str.strip, line.partition("#")[0].split(","))):
            vendor, step = _entry(entry)
            timeline.setdefault(vendor, []).append(step)
    return timeline


def read_timeline(given: str | Path) -> Timeline:
    """Read a timeline from a file if `given` names one, else from `given` itself.

    Raises:
        ConfigurationError: As `parse_timeline`, or the file cannot be read.
    """
    is_file = isinstance(given, Path) or "=" not in given
    if not is_file:
        return parse_timeline(str(given))
    try:
        return parse_timeline(Path(given).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"timeline {str(given)!r} is neither entries like openai:2s=status:500 "
            f"nor a file that can be read ({type(error).__name__})"
        ) from None


def follow(timeline: Timeline, vendors: Iterable[SimulatedVendor]) -> None:
    """Start a timeline now.

    Raises:
        ConfigurationError: It names an unknown vendor.
    """
    named = {vendor.name: vendor for vendor in vendors}
    unknown = sorted(timeline.keys() - named.keys() - {"all"})
    if unknown:
        raise ConfigurationError(
            f"timeline: no vendor {unknown[0]!r}; there are {', '.join(named)} and all"
        )
    for name, vendor in named.items():
        steps = timeline.get(name, []) + timeline.get("all", [])
        if steps:
            vendor.timeline(steps)


def _entry(entry: str) -> tuple[str, Step]:
    found = _ENTRY.fullmatch(entry)
    if not found:
        raise ConfigurationError(
            f"timeline entry {entry!r} is not vendor:time=fault, as in openai:2s=status:500"
        )
    try:
        fault = fault_from(found["fault"])
    except ValueError as error:
        raise ConfigurationError(f"timeline entry {entry!r}: {error}") from None
    return found["vendor"], (float(found["at"]) * _UNITS[found["unit"]], fault)
