"""Where a request begins and ends: nothing that two servers could read differently is accepted."""

import asyncio
import contextvars
import json
import logging

import pytest
import uvicorn
from uvicorn.server import ServerState

from aigateway.server.http.connections import protocol_for
from aigateway.server.service import Service
from tests.processes import PATIENCE
from tests.server.callers import converse, scripted_service
from tests.server.running import running

HOST = b"Host: localhost\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def get(rest, target=b"/a", version=b"HTTP/1.1"):
    return b"GET %b %b\r\n%b%b\r\n" % (target, version, HOST, rest)


def post(headers, body=b""):
    return b"POST /a HTTP/1.1\r\n%b%b\r\n%b" % (HOST, headers, body)


def chunks(body):
    return post(CHUNKED, body)


SOUND = {
    "a body": (post(b"Content-Length: 2\r\n", b"hi"), "POST /a hi"),
    "spaces around a length": (post(b"Content-Length: \t2 \r\n", b"hi"), "POST /a hi"),
    "a length of nothing": (post(b"Content-Length: 0\r\n"), "POST /a "),
    "no length": (post(b""), "POST /a "),
    "a body that looks like a request": (
        post(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
        f"POST /a {SMUGGLED.decode()}",
    ),
    "chunks": (chunks(b"1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n"), "POST /a hi"),
    "a chunk that looks like the end": (
        chunks(b"7\r\n0\r\n\r\nhi\r\n0\r\n\r\n"),
        "POST /a 0\r\n\r\nhi",
    ),
    "a chunk of blank lines": (chunks(b"6\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"), "POST /a \r\n\r\n\r\n"),
    "trailers": (chunks(b"1\r\nh\r\n0\r\nx-one: 1\r\nx-two: 2\r\n\r\n"), "POST /a h"),
    "chunks in capitals": (post(b"Transfer-Encoding: Chunked\r\n", b"0\r\n\r\n"), "POST /a "),
    "an upgrade with a body": (
        post(
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n", b"hi"
        ),
        "POST /a hi",
    ),
    "an upgrade with chunks": (
        post(b"Connection: upgrade\r\nUpgrade: h2c\r\n" + CHUNKED, b"2\r\nhi\r\n0\r\n\r\n"),
        "POST /a hi",
    ),
    "an upgrade": (get(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), "GET /a "),
    "a method of nobody": (b"BREW /a HTTP/1.1\r\n" + HOST + b"\r\n", "BREW /a "),
    "CONNECT": (b"CONNECT /a HTTP/1.1\r\n" + HOST + b"\r\n", "CONNECT /a "),
    "a method of WebDAV": (b"PROPFIND /a HTTP/1.1\r\n" + HOST + b"\r\n", "PROPFIND /a "),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "OPTIONS * "),
    "a whole address": (get(b"", b"http://other/a?b"), "GET /a "),
    "an address of a host": (get(b"", b"HTTPS://other:1"), "GET / "),
    "an address with a query alone": (get(b"", b"http://other?b"), "GET / "),
    "OPTIONS of a host": (
        b"OPTIONS http://other HTTP/1.1\r\n" + HOST + b"\r\n",
        "OPTIONS * ",
    ),
    "an escaped path": (get(b"", b"/%61%2f?b"), "GET /a/ "),
    "an address with a port": (get(b"", b"http://[::1]:65535/a"), "GET /a "),
    "an empty line before": (b"\r\n" + get(b""), "GET /a "),
    "empty lines before": (b"\r\n" * 5 + get(b""), "GET /a "),
    "an empty line behind": (get(b"") + b"\r\n", "GET /a "),
    "an empty line behind a body": (post(b"Content-Length: 2\r\n", b"hi\r\n"), "POST /a hi"),
    "empty lines behind chunks": (chunks(b"2\r\nhi\r\n0\r\n\r\n\r\n\r\n"), "POST /a hi"),
    "empty lines before a large head": (
        b"\r\n\r\n" + get(b"x: %b\r\n" % (b"x" * 32_700)),
        "GET /a ",
    ),
    "bytes beyond ASCII in a value": (get(b"x: \xff\r\n"), "GET /a "),
}
"""Requests, and what the application sees of each."""

