"""Asks a service, in a process of its own: raw aiohttp, connections that stay, new prompts.

Each line of standard input is an order in JSON, each line of standard output what came of it. It
ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

_PATIENCE = aiohttp.ClientTimeout(total=120)
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


# ── a closed loop ────────────────────────────────────────────────────────────────────────────


async def _loop(
    session: aiohttp.ClientSession,
    *,
    url: str,
    model: str,
    text: str,
    callers: int,
    seconds: float,
    dialect: str = "chat",
) -> dict[str, Any]:
    """Callers that ask again as soon as they are answered."""
    spoken = DIALECTS[dialect]
    latencies: list[float] = []
    sent = 0
    errors: dict[str, int] = {}

    async def ask() -> float:
        nonlocal sent
        sent += 1
        began = time.perf_counter()
        try:
            async with session.post(url, data=_payload(spoken, model)) as answer:
                body = await answer.read()
                what = "" if answer.status == 200 else f"{answer.status}: {body[:200]!r}"
        except (aiohttp.ClientError, TimeoutError) as error:
            what = repr(error)
        took = time.perf_counter() - began
        if not what and spoken.text(json.loads(body)) != text:
            what = "another text"
        if what:
            errors[what] = errors.get(what, 0) + 1
        return took

    async def warm() -> None:
        for _ in range(_WARM):
            await ask()

    async def caller(until: float) -> None:
        while time.perf_counter() < until:
            latencies.append(await ask())

    await asyncio.gather(*(warm() for _ in range(callers)))
    gc.collect()
    began = time.perf_counter()
    await asyncio.gather(*(caller(began + seconds) for _ in range(callers)))
    elapsed = time.perf_counter() - began
    return {"sent": sent, "seconds": elapsed, "latencies": latencies, "errors": errors}


# ── streams ──────────────────────────────────────────────────────────────────────────────────


async def _streams(
    session: aiohttp.ClientSession,
    *,
    url: str,
    model: str,
    text: str,
    streams: int,
    dialect: str = "chat",
) -> dict[str, Any]:
    """So many streams, all begun at once, each read to its end and looked at after all."""
    spoken = DIALECTS[dialect]
    firsts: list[float] = []

    async def read() -> bytes | str:
        """The body, or what went wrong."""
        began = time.perf_counter()
        payload = _payload(spoken, model, stream=True)
        try:
            async with session.post(url, data=payload) as answer:
                if answer.status != 200:
                    return f"{answer.status}: {(await answer.read())[:200]!r}"
                pieces = [await answer.content.readany()]
                firsts.append(time.perf_counter() - began)
                while piece := await answer.content.readany():
                    pieces.append(piece)
                return b"".join(pieces)
        except (aiohttp.ClientError, TimeoutError) as error:
            return repr(error)

    gc.collect()
    began = time.perf_counter()
    read_all = await asyncio.gather(*(read() for _ in range(streams)))
    elapsed = time.perf_counter() - began
    errors: dict[str, int] = {}
    for body in read_all:
        what = body if isinstance(body, str) else _wrong(spoken, body, text)
        if what:
            errors[what] = errors.get(what, 0) + 1
    return {"sent": streams, "seconds": elapsed, "latencies": firsts, "errors": errors}


def _wrong(dialect: Dialect, body: bytes, text: str) -> str:
    """What is wrong with a stream, if anything."""
    events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    if not events or dialect.end not in events[-1]:
        return f"no {dialect.end}"
    whole = "".join(dialect.piece(json.loads(event)) for event in events if event != "[DONE]")
    return "" if whole == text else "another text"


_KINDS = {"loop": _loop, "streams": _streams}


async def _obey(kind: str, headers: Mapping[str, str], **order: Any) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=_PATIENCE
    ) as session:
        return await _KINDS[kind](session, **order)


async def main() -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await _obey(**json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
