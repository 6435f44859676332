"""Who is asked next, and which providers there are."""

from collections import Counter
from dataclasses import replace

import pytest

from aigateway.cache.key import LONG
from aigateway.errors import (
    ConfigurationError,
    FailureKind,
    NoProvidersError,
    ProviderFailure,
    UnknownModelError,
)
from aigateway.messages import ChatRequest
from aigateway.resilience.concurrency import Limiter
from aigateway.resilience.guard import NEVER, AttemptOutcome, Effect
from aigateway.routing.candidates import RequestState, Roster, final_error
from aigateway.routing.provider import Provider
from aigateway.routing.select import PriorityPolicy, advance_rotation
from aigateway.settings import GatewaySettings, LLMConfig
from aigateway.telemetry.recorder import Emitter
from aigateway.testing import ScriptedVendor

K = FailureKind


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


def clock_of(provider):
    return provider.chat.breaker.clock


HI = ChatRequest(({"role": "user", "content": "hi"},))


class Fixed(Roster):
    """A roster of these providers, in this order."""

    def __init__(self, *providers):
        super().__init__()
        self.found = providers

    def candidates(self, model, operation):
        return self.found


def request_for(*providers, operation="chat", timeout=3600.0):
    """A request that begins now."""
    now = clock_of(providers[0]).now()
    return RequestState(HI, operation, Fixed(*providers), now, now + timeout)


def choose(request, has_slot=everywhere, tokens=0):
    request.tokens = tokens
    return PriorityPolicy(has_slot).choose(request.candidates, request)


def first_choice(*providers, has_slot=everywhere):
    return choose(request_for(*providers), has_slot)


def chosen_of(*providers, has_slot=everywhere):
    chosen = first_choice(*providers, has_slot=has_slot).candidate
    assert chosen is not None
    return chosen.provider


def order_of(request):
    """Whom a request asks one after the other, if all fail; with a star as last resort."""
    order = []
    while (choice := choose(request)).candidate is not None:
        choice.candidate.tried = True
        choice.candidate.calls += 1
        order.append(choice.candidate.provider.name + "*" * choice.last_resort)
    return order


def spread(providers, calls):
    counts: Counter[str] = Counter()
    for _ in range(calls):
        request = request_for(*providers)
        chosen = choose(request).candidate
        assert chosen is not None
        advance_rotation(chosen.provider, request.candidates)
        counts[chosen.provider.name] += 1
    return counts


def outcome(effect, **fields):
    return AttemptOutcome(effect, object, **fields)


def trip(provider):
    for _ in range(provider.chat.breaker.failure_threshold):
        provider.chat.breaker.acquire().failure()


def disable(provider):
    setup = provider.chat.disabling
    setup.end(setup.begin(), outcome(Effect.MISCONFIGURED, kind=K.AUTHENTICATION, certain=True))


def pay(provider, answers=1):
    for _ in range(answers):
        provider.chat.last_resort.end(False, outcome(Effect.ANSWERED))


def degrade(provider):
    for _ in range(10):
        provider.chat.health.end(outcome(Effect.FAILED))


def make_hang(provider, clock):
    """Many more calls are out for much longer than it usually takes."""
    for _ in range(20):
        pace = provider.chat.answers
        pace.succeeded(pace.begin(), 0.1)
    clock.tick(0.1)
    for _ in range(provider.chat.breaker.failure_threshold):
        provider.chat.answers.begin()
    clock.tick(5)