BAD = {
    "a length and chunks": post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED),
    "chunks and a length": post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
    "two lengths": post(b"Content-Length: 1\r\nContent-Length: 2\r\n", b"x" + SMUGGLED),
    "the same length twice": post(b"Content-Length: 1\r\nContent-Length: 1\r\n", b"x" + SMUGGLED),
    "a list of lengths": post(b"Content-Length: 1, 1\r\n", b"x" + SMUGGLED),
    "an empty length": post(b"Content-Length: \r\n", SMUGGLED),
    "a length with a sign": post(b"Content-Length: +1\r\n", b"x" + SMUGGLED),
    "a negative length": post(b"Content-Length: -1\r\n", SMUGGLED),
    "a length with a line": post(b"Content-Length: 1_0\r\n", b"x" * 10 + SMUGGLED),
    "a length in hexadecimal": post(b"Content-Length: 0x1\r\n", b"x" + SMUGGLED),
    "a length in two": post(b"Content-Length: 1 0\r\n", b"x" + SMUGGLED),
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551617\r\n", b"x" + SMUGGLED),
    "a coding before chunks": post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "a coding after chunks": post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
    "chunks twice": post(CHUNKED + CHUNKED, b"0\r\n\r\n"),
    "a coding and chunks in two lines": post(
        b"Transfer-Encoding: gzip\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED
    ),
    "identity and chunks in two lines": post(
        b"Transfer-Encoding: identity\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED
    ),
    "an empty coding and chunks": post(
        b"Transfer-Encoding:\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED
    ),
    "chunks and identity in two lines": post(
        CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n" + SMUGGLED
    ),
    "an unknown coding": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "identity": post(b"Transfer-Encoding: identity\r\n"),
    "a coding behind a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "a quoted coding": post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "an empty coding": post(b"Transfer-Encoding:\r\n", b"0\r\n\r\n"),
    "bare LF": b"GET /a HTTP/1.1\nHost: localhost\n\n" + SMUGGLED,
    "bare LF behind a header": get(b"x: y\nz: a\r\n"),
    "bare LF at the end": b"GET /a HTTP/1.1\r\nHost: localhost\r\n\n" + SMUGGLED,
    "bare CR": get(b"x: y\rz: a\r\n"),
    "a folded header": get(b"x: y\r\n z\r\n"),
    "a folded line": b"GET /a HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a space before the colon": get(b"Content-Length : 5\r\n"),
    "a tab before the colon": get(b"Content-Length\t: 5\r\n"),
    "no colon": get(b"x\r\n"),
    "no name": get(b": x\r\n"),
    "a zero in a value": get(b"x: a\x00b\r\n"),
    "a zero in a name": get(b"x\x00: a\r\n"),
    "a control in a value": get(b"x: a\x01b\r\n"),
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "two hosts": get(b"Host: other\r\n"),
    "bare LF before": b"\n" + SMUGGLED,
    "bare CR before": b"\r" + SMUGGLED,
    "bare CR before an empty line": b"\r\r\n" + SMUGGLED,
    "bare LF behind an empty line": b"\r\n\n" + SMUGGLED,
    "bare CR behind an empty line": b"\r\n\r" + SMUGGLED,
    "a line of a space before": b" \r\n" + SMUGGLED,
    "a space behind an empty line": b"\r\n " + SMUGGLED,
    "a header behind an empty line": b"\r\nHost: localhost\r\n" + SMUGGLED,
    "two spaces": get(b"", b" /a"),
    "two spaces behind": get(b"", b"/a "),
    "a space behind the version": get(b"", version=b"HTTP/1.1 "),
    "a tab in the target": get(b"", b"/a\tb"),
    "a star without OPTIONS": get(b"", b"*"),
    "a path without a slash": get(b"", b"a"),
    "an address without a host": get(b"", b"http:///a"),
    "an address with a user": get(b"", b"http://user:secret@localhost/a"),
    "an address with a fragment": get(b"", b"http://localhost/a#b"),
    "an address with a port that cannot be": get(b"", b"http://localhost:65536/a"),
    "an address with a long port": get(b"", b"http://localhost:%b/a" % (b"9" * 5000)),
    "an address with a port that is no number": get(b"", b"http://localhost:x/a"),
    "a path with a fragment": get(b"", b"/a#b"),
    "a query with a fragment": get(b"", b"/a?b#c"),
    "an address of another scheme": get(b"", b"ftp://localhost/a"),
    "an address and no host": b"GET http://localhost/a HTTP/1.1\r\n\r\n",
    "an address and two hosts": get(b"Host: other\r\n", b"http://localhost/a"),
    "a tunnel": b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /a\r\n\r\n",
    "RTSP": get(b"", version=b"RTSP/1.0"),
    "a version in small letters": get(b"", version=b"http/1.1"),
}
"""Requests that the application does not see, nor what comes behind."""

