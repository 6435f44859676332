"""The circuit breaker: it stops calls to a provider that keeps failing.

Plain synchronous state for one event loop: no I/O, no task, no timer, no lock. The states::

    CLOSED ──(threshold-th consecutive failure)──▶ OPEN
    OPEN ──(its time is over and a caller asks)──▶ HALF_OPEN, that caller is the probe
    HALF_OPEN ──(probe succeeds)──▶ CLOSED
    HALF_OPEN ──(probe fails, or its lease ends)──▶ OPEN, for twice as long
    OPEN, HALF_OPEN ──(a last-resort attempt succeeds)──▶ CLOSED

Failures with the same cause (one request and its repeats) count once in a streak: one prompt that
the provider chokes on must not open the circuit for all other callers.

Not here: rate limits and bad keys (`cooldown.py`), the number of last-resort attempts
(`last_resort.py`), and whether a failure is the provider's fault (`wires/failures.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Hashable
from enum import StrEnum
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import CircuitOpenError, ConfigurationError

__all__ = ["MOST_CAUSES", "CircuitBreaker", "CircuitState", "Permit", "Rejected"]
# Not `FleetBreaker` and `CircuitAdvisor`: they are no part of the public face.

P = ParamSpec("P")
T = TypeVar("T")

JITTER = 0.1
"""Share of the open time that is added at random: many processes must not probe at once."""

MOST_CAUSES = 1000
"""Distinct causes of one streak that are remembered; beyond these, each failure counts."""

Change = Literal["failed", "answered", "set"]
"""Why a state changed: own failures, an own answer, or anything else."""

_log = logging.getLogger(__name__)


class CircuitState(StrEnum):
    """How a breaker treats the next caller."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_CLOSED = CircuitState.CLOSED
"""A name of its own: Python looks members of enumerations up slowly."""


class Permit:
    """The right to make one attempt. Settle it exactly once; later calls are ignored.

    Attributes:
        probe: The state of a half-open circuit depends on this attempt.
        last_resort: It was given although the circuit is not closed.
    """

    __slots__ = ("_breaker", "_generation", "_number", "_settled", "last_resort", "probe")

    def __init__(
        self,
        breaker: CircuitBreaker,
        generation: int,
        number: int,
        *,
        probe: bool = False,
        last_resort: bool = False,
    ) -> None:
        self._breaker = breaker
        self._generation = generation
        self._number = number
        self._settled = False
        self.probe = probe
        self.last_resort = last_resort

    def success(self) -> None:
        """Report that the provider answered."""
        if not self._settled:
            self._settled = True
            breaker, generation = self._breaker, self._generation
            same = generation == breaker._generation  # noqa: SLF001
            if same and breaker.state is _CLOSED and not breaker._streak:  # noqa: SLF001
                return  # nothing to change
            breaker._succeeded(self, generation, self._number)  # noqa: SLF001

    def failure(self, cause: Hashable = None) -> None:
        """Report that the provider failed, through its own fault.

        Args:
            cause: Identifies the request. Failures with an equal cause count once in a streak; None
                always counts.
        """
        if not self._settled:
            self._settled = True
            self._breaker._failed(self, self._generation, cause)  # noqa: SLF001

    def release(self) -> None:
        """Report an end that says nothing: cancelled, or the caller's mistake. Frees a probe."""
        if not self._settled:
            self._settled = True
            self._breaker._released(self, self._generation)  # noqa: SLF001


class Rejected:
    """The breaker's refusal. It is a value: in an outage a refused call is the ordinary case.

    Attributes:
        retry_after: Seconds until the breaker allows a probe; 0 while a probe is in flight (its
            result may come at any moment), infinite while the circuit is forced open.
    """

    __slots__ = ("retry_after",)

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"Rejected(retry_after={self.retry_after:.3f})"


_PROBE_IS_OUT = Rejected(0.0)
_FORCED = Rejected(math.inf)


