"""Keeps what one client leaves registered with litellm from being measured with the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import litellm

LISTENERS = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "_async_success_callback",
    "_async_failure_callback",
    "service_callback",
)


@contextlib.contextmanager
def litellm_put_back() -> Iterator[None]:
    """Take away, at the end, what a Router or a cache leaves registered with litellm.

    Left there, it would slow whoever calls litellm next, and aigateway, which goes through
    litellm when somebody listens there, would no longer be measured on its own connections.
    """
    before = {name: list(getattr(litellm, name)) for name in LISTENERS}
    try:
        yield
    finally:
        for name, values in before.items():
            getattr(litellm, name)[:] = values


def nobody_listens() -> None:
    """Refuse to measure in a process where somebody does."""
    left = [name for name in LISTENERS if getattr(litellm, name)]
    if left:
        raise RuntimeError(f"another client left litellm.{left[0]} set; this would be measured too")
