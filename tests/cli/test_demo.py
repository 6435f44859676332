import io
import re
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aigateway.cli import app, demo
from aigateway.cli.demo.screen import LiveDemoScreen, print_end
from aigateway.cli.demo.story import (
    Demo,
    DemoEvents,
    DemoResult,
    DemoResults,
    acts,
    answer_of,
    apply_phase,
    calls,
    percentile,
    way,
)
from aigateway.errors import FailureKind
from aigateway.events import (
    CircuitChanged,
    ProviderCooledDown,
    ProviderDisabled,
    ProviderEnabled,
    RequestRetrying,
)
from aigateway.gateway import AsyncGateway
from aigateway.messages import Attempt
from aigateway.simulator import Simulator
from aigateway.testing import FakeClock, ScriptedVendor, scripted_configs
from aigateway.wires import loading

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
    parts = (
        "openai first, then azure, gemini and anthropic",
        "Act 1 of 3: a vendor fails. openai",
        "now: openai fails",
        "openai: HTTP 500 -> azure: ",
        "openai: circuit opened",
        " callers, no error. ",
        "Act 2 of 3: a vendor hangs. openai",
        "openai: no answer in time -> ",
        " callers, no error. ",
        "Act 3 of 3: three of four are down. openai",
        "azure: rate-limited, no requests for",
        "gemini: connection cut -> ",
        " callers, no error. Those that worked answered (",
        "No caller saw it.",
        'chat --simulate "What is 2+2?"',
    )
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert text.partition("what happened")[0].isascii()
    for first, second, answer in re.findall(r'What is (\d+) times (\d+)\?.*"(\d+)"', text):
        assert int(first) * int(second) == int(answer)
    # Nothing looks like a defect.
    assert not re.search(r"WARNING|Traceback|\b0(\.0)? ms|\b1 (requests|callers|times)", text)


async def test_loading_litellm_may_take_longer_than_a_request(monkeypatch):
    load = loading._import_litellm

    def load_slowly():
        time.sleep(0.15)
        return load()

    monkeypatch.setattr(loading, "_import", None)
    monkeypatch.setattr(loading, "_import_litellm", load_slowly)
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "0.05")
    async with Simulator() as simulator:
        await demo._warm_up(demo._configs(simulator, 1.0))
        assert all(vendor.request_count for vendor in simulator.vendors)


def test_an_error_of_a_caller_exits_with_one(monkeypatch):
    async def perform(*_args):
        made = a_demo(ScriptedVendor())
        made.results.add(DemoResult(0, 1.0, 0.5, None))
        return made

    monkeypatch.setattr(demo, "_run", perform)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 1
    assert number_after("failures the callers saw", done.stdout) == 1
    assert "1 of 1 request ended with an error." in done.stdout


class TestStory:
    @pytest.mark.parametrize("seconds", [2.0, 12.0, 60.0])
    def test_takes_the_time_it_is_given(self, seconds):
        assert sum(act.seconds for act in acts(seconds)) == pytest.approx(seconds)

    def test_a_vendor_is_always_healthy_and_all_are_at_the_end_of_each_act(self):
        for act in acts(12):
            assert all("anthropic" not in phase.faults for phase in act.phases)
            assert not act.phases[-1].faults

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
            for phase in (phase for act in acts(12) for phase in act.phases):
                apply_phase(phase, simulator)
                broken = {vendor.name for vendor in simulator.vendors if vendor.fault}
                assert broken == set(phase.faults)

    async def test_every_answer_is_the_right_one(self):
        async with Simulator() as simulator:
            for vendor in simulator.vendors:
                vendor.answer(answer_of)
            async with AsyncGateway([vendor.config() for vendor in simulator.vendors]) as gateway:
                for vendor, (prompt, answer) in zip(
                    simulator.vendors,
                    (
                        ("What is 12 times 12?", "144"),
                        ("What is the capital of France?", "Paris"),
                        ("Which planet is the largest?", "Jupiter"),
                        ("What is 7 times 8?", "56"),
                    ),
                    strict=False,
                ):
                    assert (await gateway.chat(prompt, model=vendor.model)).text == answer


