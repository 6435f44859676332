"""One token bucket for all calls that need not be made: retries, further rounds and hedges.

Where many requests fail, each of them asking again multiplies the load just when it hurts most.
The shape (a share of the requests, and a little with time) is that of Finagle's RetryBudget.
"""

from __future__ import annotations

from aigateway.clock import Clock

__all__ = ["ExtraCalls"]

STOCK = 10.0
"""Tokens at the start, so that the first requests of all may be retried."""

MOST = 50.0
"""Tokens at most: what a quiet hour has saved must not become a storm in the next second."""


class ExtraCalls:
    """How many extra calls may be made. Synchronous, for one event loop.

    Args:
        clock: Time brings tokens too.
        share: Tokens that each request brings.
        per_second: Tokens that each second brings.
    """

    __slots__ = ("_clock", "_looked", "_per_second", "_share", "_tokens")

    def __init__(self, clock: Clock, *, share: float = 0.2, per_second: float = 1.0) -> None:
        self._clock = clock
        self._share = share
        self._per_second = per_second
        self._tokens = STOCK
        self._looked = clock.now()

    @property
    def balance(self) -> float:
        """Tokens there are now."""
        now = self._clock.now()
        self._tokens = min(MOST, self._tokens + (now - self._looked) * self._per_second)
        self._looked = now
        return self._tokens

    def request(self) -> None:
        """A request has come in."""
        self._tokens = min(MOST, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one extra call may be made; if so, it is paid for."""
        if self.balance < 1.0:
            return False
        self._tokens -= 1.0
        return True
