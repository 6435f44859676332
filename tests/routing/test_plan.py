from collections import Counter

import pytest

from aigateway.errors import (
    ConfigurationError,
    FailureKind,
    NoProvidersError,
    ProviderFailure,
    UnknownModelError,
)
from aigateway.resilience.limiter import Limiter
from aigateway.routing.plan import Roster, choose, take_turn
from aigateway.routing.provider import Provider
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.telemetry.emitter import Emitter
from aigateway.testing import FakeClock, ScriptedVendor


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make(clock):
    def make_provider(name, **fields):
        config = LLMConfig(
            "openai_compatible",
            fields.pop("model", "m"),
            name=name,
            api_base="http://127.0.0.1:9/v1",
            **fields,
        )
        return Provider(config, GatewaySettings(), clock, Emitter(), ScriptedVendor())

    return make_provider


def everywhere(slots):
    return True


def chosen_of(providers, tried=(), has_place=everywhere):
    chosen = choose(providers, tried, has_place).provider
    assert chosen is not None
    return chosen


def spread(providers, calls):
    counts: Counter[str] = Counter()
    for _ in range(calls):
        chosen = chosen_of(providers)
        take_turn(chosen, providers)
        counts[chosen.name] += 1
    return counts


def trip(provider):
    for _ in range(provider.breaker.failure_threshold):
        provider.breaker.acquire().failure()


def make_hang(provider, clock):
    """Many more calls are out for much longer than it usually takes."""
    for _ in range(20):
        provider.answers.latency.add(0.1)
    for _ in range(provider.breaker.failure_threshold):
        provider.answers.watch.begin()
    clock.tick(5)


class TestOrder:
    def test_highest_priority_first(self, make):
        roster = Roster(
            [make("low", priority=1), make("high", priority=9), make("mid", priority=5)]
        )
        assert [p.name for p in roster] == ["high", "mid", "low"]
        tried: set[str] = set()
        order = []
        while (chosen := choose(roster.candidates(None), tried, everywhere).provider) is not None:
            order.append(chosen.name)
            tried.add(chosen.name)
        assert order == ["high", "mid", "low"]

    def test_passes_over_open_cooling_and_disabled_ones_and_says_why(self, make, clock):
        providers = [make(n, priority=9 - i) for i, n in enumerate(["open", "cool", "off", "ok"])]
        trip(providers[0])
        providers[1].gates.throttled(5)
        providers[2].gates.disable(FailureKind.AUTHENTICATION)
        assert chosen_of(providers, (), everywhere).name == "ok"
        nobody = choose(providers[:3], (), everywhere)
        assert nobody.provider is None
        assert [(f.provider, f.kind) for f in nobody.refused] == [
            ("open", FailureKind.CIRCUIT_OPEN),
            ("cool", FailureKind.COOLING_DOWN),
            ("off", FailureKind.DISABLED),
        ]
        assert [f.retry_after_seconds for f in nobody.refused] == pytest.approx([60, 5, 300])

    def test_a_full_provider_is_passed_over(self, make):
        providers = [make("full", priority=2, max_concurrency=1), make("next", priority=1)]
        limiter = Limiter(10, 10)
        limiter.take(providers[0].slots)
        assert chosen_of(providers, (), limiter.has_place).name == "next"
        alone = choose(providers[:1], (), limiter.has_place)
        assert alone.provider is None
        assert [f.kind for f in alone.full] == [FailureKind.SATURATED]

    def test_one_whose_probe_is_out_is_worth_waiting_for(self, make, clock):
        providers = [make("probed", priority=2), make("open", priority=1)]
        trip(providers[0])
        clock.tick(1)
        trip(providers[1])
        clock.tick(59)
        providers[0].breaker.acquire()
        nobody = choose(providers, (), everywhere)
        assert [f.provider for f in nobody.full] == ["probed"]
        assert [(f.provider, f.retry_after_seconds) for f in nobody.refused] == [("open", 1)]

    def test_one_that_seems_to_hang_is_asked_if_nobody_else_can_be(self, make, clock):
        first, second, well = (make(n, priority=9 - i) for i, n in enumerate(["1st", "2nd", "ok"]))
        make_hang(first, clock)
        make_hang(second, clock)
        assert chosen_of([first, second, well]) is well
        assert chosen_of([first, second]) is first


