"""What the status page tells of the past: few lines, in order, in bounded memory."""

import math

import pytest

from aigateway.errors import FailureKind as K
from aigateway.errors import ProviderFailure
from aigateway.events import (
    CacheHit,
    CircuitChanged,
    CircuitForced,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    ProviderFailed,
    RequestEnded,
    RequestFailed,
    RequestHedged,
)
from aigateway.server.status.recent_events import KEPT, RecentEvents


@pytest.fixture
def recent(clock):
    return RecentEvents(clock)


def failed(provider="a", request="r", kind=K.SERVER_ERROR, status=500):
    return ProviderFailed(request, provider, kind, status, None, 0.1)


def served(provider="b", request="r", seconds=0.5):
    return RequestEnded(
        request, "chat", False, None, "served", provider, "", 2, seconds, seconds, None
    )


def gave_up(error="AllProvidersFailedError", *causes, request="r"):
    return RequestFailed(request, None, error, causes, 0.1)


def told(recent, *events):
    for event in events:
        recent.on_event(event)
    return [(each["kind"], each["text"]) for each in recent.recent]


class TestFailovers:
    def test_who_failed_and_who_answered(self, recent):
        assert told(recent, failed(), served()) == [
            ("failover", "a failed (server_error, HTTP 500), b answered.")
        ]

    def test_each_that_failed_is_named_in_order(self, recent):
        events = failed("a"), failed("b", kind=K.TIMEOUT, status=None), served("c")
        assert told(recent, *events) == [
            ("failover", "a failed (server_error, HTTP 500), b failed (timeout), c answered.")
        ]

    def test_requests_are_kept_apart(self, recent):
        events = failed("a", "1"), failed("b", "2"), served("c", "2"), served("d", "3")
        assert told(recent, *events) == [
            ("failover", "b failed (server_error, HTTP 500), c answered.")
        ]

    def test_a_stale_answer_is_one_too(self, recent):
        events = failed(), CacheHit("r", "a", None, stale=True)
        assert told(recent, *events) == [
            ("failover", "a failed (server_error, HTTP 500), an older answer was given.")
        ]

    def test_what_went_well_is_no_news(self, recent):
        events = served(), CacheHit("r", "a", None, stale=False), RequestHedged("r", "a", "b", 1.0)
        assert told(recent, *events) == []

    def test_the_same_again_is_counted(self, recent, clock):
        for number in range(5):
            told(recent, failed(request=str(number)), served(request=str(number)))
            told(recent, CircuitChanged("circuit.opened", f"c{number}", "closed", "open"))
            clock.tick(1)
        newest, repeated = recent.recent[:2]
        assert newest["kind"] == "opened"
        assert (repeated["kind"], repeated["times"], repeated["at"]) == (
            "failover",
            5,
            clock.wall() - 1,
        )
        assert len(recent.recent) == 6

    def test_the_same_much_later_is_told_anew(self, recent, clock):
        told(recent, failed(), served())
        clock.tick(61)
        told(recent, failed(), served())
        assert [each["times"] for each in recent.recent] == [1, 1]


class TestFailures:
    def test_nobody_answered(self, recent):
        causes = (
            ProviderFailure("a", K.SERVER_ERROR, 500),
            ProviderFailure("b", K.CIRCUIT_OPEN, retry_after_seconds=3.2),
        )
        events = failed(), gave_up("AllProvidersFailedError", *causes), served()
        assert told(recent, *events) == [
            (
                "failed",
                "No provider answered a request (a: server_error, HTTP 500, b: circuit_open).",
            )
        ]

    def test_a_callers_mistake_is_no_news(self, recent):
        rejected = failed(kind=K.REJECTED, status=400)
        assert told(recent, rejected, gave_up("RequestRejectedError")) == []


class TestProviders:
    @pytest.mark.parametrize(
        ("event", "kind", "text"),
        [
            (CircuitChanged("circuit.opened", "a", "closed", "open"), "opened", "a opened"),
            (
                CircuitChanged("circuit.half_opened", "a", "open", "half_open"),
                "half_opened",
                "half",
            ),
            (CircuitChanged("circuit.closed", "a", "half_open", "closed"), "closed", "a closed"),
            (ProviderCooledDown("a", 1.2), "cooled_down", "for 2 s"),
            (ProviderDisabled("a", K.AUTHENTICATION, 401, 300.0), "disabled", "HTTP 401"),
            (ProviderEnabled("a"), "enabled", "again"),
            (CircuitForced("a", "open", "ops"), "forced", "forced open by ops."),
            (CircuitForced("a", "closed", None), "forced", "forced closed."),
            (CircuitForced("a", "auto", "ops"), "forced", "released by ops."),
        ],
    )
    def test_each_change_is_told(self, recent, event, kind, text):
        [(told_kind, told_text)] = told(recent, event)
        assert told_kind == kind
        assert text in told_text

    def test_a_cooldown_that_goes_on_is_one(self, recent):
        for seconds in (1, 2, 4):
            told(recent, ProviderCooledDown("a", seconds), ProviderCooledDown("b", seconds))
        assert [each["times"] for each in recent.recent] == [3, 3]
        assert "4 s" in recent.recent[0]["text"]

    def test_a_circuit_that_flaps_is_told_each_time(self, recent):
        for _ in range(3):
            told(recent, CircuitChanged("circuit.opened", "a", "closed", "open"))
        assert len(recent.recent) == 3


class TestMemory:
    def test_is_bounded_whatever_happens(self, recent):
        for number in range(5000):  # requests that never end, and lines that are all different
            told(recent, failed(request=str(number)))
            told(recent, ProviderEnabled(f"p{number}"))
        for _ in range(100):
            told(recent, failed(request="many"))
        assert len(recent.recent) == KEPT
        assert len(recent._failures) <= 1024
        assert max(map(len, recent._failures.values())) <= 8

    def test_the_newest_come_first(self, recent):
        for number in range(KEPT + 5):
            told(recent, ProviderEnabled(f"p{number}"))
        assert recent.recent[0]["text"].startswith(f"p{KEPT + 4} ")
        assert recent.recent[-1]["text"].startswith("p5 ")


class TestLatency:
    def test_is_of_the_last_minute(self, recent, clock):
        told(recent, served(seconds=9.0))
        clock.tick(61)
        assert recent.latency() is None
        told(recent, *(served(seconds=n / 100) for n in range(1, 101)))
        assert recent.latency() == {"p50": 0.5, "p95": 0.95, "p99": 0.99}

    def test_is_finite_memory_too(self, recent):
        told(recent, *(served(seconds=1.0) for _ in range(600)))
        latency = recent.latency()
        assert latency is not None
        assert all(math.isclose(value, 1.0) for value in latency.values())
        assert len(recent.history._answers) == 512


class TestWatching:
    def test_every_watcher_is_told_until_it_leaves(self, recent):
        with recent.watch() as first, recent.watch() as second:
            told(recent, served())
            assert not first.is_set()
            told(recent, ProviderEnabled("a"))
            assert first.is_set()
            assert second.is_set()
        first.clear()
        told(recent, ProviderEnabled("b"))
        assert not first.is_set()
