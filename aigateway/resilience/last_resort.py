"""How many attempts a provider gets whose circuit is not closed, when no other provider is left.

The circuit spares vendors; it must not be the outage. So a request whose other candidates are used
up may ask through an open circuit, in measured doses: an answer pays for ten such attempts, and an
empty balance still allows one at a time and four a second. (One that has been out for a second
keeps no other back.) A provider that fails half of its calls is then asked by every request, and a
dead one gets a trickle. Envoy calls the idea "panic mode".

A provider that comes back from an empty balance meets everybody who waited for it. Those are let
out at a pace that begins just above the rate at which requests arrive, and doubles each second.
"""

from __future__ import annotations

import math

from aigateway.clock import Clock
from aigateway.resilience.guard import AttemptOutcome, Effect

__all__ = ["LastResort"]

GAIN = 10.0
"""Attempts that one answer pays for."""

MOST = 100.0
"""Attempts that can be saved. They are lost on a provider that dies, once."""

TRICKLE = 0.25
"""Seconds between two attempts on an empty balance; twice that once many in a row have failed."""

_MANY = 20

OVERDUE = 1.0
"""Seconds after which an attempt that is out keeps no other back: a vendor that hangs would
otherwise be asked once in each attempt timeout, and be found well that much too late."""

RAMP = 5.0
"""Seconds after which a provider that came back is asked without a bound again."""

_LEAST_PACE = 8.0
"""Attempts a second at the beginning of the ramp, at least."""

_BURST = 1 / 8
"""Seconds of the pace that are saved on the ramp: one attempt at the least pace."""

_ABOVE_ARRIVALS = 1.5
"""That pace, as a multiple of the rate at which requests arrive."""

_NOTHING = 1e-6
"""Share of an attempt that is not waited for: so short a wait might not move the clock."""


class LastResort:
    """The balance of one operation of one provider. Synchronous, for one event loop.

    Attributes:
        quiet: The balance is full and nothing is under way: with a closed circuit, an attempt and
        an
            answer change nothing.
    """

    __slots__ = (
        "_clock",
        "_failed",
        "_last",
        "_out",
        "_purse",
        "_ramp_began",
        "_ramp_credit",
        "_ramp_looked",
        "_ramp_pace",
        "_seen",
        "_seen_before",
        "_seen_since",
        "quiet",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.quiet = False
        self._purse = 0.0  # whole attempts
        self._out = 0
        self._failed = 0  # attempts on an empty balance, since the last answer
        self._last = -math.inf
        self._ramp_began = math.inf  # no ramp
        self._ramp_pace = 0.0
        self._ramp_credit = 0.0
        self._ramp_looked = 0.0
        self._seen = 0  # requests in this second that had no other provider left
        self._seen_before = 0  # and in the one before
        self._seen_since = -math.inf

    def abandon(self) -> None:
        """Forget the attempts that are out: their event loop is gone."""
        self._out = 0

    @property
    def balance(self) -> float:
        """Attempts that are paid for."""
        return self._purse

    @property
    def pending(self) -> bool:
        """Whether an attempt on an empty balance is out: others may wait for its end."""
        return self._out > 0

    @property
    def ramping(self) -> bool:
        """Whether the provider has come back and is asked at a measured pace."""
        return self._ramp_began < math.inf

    def seen(self) -> None:
        """A request has come that has no other provider left; each request counts once."""
        now = self._clock.now()
        if now - self._seen_since >= 1.0:
            self._seen_before = self._seen if now - self._seen_since < 2.0 else 0
            self._seen, self._seen_since = 0, now
        self._seen += 1

    def wait(self) -> float:
        """Seconds until an attempt may begin while the circuit is not closed; 0.0 if now."""
        if self._purse > 0:
            return 0.0
        pause = OVERDUE if self._out else TRICKLE * (1 + (self._failed >= _MANY))
        return max(0.0, self._last + pause - self._clock.now())

    def ramp_wait(self) -> float:
        """Seconds until an attempt may begin on the ramp, with the circuit closed; 0.0 if now."""
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
        """An attempt begins. Returns whether it is on an empty balance, as `end` wants to know.

        Args:
            closed: Whether the circuit is.
        """
        if closed:
            self._ramp_credit -= 1.0  # read on a ramp only
            return False
        self.quiet = False
        self._ramp_began = math.inf  # it has gone away again; the next return has its own ramp
        self._last = self._clock.now()
        if self._purse > 0:
            self._purse -= 1.0
            return False
        self._out += 1
        return True

    def end(self, trickled: bool, outcome: AttemptOutcome) -> None:
        """An attempt ended."""
        if trickled and self._out:
            self._out -= 1
        if outcome.effect is not Effect.ANSWERED:
            self._failed += trickled and outcome.effect is Effect.FAILED
            return
        self._failed = 0
        if trickled and not self.ramping:
            self._begin_ramp()
        self._purse = min(MOST, self._purse + GAIN)
        self.quiet = self._purse == MOST and not self._out and not self.ramping

    def _begin_ramp(self) -> None:
        now = self._clock.now()
        recent = now - self._seen_since < 2.0
        arrivals = max(self._seen, self._seen_before) * recent
        self._ramp_pace = max(_LEAST_PACE, _ABOVE_ARRIVALS * arrivals)
        self._ramp_began = self._ramp_looked = now
        self._ramp_credit = 1.0
