"""Four processes: `/metrics` as JSON, the status page and Prometheus show the same figures."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aigateway import AsyncGateway, FailureKind
from aigateway.server.http.errors import Refusal
from aigateway.server.process.shared_directory import SharedDirectory
from aigateway.server.service import Service
from aigateway.server.status.recent_events import RecentEvents
from aigateway.settings import ApiKey, ServerSettings
from aigateway.telemetry.prometheus import Prometheus
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs

NAMES = ("a", "b")
BOUND = 8
KEY = ApiKey(name="team", sha256="0" * 64, budget_usd=8)


class Worker:
    """One of the four, with a gateway of its own. `a` is asked before `b`."""

    def __init__(self, stack: contextlib.AsyncExitStack, directory: Path, place: int) -> None:
        self.vendor, self.clock = ScriptedVendor(), FakeClock()
        self.recent_events, self.prometheus = RecentEvents(self.clock), Prometheus()
        self.directory, self.place, self.stack = directory, place, stack
        self.shared = SharedDirectory(directory, place, self.clock)
        self.calls: list[asyncio.Task[Any]] = []

    async def start(self) -> Worker:
        gateway = AsyncGateway(
            scripted_configs(*NAMES),
            vendor=self.vendor,
            clock=self.clock,
            hooks=[self.recent_events, self.prometheus],
            failure_threshold=1,
            retry_rounds=0,
            max_concurrency=BOUND,
        )
        await self.stack.enter_async_context(gateway)
        self.service = Service(
            gateway,
            ServerSettings(workers=4, keys=(KEY,)),
            self.clock,
            recent_events=self.recent_events,
            prometheus=self.prometheus,
            shared=self.shared,
        )
        return self

    async def hold(self, calls: int) -> None:
        """Have calls in flight at `a`."""

        async def wait() -> str:
            await self.clock.sleep(1000)
            return "late"

        for number in range(calls):
            self.vendor.script("a", wait)
            chat = self.service.gateway.chat(f"held {self.place} {number}", hedge=False)
            self.calls.append(asyncio.create_task(chat))
        await self.clock.settle()

    def report(self) -> None:
        """Do what `SharedDirectory.run` does every half second."""
        self.shared.collect("service")


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[list[Worker]]:
    async with contextlib.AsyncExitStack() as stack:
        four = [await Worker(stack, tmp_path, place).start() for place in range(4)]
        yield four
        for worker in four:
            for call in worker.calls:
                call.cancel()
            await asyncio.gather(*worker.calls, return_exceptions=True)


class Scraped:
    """What a scraper gets: samples by name and values of labels."""

    def __init__(self, service: Service) -> None:
        assert service.scrape is not None
        _, body = service.scrape("text/plain")
        self._values = {
            (sample.name, frozenset(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    def __call__(self, name: str, *labels: str) -> float:
        return self._values.get((f"aigateway_{name}", frozenset(labels)), 0)


def agreed(service: Service) -> dict[str, Any]:
    """Compare every figure that two of the three show; returns the JSON metrics."""
    metrics, page, text = service.figures(), service.snapshot(), Scraped(service)
    totals = page["totals"]
    for name in ("in_flight", "waiting", "providers_active"):
        assert metrics[name] == text(name)
    assert metrics["cache"]["entries"] == text("cache_entries")
    assert metrics["cache"]["bytes"] == text("cache_bytes")
    for result in ("evictions", "too_large"):
        assert metrics["cache"][result] == text("cache_lost_total", result)
    same = {"total_requests": "requests", "cost_usd": "cost_usd"}
    same |= {name: name for name in ("failures", "cache_hits", "cache_hit_rate_percent")}
    same |= {name: name for name in ("in_flight", "waiting")}
    for name, shown in same.items():
        assert metrics[name] == dict(totals)[shown], name
    outcomes = {"served": "served", "hit": "cache_hits", "failed": "failures"}
    for outcome, name in outcomes.items():
        assert text("requests_total", outcome) == metrics[name]
    assert metrics["refused"] == totals["refused"]
    for code, count in metrics["refused"].items():
        assert count == text("refused_total", code)
    assert sum(each["active"] for each in page["providers"]) == metrics["providers_active"]
    for key in page["keys"]:
        account = metrics["keys"][key["name"]]
        assert {**account, "name": key["name"]} == dict(key)
        for figure in ("spent_usd", "budget_usd", "requests_last_minute"):
            assert account[figure] == text(f"key_{figure}", key["name"])
    assert [each["name"] for each in page["providers"]] == list(metrics["providers"])
    for provider in page["providers"]:
        provider_agrees(metrics["providers"][provider["name"]], dict(provider), text)
    return metrics


def provider_agrees(metrics: dict[str, Any], shown: dict[str, Any], text: Scraped) -> None:
    name = shown["name"]
    for figure in ("in_flight", "max_in_flight", "active"):
        assert metrics[figure] == shown[figure] == text(f"provider_{figure}", name), figure
    assert metrics["in_flight"] <= metrics["max_in_flight"]
    states = {
        state: text("circuit_state", name, state) for state in ("open", "half_open", "closed")
    }
    assert states == {state: float(state == metrics["circuit_state"]) for state in states}
    assert (shown["state"] == "open") == (metrics["circuit_state"] == "open")
    assert metrics["latency_seconds"] == shown["latency_seconds"]
    answered = text("attempt_duration_seconds_count", name, "ok")
    assert metrics["successes"] == shown["answered"] == answered
    failed = text("attempt_duration_seconds_count", name, "server_error")
    assert metrics["failures"].get("server_error", 0) == shown["failed"] == failed
    tokens = [text("tokens_total", name, way) for way in ("input", "output")]
    assert metrics["total_tokens"] == shown["tokens"] == sum(tokens)


async def test_four_processes_have_one_sum(workers: list[Worker]) -> None:
    for worker in workers:
        await worker.hold(worker.place + 3)
    workers[2].vendor.script("a", FailureKind.SERVER_ERROR)
    await workers[2].service.gateway.chat("fails over")
    await workers[3].service.gateway.chat("twice")
    await workers[3].service.gateway.chat("twice")
    for worker in workers:
        worker.report()
    for worker in workers:
        metrics = agreed(worker.service)
        a = metrics["providers"]["a"]
        assert (metrics["in_flight"], a["in_flight"]) == (18, 18)
        assert (a["circuit_state"], a["active"], metrics["providers_active"]) == ("open", True, 2)
        assert metrics["total_requests"] == 21
        account = {"spent_usd": 0, "budget_usd": 8, "requests_last_minute": 0, "rpm": None}
        assert metrics["keys"] == {"team": {**account, "in_flight": 0}}


async def test_a_provider_that_none_can_ask_is_not_active(workers: list[Worker]) -> None:
    for worker in workers:
        worker.vendor.script("a", FailureKind.SERVER_ERROR)
        await worker.service.gateway.chat("fails over")
        worker.report()
    metrics = agreed(workers[0].service)
    assert (metrics["providers"]["a"]["active"], metrics["providers_active"]) == (False, 1)


async def test_the_counts_of_one_that_has_exited_stay(workers: list[Worker]) -> None:
    for worker in workers:
        await worker.service.gateway.chat("hi")
        await worker.hold(2)
        worker.service.refusal_log.note(Refusal(429, "Later.", code="rate_limit_exceeded"))
        worker.report()
    gone = workers.pop()
    SharedDirectory.archive_metrics(gone.directory, gone.place, os.getpid())
    metrics = agreed(workers[0].service)
    assert (metrics["total_requests"], metrics["served"], metrics["in_flight"]) == (12, 4, 6)
    assert metrics["refused"] == {"rate_limit_exceeded": 4}
    assert workers[0].service.snapshot()["processes"] == 3
    workers.append(gone)


async def test_no_refresh_shows_less_whichever_process_answers(workers: list[Worker]) -> None:
    """Between two rounds of reports each process knows its own figures best."""
    shown = 0
    for number in range(40):
        worker = workers[number * 7 % 4]
        await worker.service.gateway.chat(f"{number}")
        for other in (worker, workers[number * 3 % 4]):
            requests = other.service.figures()["total_requests"]
            assert requests >= shown
            shown = requests
    assert shown == 40


async def test_the_last_minutes_are_those_of_all_processes(workers: list[Worker]) -> None:
    for worker in workers:
        worker.vendor.script("a", FailureKind.SERVER_ERROR)
        await worker.service.gateway.chat("fails over")
        worker.clock.tick(4)
        worker.service.history()  # reports it, as `SharedDirectory.run` does
    gone = workers.pop()
    SharedDirectory.archive_metrics(gone.directory, gone.place, os.getpid())
    history = workers[0].service.history()
    [(_, point)] = history["points"]
    assert {name: figures[:2] for name, figures in point.items()} == {
        "": [4, 0],
        "a": [4, 4],
        "b": [4, 0],
    }
    workers.append(gone)
