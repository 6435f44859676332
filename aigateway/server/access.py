"""Who may ask, and for how much."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from aigateway.server.refusals import Refusal
from aigateway.settings import ApiKey, ServerSettings

__all__ = ["Access", "Caller"]


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


class Access:
    """Knows the keys by their digests only.

    Args:
        settings: Who may ask.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._keys = settings.keys
        self._admin = settings.admin_sha256

    def successor(self, settings: ServerSettings) -> Access:
        """Who may ask after a reload. What unchanged keys have used up stays used up."""
        return Access(settings)

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


def _digest(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hashlib.sha256(given.encode()).hexdigest() if given else None
