"""Prometheus: a hook that counts, and the text for a scraper.

    metrics = Prometheus()
    gateway = AsyncGateway(hooks=[metrics])
    metrics.watch(lambda: gateway)
    content_type, body = metrics.render(request.headers.get("accept", ""))

Labels are names from the settings (`provider`) and words of this library (`outcome`, `state`), not
values from callers: their number does not grow with the requests.

Needs `prometheus-client` (extra `[server]`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aigateway.events import (
    AnswerDiscarded,
    AttemptEnded,
    Event,
    RequestEnded,
    RequestHedged,
)
from aigateway.messages import Usage
from aigateway.telemetry.merge import CIRCUIT_STATES, merge, merge_metrics

__all__ = ["MetricsSource", "Prometheus", "exposition", "wants_prometheus"]

Families = Sequence[Mapping[str, Any]]
"""A `Prometheus.snapshot()`."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Buckets in seconds: for a model's answer, and for the gateway's own part."""

_FIGURES = "aigateway_figures"
"""Names the entry of a snapshot that holds `get_metrics()`, from which the gauges are made."""


class MetricsSource(Protocol):
    """A gateway, as far as a scrape looks at it."""

    def get_metrics(self) -> dict[str, Any]:
        """As `AsyncGateway.get_metrics`."""