def attempt(provider, failure=None, status=None):
    return Attempt(provider, "m", failure, status, 0.1)


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
        assert results.served(results.of_act(1).all) == {"azure": 1}
        assert (results.moved_from("openai"), results.without("azure")) == (1, 1)
        assert results.added_by_failover() == pytest.approx(0.2)
        assert results.longest == 0.4
        assert results.recently_served(2.5) == {"azure": 1}
        assert results.all[2].failed_over
        assert [result.undisturbed for result in results.all] == [True, False, False, False]

    def test_the_way_of_a_request_is_one_line(self):
        failed = attempt("openai", FailureKind.SERVER_ERROR, 503)
        cut = attempt("azure", FailureKind.CONNECTION)
        moved = (failed, cut, attempt("gemini"))
        ways = [
            way(DemoResult(0, 1.0, 0.1, "gemini", False, moved, "a?", "b")),
            way(DemoResult(0, 1.0, 0.1, "gemini", True, (), "a?", "b")),
            way(DemoResult(0, 1.0, 0.1, None, False, (), "a?", "no provider")),
        ]
        assert ways == [
            'a?  openai: HTTP 503 -> azure: connection cut -> gemini: "b"',
            'a?  "b" from the cache',
            "a?  the caller got an error: no provider",
        ]

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
        for event in (
            CircuitChanged("circuit.opened", "a", "closed", "open"),
            CircuitChanged("circuit.half_opened", "a", "open", "half_open"),
            CircuitChanged("circuit.closed", "a", "half_open", "closed"),
            ProviderCooledDown("b", 1.0),
            ProviderCooledDown("b", 1.0),
            ProviderDisabled("b", FailureKind.AUTHENTICATION, 401, 300),
            ProviderEnabled("b"),
            RequestRetrying("r", 1, 0.25),
        ):
            events.on_event(event)
        clock.tick(1.0)
        events.on_event(ProviderCooledDown("b", 1.0))
        assert shown == [
            "a: circuit opened, no requests for a while",
            "a: circuit half-open, one probe goes out",
            "a: circuit closed, in use again",
            "b: rate-limited, no requests for 1.0 s",
            "b: disabled, authentication",
            "b: enabled",
            "no provider left: a request waits 0.2 s",
            "b: rate-limited, no requests for 1.0 s",
        ]
        assert (events.opened, events.closed) == ({"a": 1}, {"a": 1})

    def test_every_error_is_shown_and_of_the_answers_some(self):
        clock = FakeClock()
        clock.tick(10)
        events = DemoEvents(clock)
        answered = DemoResult(0, 1.0, 0.1, "a", attempts=(attempt("a"),), prompt="x?", text="y")
        moved = DemoResult(
            0, 1.0, 0.1, "a", attempts=(attempt("b", FailureKind.TIMEOUT), attempt("a"))
        )
        failed = DemoResult(0, 1.0, 0.1, None)
        for result in (answered, answered, moved, failed, failed):
            events.sample(result)
        clock.tick(0.5)
        for result in (answered, moved):
            events.sample(result)
        styles = [event.style for event in events.latest]
        assert styles == ["dim", "", "bold red", "bold red", ""]


def a_demo(vendor, clock=None):
    clock = clock or FakeClock()
    events = DemoEvents(clock)
    gateway = AsyncGateway(
        scripted_configs(*NAMES, failure_threshold=1), vendor=vendor, hooks=[events], clock=clock
    )
    return Demo(Simulator(), gateway, events, acts(12), clock)


@pytest.mark.parametrize("width", [80, 120])
async def test_the_live_table_shows_every_state(width):
    vendor, clock = ScriptedVendor(), FakeClock()
    vendor.script("openai", FailureKind.SERVER_ERROR)
    vendor.script("azure", FailureKind.RATE_LIMITED)
    vendor.script("gemini", FailureKind.AUTHENTICATION)
    made = a_demo(vendor, clock)
    made.current, made.phase, made.over = 2, made.acts[2].phases[1], True
    made.results.add(DemoResult(2, clock.now(), 0.1, "anthropic", attempts=(attempt("anthropic"),)))
    screen = io.StringIO()
    console = Console(file=screen, width=width, height=40, force_terminal=True, color_system=None)
    async with made.gateway as gateway:
        await gateway.chat("x")
        live = LiveDemoScreen(console, reading_seconds=0)
        await live.show(made)
        clock.tick(60)
        await live.show(made)
        await live.tell("Act 1 of 3: it fails. " + "It answers with an error. " * 9)
    print_end(console, made)
    shown = screen.getvalue()
    for words in (
        r"openai +hangs +● open 60\.0 s",
        r"openai +hangs +● probe is due",
        r"azure +refuses +● cooling 1\.0 s",
        r"gemini +cuts off +● authentication",
        r"anthropic +healthy +● closed +█+ 100%",
        r"openai: circuit opened",
        r"1 request, 0 of them from the cache; callers saw 0 errors",
        r"Act 1 of 3: it fails\.",
    ):
        assert re.search(words, shown), shown
    assert ("answered by\n" in re.sub(" +\n", "\n", shown)) is (width == 120)
    without_codes = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert (
        max(len(part) for line in without_codes.split("\n") for part in line.split("\r")) <= width
    )
