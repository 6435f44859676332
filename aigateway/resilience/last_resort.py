"""Attempts through a circuit that is not closed, when a request has no other provider left.

The circuit spares vendors; it must not be the outage. So a request without another candidate may
call through an open circuit, in measured doses: an answer pays for ten such attempts, and an empty
balance still allows one at a time and four a second. (One that takes longer than a second no longer
blocks the next.) So a provider that fails half of its calls gets every request, and a dead one gets
a trickle. Envoy calls the idea "panic mode".

When a provider recovers from an empty balance, all waiting requests want to call it. They begin at
a pace just above the rate at which requests arrive, which doubles each second (the ramp).
"""

from __future__ import annotations

import math

from aigateway.clock import Clock
from aigateway.resilience.guard import AttemptOutcome, Effect

__all__ = ["LastResort"]

GAIN = 10.0
"""Attempts that one answer pays for."""

MOST = 100.0
"""Most attempts in the balance: a provider that dies costs so many failures, once."""

TRICKLE = 0.25
"""Seconds between two attempts on an empty balance; twice that after many failures in a row."""

_MANY = 20

OVERDUE = 1.0
"""Seconds after which an attempt in flight no longer blocks the next: a vendor that hangs would
otherwise be called once in each attempt timeout, and its recovery noticed that much later."""

RAMP = 5.0
"""Seconds after which a recovered provider is called without limit again."""

_LEAST_PACE = 8.0
"""Attempts a second at the beginning of the ramp, at least."""

_BURST = 1 / 8
"""Seconds of unused pace that the ramp keeps: one attempt at the least pace."""

_ABOVE_ARRIVALS = 1.5
"""That pace, as a multiple of the rate at which requests arrive."""

_NOTHING = 1e-6
"""Share of an attempt that needs no wait: so short a wait might not move the clock."""


class LastResort:
    """The balance of one operation of one provider. Synchronous, for one event loop.

    Attributes:
        balance: Attempts that are paid for.
        quiet: The balance is full and nothing is in flight: while the circuit is closed, attempts
            and answers change nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Return to the initial state."""
        self.quiet = False
        self.balance = 0.0
        self._out = 0  # attempts in flight on an empty balance
        self._failed = 0  # attempts on an empty balance, since the last answer
        self._last = -math.inf
        self._ramp_began = math.inf  # no ramp
        self._ramp_pace = 0.0
        self._ramp_credit = 0.0
        self._ramp_looked = 0.0
        self._seen = 0  # requests of this second that had no other provider left
        self._seen_before = 0  # and in the one before
        self._seen_since = -math.inf

    def abandon(self) -> None:
        """Forget the attempts in flight: their event loop is gone."""
        self._out = 0

    @property
    def pending(self) -> bool:
        """Whether an attempt on an empty balance is in flight: others may wait for its end."""
        return self._out > 0

    @property
    def ramping(self) -> bool:
        """Whether the provider has recovered and is called at a measured pace."""
        return self._ramp_began < math.inf

    def seen(self) -> None:
        """Count a request that has no other provider left; once for each request."""
        now = self._clock.now()
        if now - self._seen_since >= 1.0:
            self._seen_before = self._seen if now - self._seen_since < 2.0 else 0
            self._seen, self._seen_since = 0, now
        self._seen += 1

    def wait(self) -> float:
        """Return the seconds until an attempt may begin with the circuit not closed; 0.0 if now."""
        if self.balance > 0:
            return 0.0
        pause = OVERDUE if self._out else TRICKLE * (1 + (self._failed >= _MANY))
        return max(0.0, self._last + pause - self._clock.now())

    def ramp_wait(self) -> float:
        """Return the seconds until an attempt may begin on the ramp; 0.0 if now."""
        now = self._clock.now()
        age = now - self._ramp_began
        if age >= RAMP:
            self._ramp_began = math.inf
            return 0.0
        pace = self._ramp_pace * 2.0 ** int(age)
        credit = self._ramp_credit + (now - self._ramp_looked) * pace
        self._ramp_credit, self._ramp_looked = min(credit, pace * _BURST), now
        lacking = 1.0 - self._ramp_credit
        if lacking <= _NOTHING:
            return 0.0
        return min(lacking / pace, max(_NOTHING, 1.0 - age % 1.0))  # then the pace doubles

    def begin(self, *, closed: bool) -> bool:
        """Record that an attempt begins; return whether it is on an empty balance, for `end`.

        Args:
            closed: Whether the circuit is closed.
        """
        if closed:
            self._ramp_credit -= 1.0  # used on a ramp only
            return False
        self.quiet = False
        self._ramp_began = math.inf  # it fails again; the next recovery has its own ramp
        self._last = self._clock.now()
        if self.balance > 0:
            self.balance -= 1.0
            return False
        self._out += 1
        return True

    def end(self, trickled: bool, outcome: AttemptOutcome) -> None:
        """Record how an attempt ended."""
        if trickled and self._out:
            self._out -= 1
        if outcome.effect is not Effect.ANSWERED:
            self._failed += trickled and outcome.effect is Effect.FAILED
            return
        self._failed = 0
        if trickled and not self.ramping:
            self._begin_ramp()
        self.balance = min(MOST, self.balance + GAIN)
        self.quiet = self.balance == MOST and not self._out and not self.ramping

    def _begin_ramp(self) -> None:
        now = self._clock.now()
        recent = now - self._seen_since < 2.0
        arrivals = max(self._seen, self._seen_before) * recent
        self._ramp_pace = max(_LEAST_PACE, _ABOVE_ARRIVALS * arrivals)
        self._ramp_began = self._ramp_looked = now
        self._ramp_credit = 1.0
