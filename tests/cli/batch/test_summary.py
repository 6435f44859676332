import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from aigateway.batch.files.totals import JobTotals
from aigateway.cli.batch import summary
from aigateway.cli.batch.summary import Summary, plain_summary, print_summary
from tests.cli.batch.jobs import ANSWER, LONG, OPENAI, mixed_totals, widest

WHOLE = Summary(mixed_totals(), 103, 50.0, None, Path("in.jsonl"), Path("out.jsonl"))
STOPPED = Summary(
    mixed_totals(),
    1103,
    50.0,
    "interrupted",
    Path("in.jsonl"),
    Path("out.jsonl"),
    Path("errors.jsonl"),
    Path("report.html"),
    1_790_000_000.0,
)


def printed(ended, width=120):
    out = io.StringIO()
    print_summary(Console(file=out, width=width), ended)
    return out.getvalue()


def test_the_figures():
    text = printed(STOPPED)
    for words in (
        r"job +stopped: interrupted",
        r"answered +100 of 1,103 lines",
        r"failed +3\b",
        r"left +1,000 \(continue with --resume",
        r"cached +4\b",
        r"tokens +960 in, 1,920 out",
        r"cost +\$0\.0900 and 6 answers without a price",
        r"time +0:50, 2\.1 lines/s",
        r"latency +p50 4\.\d+ s, p95 8\.\d+ s, p99 \d\.\d+ s",
        r"answers +out\.jsonl",
        r"errors +errors\.jsonl",
        r"report +report\.html",
        rf"{OPENAI} +90 +4\.\d+ s .* 900 +1,800 +\$0\.0900 +timeout 6",
        r"6 +\d+ ms .* 60 +120 +- +-",
        r"error +lines",
        r"internal_error +3",
    ):
        assert re.search(words, text), (words, text)


def test_a_complete_job():
    text = printed(WHOLE)
    assert re.search(r"job +complete", text)
    assert "left" not in text
    assert "errors.jsonl" not in text


def test_a_job_that_did_not_stop_and_is_not_done():
    unfinished = Summary(JobTotals(), 2, 0.0, None, Path("in"), Path("out"))
    assert re.search(r"job +not complete", printed(unfinished))


def test_speed_is_that_of_this_run():
    totals = mixed_totals()
    totals.earlier = 93
    summary = Summary(totals, 103, 5.0, None, Path("in"), Path("out"))
    assert summary.lines_per_second == pytest.approx(2.0)
    assert re.search(r"earlier runs +93 of these lines", printed(summary))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_fits_and_leaves_no_figure_out(width):
    text = printed(STOPPED, width)
    assert widest(text) <= width
    assert "…" not in text
    for figure in ("$0.0900", "timeout 6", "internal_error", "90", "p99"):
        assert figure in text


def test_plain_values_are_the_same_figures():
    plain = json.loads(json.dumps(plain_summary(STOPPED)))
    assert plain["lines"] == {
        "total": 1103,
        "answered": 100,
        "failed": 3,
        "left": 1000,
        "cached": 4,
        "earlier": 0,
    }
    assert plain["tokens"]["prompt"] == 960
    assert plain["cost_usd"] == pytest.approx(0.09)
    assert plain["unpriced_answers"] == 6
    assert plain["errors_by_code"] == {"internal_error": 3}
    assert plain["stopped"] == "interrupted"
    assert (plain["input"], plain["output"], plain["errors"]) == (
        "in.jsonl",
        "out.jsonl",
        "errors.jsonl",
    )
    latency = plain["latency_seconds"]
    assert 8.6 <= latency["p95"] <= 8.6 * 1.05
    assert latency["highest"] == 9.0
    providers = plain["providers"]
    assert providers[OPENAI]["failures"] == {"timeout": 6}
    assert providers[OPENAI]["latency_seconds"]["p50"] == pytest.approx(4.5, rel=0.05)
    assert (providers[LONG]["answers"], providers[LONG]["unpriced_answers"]) == (6, 6)


def test_plain_values_of_nothing():
    plain = plain_summary(Summary(JobTotals(), 0, 0.0, None, Path("in"), Path("out")))
    assert plain["latency_seconds"] == dict.fromkeys(("mean", "p50", "p95", "p99", "highest"))
    assert plain["lines_per_second"] is None
    assert plain["errors"] is None
    assert plain["providers"] == {}


def test_no_answer_is_in_it():
    assert ANSWER not in printed(STOPPED)
    assert ANSWER not in json.dumps(plain_summary(STOPPED))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.234, "1.23 s"),
        (12.34, "12.3 s"),
        (99.96, "100 s"),
        (1234.0, "1,234 s"),
    ],
)
def test_durations(seconds, text):
    assert summary.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (192, "3:12"),
        (3900, "1:05:00"),
        (86_400 * 2 + 3, "2 d 0:00:03"),
    ],
)
def test_clock_times(seconds, text):
    assert summary.clock_time(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "100.0 %"),
        (0, 10, "0.0 %"),
        (1, 20_000, "<0.1 %"),
        (1200, 20_000, "6.0 %"),
        (19_999, 20_000, "99.9 %"),
        (3, 3, "100.0 %"),
    ],
)
def test_a_hundred_percent_is_all(part, whole, text):
    assert summary.percent(part, whole) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, "-"), (0.0, "0.00"), (0.05, "0.05"), (3.21, "3.2"), (99.97, "100"), (1234.0, "1234")],
)
def test_rates(rate, text):
    assert summary.per_second(rate) == text


def test_dollars():
    assert summary.dollars(0.01234) == "$0.0123"
    assert summary.dollars(1234.5) == "$1,234.50"


def test_a_name_cannot_move_the_cursor():
    assert summary.printable("a\x1b[2J\r\nb é") == "a?[2J??b é"