class Prometheus:
    """A hook that counts into a registry.

    Args:
        registry: For the metrics; None makes one. A registry takes one `Prometheus`.
    """

    wants: tuple[type[Event], ...] = (AttemptEnded, AnswerDiscarded, RequestEnded, RequestHedged)

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._requests = self._histogram(
            "aigateway_request_duration_seconds",
            "From a request to its end, by how it ended.",
            ("outcome",),
        )
        self._attempts = self._histogram(
            "aigateway_attempt_duration_seconds",
            "One attempt; outcome is ok, or the kind of failure.",
            ("provider", "outcome"),
        )
        self._first_token = self._histogram(
            "aigateway_first_token_seconds",
            "From the call of a provider to the first content of its stream.",
            ("provider",),
        )
        self._overhead = self._histogram(
            "aigateway_overhead_seconds",
            "The gateway's own part of a request: work, queue and pauses, without vendors.",
            (),
            _SHORT,
        )
        self._ended = self._counter("requests", "Requests, by how they ended.", "outcome")
        self._hits = self._counter("cache_hits", "Requests answered from the cache.")
        self._stale = self._counter("cache_stale_hits", "Requests answered with an expired answer.")
        self._shared = self._counter("coalesced", "Requests that shared another one's answer.")
        self._tokens = self._counter("tokens", "Tokens, as vendors count.", "provider", "direction")
        self._cost = self._counter("cost_usd", "US dollars, where prices are known.", "provider")
        self._retries = self._counter("retries", "Repeated attempts at a provider.", "provider")
        self._hedges = self._counter(
            "hedges", "Second attempts beside a slow one at this provider.", "provider"
        )
        self._state = _State()
        self.registry.register(self._state)

    def watch(self, gateway: Callable[[], MetricsSource]) -> None:
        """Show the state of a gateway in each scrape.

        Args:
            gateway: Returns the current one.
        """
        self._state.gateway = gateway

    def on_event(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, AttemptEnded):
            self._attempt_ended(event)
        elif isinstance(event, RequestEnded):
            self._request_ended(event)
        elif isinstance(event, AnswerDiscarded):
            self._spent(event.provider, event.usage, event.cost_usd)
        elif isinstance(event, RequestHedged):
            self._hedges.labels(event.provider).inc()

    def render(
        self,
        accept: str = "",
        others: Iterable[Sequence[Mapping[str, Any]]] = (),
        exited: Iterable[Sequence[Mapping[str, Any]]] = (),
    ) -> tuple[str, bytes]:
        """Return the content type and the body for a scraper.

        Args:
            accept: Its `Accept` header: OpenMetrics or Prometheus' own text.
            others: `snapshot()`s of other processes of the same service, shown as one.
            exited: The last ones of processes that have exited: their counts stay.
        """
        running, gone = list(others), list(exited)
        if running or gone:
            return exposition(accept, [self.snapshot(), *running], gone)
        return _encoded(accept, self.registry)

    def snapshot(self) -> list[dict[str, Any]]:
        """Return all metrics as plain values, fit for JSON, for another process's `render`."""
        families: list[dict[str, Any]] = [
            {
                "name": family.name,
                "help": family.documentation,
                "type": family.type,
                "samples": [
                    [sample.name, dict(sample.labels), sample.value] for sample in family.samples
                ],
            }
            for family in self.registry.collect()
            if not isinstance(family, _Gauge)
        ]
        if self._state.gateway is not None:
            figures = self._state.gateway().get_metrics()
            families.append({"name": _FIGURES, "type": "figures", "figures": figures})
        return families

    def _attempt_ended(self, event: AttemptEnded) -> None:
        outcome = "ok" if event.failure is None else event.failure.value
        self._attempts.labels(event.provider, outcome).observe(event.latency_seconds)
        if event.first_content_seconds is not None:
            self._first_token.labels(event.provider).observe(event.first_content_seconds)
        if event.retry:
            self._retries.labels(event.provider).inc()
        self._spent(event.provider, event.usage, event.cost_usd)

    def _request_ended(self, event: RequestEnded) -> None:
        self._ended.labels(event.outcome).inc()
        self._requests.labels(event.outcome).observe(event.latency_seconds)
        self._overhead.observe(event.overhead_seconds)
        if event.outcome == "hit":
            self._hits.inc()
        elif event.outcome == "stale":
            self._stale.inc()
        elif event.outcome == "coalesced":
            self._shared.inc()

    def _spent(self, provider: str, usage: Usage, cost_usd: float | None) -> None:
        if usage.prompt_tokens:
            self._tokens.labels(provider, "input").inc(usage.prompt_tokens)
        if usage.completion_tokens:
            self._tokens.labels(provider, "output").inc(usage.completion_tokens)
        if cost_usd:
            self._cost.labels(provider).inc(cost_usd)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"aigateway_{name}_total", what, labels, registry=self.registry)

    def _histogram(
        self, name: str, what: str, labels: Sequence[str], buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        return Histogram(name, what, labels, buckets=buckets, registry=self.registry)


def exposition(
    accept: str, running: Sequence[Families], exited: Sequence[Families] = ()
) -> tuple[str, bytes]:
    """Return the content type and the body for a scraper, from the snapshots of all processes."""
    return _encoded(accept, _Merged(running, exited))


def _encoded(accept: str, source: Collector) -> tuple[str, bytes]:
    try:
        encode, content_type = choose_encoder(accept)
        return content_type, encode(source)
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = choose_encoder("")
        return content_type, encode(source)


class _State(Collector):
    """The gauges of this process."""

    def __init__(self) -> None:
        self.gateway: Callable[[], MetricsSource] | None = None

    def describe(self) -> Iterable[Metric]:
        """Return nothing: there is no gateway yet when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        if self.gateway is not None:
            yield from _gauges(self.gateway().get_metrics())


class _Gauge(GaugeMetricFamily):
    """One that is made from `get_metrics()`."""

    def __init__(self, name: str, what: str, *labels: str, value: float | None = None) -> None:
        super().__init__(f"aigateway_{name}", what, value, labels or None)


def _gauges(figures: Mapping[str, Any]) -> Iterator[Metric]:
    yield _Gauge("in_flight", "Calls to vendors in flight.", value=figures["in_flight"])
    yield _Gauge("waiting", "Requests that wait for a slot.", value=figures["waiting"])
    yield _Gauge(
        "providers_active",
        "Providers that at least one process could ask now.",
        value=figures["providers_active"],
    )
    yield _Gauge("cache_entries", "Answers in the cache.", value=figures["cache"]["entries"])
    circuits = _Gauge(
        "circuit_state",
        "1 for the state of a provider's circuit, 0 for the others; of several processes the worst"
        " state.",
        *("provider", "state"),
    )
    in_flight = _Gauge("provider_in_flight", "Calls in flight.", "provider")
    bound = _Gauge("provider_max_in_flight", "Calls that may be in flight.", "provider")
    active = _Gauge("provider_active", "1 if it could take a request now, else 0.", "provider")
    for name, provider in figures["providers"].items():
        for state in CIRCUIT_STATES:
            circuits.add_metric((name, state), float(provider["circuit_state"] == state))
        in_flight.add_metric((name,), provider["in_flight"])
        bound.add_metric((name,), provider["max_in_flight"])
        active.add_metric((name,), float(provider["active"]))
    yield from (circuits, in_flight, bound, active)


class _Merged(Collector):
    """Snapshots of several processes, as one registry would show them."""

    def __init__(self, running: Sequence[Families], exited: Sequence[Families]) -> None:
        self._about = {
            family["name"]: family
            for snapshot in (*exited, *running)
            for family in snapshot
            if family["name"] != _FIGURES
        }
        self._samples = merge(
            [_samples(snapshot) for snapshot in running],
            [_samples(snapshot, lasting=True) for snapshot in exited],
        )
        self._figures = [_figures_of(running), _figures_of(exited)]

    def collect(self) -> Iterator[Metric]:
        for name, groups in self._samples.items():
            metric = Metric(name, self._about[name]["help"], self._about[name]["type"])
            for labels, samples in groups.items():
                for sample, value in samples.items():
                    metric.add_sample(sample, dict(labels), value)
            yield metric
        if self._figures[0]:
            yield from _gauges(merge_metrics(*self._figures))


def _samples(snapshot: Families, *, lasting: bool = False) -> dict[str, Any]:
    """Return the values of a snapshot, by family, labels and sample.

    Args:
        snapshot: Of one process.
        lasting: Leave out gauges: they mean nothing once their process has exited.
    """
    found: dict[str, Any] = {}
    for family in snapshot:
        if family["name"] != _FIGURES and not (lasting and family["type"] == "gauge"):
            groups = found.setdefault(family["name"], {})
            for sample, labels, value in family["samples"]:
                groups.setdefault(tuple(labels.items()), {})[sample] = value
    return found


def _figures_of(snapshots: Sequence[Families]) -> list[Mapping[str, Any]]:
    return [
        family["figures"]
        for snapshot in snapshots
        for family in snapshot
        if family["name"] == _FIGURES
    ]


def wants_prometheus(accept: str) -> bool:
    """Return whether an `Accept` header asks for Prometheus' text or OpenMetrics rather than JSON.

    It must name one of them with a higher quality than JSON. Browsers and curl do not, nor do
    libraries that send "application/json, text/plain".
    """
    qualities = dict(_qualities(accept))
    text = max(qualities.get("text/plain", 0.0), qualities.get("application/openmetrics-text", 0.0))
    return text > qualities.get("application/json", 0.0)


def _qualities(accept: str) -> Iterator[tuple[str, float]]:
    best: dict[str, float] = {}
    for entry in accept.split(","):
        kind, *params = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for param in params:
            if param.startswith("q="):
                quality = _number(param[2:])
        best[kind] = max(best.get(kind, 0.0), quality)
    yield from best.items()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
