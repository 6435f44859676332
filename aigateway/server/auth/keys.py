"""API keys: identify a caller, and admit its requests by model, rate and budget.

A request is admitted in two steps: `Access.identify` finds the caller by its key, before the body
is read; `Access.begin` checks model, budget and rate of that caller, and counts the request.

Keys are stored as SHA-256 only. They are long and random (`aigateway key` makes them), so they need
no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.fleet.leases import Leases, SharedBudget, SharedRates
from aigateway.resilience.rates import RateLimits
from aigateway.server.http.errors import Refusal
from aigateway.settings import ApiKey, ServerSettings
from aigateway.settings.server import AUTO

__all__ = [
    "Access",
    "Caller",
    "Estimate",
    "KeyAccount",
    "KeyUsage",
    "MeteredRequest",
]


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller with a valid key, or any caller if no keys are configured.

    Attributes:
        name: The key's name; None without keys.
        key: Its settings.
        is_admin: It may force circuits.
        partition: Requests share answers only within the same one.
    """

    name: str | None = None
    key: ApiKey | None = None
    is_admin: bool = False
    partition: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        partition = "" if self.name is None else f"key:{self.name}"
        object.__setattr__(self, "partition", partition)

    @property
    def sees_all_keys(self) -> bool:
        """Whether it sees what every key has used; else only what itself has."""
        return self.is_admin or (self.key is not None and self.key.monitor)

    @property
    def is_restricted(self) -> bool:
        """Whether it sees its own only: its account, and the state of providers that it may ask."""
        return self.key is not None and bool(self.key.models) and not self.key.monitor

    def may_ask(self, model: str | None) -> bool:
        """Return whether it may use this model, name or alias; None stands for any model."""
        return self.key is None or self.key.models is None or (model or AUTO) in self.key.models


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What a key has used.

    Attributes:
        name: The key's.
        spent_usd: US dollars of today (UTC): of all processes if they share the account, else of
            this one.
        budget_usd: The daily budget, or this process's share of it; None is no bound.
        in_flight: Requests in flight in this process.
        requests_last_minute: Requests begun in the last 60 seconds: of all processes if they share
            the rate, else of this one.
        rpm: The most of them, or this process's share of it; None is no bound.
        shared: Whether all processes share the account.
        day: Of `spent_usd`, in days since the Unix epoch.
    """

    name: str
    spent_usd: float
    budget_usd: float | None
    in_flight: int
    requests_last_minute: int = 0
    rpm: int | None = None
    shared: bool = False
    day: int = 0


class Access:
    """The keys and their accounts.

    Processes share the limits of each key through `leases`. Without those, each of several workers
    has a share of its own: budget and rate divided by the workers, the rate rounded up.

    Args:
        settings: Has the keys.
        clock: Time.
        leases: Share limits among processes, if anything does.

    Attributes:
        renewable: Digests of the keys for which `renew` can do anything.
        has_budgets: Whether any key has one, so that estimates have a use.
    """

    def __init__(
        self, settings: ServerSettings, clock: Clock = SYSTEM_CLOCK, leases: Leases | None = None
    ) -> None:
        self._clock = clock
        self._leases = leases
        self._keys = settings.keys
        self._callers = {key.sha256: Caller(key.name, key) for key in settings.keys}
        self._admin = settings.admin_sha256
        self.renewable = frozenset(
            key.sha256
            for key in settings.keys
            if leases is not None and (key.budget_usd is not None or key.rpm is not None)
        )
        self.has_budgets = any(key.budget_usd is not None for key in settings.keys)
        self._accounts = {key.sha256: KeyAccount(clock) for key in settings.keys}
        self._bind(settings)

    def successor(self, settings: ServerSettings, leases: Leases | None = None) -> Access:
        """Return the access after a reload. A key that stays keeps its account."""
        heir = Access(settings, self._clock, leases)
        for digest in heir._accounts.keys() & self._accounts.keys():
            heir._accounts[digest] = self._accounts[digest]
        heir._bind(settings)
        return heir

    def identify(self, authorization: str | None, key: str | None) -> Caller:
        """Return the caller by its headers `Authorization` and `x-api-key`.

        Raises:
            Refusal: 401, the key is missing or unknown.
        """
        digest = _digest(authorization, key)
        if self._admin is not None and hmac.compare_digest(digest or "", self._admin):
            return Caller("admin", is_admin=True)
        if not self._keys:
            return Caller(is_admin=self._admin is None)
        # The time of this lookup depends on the digest, which reveals nothing of a key.
        caller = None if digest is None else self._callers.get(digest)
        if caller is None:
            raise Refusal(
                401,
                "This service needs a key: Authorization: Bearer KEY."
                if digest is None
                else "The key is not known here.",
                code="invalid_api_key",
            )
        return caller

    async def renew(
        self, caller: Caller, model: str | None, estimate: Estimate | None = None
    ) -> None:
        """Wait for an exchange, if it may bring what a request needs and this process lacks.

        It takes a few milliseconds, and only where this process holds nothing of the key's limits
        in advance: at its first request in a while, or in a burst. After 50 ms the request begins
        by this process's share.
        """
        account = self._lacking(caller, model, estimate)
        if self._leases is not None and account is not None:
            account.ask(model, estimate)
            await self._leases.gained(lambda: account.lacks(model, estimate))

    def lacks(self, caller: Caller, model: str | None, estimate: Estimate | None = None) -> bool:
        """Return whether there is anything for `renew` to wait for."""
        return self._lacking(caller, model, estimate) is not None

    def _lacking(
        self, caller: Caller, model: str | None, estimate: Estimate | None
    ) -> KeyAccount | None:
        """Return the caller's account if it lacks what an exchange may bring."""
        account = None if caller.key is None else self._accounts.get(caller.key.sha256)
        if self._leases is None or account is None or not account.lacks(model, estimate):
            return None
        return account

    def begin(
        self,
        caller: Caller,
        model: str | None,
        estimate: Estimate | None = None,
        use: MeteredRequest | None = None,
    ) -> MeteredRequest:
        """Admit and count a request. Use the result as a context.

        Args:
            caller: From `identify`.
            model: Its model; None stands for any.
            estimate: What it may cost, for a model without a usual price.
            use: The request, to be returned; None makes one.

        Raises:
            Refusal: 404, the caller may not use this model, as if it did not exist; 400, it may use
                some models only, and named none; 429, its budget or rate is used up.
        """
        key = caller.key
        # A key that a reload has just removed has no account.
        account = None if key is None else self._accounts.get(key.sha256)
        try:
            if key is not None and key.models is not None and not caller.may_ask(model):
                raise _no_such_model(model)
            if account is not None:
                return account.begin(model, estimate, use)
            return MeteredRequest() if use is None else use
        except Refusal as refusal:
            refusal.caller = caller.name
            raise

    def usage(self) -> tuple[KeyUsage, ...]:
        """Return what each key has used, in the order of the settings."""
        return tuple(
            KeyUsage(
                key.name,
                account.spent_usd,
                account.budget_usd,
                account.in_flight,
                account.requests_last_minute,
                account.rpm,
                shared=self._leases is not None,
                day=int(self._clock.wall() // _DAY),
            )
            for key in self._keys
            for account in (self._accounts[key.sha256],)
        )

    def usual_prices(self) -> dict[tuple[str, str], float]:
        """Return what a request usually costs, by the names of key and model ("" for any)."""
        return {
            (key.name, model): usual
            for key in self._keys
            for model, usual in self._accounts[key.sha256].usual_prices().items()
        }

    def restore_prices(self, known: Mapping[tuple[str, str], float]) -> None:
        """Begin with the usual prices that an earlier process has learned."""
        digests = {key.name: key.sha256 for key in self._keys}
        for (name, model), usual in known.items():
            if name in digests:
                self._accounts[digests[name]].restore_price(model, usual)

    def _bind(self, settings: ServerSettings) -> None:
        processes = settings.workers if self._leases is None else 1
        for key in settings.keys:
            self._accounts[key.sha256].bind(
                None if key.budget_usd is None else key.budget_usd / processes,
                None if key.rpm is None else math.ceil(key.rpm / processes),
                None if self._leases is None else (self._leases, f"key:{key.name}"),
            )


def _no_such_model(model: str | None) -> Refusal:
    if model is None:
        return Refusal(
            400,
            "This key may ask for some models only, so the request must name one;"
            " GET /v1/models lists them.",
            param="model",
        )
    return Refusal(
        404,
        "There is no such model, or this key may not ask for it; GET /v1/models lists those that"
        " it may.",
        code="model_not_found",
        param="model",
    )


def _digest(authorization: str | None, key: str | None) -> str | None:
    given = key
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme == "Bearer" or scheme.lower() == "bearer":
            given = token.strip()
    return hashlib.sha256(given.encode()).hexdigest() if given else None


# ── accounts ─────────────────────────────────────────────────────────────────────────────────────

_DAY = 86_400.0

_UNBOUNDED = 1e6
"""US dollars of a shared account without a budget: its sum is shared, and nothing is refused."""

_COUNTED = sys.maxsize
"""Requests in a minute of a key without a rate: they are counted, and nothing is refused."""

Estimate = Callable[[], float | None]
"""Returns the US dollars that one request may cost, None where no price is known. It is asked only
where a budget needs it."""

_UNKNOWN_PRICE = 0.10
"""US dollars that a request in flight counts for at most before its model has a usual price."""

_NEWEST = 0.1
"""The weight of the latest answer in the usual price."""

_SOON = 1.0
"""Seconds after which to ask again if only requests in flight hold up the budget."""


class _Spending:
    """What requests for one model cost a key."""

    __slots__ = ("estimated", "in_flight", "usual")

    def __init__(self) -> None:
        self.usual: float | None = None  # before the first answer
        self.in_flight = 0
        self.estimated = 0.0  # US dollars of those in flight, by what each began with


class KeyAccount:
    """The budget and the rate of one key: of one process, or of all that share them.

    Each attempt counts its cost when it ends, also if its answer is not used. A request in flight
    also reserves the usual price of its model; before that is known, the estimate that it came
    with. A burst therefore overshoots the budget by no more than its requests cost beyond that, and
    by the last request.

    Args:
        clock: Time; days are those of its wall clock, in UTC.

    Attributes:
        budget_usd: See `bind`.
        rpm: See `bind`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.budget_usd: float | None = None
        self._bound: float | None = None
        self.rpm: int | None = None
        # Without a rate each request counts as one token, which takes a place for each second only.
        self._rates: RateLimits | SharedRates = RateLimits(clock, None, _COUNTED)
        self._shared: SharedBudget | None = None
        self._leases: Leases | None = None
        self._name = ""
        self._models: dict[str | None, _Spending] = {}
        self._spent = 0.0
        self._today = self._day()

    def bind(
        self, budget_usd: float | None, rpm: int | None, shared: tuple[Leases, str] | None = None
    ) -> None:
        """Set the bounds. What was spent today stays; a changed rate starts from zero.

        Args:
            budget_usd: US dollars for a day; None is no bound.
            rpm: Requests begun in any 60 seconds; None is no bound.
            shared: Through what processes share them, and their name there. Then a changed rate
                goes on, too.
        """
        self.budget_usd = budget_usd
        leases, name = shared or (None, "")
        is_other = leases is not self._leases or name != self._name
        if rpm != self.rpm or is_other:
            own = RateLimits(self._clock, rpm, _COUNTED if rpm is None else None)
            self._rates = own if leases is None or rpm is None else leases.rates(name, rpm, None)
            self.rpm = rpm
        if is_other or budget_usd != self._bound:
            if self._shared is not None:
                self._shared.reserve(0.0)
            # Without a bound what was spent is shared as well.
            most = _UNBOUNDED if budget_usd is None else budget_usd
            self._shared = None if leases is None else leases.budget(name, most)
            self._reserve()
        self._leases, self._name, self._bound = leases, name, budget_usd

    @property
    def spent_usd(self) -> float:
        """US dollars of today."""
        if self._shared is not None:
            return self._shared.spent_usd
        self._start_new_day()
        return self._spent

    @property
    def requests_last_minute(self) -> int:
        """Requests begun in the last 60 seconds."""
        return self._rates.used

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return sum(model.in_flight for model in self._models.values())

    def begin(
        self,
        model: str | None,
        estimate: Estimate | None = None,
        use: MeteredRequest | None = None,
    ) -> MeteredRequest:
        """Count a request that begins.

        Args:
            model: Its model, whose usual price it reserves.
            estimate: What it reserves if that is not known.
            use: The request, to be returned; None makes one.

        Raises:
            Refusal: 429: the day's budget is used up, or requests in flight may use it up, or the
                rate is reached. A refused request does not count.
        """
        price = 0.0 if self.budget_usd is None else self._check_budget(model, estimate)
        if self.rpm is not None:
            self._check_rate()
        if isinstance(self._rates, RateLimits):
            self._rates.count(1)
        else:
            self._rates.begin(1)
        spending = self._models.get(model)
        if spending is None:
            spending = self._models[model] = _Spending()
        spending.in_flight += 1
        spending.estimated += price
        if self.budget_usd is not None:
            self._reserve()
        use = MeteredRequest() if use is None else use
        use.account, use.model, use.estimated = self, model, price
        return use

    def lacks(self, model: str | None, estimate: Estimate | None = None) -> bool:
        """Return whether the next exchange may let a request begin, or tell better when it can."""
        shared, rates = self._shared, self._rates
        if (
            shared is not None
            and self.budget_usd is not None
            and shared.may_cover(self._price(model, estimate))
            and self.spent_usd < self.budget_usd
        ):
            return True
        return isinstance(rates, SharedRates) and rates.may_gain(0, or_tell=True)

    def ask(self, model: str | None, estimate: Estimate | None = None) -> None:
        """Want what a request for this model needs from the next exchange."""
        if self._shared is not None and self.budget_usd is not None:
            self._shared.covers(self._price(model, estimate))
        self._rates.wait(0)

    def usual_prices(self) -> dict[str, float]:
        """Return the usual price of each model; "" stands for any."""
        return {
            model or "": spending.usual
            for model, spending in self._models.items()
            if spending.usual is not None
        }

    def restore_price(self, model: str, usual: float) -> None:
        """Begin with a usual price, unless one is known."""
        spending = self._models.setdefault(model or None, _Spending())
        if spending.usual is None:
            spending.usual = usual

    def spend(self, cost_usd: float) -> None:
        """Count the cost of an attempt. Its request may have ended already."""
        if self._shared is not None:
            self._shared.spend(cost_usd)
            return
        self._start_new_day()
        self._spent += cost_usd

    def end(self, use: MeteredRequest, *, is_answered: bool) -> None:
        """Count the end of a request."""
        spending, cost = self._models[use.model], use.cost_usd
        spending.in_flight -= 1
        spending.estimated = spending.estimated - use.estimated if spending.in_flight else 0.0
        # An aborted request and a cached answer do not show what an answer usually costs.
        if is_answered and cost > 0:
            usual = spending.usual
            spending.usual = usual + _NEWEST * (cost - usual) if usual else cost
        elif is_answered and use.unpriced:
            spending.usual = spending.usual or 0.0
        elif spending.usual is None and not spending.in_flight:
            # It never answered: callers may invent any number of names.
            del self._models[use.model]
        if self.budget_usd is not None:
            self._reserve()

    def _check_rate(self) -> None:
        wait = self._rates.wait(0)
        if wait > 0 and isinstance(self._rates, SharedRates) and self._rates.may_gain(0):
            wait = self._rates.wait_for_share(0)  # no answer is no refusal
        if wait > 0:
            raise Refusal(
                429,
                f"This key may begin {self.rpm} requests per minute.",
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after=wait,
            )

    def _check_budget(self, model: str | None, estimate: Estimate | None) -> float:
        """Return the US dollars that the request reserves."""
        assert self.budget_usd is not None  # noqa: S101 - else nothing is reserved
        spent = self.spent_usd
        if spent >= self.budget_usd:
            raise Refusal(
                429,
                f"This key's budget of ${self.budget_usd:g} for today (UTC) is used up.",
                "insufficient_quota",
                "insufficient_quota",
                retry_after=self._seconds_of_day(),
            )
        price = self._price(model, estimate)
        if self._shared is not None:
            is_covered = self._shared.covers(price, is_late=True)
        else:
            is_covered = not self.in_flight or spent + self._reserved() + price <= self.budget_usd
        if not is_covered:
            raise Refusal(
                429,
                "The requests of this key in flight may use up its budget for today.",
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after=_SOON,
            )
        return price

    def _price(self, model: str | None, estimate: Estimate | None) -> float:
        spending = self._models.get(model)
        if spending is not None and spending.usual is not None:
            return spending.usual
        estimated = None if estimate is None else estimate()
        return _UNKNOWN_PRICE if estimated is None else min(estimated, _UNKNOWN_PRICE)

    def _reserved(self) -> float:
        """Return the US dollars that requests in flight count for."""
        reserved = 0.0
        for each in self._models.values():
            reserved += each.estimated if each.usual is None else each.usual * each.in_flight
        return reserved

    def _reserve(self) -> None:
        if self._shared is not None and self.budget_usd is not None:
            self._shared.reserve(self._reserved())

    def _seconds_of_day(self) -> float:
        """Return the seconds until the budget is there again."""
        today = self._today if self._shared is None else self._day()
        return (today + 1) * _DAY - self._clock.wall()

    def _start_new_day(self) -> None:
        """Reset the costs if the day has changed.

        A wall clock that is set back over midnight does not give yesterday's budget again, but one
        that was a day or more ahead is followed when it is right again.
        """
        day = self._day()
        if day > self._today or day < self._today - 1:
            self._today = day
            self._spent = 0.0

    def _day(self) -> int:
        return int(self._clock.wall() // _DAY)


class MeteredRequest:
    """One request in its key's account, as a context. Before it begins there, it counts nothing.

    Attributes:
        account: Counts it.
        model: Its model.
        estimated: US dollars that it reserves while its model has no usual price.
        cost_usd: US dollars of its attempts so far.
        unpriced: Whether the cost of an attempt was not known.
    """

    __slots__ = ("account", "cost_usd", "estimated", "model", "unpriced")

    def __init__(self) -> None:
        self.account: KeyAccount | None = None
        self.model: str | None = None
        self.estimated = self.cost_usd = 0.0
        self.unpriced = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(is_answered=kind is None)

    def end(self, *, is_answered: bool) -> None:
        """Count the end of the request."""
        if self.account is not None:
            self.account.end(self, is_answered=is_answered)

    def on_cost(self, cost_usd: float | None) -> None:
        """Count the cost of an attempt; see `Origin`."""
        if cost_usd is None:
            self.unpriced = True
        elif self.account is not None:
            self.cost_usd += cost_usd
            self.account.spend(cost_usd)
