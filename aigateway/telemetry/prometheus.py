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

import functools
import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client import metrics as library
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from aigateway.clock import SYSTEM_CLOCK
from aigateway.events import (
    MOST_UNCOUNTED,
    AnswerDiscarded,
    AttemptEnded,
    Event,
    RequestEnded,
    RequestHedged,
    ServedCall,
)
from aigateway.telemetry.merge import CIRCUIT_STATES, merge, merge_metrics

__all__ = [
    "MetricsSource", "Prometheus", "exposition", "restricted_exposition", "wants_prometheus",
]  # fmt: skip

Families = Sequence[Mapping[str, Any]]
"""A `Prometheus.snapshot()`."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Buckets in seconds: for a model's answer, and for the gateway's own part."""

_FIGURES = "aigateway_figures"
"""Names the entry of a snapshot that holds `get_metrics()`, from which the gauges are made."""


class _Cells(dict[tuple[str, ...], list[float]]):
    """The numbers of a metric by the values of its labels; the first one is when they began."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def __missing__(self, labels: tuple[str, ...]) -> list[float]:
        cell = self[labels] = [SYSTEM_CLOCK.wall(), *(self._width * [0.0])]
        return cell


def _several_processes() -> bool:
    """Return whether the application has the library add up several processes, through files."""
    return not {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"}.isdisjoint(os.environ)


@functools.cache  # two of one name would overwrite each other's numbers in the file
def _in_file(
    name: str, what: str, labels: tuple[str, ...], bounds: tuple[float, ...] | None
) -> Counter | Histogram:
    """Return the library's own metric, which no registry shows: its numbers stand in a file."""
    if bounds is None:
        return Counter(name, what, labels, registry=None)
    return Histogram(name, what, labels, registry=None, buckets=bounds)


class _Family:
    """A counter or a histogram, in plain numbers: the library's own take several times as long.

    Those count, too, where the library adds up several processes.
    """

    def __init__(
        self, name: str, what: str, *labels: str, bounds: tuple[float, ...] | None = None
    ) -> None:
        self._name, self._what, self._labels = f"aigateway_{name}", what, labels
        self._bounds = bounds
        self._file: Any = (
            _in_file(self._name, what, labels, bounds) if _several_processes() else None
        )
        # A counter's number; or a histogram's sum and what is in each bucket, the rest in the last.
        self._cells = _Cells(1 if bounds is None else len(bounds) + 2)
        self._shown = () if bounds is None else (*map(floatToGoString, bounds), "+Inf")
        if not labels:
            self._cells[()]

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Count."""
        self._cells[labels][1] += amount
        if self._file is not None:
            (self._file.labels(*labels) if labels else self._file).inc(amount)

    def observe(self, seconds: float, *labels: str) -> None:
        """Note one duration."""
        cell = self._cells[labels]
        cell[1] += seconds
        cell[2 + bisect_left(self._bounds, seconds)] += 1.0  # type: ignore[arg-type]
        if self._file is not None:
            (self._file.labels(*labels) if labels else self._file).observe(seconds)

    def described(self) -> Metric:
        """Return it without its numbers."""
        return Metric(self._name, self._what, "counter" if self._bounds is None else "histogram")

    def shown(self, *, since: bool) -> Metric:
        """Return it with its numbers, as the library's own are shown.

        Args:
            since: Show when each began, too.
        """
        metric = self.described()
        for values, (began, *numbers) in self._cells.items():
            labels = dict(zip(self._labels, values, strict=True))
            if self._bounds is None:
                metric.add_sample(f"{self._name}_total", labels, numbers[0])
            else:
                below = 0.0
                for bound, count in zip(self._shown, numbers[1:], strict=True):
                    below += count
                    metric.add_sample(f"{self._name}_bucket", {**labels, "le": bound}, below)
                metric.add_sample(f"{self._name}_count", labels, below)
                metric.add_sample(f"{self._name}_sum", labels, numbers[0])
            if since:
                metric.add_sample(f"{self._name}_created", labels, began)
        return metric


class MetricsSource(Protocol):
    """A gateway, as far as a scrape looks at it."""

    def get_metrics(self) -> Mapping[str, Any]:
        """As `AsyncGateway.get_metrics`."""


class Prometheus:
    """A hook that counts into a registry.

    Args:
        registry: For the metrics; None makes one. A registry takes one `Prometheus`.
    """

    wants: tuple[type[Event], ...] = (AttemptEnded, AnswerDiscarded, RequestEnded, RequestHedged)

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._counts = _Counts()
        self.uncounted: deque[Event | ServedCall] = self._counts.uncounted
        self.registry.register(self._counts)
        self._state = _State()
        self.registry.register(self._state)
        if _several_processes():  # another process may show this one's file at any time
            self.on_event = self._count_at_once  # type: ignore[method-assign]

    def watch(self, gateway: Callable[[], MetricsSource]) -> None:
        """Show the state of a gateway in each scrape.

        Args:
            gateway: Returns the current one.
        """
        self._state.gateway = gateway

    def on_event(self, event: Event) -> None:
        """Count one event, before a registry shows anything."""
        self.uncounted.append(event)
        if len(self.uncounted) >= MOST_UNCOUNTED:
            self.count()

    def _count_at_once(self, event: Event) -> None:
        self.uncounted.append(event)
        self.count()

    def count(self) -> None:
        """Count what was noted."""
        self._counts.count()

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
            if not isinstance(family, (_Gauge, _Counted))
        ]
        if self._state.gateway is not None:
            figures = self._state.figures  # as of a moment ago: `collect` has just asked for them
            families.append({"name": _FIGURES, "type": "figures", "figures": figures})
        return families


def exposition(
    accept: str,
    running: Sequence[Families],
    exited: Sequence[Families] = (),
    keys: Collection[str] | None = None,
) -> tuple[str, bytes]:
    """Return the content type and the body for a scraper, from the snapshots of all processes.

    Args:
        accept: Its `Accept` header.
        running: Of each process that runs.
        exited: The last ones of processes that have exited.
        keys: Names of the keys whose accounts it may see; None shows all.
    """
    return _encoded(accept, _Merged(running, exited, keys))


class _Restricted(Collector):
    """What a key may see that sees its own only."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield from _provider_gauges(self._figures["providers"])
        yield from _key_gauges(self._figures["keys"])


