"""During an outage a batch waits: its requests are held back instead of failing at once.

A caller of `chat` wants to know immediately that every provider is unavailable. A batch wants its
answers. This module decides only whether a request waits, not which provider is asked.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aigateway.clock import Clock
from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    OverloadedError,
    ProviderFailure,
)
from aigateway.messages import ChatResponse

__all__ = ["Availability", "OutageWait"]

LOOK_AGAIN = 5.0
"""Longest wait in seconds before the providers are looked at again."""

_BEHIND = 0.25
"""Seconds by which a request that has failed stands behind the others; doubles each time."""

_LEAST_WAIT = 0.001
"""Seconds. Rounding can leave a tiny wait, which would otherwise be repeated many times."""

_TEMPORARY = frozenset(
    {FailureKind.RATE_LIMITED, FailureKind.COOLING_DOWN, FailureKind.CIRCUIT_OPEN}
)
"""Failures of a provider that is unavailable for a while, whatever the request is."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Which providers a batch can reach. Each callable takes any `model` and never raises.

    Attributes:
        seconds_until_available: Until a provider of the model may be asked normally. 0 if one may
            be now, or if waiting would not help.
        seconds_until_last_resort: Until one request may go out as last resort during an outage;
            infinite if none may.
        refusal: The error of a request that no provider may be asked for.
        network_is_down: Whether no connection can be made to any provider.
    """

    seconds_until_available: Callable[[object], float] = lambda _: 0.0
    seconds_until_last_resort: Callable[[object], float] = lambda _: math.inf
    refusal: Callable[[object], GatewayError] = lambda _: AllProvidersFailedError.of(())
    network_is_down: Callable[[], bool] = lambda: False


class OutageWait:
    """Holds back the requests of one batch during outages. For one event loop.

    An outage begins when a request finds no provider available, and ends when a vendor answers one.
    A failed probe, or a rate limit that ends in the next refusal, does not end it.

    Args:
        clock: Time.
        seconds: How long requests are held back, per outage and per request after its first
            failure. 0 disables waiting; None waits without limit.
        availability: Which providers can be reached.
    """

    __slots__ = ("_availability", "_clock", "_seconds", "_since")

    def __init__(self, clock: Clock, seconds: float | None, availability: Availability) -> None:
        self._clock = clock
        self._seconds = math.inf if seconds is None else seconds
        self._availability = availability
        self._since: dict[object, float] = {}  # by model: when its outage began

    async def answer(
        self, model: object, ask: Callable[[], Awaitable[ChatResponse]]
    ) -> ChatResponse:
        """Ask when a provider is available, and again if the request failed of the outage alone.

        Args:
            model: The request's model; None stands for any.
            ask: Asks once.

        Raises:
            Exception: Whatever the last `ask` raised.
        """
        failures = 0
        own_end = math.inf
        held = self._is_outage(model)
        while True:
            if held:
                await self._hold(model, failures, own_end)
                if (
                    self._is_outage(model)
                    and self._availability.seconds_until_last_resort(model) > 0
                ):
                    raise self._availability.refusal(model)  # waited long enough
            in_outage = self._is_outage(model)
            try:
                response = await ask()
            except (AllProvidersFailedError, DeadlineExceededError, OverloadedError) as error:
                # Bounds this request by itself: answers to others extend the wait of all, and one
                # that only ever fails must not be repeated without end.
                own_end = min(own_end, self._clock.now() + self._seconds)
                # A failed last-resort attempt says nothing about the request either.
                held = in_outage or self._is_outage(model) or self._is_outage_only(error)
                if not held or self._left(model, own_end) <= 0:
                    raise
                failures += 1
            else:
                if self._since and not response.cached:
                    self._since.pop(model, None)
                return response

    def _is_outage(self, model: object) -> bool:
        return self._availability.seconds_until_available(model) > 0

    async def _hold(self, model: object, failures: int, own_end: float) -> None:
        """Wait until a provider is available, or the allowed time is over.

        A request that has failed waits a little longer: it may itself be the cause of failures.
        """
        behind = min(_BEHIND * 2.0 ** min(failures - 1, 8), LOOK_AGAIN) if failures else 0.0
        while (left := self._left(model, own_end)) > 0:
            wait = min(
                self._availability.seconds_until_available(model),
                self._availability.seconds_until_last_resort(model),
            )
            if wait <= 0:
                wait, behind = behind, 0.0
            if wait <= 0:
                return
            await self._clock.sleep(max(min(wait, left, LOOK_AGAIN), _LEAST_WAIT))

    def _left(self, model: object, own_end: float) -> float:
        """Return the seconds a request may still wait. The first call begins the outage."""
        now = self._clock.now()
        return min(own_end, self._since.setdefault(model, now) + self._seconds) - now

    def _is_outage_only(self, error: GatewayError) -> bool:
        """Return whether no provider looked at the request, though one may be available by now.

        A failure at a healthy provider must end the request, or it would be repeated for ever.
        """
        if not isinstance(error, AllProvidersFailedError | DeadlineExceededError):
            return False
        usable = [cause for cause in error.causes if cause.kind is not FailureKind.DISABLED]
        return bool(usable) and all(map(self._is_temporary, usable))

    def _is_temporary(self, cause: ProviderFailure) -> bool:
        """Return whether the provider did not look at the request, but will be available again."""
        wait = cause.retry_after_seconds
        if cause.kind is FailureKind.CONNECTION:
            return self._availability.network_is_down()
        if cause.kind is FailureKind.SATURATED:
            return wait is not None  # its rate is used up for that long
        return cause.kind in _TEMPORARY and wait != math.inf
