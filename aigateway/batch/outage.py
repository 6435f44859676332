"""How long a request that nobody sits and waits for is held back while nobody can be asked.

Who calls `chat` wants to know at once that every provider is away. A batch wants its answers: with
every circuit open it would otherwise turn its whole input into errors within a second. What is
decided here is only whether a request waits; who is asked, and how a failure is judged, is not.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

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

__all__ = ["Patience"]

LOOK_AGAIN = 5.0
"""Seconds after which one who waits looks around: somebody may have come back, or been added."""

_BEHIND = 0.25
"""Seconds by which a request that has failed comes later than others; doubles each time."""

_LEAST_WAIT = 0.001
"""Seconds; what is left of a wait by rounding alone must not be waited for again and again."""

_AWAY = frozenset({FailureKind.RATE_LIMITED, FailureKind.COOLING_DOWN, FailureKind.CIRCUIT_OPEN})
"""What a provider that is away for a while has to say, whatever the request is."""


class Patience:
    """The patience of one batch. For one event loop.

    Nobody to be asked counts from when a request found it so until a vendor answers one: a probe
    that fails, or a rate that ends in the next refusal, is no end of an outage.

    Args:
        clock: Time.
        seconds: For how long requests are held back, in one outage and each of them after its
            first failure; 0 not at all, None without end.
        away: Seconds until somebody who serves a model can be asked; 0 if somebody can be now, or
            if waiting is no use.
        offline: Whether no connection can be made to anybody.
        last_resort: Seconds until one request may go out during an outage all the same, so that
            its end is noticed; infinite if none may.
        refusal: The error for a request that is not asked, since no provider can be.
    """

    __slots__ = ("_away", "_clock", "_last_resort", "_offline", "_refusal", "_seconds", "_since")

    def __init__(
        self,
        clock: Clock,
        seconds: float | None,
        away: Callable[[object], float],
        offline: Callable[[], bool],
        *,
        last_resort: Callable[[object], float],
        refusal: Callable[[object], GatewayError],
    ) -> None:
        self._clock = clock
        self._seconds = math.inf if seconds is None else seconds
        self._away = away
        self._offline = offline
        self._last_resort = last_resort
        self._refusal = refusal
        self._since: dict[object, float] = {}  # by model: when nobody could be asked first

    async def answer(
        self, model: object, ask: Callable[[], Awaitable[ChatResponse]]
    ) -> ChatResponse:
        """Ask when somebody can be asked, and again if that ended because nobody could be.

        Args:
            model: Whom it is for; None is everybody.
            ask: Asks once.

        Raises:
            What `ask` raises, the last time.
        """
        failures = 0
        own_end = math.inf
        held = self._away(model) > 0
        while True:
            if held:
                await self._hold(model, failures, own_end)
                if self._away(model) > 0 and self._last_resort(model) > 0:
                    raise self._refusal(model)  # the patience is over
            in_outage = self._away(model) > 0
            try:
                response = await ask()
            except (AllProvidersFailedError, DeadlineExceededError, OverloadedError) as error:
                # A request that is refused for its own sake must not profit from others' answers.
                own_end = min(own_end, self._clock.now() + self._seconds)
                # What was asked as last resort, and failed, has told nothing of itself either.
                held = in_outage or self._away(model) > 0 or self._tells_nothing(error)
                if not held or self._left(model, own_end) <= 0:
                    raise
                failures += 1
            else:
                if self._since and not response.cached:
                    self._since.pop(model, None)
                return response

    async def _hold(self, model: object, failures: int, own_end: float) -> None:
        """Wait until somebody can be asked, or until the patience is over.

        One that has failed comes a little later than others: it may be what the vendor chokes on.
        """
        behind = min(_BEHIND * 2.0 ** min(failures - 1, 8), LOOK_AGAIN) if failures else 0.0
        while (left := self._left(model, own_end)) > 0:
            wait = min(self._away(model), self._last_resort(model))
            if wait <= 0:
                wait, behind = behind, 0.0
            if wait <= 0:
                return
            await self._clock.sleep(max(min(wait, left, LOOK_AGAIN), _LEAST_WAIT))

    def _left(self, model: object, own_end: float) -> float:
        """Seconds for which a request is still held back. The first to ask begins the outage."""
        now = self._clock.now()
        return min(own_end, self._since.setdefault(model, now) + self._seconds) - now

    def _tells_nothing(self, error: GatewayError) -> bool:
        """Whether a request failed that nobody has looked at, though somebody can be asked now.

        What healthy providers could not answer must fail, for it would be asked for ever. But where
        all said only "later", that may be over in the moment in which the request has failed.
        """
        if not isinstance(error, AllProvidersFailedError | DeadlineExceededError):
            return False
        hopeful = [cause for cause in error.causes if cause.kind is not FailureKind.DISABLED]
        return bool(hopeful) and all(map(self._comes_back, hopeful))

    def _comes_back(self, cause: ProviderFailure) -> bool:
        """Whether this provider did not look at the request, but will some time."""
        wait = cause.retry_after_seconds
        if cause.kind is FailureKind.CONNECTION:
            return self._offline()
        if cause.kind is FailureKind.SATURATED:
            return wait is not None  # its rate is used up, until then
        return cause.kind in _AWAY and wait != math.inf