class TestRates:
    def test_calls_of_the_last_minute_count(self, make, clock):
        provider = make("slow", rpm=1)
        assert chosen_of([provider]) is provider
        provider.rates.begin(0)
        clock.tick(15)
        (full,) = choose([provider], (), everywhere).full
        assert full == ProviderFailure("slow", FailureKind.SATURATED, retry_after_seconds=45)
        assert chosen_of([provider, make("other")]).name == "other"
        clock.tick(44.5)
        assert choose([provider], (), everywhere).provider is None
        clock.tick(0.5)
        assert chosen_of([provider]) is provider

    @pytest.mark.parametrize(("used", "wanted", "full"), [(90, 10, False), (90, 11, True)])
    def test_a_call_needs_its_tokens(self, make, used, wanted, full):
        provider = make("slow", tpm=100)
        provider.rates.begin(used)
        choice = choose([provider], (), everywhere, wanted)
        assert (choice.provider is None) is full

    @pytest.mark.parametrize(("used", "full"), [(100, False), (101, True)])
    def test_a_call_of_unknown_size_needs_none(self, make, used, full):
        provider = make("slow", tpm=100)
        provider.rates.begin(used)
        assert (choose([provider], (), everywhere).provider is None) is full


class TestSpread:
    def test_equal_ones_take_turns(self, make):
        assert spread([make("a"), make("b"), make("c")], 300) == {"a": 100, "b": 100, "c": 100}

    def test_the_first_one_begins(self, make):
        assert chosen_of([make("a"), make("b")]).name == "a"

    def test_in_proportion_to_their_weight(self, make):
        counts = spread([make("a", weight=3), make("b", weight=1)], 400)
        assert counts == {"a": 300, "b": 100}

    def test_the_less_loaded_one_first(self, make):
        a, b = make("a"), make("b")
        a.slots.in_flight = 3
        b.slots.in_flight = 2
        assert chosen_of([a, b], (), everywhere) is b

    def test_load_counts_against_weight(self, make):
        a, b = make("a", weight=4), make("b", weight=1)
        a.slots.in_flight, b.slots.in_flight = 3, 1
        assert chosen_of([a, b], (), everywhere) is a

    def test_one_that_was_away_is_not_flooded_when_it_returns(self, make, clock):
        a, b = make("a"), make("b")
        trip(b)
        assert spread([a, b], 1000) == {"a": 1000}
        b.breaker.reset()
        counts = spread([a, b], 100)
        assert abs(counts["a"] - counts["b"]) <= 2

    @pytest.mark.parametrize(
        ("weight", "peers", "turn"), [(4, 2, 9.75), (2, 4, 10.0), (1, 1, 10.0)]
    )
    def test_it_starts_one_stride_behind_the_others(self, make, weight, peers, turn):
        provider, peer = make("a", weight=weight), make("b", weight=peers)
        peer.turn = 10.0
        take_turn(provider, [provider, peer])
        assert provider.turn == turn

    def test_other_priorities_take_turns_of_their_own(self, make):
        provider, backup = make("a", priority=1), make("b")
        backup.turn = 10.0
        take_turn(provider, [provider, backup])
        assert provider.turn == 1

    def test_alone_it_loses_no_turn(self, make):
        alone, newcomer = make("a"), make("b")
        for _ in range(9):
            take_turn(alone, [alone])
        assert chosen_of([alone, newcomer]) is alone

    def test_a_lower_priority_gets_nothing_while_a_higher_one_is_well(self, make):
        assert spread([make("a", priority=1), make("b", priority=0)], 50) == {"a": 50}