class TestOrder:
    def test_highest_priority_first(self, make):
        roster = Roster(
            [make("low", priority=1), make("high", priority=9), make("mid", priority=5)]
        )
        assert [p.name for p in roster] == ["high", "mid", "low"]
        assert order_of(request_for(*roster)) == ["high", "mid", "low"]

    def test_passes_over_open_cooling_and_disabled_ones_and_says_why(self, make, clock):
        providers = [make(n, priority=9 - i) for i, n in enumerate(["open", "cool", "off", "ok"])]
        trip(providers[0])
        providers[1].chat.cooldown.throttle(5)
        disable(providers[2])
        assert chosen_of(*providers).name == "ok"
        providers[0].chat.breaker.force_open()
        clock.tick(1)
        none = first_choice(*providers[:3])
        assert none.candidate is None
        assert [(f.provider, f.kind) for _, f in none.refused] == [
            ("open", K.CIRCUIT_OPEN),
            ("cool", K.COOLING_DOWN),
            ("off", K.DISABLED),
        ]
        assert [f.retry_after_seconds for _, f in none.refused] == [NEVER, 4, 4]
        assert none.waits == [4], "until the disabled one may be checked as last resort"

    def test_a_full_provider_is_passed_over(self, make):
        full, other = make("full", priority=2, max_concurrency=1), make("next", priority=1)
        limiter = Limiter(10, 10)
        limiter.take(full.slots)
        assert chosen_of(full, other, has_slot=limiter.has_slot).name == "next"
        alone = first_choice(full, has_slot=limiter.has_slot)
        assert alone.candidate is None
        assert [f.kind for _, f in alone.refused] == [K.SATURATED]
        assert alone.waits == [None], "when is not known"

    def test_those_that_were_tried_are_not_asked_again(self, make):
        request = request_for(make("a"), make("b"))
        request.candidates[0].tried = True
        assert choose(request).candidate is request.candidates[1]
        request.candidates[1].tried = True
        none = choose(request)
        assert (none.candidate, none.refused, none.waits) == (None, (), ())

    def test_a_probe_is_sent_as_of_right(self, make, clock):
        first, second = make("probed", priority=2), make("ok", priority=1)
        trip(first)
        clock.tick(60)
        choice = first_choice(first, second)
        assert choice.candidate.provider is first
        assert not choice.last_resort

    def test_a_retired_one_is_asked_by_none(self, make):
        gone, other = make("gone", priority=2), make("ok", priority=1)
        gone.retired = True
        assert chosen_of(gone, other) is other
        none = first_choice(gone)
        assert none.candidate is None
        assert not none.waits

    def test_operations_are_apart(self, make):
        provider = make("both")
        trip(provider)
        disable(provider)
        choice = choose(request_for(provider, operation="embeddings"))
        assert choice.candidate.provider is provider
        assert not choice.last_resort


class TestDegraded:
    def test_it_is_asked_after_healthy_ones_of_lower_priority(self, make):
        first, second, third = (make(n, priority=9 - i) for i, n in enumerate("abc"))
        degrade(first)
        degrade(second)
        assert order_of(request_for(first, second, third)) == ["c", "a", "b"]

    def test_alone_it_gets_everything(self, make):
        alone = make("a")
        degrade(alone)
        assert spread([alone], 100) == {"a": 100}

    def test_equals_share_what_comes_when_no_healthy_one_is_left(self, make):
        light, heavy, lower = make("a", weight=1), make("b", weight=3), make("c", priority=-1)
        for provider in (light, heavy, lower):
            degrade(provider)
        shares = spread([light, heavy, lower], 1000)
        # Each keeps its canaries besides, which are drawn in the order given.
        assert shares["a"] == pytest.approx(265, abs=30)
        assert shares["b"] == pytest.approx(685, abs=30)
        assert shares["c"] == pytest.approx(50, abs=10)

    def test_among_equals_the_one_with_fewer_calls_out_is_asked(self, make):
        busy, idle = make("a"), make("b")
        degrade(busy)
        degrade(idle)
        Limiter(10, 10).take(busy.slots)
        assert chosen_of(busy, idle) is idle

    def test_it_keeps_one_request_in_twenty(self, make):
        first, second = make("a", priority=2), make("b", priority=1)
        degrade(first)
        assert spread([first, second], 1000) == {
            "a": pytest.approx(50, abs=1),
            "b": pytest.approx(950, abs=1),
        }

    def test_among_equals_too(self, make):
        first, second = make("a"), make("b")
        degrade(first)
        assert spread([first, second], 1000)["a"] == pytest.approx(50, abs=1)

    def test_one_of_lower_priority_gets_nothing_while_a_higher_one_is_well(self, make):
        first, second = make("a", priority=2), make("b", priority=1)
        degrade(second)
        assert spread([first, second], 100) == {"a": 100}

    def test_a_request_draws_once_however_often_it_looks(self, make):
        first, second = make("a", priority=2), make("b", priority=1)
        degrade(first)
        request = request_for(first, second)
        for _ in range(100):
            assert choose(request).candidate.provider is second

    def test_one_that_is_busy_draws_no_canary(self, make):
        first, second = make("a", priority=2, max_concurrency=1), make("b", priority=1)
        degrade(first)
        limiter = Limiter(10, 10)
        limiter.take(first.slots)
        for _ in range(100):
            assert chosen_of(first, second, has_slot=limiter.has_slot) is second

    def test_one_that_recovers_is_first_again(self, make, clock):
        first, second = make("a", priority=2), make("b", priority=1)
        degrade(first)
        clock.tick(31)
        assert chosen_of(first, second) is first

    def test_one_that_seems_to_hang_is_asked_if_no_other_can_be(self, make, clock):
        first, second, well = (make(n, priority=9 - i) for i, n in enumerate(["1st", "2nd", "ok"]))
        make_hang(first, clock)
        make_hang(second, clock)
        assert chosen_of(first, second, well) is well
        assert chosen_of(first, second) is first

    def test_it_is_better_than_any_last_resort(self, make):
        first, second = make("open", priority=2), make("slow", priority=1)
        trip(first)
        degrade(second)
        choice = first_choice(first, second)
        assert choice.candidate.provider is second
        assert not choice.last_resort


