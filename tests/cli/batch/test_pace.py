import pytest

from aigateway.batch.files.totals import JobTotals
from aigateway.cli.batch.screen import Pace, Rates
from tests.cli.batch.jobs import add, answer


def test_nothing_is_told_from_one_look():
    assert Pace().look(0.0, JobTotals()) == Rates(None, None)
    assert Pace().look(3.0, JobTotals()) == Rates(None, None)


def test_a_rate_is_that_of_the_last_ten_seconds():
    pace, totals = Pace(), JobTotals()
    for second in range(31):
        rates = pace.look(float(second), totals)
        add(totals, answer(), 10 if second < 20 else 4)
    assert rates.lines == pytest.approx(4)
    assert rates.tokens == pytest.approx(4 * 30)


def test_a_slow_job_is_looked_back_at_for_longer():
    pace, totals = Pace(), JobTotals()
    for second in range(51):
        if second % 10 == 5:
            add(totals, answer())
        rates = pace.look(float(second), totals)
    assert rates.lines == pytest.approx(0.1)


def test_but_not_for_ever():
    pace, totals = Pace(), JobTotals()
    pace.look(0.0, totals)
    add(totals, answer(), 1000)
    for second in range(1, 70):
        rates = pace.look(float(second), totals)
    assert rates.lines == 0


def test_what_earlier_runs_did_is_not_speed():
    pace, totals = Pace(), JobTotals()
    pace.look(0.0, totals)
    add(totals, answer(), 500)
    totals.earlier = 500
    assert pace.look(1.0, totals) == Rates(None, None)
    add(totals, answer(), 3)
    assert pace.look(2.0, totals) == Rates(3.0, 90.0)
