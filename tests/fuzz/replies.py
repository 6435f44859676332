"""What may come over the wire: right, wrong, and lying about itself."""

from __future__ import annotations

import gzip
import itertools
import zlib
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.json_values import VALUES, mutated, written
from tests.fuzz.raw_server import End, Reply
from tests.fuzz.wires import ERRORS, STREAMS, sse

__all__ = ["answers", "rarely", "streams"]

_STATUSES = st.sampled_from(
    [
        200,
        200,
        200,
        200,
        201,
        204,
        206,
        301,
        304,
        400,
        401,
        402,
        403,
        404,
        408,
        409,
        413,
        418,
        422,
        429,
        429,
        429,
        451,
        499,
        500,
        502,
        503,
        503,
        504,
        529,
        599,
    ]
)
_START_LINES = st.builds(lambda status: b"HTTP/1.1 %d Well" % status, _STATUSES)
_ODD_START_LINES = st.sampled_from(
    [
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/1.1 103 Early",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 999 What",
        b"HTTP/1.1 099 What",
        b"HTTP/1.1 -200 OK",
        b"HTTP/1.1 200",
        b"HTTP/2 200 OK",
        b"HTTP/9.9 200 OK",
        b"",
        b"\x00",
        b"ICY 200 OK",
    ]
) | st.binary(max_size=20)
_TIMES = (
    st.sampled_from(
        [
            "NaN",
            "nan",
            "-1",
            "-0",
            "0",
            "1",
            "0.5",
            "1e3",
            "inf",
            "Infinity",
            str(10**12),
            "9" * 5000,
            "1" * 18 + "." + "1" * 18,
            "",
            " ",
            "soon",
            "1,2",
            "+5",
            "0x10",
            "٣",
            "Wed, 21 Oct 2015 07:28:00 GMT",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Wed, 21 Oct 2015",
            "Mon, 00 Jan 0000 00:00:00 GMT",
            "Fri, 31 Dec 9999 23:59:59 -2359",
            "Oct",
            "Wed, 21 Oct 2015 07:28:00 +99999999",
            "Thu, 01 Jan 1 99:99:99 GMT",
            "2030-01-01T00Z",
            "1s",
            "6m0s",
            "12ms",
            "1h2m3.5s",
            "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00+23:59",
            "0001-01-01T00:00:00Z",
            "2030-01-01T00:00:00-23:59:59.999999",
        ]
    )
    | st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30)
    | st.integers().map(str)
    | st.floats().map(str)
)
_TIME_HEADERS = st.sampled_from(
    [
        "Retry-After",
        "retry-after-ms",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-requests-reset",
        "anthropic-ratelimit-tokens-reset",
        "Date",
    ]
)
_COUNT_HEADERS = st.sampled_from(
    [
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-tokens-remaining",
    ]
)
_OTHER_HEADERS = st.sampled_from(
    [("Content-Type", kind) for kind in ("application/json", "text/html", "text/event-stream", "?")]
    + [("Content-Type", "application/json; charset=utf-7"), ("Content-Type", "x; charset=nonsense")]
    + [("Location", "http://127.0.0.1:1/"), ("Set-Cookie", "a=b"), ("Trailer", "x"), ("X", "\xff")]
    + [("Upgrade", "websocket"), ("x" * 9000, "x"), ("X", "x" * 70000), ("openai-version", "")]
)
_HEADERS = st.lists(
    st.tuples(_TIME_HEADERS, _TIMES)
    | st.tuples(_COUNT_HEADERS, st.sampled_from(["0", "00", "-1", "NaN", "", "7"]))
    | _OTHER_HEADERS,
    max_size=4,
)
_CLOSE: End = "close"
_RESET: End = "reset"
_ENDS = st.sampled_from([_CLOSE, _CLOSE, _CLOSE, _RESET])