class TestLastResort:
    def test_an_open_circuit_is_asked_when_no_other_is_left(self, make):
        first, second = make("open", priority=2), make("ok", priority=1)
        trip(first)
        assert order_of(request_for(first, second)) == ["ok", "open*"]

    def test_the_fullest_purse_first_and_then_the_priority(self, make):
        a, b, c = (make(n, priority=9 - i) for i, n in enumerate("abc"))
        for provider in (a, b, c):
            trip(provider)
        pay(c, 3)
        pay(b, 3)
        assert order_of(request_for(a, b, c)) == ["b*", "c*", "a*"]

    def test_a_disabled_one_comes_behind_those_that_fail(self, make, clock):
        off, fails = make("off", priority=2), make("open", priority=1)
        pay(off, 5)
        disable(off)
        trip(fails)
        clock.tick(5)
        assert order_of(request_for(off, fails)) == ["open*", "off*"]

    def test_when_its_dose_is_used_up_it_is_waited_for(self, make, clock):
        alone = make("open")
        trip(alone)
        held = alone.chat.begin(last_resort=True)
        none = first_choice(alone)
        assert none.candidate is None
        assert none.waits == [None], "its end may change that"
        assert none.changes[-1] == pytest.approx(1)
        assert [f.kind for _, f in none.refused] == [K.CIRCUIT_OPEN]
        alone.chat.end(held, outcome(Effect.FAILED))
        assert first_choice(alone).waits == [pytest.approx(0.25)]
        clock.tick(0.25)
        choice = first_choice(alone)
        assert (choice.candidate.provider, choice.last_resort) == (alone, True)

    def test_one_whose_dose_is_used_up_does_not_keep_from_another(self, make):
        first, second = make("a", priority=2), make("b", priority=1)
        trip(first)
        trip(second)
        first.chat.begin(last_resort=True)
        choice = first_choice(first, second)
        assert (choice.candidate.provider, choice.last_resort) == (second, True)

    def test_a_healthy_one_without_a_place_is_waited_for_instead(self, make):
        full, fails = make("full", priority=2, max_concurrency=1), make("open", priority=1)
        trip(fails)
        limiter = Limiter(10, 10)
        limiter.take(full.slots)
        none = first_choice(full, fails, has_slot=limiter.has_slot)
        assert none.candidate is None
        assert none.waits == [None]

    def test_one_that_can_wait_for_the_place_goes_on_waiting(self, make, clock):
        busy, fails = make("busy", priority=2, rpm=1), make("open", priority=1)
        trip(fails)
        busy.rates.begin(0)
        request = request_for(busy, fails, timeout=61)
        clock.tick(59)
        assert choose(request).candidate is None
        clock.tick(1)
        choice = choose(request)
        assert (choice.candidate.provider, choice.last_resort) == (busy, False)

    def test_one_healthy_place_in_time_is_waited_for_beside_one_too_late(self, make, clock):
        late, soon, fails = (
            make("late", priority=2, rpm=1),
            make("soon", rpm=1),
            make("open", priority=0),
        )
        trip(fails)
        soon.rates.begin(0)
        clock.tick(55)
        late.rates.begin(0)
        choice = choose(request_for(late, soon, fails, timeout=10))
        assert (choice.candidate, choice.waits) == (None, [pytest.approx(60), pytest.approx(5)])

    def test_one_whose_time_of_return_is_not_known_is_waited_for(self, make):
        late, full, fails = make("late", rpm=1), make("full", max_concurrency=1), make("open")
        trip(fails)
        late.rates.begin(0)
        limiter = Limiter(10, 10)
        limiter.take(full.slots)
        request = request_for(late, full, fails, timeout=10)
        choice = choose(request, has_slot=limiter.has_slot)
        assert (choice.candidate, choice.waits) == (None, [pytest.approx(60), None])

    def test_one_that_has_no_place_itself_is_waited_for(self, make):
        fails = make("open", max_concurrency=1)
        trip(fails)
        limiter = Limiter(10, 10)
        limiter.take(fails.slots)
        none = first_choice(fails, has_slot=limiter.has_slot)
        assert (none.candidate, none.waits) == (None, [None])

    def test_a_cooldown_is_never_asked(self, make):
        alone = make("cool")
        alone.chat.cooldown.throttle(5)
        none = first_choice(alone)
        assert (none.candidate, none.waits) == (None, ())

    def test_nor_is_a_circuit_that_is_forced_open(self, make):
        alone = make("forced")
        alone.force_circuit("open")
        none = first_choice(alone)
        assert (none.candidate, none.waits) == (None, ())

    def test_a_request_asks_each_once_in_its_life(self, make, clock):
        alone = make("open")
        trip(alone)
        pay(alone)
        request = request_for(alone)
        (candidate,) = request.candidates
        candidate.calls = 1
        assert (choose(request).candidate, choose(request).waits) == (None, ())

    def test_it_waits_for_one_check_of_a_disabled_provider(self, make, clock):
        alone = make("off")
        disable(alone)
        clock.tick(1)
        request = request_for(alone)
        assert choose(request).waits == [pytest.approx(4)]
        clock.tick(4)
        check = alone.chat.begin(last_resort=True)
        alone.chat.end(check, outcome(Effect.MISCONFIGURED, kind=K.AUTHENTICATION))
        assert not choose(request).waits, "that check spoke for this request, too"
        clock.tick(1)
        assert first_choice(alone).waits == [pytest.approx(4)], "the next request sees anew"

    @pytest.mark.parametrize(("later", "may_wait"), [(-1, False), (0, False), (1, True)])
    def test_a_refusal_since_a_request_began_holds_for_it_too(self, make, clock, later, may_wait):
        alone = make("off")
        if later < 0:
            request = request_for(alone)
            clock.tick(-later)
        disable(alone)
        if later >= 0:
            clock.tick(later)
            request = request_for(alone)
        choice = choose(request)
        assert choice.candidate is None
        assert bool(choice.waits) is may_wait
        assert [f.kind for _, f in choice.refused] == [K.DISABLED]
        clock.tick(5)
        assert (choose(request).candidate is not None) is may_wait, "nor does time change that"

    def test_a_refusal_holds_for_that_provider_and_operation_alone(self, make, clock):
        off, other = make("off", priority=2), make("other", priority=1)
        chat = request_for(off, other)
        embeddings = request_for(off, operation="embeddings")
        clock.tick(1)
        disable(off)
        trip(other)
        assert order_of(chat) == ["other*"]
        assert choose(embeddings).candidate.provider is off

    def test_a_request_is_the_check_itself_if_it_has_heard_no_refusal(self, make, clock):
        alone = make("off")
        disable(alone)
        clock.tick(4.5)
        request = request_for(alone)
        assert choose(request).waits == [pytest.approx(0.5)]
        clock.tick(0.5)
        choice = choose(request)
        assert (choice.candidate.provider, choice.last_resort) == (alone, True)

    def test_five_seconds_after_the_last_check_another_may_be_made(self, make, clock):
        alone = make("off")
        disable(alone)
        clock.tick(5)
        check = alone.chat.begin(last_resort=True)
        clock.tick(2)
        alone.chat.end(check, outcome(Effect.NEUTRAL))
        assert first_choice(alone).waits == [pytest.approx(3)]

    def test_what_enables_it_frees_those_who_had_been_refused(self, make, clock):
        alone = make("off")
        request = request_for(alone)
        clock.tick(1)
        disable(alone)
        assert not choose(request).waits
        clock.tick(5)
        check = alone.chat.begin(last_resort=True)
        pace = alone.chat.answers
        alone.chat.answered(check, outcome(Effect.ANSWERED), pace, pace.begin())
        choice = choose(request)
        assert (choice.candidate.provider, choice.last_resort) == (alone, False)

    def test_each_request_is_counted_once_for_the_ramp(self, make):
        alone = make("open")
        trip(alone)
        alone.chat.begin(last_resort=True)
        for request in [request_for(alone), request_for(alone)]:
            for _ in range(5):
                choose(request)
        assert alone.chat.last_resort._seen == 2


