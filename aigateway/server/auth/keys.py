"""API keys: identify a caller, and admit its requests by model, rate and budget.

A request is admitted in two steps: `Access.admit` finds the caller by its key, before the body is
read; `Access.begin` checks model, budget and rate of that caller, and counts the request.

Keys are stored as SHA-256 only. They are long and random (`aigateway key` makes them), so they need
no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.resilience.rates import RateLimits
from aigateway.server.http.bodies import AUTO
from aigateway.server.http.errors import Refusal
from aigateway.settings import ApiKey, ServerSettings

__all__ = ["Access", "Caller", "KeyAccount", "KeyUsage", "MeteredRequest"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller with a valid key, or any caller if no keys are configured.

    Attributes:
        name: The key's name; None without keys.
        key: Its settings.
        is_admin: It may force circuits, and sees all keys.
    """

    name: str | None = None
    key: ApiKey | None = None
    is_admin: bool = False

    @property
    def partition(self) -> str:
        """Requests share answers only within the same partition."""
        return "" if self.name is None else f"key:{self.name}"

    def may_ask(self, model: str | None) -> bool:
        """Return whether it may use this model, name or alias; None stands for any model."""
        return self.key is None or self.key.models is None or (model or AUTO) in self.key.models


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What a key has used in this process.

    Attributes:
        name: The key's.
        spent_usd: US dollars of today (UTC).
        budget_usd: This process's share of the daily budget; None is no bound.
        in_flight: Requests in flight.
    """

    name: str
    spent_usd: float
    budget_usd: float | None
    in_flight: int


class Access:
    """The keys and their accounts.

    Each of several workers has its own accounts with a share of each key's limits: budget and rate
    divided by the workers, the rate rounded up.

    Args:
        settings: Has the keys.
        clock: Time.
    """

    def __init__(self, settings: ServerSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._keys = settings.keys
        self._admin = settings.admin_sha256
        self._accounts = {key.sha256: KeyAccount(clock) for key in settings.keys}
        self._bind(settings)

    def successor(self, settings: ServerSettings) -> Access:
        """Return the access after a reload. A key that stays keeps its account."""
        heir = Access(settings, self._clock)
        for digest in heir._accounts.keys() & self._accounts.keys():
            heir._accounts[digest] = self._accounts[digest]
        heir._bind(settings)
        return heir

    def admit(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller.

        Args:
            headers: Of the request, with names in lower case.

        Raises:
            Refusal: 401, the key is missing or unknown.
        """
        digest = _digest(headers)
        if self._admin is not None and hmac.compare_digest(digest or "", self._admin):
            return Caller("admin", is_admin=True)
        if not self._keys:
            return Caller(is_admin=self._admin is None)
        found: ApiKey | None = None
        for key in self._keys:  # all of them, so that the time reveals nothing
            if hmac.compare_digest(digest or "", key.sha256):
                found = key
        if found is None:
            raise Refusal(
                401,
                "This service needs a key: Authorization: Bearer KEY."
                if digest is None
                else "The key is not known here.",
                code="invalid_api_key",
            )
        return Caller(found.name, found)

    def begin(self, caller: Caller, model: str | None) -> MeteredRequest:
        """Admit and count a request. Use the result as a context.

        Args:
            caller: From `admit`.
            model: Its model; None stands for any.

        Raises:
            Refusal: 404, the caller may not use this model, as if it did not exist; 400, it may use
                some models only, and named none; 429, its budget or rate is used up.
        """
        try:
            if not caller.may_ask(model):
                raise _no_such_model(model)
            # A key that a reload has just removed has no account.
            account = None if caller.key is None else self._accounts.get(caller.key.sha256)
            return MeteredRequest() if account is None else account.begin(model)
        except Refusal as refusal:
            refusal.caller = caller.name
            raise

    def usage(self) -> tuple[KeyUsage, ...]:
        """Return what each key has used, in the order of the settings."""
        return tuple(
            KeyUsage(key.name, account.spent_usd, account.budget_usd, account.in_flight)
            for key in self._keys
            for account in (self._accounts[key.sha256],)
        )

    def _bind(self, settings: ServerSettings) -> None:
        workers = settings.workers
        for key in settings.keys:
            self._accounts[key.sha256].bind(
                None if key.budget_usd is None else key.budget_usd / workers,
                None if key.rpm is None else math.ceil(key.rpm / workers),
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


def _digest(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hashlib.sha256(given.encode()).hexdigest() if given else None


# ── accounts ─────────────────────────────────────────────────────────────────────────────────────

_DAY = 86_400.0

_UNKNOWN_PRICE = 0.10
"""US dollars that a request in flight counts for before its model has a usual price."""

_NEWEST = 0.1
"""The weight of the latest answer in the usual price."""

_SOON = 1.0
"""Seconds after which to ask again if only requests in flight hold up the budget."""


class _Spending:
    """What requests for one model cost a key."""

    __slots__ = ("in_flight", "usual")

    def __init__(self) -> None:
        self.usual: float | None = None  # before the first answer
        self.in_flight = 0

    @property
    def price(self) -> float:
        """US dollars that one counts for while it is in flight."""
        return _UNKNOWN_PRICE if self.usual is None else self.usual

    def learn(self, cost_usd: float) -> None:
        """Move the usual price towards that of an answer."""
        self.usual = self.usual + _NEWEST * (cost_usd - self.usual) if self.usual else cost_usd


class KeyAccount:
    """The budget and the rate of one key, in one process.

    Each attempt counts its cost when it ends, also if its answer is not used. A request in flight
    also reserves the usual price of its model. A burst therefore overshoots the budget by no more
    than its requests cost beyond the usual price, and by the last request.

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
        """Set the bounds. What was spent today stays; a changed rate starts from zero.

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
        self._start_new_day()
        return self._spent

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return sum(model.in_flight for model in self._models.values())

    def begin(self, model: str | None) -> MeteredRequest:
        """Count a request that begins.

        Args:
            model: Its model, whose usual price it reserves.

        Raises:
            Refusal: 429: the day's budget is used up, or requests in flight may use it up, or the
                rate is reached. A refused request does not count.
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
        return MeteredRequest(self, model)

    def spend(self, cost_usd: float) -> None:
        """Count the cost of an attempt. Its request may have ended already."""
        self._start_new_day()
        self._spent += cost_usd

    def end(self, model: str | None, cost_usd: float | None) -> None:
        """Count the end of a request.

        Args:
            model: As in `begin`.
            cost_usd: US dollars if they show the usual price; 0.0 for a model without a price.
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
        reserved = sum(other.price * other.in_flight for other in self._models.values())
        price = self._models.get(model, _Spending()).price
        if spent + reserved + price > self.budget_usd:
            raise Refusal(
                429,
                "The requests of this key in flight may use up its budget for today.",
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after=_SOON,
            )

    def _start_new_day(self) -> None:
        """Reset the costs if the day has changed.

        A wall clock that is set back over midnight does not give yesterday's budget again, but one
        that was a day or more ahead is followed when it is right again.
        """
        day = self._day()
        if day > self._today or day < self._today - 1:
            self._today = day
            self._spent = 0.0

    def _forget(self, model: str | None) -> None:
        """Drop a model that never answered: callers may invent any number of names."""
        spending = self._models[model]
        if spending.usual is None and not spending.in_flight:
            del self._models[model]

    def _day(self) -> int:
        return int(self._clock.wall() // _DAY)


class MeteredRequest:
    """One request in its key's account, as a context.

    Args:
        account: None counts nothing.
        model: Its model.
    """

    __slots__ = ("_account", "_cost", "_model", "_unpriced")

    def __init__(self, account: KeyAccount | None = None, model: str | None = None) -> None:
        self._account = account
        self._model = model
        self._cost = 0.0
        self._unpriced = False

    @property
    def on_cost(self) -> Callable[[float | None], None] | None:
        """Called with the cost of each attempt, see `Origin`; None if nothing counts it."""
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
        # An aborted request and a cached answer do not show what an answer usually costs.
        shown = kind is None and (self._cost > 0 or self._unpriced)
        self._account.end(self._model, self._cost if shown else None)

    def _spent(self, cost_usd: float | None) -> None:
        if cost_usd is None:
            self._unpriced = True
        elif self._account is not None:
            self._cost += cost_usd
            self._account.spend(cost_usd)
