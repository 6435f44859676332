"""What happens on a connection before there is a request, over raw sockets."""

import asyncio
import contextlib
import gc
import json
import logging
import re
from functools import partial
from urllib.parse import urlsplit

import pytest

from aigateway.server.http.connections import GuardedProtocol, _network
from aigateway.settings import ServerSettings
from tests.processes import PATIENCE
from tests.server.callers import converse, scripted_service
from tests.server.running import running
from tests.server.visitors import eventually

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = GET[:-2] + b"Connection: close\r\n\r\n"


def headers_of(raw):
    lines = raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines)


def status_of(raw):
    """The status of a refusal, which has the form and the headers of each other one."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    headers = headers_of(raw)
    assert headers["connection"] == "close"
    assert headers["content-length"] == str(len(body))
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert headers["date"]
    return int(head.split()[1])


class Timed:
    """An event loop whose timers a clock of the test has."""

    def __init__(self, loop, clock):
        self._loop = loop
        self._clock = clock

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def time(self):
        return self._clock.now()

    def call_at(self, when, callback, *args):
        timer = self._clock.call_later(when - self._clock.now(), partial(callback, *args))
        timer.when = lambda: when
        return timer


@pytest.fixture
def timed(monkeypatch, clock):
    """The clock that ends connections."""
    begin = GuardedProtocol.__init__

    def init(self, *args, **options):
        begin(self, *args, **options)
        self.loop = Timed(self.loop, clock)

    monkeypatch.setattr(GuardedProtocol, "__init__", init)
    return clock


def dribble(pieces):
    return [each for piece in pieces for each in (piece, 1.0)]


async def test_a_head_that_dribbles_is_given_up(timed):
    head = dribble(bytes([byte]) for byte in b"GET /health HTTP")
    async with scripted_service(header_timeout=10) as service, running(service) as url:
        raw = await converse(url, *head, clock=timed)
    assert status_of(raw) == 408


async def test_headers_without_end_are_given_up(timed):
    headers = dribble(b"x-%d: 1\r\n" % number for number in range(20))
    async with scripted_service(header_timeout=10) as service, running(service) as url:
        raw = await converse(url, GET[:-2], *headers, clock=timed)
    assert status_of(raw) == 408


async def test_who_says_nothing_is_left():
    async with scripted_service(header_timeout=0.05) as service, running(service) as url:
        assert await converse(url) == b""


async def test_the_next_head_on_a_connection_has_to_come_as_soon(timed):
    head = dribble(bytes([byte]) for byte in GET[:16])
    async with scripted_service(header_timeout=10) as service, running(service) as url:
        raw = await converse(url, GET, 1.0, *head, clock=timed)
    assert raw.startswith(b"HTTP/1.1 200")
    assert status_of(raw[raw.index(b"HTTP/1.1 408") :]) == 408


async def test_requests_that_come_together_or_in_pieces_are_answered(timed):
    bounds = {"header_timeout": 10, "keep_alive_timeout": 10}
    async with scripted_service(**bounds) as service, running(service) as url:
        pieces = [GET + GET[:9], 4.0, GET[9:20], 4.0, GET[20:] + GET, 8.0, GET, 8.0, LAST]
        raw = await converse(url, *pieces, clock=timed)
    assert raw.count(b"HTTP/1.1 200") == 5


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize("piece", [3, 40_000])
async def test_empty_lines_without_end_are_given_up(before, piece):
    lines = b"\r\n" * 17_000
    async with scripted_service() as service, running(service) as url:
        flood = [lines[at : at + piece] for at in range(0, len(lines), piece)]
        raw = await converse(url, before, *flood, LAST)
        # It closes before all is read, so that the answer may be lost in the reset.
        assert raw.count(b"HTTP/1.1 200") <= (before != b"")
        assert service.refusal_log.counts == {"431": 1}


@pytest.mark.parametrize("before", [b"", GET])
async def test_empty_lines_prolong_nothing(timed, before):
    """A connection without a request ends when it would have ended without them."""
    bounds = {"header_timeout": 10, "keep_alive_timeout": 20}
    lines = dribble([b"\r\n", b"\r", b"\n"] * 20)
    async with scripted_service(**bounds) as service, running(service) as url:
        raw = await converse(url, before, *lines, LAST, clock=timed)
    assert raw.count(b"HTTP/1.1 200") == (before != b"")


async def test_an_empty_line_behind_a_body_shortens_nothing(timed):
    """Old clients send one: the connection is idle as long as others."""
    bounds = {"header_timeout": 10, "keep_alive_timeout": 60}
    body = b'{"message":"hi"}'
    head = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with scripted_service(**bounds) as service, running(service) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"POST /chat HTTP/1.1\r\nHost: localhost\r\n%b%b\r\n" % (head, body))
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await timed.advance(55)
            writer.write(b"\r\n" + LAST)
            assert b"HTTP/1.1 200" in await reader.read()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("size", [40_000, 10_000_000])
async def test_a_head_may_not_be_large(size):
    head = GET[:-2] + b"x-large: " + b"x" * size + b"\r\n\r\n"
    async with scripted_service() as service, running(service) as url:
        raw = await converse(url, head)
        # Ten megabytes are never read, so that the answer may be lost in the reset.
        assert not raw or status_of(raw) == 431
        assert raw or size > 1_000_000
        assert (await converse(url, LAST)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x00\x00\x00\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /hea lth HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: a\x00b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\x7f: a\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_the_form_of_the_rest(junk):
    async with scripted_service() as service, running(service) as url:
        assert status_of(await converse(url, junk)) == 400


@pytest.mark.parametrize(
    "junk",
    [
        b"hello\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx-request-id: r 1\r\n\r\n",  # neither a host nor a sound id
        GET[:-2] + b"x-large: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /health HTTP/2.0\r\n\r\n",
        GET[:20],
    ],
)
async def test_the_log_knows_a_refusal_by_its_id(junk, caplog):
    async with scripted_service(header_timeout=0.1) as service, running(service) as url:
        raw = await converse(url, junk)
    refused = f"got HTTP {status_of(raw)} for request {headers_of(raw)['x-request-id']}."
    assert [record.message for record in caplog.records if refused in record.message]


async def test_a_refusal_of_what_has_been_read_has_the_callers_id(caplog):
    head = b"POST /chat HTTP/1.1\r\nContent-Type: application/json\r\nX-Request-ID: r-%d\r\n"
    bodies = b"Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with scripted_service() as service, running(service) as url:
        no_host = await converse(url, head % 1 + b"\r\n")
        no_chunk = await converse(url, head % 2 + bodies + b"zzz\r\n")
        later = await converse(url, head % 3 + bodies, 0.05, b"zzz\r\n")
        behind = await converse(url, GET[:-2] + b"X-Request-ID: r-4\r\n\r\n", 0.02, b"junk\r\n\r\n")
    ids = [headers_of(raw)["x-request-id"] for raw in (no_host, no_chunk, later)]
    assert ids == ["r-1", "r-2", "r-3"]
    answered, refused = behind.split(b"HTTP/1.1 400")
    assert headers_of(answered)["x-request-id"] == "r-4"
    assert re.fullmatch("[0-9a-f]{32}", headers_of(refused)["x-request-id"])


async def test_a_body_that_breaks_has_the_id_that_its_request_was_given():
    seen = []

    async def app(scope, receive, send):
        scope["state"]["request_id"] = "made-here"
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])

    head = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with scripted_service() as service, running(service, app) as url:
        raw = await converse(url, head, 0.05, b"zzz\r\n")
    assert headers_of(raw)["x-request-id"] == "made-here"


async def test_a_broken_chunk_within_a_body_closes_only_its_connection(caplog):
    head = b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    caplog.set_level(logging.ERROR)
    async with scripted_service() as service, running(service) as url:
        raw = await converse(url, head, b"1\r\nx\r\n", 0.02, b"zzz\r\n")
        assert raw.startswith((b"HTTP/1.1 400", b"HTTP/1.1 405"))
        assert raw.count(b"HTTP/1.1") == 1
    assert not caplog.records


async def is_answered(url):
    return (await converse(url, LAST)).startswith(b"HTTP/1.1 200")


async def test_more_connections_than_allowed_are_turned_away():
    async with scripted_service(max_connections=2) as service, running(service) as url:
        parts = urlsplit(url)
        held = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(2)]
        raw = await converse(url)
        assert status_of(raw) == 503
        assert b"retry-after: 1" in raw
        for _, writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await eventually(lambda: is_answered(url))


async def test_one_address_may_not_have_all_connections():
    async with (
        scripted_service(max_connections_per_address=2, max_connections=3) as service,
        running(service) as url,
    ):
        parts = urlsplit(url)
        held = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(2)]
        raw = await converse(url)
        assert status_of(raw) == 429
        assert b"too_many_connections" in raw
        assert b"retry-after: 1" in raw
        for _, writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await eventually(lambda: is_answered(url))


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a socket", "a socket"),
    ],
)
def test_of_ipv6_a_network_counts(address, counted):
    assert _network(address) == counted


async def test_a_connection_without_a_request_is_not_kept_for_ever():
    async with scripted_service(keep_alive_timeout=0.05) as service, running(service) as url:
        raw = await converse(url, GET)
    assert raw.count(b"HTTP/1.1 200") == 1


async def test_a_new_time_for_idle_connections_holds_for_new_ones():
    async with scripted_service(keep_alive_timeout=600) as service, running(service) as url:
        service.settings = ServerSettings(keep_alive_timeout=0.05)
        assert (await converse(url, GET)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "line", [b"GET /health HTTP/2.0", b"PRI * HTTP/2.0", b"GET /health HTTP/0.9", b"GET / HTTP/3.0"]
)
async def test_no_other_http_is_spoken(line):
    async with scripted_service() as service, running(service) as url:
        raw = await converse(url, line + b"\r\nHost: localhost\r\n\r\n", GET)
    assert status_of(raw) == 505
    assert raw.count(b"HTTP/1.1 ") == 1


def left():
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, GuardedProtocol)]


async def test_nothing_is_left_of_connections_that_are_gone():
    async with scripted_service(header_timeout=30) as service, running(service) as url:
        parts = urlsplit(url)
        for _ in range(20):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(b"GET /hea")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        await eventually(lambda: not left())