class TestRamp:
    def come_back(self, provider):
        trip(provider)
        held = provider.chat.begin(last_resort=True)
        pace = provider.chat.answers
        provider.chat.answered(held, outcome(Effect.ANSWERED), pace, pace.begin())
        provider.chat.end(held, outcome(Effect.ANSWERED))

    def test_one_that_has_just_come_back_is_asked_at_a_pace(self, make, clock):
        alone = make("a")
        self.come_back(alone)
        assert chosen_of(alone) is alone
        alone.chat.begin(last_resort=False)
        none = first_choice(alone)
        assert none.candidate is None
        assert none.waits == [pytest.approx(1 / 8)]
        assert [f.kind for _, f in none.refused] == [K.SATURATED]
        clock.tick(1 / 8)
        assert chosen_of(alone) is alone

    def test_meanwhile_others_are_asked(self, make):
        first, second = make("a", priority=2), make("b", priority=1)
        self.come_back(first)
        first.chat.begin(last_resort=False)
        assert chosen_of(first, second) is second


class TestRates:
    def test_calls_of_the_last_minute_count(self, make, clock):
        provider = make("slow", rpm=1)
        assert chosen_of(provider) is provider
        provider.rates.begin(0)
        clock.tick(15)
        none = first_choice(provider)
        failure = ProviderFailure("slow", K.SATURATED, retry_after_seconds=45)
        assert [f for _, f in none.refused] == [failure]
        assert none.waits == [45]
        assert chosen_of(provider, make("other")).name == "other"
        clock.tick(44.5)
        assert first_choice(provider).candidate is None
        clock.tick(0.5)
        assert chosen_of(provider) is provider

    @pytest.mark.parametrize(("used", "wanted", "full"), [(90, 10, False), (90, 11, True)])
    def test_a_call_needs_its_tokens(self, make, used, wanted, full):
        provider = make("slow", tpm=100)
        provider.rates.begin(used)
        choice = choose(request_for(provider), tokens=wanted)
        assert (choice.candidate is None) is full

    @pytest.mark.parametrize(("used", "full"), [(100, False), (101, True)])
    def test_a_call_of_unknown_size_needs_none(self, make, used, full):
        provider = make("slow", tpm=100)
        provider.rates.begin(used)
        assert (first_choice(provider).candidate is None) is full


