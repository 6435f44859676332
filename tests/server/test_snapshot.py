"""The picture of one moment, and the sum of several processes' ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway
from aigateway.errors import AllProvidersFailedError, RequestRejectedError
from aigateway.errors import FailureKind as K
from aigateway.server.service import Service
from aigateway.server.status.recent_events import Happenings
from aigateway.server.status.snapshot import merged
from aigateway.settings import ServerSettings
from aigateway.testing import scripted_configs


@pytest.fixture
async def service(clock, vendor):
    happenings = Happenings(clock)
    configs = scripted_configs("a", "b", "c")
    async with AsyncGateway(
        configs,
        clock=clock,
        vendor=vendor,
        hooks=[happenings],
        retry_rounds=0,
        failure_threshold=1,
        reset_timeout_seconds=30,
    ) as gateway:
        yield Service(gateway, ServerSettings(), clock, happenings=happenings)


def by_name(snapshot):
    return {each["name"]: each for each in snapshot["providers"]}


class TestOne:
    async def test_nothing_has_happened(self, service, clock):
        told = service.snapshot()
        assert told["at"] == clock.wall()
        assert [each["name"] for each in told["providers"]] == ["a", "b", "c"]
        assert {each["state"] for each in told["providers"]} == {"closed"}
        assert told["totals"]["requests"] == 0
        assert told["totals"]["latency_seconds"] is None
        assert told["happenings"] == []

    async def test_states_counts_and_the_past(self, service, vendor, clock):
        vendor.script("a", K.SERVER_ERROR)
        vendor.script("b", K.AUTHENTICATION)
        await service.gateway.chat("hi")
        await service.gateway.chat("hi")
        clock.tick(10)
        told = service.snapshot()
        a, b, c = told["providers"]
        assert (a["state"], a["wait_seconds"], a["failed"]) == ("open", 20.0, 1)
        assert a["failures"] == {"server_error": 1}
        assert (b["state"], b["reason"], b["active"]) == ("disabled", "authentication", False)
        assert (c["state"], c["answered"], c["tokens"] > 0) == ("closed", 1, True)
        totals = told["totals"]
        assert (totals["requests"], totals["cache_hits"]) == (2, 1)
        assert totals["cache_hit_rate_percent"] == 50.0
        assert totals["latency_seconds"] is not None
        assert {each["kind"] for each in told["happenings"]} == {"failover", "opened", "disabled"}

    async def test_what_callers_did_themselves_is_no_failure_of_the_provider(self, service, vendor):
        vendor.script("a", K.REJECTED)
        with pytest.raises(RequestRejectedError):
            await service.gateway.chat("hi")
        assert by_name(service.snapshot())["a"]["failed"] == 0

    async def test_forced(self, service):
        await service.force_circuit("b", "open", "ops")
        told = by_name(service.snapshot())["b"]
        assert (told["state"], told["forced"], told["wait_seconds"]) == ("open", True, None)

    async def test_it_goes_through_json(self, service, vendor):
        for name in ("a", "b", "c"):
            vendor.script(name, K.SERVER_ERROR)
        await service.force_circuit("b", "open", None)
        with pytest.raises(AllProvidersFailedError):
            await service.gateway.chat("hi")
        told = service.snapshot()
        assert json.loads(json.dumps(told, allow_nan=False)) == told


class TestSeveral:
    async def test_counts_add_up(self, service):
        await service.gateway.chat("hi")
        await service.gateway.chat("hi")
        one = service.snapshot()
        three = merged([one, one, one])
        assert three["processes"] == 3
        assert three["totals"]["requests"] == 6
        assert three["totals"]["cache_hit_rate_percent"] == 50.0
        assert three["totals"]["latency_seconds"] == one["totals"]["latency_seconds"]
        a, b = one["providers"][0], three["providers"][0]
        for key in ("answered", "tokens", "max_in_flight", "processes"):
            assert b[key] == 3 * a[key]

    async def test_the_worst_state_is_shown_and_how_many_see_it(self, service, vendor, clock):
        well = service.snapshot()
        vendor.script("a", K.SERVER_ERROR)
        await service.gateway.chat("hi")
        ill = service.snapshot()
        clock.tick(12)
        later = service.snapshot()
        told = by_name(merged([well, ill, later]))["a"]
        assert (told["state"], told["in_this_state"], told["processes"]) == ("open", 2, 3)
        assert told["wait_seconds"] == 18.0
        assert told["active"]
        assert told["failures"] == {"server_error": 2}

    async def test_the_latency_is_the_highest(self, service):
        await service.gateway.chat("hi")
        quick, slow = service.snapshot(), service.snapshot()
        quick["totals"]["latency_seconds"] = {"p50": 1.0, "p95": 2.0, "p99": 9.0}
        slow["totals"]["latency_seconds"] = {"p50": 2.0, "p95": 3.0, "p99": 4.0}
        assert merged([quick, slow])["totals"]["latency_seconds"] == {
            "p50": 2.0,
            "p95": 3.0,
            "p99": 9.0,
        }

    async def test_a_provider_that_only_one_has_is_there(self, service):
        one = service.snapshot()
        service.gateway.add_provider(scripted_configs("new", priority=9)[0])
        two = service.snapshot()
        told = by_name(merged([one, two]))
        assert list(told) == ["new", "a", "b", "c"]
        assert (told["new"]["processes"], told["a"]["processes"]) == (1, 2)

    async def test_happenings_are_in_order_and_bounded(self, service, clock):
        for _ in range(30):
            await service.force_circuit("a", "open", None)
            clock.tick(1)
        one = service.snapshot()
        clock.tick(0.5)
        both = merged([one, service.snapshot()])
        times = [each["at"] for each in both["happenings"]]
        assert times == sorted(times, reverse=True)
        assert len(times) == 40

    @given(st.permutations(range(4)))
    def test_the_order_of_processes_changes_no_figure(self, order):
        parts = [_process(number) for number in range(4)]
        shuffled = merged([parts[number] for number in order])
        assert shuffled["totals"] == merged(parts)["totals"]
        assert by_name(shuffled)["a"] == by_name(merged(parts))["a"]

    async def test_one_alone_stays_as_it_is(self, service):
        await service.gateway.chat("hi")
        assert merged([service.snapshot()]) == service.snapshot()

    def test_sums_of_sums_are_the_sum(self):
        parts = [_process(number) for number in range(3)]
        assert merged([merged(parts[:2]), parts[2]]) == merged(parts)


def _process(number):
    """A snapshot as a worker might send it."""
    state = ("closed", "open", "cooling", "open")[number]
    return {
        "version": "1",
        "at": float(number),
        "processes": 1,
        "totals": {
            "requests": number,
            "failures": 1,
            "cache_hits": 0,
            "cache_hit_rate_percent": 0.0,
            "in_flight": number,
            "waiting": 0,
            "tokens": 4,
            "cost_usd": 0.25,
            "latency_seconds": None if number == 1 else {"p50": number / 2},
        },
        "providers": [
            {
                "name": "a",
                "vendor": "openai",
                "model": "m",
                "priority": 1,
                "active": state == "closed",
                "state": state,
                "wait_seconds": 5.0 - number if state != "closed" else None,
                "reason": None,
                "forced": False,
                "in_flight": number,
                "max_in_flight": 10,
                "answered": number,
                "failed": 1,
                "failures": {("timeout", "connection")[number % 2]: 1},
                "latency_seconds": None,
                "tokens": 4,
                "cost_usd": 0.25,
                "processes": 1,
                "in_this_state": 1,
            }
        ],
        "happenings": [],
    }
