"""What a key has used: dollars in a day, requests in a minute. No I/O, one event loop, no lock."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from aigateway.clock import Clock
from aigateway.resilience.rates import RateLimits
from aigateway.server.http.errors import Refusal

__all__ = ["Account", "Use"]

_DAY = 86_400.0

_UNKNOWN_PRICE = 0.10
"""US dollars that a request counts for while it is under way and no answer of its model has told
the usual price."""

_NEWEST = 0.1
"""The weight of the latest answer in the usual price, so that it follows what is asked now."""

_SOON = 1.0
"""Seconds after which to ask again when only what is under way stands in the way."""


class _Spending:
    """What one model's requests cost a key."""

    __slots__ = ("in_flight", "usual")

    def __init__(self) -> None:
        self.usual: float | None = None  # no answer has come yet
        self.in_flight = 0

    @property
    def price(self) -> float:
        """US dollars that one counts for while it is under way."""
        return _UNKNOWN_PRICE if self.usual is None else self.usual

    def learn(self, cost_usd: float) -> None:
        """An answer was paid for."""
        self.usual = self.usual + _NEWEST * (cost_usd - self.usual) if self.usual else cost_usd


class Account:
    """The budget and the rate of one key, in one process.

    Each call to a vendor counts what it cost, when it ends, whether its answer was of use or not.
    Beside that a request holds the usual price of its model back while it is under way. So a burst
    overshoots the budget by no more than its requests cost beyond the usual price, and by one
    request, since what the last one takes is not known beforehand.

    Args:
        clock: Time; days are those of its wall clock, in UTC.

    Attributes:
        budget_usd: See `bind`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.budget_usd: float | None = None
        self._rpm: int | None = None
        self._rates = RateLimits(clock, None, None)
        self._models: dict[str | None, _Spending] = {}
        self._spent = 0.0
        self._today = self._day()

    def bind(self, budget_usd: float | None, rpm: int | None) -> None:
        """Set the bounds. What was spent today stays; another rate begins anew.

        Args:
            budget_usd: US dollars for a day; None is no bound.
            rpm: Requests begun in any 60 seconds; None is no bound.
        """
        self.budget_usd = budget_usd
        if rpm != self._rpm:
            self._rpm = rpm
            self._rates = RateLimits(self._clock, rpm, None)

    @property
    def spent_usd(self) -> float:
        """US dollars of today."""
        self._turn_the_page()
        return self._spent

    @property
    def in_flight(self) -> int:
        """Requests that are under way."""
        return sum(model.in_flight for model in self._models.values())

    def begin(self, model: str | None) -> Use:
        """A request begins.

        Args:
            model: What it asks for, so that it counts at that one's usual price.

        Raises:
            Refusal: 429: the day's budget is used up, or what is under way may use it up, or the
                rate is reached. It says when to ask again, and then it counts for nothing.
        """
        self._check_budget(model)
        wait = self._rates.wait(0)
        if wait > 0:
            raise Refusal(
                429,
                f"This key may begin {self._rpm} requests per minute.",
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after=wait,
            )
        self._rates.begin(0)
        self._models.setdefault(model, _Spending()).in_flight += 1
        return Use(self, model)

    def spend(self, cost_usd: float) -> None:
        """A call to a vendor has ended. It may be one of a request that is over already."""
        self._turn_the_page()
        self._spent += cost_usd

    def end(self, model: str | None, cost_usd: float | None) -> None:
        """A request is over.

        Args:
            model: As it began.
            cost_usd: US dollars, if it tells the usual price; 0.0 for a model without a known one.
        """
        spending = self._models[model]
        spending.in_flight -= 1
        if cost_usd:
            spending.learn(cost_usd)
        elif cost_usd is not None:
            spending.usual = spending.usual or 0.0
        self._forget(model)

    def _check_budget(self, model: str | None) -> None:
        if self.budget_usd is None:
            return
        spent = self.spent_usd
        if spent >= self.budget_usd:
            raise Refusal(
                429,
                f"This key's budget of ${self.budget_usd:g} for today (UTC) is used up.",
                "insufficient_quota",
                "insufficient_quota",
                retry_after=(self._today + 1) * _DAY - self._clock.wall(),
            )
        if not self.in_flight:
            return
        under_way = sum(other.price * other.in_flight for other in self._models.values())
        price = self._models.get(model, _Spending()).price
        if spent + under_way + price > self.budget_usd:
            raise Refusal(
                429,
                "The requests of this key that are under way may use up its budget for today.",
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after=_SOON,
            )

    def _turn_the_page(self) -> None:
        """Begin a new day, if it is one.

        A wall clock that is set back over midnight does not give yesterday's budget once more, but
        one that was a day or more ahead is believed when it is right again.
        """
        day = self._day()
        if day > self._today or day < self._today - 1:
            self._today = day
            self._spent = 0.0

    def _forget(self, model: str | None) -> None:
        """Keep nothing of a model that never answered: callers may make up names without end."""
        spending = self._models[model]
        if spending.usual is None and not spending.in_flight:
            del self._models[model]

    def _day(self) -> int:
        return int(self._clock.wall() // _DAY)


class Use:
    """One request's place in its key's account, as a context.

    Args:
        account: None counts nowhere.
        model: What is asked for.
    """

    __slots__ = ("_account", "_cost", "_model", "_unpriced")

    def __init__(self, account: Account | None = None, model: str | None = None) -> None:
        self._account = account
        self._model = model
        self._cost = 0.0
        self._unpriced = False

    @property
    def on_cost(self) -> Callable[[float | None], None] | None:
        """What the gateway tells the cost of each call, see `Origin`; None if nothing counts it."""
        return None if self._account is None else self._spent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._account is None:
            return
        # What was broken off does not tell what an answer usually costs, nor does the cache.
        told = kind is None and (self._cost > 0 or self._unpriced)
        self._account.end(self._model, self._cost if told else None)

    def _spent(self, cost_usd: float | None) -> None:
        if cost_usd is None:
            self._unpriced = True
        elif self._account is not None:
            self._cost += cost_usd
            self._account.spend(cost_usd)