class TestSpread:
    def test_equal_ones_take_turns(self, make):
        assert spread([make("a"), make("b"), make("c")], 300) == {"a": 100, "b": 100, "c": 100}

    def test_the_first_one_begins(self, make):
        assert chosen_of(make("a"), make("b")).name == "a"

    def test_in_proportion_to_their_weight(self, make):
        counts = spread([make("a", weight=3), make("b", weight=1)], 400)
        assert counts == {"a": 300, "b": 100}

    def test_the_less_loaded_one_first(self, make):
        a, b = make("a"), make("b")
        a.slots.in_flight = 3
        b.slots.in_flight = 2
        assert chosen_of(a, b) is b

    def test_load_counts_against_weight(self, make):
        a, b = make("a", weight=4), make("b", weight=1)
        a.slots.in_flight, b.slots.in_flight = 3, 1
        assert chosen_of(a, b) is a

    def test_one_that_was_away_is_not_flooded_when_it_returns(self, make):
        a, b = make("a"), make("b")
        trip(b)
        assert spread([a, b], 1000) == {"a": 1000}
        b.chat.breaker.reset()
        counts = spread([a, b], 100)
        assert abs(counts["a"] - counts["b"]) <= 2

    @pytest.mark.parametrize(
        ("weight", "peers", "turn"), [(4, 2, 9.75), (2, 4, 10.0), (1, 1, 10.0)]
    )
    def test_it_starts_one_stride_behind_the_others(self, make, weight, peers, turn):
        provider, peer = make("a", weight=weight), make("b", weight=peers)
        peer.turn = 10.0
        advance_rotation(provider, request_for(provider, peer).candidates)
        assert provider.turn == turn

    def test_other_priorities_take_turns_of_their_own(self, make):
        provider, backup = make("a", priority=1), make("b")
        backup.turn = 10.0
        advance_rotation(provider, request_for(provider, backup).candidates)
        assert provider.turn == 1

    def test_alone_it_loses_no_turn(self, make):
        alone, newcomer = make("a"), make("b")
        for _ in range(9):
            advance_rotation(alone, request_for(alone).candidates)
        assert chosen_of(alone, newcomer) is alone

    def test_a_lower_priority_gets_nothing_while_a_higher_one_is_well(self, make):
        assert spread([make("a", priority=1), make("b", priority=0)], 50) == {"a": 50}


