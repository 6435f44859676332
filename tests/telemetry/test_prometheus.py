"""What a scraper gets: figures that agree with the gateway's own, in a form that parses."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from aigateway import AsyncGateway, FailureKind, GatewayError, Origin
from aigateway.events import AttemptEnded, RequestHedged
from aigateway.simulator import Fault
from aigateway.telemetry import Prometheus, wants_prometheus
from aigateway.testing import scripted_configs
from tests.gateways import name_of, until
from tests.processes import PATIENCE

SCRAPER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


class Scraped:
    """The samples of one scrape."""

    def __init__(self, metrics, accept=SCRAPER, others=()):
        self.content_type, body = metrics.render(accept, others)
        parse = open_metrics if "openmetrics" in self.content_type else plain_text
        self.families = {family.name: family for family in parse(body.decode())}
        self.samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __getitem__(self, key):
        name, *labels = key if isinstance(key, tuple) else (key,)
        return self.samples.get((f"aigateway_{name}", *sorted(labels)))

    @property
    def labels(self):
        return {
            (name, value)
            for family in self.families.values()
            for sample in family.samples
            for name, value in sample.labels.items()
            if name != "le"
        }


@pytest.fixture
def metrics():
    return Prometheus()


@pytest.fixture
async def gateway_for(metrics):
    made = []

    def make(*vendors, fields=None, **settings):
        settings = {"retry_rounds": 0} | settings
        configs = [v.config(priority=-n, **(fields or {})) for n, v in enumerate(vendors)]
        made.append(AsyncGateway(configs, hooks=[metrics], **settings))
        metrics.watch(lambda: made[-1])
        return made[-1]

    yield make
    for gateway in made:
        await gateway.aclose()


async def test_all_that_can_happen(simulator, gateway_for, metrics):
    bad, good = simulator.openai, simulator.anthropic
    gateway = gateway_for(bad, good)
    bad.behave(Fault.server_error(), times=1)
    await gateway.chat("hi")
    await gateway.chat("hi")
    async for _ in gateway.stream("a stream"):
        pass
    bad.behave(Fault.bad_request())
    good.behave(Fault.bad_request(), times=1)
    with pytest.raises(GatewayError):
        await gateway.chat("a bad one")
    bad.behave(Fault.hang())
    leaving = asyncio.create_task(gateway.chat("ho"))
    await until(lambda: len(bad.received) == 4)
    during = Scraped(metrics)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    bad.recover()
    bad.latency = 0.02
    await asyncio.gather(gateway.chat("together"), gateway.chat("together"))
    told, counted = Scraped(metrics), gateway.get_metrics()
    assert during["in_flight"] == during["provider_in_flight", name_of(bad)] == 1
    assert told["in_flight"] == told["waiting"] == 0
    outcomes = {"served": 3, "hit": 1, "failed": 1, "cancelled": 1, "coalesced": 1}
    for outcome, count in outcomes.items():
        assert told["requests_total", outcome] == count
        assert told["request_duration_seconds_count", outcome] == count
    assert told["requests_rejected_total"] == counted["rejected"] == 1
    assert told["overhead_seconds_count"] == counted["total_requests"] == 7
    assert told["cache_hits_total"] == counted["cache_hits"] == 1
    assert told["coalesced_total"] == 1
    for provider, figures in counted["providers"].items():
        ok = told["attempt_duration_seconds_count", provider, "ok"]
        assert ok == figures["successes"]
        for kind, count in figures["failures"].items():
            assert told["attempt_duration_seconds_count", provider, kind] == count
        assert told["tokens_total", provider, "input"] == figures["prompt_tokens"]
        assert told["tokens_total", provider, "output"] == figures["completion_tokens"]
        assert told["cost_usd_total", provider] == pytest.approx(figures["cost_usd"])
        assert told["provider_active", provider] == 1
        assert told["circuit_state", provider, "closed"] == 1
    assert told["first_token_seconds_count", name_of(bad)] == 1
    assert told["providers_active"] == 2
    assert told["cache_entries"] == counted["cache"]["entries"] == 3
    assert told["cache_bytes"] == counted["cache"]["bytes"] > 3000


async def test_a_circuit_opens(simulator, gateway_for, metrics):
    bad = simulator.openai
    bad.behave(Fault.server_error())
    gateway = gateway_for(bad, simulator.anthropic, failure_threshold=1)
    await gateway.chat("hi")
    told = Scraped(metrics)
    states = {s: told["circuit_state", name_of(bad), s] for s in ("open", "half_open", "closed")}
    assert states == {"open": 1, "half_open": 0, "closed": 0}
    assert (told["provider_active", name_of(bad)], told["providers_active"]) == (0, 1)


async def test_retries_and_hedges(simulator, gateway_for, metrics):
    slow, quick = simulator.openai, simulator.anthropic
    gateway = gateway_for(slow, quick, hedge_delay_seconds=0.02, retries_per_provider=1)
    slow.behave(Fault.server_error(), times=1)
    await gateway.chat("hi")
    slow.behave(Fault.hang(), times=1)
    await gateway.chat("ho", hedge=True)
    told = Scraped(metrics)
    assert told["retries_total", name_of(slow)] == told["hedges_total", name_of(slow)] == 1
    assert told["attempt_duration_seconds_count", name_of(slow), "outrun"] == 1


async def test_nothing_a_caller_sends_becomes_a_label(simulator, gateway_for, metrics):
    gateway = gateway_for(simulator.openai)
    for turn in range(3):
        origin = Origin(f"id-{turn}", f"partition-{turn}", {"X-Request-ID": f"header-{turn}"})
        await gateway.chat(f"prompt-{turn}", agent=f"agent-{turn}", origin=origin)
        with pytest.raises(GatewayError):
            await gateway.chat("hi", model=f"model-{turn}", origin=origin)
    assert {name for name, _ in Scraped(metrics).labels} == {
        "direction",
        "outcome",
        "provider",
        "result",
        "state",
    }
    _, body = metrics.render()
    for sent in ("id-", "partition-", "header-", "prompt-", "agent-", "model-"):
        assert f'"{sent}' not in body.decode()


def test_a_registry_of_the_applications_own():
    registry = CollectorRegistry()
    Counter("mine", "of the application", registry=registry)
    metrics = Prometheus(registry)
    assert metrics.registry is registry
    text = generate_latest(registry).decode()
    assert "mine_total 0.0" in text
    assert "aigateway_overhead_seconds_count 0.0" in text
    with pytest.raises(ValueError, match="Duplicated"):
        Prometheus(registry)


def hedged(metrics):
    metrics.on_event(RequestHedged("r", "one", "two", 0.1))
    metrics.on_event(RequestHedged("r", "one", "two", 0.1))


async def test_a_registry_shows_at_once_what_was_counted(metrics):
    hedged(metrics)
    assert metrics.registry.get_sample_value("aigateway_hedges_total", {"provider": "one"}) == 2
    hedged(metrics)
    only = metrics.registry.restricted_registry(["aigateway_hedges_total"])
    await until(lambda: b"aigateway_hedges_total" in generate_latest(only))
    await until(lambda: b'provider="one"} 4.0' in generate_latest(only))


def test_without_an_event_loop_each_event_counts_at_once(metrics):
    hedged(metrics)
    only = metrics.registry.restricted_registry(["aigateway_hedges_total"])
    assert b'provider="one"} 2.0' in generate_latest(only)


ONE_PROCESS = """
import asyncio
import prometheus_client.metrics
from aigateway import AsyncGateway
from aigateway.telemetry import Prometheus
from aigateway.testing import ScriptedVendor, scripted_configs