BAD_CHUNKS = {
    "bare LF behind a size": b"1\nx\r\n0\r\n\r\n" + SMUGGLED,
    "bare LF behind a chunk": b"1\r\nx\n0\r\n\r\n" + SMUGGLED,
    "bare LF behind an extension": b"1;a\nx\r\n0\r\n\r\n" + SMUGGLED,
    "bare LF at the end": b"0\r\n\n" + SMUGGLED,
    "a space behind a size": b"1 \r\nx\r\n0\r\n\r\n" + SMUGGLED,
    "a size with 0x": b"0x1\r\nx\r\n0\r\n\r\n" + SMUGGLED,
    "a negative size": b"-1\r\nx\r\n0\r\n\r\n" + SMUGGLED,
    "a size beyond 64 bits": b"10000000000000001\r\nx\r\n0\r\n\r\n" + SMUGGLED,
    "no size": b"\r\nx\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk longer than its size": b"1\r\nxy\r\n0\r\n\r\n" + SMUGGLED,
    "a length as a trailer": b"0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
    "a trailer without a colon": b"0\r\nx\r\n\r\n" + SMUGGLED,
    "an extension without end": b"1;" + b"x" * 40_000 + b"\r\nx\r\n0\r\n\r\n",
    "trailers without end": b"0\r\n" + b"x: y\r\n" * 8000 + b"\r\n",
}


class Echo:
    """An application that answers with what it has seen."""

    service: Service
    url: str

    def __init__(self):
        self.seen = []
        self.headers = []

    async def __call__(self, scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        else:
            return
        self.seen.append(f"{scope['method']} {scope['path']} {body.decode()}")
        self.headers.append(scope["headers"])
        length = (b"content-length", b"2")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def echo():
    app = Echo()
    async with scripted_service() as service, running(service, app) as url:
        app.service, app.url = service, url
        yield app


class Line(asyncio.Transport):
    """A connection of which everything is kept."""

    def __init__(self):
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data):
        self.writes.append(data)

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def in_pieces(service, app, data, size):
    """Let a protocol read that much at once; return its line."""
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    protocol = protocol_for(service)(config, ServerState(), {}, asyncio.get_running_loop())
    line = Line()
    protocol.connection_made(line)
    for at in range(0, len(data), size):
        if not line.closed:
            protocol.data_received(data[at : at + size])
    for _ in range(30):
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return line


async def test_sound_requests_end_where_they_should(echo):
    for name, (request, seen) in SOUND.items():
        raw = await converse(echo.url, request + LAST)
        assert (echo.seen, raw.count(b"HTTP/1.1 200")) == ([seen, "GET /last "], 2), name
        for size in (1, 2, 3, 7):
            echo.seen.clear()
            await in_pieces(echo.service, echo, request + LAST, size)
            assert echo.seen == [seen, "GET /last "], (name, size)
        echo.seen.clear()
    assert not [header for headers in echo.headers for header in headers if header[0] == b"x-one"]


