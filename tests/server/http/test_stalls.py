"""No request holds up the others: `/health` is answered beside whatever is sent or not read.

What is measured is the CPU time of this process, or of the event loop's thread where the work is
meant to be in another one, while one `/health` is under way. The bound is
0.1 s, or what parsing a body of the same size takes four times, where the processor itself is slow.
A busy machine only ever adds to a measurement (caches are cold, a thread is woken late), so the
least of three counts, here as in the bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import orjson
import pytest

from aigateway import AsyncGateway, LLMConfig
from aigateway.server.http.sse import Turns
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.simulator import Simulator
from aigateway.testing import FakeClock
from tests.server.callers import scripted_service
from tests.server.running import running
from tests.server.visitors import eventually

pytestmark = pytest.mark.slow

SIZE = 18_000_000
HI = b'"messages":[{"role":"user","content":"hi"}]'
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def many(item: bytes, size: int = SIZE) -> bytes:
    return b",".join([item] * (size // (len(item) + 1)))


def text(content: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":"' + content + b'"}]}'


def beside_hi(field: bytes) -> bytes:
    return b"{" + HI + b"," + field + b"}"


BODIES: dict[str, Callable[[], bytes]] = {
    "empty messages": lambda: b'{"messages":[' + many(b"{}") + b"]}",
    "lists": lambda: b'{"messages":[' + many(b"[]") + b"]}",
    "keys": lambda: b"{" + b",".join(b'"%d":1' % key for key in range(1_300_000)) + b"}",
    "the same key": lambda: b"{" + many(b'"a":{}') + b"}",
    "deep": lambda: b'{"messages":' * (SIZE // 12),
    "tools": lambda: beside_hi(b'"tools":[' + many(b'{"type":"function"}') + b"]"),
    "stop": lambda: beside_hi(b'"stop":[' + many(b'"a"') + b"]"),
    "bias": lambda: beside_hi(b'"logit_bias":{' + many(b'"1":[]') + b"}"),
    "wrong messages": lambda: b'{"messages":[' + many(b'{"a":1}', 390_000) + b"]}",
    "biases": lambda: beside_hi(
        b'"logit_bias":{' + b",".join(b'"%d":[]' % n for n in range(49_000)) + b"}"
    ),
    "quotes and commas": lambda: text(b'\\",' * (SIZE // 3)),
    "only strings": lambda: b'{"messages":[' + b'""' * (SIZE // 2) + b'"' + b"," * 200_000 + b'"]}',
    "escapes": lambda: text(b"\\u00e9" * (SIZE // 6)),
    "emoji": lambda: text("\N{GRINNING FACE}".encode() * (SIZE // 4)),
    "number": lambda: beside_hi(b'"seed":' + b"9" * SIZE),
    "model": lambda: beside_hi(b'"model":"' + b"m" * SIZE + b'"'),
    "type": lambda: b'{"messages":[{"role":"user","content":[{"type":"' + b"x" * SIZE + b'"}]}]}',
    "name": lambda: beside_hi(b'"' + b"n" * SIZE + b'":1'),
}
LEGAL: dict[str, Callable[[], bytes]] = {
    "a long text": lambda: text(b"x" * 9_500_000),
    "a long table": lambda: text(b"1,2," * 2_000_000),
    "a picture": lambda: (
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,'
        + b"A" * 9_500_000
        + b'"}}]}]}'
    ),
    "many messages": lambda: (
        b'{"messages":[' + many(b'{"role":"user","content":"hi"}', 300_000) + b"]}"
    ),
}


def conversation(turns: int, calls: int) -> bytes:
    """Messages with so many tool calls in each turn, and their results."""
    call = '{"id":"c%d","type":"function","function":{"name":"f","arguments":"{}"}}'
    result = '{"role":"tool","tool_call_id":"c%d","content":"r"}'
    messages = ['{"role":"user","content":"hi"}']
    for turn in range(turns):
        own = range(turn * calls, (turn + 1) * calls)
        made = ",".join(call % number for number in own)
        messages += ['{"role":"assistant","tool_calls":[' + made + "]}"]
        messages += [result % number for number in own]
    return f'{{"messages":[{",".join(messages)}]}}'.encode()


def schema(depth: int) -> bytes:
    inner = b'{"type":"string"}'
    for _ in range(depth):
        inner = b'{"type":"object","properties":{"a":' + inner + b',"b":{"type":"string"}}}'
    return inner


def tool(parameters: bytes, name: bytes = b"f") -> bytes:
    function = b'{"name":"' + name + b'","parameters":' + parameters + b"}"
    return b'{"type":"function","function":' + function + b"}"


HARD: dict[str, Callable[[], bytes]] = {
    "tool calls": lambda: conversation(8, 250),
    "tools": lambda: beside_hi(
        b'"tools":[' + b",".join(tool(schema(1), b"f%d" % n) for n in range(1000)) + b"]"
    ),
    "schemas": lambda: beside_hi(b'"tools":[' + b",".join([tool(schema(40))] * 100) + b"]"),
    "pictures": lambda: (
        b'{"messages":[{"role":"user","content":['
        + b",".join(
            [b'{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}']
            * 9900
        )
        + b"]}]}"
    ),
}
"""Right, and hard to put into a vendor's words."""


