"""Asks a service, in a process of its own: bare protocols, connections that stay, new prompts.

Each line of standard input is an order in JSON, each line of standard output what came of it. It
ends when its standard input does. Answers are looked at when all have come, so that this takes no
time from the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import uvloop

_PATIENCE = 120.0
"""Seconds that an order may take beyond its own; then what has not been answered is an error."""
_WARM = 2
"""Requests of each caller before the watch starts: connections are made in these."""
_numbers = itertools.count()


class LoadProcess:
    """The measuring side's handle on that process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls) -> AsyncIterator[Self]:
        """Run the process for as long as the context lasts."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.serve_load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
            cwd=Path(__file__).parent.parent,
        )
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def order(self, kind: str, **order: Any) -> dict[str, Any]:
        """Let it do something, and wait for what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, **order}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended; see above")
        came: dict[str, Any] = json.loads(line)
        return came


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one protocol says the same.

    Attributes:
        path: Of its endpoint.
        body: The request for a prompt, beside model and stream.
        text: The text of a whole answer.
        piece: The text of an event of a stream, if it has any.
        end: What the last event is.
    """

    path: str
    body: Callable[[str], dict[str, Any]]
    text: Callable[[Any], str]
    piece: Callable[[Any], str]
    end: str


def _messages(prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}]}


def _chat_piece(event: Any) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


DIALECTS = {
    "chat": Dialect(
        "/v1/chat/completions",
        _messages,
        lambda answer: answer["choices"][0]["message"]["content"],
        _chat_piece,
        "[DONE]",
    ),
    "messages": Dialect(
        "/v1/messages",
        lambda prompt: {**_messages(prompt), "max_tokens": 4096},
        lambda answer: answer["content"][0]["text"],
        lambda event: event["delta"]["text"] if event["type"] == "content_block_delta" else "",
        "message_stop",
    ),
    "responses": Dialect(
        "/v1/responses",
        lambda prompt: {"input": prompt},
        lambda answer: answer["output"][-1]["content"][0]["text"],
        lambda event: event["delta"] if event["type"] == "response.output_text.delta" else "",
        "response.completed",
    ),
}


def _payload(dialect: Dialect, model: str, **more: Any) -> bytes:
    prompt = f"What is {next(_numbers)} plus two? Answer in one sentence, and say why that is so."
    return json.dumps({"model": model, **dialect.body(prompt), **more}).encode()


# ── one connection ───────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Came:
    """An answer as it came; `took` and `first` are seconds since its request was written."""

    status: int
    body: bytes
    first: float
    took: float


class _Caller(asyncio.Protocol):
    """One connection, which asks and waits, and is made anew when the service has closed it."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{fields}".encode()
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Came] | None = None

    async def ask(self, payload: bytes) -> Came:
        """Send one request and return its whole answer; raises OSError without one."""
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        if self._transport is None:
            await loop.create_connection(lambda: self, *self._address)
        assert self._transport is not None
        self._began, self._first, self._pieces = began, 0.0, list[bytes]()
        self._answered = loop.create_future()
        length = b"Content-Length: %d\r\n\r\n" % len(payload)
        self._transport.write(self._head + length + payload)
        return await self._answered

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.connection_lost(error)

    def on_body(self, piece: bytes) -> None:
        if not self._pieces:
            self._first = time.perf_counter() - self._began
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        took = time.perf_counter() - self._began
        came = Came(self._parser.get_status_code(), b"".join(self._pieces), self._first, took)
        if not self._parser.should_keep_alive():
            self.close()
            self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(came)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionResetError(repr(error or "closed")))


async def _all(work: Callable[[], Coroutine[Any, Any, None]], many: int, seconds: float) -> int:
    """Do it so many times at once; return how many have not come to an end in that time."""
    tasks = [asyncio.create_task(work()) for _ in range(many)]
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    for task in done:
        task.result()
    return len(late)


