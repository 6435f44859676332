"""What may arrive and how long it may take, over real HTTP and raw connections."""

import asyncio
import json
import tracemalloc

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from aigateway.clock import SYSTEM_CLOCK
from aigateway.server.http.admission import Admission
from aigateway.server.http.json_responses import JSONAnswer
from aigateway.server.http.limits import LimitedRequest
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer, converse, scripted_service
from tests.server.running import running

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


class Reader:
    """Reads the body, answers with its length, and remembers what it was asked."""

    def __init__(self, *, stubborn=False):
        self.lengths = []
        self.stubborn = stubborn

    async def __call__(self, scope, receive, send):
        try:
            body = await Request(scope, receive).body()
        except Exception:
            if not self.stubborn:
                raise
            await JSONResponse({"detail": "broken"}, 500)(scope, receive, send)
            return
        self.lengths.append(len(body))
        await JSONResponse({"length": len(body)})(scope, receive, send)


@pytest.fixture
def reader():
    return Reader()


def limited(service, app, clock=None):
    async def serve(scope, receive, send):
        settings = service.settings
        await LimitedRequest(scope, receive, send, settings, clock or service.clock).run(app)

    return serve


def error_of(raw):
    """Status, and OpenAI's form of an error, of a raw answer that is the only one."""
    head, _, body = raw.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


async def pieces(count, size=65536):
    for _ in range(count):
        yield b"x" * size


async def test_a_body_of_just_the_size_is_read(reader):
    async with (
        scripted_service(max_body_bytes=1000) as service,
        running(service, limited(service, reader)) as url,
        httpx.AsyncClient(timeout=PATIENCE) as client,
    ):
        assert (await client.post(url, content=b"x" * 1000)).json() == {"length": 1000}
        answer = await client.post(url, content=pieces(10, 100))
        assert answer.json() == {"length": 1000}
        assert "connection" not in answer.headers
        assert (await client.get(url)).json() == {"length": 0}


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_longer_one_is_refused_whatever_the_application_makes_of_it(chunked, stubborn):
    reader = Reader(stubborn=stubborn)
    body = pieces(10, 101) if chunked else b"x" * 1001
    async with (
        scripted_service(max_body_bytes=1000) as service,
        running(service, limited(service, reader)) as url,
        httpx.AsyncClient(timeout=PATIENCE) as client,
    ):
        answer = await client.post(url, content=body)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert (await client.get(url)).json() == {"length": 0}
    assert reader.lengths == [0]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_hundred_megabytes_are_never_held(reader, chunked):
    headers = {} if chunked else {"content-length": str(100 * 2**20)}
    async with (
        scripted_service(max_body_bytes=1_000_000) as service,
        running(service, limited(service, reader)) as url,
        httpx.AsyncClient(timeout=PATIENCE) as client,
    ):
        await client.get(url)
        tracemalloc.start()
        try:
            content = pieces(100, 2**20)
            answer = await client.post(url, content=content, headers=headers)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert most < 20_000_000
    assert reader.lengths == [0]


async def test_a_lengthy_promise_is_refused_at_once(reader):
    head = HEAD + b"Content-Length: 999999999999999999\r\nExpect: 100-continue\r\n\r\n"
    async with scripted_service() as service, running(service, limited(service, reader)) as url:
        status, error = error_of(await converse(url, head))
    assert (status, error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", 415),
        (b"Content-Encoding: br, identity\r\nContent-Length: 1\r\n\r\nx", 415),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", 400),
    ],
)
async def test_bodies_that_two_may_read_differently_are_not_read(reader, headers, status):
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with scripted_service() as service, running(service, limited(service, reader)) as url:
        assert error_of(await converse(url, HEAD + headers + smuggled))[0] == status
    assert reader.lengths == []


async def test_a_body_that_dribbles_is_given_up(reader):
    head = HEAD + b"Content-Length: 1000\r\n\r\n"
    dribble = [piece for _ in range(30) for piece in (b"x", 0.02)]
    async with (
        scripted_service(header_timeout=0.1) as service,
        running(service, limited(service, reader)) as url,
    ):
        raw = await converse(url, head, *dribble)
    status, error = error_of(raw)
    assert (status, error["code"]) == (408, "request_timeout")
    assert b"connection: close" in raw
    assert reader.lengths == []