class CircuitBreaker:
    """A circuit breaker for one provider, or for anything else that can fail.

    Args:
        failure_threshold: Consecutive failures, of distinct causes, that open the circuit.
        reset_timeout_seconds: How long it stays open before it allows one probe. Each further
            opening without a close in between doubles this and adds up to 10 % jitter.
        max_open_seconds: The limit of the doubling (never below `reset_timeout_seconds`).
        probe_lease_seconds: A probe that is not settled by then counts as failed.
        clock: The source of time and randomness.
        on_change: Called as `on_change(old, new)` after each change of state.

    Raises:
        ConfigurationError: A number is not positive and finite.
    """

    __slots__ = (
        "_causes",
        "_forced",
        "_generation",
        "_issued",
        "_lease_ends",
        "_open_until",
        "_openings",
        "_probe",
        "_streak",
        "_streak_began",
        "clock",
        "failure_threshold",
        "late_results",
        "max_open_seconds",
        "on_change",
        "probe_lease_seconds",
        "reset_timeout_seconds",
        "state",
    )

    def __init__(
        self,
        failure_threshold: int = 5,
        reset_timeout_seconds: float = 60.0,
        *,
        max_open_seconds: float = 120.0,
        probe_lease_seconds: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[CircuitState, CircuitState], None] | None = None,
    ) -> None:
        _require_positive("failure_threshold", failure_threshold)
        _require_positive("reset_timeout_seconds", reset_timeout_seconds)
        _require_positive("max_open_seconds", max_open_seconds)
        _require_positive("probe_lease_seconds", probe_lease_seconds)
        self.failure_threshold = failure_threshold
        self.reset_timeout_seconds = reset_timeout_seconds
        self.max_open_seconds = max(max_open_seconds, reset_timeout_seconds)
        self.probe_lease_seconds = probe_lease_seconds
        self.clock = clock
        self.on_change = on_change
        self.late_results = 0
        """Results of permits from before the latest change of state; they changed nothing."""
        self._issued = 0  # permits ever given; numbers them in the order they began
        self._generation = 0  # counts changes of state; a permit of an older one is late
        self._forced = False
        self._openings = 0  # in a row, without a close in between
        self.state = CircuitState.CLOSED
        """The state as of the last caller: an open circuit whose time is over is still "open"."""
        self._streak = 0  # consecutive failures of distinct causes
        self._causes: set[Hashable] = set()  # those of the streak
        self._streak_began = 0  # how many permits had been given at its first failure
        self._open_until = math.inf
        self._probe: Permit | None = None
        self._lease_ends = math.inf

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.state}, failures={self._streak}/{self.failure_threshold})"

    @property
    def terms(self) -> tuple[int, float, float, float]:
        """Its settings: threshold, reset timeout, longest open time, lease of a probe."""
        return (
            self.failure_threshold,
            self.reset_timeout_seconds,
            self.max_open_seconds,
            self.probe_lease_seconds,
        )

    @property
    def consecutive_failures(self) -> int:
        """Failures of distinct causes since the last success that counts."""
        return self._streak

    @property
    def forced(self) -> bool:
        """Whether an operator has set the state, which then does not change."""
        return self._forced

    def acquire(self) -> Permit | Rejected:
        """Ask to make one attempt. Settle the permit, or return it with `release()`."""
        if self.state is _CLOSED:
            self._issued += 1
            return Permit(self, self._generation, self._issued)
        refusal = self.refusal()
        if refusal is not None:
            return refusal
        return self._send_probe()

    def acquire_last_resort(self) -> Permit | Rejected:
        """Ask to make one attempt although the circuit is not closed.

        A success closes the circuit. A failure changes nothing. For callers that have no other
        provider left; they limit the number of such attempts. An open circuit whose time is over
        gives a probe instead. Rejects only while the circuit is forced open.
        """
        permit = self.acquire()
        if isinstance(permit, Permit) or self._forced:
            return permit
        self._issued += 1
        return Permit(self, self._generation, self._issued, last_resort=True)

    def refusal(self) -> Rejected | None:
        """Return the refusal that `acquire` would give now, else None. Begins no probe."""
        if self.state is CircuitState.CLOSED:
            return None
        if self._forced:
            return _FORCED
        now = self.clock.now()
        if self._probe is not None:
            if now < self._lease_ends:
                return _PROBE_IS_OUT
            self._open()
        if self.state is CircuitState.OPEN and now < self._open_until:
            return Rejected(self._open_until - now)
        return self._probe_refusal()

    async def call(
        self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await `function(*args, **kwargs)` under this breaker.

        Any `Exception` counts as a failure; cancellation is neutral.

        Raises:
            CircuitOpenError: The call was refused; `function` was not called.
        """
        permit = self.acquire()
        if isinstance(permit, Rejected):
            raise CircuitOpenError(
                f"The circuit is {self.state}; retry in {permit.retry_after:.1f} s.",
                permit.retry_after,
            )
        try:
            result = await function(*args, **kwargs)
        except Exception:
            permit.failure()
            raise
        except BaseException:
            permit.release()
            raise
        permit.success()
        return result

    def force_open(self) -> None:
        """Refuse every call until `force_closed()` or `reset()`."""
        self._forced = True
        self._change(CircuitState.OPEN)

    def force_closed(self) -> None:
        """Allow every call, whatever fails, until `force_open()` or `reset()`."""
        self._forced = True
        self._change(CircuitState.CLOSED)

    def reset(self) -> None:
        """Return to the initial state: closed, no failures, not forced."""
        self._forced = False
        self._change(CircuitState.CLOSED)

    # ── reports of permits ───────────────────────────────────────────────────────────────────

    def _succeeded(self, permit: Permit, generation: int, number: int) -> None:
        if generation != self._generation:
            self.late_results += 1
        elif permit is self._probe or permit.last_resort:
            self._change(CircuitState.CLOSED, "answered")
        elif self._streak and number > self._streak_began:
            # A call that began before the streak says nothing about the provider since then.
            self._streak = 0
            self._causes.clear()

    def _failed(self, permit: Permit, generation: int, cause: Hashable) -> None:
        if generation != self._generation:
            self.late_results += 1
        elif permit is self._probe:
            self._open()
        elif not permit.last_resort and cause not in self._causes:
            if cause is not None and len(self._causes) < MOST_CAUSES:
                self._causes.add(cause)
            if not self._streak:
                self._streak_began = self._issued
            self._streak += 1
            if self._is_enough() and not self._forced:
                self._open()

    def _released(self, permit: Permit, generation: int) -> None:
        if generation != self._generation:
            self.late_results += 1
        elif permit is self._probe:
            self._probe = None

    # ── changes of state ─────────────────────────────────────────────────────────────────────

    def _send_probe(self) -> Permit:
        old = self.state
        if old is CircuitState.OPEN:
            self._start(CircuitState.HALF_OPEN)
        self._issued += 1
        probe = Permit(self, self._generation, self._issued, probe=True)
        self._probe = probe
        self._lease_ends = self.clock.now() + self.probe_lease_seconds
        # Only now: a listener that asks for a permit must find that a probe is in flight.
        self._notify(old)
        return probe

    def _open(self) -> None:
        self._openings += 1
        open_time = self._open_time(self._openings)
        if self._openings > 1:
            jitter = open_time * JITTER * self.clock.random()
            # At the upper limit it is subtracted, so that processes differ there, too.
            longer = open_time + jitter
            open_time = longer if longer <= self.max_open_seconds else open_time - jitter
        old = self.state
        self._start(CircuitState.OPEN)
        self._open_until = self.clock.now() + open_time
        self._changed("failed", old)

    def _open_time(self, openings: int) -> float:
        # The exponent is bounded: 2.0 ** 1024 would overflow after a long outage.
        return min(self.reset_timeout_seconds * 2.0 ** min(openings - 1, 60), self.max_open_seconds)

    def _change(self, new: CircuitState, how: Change = "set") -> None:
        old = self.state
        if new is CircuitState.CLOSED:
            self._openings = 0
        self._start(new)
        self._changed(how, old)

    # ── what other processes may have a say in; see `FleetBreaker` ───────────────────────────

    def _is_enough(self) -> bool:
        """Return whether the failures in a row open the circuit; called once after each."""
        return self._streak >= self.failure_threshold

    def _probe_refusal(self) -> Rejected | None:
        """Return why no probe may begin now, although the open time is over."""
        return None

    def _changed(self, how: Change, old: CircuitState) -> None:  # noqa: ARG002
        """Note a change of the state, which is complete."""
        self._notify(old)

    def _start(self, state: CircuitState) -> None:
        self.state = state
        self._generation += 1
        self._streak = 0
        if self._causes:
            self._causes.clear()
        self._streak_began = 0
        self._probe = None
        self._lease_ends = math.inf
        self._open_until = math.inf

    def _notify(self, old: CircuitState) -> None:
        if self.on_change is None or old is self.state:
            return
        try:
            self.on_change(old, self.state)
        except Exception:  # noqa: BLE001 - a listener's fault must not look like the provider's
            _log.exception("A circuit's listener raised; the circuit itself is not affected.")


class CircuitAdvisor(Protocol):
    """What a breaker hears from other processes and tells them. Synchronous; it must not raise."""

    def failed(self) -> bool:
        """Note a failure in a closed circuit; return whether it is enough to open it."""

    def probe_wait(self) -> float:
        """Return the seconds until this process may probe; 0.0 if now. Changes nothing."""

    def probe_begun(self) -> None:
        """Note that a probe has begun."""

    def changed(self, how: Change) -> None:
        """Note that the state has changed."""


class FleetBreaker(CircuitBreaker):
    """A circuit breaker that heeds what other processes see of the same provider.

    Without an advisor it is an ordinary one. With it also (a forced circuit stays as it is)::

        CLOSED ──(its first failure, and another process voted)──▶ OPEN
        CLOSED ──(several others voted)──▶ OPEN on hearsay
        OPEN, HALF_OPEN on hearsay ──(a call that began before succeeds)──▶ CLOSED
        OPEN, HALF_OPEN on hearsay ──(the provider answered another process)──▶ CLOSED
        OPEN after own failures ──(the provider answered another process)──▶ its time is over

    Attributes:
        advisor: What other processes know; None if there are none.
        by_others: The latest change of state came from other processes.
    """

    __slots__ = ("_hearsay", "advisor", "by_others")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.advisor: CircuitAdvisor | None = None
        self.by_others = False
        self._hearsay = -1  # open on the word of others: the generation before; else -1

    @property
    def openings(self) -> int:
        """How often it has opened in a row, without a close in between."""
        return self._openings

    @property
    def open_until(self) -> float:
        """The end of its open time, on the clock's own scale; infinite if it has none."""
        return self._open_until

    @property
    def causes(self) -> frozenset[Hashable]:
        """Those of the failures in a row."""
        return frozenset(self._causes)

    @property
    def on_hearsay(self) -> bool:
        """Whether it is open on the word of others, without a failure of its own."""
        return self._hearsay >= 0

    @property
    def probing(self) -> bool:
        """Whether a probe is in flight."""
        return self._probe is not None

    def open_on_warning(self) -> None:
        """Open a closed circuit that has failures in a row: others see the provider fail, too."""
        if self.state is CircuitState.CLOSED and self._streak and not self._forced:
            self._open()

    def open_on_hearsay(self, seconds: float, openings: int) -> None:
        """Open a closed circuit because others see the provider fail.

        If a call that is in flight now succeeds, it closes again: what this process sees itself
        counts more.

        Args:
            seconds: The open time, at most `max_open_seconds`.
            openings: How often the others have opened in a row.
        """
        if self.state is not CircuitState.CLOSED or self._forced:
            return
        before = self._generation
        self._start(CircuitState.OPEN)
        self._openings, self._hearsay, self.by_others = openings, before, True
        self._open_until = self.clock.now() + min(seconds, self.max_open_seconds)
        self._changed("set", CircuitState.CLOSED)

    def put_off(self, seconds: float, openings: int) -> None:
        """Stay open for longer, since a probe of another process has failed; as above."""
        if self.state is CircuitState.OPEN and not self._forced:
            self._openings = max(self._openings, openings)
            until = self.clock.now() + min(seconds, self.max_open_seconds)
            self._open_until = max(self._open_until, until)

    def answered_elsewhere(self) -> None:
        """Close, or end the open time after own failures: another process had an answer."""
        if self._forced or self.state is CircuitState.CLOSED:
            return
        if self.on_hearsay:
            old = self.state
            self._openings = 0
            self._start(CircuitState.CLOSED)
            self.by_others = True
            self._changed("set", old)
        elif self.state is CircuitState.OPEN:
            self._open_until = min(self._open_until, self.clock.now())

    def _is_enough(self) -> bool:
        confirmed = self.advisor is not None and self.advisor.failed()
        return confirmed or super()._is_enough()

    def _probe_refusal(self) -> Rejected | None:
        wait = 0.0 if self.advisor is None else self.advisor.probe_wait()
        return Rejected(wait) if wait > 0 else None

    def _send_probe(self) -> Permit:
        probe = super()._send_probe()
        if self.advisor is not None:
            self.advisor.probe_begun()
        return probe

    def _succeeded(self, permit: Permit, generation: int, number: int) -> None:
        if generation == self._hearsay:
            self._change(CircuitState.CLOSED)
        else:
            super()._succeeded(permit, generation, number)

    def _start(self, state: CircuitState) -> None:
        super()._start(state)
        self.by_others = False
        if state is not CircuitState.HALF_OPEN:
            self._hearsay = -1

    def _changed(self, how: Change, old: CircuitState) -> None:
        if self.advisor is not None:
            self.advisor.changed(how)
        super()._changed(how, old)


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a positive, finite number; got {value!r}.")