# ── the orders ───────────────────────────────────────────────────────────────────────────────


async def _loop(
    url: str,
    headers: Mapping[str, str],
    dialect: Dialect,
    *,
    model: str,
    callers: int,
    seconds: float,
) -> tuple[list[Came | str], list[float], float]:
    """Callers that ask again as soon as they are answered."""
    came: list[Came | str] = []
    connections: list[_Caller] = []
    until = 0.0

    async def warm() -> None:
        connection = _Caller(url, headers)
        connections.append(connection)
        for _ in range(_WARM):
            came.append(await _asked(connection, _payload(dialect, model)))  # noqa: PERF401 - it awaits

    async def caller() -> None:
        connection = waiting.pop()
        while time.perf_counter() < until:
            came.append(await _asked(connection, _payload(dialect, model)))

    late = await _all(warm, callers, _PATIENCE)
    warmed = len(came)
    waiting = list(connections)
    gc.collect()
    began = time.perf_counter()
    until = began + seconds
    late += await _all(caller, callers, seconds + _PATIENCE)
    elapsed = time.perf_counter() - began
    for connection in connections:
        connection.close()
    latencies = [each.took for each in came[warmed:] if isinstance(each, Came)]
    return [*came, *[LATE] * late], latencies, elapsed


async def _streams(
    url: str,
    headers: Mapping[str, str],
    dialect: Dialect,
    *,
    model: str,
    streams: int,
    spread: float = 0.0,
) -> tuple[list[Came | str], list[float], float]:
    """So many streams, each on a connection of its own and read to its end.

    They begin at once, or evenly over the seconds of `spread`.
    """
    came: list[Came | str] = []
    places = iter(range(streams))

    async def read() -> None:
        await asyncio.sleep(next(places) / streams * spread)
        connection = _Caller(url, headers)
        came.append(await _asked(connection, _payload(dialect, model, stream=True)))
        connection.close()

    gc.collect()
    began = time.perf_counter()
    late = await _all(read, streams, spread + _PATIENCE)
    elapsed = time.perf_counter() - began
    firsts = [each.first for each in came if isinstance(each, Came) and each.status == 200]
    return [*came, *[LATE] * late], firsts, elapsed


LATE = f"no answer in {_PATIENCE:.0f} s"


async def _asked(connection: _Caller, payload: bytes) -> Came | str:
    """The answer, or what went wrong instead."""
    try:
        return await connection.ask(payload)
    except OSError as error:
        return repr(error)


def _wrong_answer(dialect: Dialect, body: bytes, text: str) -> str:
    return "" if dialect.text(json.loads(body)) == text else "another text"


def _wrong_stream(dialect: Dialect, body: bytes, text: str) -> str:
    events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    if not events or dialect.end not in events[-1]:
        return f"no {dialect.end}"
    whole = "".join(dialect.piece(json.loads(event)) for event in events if event != "[DONE]")
    return "" if whole == text else "another text"


_KINDS = {"loop": (_loop, _wrong_answer), "streams": (_streams, _wrong_stream)}


async def _obey(
    kind: str,
    *,
    url: str,
    headers: Mapping[str, str],
    text: str,
    dialect: str = "chat",
    **order: Any,
) -> dict[str, Any]:
    ask, wrong_in = _KINDS[kind]
    spoken = DIALECTS[dialect]
    gc.disable()
    came, latencies, seconds = await ask(url, headers, spoken, **order)
    gc.enable()
    errors: Counter[str] = Counter()
    for each in came:
        if isinstance(each, str):
            wrong = each
        elif each.status != 200:
            wrong = f"{each.status}: {each.body[:200]!r}"
        else:
            wrong = wrong_in(spoken, each.body, text)
        if wrong:
            errors[wrong] += 1
    return {"sent": len(came), "seconds": seconds, "latencies": latencies, "errors": errors}


async def main() -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await _obey(**json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