async def test_a_body_that_keeps_coming_may_take_longer(clock):
    """A megabyte at 100 kB/s has 10 seconds and more than 15."""
    arrived = []

    async def receive():
        await clock.sleep(1)
        arrived.append(clock.now())
        more = len(arrived) < 10
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": more}

    reader, said = Reader(), []

    async def send(message):
        said.append(message)

    async with scripted_service(header_timeout=2) as service:
        app = limited(service, reader, clock)
        scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"1000000")]}
        serving = asyncio.create_task(app(scope | {"http_version": "1.1"}, receive, send))
        await clock.advance(11)
        await serving
    assert reader.lengths == [1_000_000]


def slow(seconds, *, first=None, clock=SYSTEM_CLOCK):
    """Answers after a while; with `first`, a stream that begins at once with that."""

    async def parts():
        yield first
        await clock.sleep(seconds)
        yield b"end"

    async def app(scope, receive, send):
        await Request(scope, receive).body()
        if first is None:
            await clock.sleep(seconds)
            await JSONResponse({})(scope, receive, send)
        else:
            await StreamingResponse(parts())(scope, receive, send)

    return app


async def test_an_answer_that_takes_too_long_is_given_up():
    async with (
        scripted_service(request_timeout=0.05) as service,
        running(service, limited(service, slow(10))) as url,
        httpx.AsyncClient(timeout=PATIENCE) as client,
    ):
        answer = await client.post(url, content=b"{}")
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "server_error"
    assert "0.05 seconds" in answer.json()["error"]["message"]


async def test_a_stream_has_that_time_for_its_first_content_only(clock):
    async with scripted_service(request_timeout=0.05) as service:
        app = limited(service, slow(10, first=b"begin ", clock=clock), clock)
        async with (
            running(service, app) as url,
            httpx.AsyncClient(timeout=PATIENCE) as client,
            client.stream("POST", url, content=b"{}") as answer,
        ):
            text = answer.aiter_text()
            assert await anext(text) == "begin "
            await clock.advance(10)
            assert [piece async for piece in text] == ["end"]
        app = limited(service, slow(10, first=b""))
        async with running(service, app) as url, httpx.AsyncClient(timeout=PATIENCE) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(url, content=b"{}")


async def test_an_error_of_the_application_is_its_own():
    async def broken(scope, receive, send):
        raise TimeoutError

    async with scripted_service() as service:
        scope = {"type": "http", "headers": [], "http_version": "1.1"}
        with pytest.raises(TimeoutError):
            await limited(service, broken)(scope, None, None)


@pytest.mark.parametrize(("path", "form"), [("/v1/models", "code"), ("/v1/messages", "type")])
async def test_an_answer_that_cannot_be_written_is_an_error_in_the_form_of_its_caller(
    path, form, caplog
):
    async def door(request):
        return JSONAnswer(b"{}", headers=[(b"x", b"a\nb")])

    async with scripted_service(keys=[api_key("a")]) as service:
        app = Admission(Reader(), service, service.clock, {("GET", path): door})
        async with running(service, app) as url, httpx.AsyncClient(timeout=PATIENCE) as client:
            answer = await client.get(url + path, headers=bearer("a"))
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/json"
    assert form in answer.json()["error"]
    assert "Invalid HTTP header" in caplog.text
    assert ("request-id" in answer.headers) == (path == "/v1/messages")


async def test_an_answer_given_before_the_body_was_read_ends_the_connection():
    async def hasty(scope, receive, send):
        await JSONResponse({"error": "no"}, 401)(scope, receive, send)

    body = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + body
    async with scripted_service() as service, running(service, limited(service, hasty)) as url:
        raw = await converse(url, body)
    assert raw.count(b"HTTP/1.1") == 1
    assert b"connection: close" in raw
