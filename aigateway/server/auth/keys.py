"""Who may ask, for what, and for how much.

Keys are known by their SHA-256 only. They are long and random (`aigateway key` makes them), so
that no slow hash is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.server.auth.usage import Account, Use
from aigateway.server.http.bodies import AUTO
from aigateway.server.http.errors import Refusal
from aigateway.settings import ApiKey, ServerSettings

__all__ = ["Access", "Caller", "KeyUsage", "Use"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may ask.

    Attributes:
        name: The key's; None where no keys are needed.
        key: What is set for it.
        is_admin: Whether it may change what providers do.
    """

    name: str | None = None
    key: ApiKey | None = None
    is_admin: bool = False

    @property
    def partition(self) -> str:
        """Answers are shared only among requests of the same one."""
        return "" if self.name is None else f"key:{self.name}"

    def may_ask(self, model: str | None) -> bool:
        """Whether it may ask for this model, name or alias; None is "any of them"."""
        return self.key is None or self.key.models is None or (model or AUTO) in self.key.models


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What a key has used, in this process.

    Attributes:
        name: The key's.
        spent_usd: US dollars of today (UTC).
        budget_usd: This process's share of the day's; None is no bound.
        in_flight: Requests that are under way.
    """

    name: str
    spent_usd: float
    budget_usd: float | None
    in_flight: int


class Access:
    """Knows the keys by their digests, and keeps their accounts.

    Of several workers each keeps accounts of its own, and gives a key its share: the budget and
    the rate divided by the workers, the rate rounded up.

    Args:
        settings: Who may ask.
        clock: Time.
    """

    def __init__(self, settings: ServerSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._keys = settings.keys
        self._admin = settings.admin_sha256
        self._accounts = {key.sha256: Account(clock) for key in settings.keys}
        self._bind(settings)

    def successor(self, settings: ServerSettings) -> Access:
        """Who may ask after a reload. A key that stays keeps its account, whatever else changes."""
        heir = Access(settings, self._clock)
        for digest in heir._accounts.keys() & self._accounts.keys():
            heir._accounts[digest] = self._accounts[digest]
        heir._bind(settings)
        return heir

    def admit(self, headers: Mapping[str, str]) -> Caller:
        """Say who asks.

        Args:
            headers: Of the request, their names in small letters.

        Raises:
            Refusal: 401, there is no key or it is not known.
        """
        digest = _digest(headers)
        if self._admin is not None and hmac.compare_digest(digest or "", self._admin):
            return Caller("admin", is_admin=True)
        if not self._keys:
            return Caller(is_admin=self._admin is None)
        found: ApiKey | None = None
        for key in self._keys:  # all of them, so that the time tells nothing
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

    def begin(self, caller: Caller, model: str | None) -> Use:
        """Count a request that is about to be asked. Use it as a context; see `Use`.

        Args:
            caller: As admitted.
            model: What it asks for; None is "any of them".

        Raises:
            Refusal: 404, it may not ask for this model, which is told as if there were none; 400,
                it may ask for some models only, and named none; 429, its budget or rate is used up.
        """
        try:
            if not caller.may_ask(model):
                raise _no_such_model(model)
            # A key that was taken away a moment ago has no account any more.
            account = None if caller.key is None else self._accounts.get(caller.key.sha256)
            return Use() if account is None else account.begin(model)
        except Refusal as refusal:
            refusal.caller = caller.name
            raise

    def usage(self) -> tuple[KeyUsage, ...]:
        """What each key has used, in the order of the settings."""
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
