"""What the service itself has refused: counted, and told in the log without flooding it."""

from __future__ import annotations

import logging
from collections import Counter

from aigateway.clock import Clock
from aigateway.server.http.errors import Refusal

__all__ = ["Complaints"]

_log = logging.getLogger("aigateway.server")

_LATELY = 60.0
"""Seconds in which the same refusal of the same key is told once."""

_MOST = 1000
"""Kinds that are remembered of addresses, and of keys: a flood of addresses hides no key."""


class Complaints:
    """Takes note of refusals. For one event loop.

    Args:
        clock: Time.

    Attributes:
        counts: How many there were, by code (or status, where there is none).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Of keys and of addresses, the oldest first.
        self._of_keys: dict[tuple[str | None, str], tuple[float, int]] = {}
        self._of_peers: dict[tuple[str | None, str], tuple[float, int]] = {}
        self.counts: Counter[str] = Counter()

    def note(self, refusal: Refusal, peer: str | None = None) -> None:
        """Count one, and tell it if the same was not told a moment ago.

        Args:
            refusal: What was said.
            peer: The address that a request came from whose key is not known.
        """
        code = refusal.code or str(refusal.status)
        self.counts[code] += 1
        kind, now = (refusal.caller or peer, code), self._clock.now()
        told = self._of_keys if refusal.caller else self._of_peers
        since, silent = told.get(kind, (None, 0))
        if since is not None and now - since < _LATELY:
            told[kind] = (since, silent + 1)
            return
        told.pop(kind, None)
        while len(told) >= _MOST:
            oldest = next(iter(told))
            if now - told[oldest][0] < _LATELY:
                return  # so many addresses are a flood; they are counted
            del told[oldest]
        told[kind] = (now, 0)
        more = f", {silent} times more before" if silent else ""
        whose = f"the key {refusal.caller!r}" if refusal.caller else peer or "somebody"
        _log.warning("service.refused: %s got HTTP %d (%s)%s.", whose, refusal.status, code, more)
