"""The breaker against an independent model, over schedules that Hypothesis invents.

The model is written from the rules, not from the code: it keeps the whole history and works out
from it, at each step, what the state must be.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from aigateway.resilience.breaker import CircuitBreaker, Permit, Rejected
from aigateway.testing import FakeClock

THRESHOLD, OPEN_SECONDS, MAX_OPEN, LEASE = 3, 10.0, 80.0, 7.0


@dataclass
class Call:
    era: int
    began: int
    probe: bool
    last_resort: bool = False
    settled: bool = False


@dataclass
class Model:
    """What the rules say. An era is the time between two changes of state."""

    state: str = "closed"
    era: int = 0
    steps: int = 0
    # Steps at which failures arrived, and what had been asked.
    failures: list[tuple[int, str | None]] = field(default_factory=list)
    openings: int = 0
    opened_at: float = 0.0
    probe: Call | None = None
    probe_sent_at: float = 0.0
    late: int = 0

    def enter(self, state: str, now: float) -> None:
        self.state, self.probe, self.failures = state, None, []
        self.era += 1
        if state == "open":
            self.openings += 1
            self.opened_at = now
        elif state == "closed":
            self.openings = 0

    def open_bounds(self) -> tuple[float, float]:
        base = min(OPEN_SECONDS * 2 ** (self.openings - 1), MAX_OPEN)
        if self.openings == 1:
            return base, base
        return (base * 0.9 if base * 1.1 > MAX_OPEN else base), min(base * 1.1, MAX_OPEN)

    def settle(self, call: Call, how: str, cause: str | None, now: float) -> None:
        if call.settled:
            return
        call.settled = True
        if call.era != self.era:
            self.late += 1
        elif call.probe or call.last_resort:
            self.decide(call, how, now)
        elif how == "success":
            if self.failures and call.began > self.failures[0][0]:
                self.failures = []
        elif how == "failure":
            if cause is None or cause not in {earlier for _, earlier in self.failures}:
                self.failures.append((self.steps, cause))
            if len(self.failures) >= THRESHOLD:
                self.enter("open", now)

    def decide(self, call: Call, how: str, now: float) -> None:
        if how == "success":
            self.enter("closed", now)
        elif how == "failure" and call.probe:
            self.enter("open", now)
        elif call.probe:
            self.probe = None


class BreakerMachine(RuleBasedStateMachine):
    calls = Bundle("calls")

    def __init__(self):
        super().__init__()
        self.clock = FakeClock(seed=7)
        self.breaker = CircuitBreaker(
            THRESHOLD,
            OPEN_SECONDS,
            max_open_seconds=MAX_OPEN,
            probe_lease_seconds=LEASE,
            clock=self.clock,
        )
        self.model = Model()

    @rule(target=calls, last=st.booleans())
    def ask(self, last):
        model, now = self.model, self.clock.now()
        model.steps += 1
        answer = self.breaker.acquire_last_resort() if last else self.breaker.acquire()
        if isinstance(answer, Permit) and answer.last_resort:
            return answer, self.take_last_resort(now, asked=last)
        self.end_lease(now)
        if model.state == "open":
            least, most = model.open_bounds()
            waited = now - model.opened_at
            if isinstance(answer, Rejected):
                assert not last, "nothing is forced"
                assert waited < most
                assert least - waited - 1e-6 <= answer.retry_after <= most - waited + 1e-6
                return multiple()
            assert waited >= least
            model.enter("half_open", now)
        elif model.state == "half_open" and model.probe:
            assert isinstance(answer, Rejected)
            assert not last, "nothing is forced"
            return multiple()
        assert isinstance(answer, Permit)
        call = Call(model.era, model.steps, probe=model.state == "half_open")
        assert answer.probe is call.probe
        if call.probe:
            model.probe, model.probe_sent_at = call, now
        return answer, call

    def end_lease(self, now):
        model = self.model
        if model.state == "half_open" and model.probe and now - model.probe_sent_at >= LEASE:
            model.enter("open", now)

    def take_last_resort(self, now, *, asked):
        """Given only to those who ask for it, and only where others are refused."""
        model = self.model
        assert asked
        self.end_lease(now)
        if model.state == "open":
            assert now - model.opened_at < model.open_bounds()[1]
        else:
            assert model.state == "half_open"
            assert model.probe
        return Call(model.era, model.steps, probe=False, last_resort=True)

    @rule(
        pair=calls,
        how=st.sampled_from(["success", "failure", "release"]),
        cause=st.sampled_from([None, "x", "y"]),
    )
    def settle(self, pair, how, cause):
        permit, call = pair
        self.model.steps += 1
        getattr(permit, how)(*([cause] if how == "failure" else []))
        self.model.settle(call, how, cause, self.clock.now())

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 10.0, 11.0, 90.0]))
    def wait(self, seconds):
        self.clock.tick(seconds)

    @rule(wall=st.floats(0, 1e12))
    def wall_clock_jumps(self, wall):
        self.clock.set_wall(wall)

    @invariant()
    def agree(self):
        assert self.breaker.state.value == self.model.state
        assert self.breaker.consecutive_failures == len(self.model.failures)
        assert self.breaker.late_results == self.model.late


TestBreakerAgainstModel = BreakerMachine.TestCase
TestBreakerAgainstModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