class TestRoster:
    def test_finds_by_model_name_and_alias(self, make):
        roster = Roster([make("one", model="gpt", aliases=("fast",)), make("two", model="gpt")])
        assert [p.name for p in roster.candidates("gpt")] == ["one", "two"]
        assert [p.name for p in roster.candidates("fast")] == ["one"]
        assert [p.name for p in roster.candidates("two")] == ["two"]

    def test_unknown_model_names_the_known_ones_and_the_nearest(self, make):
        roster = Roster([make("one", model="gpt-4o-mini")])
        with pytest.raises(UnknownModelError, match=r"Did you mean 'gpt-4o-mini'\?") as raised:
            roster.candidates("gpt-4o-mni")
        assert "one" in str(raised.value)

    def test_with_nothing_near_it_guesses_nothing(self, make):
        with pytest.raises(UnknownModelError) as raised:
            Roster([make("one", model="gpt")]).candidates("zzzzzz")
        assert str(raised.value) == "No provider serves the model 'zzzzzz'. Known: gpt, one."

    def test_what_was_found_before_does_not_hide_a_change(self, make):
        roster = Roster([make("one")])
        assert [p.name for p in roster.candidates("m")] == ["one"]
        assert roster.candidates("m") is roster.candidates("m"), "looked for once only"
        roster.add(make("two"))
        assert [p.name for p in roster.candidates("m")] == ["one", "two"]
        roster.remove("one")
        assert [p.name for p in roster.candidates("m")] == ["two"]
        assert len(roster) == 1

    def test_says_how_long_everybody_is_away(self, make, clock):
        one, two = make("one"), make("two")
        roster = Roster([one, two])
        assert roster.away("m") == 0
        two.gates.throttled(40)
        assert roster.away("m") == 0, "one can be asked"
        trip(one)
        assert (roster.away(None), roster.away("one"), roster.away("two")) == (40, 60, 40)
        two.gates.disable(FailureKind.AUTHENTICATION)
        assert roster.away("m") == 60, "who is set up wrong is not waited for"
        clock.tick(60)
        assert one.breaker.acquire()
        assert roster.away("m") == 0, "its probe may come back at any moment"

    def test_where_waiting_is_no_use_nobody_is_away(self, make):
        one, two = make("one"), make("two")
        roster = Roster([one, two])
        one.breaker.force_open()
        two.gates.disable(FailureKind.AUTHENTICATION)
        assert roster.away("m") == 0
        assert roster.away("nobody") == roster.away(["m"]) == Roster().away(None) == 0

    def test_knows_whether_tokens_have_to_be_counted(self, make):
        roster = Roster([make("one", rpm=1)])
        assert not roster.counts_tokens
        roster.add(make("two", tpm=1))
        assert roster.counts_tokens
        roster.add(make("three"))
        assert roster.counts_tokens

    def test_callers_cannot_make_it_grow(self, make):
        roster = Roster([make("one")])
        for i in range(100):
            with pytest.raises(UnknownModelError):
                roster.candidates(f"nonsense {i}")
        assert len(roster._by_model) == 0

    def test_empty_says_how_to_configure(self):
        with pytest.raises(
            NoProvidersError, match=r"OPENAI_API_KEY.* or pass LLMConfig objects\.$"
        ):
            Roster().candidates(None)

    def test_names_are_unique(self, make):
        roster = Roster([make("one")])
        with pytest.raises(ConfigurationError, match="'one'"):
            roster.add(make("one"))

    def test_remove(self, make):
        roster = Roster([make("one"), make("two")])
        assert roster.remove("one").name == "one"
        assert [p.name for p in roster.candidates(None)] == ["two"]
        roster.add(make("three"))
        with pytest.raises(ConfigurationError, match=r"there are: two, three\.$"):
            roster.remove("one")
        with pytest.raises(ConfigurationError, match=r"there are: none\.$"):
            Roster().remove("one")
