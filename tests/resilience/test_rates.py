"""The rates against a brute force that keeps the whole history, with settlements in any order."""

import math
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aigateway.resilience.rates import RateEntry, RateLimits
from aigateway.testing import FakeClock

RPM, TPM = 4, 100


@dataclass
class Call:
    entry: RateEntry
    began: float
    second: float  # when the second that it is counted in began
    tokens: int
    settled: bool = False


@dataclass
class History:
    calls: list[Call] = field(default_factory=list)

    def may_begin(self, now: float, tokens: int) -> bool:
        used = sum(call.tokens for call in self.calls if call.second + 61 > now)
        begun = sum(call.began + 60 > now for call in self.calls)
        return begun < RPM and (used == 0 or used + tokens <= TPM)

    def wait(self, now: float, tokens: int) -> float:
        """Nothing changes but when a call or a second gets old: the first such moment that does."""
        moments = {now}
        moments |= {call.began + 60 for call in self.calls if call.began + 60 > now}
        moments |= {call.second + 61 for call in self.calls if call.second + 61 > now}
        return min(moment for moment in moments if self.may_begin(moment, tokens)) - now


class RatesMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.limits = RateLimits(self.clock, RPM, TPM)
        self.history = History()

    # Quarters of a second have no rounding, so that the edges can be met exactly.
    @rule(quarters=st.sampled_from([0, 1, 3, 4, 20, 60, 236, 239, 240, 241, 244]))
    def wait(self, quarters):
        self.clock.tick(quarters / 4)

    @rule(tokens=st.sampled_from([0, 1, 20, 50, 100, 150]))
    def begin(self, tokens):
        now = self.clock.now()
        if self.limits.wait(tokens) > 0:
            return
        assert self.history.may_begin(now, tokens)
        latest = max((call.second for call in self.history.calls), default=float("-inf"))
        second = latest if now < latest + 1 else now
        self.history.calls.append(Call(self.limits.begin(tokens), now, second, tokens))

    @precondition(lambda self: self.history.calls)
    @rule(which=st.integers(0, 100), counted=st.sampled_from([None, 0, 1, 30, 99, 400]))
    def settle(self, which, counted):
        """Each call may be settled again and again: only the first time counts."""
        call = self.history.calls[-1 - which % len(self.history.calls)]
        call.entry.settle(counted)
        if counted is not None and not call.settled:
            call.tokens = counted
        call.settled = True

    @invariant()
    def the_wait_is_the_shortest_that_breaks_no_rate(self):
        for tokens in (0, 1, 50, 150):
            assert self.limits.wait(tokens) == self.history.wait(self.clock.now(), tokens)


TestRatesAgainstHistory = RatesMachine.TestCase
TestRatesAgainstHistory.settings = settings(stateful_step_count=40, deadline=None)


def test_what_is_settled_after_its_minute_counts_no_more():
    clock = FakeClock()
    limits = RateLimits(clock, None, 100)
    late = limits.begin(10)
    clock.tick(62)
    limits.begin(60)
    late.settle(1000)
    assert limits.wait(40) == 0
    assert limits.wait(41) > 0


def test_a_second_is_held_until_its_last_moment_is_a_minute_old():
    clock = FakeClock()
    limits = RateLimits(clock, None, 100)
    limits.begin(1)
    clock.tick(0.75)
    limits.begin(99)
    clock.tick(60)  # the first is out of the window, and the second only just
    assert limits.wait(100) == 0.25


def test_a_rate_that_is_not_set_bounds_nothing():
    clock = FakeClock()
    no_tokens, no_calls = RateLimits(clock, 2, None), RateLimits(clock, None, 100)
    no_tokens.begin(10**9).settle(10**9)
    assert no_tokens.wait(10**9) == 0
    for _ in range(100):
        no_calls.begin(1)
    assert no_calls.wait(0) == 0
    assert no_calls.wait(1) > 0


def test_memory_is_bounded():
    clock = FakeClock()
    limits = RateLimits(clock, 10, 10**9)
    for _ in range(1000):
        clock.tick(7)
        limits.begin(5)
    assert len(limits._calls) <= 10
    assert len(limits._buckets) <= 62
    assert math.isfinite(limits.wait(5))