@pytest.mark.parametrize(
    "headers", [b"Host: localhost\r\nx: y\r\n", b"x: y\r\nHost: localhost\r\n"]
)
async def test_the_host_of_a_whole_address_counts(echo, headers):
    """RFC 9112, 3.2.2."""
    await converse(echo.url, b"GET http://other:1/a HTTP/1.1\r\n%b\r\n" % headers + LAST)
    await converse(echo.url, b"GET http://other/a HTTP/1.0\r\n\r\n")
    first, _, old = echo.headers
    assert first == [(b"host", b"other:1"), (b"x", b"y")]
    assert old == [(b"host", b"other")]


async def test_chunks_end_where_they_should_also_where_parts_of_a_body_meet(echo):
    for size in range(4070, 4100):
        body = b"x" * size
        await in_pieces(
            echo.service, echo, chunks(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)) + LAST, 9999
        )
        assert echo.seen == [f"POST /a {body.decode()}", "GET /last "], size
        echo.seen.clear()


async def test_what_two_servers_could_read_differently_is_refused(echo):
    for name, request in BAD.items():
        raw = await converse(echo.url, request, LAST)
        assert raw.startswith(b"HTTP/1.1 400 "), (name, raw)
        assert raw.count(b"HTTP/1.1") == 1, (name, raw)
        for size in (1, 2, 3, 7):
            raw = b"".join((await in_pieces(echo.service, echo, request + LAST, size)).writes)
            assert raw.startswith(b"HTTP/1.1 400 "), (name, size, raw)
        assert echo.seen == [], name


async def test_nothing_behind_broken_chunks_is_a_request(echo, caplog):
    caplog.set_level(logging.ERROR)
    for name, body in BAD_CHUNKS.items():
        raw = await converse(echo.url, chunks(body), LAST)
        assert raw.startswith(b"HTTP/1.1 400 "), (name, raw)
        for size in (1, 5, 4096):
            raw = b"".join((await in_pieces(echo.service, echo, chunks(body) + LAST, size)).writes)
            assert raw.startswith(b"HTTP/1.1 400 "), (name, size, raw)
        assert echo.seen == [], name
    assert not caplog.records


async def test_a_caller_that_asks_first_is_told_to_go_on(echo):
    head = post(b"Expect: 100-continue\r\nContent-Length: 2\r\n")
    raw = await converse(echo.url, head, 0.05, b"hi" + LAST)
    assert raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert echo.seen == ["POST /a hi", "GET /last "]
    assert b"100 Continue" not in await converse(echo.url, head + b"hi" + LAST)


async def test_http_1_0_gets_no_chunks_and_a_closed_connection():
    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    async with scripted_service() as service, running(service, stream) as url:
        old = await converse(url, b"GET / HTTP/1.0\r\n\r\n", LAST)
        new = await converse(url, LAST)
    assert old.partition(b"\r\n\r\n")[2] == b"ab"
    assert b"connection: close" in old
    assert b"transfer-encoding" not in old
    assert new.partition(b"\r\n\r\n")[2] == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"