def rarely(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> Any:
    """The other one in one of eight examples."""
    return st.integers(0, 7).flatmap(lambda n: other if n == 7 else usual)


@st.composite
def bodies(draw: st.DrawFn, templates: list[Any]) -> bytes:
    """An answer that is nearly right, an error, any JSON, any bytes."""
    kind = draw(st.sampled_from(["answer"] * 5 + ["error"] * 2 + ["json", "list", "cut", "bytes"]))
    if kind in {"json", "list"}:
        return written(draw(VALUES)) if kind == "json" else written([draw(VALUES)])
    if kind == "bytes":
        return draw(st.binary(max_size=200) | st.sampled_from([b"", b"<html>", b"\xef\xbb\xbf{}"]))
    body = written(draw(mutated(ERRORS if kind == "error" else templates)))
    return body[: draw(st.integers(0, len(body)))] if kind == "cut" else body


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """Headers that say how long the body is and how it is written, or lie about it."""
    headers: list[tuple[str, str]] = []
    coding = draw(rarely(st.none(), st.sampled_from(["gzip", "deflate", "br", "zstd", "x, y", ""])))
    if coding is not None:
        headers.append(("Content-Encoding", coding))
        if draw(st.booleans()):
            body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
            body = body[: draw(st.sampled_from([len(body), len(body), len(body) // 2]))]
    framing = draw(st.sampled_from(["length"] * 4 + ["chunked"] * 2 + ["none", "lie", "garbage"]))
    if framing == "length":
        headers.append(("Content-Length", str(len(body))))
    elif framing == "lie":
        lies = [len(body) + 1, max(0, len(body) - 1), 10**12, -1, "", "x", "9" * 5000, "1, 2"]
        headers.append(("Content-Length", str(draw(st.sampled_from(lies)))))
    elif framing != "none":
        headers.append(("Transfer-Encoding", draw(st.sampled_from(["chunked", "chunked", "cow"]))))
        body = _chunked(draw, body, spoiled=framing == "garbage")
    return headers, body


def _chunked(draw: st.DrawFn, body: bytes, *, spoiled: bool) -> bytes:
    middle = draw(st.integers(0, len(body)))
    parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:]) if part]
    last = b"0\r\n\r\n"
    if not spoiled:
        return b"".join([*parts, last])
    garbage = draw(
        st.sampled_from([b"", b"zz\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab\r\n"])
        | st.binary(max_size=12)
    )
    parts.insert(draw(st.integers(0, len(parts))), garbage)
    return b"".join([*parts, draw(st.sampled_from([last, b"", b"0\r\nx: y\r\n\r\n", b"0\r\n"]))])


@st.composite
def answers(draw: st.DrawFn, templates: list[Any]) -> Reply:
    """A reply to a request for an answer in one piece."""
    return _reply(draw, draw(bodies(templates)), plain=draw(st.booleans()))


@st.composite
def streams(draw: st.DrawFn, wire: str) -> Reply:
    """A reply to a request for a stream: its events mutated, its bytes cut somewhere."""
    events = [dict(e) if isinstance(e, dict) else e for e in STREAMS[wire]]
    changed = draw(mutated([STREAMS[wire]]) | mutated([STREAMS[wire]]) | st.just(events))
    if draw(st.integers(0, 7)) == 7:
        changed.insert(draw(st.integers(0, len(changed))), draw(mutated(ERRORS)))
    texts = [b"[DONE]" if event == "[DONE]" else written(event) for event in changed]
    ends = draw(rarely(st.just(b"\n\n"), st.sampled_from([b"\r\n\r\n", b"\r\r", b"\n", b""])))
    body = sse(wire, texts, ends)
    spoil = draw(st.sampled_from(["no", "no", "no", "cut", "insert", "overwrite"]))
    place = draw(st.integers(0, len(body)))
    if spoil == "cut":
        body = body[:place]
    elif spoil != "no":
        bytes_ = draw(st.binary(min_size=1, max_size=6) | st.sampled_from([b"\n\n", b": x\n\n"]))
        body = body[:place] + bytes_ + body[place + len(bytes_) * (spoil == "overwrite") :]
    return _reply(draw, body, plain=draw(st.integers(0, 3)) > 0)


def _reply(draw: st.DrawFn, body: bytes, *, plain: bool = False) -> Reply:
    start = b"HTTP/1.1 200 OK" if plain else draw(rarely(_START_LINES, _ODD_START_LINES))
    if plain:
        body = _chunked(draw, body, spoiled=False)
        headers = [("Transfer-Encoding", "chunked")]
    else:
        more, body = draw(framed(body))
        headers = [*draw(_HEADERS), *more]
    lines = [start, *(f"{n}: {v}".encode("latin-1", "replace") for n, v in headers), b"", b""]
    whole = b"\r\n".join(lines) + body
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    bounds = [0, *cuts, len(whole)]
    pieces = tuple(whole[a:b] for a, b in itertools.pairwise(bounds) if a < b)
    return Reply(pieces, "hold" if draw(st.integers(0, 60)) == 60 else draw(_ENDS))
