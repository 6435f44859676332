"""What a key has used, on virtual time, and against a history that forgets nothing."""

import asyncio
import contextlib

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aigateway.errors import (
    AllProvidersFailedError,
    DeadlineExceededError,
    RequestRejectedError,
    StreamInterruptedError,
)
from aigateway.server.auth.keys import KeyAccount, MeteredRequest
from aigateway.server.http.errors import Refusal
from aigateway.testing import FakeClock

DAY = 86_400


@pytest.fixture
def clock():
    return FakeClock(wall=DAY * 20_000 + 3600.0)  # one in the morning


def account_of(clock, budget=None, rpm=None):
    account = KeyAccount(clock)
    account.bind(budget, rpm)
    return account


def spend(account, *costs, model="m"):
    """One request, and what each of its calls cost."""
    with account.begin(model) as use:
        for cost in costs:
            use.on_cost(cost)


def break_off(account, error, *costs):
    """One request that ends with an error after calls that cost something."""
    with contextlib.suppress(type(error)), account.begin("m") as use:
        for cost in costs:
            use.on_cost(cost)
        raise error


def refused(account, model="m"):
    with pytest.raises(Refusal) as caught:
        account.begin(model)
    return caught.value


def test_a_budget_that_is_used_up_comes_back_at_midnight(clock):
    account = account_of(clock, budget=1.0)
    spend(account, 0.6)
    spend(account, 0.6)  # nobody knew before what it would cost
    assert account.spent_usd == pytest.approx(1.2)
    refusal = refused(account)
    assert (refusal.status, refusal.code) == (429, "insufficient_quota")
    assert refusal.headers == {"Retry-After": str(23 * 3600)}
    clock.tick(23 * 3600 - 1)
    assert refused(account).headers == {"Retry-After": "1"}
    clock.tick(1)
    assert account.spent_usd == 0
    spend(account, 0.1)


def test_a_clock_set_back_over_midnight_gives_nothing_twice(clock):
    account = account_of(clock, budget=1.0)
    midnight = DAY * 20_001
    clock.set_wall(midnight)
    spend(account, 1.0)
    clock.set_wall(midnight - 2.0)
    assert refused(account).headers == {"Retry-After": str(DAY + 2)}
    clock.set_wall(midnight + 2.0)
    assert refused(account).code == "insufficient_quota"


def test_a_clock_that_was_far_ahead_is_believed_when_it_is_right_again(clock):
    account = account_of(clock, budget=1.0)
    clock.set_wall(DAY * 30_000.0)
    spend(account, 1.0)
    clock.set_wall(DAY * 20_000.0)
    spend(account, 0.1)


def test_a_burst_is_stopped_before_its_prices_are_known(clock):
    account = account_of(clock, budget=1.25)
    spend(account, 0.25)
    out = [account.begin("m") for _ in range(4)]
    refusal = refused(account)
    assert (refusal.code, refusal.headers) == ("rate_limit_exceeded", {"Retry-After": "1"})
    with out.pop():
        pass
    account.begin("m")


def test_before_any_price_is_known_each_counts_for_ten_cents(clock):
    account = account_of(clock, budget=1.0)
    out = [account.begin("m") for _ in range(10)]
    assert refused(account).code == "rate_limit_exceeded"
    assert refused(account, "another").code == "rate_limit_exceeded"
    for use in out:
        with use:
            use.on_cost(0.001)
    assert len([account.begin("m") for _ in range(100)]) == 100


def test_before_any_price_is_known_each_counts_for_what_it_may_cost(clock):
    account = account_of(clock, budget=1.001)
    out = [account.begin("m", lambda: 0.01) for _ in range(50)]
    out += [account.begin("m", lambda: 5.0) for _ in range(4)]  # ten cents at most
    out += [account.begin("m", lambda: None)]
    assert refused(account).code == "rate_limit_exceeded"
    for use in out[:51]:
        with contextlib.suppress(OSError), use:
            raise OSError  # shows no price
    assert len([account.begin("m", lambda: 0.05) for _ in range(11)]) == 11
    account.begin("m", lambda: 0.04)
    with pytest.raises(Refusal):
        account.begin("m", lambda: 0.05)


def test_what_a_request_may_cost_is_asked_only_where_it_counts(clock):
    account = account_of(clock)
    with account.begin("m", lambda: pytest.fail("there is no budget")) as use:
        use.on_cost(0.2)
    account.bind(1.0, None)
    account.begin("m", lambda: pytest.fail("the usual price is known"))


def test_each_model_has_its_own_usual_price(clock):
    account = account_of(clock, budget=1.0)
    spend(account, 0.3, model="dear")
    spend(account, 0.001, model="cheap")
    account.begin("cheap")
    for _ in range(2):
        account.begin("dear")
    assert refused(account, "dear").code == "rate_limit_exceeded"
    account.begin("cheap")


def test_the_usual_price_follows_what_is_asked_now(clock):
    account = account_of(clock, budget=1000.0)
    spend(account, 1.0)
    for _ in range(60):
        spend(account, 0.01)
    account.bind(account.spent_usd + 0.1, None)
    with contextlib.suppress(Refusal):
        for _ in range(1000):
            account.begin("m")
    assert 5 <= account.in_flight <= 10


def test_one_alone_may_always_use_what_is_left(clock):
    account = account_of(clock, budget=1.0)
    spend(account, 0.9)
    spend(account, 0.2)
    assert refused(account).code == "insufficient_quota"


def test_answers_without_a_price_count_nothing_and_do_not_hold_each_other_up(clock):
    account = account_of(clock, budget=0.5)
    spend(account, None, model="local")
    assert account.spent_usd == 0
    assert len([account.begin("local") for _ in range(1000)]) == 1000


