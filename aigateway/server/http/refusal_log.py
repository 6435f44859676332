"""Count requests that the service itself refuses, and log them without flooding the log."""

from __future__ import annotations

import logging
from collections import Counter

from aigateway.clock import Clock
from aigateway.server.http.errors import Refusal
from aigateway.telemetry.log import log_event

__all__ = ["Complaints"]

_LATELY = 60.0
"""Seconds in which the same refusal of the same key is logged once."""

_MOST = 1000
"""Refusals remembered of addresses, and of keys: a flood of addresses hides no key."""


class Complaints:
    """Counts and logs refusals. For one event loop.

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
        """Count one, and log it unless the same was logged within a minute.

        Args:
            refusal: The answer.
            peer: The address of a caller without a known key.
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
        caller = f"the key {refusal.caller!r}" if refusal.caller else peer or "an unknown address"
        more = ", and {not_logged} times since the last such line" if silent else ""
        log_event(
            logging.WARNING,
            "service.refused",
            f"{{caller}} got HTTP {{status}} ({{code}}){more}.",
            caller=caller,
            status=refusal.status,
            code=code,
            not_logged=silent,
        )