class TestRoster:
    def test_finds_by_model_name_and_alias(self, make):
        roster = Roster([make("one", model="gpt", aliases=("fast",)), make("two", model="gpt")])
        assert [p.name for p in roster.candidates("gpt", "chat")] == ["one", "two"]
        assert [p.name for p in roster.candidates("fast", "chat")] == ["one"]
        assert [p.name for p in roster.candidates("two", "chat")] == ["two"]

    def test_unknown_model_names_the_known_ones_and_the_nearest(self, make):
        roster = Roster([make("one", model="gpt-4o-mini")])
        with pytest.raises(UnknownModelError, match=r"Did you mean 'gpt-4o-mini'\?") as raised:
            roster.candidates("gpt-4o-mni", "chat")
        assert "one" in str(raised.value)

    def test_with_nothing_near_it_guesses_nothing(self, make):
        with pytest.raises(UnknownModelError) as raised:
            Roster([make("one", model="gpt")]).candidates("zzzzzz", "chat")
        assert str(raised.value) == "No provider serves the model 'zzzzzz'. Known: gpt, one."

    def test_what_was_found_before_does_not_hide_a_change(self, make):
        roster = Roster([make("one")])
        assert [p.name for p in roster.candidates("m", "chat")] == ["one"]
        assert roster.serving("m") is roster.serving("m"), "looked for once only"
        roster.add(make("two"))
        assert [p.name for p in roster.candidates("m", "chat")] == ["one", "two"]
        roster.remove("one")
        assert [p.name for p in roster.candidates("m", "chat")] == ["two"]
        assert len(roster) == 1

    def test_says_how_long_everybody_is_away(self, make, clock):
        one, two = make("one"), make("two")
        roster = Roster([one, two])
        assert roster.seconds_until_available("m") == 0
        two.chat.cooldown.throttle(40)
        assert roster.seconds_until_available("m") == 0, "one can be asked"
        trip(one)
        assert (
            roster.seconds_until_available(None),
            roster.seconds_until_available("one"),
            roster.seconds_until_available("two"),
        ) == (40, 60, 40)
        disable(two)
        assert roster.seconds_until_available("m") == 60, "who is set up wrong is not waited for"
        clock.tick(60)
        assert one.chat.breaker.acquire()
        assert roster.seconds_until_available("m") == 0, "its probe may come back at any moment"

    def test_where_waiting_is_no_use_nobody_is_away(self, make):
        one, two = make("one"), make("two")
        roster = Roster([one, two])
        one.chat.breaker.force_open()
        disable(two)
        assert roster.seconds_until_available("m") == 0
        assert (
            roster.seconds_until_available("nobody")
            == roster.seconds_until_available(["m"])
            == Roster().seconds_until_available(None)
            == 0
        )

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
                roster.candidates(f"nonsense {i}", "chat")
        assert len(roster._by_model) == 0

    def test_empty_says_how_to_configure(self):
        with pytest.raises(
            NoProvidersError, match=r"OPENAI_API_KEY.* or pass LLMConfig objects\.$"
        ):
            Roster().candidates(None, "chat")

    def test_names_are_unique(self, make):
        roster = Roster([make("one")])
        with pytest.raises(ConfigurationError, match="'one'"):
            roster.add(make("one"))

    def test_remove(self, make):
        roster = Roster([make("one"), make("two")])
        assert roster.remove("one").name == "one"
        assert [p.name for p in roster.candidates(None, "chat")] == ["two"]
        roster.add(make("three"))
        with pytest.raises(ConfigurationError, match=r"there are: two, three\.$"):
            roster.remove("one")
        with pytest.raises(ConfigurationError, match=r"there are: none\.$"):
            Roster().remove("one")

    def test_without_a_model_only_those_that_do_the_operation(self, make):
        chat, embeds = (
            make("chat", operations=("chat",)),
            make("embeds", operations=("embeddings",)),
        )
        unknown = make("unknown")
        roster = Roster([chat, embeds, unknown])
        assert [p.name for p in roster.candidates(None, "chat")] == ["chat", "unknown"]
        assert [p.name for p in roster.candidates(None, "embeddings")] == ["embeds", "unknown"]

    def test_with_a_model_the_caller_knows_better(self, make):
        roster = Roster([make("chat", operations=("chat",))])
        assert [p.name for p in roster.candidates("chat", "embeddings")] == ["chat"]

    def test_where_none_does_it_the_error_says_what_to_do(self, make):
        roster = Roster([make("chat", operations=("chat",)), make("two", operations=("chat",))])
        with pytest.raises(UnknownModelError, match=r"offers embeddings: .* chat, two do not"):
            roster.candidates(None, "embeddings")

    def test_what_was_found_for_an_operation_is_looked_for_once(self, make):
        roster = Roster([make("one"), make("embeds", operations=("embeddings",))])
        assert roster.candidates(None, "chat") is roster.candidates(None, "chat")

    def test_only_those_that_chat_are_waited_for(self, make):
        chat, embeds = make("chat"), make("embeds", operations=("embeddings",))
        roster = Roster([chat, embeds])
        trip(chat)
        assert roster.seconds_until_available(None) == 60

    def test_says_why_none_may_be_asked(self, make):
        one, two, well = make("one"), make("two"), make("well", model="other")
        roster = Roster([one, two, well])
        trip(one)
        two.chat.cooldown.throttle(40)
        error = roster.refusal_of_all("m")
        assert [(c.provider, c.kind) for c in error.causes] == [
            ("one", K.CIRCUIT_OPEN),
            ("two", K.COOLING_DOWN),
        ]
        assert [c.provider for c in roster.refusal_of_all(None).causes] == ["one", "two"]

    def test_what_is_learned_later_counts(self, make):
        one, two = make("one"), make("two")
        roster = Roster([one, two])
        assert len(roster.candidates(None, "chat")) == 2
        one.known_operations = frozenset({"embeddings"})
        one.on_prepared()
        assert [p.name for p in roster.candidates(None, "chat")] == ["two"]

    def test_says_when_one_may_be_asked_as_last_resort(self, make, clock):
        one, two = make("one"), make("two")
        roster = Roster([one, two])
        assert roster.seconds_until_last_resort("m") == NEVER, "none is away"
        disable(one)
        two.chat.cooldown.throttle(40)
        assert roster.seconds_until_last_resort("m") == pytest.approx(5)
        assert roster.seconds_until_last_resort("two") == NEVER
        trip(two)
        assert roster.seconds_until_last_resort("two") == NEVER
        assert roster.seconds_until_last_resort("unknown") == NEVER
        clock.tick(40)
        assert roster.seconds_until_last_resort(None) == 0


