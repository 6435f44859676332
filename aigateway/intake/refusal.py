"""The one way to say no."""

from __future__ import annotations

from typing import NoReturn

from aigateway.errors import RequestRejectedError

__all__ = ["refuse"]


def refuse(message: str) -> NoReturn:
    """Raise the refusal; `message` is a whole sentence with the fix in it."""
    raise RequestRejectedError(message)
