"""What the endpoints of one process share: gateway, settings, access, and the other processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
from starlette.requests import Request

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import ConfigurationError
from aigateway.gateway import AsyncGateway
from aigateway.routing.guards import CircuitOrder
from aigateway.server.auth.keys import Access
from aigateway.server.http.errors import SERVICE, RefusalLog
from aigateway.server.http.sse import Turns
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.status.recent_events import RecentEvents
from aigateway.server.status.snapshot import Report, Snapshot, report, snapshot
from aigateway.settings import ServerSettings
from aigateway.telemetry.log import log_event
from aigateway.telemetry.merge import merge_metrics
from aigateway.telemetry.prometheus import Prometheus, exposition

__all__ = ["Service", "TenantOf", "service_of"]

_REPORT = "service"

TenantOf = Callable[[Request], str | None]
"""Returns the tenant of a request that has been authenticated outside of the service."""


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    service = request.scope[SERVICE]
    assert isinstance(service, Service)  # noqa: S101 - `ErrorBoundary` put it there
    return service


class Service:
    """The service in one process. What it says of itself is the sum of all processes.

    Args:
        gateway: Answers requests; its maker closes it.
        settings: Of the service.
        clock: Time.
        recent_events: A hook of the gateway; without it the status page shows figures only.
        prometheus: A hook of the gateway; without it there is nothing for a scraper.
        shared: Reaches the other processes.
        tenant: Decides whose a request is, in place of keys.

    Attributes:
        gateway: Answers new requests; see `in_use`.
        settings: The current ones.
        access: Knows the keys.
        refusal_log: Refused requests.
        draining: The service is stopping: `/ready` fails, requests in flight go on.
        stopping: The time to drain is over: streams end with an error.
        turns: Shares the event loop's time among streams.
        shared: As given.
        tenant: As given.
        endpoints: What it offers ("POST /v1/messages"), for answers about what it does not.
        clock: As given.
        recent_events: As given.
        scrape: Returns the content type and the body for a scraper's `Accept` header; None without
            `prometheus`.
    """

    def __init__(
        self,
        gateway: AsyncGateway,
        settings: ServerSettings,
        clock: Clock = SYSTEM_CLOCK,
        *,
        recent_events: RecentEvents | None = None,
        prometheus: Prometheus | None = None,
        shared: SharedDirectory | None = None,
        tenant: TenantOf | None = None,
    ) -> None:
        self.gateway = gateway
        self.settings = settings
        self.access = Access(settings, clock)
        self.refusal_log = RefusalLog(clock)
        self.draining = False
        self.stopping = asyncio.Event()
        self.turns = Turns(clock)
        self.shared = shared or SharedDirectory()
        self.tenant = tenant
        self.endpoints: Sequence[str] = ()
        self.clock = clock
        self.recent_events = recent_events or RecentEvents(clock)
        self.scrape = None if prometheus is None else self._scrape
        self._prometheus = prometheus
        self._uses: dict[AsyncGateway, int] = {}
        self._left = asyncio.Event()
        if prometheus is not None:
            prometheus.watch(lambda: self.gateway)
        self.shared.report(_REPORT, lambda: orjson.dumps(self._report()))
        self.shared.subscribe(self._carry_out)

    # ── figures ──────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """Return what the status page shows."""
        return snapshot(*self._reports())

    def figures(self) -> dict[str, Any]:
        """Return the metrics as JSON, with refused requests and what each key has used."""
        running, exited = self._reports()
        return merge_metrics([r["metrics"] for r in running], [r["metrics"] for r in exited])

    def _scrape(self, accept: str) -> tuple[str, bytes]:
        running, exited = self._reports()
        return exposition(accept, [r["scraped"] for r in running], [r["scraped"] for r in exited])

    def _reports(self) -> tuple[list[Report], list[Report]]:
        collected = self.shared.collect(_REPORT)
        running, exited = collected.running, collected.exited
        return [orjson.loads(each) for each in running], [orjson.loads(each) for each in exited]

    def _report(self) -> Report:
        keys = {
            usage.name: {
                "spent_usd": usage.spent_usd,
                "budget_usd": usage.budget_usd,
                "in_flight": usage.in_flight,
            }
            for usage in self.access.usage()
        }
        refused = dict(self.refusal_log.counts)
        return report(
            self.gateway.providers,
            {**self.gateway.get_metrics(), "refused": refused, "keys": keys},
            self.recent_events.recent,
            latency=self.recent_events.latency(),
            at=self.clock.wall(),
            scraped=[] if self._prometheus is None else self._prometheus.snapshot(),
        )

    # ── orders ───────────────────────────────────────────────────────────────────────────────

    async def force_circuit(self, name: str, order: CircuitOrder, by: str | None) -> None:
        """Give all processes an operator's order; see `AsyncGateway.force_circuit`.

        Raises:
            ConfigurationError: There is no such provider.
        """
        if not any(provider.name == name for provider in self.gateway.providers):
            raise ConfigurationError(f"There is no provider named {name!r}.")
        self.shared.order(name, orjson.dumps({"order": order, "by": by}))

    def _carry_out(self, name: str, content: bytes) -> None:
        given = orjson.loads(content)
        for provider in self.gateway.providers:
            if provider.name == name:
                current = provider.circuit_state.value if provider.forced else "auto"
                if current == given["order"]:
                    return  # carried out before; a reload, for example, repeats all orders
        try:
            self.gateway.force_circuit(name, given["order"], by=given["by"])
        except ConfigurationError:  # removed, or not added yet
            log_event(
                logging.INFO,
                "workers.order_without_provider",
                "There is no provider {provider} here to force.",
                provider=name,
            )

    # ── the gateway ──────────────────────────────────────────────────────────────────────────

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._uses

    @contextlib.contextmanager
    def in_use(self) -> Iterator[AsyncGateway]:
        """Give the gateway to one request: it is not closed before the request has ended."""
        gateway = self.gateway
        self._uses[gateway] = self._uses.get(gateway, 0) + 1
        try:
            yield gateway
        finally:
            self._uses[gateway] -= 1
            if not self._uses[gateway]:
                del self._uses[gateway]
                self._left.set()

    async def replace(self, gateway: AsyncGateway) -> AsyncGateway:
        """Answer with another gateway from now on. Returns the old one when it is not in use."""
        old, self.gateway = self.gateway, gateway
        while self._uses.get(old):
            self._left.clear()
            await self._left.wait()
        return old
