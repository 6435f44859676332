"""Prometheus: a hook that counts, and what a scraper gets.

    metrics = Prometheus()
    gateway = AsyncGateway(hooks=[metrics])
    metrics.watch(lambda: gateway)
    content_type, body = metrics.render(request.headers.get("accept", ""))

Labels are names out of the settings (`provider`) and words out of this library (`outcome`,
`state`): nothing that a caller sends, so their number does not grow with the requests.

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

__all__ = ["Prometheus", "Watched", "wants_prometheus"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Buckets, in seconds: a model's answer, and what the gateway itself should take."""

_STATES = ("closed", "open", "half_open")

_LEAST = frozenset({"aigateway_providers_active"})
"""Of several processes the one with the least tells; all else is added up."""


class _Provider(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def active(self) -> bool: ...
    @property
    def circuit_state(self) -> Any: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def max_in_flight(self) -> int: ...


class Watched(Protocol):
    """A gateway, as far as it is looked at when somebody scrapes."""

    @property
    def providers(self) -> Sequence[_Provider]:
        """Every provider as it is now."""

    def get_metrics(self) -> dict[str, Any]:
        """`in_flight`, `waiting`, `providers_active` and `cache`."""


class Prometheus:
    """A hook that counts into a registry.

    Args:
        registry: Where the metrics are; None makes one for them alone. Each may have one of these.
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
            "One call to one provider; outcome is ok, or why it failed.",
            ("provider", "outcome"),
        )
        self._first_token = self._histogram(
            "aigateway_first_token_seconds",
            "From the call of a provider to the first content of its stream.",
            ("provider",),
        )
        self._overhead = self._histogram(
            "aigateway_overhead_seconds",
            "The gateway's own part of a request: work, queue and pauses, without the vendors'.",
            (),
            _SHORT,
        )
        self._ended = self._counter("requests", "Requests, by how they ended.", "outcome")
        self._hits = self._counter("cache_hits", "Requests answered from the cache.")
        self._stale = self._counter("cache_stale_hits", "Likewise, after the answer's time.")
        self._shared = self._counter("coalesced", "Requests that shared another one's answer.")
        self._tokens = self._counter("tokens", "As vendors count them.", "provider", "direction")
        self._cost = self._counter("cost_usd", "US dollars, where prices are known.", "provider")
        self._retries = self._counter("retries", "Calls of a provider asked before.", "provider")
        self._hedges = self._counter(
            "hedges", "Second calls beside one of this provider that was slow.", "provider"
        )
        self._state = _State()
        self.registry.register(self._state)

    def watch(self, gateway: Callable[[], Watched]) -> None:
        """Show what a gateway is doing whenever somebody scrapes.

        Args:
            gateway: Gives the one of the moment.
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
        self, accept: str = "", others: Iterable[Sequence[Mapping[str, Any]]] = ()
    ) -> tuple[str, bytes]:
        """What a scraper gets.

        Args:
            accept: Its `Accept` header: OpenMetrics or Prometheus' own text.
            others: `snapshot()`s of other processes of the same service, to be told as one.

        Returns:
            The content type, and the body.
        """
        source: Collector = self.registry
        snapshots = list(others)
        if snapshots:
            source = _Merged([self.snapshot(), *snapshots])
        try:
            encode, content_type = choose_encoder(accept)
            return content_type, encode(source)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
            return content_type, encode(source)

    def snapshot(self) -> list[dict[str, Any]]:
        """All metrics as plain values, fit for JSON, for another process's `render`."""
        return [
            {
                "name": family.name,
                "help": family.documentation,
                "type": family.type,
                "samples": [
                    [sample.name, dict(sample.labels), sample.value] for sample in family.samples
                ],
            }
            for family in self.registry.collect()
        ]

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


class _State(Collector):
    """What a gateway is doing now."""

    def __init__(self) -> None:
        self.gateway: Callable[[], Watched] | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing yet, when it is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        if self.gateway is None:
            return
        gateway = self.gateway()
        metrics, providers = gateway.get_metrics(), gateway.providers
        yield _gauge("in_flight", "Calls to vendors that are out.", metrics["in_flight"])
        yield _gauge("waiting", "Requests that wait for a place.", metrics["waiting"])
        yield _gauge(
            "providers_active",
            "Providers that could take a request now; of several workers, where they are fewest.",
            metrics["providers_active"],
        )
        yield _gauge("cache_entries", "Answers remembered.", metrics["cache"]["entries"])
        yield from _of_providers(providers)


def _of_providers(providers: Sequence[_Provider]) -> Iterator[Metric]:
    circuits = _gauge(
        "circuit_state",
        "1 for the state that a provider's circuit is in, 0 for the others.",
        labels=("provider", "state"),
    )
    in_flight = _gauge("provider_in_flight", "Calls that are out.", labels=("provider",))
    bound = _gauge("provider_max_in_flight", "Calls that may be out.", labels=("provider",))
    active = _gauge(
        "provider_active", "1 if it could take a request now, else 0.", labels=("provider",)
    )
    for provider in providers:
        for state in _STATES:
            circuits.add_metric((provider.name, state), float(str(provider.circuit_state) == state))
        in_flight.add_metric((provider.name,), provider.in_flight)
        bound.add_metric((provider.name,), provider.max_in_flight)
        active.add_metric((provider.name,), float(provider.active))
    yield from (circuits, in_flight, bound, active)


def _gauge(
    name: str, what: str, value: float | None = None, labels: Sequence[str] = ()
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"aigateway_{name}", what, value, labels or None)


class _Merged(Collector):
    """Snapshots of several processes, as one registry would tell them."""

    def __init__(self, snapshots: Iterable[Sequence[Mapping[str, Any]]]) -> None:
        self._families: dict[str, Metric] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for snapshot in snapshots:
            for family in snapshot:
                self._add(family)

    def collect(self) -> Iterator[Metric]:
        for name, metric in self._families.items():
            for (sample, labels), value in self._values[name].items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
            metric.samples = []

    def _add(self, family: Mapping[str, Any]) -> None:
        name = family["name"]
        if name not in self._families:
            self._families[name] = Metric(name, family["help"], family["type"])
        values = self._values.setdefault(name, {})
        for sample, labels, value in family["samples"]:
            key = (sample, tuple(labels.items()))
            if key not in values:
                values[key] = value
            elif name in _LEAST or sample.endswith("_created"):
                values[key] = min(values[key], value)
            else:
                values[key] += value


def wants_prometheus(accept: str) -> bool:
    """Whether an `Accept` header asks for Prometheus' text or OpenMetrics, rather than JSON.

    Only where it names one of them, and likes it better than JSON: a browser or curl does not, nor
    do libraries that ask for "application/json, text/plain".
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
