"""When the next request may begin, and when no more should."""

import pytest

from aigateway.batch.files.limits import Governor, Limits
from aigateway.batch.files.records import answer_record, error_record
from aigateway.batch.files.totals import Totals
from aigateway.errors import ConfigurationError, GatewayError
from aigateway.messages import ChatResponse, Choice, Completion, Usage


def answer(cost):
    return answer_record(
        "x", ChatResponse(Completion("i", "m", (Choice("x"),), Usage(1, 1, 2), cost), "a")
    )


def failure():
    return error_record("x", GatewayError("x"))


@pytest.fixture
def govern(clock):
    def make(totals=None, **limits):
        return Governor(Limits(**limits), totals or Totals(), clock)

    return make


def test_without_limits_everything_may_begin(govern):
    governor = govern()
    for _ in range(1000):
        assert governor.wait(1000, 10**9) == 0
        governor.begin(10**9)
    assert governor.reached(0) is None


@pytest.mark.parametrize("name", ["max_cost", "max_failures", "rpm", "tpm"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_limit_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"--{name.replace('_', '-')} must be above 0"):
        Limits(**{name: value})


def test_failures_of_this_run_count(govern):
    totals = Totals()
    totals.add(failure())
    governor = govern(totals, max_failures=2)
    assert governor.reached(5) is None
    totals.add(failure())
    assert governor.reached(5) is None
    totals.add(failure())
    assert governor.reached(5) == "--max-failures 2 is reached"


class TestCost:
    def test_the_first_goes_alone_until_its_price_is_known(self, govern):
        totals = Totals()
        governor = govern(totals, max_cost=1.0)
        assert governor.wait(0, 0) == 0
        assert governor.wait(1, 0) > 0
        totals.add(answer(0.1))
        assert governor.wait(1, 0) == 0

    def test_what_is_out_counts_at_the_usual_price(self, govern):
        totals = Totals()
        governor = govern(totals, max_cost=1.0)
        totals.add(answer(0.25))
        assert [governor.wait(out, 0) > 0 for out in range(5)] == [False, False, False, True, True]
        assert governor.reached(3) is None  # their answers may be cheaper

    def test_it_is_reached_when_one_more_would_be_too_dear(self, govern):
        totals = Totals()
        governor = govern(totals, max_cost=1.0)
        for _ in range(3):
            totals.add(answer(0.25))
        assert governor.reached(0) is None
        totals.add(answer(0.25))
        assert governor.reached(0) == "--max-cost $1 is reached ($1 spent)"

    def test_earlier_runs_count(self, govern):
        totals = Totals()
        totals.add(answer(2.0))
        assert govern(totals, max_cost=1.0).reached(0) is not None

    def test_answers_that_cost_nothing_do_not_lower_the_usual_price(self, govern):
        totals = Totals()
        governor = govern(totals, max_cost=1.0)
        totals.add(answer(0.4))
        copy = answer(0.0)
        copy["aigateway"]["cached"] = True
        for _ in range(100):
            totals.add(copy)
        assert governor.wait(1, 0) > 0


class TestRates:
    async def test_requests_per_minute(self, govern, clock):
        governor = govern(rpm=2)
        for _ in range(2):
            assert governor.wait(0, 0) == 0
            governor.begin(0)
        assert governor.wait(0, 0) == 60
        await clock.advance(60)
        assert governor.wait(0, 0) == 0

    def test_tokens_per_minute_and_what_the_vendor_counted(self, govern):
        governor = govern(tpm=100)
        entry = governor.begin(80)
        assert governor.wait(0, 40) > 0
        entry.settle(10)
        assert governor.wait(0, 40) == 0
