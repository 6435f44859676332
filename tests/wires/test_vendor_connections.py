"""The direct lane's requests and answers, byte by byte, and aiohttp's own as the measure."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import pytest
from yarl import URL

import aigateway
from aigateway.wires import http
from aigateway.wires.failures import classify
from aigateway.wires.http import SharedSession
from tests.processes import PATIENCE
from tests.wires.test_pools import CERTIFICATE

HEADERS = {"Authorization": "Bearer k", "Content-Type": "application/json", "X-Odd": "é"}
TEXT = b'{"a": "b"}'
LENGTH = b"Content-Length: %d\r\n" % len(TEXT)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + LENGTH + b"\r\n" + TEXT
PACKED, DEFLATED = gzip.compress(TEXT), zlib.compress(TEXT)
CLOSE, RESET = "close", "reset"


def coded(coding: bytes, body: bytes) -> bytes:
    return OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (coding, len(body), body)


ANSWERS: Mapping[str, tuple[bytes, str]] = {
    "length": (PLAIN, ""),
    "no length": (OK + b"\r\n" + TEXT, CLOSE),
    "chunked": (OK + CHUNKED + b'\r\n4\r\n{"a"\r\n6\r\n: "b"}\r\n0\r\n\r\n', ""),
    "extensions": (OK + CHUNKED + b'\r\n4;x=y\r\n{"a"\r\n6;z\r\n: "b"}\r\n0;q\r\n\r\n', ""),
    "trailers": (OK + CHUNKED + b"\r\na\r\n" + TEXT + b"\r\n0\r\nX-Sum: 1\r\n\r\n", ""),
    "old": (b"HTTP/1.0 200 OK\r\n\r\n" + TEXT, CLOSE),
    "old with length": (b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "closing": (OK + b"Connection: close\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + PLAIN, ""),
    "upgrade": (b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", ""),
    "bare upgrade": (b"HTTP/1.1 101 Switch\r\n\r\n", ""),
    "no content": (b"HTTP/1.1 204 None\r\n\r\n", ""),
    "not modified": (b"HTTP/1.1 304 Same\r\n" + LENGTH + b"\r\n", ""),
    "redirect": (b"HTTP/1.1 302 Go\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", ""),
    "error": (b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}", ""),
    "gzip": (coded(b"gzip", PACKED), ""),
    "deflate": (coded(b"deflate", DEFLATED), ""),
    "raw deflate": (coded(b"deflate", DEFLATED[2:-4]), ""),
    "half of gzip": (coded(b"gzip", PACKED[:-9]), ""),
    "no gzip": (coded(b"gzip", TEXT), ""),
    "unknown coding": (coded(b"cow", TEXT), ""),
    "repeated": (
        OK + b"X-A: 1\r\nx-a: 2\r\nServer: a\r\nServer: b\r\n" + LENGTH + b"\r\n" + TEXT,
        "",
    ),
    "bare lines": (PLAIN.replace(b"\r\n", b"\n"), ""),
    "odd bytes": (OK + b"X-A: \xff\xc3\xa9\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "long field": (OK + b"X-A: " + b"a" * 9000 + b"\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "long line": (b"HTTP/1.1 200 " + b"a" * 9000 + b"\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "many fields": (OK + b"X-A: a\r\n" * 40_000 + LENGTH + b"\r\n" + TEXT, ""),
    "both": (OK + CHUNKED + LENGTH + b"\r\na\r\n" + TEXT + b"\r\n0\r\n\r\n", ""),
    "two lengths": (OK + LENGTH + b"Content-Length: 3\r\n\r\n" + TEXT, ""),
    "same length twice": (OK + LENGTH + LENGTH + b"\r\n" + TEXT, ""),
    "negative": (OK + b"Content-Length: -1\r\n\r\n" + TEXT, CLOSE),
    "garbage behind": (PLAIN + b"\x00\x01garbage\r\n\r\n", ""),
    "part of another behind": (PLAIN + b"HTTP/1.1 2", ""),
    "another behind": (PLAIN + PLAIN, ""),
    "short": (PLAIN[:-1], CLOSE),
    "short and reset": (PLAIN[:-1], RESET),
    "short chunks": (OK + CHUNKED + b"\r\na\r\n" + TEXT + b"\r\n", CLOSE),
    "bad chunk": (OK + CHUNKED + b"\r\nzz\r\n" + TEXT, ""),
    "huge chunk": (OK + CHUNKED + b"\r\nffffffffffffffffff\r\n" + TEXT, ""),
    "half a head": (OK + b"Content-Le", CLOSE),
    "nothing": (b"", CLOSE),
    "reset": (b"", RESET),
    "no HTTP": (b"SSH-2.0-OpenSSH_9\r\n", ""),
    "null": (b"\x00" * 100, ""),
    "version": (b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "status": (b"HTTP/1.1 999 What\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "no status": (b"HTTP/1.1 OK\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "space in a name": (OK + b"X A: 1\r\n" + LENGTH + b"\r\n" + TEXT, ""),
    "folded": (OK + b"X-A: 1\r\n 2\r\n" + LENGTH + b"\r\n" + TEXT, ""),
}


class RawVendor:
    """Answers each request on a connection with the next reply, the last one for ever.

    Attributes:
        replies: The bytes, and what becomes of the connection then: "" keeps it.
        asked: The requests, each with the number of its connection.
        open: The connections that the client has not closed.
        opened: How many there ever were.
    """

    def __init__(self) -> None:
        self.replies: Sequence[tuple[bytes, str]] = [(PLAIN, "")]
        self.asked: list[tuple[int, bytes, bytes]] = []
        self.open: dict[int, asyncio.StreamWriter] = {}
        self.opened = 0
        self.read: Callable[[asyncio.StreamReader], Any] | None = None
        self.pieces = 0
        self.changed = asyncio.Event()
        self.is_asked = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.opened = self.opened, self.opened + 1
        self.open[number] = writer
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._answered(number, reader, writer):
                    pass
        finally:
            del self.open[number]
            self.changed.set()
            writer.close()

    async def _answered(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.read is not None:
            await self.read(reader)
            body = b""
        else:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        self.asked.append((number, head, body))
        self.is_asked.set()
        reply, then = self.replies[min(len(self.asked), len(self.replies)) - 1]
        size = -(-len(reply) // self.pieces) if self.pieces and reply else len(reply) or 1
        for start in range(0, len(reply), size):
            writer.write(reply[start : start + size])
            await asyncio.sleep(0)
        if then == RESET:
            await asyncio.sleep(0.01)  # what was written is read before
            writer.transport.abort()
        return not then

    async def end(self) -> None:
        """Close what is open."""
        for writer in self.open.values():
            writer.transport.abort()
        await self.is_left()

    async def is_left(self, connections: int = 0) -> None:
        """Wait until the client holds only so many connections."""
        async with asyncio.timeout(PATIENCE):
            while len(self.open) > connections:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def vendor() -> AsyncIterator[tuple[RawVendor, str]]:
    raw = RawVendor()
    server = await asyncio.start_server(raw, "127.0.0.1", 0)
    yield raw, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat?x=%2F"
    server.close()
    await raw.end()


@pytest.fixture
async def share() -> AsyncIterator[Callable[[str], SharedSession]]:
    made = []

    def make(url: str) -> SharedSession:
        made.append(SharedSession(url))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


async def through_aiohttp(url: str, headers: Mapping[str, str], body: bytes) -> Any:
    agent = {"User-Agent": f"aigateway/{aigateway.__version__}"}
    async with (
        aiohttp.ClientSession(headers=agent, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as one,
        one.post(
            URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
        ) as response,
    ):
        return response.status, response.headers, await response.read()


async def outcome(asking: Any) -> Any:
    """What comes of a request, as the rest of the gateway sees it."""
    try:
        answer = await asyncio.wait_for(asking, PATIENCE)
    except Exception as error:  # noqa: BLE001 - compared
        return classify(error, now_wall=0.0)
    if isinstance(answer, tuple):
        status, headers, body = answer
    else:
        status, headers, body = answer.status_code, answer.headers, answer.content
    return status, list(headers.items()), body


async def posted(session: SharedSession, body: bytes = TEXT, /, **headers: str) -> Any:
    return await outcome(session.post(HEADERS | headers, body, len))


async def streamed(session: SharedSession) -> Any:
    async def whole() -> Any:
        answer = await session.stream(HEADERS, TEXT)
        try:
            return answer.status, answer.headers, await answer.read()
        finally:
            session.leave(answer, kept=True)

    return await outcome(whole())


AT_ONCE = ("length", "interim", "garbage behind", "part of another behind", "another behind")


@pytest.mark.parametrize(
    ("name", "pieces"), [*((name, 7) for name in ANSWERS), *((name, 0) for name in AT_ONCE)]
)
async def test_every_answer_is_what_aiohttp_makes_of_it(vendor, share, name, pieces):
    raw, url = vendor
    raw.replies, raw.pieces = [ANSWERS[name]], pieces
    ours = await posted(share(url))
    assert ours == await outcome(through_aiohttp(url, HEADERS, TEXT))


async def test_a_request_is_what_aiohttp_sends(vendor, share):
    raw, url = vendor
    for headers in (HEADERS, {"accept": "a/b", "USER-AGENT": "me", "Host": "h", "X-A": "1"}, {}):
        await share(url).post(headers, TEXT, len)
        await through_aiohttp(url, headers, TEXT)
        (_, ours, body), (_, theirs, same) = raw.asked[-2:]
        assert sorted(ours.split(b"\r\n")) == sorted(theirs.split(b"\r\n"))
        assert ours.split(b"\r\n")[0] == b"POST /v1/chat?x=%2F HTTP/1.1"
        assert body == same == TEXT


@pytest.mark.parametrize("name", ["Connection", "transfer-encoding", "Expect"])
async def test_headers_of_the_transport_keep_their_meaning(vendor, share, name):
    raw, url = vendor
    session = share(url)
    if name == "Connection":
        assert (await posted(session, Connection="close"))[0] == 200
        assert raw.asked[0][1].lower().count(b"\r\nconnection: close\r\n") == 1
    else:
        given = {name: "chunked" if name == "transfer-encoding" else "100-continue"}
        raw.read = lambda reader: asyncio.sleep(0)
        ours = await outcome(session.post(given, TEXT, len))
        assert ours == await outcome(through_aiohttp(url, given, TEXT))


@pytest.mark.parametrize("text", ["a\r\nX-B: b", "a\nb", "a\rb"])
async def test_no_header_can_bring_another(vendor, share, text):
    raw, url = vendor
    session = share(url)
    for headers in ({"X-A": text}, {text: "a"}):
        with pytest.raises(ValueError):
            await session.post(headers, TEXT, len)
        with pytest.raises(ValueError):
            await session.stream(headers, TEXT)
    assert raw.asked == []


KEPT = {
    "bare upgrade",
    "length",
    "chunked",
    "extensions",
    "trailers",
    "interim",
    "no content",
    "error",
    "gzip",
}
NOT_KEPT = {"closing", "old with length", "garbage behind", "another behind", "upgrade"}


@pytest.mark.parametrize("name", sorted(KEPT | NOT_KEPT))
async def test_a_connection_is_used_again_only_if_its_answer_was_whole(vendor, share, name):
    raw, url = vendor
    raw.replies = [ANSWERS[name], (PLAIN, "")]
    session = share(url)
    await posted(session)
    assert (await posted(session))[0] == 200
    assert raw.opened == (1 if name in KEPT else 2)
    await raw.is_left(1)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", PLAIN, b"\x00", b"HTTP/1.1 408 Late\r\n\r\n"])
async def test_a_kept_connection_on_which_anything_came_is_not_used(vendor, share, said):
    raw, url = vendor
    session = share(url)
    await posted(session)
    (kept,) = raw.open.values()
    kept.write(said)
    if not said:
        kept.write_eof()
    await asyncio.sleep(0.02)
    assert (await posted(session))[2] == TEXT
    assert [number for number, _, _ in raw.asked] == [0, 1]
    await raw.is_left(1)


@pytest.mark.parametrize("ask", [posted, streamed])
@pytest.mark.parametrize("end", [CLOSE, RESET])
async def test_a_request_for_which_a_kept_connection_closes_is_sent_on_a_new_one(
    vendor, share, ask, end
):
    raw, url = vendor
    raw.replies = [(PLAIN, ""), (b"", end), (PLAIN, "")]
    session = share(url)
    await posted(session)
    assert (await ask(session))[0] == 200
    assert [number for number, _, _ in raw.asked] == [0, 0, 1]
    await raw.is_left(1)


@pytest.mark.parametrize("ask", [posted, streamed])
@pytest.mark.parametrize(
    ("replies", "connections"),
    [
        ([(b"", CLOSE)], [0]),
        ([(PLAIN, ""), (b"", CLOSE), (b"", CLOSE)], [0, 0, 1]),
        ([(PLAIN, ""), (b"HTTP/1.1 2", CLOSE)], [0, 0]),
    ],
    ids=["a new connection", "a new one after a kept one", "an answer has begun"],
)
async def test_else_it_is_not_sent_twice(vendor, share, ask, replies, connections):
    raw, url = vendor
    raw.replies = replies
    session = share(url)
    if replies[0] == (PLAIN, ""):
        await posted(session)
    failure = await ask(session)
    assert (failure.kind, failure.unreachable) == ("connection", False)
    assert [number for number, _, _ in raw.asked] == connections


async def test_a_request_that_may_have_been_read_is_not_sent_twice(vendor, share, monkeypatch):
    monkeypatch.setattr(http, "_STALE", 0.0)
    raw, url = vendor
    raw.replies = [(PLAIN, ""), (b"", CLOSE)]
    session = share(url)
    await posted(session)
    failure = await posted(session)
    assert (failure.kind, failure.unreachable) == ("connection", False)
    assert [number for number, _, _ in raw.asked] == [0, 0]


async def test_many_calls_beside_each_other_have_a_connection_each(vendor, share):
    raw, url = vendor
    session, other = share(url), share(url + "&other")
    for _ in range(3):
        answers = await asyncio.gather(
            *(posted(each, b"%d" % n) for n in range(30) for each in (session, other))
        )
        assert {status for status, _, _ in answers} == {200}
    assert raw.opened == len(raw.open) == 60
    assert {body for _, _, body in raw.asked} == {b"%d" % n for n in range(30)}


async def test_both_shares_of_a_vendor_use_the_same_connections(vendor, share):
    raw, url = vendor
    await posted(share(url))
    await posted(share(url + "&other"))
    assert raw.opened == 1


@pytest.mark.parametrize("reply", [b"", OK, OK + LENGTH + b"\r\n" + TEXT[:4]], ids=len)
@pytest.mark.parametrize("ends", ["cancelled", "too slow", "closed"])
async def test_a_call_that_ends_early_closes_its_connection(
    vendor, share, monkeypatch, reply, ends
):
    raw, url = vendor
    raw.replies = [(reply, "")]
    if ends == "too slow":
        monkeypatch.setattr(http, "LONGEST_CALL", 0.05)
        monkeypatch.setattr(http, "_KEEP_ALIVE", 0.05)
        monkeypatch.setattr(http, "_SWEEPS", 0.01)
    session = share(url)
    task = asyncio.create_task(posted(session))
    await raw.is_asked.wait()
    await asyncio.sleep(0.01)
    if ends == "cancelled":
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    elif ends == "closed":
        await session.aclose()
        assert (await task).kind == "connection"
    else:
        failure = await task
        assert (failure.kind, failure.unreachable) == ("timeout", False)
    await raw.is_left()


async def test_an_idle_connection_is_closed_after_a_minute(vendor, share, monkeypatch):
    raw, url = vendor
    monkeypatch.setattr(http, "_KEEP_ALIVE", 0.1)
    monkeypatch.setattr(http, "_SWEEPS", 0.01)
    session = share(url)
    await asyncio.gather(posted(session), posted(session))
    response = await session.stream(HEADERS, TEXT)  # which may last
    await raw.is_left(1)
    assert await response.read() == TEXT
    session.leave(response, kept=True)
    await raw.is_left()


async def test_a_share_that_ends_leaves_the_bounds_of_the_others(vendor, share, monkeypatch):
    raw, url = vendor
    monkeypatch.setattr(http, "LONGEST_CALL", 0.3)
    monkeypatch.setattr(http, "_KEEP_ALIVE", 0.1)
    monkeypatch.setattr(http, "_SWEEPS", 0.01)
    raw.replies = [(OK + LENGTH + b"\r\n", ""), (PLAIN, ""), (b"", "")]
    ended, other = share(url), share(url)
    opening = asyncio.create_task(ended.stream(HEADERS, TEXT))
    await raw.is_asked.wait()
    await ended.aclose()
    ended.leave(await opening, kept=False)
    await raw.is_left()
    assert (await posted(other))[2] == TEXT
    await raw.is_left()  # idle for too long
    assert (await posted(other)).kind == "timeout"
    await raw.is_left()


async def test_a_whole_stream_of_a_closed_share_serves_the_others(vendor, share):
    raw, url = vendor
    ended, other = share(url), share(url)
    opening = asyncio.create_task(ended.stream(HEADERS, TEXT))
    await raw.is_asked.wait()
    await ended.aclose()
    response = await opening
    assert await response.read() == TEXT
    ended.leave(response, kept=True)
    assert (await posted(other))[2] == TEXT
    assert raw.opened == 1


async def test_one_connection_cannot_stop_the_sweep(vendor, share, monkeypatch):
    raw, url = vendor
    monkeypatch.setattr(http, "_KEEP_ALIVE", 0.05)
    monkeypatch.setattr(http, "_SWEEPS", 0.01)
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    session = share(url)
    await asyncio.gather(posted(session), posted(session))
    pool = session._shared.pool
    first = next(iter(pool.idle.values()))[0]
    lent, first.lent = first.lent, None  # discarding it raises an error
    await raw.is_left()
    lent.close()
    assert [type(each["exception"]) for each in errors] == [AttributeError]


@pytest.mark.parametrize("name", ["X-A", "Connection"])
async def test_a_pool_that_its_loop_has_closed_is_replaced(vendor, share, monkeypatch, name):
    raw, url = vendor
    monkeypatch.setattr(http, "_KEEP_ALIVE", 0.2)
    monkeypatch.setattr(http, "_SWEEPS", 0.01)
    session = share(url)
    old = session._pool()
    response = await session.stream(HEADERS, TEXT)
    raw.replies = [(PLAIN, ""), (b"", ""), (PLAIN, "")]
    raw.is_asked.clear()
    waiting = asyncio.create_task(posted(session))
    await raw.is_asked.wait()
    await old.aclose()
    assert (await waiting).kind == "connection"
    session.leave(response, kept=False)
    await raw.is_left()
    assert (await posted(session, **{name: "keep-alive"}))[2] == TEXT
    assert (await posted(session, **{name: "keep-alive"}))[2] == TEXT
    assert raw.opened == 3
    assert not old._lent
    await raw.is_left()  # idle for too long
    assert not session._pool()._lent


@pytest.mark.parametrize("name", ["X-A", "Connection"])
async def test_a_call_that_looks_its_vendor_up_fails_when_its_pool_is_closed(
    share, monkeypatch, name
):
    looking = asyncio.Event()

    async def never(*asked, **options):
        looking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    session = share("http://vendor.invalid/")
    asking = asyncio.create_task(posted(session, **{name: "keep-alive"}))
    await looking.wait()
    await session.aclose()
    assert (await asking).kind == "connection"
    session = share("http://vendor.invalid/")
    looking.clear()
    asking = asyncio.create_task(posted(session, **{name: "keep-alive"}))
    await looking.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_megabytes_reach_a_vendor_that_reads_slowly(vendor, share):
    raw, url = vendor
    body = bytes(range(256)) * 32_768
    assert (await posted(share(url), body))[0] == 200
    assert raw.asked[0][2] == body


async def test_an_answer_before_the_request_is_read(vendor, share):
    raw, url = vendor
    raw.read = lambda reader: asyncio.sleep(0)
    raw.replies = [(b"HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\n{}", "")]
    session = share(url)
    status, _, body = await posted(session, b" " * 16_000_000)
    assert (status, body) == (413, b"{}")
    await raw.is_left()


async def test_a_stream_that_is_not_read_stops_its_vendor(vendor, share):
    raw, url = vendor
    raw.replies = [(OK + CHUNKED + b"\r\n", ""), (PLAIN, "")]
    session = share(url)
    response = await session.stream(HEADERS, TEXT)
    (writer,) = raw.open.values()
    piece = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    written = 0
    with contextlib.suppress(TimeoutError):
        while written < 2000:
            writer.write(piece)
            written += 1
            await asyncio.wait_for(writer.drain(), 0.2)
    assert written < 1000  # 64 MB: what the system's buffers take, and half a megabyte of ours
    writer.write(b"0\r\n\r\n")
    assert len(await response.read()) == written * 65_536
    session.leave(response, kept=True)
    assert (await posted(session))[0] == 200
    assert raw.opened == 1


async def test_a_stream_whose_end_is_late_leaves_its_connection_for_the_next(vendor, share):
    raw, url = vendor
    raw.replies = [(OK + CHUNKED + b"\r\na\r\n" + TEXT + b"\r\n", ""), (PLAIN, "")]
    session = share(url)
    response = await session.stream(HEADERS, TEXT)
    assert await response.content.read(100) == TEXT
    session.leave(response, kept=True)
    (writer,) = raw.open.values()
    writer.write(b"0\r\n\r\n")
    await asyncio.sleep(0.02)
    assert (await posted(session))[0] == 200
    assert raw.opened == 1


@pytest.mark.parametrize("kept", [True, False])
async def test_a_stream_that_is_left_is_closed(vendor, share, kept):
    raw, url = vendor
    raw.replies = [(OK + CHUNKED + b"\r\na\r\n" + TEXT + b"\r\n", "")]
    session = share(url)
    session.leave(await session.stream(HEADERS, TEXT), kept=kept)
    await raw.is_left()


async def test_certificates_come_from_the_environment(share, monkeypatch, tmp_path):
    pem = tmp_path / "certificate.pem"
    pem.write_text(CERTIFICATE)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    raw = RawVendor()
    server = await asyncio.start_server(raw, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    failure = await posted(share(url))
    assert (failure.kind, failure.unreachable) == ("connection", True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    http.tls_context.cache_clear()
    try:
        session = share(url)
        assert [(await posted(session))[2] for _ in range(2)] == [TEXT, TEXT]
    finally:
        http.tls_context.cache_clear()
    assert {number for number, _, _ in raw.asked} == {raw.opened - 1}
    server.close()
    await raw.end()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://name.invalid/"])
async def test_no_connection_is_what_aiohttp_says(share, url):
    ours = await posted(share(url))
    assert ours == await outcome(through_aiohttp(url, HEADERS, TEXT))
    assert (ours.kind, ours.unreachable) == ("connection", True)
