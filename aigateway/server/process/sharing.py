"""Several processes as one service: what is asked of any of them is answered for all.

Each says how it stands, and whoever is asked puts that together; an operator's order is obeyed by
all. With one process it all stays at home.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aigateway.errors import ConfigurationError
from aigateway.routing.guards import CircuitOrder
from aigateway.server.process.totals import summed_metrics
from aigateway.server.service import Service
from aigateway.server.status.snapshot import Snapshot, merged
from aigateway.telemetry.prometheus import Prometheus

__all__ = ["share"]

_log = logging.getLogger(__name__)

_PICTURE, _FIGURES, _SCRAPED = "picture", "figures", "scraped"
"""Names of shares: of the status page, of `/metrics` as JSON, of a scraper."""


def share(service: Service, metrics: Prometheus) -> None:
    """Have a process's service speak for all of them.

    Args:
        service: Of this process.
        metrics: Its hook.
    """
    workers = service.workers
    metrics.watch(lambda: service.gateway)
    workers.share(_PICTURE, lambda: orjson.dumps(service.own_snapshot()))
    workers.share(_FIGURES, lambda: orjson.dumps(service.own_figures()))
    workers.share(_SCRAPED, lambda: orjson.dumps(metrics.snapshot()))

    def picture() -> Snapshot:
        return merged([orjson.loads(said) for said in workers.collect(_PICTURE).living])

    def figures() -> dict[str, Any]:
        said = workers.collect(_FIGURES)
        living, departed = map(orjson.loads, said.living), map(orjson.loads, said.departed)
        return summed_metrics(list(living), list(departed))

    def scraped(accept: str) -> tuple[str, bytes]:
        said = workers.collect(_SCRAPED, own=False)
        others = [orjson.loads(each) for each in said.living]
        others += [_without_gauges(orjson.loads(each)) for each in said.departed]
        return metrics.render(accept, others)

    async def force(name: str, order: CircuitOrder, by: str | None) -> None:
        if not any(provider.name == name for provider in service.gateway.providers):
            raise ConfigurationError(f"There is no provider named {name!r}.")
        workers.order(name, orjson.dumps({"order": order, "by": by}))

    def obey(name: str, said: bytes) -> None:
        told = orjson.loads(said)
        if _stands(service, name, told["order"]):
            return  # it was told before; a reload, say, tells all orders again
        try:
            service.gateway.force_circuit(name, told["order"], by=told["by"])
        except ConfigurationError:  # it is not there any more, or not yet
            _log.info("No provider %s here to take in hand.", name)

    service.snapshot = picture
    service.figures = figures
    service.scrape = scraped
    service.force_circuit = force
    workers.obey(obey)


def _stands(service: Service, name: str, order: CircuitOrder) -> bool:
    """Whether a provider is in hand already as somebody wants it, or is left to itself."""
    for provider in service.gateway.providers:
        if provider.name == name:
            in_hand = provider.circuit_state.value if provider.forced else "auto"
            return in_hand == order
    return False


def _without_gauges(families: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What a process that is gone has counted; how it stood means nothing any more."""
    return [family for family in families if family["type"] != "gauge"]
