"""What the gateway thinks of a provider, in a word."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aigateway.resilience.breaker import CircuitState
from aigateway.routing.provider import ProviderStatus

__all__ = ["Condition", "Word", "condition"]

Word = Literal["closed", "degraded", "half-open", "open", "probe is due", "cooling", "disabled"]


@dataclass(frozen=True, slots=True)
class Condition:
    """How a provider is.

    Attributes:
        word: That.
        wait: Seconds until it is asked again, where that is known and tells something.
        reason: Why it is disabled or degraded, else None.
    """

    word: Word
    wait: float | None = None
    reason: str | None = None


def condition(status: ProviderStatus) -> Condition:
    """How this one is."""
    wait = status.retry_after_seconds or None
    if wait is not None and math.isinf(wait):
        wait = None  # forced open
    if status.circuit_state is CircuitState.HALF_OPEN:
        return Condition("half-open")
    if status.circuit_state is CircuitState.OPEN:
        # No timer turns it: the next caller that gets this far is the probe.
        if not status.retry_after_seconds:
            return Condition("probe is due")
        return Condition("open", wait)
    if status.disabled_reason is not None:
        return Condition("disabled", reason=str(status.disabled_reason))
    if wait:
        return Condition("cooling", wait)
    return Condition("closed" if status.degraded is None else "degraded", reason=status.degraded)