def restricted_exposition(accept: str, figures: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the same of `providers` and `keys` alone, from figures that hold no others."""
    return _encoded(accept, _Restricted(figures))


def _encoded(accept: str, source: Collector) -> tuple[str, bytes]:
    try:
        encode, content_type = choose_encoder(accept)
        return content_type, encode(source)
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = choose_encoder("")
        return content_type, encode(source)


class _Counts(Collector):
    """What this process has counted."""

    def __init__(self) -> None:
        self.uncounted: deque[Event | ServedCall] = deque()  # counted later, many at once
        self._lock = threading.Lock()  # a scrape may count on another thread
        self._requests = _Family(
            "request_duration_seconds",
            "From a request to its end, by how it ended.",
            "outcome",
            bounds=_SECONDS,
        )
        self._attempts = _Family(
            "attempt_duration_seconds",
            "One attempt; outcome is ok, or the kind of failure.",
            *("provider", "outcome"),
            bounds=_SECONDS,
        )
        self._first_token = _Family(
            "first_token_seconds",
            "From the call of a provider to the first content of its stream.",
            "provider",
            bounds=_SECONDS,
        )
        self._overhead = _Family(
            "overhead_seconds",
            "The gateway's own part of a request: work, queue and pauses, without vendors.",
            bounds=_SHORT,
        )
        self._ended = _Family("requests", "Requests, by how they ended.", "outcome")
        self._rejected = _Family(
            "requests_rejected", "Failed requests that were at fault themselves."
        )
        self._hits = _Family("cache_hits", "Requests answered from the cache.")
        self._stale = _Family("cache_stale_hits", "Requests answered with an expired answer.")
        self._shared = _Family("coalesced", "Requests that shared another one's answer.")
        self._tokens = _Family("tokens", "Tokens, as vendors count.", "provider", "direction")
        self._cost = _Family("cost_usd", "US dollars, where prices are known.", "provider")
        self._retries = _Family("retries", "Repeated attempts at a provider.", "provider")
        self._hedges = _Family(
            "hedges", "Second attempts beside a slow one at this provider.", "provider"
        )
        self._families = (
            self._requests, self._attempts, self._first_token, self._overhead, self._ended,
            self._rejected, self._hits, self._stale, self._shared, self._tokens, self._cost,
            self._retries, self._hedges,
        )  # fmt: skip

    def count(self) -> None:
        """Count what was noted."""
        with self._lock:
            self._count()

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without their numbers."""
        return [family.described() for family in self._families]

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        # As the application has set the library.
        since = getattr(library, "_use_created", True)
        with self._lock:
            self._count()
            return [family.shown(since=since) for family in self._families]

    def _count(self) -> None:
        while self.uncounted:  # nothing else takes from it: the lock is held
            event = self.uncounted.popleft()
            if isinstance(event, ServedCall):
                self._served(event)
            elif isinstance(event, AttemptEnded):
                self._attempt_ended(event)
            elif isinstance(event, RequestEnded):
                self._request_ended(event)
            elif isinstance(event, AnswerDiscarded):
                usage, cost = event.usage, event.cost_usd
                self._spent(event.provider, usage.prompt_tokens, usage.completion_tokens, cost)
            elif isinstance(event, RequestHedged):
                self._hedges.add(event.provider)

    def _served(self, call: ServedCall) -> None:
        provider = call.provider
        self._answered(provider, call.attempt_seconds, call.first_content_seconds)
        self._spent(provider, call.prompt_tokens, call.completion_tokens, call.cost_usd)
        self._timed("served", call.latency_seconds, call.overhead_seconds)

    def _attempt_ended(self, event: AttemptEnded) -> None:
        provider, failure = event.provider, event.failure
        outcome = "ok" if failure is None else failure.value
        self._answered(provider, event.latency_seconds, event.first_content_seconds, outcome)
        if event.retry:
            self._retries.add(provider)
        usage = event.usage
        self._spent(provider, usage.prompt_tokens, usage.completion_tokens, event.cost_usd)

    def _request_ended(self, event: RequestEnded) -> None:
        self._timed(event.outcome, event.latency_seconds, event.overhead_seconds)
        if event.rejected:
            self._rejected.add()
        if event.outcome == "hit":
            self._hits.add()
        elif event.outcome == "stale":
            self._stale.add()
        elif event.outcome == "coalesced":
            self._shared.add()

    def _answered(
        self, provider: str, seconds: float, first_content: float | None, outcome: str = "ok"
    ) -> None:
        self._attempts.observe(seconds, provider, outcome)
        if first_content is not None:
            self._first_token.observe(first_content, provider)

    def _timed(self, outcome: str, seconds: float, overhead: float) -> None:
        self._ended.add(outcome)
        self._requests.observe(seconds, outcome)
        self._overhead.observe(overhead)

    def _spent(self, provider: str, prompt: int, completion: int, cost_usd: float | None) -> None:
        if prompt:
            self._tokens.add(provider, "input", amount=prompt)
        if completion:
            self._tokens.add(provider, "output", amount=completion)
        if cost_usd:
            self._cost.add(provider, amount=cost_usd)


class _State(Collector):
    """The gauges of this process."""

    def __init__(self) -> None:
        self.gateway: Callable[[], MetricsSource] | None = None
        self.figures: Mapping[str, Any] = {}

    def describe(self) -> Iterable[Metric]:
        """Return nothing: there is no gateway yet when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        if self.gateway is not None:
            self.figures = self.gateway().get_metrics()
            yield from _gauges(self.figures)


class _Gauge(GaugeMetricFamily):
    """One that is made from `get_metrics()`."""

    def __init__(self, name: str, what: str, *labels: str, value: float | None = None) -> None:
        super().__init__(f"aigateway_{name}", what, value, labels or None)


class _Counted(CounterMetricFamily):
    """A counter that is made from `get_metrics()`, too."""

    def __init__(self, name: str, what: str, label: str, counts: Mapping[str, int]) -> None:
        super().__init__(f"aigateway_{name}", what, labels=(label,))
        for value, count in counts.items():
            self.add_metric((value,), count)


_RESULTS = ("hits", "misses", "damaged", "writes", "dropped")
"""Of the cache's second level."""


def _gauges(figures: Mapping[str, Any]) -> Iterator[Metric]:
    yield _Gauge("in_flight", "Calls to vendors in flight.", value=figures["in_flight"])
    yield _Gauge("waiting", "Requests that wait for a slot.", value=figures["waiting"])
    yield _Gauge(
        "providers_active",
        "Providers that at least one process could ask now.",
        value=figures["providers_active"],
    )
    yield _Gauge("cache_entries", "Answers in the cache.", value=figures["cache"]["entries"])
    yield _Gauge("cache_bytes", "Memory that they take.", value=figures["cache"]["bytes"])
    lost = {result: figures["cache"][result] for result in ("evictions", "too_large")}
    yield _Counted("cache_lost", "Answers for which it had no room, by result.", "result", lost)
    if "second_hits" in figures["cache"]:
        counts = {result: figures["cache"][f"second_{result}"] for result in _RESULTS}
        yield _Counted("second_cache", "The cache below the memory, by result.", "result", counts)
    if "refused" in figures:
        what = "Requests that the service itself refused, by code."
        yield _Counted("refused", what, "code", figures["refused"])
    if "state" in figures:
        yield _Gauge(
            "state_available",
            "1 if every process can write what outlives a restart, else 0.",
            value=float(figures["state"]["available"]),
        )
    if "fleet" in figures:
        fleet = figures["fleet"]
        yield _Gauge(
            "fleet_available",
            "1 if every process can ask Redis, else 0: those go on alone.",
            value=float(fleet["available"]),
        )
        yield _Gauge("fleet_members", "Processes of the fleet.", value=fleet["members"])
    yield from _provider_gauges(figures["providers"])
    yield from _key_gauges(figures.get("keys", {}))


def _provider_gauges(providers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    circuits = _Gauge(
        "circuit_state",
        "1 for the state of a provider's circuit, 0 for the others; of several processes the worst"
        " state.",
        *("provider", "state"),
    )
    in_flight = _Gauge("provider_in_flight", "Calls in flight.", "provider")
    bound = _Gauge("provider_max_in_flight", "Calls that may be in flight.", "provider")
    active = _Gauge("provider_active", "1 if it could take a request now, else 0.", "provider")
    for name, provider in providers.items():
        for state in CIRCUIT_STATES:
            circuits.add_metric((name, state), float(provider["circuit_state"] == state))
        active.add_metric((name,), float(provider["active"]))
        if "in_flight" in provider:
            in_flight.add_metric((name,), provider["in_flight"])
            bound.add_metric((name,), provider["max_in_flight"])
    yield from (circuits, in_flight, bound, active)


_KEY_GAUGES = {
    "spent_usd": ("key_spent_usd", "US dollars that a key of the service has spent today (UTC)."),
    "budget_usd": ("key_budget_usd", "US dollars that a key may spend in a day, if it is bounded."),
    "requests_last_minute": (
        "key_requests_last_minute",
        "Requests that a key has begun in the last 60 seconds.",
    ),
    "rpm": ("key_rpm", "Requests that a key may begin in 60 seconds, if it is bounded."),
}


def _key_gauges(keys: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    for figure, (name, what) in _KEY_GAUGES.items():
        gauge = _Gauge(name, what, "key")
        for key, account in keys.items():
            if account.get(figure) is not None:
                gauge.add_metric((key,), account[figure])
        if gauge.samples:
            yield gauge


class _Merged(Collector):
    """Snapshots of several processes, as one registry would show them."""

    def __init__(
        self,
        running: Sequence[Families],
        exited: Sequence[Families],
        keys: Collection[str] | None = None,
    ) -> None:
        self._keys = keys
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
            figures = merge_metrics(*self._figures)
            accounts = figures.get("keys", {})
            if self._keys is not None:
                figures["keys"] = {k: v for k, v in accounts.items() if k in self._keys}
            yield from _gauges(figures)


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
