"""Who may ask, and for how much."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aigateway.server.refusals import Refusal
from aigateway.settings import ApiKey, ServerSettings

__all__ = ["Access", "Caller", "Use"]


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
        return self.key is None or self.key.models is None or model in self.key.models


class Use:
    """One request of somebody's, while it is under way."""

    def spent(self, cost_usd: float | None) -> None:
        """Enter what it cost: US dollars, None where that is not known."""


class Access:
    """Knows the keys by their digests only.

    Args:
        settings: Who may ask.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._keys = settings.keys
        self._admin = settings.admin_sha256

    def admit(self, headers: Mapping[str, str]) -> Caller:
        """Say who asks.

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

    @contextlib.contextmanager
    def begin(self, caller: Caller, model: str | None) -> Iterator[Use]:
        """Let somebody's request begin.

        Args:
            caller: Who asks.
            model: For which model, name or alias; None is whichever the gateway takes.

        Raises:
            Refusal: 404, the caller may not use it.
        """
        if not caller.may_ask(model):
            what = "Your key may not ask for this model."
            raise Refusal(404, what, code="model_not_found", param="model")
        yield Use()


def _digest(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hashlib.sha256(given.encode()).hexdigest() if given else None
