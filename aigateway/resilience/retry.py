"""Trying the whole plan again, when nobody is left to ask. The one user of tenacity.

Failover to another provider is no retry and needs no pause. Only when every provider has been
asked or passed over does waiting make sense, and then at most once per request at a time: one
controller, made for one request, on no path that succeeds at first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aigateway.clock import Clock
from aigateway.errors import ProviderFailure

__all__ = ["NoCandidateLeftError", "RetryPolicy", "load", "retry_rounds"]

T = TypeVar("T")


class NoCandidateLeftError(Exception):
    """Every provider was asked or passed over. Stays inside the gateway.

    Attributes:
        causes: One per provider.
        worth_waiting: Seconds until asking again may help (0: any moment); None if it cannot.
    """

    def __init__(self, causes: Sequence[ProviderFailure], worth_waiting: float | None) -> None:
        super().__init__()
        self.causes = tuple(causes)
        self.worth_waiting = worth_waiting


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long it is worth waiting for somebody to come back. Durations are seconds.

    Attributes:
        rounds: Further rounds over all providers; 0 never waits.
        max_wait: A longer wait than this is not begun: the request fails at once.
        backoff: Upper bound of the first random pause; doubles with each round.
    """

    rounds: int = 2
    max_wait: float = 10.0
    backoff: float = 0.25

    def pause(self, round_number: int, worth_waiting: float, draw: float) -> float:
        """Seconds before round `round_number` (from 1): what a provider asked for, plus jitter.

        Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) on
        top of `Retry-After`, never below it: coming early would only be refused again.
        """
        return worth_waiting + draw * self.backoff * 2.0 ** min(round_number - 1, 30)


def load() -> None:
    """Load tenacity, which is only met in an outage, and so is kept out of every import of ours.

    An outage is a bad moment for it: that may be one of file descriptors.
    """
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
    """Run further rounds until one answers or waiting is no use.

    Args:
        run_round: Asks every provider once; raises `NoCandidateLeftError` if none answered.
        first: How the first round, which the caller ran, ended.
        policy: How often and how long.
        clock: Sleeps and draws.
        time_left: Seconds left of the request's deadline; a wait that would use it up is not begun.
        before_wait: Told the number of the round to come and the pause before it.

    Raises:
        NoCandidateLeftError: The last round's.
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

    def no_use(state: RetryCallState) -> bool:
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
        # The first round has been run already; tenacity is told how it ended.
        if controller.statistics["attempt_number"] == 1:
            raise first
        return await run_round()

    controller = AsyncRetrying(
        retry=retry_if_exception_type(NoCandidateLeftError),
        wait=pause,
        stop=no_use,
        before_sleep=announce,
        sleep=clock.sleep,
        reraise=True,
    )
    return await controller(one_round)