class TestCandidate:
    def test_a_further_round_asks_again_but_not_one_that_it_saw_fail(self, make):
        well, failed, gone = make("a"), make("b"), make("c")
        request = request_for(well, failed, gone)
        for candidate in request.candidates:
            candidate.tried = True
        request.candidates[1].blamed = True
        request.candidates[2].barred = True
        request.begin_round()
        assert [c.tried for c in request.candidates] == [False, False, True]
        trip(failed)
        request.begin_round()
        assert [c.tried for c in request.candidates] == [False, True, True]

    @pytest.mark.parametrize(
        ("calls", "kind", "hopeless"),
        [
            (1, K.AUTHENTICATION, True),
            (1, K.SERVER_ERROR, False),
            (1, None, False),
            (0, K.DISABLED, False),
        ],
    )
    def test_a_further_round_leaves_out_what_an_attempt_has_shown_to_be_no_use(
        self, make, calls, kind, hopeless
    ):
        request = request_for(make("a"))
        (candidate,) = request.candidates
        candidate.tried, candidate.calls = True, calls
        candidate.cause = None if kind is None else ProviderFailure("a", kind)
        request.begin_round()
        assert candidate.tried is hopeless

    def test_what_an_attempt_showed_stands_over_a_mere_refusal(self, make):
        (candidate,) = request_for(make("a")).candidates
        refusals = [ProviderFailure("a", kind) for kind in (K.CIRCUIT_OPEN, K.SATURATED)]
        for refusal in refusals:
            candidate.note(refusal)
            assert candidate.cause is refusal, "the latest"
        candidate.cause, candidate.calls = None, 1
        candidate.note(refusals[0])
        candidate.note(refusals[1])
        assert candidate.cause is refusals[0]

    def test_one_that_refused_a_hint_may_be_asked_again_without_it(self, make):
        (candidate,) = request_for(make("a")).candidates
        candidate.tried, candidate.calls = True, 2
        candidate.retry_without_hint()
        assert (candidate.tried, candidate.calls) == (False, 1)

    def test_one_that_may_not_be_asked_as_last_resort_is_not_counted_for_the_ramp(self, make):
        alone = make("cool")
        alone.chat.cooldown.throttle(5)
        first_choice(alone)
        assert alone.chat.last_resort._seen == 0

    def test_by_default_a_request_asks_for_nothing_special(self):
        request = RequestState(HI, "chat", Fixed(), 0.0, 60.0)
        assert (request.tokens, request.hedge, request.background, request.tenant) == (
            0,
            False,
            False,
            "",
        )
        assert (request.begun, request.waited) == (0, 0)

    def test_an_error_speaks_of_the_network_only_where_that_is_known(self):
        causes = [ProviderFailure("a", K.CONNECTION)]
        assert "network" not in str(final_error(causes))
        assert "network" in str(final_error(causes, offline=True))

    def test_its_digest_is_equal_for_repeats_of_any_caller_and_worked_out_once(self, make):
        def digest(**fields):
            request = RequestState(replace(HI, **fields), "chat", Fixed(make("a")), 0.0, 0.0)
            assert request.cause() is request.cause()
            return request.cause()

        assert digest() == digest(partition="x", request_id="y", timeout=9)
        assert digest() != digest(model="m")
        assert digest(size=LONG + 1) == digest(size=LONG + 1, tenant="t") != digest(size=LONG + 2)

    @pytest.mark.parametrize(
        ("unreachable", "offline"), [((True, True), True), ((True, False), False), ((True,), False)]
    )
    def test_two_or_more_that_could_not_be_reached_are_the_networks_fault(
        self, make, unreachable, offline
    ):
        request = request_for(make("a"), make("b"))
        for candidate, value in zip(request.candidates, unreachable, strict=False):
            candidate.note(ProviderFailure(candidate.provider.name, K.CONNECTION))
            candidate.unreachable = value
        assert request.looks_offline is offline