class Health:
    """Asks `/health` again and again, and remembers the CPU time of the longest."""

    def __init__(self, url: str, cpu: Callable[[], float]) -> None:
        self._url = url
        self._cpu = cpu
        self.longest = 0.0
        self.answered = 0

    async def watch(self) -> None:
        parts = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with contextlib.closing(writer):
            while True:
                began = self._cpu()
                writer.write(HEALTH)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readexactly(len(b'{"status":"ok"}'))
                self.longest = max(self.longest, self._cpu() - began)
                self.answered += 1


@contextlib.asynccontextmanager
async def watched(url: str, cpu: Callable[[], float] = time.process_time) -> AsyncIterator[Health]:
    health = Health(url, cpu)
    watching = asyncio.create_task(health.watch())
    try:
        yield health
        seen = health.answered
        await eventually(lambda: health.answered > seen + 1 or watching.done())
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture(scope="module")
def vendors() -> Iterator[Simulator]:
    """Simulated vendors on a thread of their own: what they do is not the service's work."""
    with Simulator.in_thread() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def allowed() -> float:
    """Seconds of CPU time that one `/health` may take."""
    gc.collect()
    gc.freeze()  # as `aigateway serve` does: to look through all that is loaded takes 0.3 s
    body = text(b"x" * SIZE)
    times = []
    for _ in range(3):
        began = time.process_time()
        orjson.loads(body)
        times.append(time.process_time() - began)
    return max(0.1, 4 * min(times))


async def measured(attempt: Callable[[], Awaitable[Health]], allowed: float) -> float:
    """The least of three measurements; one below what is allowed is enough."""
    longest = math.inf
    for _ in range(3):
        longest = min(longest, (await attempt()).longest)
        if longest < allowed:
            break
    return longest


@contextlib.contextmanager
def line_to(url):
    parts = urlsplit(url)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((parts.hostname, parts.port))
        line.setblocking(False)
        yield line


def head_of(length: str, path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\n{length}\r\n\r\n"
    ).encode()


async def status_of(url: str, head: bytes, body: bytes) -> int:
    """Send a request, as cheaply as possible. Returns the status."""
    loop = asyncio.get_running_loop()
    with line_to(url) as line:
        await loop.sock_sendall(line, head)
        await loop.sock_sendall(line, body)
        came = b""
        while piece := await loop.sock_recv(line, 65_536):
            came += piece
    return int(came.split()[1])


@pytest.mark.parametrize("name", BODIES)
async def test_no_hostile_body_holds_up_others(name, allowed):
    body = BODIES[name]()

    async def attempt():
        async with scripted_service() as service, running(service) as url:
            async with watched(url) as health:
                status = await status_of(url, head_of(f"Content-Length: {len(body)}"), body)
            assert status in ({200} if name == "escapes" else {400})
            return health

    assert await measured(attempt, allowed) < allowed


@pytest.mark.parametrize("name", LEGAL)
async def test_no_long_body_that_is_right_holds_up_others(name, allowed):
    body = LEGAL[name]()

    async def attempt():
        async with scripted_service() as service, running(service) as url, watched(url) as health:
            assert await status_of(url, head_of(f"Content-Length: {len(body)}"), body) == 200
        return health

    assert await measured(attempt, allowed) < allowed


