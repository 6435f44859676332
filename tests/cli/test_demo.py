import io
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aigateway.cli import app, demo
from aigateway.cli.demo.screen import LiveDemoScreen, print_results
from aigateway.cli.demo.story import (
    Demo,
    DemoEvents,
    DemoResult,
    DemoResults,
    apply_phase,
    calls,
    percentile,
    phases,
)
from aigateway.errors import FailureKind, ProviderFailure
from aigateway.events import (
    CircuitChanged,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    RequestFailed,
    RequestRetrying,
)
from aigateway.gateway import AsyncGateway
from aigateway.messages import Attempt
from aigateway.simulator import Simulator
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs

NAMES = ("openai", "azure", "gemini", "anthropic")


@pytest.fixture(autouse=True)
def no_colours(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def number_after(label, text):
    found = re.search(rf"^{label} +(\d+)", text, re.MULTILINE)
    assert found, text
    return int(found[1])


def test_no_caller_gets_an_error():
    done = CliRunner().invoke(
        app, ["demo", "--plain", "--seconds", "2.5", "--rate", "40", "--seed", "1"]
    )
    text = done.stdout
    assert done.exit_code == 0, text
    assert done.stderr == ""
    assert number_after("requests", text) == 100
    assert number_after("failures the callers saw", text) == 0
    assert number_after("vendor failures absorbed", text) > 0
    assert number_after("circuits opened", text) > 0
    assert number_after("circuits closed", text) > 0
    assert number_after("answered by the cache", text) > 0
    for event in (
        "== openai: hangs, azure: HTTP 429, gemini: resets ==",
        "openai: circuit opened",
        "openai: circuit closed",
        "azure: rate-limited for",
    ):
        assert event in text
    assert "failover after a timeout" in text


def test_an_error_of_a_caller_exits_with_one(monkeypatch):
    async def perform(*_args):
        made = a_demo(ScriptedVendor())
        made.results.add(DemoResult(0, 1.0, 0.5, None))
        return made

    monkeypatch.setattr(demo, "_run", perform)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 1
    assert number_after("failures the callers saw", done.stdout) == 1
    assert "no request needed it" in done.stdout


class TestStory:
    @pytest.mark.parametrize("seconds", [2.0, 12.0, 60.0])
    def test_takes_the_time_it_is_given(self, seconds):
        assert sum(phase.seconds for phase in phases(seconds)) == pytest.approx(seconds)

    def test_a_vendor_is_always_healthy_and_all_are_at_both_ends(self):
        story = phases(12)
        assert all("anthropic" not in phase.faults for phase in story)
        assert not story[0].faults
        assert not story[-1].faults

    def test_the_same_seed_gives_the_same_calls(self):
        assert list(calls(3, 20, 7)) == list(calls(3, 20, 7))
        assert list(calls(3, 20, 7)) != list(calls(3, 20, 8))

    def test_calls_come_steadily_and_some_repeat(self):
        made = list(calls(10, 20, 0))
        assert len(made) == 200
        assert all(0 <= call.due - index / 20 <= 1 / 20 for index, call in enumerate(made))
        assert 20 <= sum(call.cache for call in made) <= 60
        assert len({call.prompt for call in made if call.cache}) == 3

    async def test_a_phase_breaks_some_and_repairs_the_rest(self):
        async with Simulator() as simulator:
            for phase in phases(12):
                apply_phase(phase, simulator)
                broken = {vendor.name for vendor in simulator.vendors if vendor.fault}
                assert broken == set(phase.faults)


def attempt(provider, failure=None):
    return Attempt(provider, "m", failure, None, 0.1)


class TestResults:
    def test_figures(self):
        results = DemoResults()
        failed = attempt("openai", FailureKind.TIMEOUT)
        results.add(DemoResult(0, 1.0, 0.1, "openai", attempts=(attempt("openai"),)))
        results.add(DemoResult(0, 2.0, 0.0, "openai", from_cache=True))
        results.add(DemoResult(1, 3.0, 0.3, "azure", attempts=(failed, attempt("azure"))))
        results.add(DemoResult(1, 4.0, 0.4, None, attempts=(failed,)))
        assert (len(results), results.failures, results.cache_hits) == (4, 1, 1)
        assert results.absorbed() == {FailureKind.TIMEOUT: 1}
        assert results.served(results.of_phase(1)) == {"azure": 1}
        assert results.recently_served(2.5) == {"azure": 1}
        moved = results.all[2]
        assert moved.failed_over
        assert moved.timed_out
        assert moved.between_attempts == pytest.approx(0.1)
        assert [result.undisturbed for result in results.all] == [True, False, False, False]

    def test_percentile_is_the_nearest_rank(self):
        values = [float(value) for value in range(100, 0, -1)]
        assert [percentile(values, p) for p in (50, 95, 100)] == [50.0, 95.0, 100.0]
        assert percentile([3.0], 95) == 3.0
        assert percentile([], 50) is None


class TestEvents:
    def test_each_matter_is_shown_once(self):
        clock = FakeClock()
        events = DemoEvents(clock)
        shown = []
        events.listener = lambda event: shown.append(event.text)
        failure = ProviderFailure("a", FailureKind.TIMEOUT)
        for event in (
            CircuitChanged("circuit.opened", "a", "closed", "open"),
            CircuitChanged("circuit.half_opened", "a", "open", "half_open"),
            CircuitChanged("circuit.closed", "a", "half_open", "closed"),
            ProviderCooledDown("b", 1.0),
            ProviderCooledDown("b", 1.0),
            ProviderDisabled("b", FailureKind.AUTHENTICATION, 401, 300),
            ProviderEnabled("b"),
            RequestRetrying("r", 1, 0.25),
            RequestFailed("r", None, "AllProvidersFailedError", (failure,), 0.1),
        ):
            events.on_event(event)
        clock.tick(1.0)
        events.on_event(ProviderCooledDown("b", 1.0))
        assert shown == [
            "a: circuit opened",
            "a: circuit half-open, one probe goes out",
            "a: circuit closed",
            "b: rate-limited for 1.0 s",
            "b: disabled, authentication",
            "b: enabled",
            "no provider left: a request waits 0.2 s",
            "a request failed: AllProvidersFailedError",
            "b: rate-limited for 1.0 s",
        ]
        assert (events.opened, events.closed) == ({"a": 1}, {"a": 1})


def a_demo(vendor, clock=None):
    clock = clock or FakeClock()
    events = DemoEvents(clock)
    gateway = AsyncGateway(
        scripted_configs(*NAMES, failure_threshold=1), vendor=vendor, hooks=[events], clock=clock
    )
    return Demo(Simulator(), gateway, events, phases(12), clock)


@pytest.mark.parametrize("width", [80, 120])
async def test_the_live_table_shows_every_state(width):
    vendor, clock = ScriptedVendor(), FakeClock()
    vendor.script("openai", FailureKind.SERVER_ERROR)
    vendor.script("azure", FailureKind.RATE_LIMITED)
    vendor.script("gemini", FailureKind.AUTHENTICATION)
    made = a_demo(vendor, clock)
    made.current, made.over = 4, True
    made.results.add(DemoResult(4, clock.now(), 0.1, "anthropic", attempts=(attempt("anthropic"),)))
    screen = io.StringIO()
    console = Console(file=screen, width=width, height=40, force_terminal=True, color_system=None)
    async with made.gateway as gateway:
        await gateway.chat("x")
        await LiveDemoScreen(console).show(made)
        clock.tick(60)
        await LiveDemoScreen(console).show(made)
    print_results(console, made)
    shown = screen.getvalue()
    for words in (
        r"openai +hangs +● open 60\.0 s",
        r"openai +hangs +● probe is due",
        r"azure +HTTP 429 +● cooling 1\.0 s",
        r"gemini +healthy +● authentication",
        r"anthropic +healthy +● closed +█+ 100%",
        r"openai: circuit opened",
        r"1 requests, 0 from the cache, 0 failed",
    ):
        assert re.search(words, shown), shown
    assert ("server_error 1" in shown) is (width == 120)
    without_codes = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert (
        max(len(part) for line in without_codes.split("\n") for part in line.split("\r")) <= width
    )
