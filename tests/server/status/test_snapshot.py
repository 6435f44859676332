"""What the status page shows of one process and of several."""

import json

import pytest

from aigateway import AsyncGateway
from aigateway.errors import AllProvidersFailedError, RequestRejectedError
from aigateway.errors import FailureKind as K
from aigateway.server.service import Service
from aigateway.server.status.recent_events import RecentEvents
from aigateway.server.status.snapshot import snapshot
from aigateway.settings import ServerSettings
from aigateway.testing import scripted_configs


@pytest.fixture
async def service(clock, vendor):
    recent_events = RecentEvents(clock)
    configs = scripted_configs("a", "b", "c")
    async with AsyncGateway(
        configs,
        clock=clock,
        vendor=vendor,
        hooks=[recent_events],
        retry_rounds=0,
        failure_threshold=1,
        reset_timeout_seconds=30,
    ) as gateway:
        yield Service(gateway, ServerSettings(), clock, recent_events=recent_events)


def by_name(snapshot):
    return {each["name"]: each for each in snapshot["providers"]}


class TestOne:
    async def test_nothing_has_happened(self, service, clock):
        shown = service.snapshot()
        assert shown["at"] == clock.wall()
        assert [each["name"] for each in shown["providers"]] == ["a", "b", "c"]
        assert {each["state"] for each in shown["providers"]} == {"closed"}
        assert shown["totals"]["requests"] == 0
        assert shown["totals"]["latency_seconds"] is None
        assert shown["events"] == []

    async def test_states_counts_and_the_past(self, service, vendor, clock):
        vendor.script("a", K.SERVER_ERROR)
        vendor.script("b", K.AUTHENTICATION)
        await service.gateway.chat("hi")
        await service.gateway.chat("hi")
        clock.tick(10)
        shown = service.snapshot()
        a, b, c = shown["providers"]
        assert (a["state"], a["wait_seconds"], a["failed"]) == ("open", 20.0, 1)
        assert a["failures"] == {"server_error": 1}
        assert (b["state"], b["reason"], b["active"]) == ("disabled", "authentication", False)
        assert (c["state"], c["answered"], c["tokens"] > 0) == ("closed", 1, True)
        totals = shown["totals"]
        assert (totals["requests"], totals["cache_hits"]) == (2, 1)
        assert totals["cache_hit_rate_percent"] == 50.0
        assert totals["latency_seconds"] is not None
        assert {each["kind"] for each in shown["events"]} == {"failover", "opened", "disabled"}

    async def test_what_callers_did_themselves_is_no_failure(self, service, vendor):
        vendor.script("a", K.REJECTED)
        with pytest.raises(RequestRejectedError):
            await service.gateway.chat("hi")
        shown = service.snapshot()
        assert by_name(shown)["a"]["failed"] == 0
        assert (shown["totals"]["failures"], shown["totals"]["rejected"]) == (0, 1)

    async def test_forced(self, service):
        await service.force_circuit("b", "open", "ops")
        shown = by_name(service.snapshot())["b"]
        assert (shown["state"], shown["forced"], shown["wait_seconds"]) == ("open", True, None)

    async def test_it_goes_through_json(self, service, vendor):
        for name in ("a", "b", "c"):
            vendor.script(name, K.SERVER_ERROR)
        await service.force_circuit("b", "open", None)
        with pytest.raises(AllProvidersFailedError):
            await service.gateway.chat("hi")
        shown = service.snapshot()
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown


class TestSeveral:
    async def test_counts_add_up(self, service):
        await service.gateway.chat("hi")
        await service.gateway.chat("hi")
        one = report_of(service)
        three = snapshot([one, one, one])
        assert three["processes"] == 3
        assert three["totals"]["requests"] == 6
        assert three["totals"]["cache_hit_rate_percent"] == 50.0
        assert three["totals"]["latency_seconds"] == one["latency_seconds"]
        a, b = snapshot([one])["providers"][0], three["providers"][0]
        for key in ("answered", "tokens", "max_in_flight", "processes"):
            assert b[key] == 3 * a[key]

    async def test_the_counts_of_one_that_has_exited_stay(self, service):
        before = report_of(service)
        await service.gateway.chat("hi")
        both = snapshot([before], [report_of(service)])
        assert (both["processes"], both["totals"]["requests"]) == (1, 1)
        assert both["providers"][0]["answered"] == 1
        assert (
            both["providers"][0]["max_in_flight"]
            == before["metrics"]["providers"]["a"]["max_in_flight"]
        )

    async def test_the_worst_state_is_shown_and_how_many_see_it(self, service, vendor, clock):
        well = report_of(service)
        vendor.script("a", K.SERVER_ERROR)
        await service.gateway.chat("hi")
        ill = report_of(service)
        clock.tick(12)
        later = report_of(service)
        shown = by_name(snapshot([well, ill, later]))["a"]
        assert (shown["state"], shown["in_this_state"], shown["processes"]) == ("open", 2, 3)
        assert shown["wait_seconds"] == 18.0
        assert shown["active"]
        assert shown["failures"] == {"server_error": 2}

    async def test_the_latency_is_the_highest(self, service):
        await service.gateway.chat("hi")
        quick, slow, idle = report_of(service), report_of(service), report_of(service)
        quick["latency_seconds"] = {"p50": 1.0, "p95": 2.0, "p99": 9.0}
        slow["latency_seconds"] = {"p50": 2.0, "p95": 3.0, "p99": 4.0}
        idle["latency_seconds"] = None
        assert snapshot([idle, quick, slow])["totals"]["latency_seconds"] == {
            "p50": 2.0,
            "p95": 3.0,
            "p99": 9.0,
        }

    async def test_a_provider_that_only_one_has_is_there(self, service):
        one = report_of(service)
        service.gateway.add_provider(scripted_configs("new", priority=9)[0])
        shown = by_name(snapshot([one, report_of(service)]))
        assert list(shown) == ["new", "a", "b", "c"]
        assert (shown["new"]["processes"], shown["a"]["processes"]) == (1, 2)

    async def test_events_are_in_order_and_bounded(self, service, clock):
        for number in range(30):
            await service.force_circuit("a", ("open", "closed")[number % 2], None)
            clock.tick(1)
        one = report_of(service)
        clock.tick(0.5)
        both = snapshot([one, report_of(service)])
        times = [each["at"] for each in both["events"]]
        assert times == sorted(times, reverse=True)
        assert len(times) == 40

    async def test_one_alone_stays_as_it_is(self, service):
        await service.gateway.chat("hi")
        assert snapshot([report_of(service)]) == service.snapshot()


def report_of(service):
    """The report of a process, as it reaches another one."""
    (said,) = service.shared.collect("service").running
    return json.loads(said)
