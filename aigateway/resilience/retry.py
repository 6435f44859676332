"""Retries: further rounds over all providers, and the budgets of extra calls.

Failover to another provider is no retry and needs no pause. Waiting makes sense only when every
provider was called or passed over; then one controller of tenacity, made for one request, runs
further rounds. Where many requests fail, retries multiply the load at the worst moment: so one
budget bounds all extra calls (retries, second opinions, hedges), and another one the hedges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aigateway.clock import Clock
from aigateway.errors import ProviderFailure
from aigateway.resilience.health import ENOUGH

__all__ = [
    "HedgeBudget",
    "NoCandidateLeftError",
    "RetryBudget",
    "RetryPolicy",
    "hedge_delay",
    "load",
    "retry_rounds",
]

T = TypeVar("T")


class NoCandidateLeftError(Exception):
    """Every provider was called or passed over. Stays inside the gateway.

    Attributes:
        causes: One per provider.
        worth_waiting: Seconds until another round may help (0: any moment); None if none can.
    """

    def __init__(self, causes: Sequence[ProviderFailure], worth_waiting: float | None) -> None:
        super().__init__()
        self.causes = tuple(causes)
        self.worth_waiting = worth_waiting


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to retry, and how long to wait before. Durations are seconds.

    Attributes:
        rounds: Further rounds over all providers; 0 never waits.
        max_wait: If a wait would be longer than this, the request fails at once.
        backoff: Upper bound of the first random pause; doubles with each round.
    """

    rounds: int = 2
    max_wait: float = 10.0
    backoff: float = 0.25

    def pause(self, round_number: int, worth_waiting: float, draw: float) -> float:
        """Return the seconds before round `round_number` (from 1): `worth_waiting` plus jitter.

        Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) on
        top of `Retry-After`, never below it: an earlier call would only be refused again.
        """
        return worth_waiting + draw * self.backoff * 2.0 ** min(round_number - 1, 30)


def load() -> None:
    """Load tenacity in advance: it is imported late, and an outage may be one of descriptors."""
    import tenacity  # noqa: F401, PLC0415


async def retry_rounds(
    run_round: Callable[[], Awaitable[T]],
    first: NoCandidateLeftError,
    *,
    policy: RetryPolicy,
    clock: Clock,
    time_left: Callable[[], float],
    before_wait: Callable[[int, float], None],
) -> T:
    """Run further rounds until one answers or waiting cannot help.

    Args:
        run_round: Calls every provider once; raises `NoCandidateLeftError` if none answered.
        first: The error of the first round, which the caller ran.
        policy: How often to retry and how long to wait.
        clock: Sleeps and draws.
        time_left: Returns the seconds to the request's deadline; no wait would use them up.
        before_wait: Called with the number of the next round and the pause before it.

    Raises:
        NoCandidateLeftError: The error of the last round.
    """
    try:
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type  # noqa: PLC0415
    except OSError:  # no descriptor is left to read it with
        raise first from None

    def ended_by(state: RetryCallState) -> NoCandidateLeftError:
        error = state.outcome.exception() if state.outcome else None
        return error if isinstance(error, NoCandidateLeftError) else first

    def pause(state: RetryCallState) -> float:
        hint = ended_by(state).worth_waiting
        return policy.pause(state.attempt_number, hint or 0.0, clock.random())

    def cannot_help(state: RetryCallState) -> bool:
        hint = ended_by(state).worth_waiting
        return (
            hint is None
            or state.attempt_number > policy.rounds
            or hint > policy.max_wait
            or state.upcoming_sleep >= time_left()
        )

    def announce(state: RetryCallState) -> None:
        before_wait(state.attempt_number, state.upcoming_sleep)

    async def one_round() -> T:
        # The caller has run the first round; tenacity gets its error.
        if controller.statistics["attempt_number"] == 1:
            raise first
        return await run_round()

    controller = AsyncRetrying(
        retry=retry_if_exception_type(NoCandidateLeftError),
        wait=pause,
        stop=cannot_help,
        before_sleep=announce,
        sleep=clock.sleep,
        reraise=True,
    )
    return await controller(one_round)


STOCK = 10.0
"""Tokens at the start, so that the first requests of all may be retried."""

MOST = 50.0
"""Most tokens: an hour without retries must not allow a storm in the next second."""


class RetryBudget:
    """One token bucket for all extra calls, as in Finagle. Synchronous, for one event loop.

    Each request brings `share` tokens, and each second `per_second`.

    Attributes:
        requests: Requests whose tokens are not in the bucket yet; the caller counts them.
    """

    __slots__ = ("_clock", "_looked", "_per_second", "_share", "_tokens", "requests")

    def __init__(self, clock: Clock, *, share: float = 0.2, per_second: float = 1.0) -> None:
        self._clock = clock
        self._share = share
        self._per_second = per_second
        self._tokens = STOCK
        self.requests = 0
        self._looked = clock.now()

    @property
    def balance(self) -> float:
        """Tokens in the bucket now."""
        now = self._clock.now()
        new = (now - self._looked) * self._per_second + self.requests * self._share
        self._tokens = min(MOST, self._tokens + new)
        self._looked, self.requests = now, 0
        return self._tokens

    def take(self) -> bool:
        """Take a token for one extra call; return whether there was one."""
        if self.balance < 1.0:
            return False
        self._tokens -= 1.0
        return True


HEDGE_WINDOW = 60.0
"""Seconds over which requests and hedges are compared."""

HEDGE_FLOOR = 10
"""Hedges in a window that are allowed however few requests there were."""

_BUCKET = 1.0
"""Seconds that are counted together, so that memory does not grow with the load.

A bucket on the edge of the window counts if it has hedges, and not if it has requests: the error is
on the safe side.
"""


def hedge_delay(p95: float | None, samples: int, default: float) -> float:
    """Return the seconds before a hedge: the first provider's `p95`, if its samples are enough."""
    return default if p95 is None or samples < ENOUGH else p95


@dataclass(slots=True)
class _CallCount:
    began: float
    calls: int = 0


def _bucket(buckets: deque[_CallCount], now: float) -> _CallCount:
    if not buckets or buckets[-1].began + _BUCKET <= now:
        buckets.append(_CallCount(now))
    return buckets[-1]


class HedgeBudget:
    """Limits hedges to a share of the requests of the last minute, or a small floor."""

    __slots__ = ("_asked", "_clock", "_hedged", "_hedges", "_requests", "_share")

    def __init__(self, clock: Clock, *, most_percent: float = 5.0) -> None:
        self._clock = clock
        self._share = most_percent / 100
        self._asked: deque[_CallCount] = deque()
        self._hedged: deque[_CallCount] = deque()
        self._requests = 0
        self._hedges = 0

    def request(self) -> None:
        """Count a request."""
        self._requests += 1
        _bucket(self._asked, self._drop_old()).calls += 1

    def take(self) -> bool:
        """Count one more hedge, if the limit allows it; return whether it does."""
        now = self._drop_old()
        if self._share <= 0 or self._hedges + 1 > max(HEDGE_FLOOR, self._share * self._requests):
            return False
        self._hedges += 1
        _bucket(self._hedged, now).calls += 1
        return True

    def _drop_old(self) -> float:
        now = self._clock.now()
        while self._asked and self._asked[0].began + HEDGE_WINDOW <= now:
            self._requests -= self._asked.popleft().calls
        while self._hedged and self._hedged[0].began + _BUCKET + HEDGE_WINDOW <= now:
            self._hedges -= self._hedged.popleft().calls
        return now