@pytest.mark.parametrize("wire", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("name", HARD)
async def test_no_translation_holds_up_others(vendors, name, wire, allowed):
    # Of the loop's own thread: translation in another one may use the CPU meanwhile, and on a busy
    # machine it does so for as long as the loop waits for a core.
    cpu, body = time.thread_time, HARD[name]()
    config = getattr(vendors, wire).config(name="a")

    async def attempt():
        async with AsyncGateway([config], retry_rounds=0, cache_enabled=False) as gateway:
            await gateway.warmup()
            gc.freeze()  # what this has loaded, too
            service = Service(gateway, ServerSettings())
            async with running(service) as url, watched(url, cpu) as health:
                await status_of(url, head_of(f"Content-Length: {len(body)}"), body)
        return health

    assert await measured(attempt, allowed) < allowed


async def test_a_body_in_tiny_chunks_holds_up_no_request(allowed):
    chunks = b"1\r\n{\r\n" * 60_000 + b"0\r\n\r\n"
    for path, status in (("/v1/chat/completions", 400), ("/health", 405)):
        head = head_of("Transfer-Encoding: chunked", path)

        async def attempt(head=head, status=status):
            async with scripted_service() as it, running(it) as url, watched(url) as health:
                assert await status_of(url, head, chunks) == status
            return health

        assert await measured(attempt, allowed) < allowed


async def test_a_body_in_tiny_chunks_is_whole():
    body = text(b"x" * 5000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    async with scripted_service() as service, running(service) as url:
        assert await status_of(url, head_of("Transfer-Encoding: chunked"), chunks) == 200


TALKER = """
import asyncio, json
delta = {"index": 0, "delta": {"content": "some words"}, "finish_reason": None}
chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
block = f"data: {json.dumps({**chunk, 'choices': [delta]})}\\n\\n".encode() * 400

async def talk(reader, writer):
    try:
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n\\r\\n")
        for _ in range(8_000_000 // len(block)):
            writer.write(block)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def main():
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
"""A vendor who says 8 MB, as fast as they are taken, in a process of its own."""


@contextlib.asynccontextmanager
async def talker() -> AsyncIterator[str]:
    """The vendor's base URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TALKER, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}/v1"
    finally:
        process.kill()
        await process.wait()


async def test_fast_streams_that_are_not_read_hold_up_no_request(allowed):
    # The callers' ends, and both ends of each connection's making, are work of this process, too.
    # Without turns thirty answers take minutes.
    allowed *= 3
    async with talker() as base:
        assert await measured(lambda: beside_unread_streams(base, 100), allowed) < allowed


async def beside_unread_streams(base: str, readers: int) -> Health:
    loop = asyncio.get_running_loop()
    config = LLMConfig("openai", "m", name="a", api_key="k", api_base=base)
    async with AsyncGateway([config], retry_rounds=0, max_concurrency=readers) as gateway:
        await gateway.warmup()
        gc.freeze()  # what this has loaded, too
        service = Service(gateway, ServerSettings())
        async with running(service) as url, watched(url) as health:
            with contextlib.ExitStack() as stack:
                for number in range(readers):
                    line = stack.enter_context(line_to(url))
                    asked = b'{"messages":[{"role":"user","content":"%d"}],"stream":true}'
                    asked %= number
                    head = head_of(f"Content-Length: {len(asked)}")
                    await loop.sock_sendall(line, head + asked)
                await eventually(lambda: gateway.providers[0].in_flight == readers)
                seen = health.answered
                await eventually(lambda: health.answered > seen + 30)
            await eventually(lambda: not gateway.providers[0].in_flight)
    return health


class Ticking(FakeClock):
    """A clock on which whatever is done takes a millisecond."""

    def now(self) -> float:
        self.told = getattr(self, "told", 0.0) + 0.001
        return self.told


async def test_streams_that_never_wait_share_a_turn_of_the_loop():
    turns, sent, most = Turns(Ticking()), 0, 0

    async def stream() -> None:
        nonlocal sent
        for _ in range(50):
            await turns.take()
            sent += 1

    streams = [asyncio.create_task(stream()) for _ in range(200)]
    while not all(one.done() for one in streams):
        before = sent
        await asyncio.sleep(0)
        most = max(most, sent - before)
    assert sent == 10_000
    assert most <= 20


async def test_streams_that_begin_go_first_and_leave_the_others_a_part():
    turns, went = Turns(Ticking()), []

    async def one(kind: str) -> None:
        await turns.take(begins=kind == "begins")
        went.append(kind)

    tasks = [asyncio.create_task(one(kind)) for kind in ["goes on"] * 40 + ["begins"] * 40]
    await asyncio.gather(*tasks)
    first = went.index("begins")  # those before it did not have to wait
    assert first < 8
    assert went[first : first + 16].count("begins") == 12
    assert set(went[-16:]) == {"goes on"}


async def test_a_stream_that_ends_while_it_waits_holds_up_no_other():
    turns = Turns(Ticking())

    async def stream() -> None:
        for _ in range(50):
            await turns.take()

    streams = [asyncio.create_task(stream()) for _ in range(40)]
    await asyncio.sleep(0)
    for one in streams[::2]:
        one.cancel()
    await asyncio.gather(*streams[1::2])
    assert all(one.cancelled() for one in streams[::2])