def test_answers_from_the_cache_cost_nothing_and_leave_the_usual_price(clock):
    account = account_of(clock, budget=1.0)
    spend(account, 0.4)
    for _ in range(50):
        spend(account)
    assert account.spent_usd == 0.4
    account.begin("m")
    assert refused(account).code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    "error",
    [
        AllProvidersFailedError("all"),
        DeadlineExceededError("late"),
        RequestRejectedError("no"),
        StreamInterruptedError("cut"),
        Refusal(429, "no"),
        asyncio.CancelledError(),
        GeneratorExit(),
        OSError(),
    ],
)
@pytest.mark.parametrize("costs", [(), (0.2,), (0.1, None, 0.1)])
def test_whatever_the_end_is_each_call_counts_for_what_it_cost(clock, error, costs):
    account = account_of(clock, budget=1.0)
    break_off(account, error, *costs)
    assert account.spent_usd == pytest.approx(sum(cost or 0.0 for cost in costs))
    assert account.in_flight == 0


def test_what_was_broken_off_does_not_tell_the_usual_price(clock):
    account = account_of(clock, budget=1.0)
    break_off(account, asyncio.CancelledError(), 0.0001)
    for _ in range(9):
        account.begin("m")
    assert refused(account).code == "rate_limit_exceeded"


def test_a_call_that_ends_after_its_request_counts_too(clock):
    account = account_of(clock, budget=1.0)
    with account.begin("m") as use:
        use.on_cost(0.25)
    use.on_cost(0.5)
    assert account.spent_usd == 0.75
    assert account.in_flight == 0


def test_one_that_hangs_up_does_not_use_a_budget_up(clock):
    account = account_of(clock, budget=0.0075)
    break_off(account, asyncio.CancelledError(), 0.0001)
    spend(account, 0.001)


def test_a_request_without_an_account_counts_nothing():
    with MeteredRequest() as use:
        use.on_cost(0.2)
    assert use.cost_usd == 0


def test_nothing_is_kept_of_models_that_never_answered(clock):
    account = account_of(clock, budget=1.0)
    for number in range(1000):
        with pytest.raises(RequestRejectedError), account.begin(f"no-such-{number}"):
            raise RequestRejectedError("there is none")
    assert not account._models


def test_the_rate_says_when_to_come_again(clock):
    account = account_of(clock, rpm=2)
    spend(account, 0.0)
    clock.tick(20)
    spend(account, 0.0)
    refusal = refused(account)
    assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
    assert refusal.headers == {"Retry-After": "40"}
    clock.tick(40)
    spend(account, 0.0)
    assert refused(account).headers == {"Retry-After": "20"}


def test_a_request_that_is_refused_is_no_part_of_the_rate(clock):
    account = account_of(clock, budget=1.0, rpm=2)
    spend(account, 1.0)
    for _ in range(10):
        assert refused(account).code == "insufficient_quota"
    account.bind(2.0, 2)
    spend(account, 0.1)


class KnownPricesMachine(RuleBasedStateMachine):
    """Requests of two models, whose price has been seen, begin and end in any order."""

    BUDGET = 10.0
    PRICES = (("cheap", 0.125), ("dear", 1.0))

    def __init__(self):
        super().__init__()
        self.clock = FakeClock(wall=DAY * 20_000.0)
        self.account = account_of(self.clock, self.BUDGET)
        self.out = []
        self.paid = []  # (day, dollars)
        self.most = self.BUDGET + 1.0  # the last one may be too much
        self.see_prices()

    def see_prices(self):
        for model, price in self.PRICES:
            spend(self.account, price, model=model)
            self.paid.append((self.today, price))

    @property
    def today(self):
        return int(self.clock.wall() // DAY)

    @property
    def paid_today(self):
        return sum(cost for day, cost in self.paid if day == self.today)

    @rule(kind=st.sampled_from(PRICES))
    def begin(self, kind):
        code: str | None = "begun"
        try:
            self.out.append((self.account.begin(kind[0]), kind[1]))
        except Refusal as refusal:
            code = refusal.code
        if self.account.spent_usd >= self.BUDGET:
            assert code == "insufficient_quota"
        elif code != "begun":
            assert code == "rate_limit_exceeded"
            assert self.out  # only what is under way can stand in the way

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["paid", "paid", "paid", "cached", "failed", "cut"]))
    def end(self, data, how):
        place = data.draw(st.integers(0, len(self.out) - 1))
        use, price = self.out.pop(place)
        if how == "failed":
            with pytest.raises(RequestRejectedError), use:
                raise RequestRejectedError("no")
            return
        with use:
            if how in {"paid", "cut"}:
                use.on_cost(price)
        if how in {"paid", "cut"}:
            self.paid.append((self.today, price))

    @invariant()
    def what_was_paid_is_counted(self):
        assert self.account.spent_usd == pytest.approx(self.paid_today)
        assert self.account.in_flight == len(self.out)

    @invariant()
    def the_budget_is_hardly_overshot(self):
        assert self.paid_today <= self.most


class AnyPricesMachine(KnownPricesMachine):
    """The same over days, from the first request on: up to a hundred go out at ten cents each."""

    def see_prices(self):
        self.most += 100 * 1.0

    @rule(hours=st.sampled_from([1, 12, 24]))
    def wait(self, hours):
        self.clock.tick(hours * 3600)


TestKnownPrices = KnownPricesMachine.TestCase
TestAnyPrices = AnyPricesMachine.TestCase
