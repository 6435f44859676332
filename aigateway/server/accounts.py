"""What a key has used: dollars in a day, requests in a minute. No I/O, one event loop, no lock."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aigateway.clock import Clock
from aigateway.errors import GatewayError, StreamInterruptedError
from aigateway.resilience.rates import RateLimits
from aigateway.server.refusals import Refusal

__all__ = ["Account", "Use"]

_DAY = 86_400.0

_UNKNOWN_PRICE = 0.10
"""US dollars that a request counts for while no answer of its model has told the usual price."""

_NEWEST = 0.1
"""The weight of the latest answer in the usual price, so that it follows what is asked now."""

_SOON = 1.0
"""Seconds after which to ask again when only what is under way stands in the way."""


class _Spending:
    """What one model's requests cost a key."""

    __slots__ = ("cut", "in_flight", "usual")

    def __init__(self) -> None:
        self.usual: float | None = None  # no answer has come yet
        self.in_flight = 0
        self.cut = 0  # today, answers whose true cost nobody will know

    @property
    def price(self) -> float:
        """US dollars that one counts for whose true cost is not known."""
        return _UNKNOWN_PRICE if self.usual is None else self.usual

    def learn(self, cost_usd: float) -> None:
        """An answer was paid for."""
        self.usual = self.usual + _NEWEST * (cost_usd - self.usual) if self.usual else cost_usd


class Account:
    """The budget and the rate of one key, in one process.

    A request counts at the usual price of its model while it is under way, and at its true cost
    once that is known. So a burst overshoots the budget by no more than its requests cost beyond
    the usual price, and by one request, since nobody knows beforehand what the last one takes.

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
        """US dollars of today, answers that were cut off among them at their usual price."""
        self._turn_the_page()
        return self._spent + sum(model.price * model.cut for model in self._models.values())

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

    def end(self, model: str | None, cost_usd: float | None, *, cut: bool = False) -> None:
        """A request is over; see `Use`."""
        self._turn_the_page()
        spending = self._models[model]
        spending.in_flight -= 1
        if cut:
            spending.cut += 1
        elif cost_usd is None:
            spending.usual = spending.usual or 0.0
            self._spent += spending.usual
        elif cost_usd > 0:
            spending.learn(cost_usd)
            self._spent += cost_usd
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
            for model in tuple(self._models):
                self._models[model].cut = 0
                self._forget(model)

    def _forget(self, model: str | None) -> None:
        """Keep nothing of a model that never answered: callers may make up names without end."""
        spending = self._models[model]
        if spending.usual is None and not spending.in_flight and not spending.cut:
            del self._models[model]

    def _day(self) -> int:
        return int(self._clock.wall() // _DAY)


class Use:
    """One request's place in its key's account. Leave it with what the answer cost.

    An answer whose price nobody knows (`spent(None)`) counts at its model's usual price; of a
    model that never had a price that is nothing. Left without `spent`, an error of the gateway or
    a refusal costs nothing. Anything else, such as a caller that went away, or a stream that
    broke, counts at the usual price: the vendor wants money for it all the same.

    Args:
        account: None counts nowhere.
        model: What is asked for.
    """

    __slots__ = ("_account", "_model")

    def __init__(self, account: Account | None = None, model: str | None = None) -> None:
        self._account = account
        self._model = model

    def spent(self, cost_usd: float | None) -> None:
        """The answer is there. A second time does nothing.

        Args:
            cost_usd: US dollars; 0.0 for one from the cache, None where the price is not known.
        """
        self._settle(cost_usd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        free = (
            kind is not None
            and issubclass(kind, GatewayError | Refusal)
            and not issubclass(kind, StreamInterruptedError)
        )
        self._settle(0.0, cut=not free)

    def _settle(self, cost_usd: float | None, *, cut: bool = False) -> None:
        account, self._account = self._account, None
        if account is not None:
            account.end(self._model, cost_usd, cut=cut)