async def test_the_head_of_an_answer_is_written_with_its_body():
    async with scripted_service() as service:
        line = await in_pieces(service, Echo(), LAST, 1000)
    (written,) = line.writes
    assert written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert written.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize(
    "header",
    [(b"x", b"a\r\ny: b"), (b"x", b"a\nb"), (b"x", b"a\x00"), (b"x: y", b"a"), (b"", b"a")],
)
async def test_no_header_of_an_answer_ends_its_line(header, caplog):
    async def split(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [header]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with scripted_service() as service, running(service, split) as url:
        raw = await converse(url, LAST)
    assert raw.startswith(b"HTTP/1.1 500 ")
    assert raw.endswith(b"\r\n\r\nInternal Server Error")
    assert "Invalid HTTP header" in caplog.text


@pytest.mark.parametrize("bodies", [[b"abc"], [b"a"], [b"a", b""], [b"", b"abc"]])
async def test_an_answer_of_another_length_than_it_says_is_none(bodies, caplog):
    async def wrong(scope, receive, send):
        length = (b"content-length", b"2")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        for number, body in enumerate(bodies, 1):
            more = number < len(bodies)
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async with scripted_service() as service, running(service, wrong) as url:
        raw = await converse(url, SMUGGLED, LAST)
    assert raw.count(b"HTTP/1.1") == 1
    assert b"HTTP/1.1 200" not in raw or len(raw.partition(b"\r\n\r\n")[2]) < 2
    assert "Content-Length" in caplog.text


@pytest.mark.parametrize("is_cut", [False, True])
async def test_an_answer_in_place_of_one_without_a_length_has_its_length(is_cut):
    async def fails(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        if not is_cut:
            raise LookupError
        scope["extensions"]["aigateway.connection"].stop()
        await asyncio.sleep(PATIENCE)

    async with scripted_service() as service, running(service, fails) as url:
        head, _, body = (await converse(url, LAST)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 " if is_cut else b"HTTP/1.1 500 ")
    assert b"transfer-encoding" not in head
    assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body)["error"] if is_cut else body == b"Internal Server Error"


async def test_requests_of_one_connection_share_no_context():
    seen = contextvars.ContextVar("seen", default=0)
    found = []

    async def app(scope, receive, send):
        found.append(seen.get())
        seen.set(1)
        body = 0
        while (message := await receive())["more_body"]:
            body += len(message["body"])
        await Echo()(scope, lambda: asyncio.sleep(0, message), send)

    large = post(b"Content-Length: 300000\r\n", b"x" * 300_000)
    async with scripted_service() as service, running(service, app) as url:
        raw = await converse(url, large + SMUGGLED, 0.05, SMUGGLED + LAST)
    assert raw.count(b"HTTP/1.1 200") == 4
    assert found == [0] * 4


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_address_behind_a_trusted_proxy(trusted, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1" if trusted else "192.0.2.1")
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["client"][0], scope["scheme"]))
        await Echo()(scope, receive, send)

    proxied = get(b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n")
    async with scripted_service() as service, running(service, app) as url:
        await converse(url, proxied + LAST)
    assert seen == [
        ("192.0.2.7", "https") if trusted else ("127.0.0.1", "http"),
        ("127.0.0.1", "http"),
    ]


async def test_an_application_hears_at_once_that_its_caller_is_gone():
    gone = asyncio.Event()

    async def app(scope, receive, send):
        cycle = scope["extensions"]["aigateway.connection"]
        cycle.on_disconnect = gone.set
        assert (await receive())["type"] == "http.request"
        await gone.wait()
        assert cycle.disconnected
        assert (await receive())["type"] == "http.disconnect"

    async with scripted_service() as service, running(service, app) as url:
        _, port = url.rsplit(":", 1)
        _, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(get(b""))
        await asyncio.sleep(0.02)
        assert not gone.is_set()
        writer.close()
        async with asyncio.timeout(PATIENCE):
            await gone.wait()


async def test_a_body_of_tiny_chunks_holds_up_nothing_else(echo):
    body = b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"
    flood = asyncio.create_task(converse(echo.url, chunks(body) + LAST))
    turns = 0
    while not flood.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await flood).count(b"HTTP/1.1 200") == 2
    assert echo.seen[0] == "POST /a " + "x" * 40_000
    assert turns > 50


async def test_what_is_refused_says_so_in_json(echo):
    raw = await converse(echo.url, b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert json.loads(body)["error"]["message"] == "HTTP/2.0 is not supported; use HTTP/1.1."
