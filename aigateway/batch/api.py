"""Batches over the gateway's providers: what the engine needs to know of the gateway.

`AsyncGateway` holds one `Batches`. How a batch runs is in `batch/engine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from aigateway.batch.engine import Ask, BatchRun, limit_of
from aigateway.batch.outage import Availability
from aigateway.batch.progress import progress_bar
from aigateway.clock import Clock
from aigateway.messages import ChatRequest
from aigateway.resilience.local_faults import Reachability
from aigateway.routing.candidates import Roster

__all__ = ["Batches"]


class Batches:
    """The batches of one gateway.

    Args:
        ask: Answers one request of a batch.
        check: Checks one request without sending it (`AsyncGateway.check`).
        clock: Time.
        roster: The providers.
        network: Knows whether the network is down.
        max_concurrency: The most requests in flight at once.
        is_closed: Whether the gateway is closed.
    """

    def __init__(
        self,
        ask: Ask,
        check: Callable[..., ChatRequest],
        *,
        clock: Clock,
        roster: Roster,
        network: Reachability,
        max_concurrency: int,
        is_closed: Callable[[], bool],
    ) -> None:
        self.ask = ask
        self._check = check
        self._clock = clock
        self._roster = roster
        self._max_concurrency = max_concurrency
        self._is_closed = is_closed
        self._availability = Availability(
            self._seconds_until_available,
            roster.seconds_until_last_resort,
            roster.refusal_of_all,
            lambda: network.network_is_down,
        )

    def run(self, response_format: object, options: Mapping[str, Any]) -> BatchRun:
        """Return how one batch runs, from the options of its call.

        Raises:
            RequestRejectedError: An argument, or a shared option, is invalid.
            UnknownModelError: No provider serves the shared `model`.
            NoProvidersError: No provider is configured.
        """
        shared = {"response_format": response_format, **options}
        if response_format is None:
            del shared["response_format"]
        concurrency = shared.pop("concurrency", 16)
        on_progress = shared.pop("on_progress", None)
        timeout = shared.pop("timeout", None)
        outage_patience = shared.pop("outage_patience", 300.0)
        progress = shared.pop("progress", False)
        # An invalid shared option is one error, not one for each request.
        model = self._check("any prompt", **shared).model

        def free_limit() -> int:
            served = (p for p in self._roster if model is None or model in p.answers_to)
            return sum(p.adaptive.limit for p in served if p.refusal("chat") is None)

        return BatchRun(
            self._clock,
            limit_of(concurrency, self._max_concurrency, free_limit),
            timeout,
            shared,
            on_progress,
            outage_patience=outage_patience,
            availability=self._availability,
            display=progress_bar if progress else nullcontext,
        )

    def _seconds_until_available(self, model: object) -> float:
        # A closed gateway refuses the request at once; waiting would not help.
        return 0.0 if self._is_closed() else self._roster.seconds_until_available(model)
