"""Signs of ill health that are no failure yet: throttles, hangs, a network that is gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aigateway.resilience.adaptive import AdaptiveLimit
from aigateway.resilience.hangs import HangWatch
from aigateway.resilience.latency import RecentLatency
from aigateway.resilience.network import Reachability
from aigateway.testing import FakeClock


class TestAdaptiveLimit:
    def run_against(self, capacity, most, rounds):
        """Full load against a vendor that throttles what is above its capacity."""
        clock = FakeClock()
        limit = AdaptiveLimit(most, clock)
        seen = []
        for _ in range(rounds):
            began, out = clock.now(), limit.limit
            clock.tick(1)
            for place in range(out):
                if place < capacity:
                    limit.succeeded(out)
                else:
                    limit.throttled(out, began)
            seen.append(limit.limit)
            assert 1 <= limit.limit <= most
        return seen

    @given(st.integers(1, 40), st.integers(1, 60))
    def test_it_settles_around_what_the_vendor_bears(self, capacity, most):
        late = self.run_against(capacity, most, 250)[-100:]
        bound = min(capacity, most)
        assert max(late) <= bound + 1
        assert min(late) >= int(0.8 * bound)

    def test_a_round_trip_counts_once(self):
        clock = FakeClock()
        limit = AdaptiveLimit(100, clock)
        began = clock.now()
        clock.tick(1)
        for _ in range(50):
            limit.throttled(100, began)
        assert limit.limit == 90

    def test_it_comes_back_when_it_is_used_and_not_before(self):
        clock = FakeClock()
        limit = AdaptiveLimit(10, clock)
        for _ in range(5):
            limit.throttled(10, clock.now())
            clock.tick(1)
        fallen = limit.limit
        for _ in range(1000):
            limit.succeeded(1)
        assert limit.limit <= max(fallen, 3), "one call at a time proves nothing about ten"
        for _ in range(1000):
            limit.succeeded(limit.limit)
        assert limit.limit == 10

    def test_far_above_what_is_out_it_comes_down_by_halves(self):
        clock = FakeClock()
        limit = AdaptiveLimit(256, clock)
        for _ in range(6):
            limit.throttled(8, clock.now())
            clock.tick(1)
        assert 6 <= limit.limit <= 8


class HangMachine(RuleBasedStateMachine):
    """The watch against the rules, written down naively."""

    THRESHOLD, P95 = 3, 1.0

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.watch = HangWatch(self.clock, self.THRESHOLD)
        self.out = []
        self.virtual = []  # [began, until, verdicts]
        self.last_success = -1.0
        self.verdicts = []

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.9, 4.1, 10.0]))
    def wait(self, seconds):
        self.clock.tick(seconds)

    @rule()
    def begin(self):
        self.clock.tick(0.001)
        self.out.append((self.clock.now(), self.watch.begin()))

    @rule(which=st.integers(0, 100), how=st.sampled_from(["succeeded", "ended"]))
    def end(self, which, how):
        if self.out:
            _, call = self.out.pop(which % len(self.out))
            getattr(self.watch, how)(call)
            if how == "succeeded":
                self.last_success = self.clock.now()
                for entry in self.virtual:
                    assert entry[2] == [False] or entry[1] <= self.clock.now()
                self.virtual = []

    @rule(which=st.integers(0, 100), more=st.sampled_from([0.5, 5.0, 20.0]))
    def lose(self, which, more):
        if self.out:
            began, call = self.out.pop(which % len(self.out))
            verdicts: list[bool] = []
            until = self.clock.now() + more
            self.watch.outrun(call, until, verdicts.append)
            self.verdicts.append(verdicts)
            if self.last_success >= began:
                assert verdicts == [False]
            else:
                assert verdicts == []
                self.virtual.append((began, until, verdicts))

    @rule()
    def look(self):
        now = self.clock.now()
        suspected = self.watch.suspected(self.P95)
        for _, until, verdicts in self.virtual:
            assert verdicts == ([True] if until <= now else [])
        self.virtual = [entry for entry in self.virtual if entry[1] > now]
        began = sorted([b for b, _ in self.out] + [b for b, _, _ in self.virtual])
        overdue = sum(self.last_success < b < now - 4 * self.P95 for b in began)
        assert suspected == (overdue >= self.THRESHOLD)
        assert not self.watch.suspected(None)

    @invariant()
    def each_is_judged_at_most_once(self):
        assert all(len(verdicts) <= 1 for verdicts in self.verdicts)

    def teardown(self):
        self.watch.close()
        assert all(len(verdicts) == 1 for verdicts in self.verdicts)


TestHangMachine = HangMachine.TestCase


def test_a_success_speaks_for_all_that_began_before_it():
    clock = FakeClock()
    watch = HangWatch(clock, 2)
    for _ in range(2):
        watch.begin()
    quick = watch.begin()
    clock.tick(0.5)
    watch.succeeded(quick)
    clock.tick(100)
    assert not watch.suspected(1.0), "long answers and no traffic are no hang"
    for _ in range(2):
        watch.begin()
    clock.tick(4.1)
    assert watch.suspected(1.0)


def test_a_verdict_that_comes_too_late_is_none():
    clock = FakeClock()
    watch = HangWatch(clock, 2)
    verdicts: list[bool] = []
    watch.outrun(watch.begin(), clock.now() + 1, verdicts.append)
    clock.tick(3600)
    watch.suspected(1.0)
    assert verdicts == [False]


def test_a_verdict_may_call_back():
    clock = FakeClock()
    watch = HangWatch(clock, 2)
    verdicts: list[bool] = []

    def settle(failed):
        verdicts.append(failed)
        watch.suspected(1.0)

    for _ in range(3):
        watch.outrun(watch.begin(), clock.now() + 1, settle)
    clock.tick(2)
    watch.suspected(1.0)
    assert verdicts == [True] * 3


class TestReachability:
    def test_one_alone_is_its_own_fault(self):
        network = Reachability(FakeClock())
        assert not network.unreachable("a")
        assert not network.unreachable("a")

    def test_two_and_nobody_up_is_the_networks(self):
        network = Reachability(FakeClock())
        network.unreachable("a")
        assert network.unreachable("b")
        assert network.down == {"a", "b"}
        network.reached("b")
        assert not network.network_is_down
        assert not network.unreachable("a")

    def test_one_that_answered_before_counts_until_it_fails_too(self):
        network = Reachability(FakeClock())
        for name in "abc":
            network.reached(name)
        assert [network.unreachable(name) for name in "abc"] == [False, False, True]

    def test_an_answer_of_long_ago_proves_nothing(self):
        clock = FakeClock()
        network = Reachability(clock)
        network.reached("idle")
        network.unreachable("a")
        assert not network.unreachable("b")
        clock.tick(61)
        assert network.unreachable("b")

    def test_a_removed_one_does_not_count(self):
        network = Reachability(FakeClock())
        network.reached("gone")
        network.unreachable("a")
        network.forget("gone")
        assert network.unreachable("b")


class TestRecentLatency:
    def test_nothing_is_said_of_few(self):
        latency = RecentLatency()
        for _ in range(19):
            latency.add(1.0)
        assert latency.p95 is None
        latency.add(1.0)
        assert latency.p95 == 1.0

    @given(st.lists(st.floats(0, 100), min_size=20, max_size=400))
    def test_it_is_the_percentile_of_the_latest_but_a_few(self, values):
        latency = RecentLatency()
        for value in values:
            latency.add(value)
        possible = []
        for end in range(max(20, len(values) - 16), len(values) + 1):
            window = sorted(values[max(0, end - 128) : end])
            possible.append(window[-(-95 * len(window) // 100) - 1])
        assert latency.p95 in possible
        assert latency.samples == min(128, len(values))

    def test_it_forgets(self):
        latency = RecentLatency()
        for _ in range(128):
            latency.add(10.0)
        for _ in range(128 + 16):
            latency.add(1.0)
        assert latency.p95 == pytest.approx(1.0)
