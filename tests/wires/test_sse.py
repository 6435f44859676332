"""The event parser, against the standard's algorithm written down word for word."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.wires.stream_reading import LONGEST_EVENT, EventParser


def by_the_standard(stream):
    """https://html.spec.whatwg.org/multipage/server-sent-events.html, line by line."""
    *lines, _ = re.split(b"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    events, data, name = [], b"", b""
    for whole in lines:
        if not whole:
            if data:
                events.append((name, data[:-1]))
            data, name = b"", b""
            continue
        if whole.startswith(b":"):
            continue
        field, value = whole, b""
        if b":" in whole:
            field, value = whole.split(b":", 1)
            value = value[1:] if value.startswith(b" ") else value
        if field == b"event":
            name = value
        elif field == b"data":
            data += value + b"\n"
    return events


def parsed(*pieces):
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


LINES = st.one_of(
    st.sampled_from(
        [
            b"",
            b"data",
            b"data:",
            b"data: ",
            b"data:  two spaces",
            b'data: {"a": 1}',
            b'data:{"a": 1}',
            b"event: error",
            b"event:ping",
            b"id: 7",
            b"retry: 3",
            b": comment",
            b":",
            b"database: no",
            b"\xef\xbb\xbf",
            "data: Ærlig 🎉".encode(),
        ]
    ),
    st.binary(max_size=8),
)
STREAMS = st.lists(
    st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"])), max_size=12
).map(lambda lines: b"".join(line + end for line, end in lines))


@given(STREAMS, st.booleans())
def test_the_standard(stream, marked):
    stream = b"\xef\xbb\xbf" * marked + stream
    expected = by_the_standard(stream)
    # A carriage return at the very end may be half of a line's end.
    assert parsed(stream) == expected


@given(STREAMS, st.lists(st.integers(0, 200), max_size=6))
def test_any_cuts(stream, cuts):
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert parsed(*pieces) == by_the_standard(stream)


@given(STREAMS)
def test_byte_by_byte(stream):
    assert parsed(*(stream[i : i + 1] for i in range(len(stream)))) == by_the_standard(stream)


def test_every_single_cut_of_a_vendors_stream():
    stream = (
        b'event: message_start\ndata: {"type": "message_start"}\n\n: ping\n\n'
        b'data: {"a": "b"}\r\n\r\ndata: one\ndata: two\n\ndata: [DONE]\n\n'
    )
    expected = [
        (b"message_start", b'{"type": "message_start"}'),
        (b"", b'{"a": "b"}'),
        (b"", b"one\ntwo"),
        (b"", b"[DONE]"),
    ]
    for cut in range(len(stream) + 1):
        assert parsed(stream[:cut], stream[cut:]) == expected


def test_an_event_without_its_empty_line_comes_at_the_end():
    parser = EventParser()
    assert parser.feed(b"data: [DONE]\n") == []
    assert parser.end() == [(b"", b"[DONE]")]
    assert parser.end() == []


@pytest.mark.parametrize(
    "piece", [b"x" * 65_536, b"data: " + b"x" * 65_530 + b"\n"], ids=["one-line", "many-lines"]
)
def test_an_event_has_a_longest_length(piece):
    parser = EventParser()
    for _ in range(LONGEST_EVENT // len(piece)):
        assert parser.feed(piece) == []
        assert not parser.is_too_long
    assert parser.feed(piece) == []
    assert parser.is_too_long


def test_a_long_event_in_small_pieces_is_whole():
    parser = EventParser()
    body = b"x" * 3_000_000
    stream = b"data: " + body + b"\n\n"
    events = [e for i in range(0, len(stream), 1000) for e in parser.feed(stream[i : i + 1000])]
    assert events == [(b"", body)]
    assert not parser.is_too_long