async def main():
    hooks = [Prometheus(), Prometheus()]
    async with AsyncGateway(scripted_configs("one"), vendor=ScriptedVendor(), hooks=hooks) as made:
        for number in range(3):
            await made.chat(f"hi {number}")
        text = hooks[0].render()[1].decode()
        assert 'aigateway_requests_total{outcome="served"} 3.0' in text
        assert "_created" in text
        prometheus_client.metrics.disable_created_metrics()
        assert "_created" not in hooks[0].render()[1].decode()

asyncio.run(main())
"""
ALL_PROCESSES = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_the_library_adds_up_several_processes(tmp_path):
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for program in (ONE_PROCESS, ONE_PROCESS, ALL_PROCESSES):
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Two processes with two hooks each, and three requests.
    assert 'aigateway_requests_total{outcome="served"} 12.0' in lines
    assert 'aigateway_request_duration_seconds_count{outcome="served"} 12.0' in lines
    assert "aigateway_overhead_seconds_count 12.0" in lines
    assert not [line for line in lines if not line.startswith(("aigateway_", "# ")) and line]


def test_an_event_that_cannot_be_counted_loses_itself_only(metrics):
    class Odd(AttemptEnded):
        @property
        def provider(self):
            raise IndexError

    metrics.uncounted.append(object.__new__(Odd))
    hedged(metrics)
    with pytest.raises(IndexError):
        metrics.count()
    assert metrics.registry.get_sample_value("aigateway_hedges_total", {"provider": "one"}) == 2


def test_forms():
    metrics = Prometheus()
    assert Scraped(metrics).content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert Scraped(metrics, "text/plain;version=0.0.4").content_type.startswith("text/plain;")
    assert Scraped(metrics, "").content_type.startswith("text/plain; version=0.0.4")


KINDS = st.sampled_from(["application/openmetrics-text", "text/plain", "application/json", "*/*"])
VERSIONS = st.sampled_from(["version=", "version=9", "version=1.0.0", "version=x"])
OTHERS = st.sampled_from(["escaping=dots", "escaping=x", "q=2", "q=nan", "q=x", "="])
PARAMS = VERSIONS | OTHERS
ENTRIES = st.tuples(KINDS | st.text(max_size=5), st.lists(PARAMS | st.text(max_size=5)))
ACCEPTS = st.lists(ENTRIES.map(lambda entry: ";".join((entry[0], *entry[1])))).map(",".join)
IDLE = Prometheus()


@given(ACCEPTS)
def test_any_accept_header_gets_something(accept):
    content_type, body = IDLE.render(accept)
    assert content_type.startswith(("text/plain", "application/openmetrics-text"))
    assert b"overhead" in body
    assert isinstance(wants_prometheus(accept), bool)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (SCRAPER, True),
        ("application/openmetrics-text", True),
        ("text/plain", True),
        ("TEXT/PLAIN; version=0.0.4", True),
        ("application/json;q=0.5, text/plain", True),
        ("application/json, text/plain;q=0.5", False),
        ("application/json, text/plain, */*", False),
        ("text/plain;q=0", False),
        ("application/json", False),
        (BROWSER, False),
        ("*/*", False),
        ("", False),
    ],
)
def test_who_wants_prometheus(accept, wanted):
    assert wants_prometheus(accept) is wanted


def itself(gateway):
    return lambda: gateway


async def test_several_processes_as_one(simulator):
    """Two gateways with books of their own stand for two processes."""
    vendor = simulator.openai
    both = []
    for count in (1, 2):
        metrics = Prometheus()
        async with AsyncGateway(
            [vendor.config()], hooks=[metrics], failure_threshold=count, retry_rounds=0
        ) as gateway:
            for turn in range(count):
                await gateway.chat(f"{turn}")
            vendor.behave(Fault.server_error(), times=1)
            with pytest.raises(GatewayError):
                await gateway.chat("bad")
            metrics.watch(itself(gateway))
            both.append((metrics, json.loads(json.dumps(metrics.snapshot()))))
    (first, _), (_, other) = both
    alone, told = Scraped(first), Scraped(first, others=[other])
    assert (alone["requests_total", "served"], told["requests_total", "served"]) == (1, 3)
    assert told["request_duration_seconds_count", "failed"] == 2
    assert told["request_duration_seconds_bucket", "served", "+Inf"] == 3
    name = name_of(vendor)
    states = [told["circuit_state", name, state] for state in ("open", "half_open", "closed")]
    assert states == [1, 0, 0], "the worst"
    assert told["provider_active", name] == told["providers_active"] == 1, "one could ask it"
    created = ("request_duration_seconds_created", "served")
    assert told[created] == alone[created], "the first"
    assert told.families.keys() == alone.families.keys()
    assert Scraped(first).samples == alone.samples, "merging changes nothing here"


async def test_answers_without_room_in_the_cache_are_counted(vendor, clock, metrics):
    async with AsyncGateway(
        scripted_configs("a"),
        vendor=vendor,
        clock=clock,
        hooks=[metrics],
        cache_max_entries=2,
        cache_max_memory_bytes=1_000_000,
    ) as gateway:
        metrics.watch(itself(gateway))
        for number in range(5):
            await gateway.chat(f"{number}")
        vendor.script("a", "x" * 200_000)
        await gateway.chat("long")
        told = Scraped(metrics)
    assert told["cache_lost_total", "evictions"] == 3
    assert told["cache_lost_total", "too_large"] == 1


async def test_a_second_level_of_the_cache_is_counted_over_processes(simulator, tmp_path):
    vendor, both = simulator.openai, []
    for _ in range(2):
        metrics = Prometheus()
        async with AsyncGateway(
            [vendor.config()], hooks=[metrics], cache_url=f"sqlite:///{tmp_path}/cache.db"
        ) as gateway:
            for prompt in ("a", "b", "a"):
                await gateway.chat(prompt)
            await gateway.cache.set(None, "c", None, "by hand")  # waits for what is written
            metrics.watch(itself(gateway))
            both.append((metrics, json.loads(json.dumps(metrics.snapshot()))))
    (first, _), (_, other) = both
    for scraped, figures in (
        (Scraped(first), (0, 2, 3)),
        (Scraped(first, others=[other]), (2, 2, 4)),
    ):
        counted = [
            scraped["second_cache_total", name]
            for name in ("hits", "misses", "writes", "damaged", "dropped")
        ]
        assert counted == [*figures, 0, 0]


async def test_an_answer_of_last_resort_comes_to_it_as_such(vendor, clock, metrics):
    vendor.script("only", FailureKind.SERVER_ERROR)
    one = scripted_configs("only", failure_threshold=1)
    async with AsyncGateway(
        one, vendor=vendor, clock=clock, hooks=[metrics], retry_rounds=0
    ) as gateway:
        with pytest.raises(GatewayError):
            await gateway.chat("This one opens the circuit.")
        await gateway.chat("This one is made as last resort.")
    ends = [event for event in metrics.uncounted if isinstance(event, AttemptEnded)]
    assert [end.last_resort for end in ends] == [False, True]