class TestRequestState:
    @pytest.fixture
    def roster(self, make):
        return Roster([make("a", priority=5)])

    @pytest.fixture
    def request_of(self, roster):
        """A request of any provider there is."""
        return RequestState(HI, "chat", roster, 0.0, 60.0)

    def names(self, request):
        return [candidate.provider.name for candidate in request.candidates]

    def test_it_takes_providers_that_were_added_since_by_their_priority(
        self, make, roster, request_of
    ):
        request = request_of
        request.add_new_providers()
        (first,) = request.candidates
        first.calls = 1
        roster.add(make("low", priority=1))
        roster.add(make("high", priority=9))
        request.add_new_providers()
        assert self.names(request) == ["high", "a", "low"]
        assert request.candidates[1] is first

    def test_where_nothing_has_changed_nothing_is_made_anew(self, make, roster, request_of):
        request = request_of
        for added in ([], [make("b")]):
            for provider in added:
                roster.add(provider)
            request.add_new_providers()
            request.add_new_providers()
            before = request.candidates
            request.add_new_providers()
            assert request.candidates is before

    def test_those_that_it_has_given_up_do_not_come_back(self, make, roster, request_of):
        request = request_of
        request.add_new_providers()
        request.candidates = ()  # such as those that cannot go on with a stream
        roster.add(make("b"))
        request.add_new_providers()
        assert self.names(request) == ["b"]

    def test_those_that_were_removed_stay_as_they_are(self, roster, request_of):
        request = request_of
        request.add_new_providers()
        roster.remove("a")
        request.add_new_providers()
        assert self.names(request) == ["a"]

    @pytest.mark.parametrize(
        ("seconds", "timeout", "share"), [(1.0, 60.0, 1.0), (1.0, 4.0, 1.0), (1.0, 2.0, 0.5)]
    )
    def test_a_share_of_its_time(self, seconds, timeout, share):
        request = RequestState(HI, "chat", Fixed(), 100.0, 100.0 + timeout)
        assert request.share(seconds) == pytest.approx(share)

    def test_those_that_could_go_on_in_the_same_moments_are_of_one_group(self, make, clock):
        a, b = make("a"), make("b")
        clock.tick(1)

        def change(**fields):
            request = request_for(a, b)
            for name, value in fields.items():
                setattr(request, name, value)
            return request

        plain = request_for(a, b).group()
        assert change().group() == plain
        assert change(tokens=5).group() == change(tokens=7).group() != plain
        for fields in (
            {"overdue": True},
            {"nearly_over": True},
            {"model": "m"},
            {"operation": "embeddings"},
        ):
            assert change(**fields).group() != plain
        asked, asked_twice, tried = (change() for _ in range(3))
        asked.candidates[0].calls = 1
        asked_twice.candidates[0].calls = 2
        tried.candidates[0].tried = True
        assert asked.group() == asked_twice.group()
        assert len({plain, asked.group(), tried.group()}) == 3

    def test_a_refusal_parts_those_who_came_before_it_from_those_after(self, make, clock):
        off = make("off")
        before = request_for(off)
        clock.tick(1)
        disable(off)
        clock.tick(1)
        after, later = request_for(off), request_for(off)
        assert before.group() != after.group() == later.group()
