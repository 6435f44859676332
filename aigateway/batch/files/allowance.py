"""The limits of a job that several workers share: rates and cost, as leases of a ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aigateway.batch.files.totals import JobLimits, LimitedCall
from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.fleet.leases import Leases
from aigateway.fleet.ledger import HOLD_SECONDS, Claim, Ledger, LedgerAnswer, Limit
from aigateway.resilience.rates import WINDOW

__all__ = ["CostSoFar", "JobAllowance", "SharedLimits"]

_LOOK_AGAIN = 0.05

_STUCK_SECONDS = 5.0
"""What is left of a cost limit may be less than a request at each of several workers."""

_LEAST_USD = 1e-6


@dataclass(frozen=True, slots=True)
class CostSoFar:
    """What the requests of one worker have cost.

    Attributes:
        usd: US dollars, as far as prices are known.
        mean: US dollars of a usual answer; None before the first.
        in_flight: Requests whose cost is not known yet.
    """

    usd: float
    mean: float | None
    in_flight: int


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """The limits of one run, for its workers.

    Attributes:
        job: Names the rates, for all runs of the job.
        run: Names what is left of the cost limit, for this run.
        limits: The limits of the job.
        cost_left: US dollars that this run may cost; None is no limit.
    """

    job: str
    run: str
    limits: JobLimits
    cost_left: float | None

    @property
    def rates(self) -> list[Limit]:
        """The rates, as `Leases` names them."""
        given = (("rpm", self.limits.rpm), ("tpm", self.limits.tpm))
        return [
            Limit(f"{self.job}:{name}", amount, WINDOW)
            for name, amount in given
            if amount is not None
        ]

    def __bool__(self) -> bool:
        return bool(self.rates) or self.cost_left is not None


class _Watched:
    """A ledger, and when it was last asked with success."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.asked_at = -math.inf
        self._ledger = ledger
        self._clock = clock

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        now = self._clock.now()
        answer = await self._ledger.exchange(member, claims, serial)
        self.asked_at = now
        return answer


class JobAllowance:
    """See `Allowance`. For one event loop; `run` must run.

    Args:
        shared: The limits.
        patience: Seconds for which nothing begins while the ledger does not answer. Then each
            worker takes its share: a ledger of other services may be away for long.
        ledger: Where all workers exchange.
        member: Identifies this worker.
        cost: What its requests have cost.
        clock: Time.
    """

    def __init__(
        self,
        shared: SharedLimits,
        ledger: Ledger,
        member: str,
        cost: Callable[[], CostSoFar],
        clock: Clock = SYSTEM_CLOCK,
        *,
        patience: float = math.inf,
    ) -> None:
        self._ledger = _Watched(ledger, clock)
        self._leases = leases = Leases(self._ledger, clock, lambda: member)
        self._patience = patience
        self._unsure_since: float | None = None
        self.run = leases.run
        self._rates = leases.rates(shared.job, shared.limits.rpm, shared.limits.tpm)
        self._most = shared.cost_left
        self._budget = None if self._most is None else leases.budget(shared.run, self._most)
        self._cost = cost
        self._counted = 0.0
        self._clock = clock
        self._stuck_since: float | None = None

    def wait(self, tokens: int) -> float:
        """See `Allowance`."""
        may_begin = self._affords_one() and not self._is_unsure()
        return max(self._rates.wait(tokens), 0.0 if may_begin else _LOOK_AGAIN)

    def begin(self, tokens: int) -> LimitedCall:
        """See `Allowance`."""
        return self._rates.begin(tokens)

    @property
    def cost_is_reached(self) -> bool:
        """See `Allowance`."""
        if self._budget is None or self._most is None:
            return False
        stuck = self._stuck_since
        if stuck is not None and self._clock.now() >= stuck + _STUCK_SECONDS:
            return True
        return self._budget.spent_usd + self._usual_cost() > self._most + _LEAST_USD / 2

    def _is_unsure(self) -> bool:
        """Return whether what it holds is not known for sure, and may soon be."""
        now = self._clock.now()
        stale = now >= self._ledger.asked_at + HOLD_SECONDS or self._leases.keeps_to_shares(now)
        if not (stale or self._leases.is_starting):
            self._unsure_since = None
            return False
        if self._unsure_since is None:
            self._unsure_since = now
        return now < self._unsure_since + self._patience

    def _affords_one(self) -> bool:
        if self._budget is None:
            return True
        so_far = self._cost()
        self._budget.spend(so_far.usd - self._counted)
        self._counted = so_far.usd
        usual = self._usual_cost()
        self._budget.reserve(so_far.in_flight * usual)
        if so_far.mean is None and so_far.in_flight:
            return False  # until a first price is known, each worker's requests go out one by one
        if not self.cost_is_reached and self._budget.covers(usual):
            self._stuck_since = None
            return True
        if so_far.in_flight or self._is_unsure():
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = self._clock.now()
        return False

    def _usual_cost(self) -> float:
        mean = self._cost().mean
        return _LEAST_USD if mean is None else mean
