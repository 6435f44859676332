"""How many files and sockets a process may have open: enough for what the settings let in.

Many systems start a process with 1,024 and let it take more if it asks.
"""

from __future__ import annotations

import contextlib
import logging
import resource

from aigateway.server.process.configuration import Configuration

__all__ = ["raise_limit"]

_log = logging.getLogger(__name__)

_BESIDE = 64
"""Descriptors of a process that are neither a caller's nor a vendor's connection."""


def raise_limit(configuration: Configuration) -> None:
    """Take as many descriptors as this process may have, and say so if these are too few.

    Processes that it forks have as many, each.

    Args:
        configuration: What they have to be enough for.
    """
    connections = configuration.server.max_connections
    calls = configuration.gateway.max_concurrency
    needed = connections + calls + _BESIDE
    allowed = _raised(needed)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        _log.warning(
            "descriptors.few: this process may have %d files and sockets open, and"
            " max_connections = %d and max_concurrency = %d can need %d. Beyond that, callers are"
            " not let in and vendors not asked. Raise the hard limit (ulimit -Hn, LimitNOFILE=,"
            " --ulimit nofile=), or lower these settings.",
            allowed,
            connections,
            calls,
            needed,
        )


def _raised(needed: int) -> int:
    """The limit as it is after all that could be done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wish in (hard, needed):  # macOS says "unlimited" and means less
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))
            return wish
    return soft
