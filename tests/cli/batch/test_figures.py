import pytest

from aigateway.cli.batch import summary as figures


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
    assert figures.duration(seconds) == text


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
    assert figures.clock_time(seconds) == text


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
    assert figures.percent(part, whole) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, "-"), (0.0, "0.00"), (0.05, "0.05"), (3.21, "3.2"), (99.97, "100"), (1234.0, "1234")],
)
def test_rates(rate, text):
    assert figures.per_second(rate) == text


def test_dollars():
    assert figures.dollars(0.01234) == "$0.0123"
    assert figures.dollars(1234.5) == "$1,234.50"


def test_nobody_moves_the_cursor_by_a_name():
    assert figures.printable("a\x1b[2J\r\nb é") == "a?[2J??b é"
