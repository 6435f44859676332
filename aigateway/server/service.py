"""What the endpoints of one process share: gateway, settings, access, and the other processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import orjson
from starlette.requests import Request

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import ConfigurationError
from aigateway.events import CircuitOrder
from aigateway.gateway import AsyncGateway
from aigateway.server.auth.keys import Access, Caller
from aigateway.server.http.cancel import StopSignal
from aigateway.server.http.errors import REQUEST, RefusalLog
from aigateway.server.http.sse import Turns
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.status.history import MergedHistory, merged_history
from aigateway.server.status.recent_events import RecentEvents
from aigateway.server.status.snapshot import (
    Report,
    Snapshot,
    report,
    restricted_metrics,
    snapshot,
)
from aigateway.settings import ServerSettings
from aigateway.telemetry.log import log_event
from aigateway.telemetry.merge import merge_metrics
from aigateway.telemetry.prometheus import Prometheus, exposition, restricted_exposition

__all__ = ["Service", "TenantOf", "service_of"]

_REPORT, _HISTORY = "service", "history"

_OPERATOR = Caller(is_admin=True)
"""Sees everything."""

TenantOf = Callable[[Request], str | None]
"""Returns the tenant of a request that has been authenticated outside of the service."""


KeepOrder = Callable[[str, bytes | None], Coroutine[Any, Any, None]]


async def _forget(provider: str, content: bytes | None) -> None:
    """Keep no order."""


def service_of(request: Request) -> Service:
    """Return the service that a request came to."""
    service: Service = request.scope[REQUEST].service
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
        keep_order: Keeps an order for a provider's circuit, None to end it, over a restart.
        recent_events: As given.
        state_is_kept: Whether what must outlive a restart can be written now; None if nothing is.
        scrape: Returns the content type and the body for a scraper's `Accept` header, as far as
            the caller may see it; None without `prometheus`.
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
        self.access = Access(settings, clock, gateway.fleet.leases)
        self.refusal_log = RefusalLog(clock)
        self.draining = False
        self.stopping = StopSignal()
        self.turns = Turns(clock)
        self.shared = shared or SharedDirectory()
        self.tenant = tenant
        self.endpoints: Sequence[str] = ()
        self.clock = clock
        self.keep_order: KeepOrder = _forget
        self.state_is_kept: Callable[[], bool] | None = None
        self.recent_events = recent_events or RecentEvents(clock)
        self.scrape = None if prometheus is None else self._scrape
        self._prometheus = prometheus
        self._uses: dict[AsyncGateway, int] = {}
        self._left = asyncio.Event()
        if prometheus is not None:
            prometheus.watch(lambda: self)
        self.shared.report(_REPORT, lambda: orjson.dumps(self._report()))
        self.shared.report(_HISTORY, lambda: orjson.dumps(self.recent_events.history.report()))
        self.shared.subscribe(self._carry_out)

    # ── figures ──────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """Return what the status page shows."""
        return snapshot(*self._reports())

    def history(self, after: float = 0.0) -> MergedHistory:
        """Return what the charts of the status page show, from points that began after that."""
        collected = self.shared.collect(_HISTORY)
        reports = [orjson.loads(each) for each in (*collected.running, *collected.exited)]
        return merged_history(reports, self.clock.wall(), after)

    def figures(self, caller: Caller = _OPERATOR) -> dict[str, Any]:
        """Return the metrics as JSON, with refused requests and what each key has used.

        Args:
            caller: Sees its own account only, unless it may see all.
        """
        running, exited = self._reports()
        whole = merge_metrics([r["metrics"] for r in running], [r["metrics"] for r in exited])
        if not caller.sees_all_keys:
            whole["keys"] = {n: used for n, used in whole["keys"].items() if n == caller.name}
        visible = self.visible_to(caller)
        return whole if visible is None else restricted_metrics(whole, visible)

    def visible_to(self, caller: Caller) -> frozenset[str] | None:
        """Return the names of the providers whose state a caller sees; None: it sees everything."""
        if not caller.is_restricted:
            return None
        return frozenset(
            each.name
            for each in self.gateway.providers
            if any(map(caller.may_ask, (None, each.model, each.name, *each.aliases)))
        )

    def _scrape(self, accept: str, caller: Caller = _OPERATOR) -> tuple[str, bytes]:
        if caller.is_restricted:
            return restricted_exposition(accept, self.figures(caller))
        running, exited = self._reports()
        return exposition(
            accept,
            [r["scraped"] for r in running],
            [r["scraped"] for r in exited],
            keys=None if caller.sees_all_keys else {str(caller.name)},
        )

    def _reports(self) -> tuple[list[Report], list[Report]]:
        collected = self.shared.collect(_REPORT)
        running, exited = collected.running, collected.exited
        return [orjson.loads(each) for each in running], [orjson.loads(each) for each in exited]

    def get_metrics(self) -> dict[str, Any]:
        """Return the figures of this process: its gateway's, and the service's own."""
        kept = self.state_is_kept
        return {
            **self.gateway.get_metrics(),
            "refused": dict(self.refusal_log.counts),
            "keys": {
                usage.name: {
                    "spent_usd": usage.spent_usd,
                    "budget_usd": usage.budget_usd,
                    "requests_last_minute": usage.requests_last_minute,
                    "rpm": usage.rpm,
                    "in_flight": usage.in_flight,
                    "shared": usage.shared,
                    "day": usage.day,
                }
                for usage in self.access.usage()
            },
            **({} if kept is None else {"state": {"available": kept()}}),
        }

    def _report(self) -> Report:
        return report(
            self.gateway.providers,
            self.get_metrics(),
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
        content = orjson.dumps({"order": order, "by": by})
        self.shared.order(name, content)
        await self.keep_order(name, None if order == "auto" else content)

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

    def take(self) -> AsyncGateway:
        """Take the gateway for one request: it is not closed before it is given back."""
        gateway = self.gateway
        self._uses[gateway] = self._uses.get(gateway, 0) + 1
        return gateway

    def give_back(self, gateway: AsyncGateway) -> None:
        """Give the gateway back that a request has taken."""
        uses = self._uses[gateway] - 1
        if uses:
            self._uses[gateway] = uses
            return
        del self._uses[gateway]
        if gateway is not self.gateway:  # which `replace` may wait for
            self._left.set()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[AsyncGateway]:
        """Take the gateway for a block."""
        gateway = self.take()
        try:
            yield gateway
        finally:
            self.give_back(gateway)

    async def replace(self, gateway: AsyncGateway) -> AsyncGateway:
        """Answer with another gateway from now on. Returns the old one when it is not in use."""
        old, self.gateway = self.gateway, gateway
        if gateway.fleet is not old.fleet:
            self.access = self.access.successor(self.settings, gateway.fleet.leases)
        while self._uses.get(old):
            self._left.clear()
            await self._left.wait()
        return old
