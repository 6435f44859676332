"""A gateway, its vendors and its callers: real HTTP on loopback, usually on virtual time.

The event loop's clock stands still while anything has work to do, and jumps to the next timer when
nothing has. So an hour passes in seconds, a busy machine changes no figure, and the gateway still
sends every byte through the kernel. In real time the same rows run on an ordinary loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import selectors
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from aigateway import AsyncGateway, GatewayError, LLMConfig
from aigateway.clock import SystemClock
from benchmarks.server import BODIES, reset, wire_of

T = TypeVar("T")
Json = Mapping[str, Any]

# ── time ─────────────────────────────────────────────────────────────────────────────────────

_LOOKS = 4
"""Looks for I/O before time jumps: what is sent over loopback has usually arrived by then."""
_WALL = 1_800_000_000.0


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for a timer it moves the loop's clock there."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        for _ in range(_LOOKS):
            events = super().select(0)
            if events or timeout == 0:
                return events
            os.sched_yield()
        if self.loop.held:
            return super().select(None)  # a thread's end wakes the loop
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set")
        self.loop.jump(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while it would wait.

    Attributes:
        held: While it is not 0 time stands still, because a thread is waited for.
    """

    def __init__(self) -> None:
        self._now = 1000.0
        self.held = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let time pass at once."""
        self._now += seconds

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let time stand still meanwhile; no timer goes off."""
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    def run_in_executor(self, *args: Any) -> Any:
        """As ever, but time stands still until it is done."""
        future = super().run_in_executor(*args)
        self.held += 1
        future.add_done_callback(self._release)
        return future

    async def shutdown_default_executor(self) -> None:
        """As ever; this too is waited for in a thread."""
        with self.hold():
            await super().shutdown_default_executor()

    def _release(self, _: object) -> None:
        self.held -= 1


class _VirtualClock(SystemClock):
    """The gateway's clock on such a loop."""

    __slots__ = ("_chance", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        self._loop = loop
        self._chance = random.Random(seed)

    def now(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return _WALL + self._loop.time()

    def random(self) -> float:
        return self._chance.random()


# ── vendors ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as the vendor sees it.

    Attributes:
        at: Seconds since the world began.
        path: Of its URL.
        body: As it came.
        number: Of the request that it was made for; None without a number in its prompt.
    """

    at: float
    path: str
    body: bytes
    number: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the vendor does with a call.

    Attributes:
        delay: Seconds before it.
        status: HTTP status.
        body: JSON or bytes; None is what a healthy vendor of that wire says.
        headers: More of them.
        reset: Reset the connection instead.
    """

    delay: float = 0.0
    status: int = 200
    body: Json | bytes | None = None
    headers: Json = field(default_factory=dict)
    reset: bool = False


Behave = Callable[[Asked], Answer]
_NUMBER = re.compile(rb"#(\d+)#")
_STREAMED = re.compile(rb'"stream"\s*:\s*true')
_EMBEDDINGS = json.dumps(
    {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2, 0.3]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
).encode()
_MODELS = {
    "openai": "gpt-4o-mini",
    "openai_compatible": "house-model",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-3.5-flash-lite",
}


class Vendor:
    """A server on loopback that does what its row says.

    Attributes:
        behave: Decides about each call.
        calls: All of them, in order.
        config: A provider that leads here.
    """

    def __init__(self, world: World, behave: Behave) -> None:
        self.behave = behave
        self.calls: list[Asked] = []
        self.config: LLMConfig
        self._world = world
        # A caller that leaves must not keep a hanging handler alive.
        self._http = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._server: asyncio.Server | None = None

    async def listen(self) -> int:
        """Open a free port."""
        self._server = await asyncio.get_running_loop().create_server(
            self._http, "127.0.0.1", 0, backlog=1024
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        """Close the port, and every connection."""
        if self._server is not None:
            self._server.close()
        await self._http.shutdown(0.1)

    def calls_in(self, begin: float, end: float) -> int:
        """Calls that arrived in that time."""
        return sum(begin <= call.at < end for call in self.calls)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        found = _NUMBER.search(body)
        asked = Asked(self._world.now, request.path, body, int(found[1]) if found else None)
        self.calls.append(asked)
        answer = self.behave(asked)
        if answer.delay:
            await asyncio.sleep(answer.delay)
        if answer.reset and request.transport is not None:
            reset(request.transport)
        return _response(asked, answer)


def _response(asked: Asked, answer: Answer) -> web.Response:
    kind, body = "application/json", answer.body
    if body is None:
        if asked.path.endswith("/embeddings"):
            body = _EMBEDDINGS
        elif _STREAMED.search(asked.body):
            kind, body = "text/event-stream", _events()
        else:
            body = BODIES[wire_of(asked.path)]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return web.Response(status=answer.status, body=raw, headers=answer.headers, content_type=kind)


def _events() -> bytes:
    """A whole stream of OpenAI's."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1760000000, "model": "m"}
    deltas = (({"role": "assistant", "content": "Four."}, None), ({}, "stop"))
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    lines = [json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


# ── the world ────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Request:
    """What became of one.

    Attributes:
        number: In its prompt.
        at: When it came, in seconds since the world began.
        ended: When its caller had an answer or an error; None if that never came.
        provider: Who answered; None if none did.
    """

    number: int
    at: float
    ended: float | None = None
    provider: str | None = None

    @property
    def seconds(self) -> float:
        """How long its caller waited."""
        return (self.ended if self.ended is not None else float("inf")) - self.at


class World:
    """One gateway and its vendors, from the first request to the last.

    Attributes:
        seed: Of all dice.
        vendors: In the order in which they were added.
        answers: The requests that were answered, in the order of their answers.
        gateway: See `open`.
    """

    def __init__(self, seed: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self.seed = seed
        self.vendors: list[Vendor] = []
        self.answers: list[Request] = []
        self.gateway: AsyncGateway

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return self._loop.time() - self._began

    def chance(self, name: str) -> random.Random:
        """Dice for one purpose, the same in each run of a seed."""
        return random.Random(f"{self.seed} {name}")

    async def add(
        self, behave: Behave, wire: str = "openai", model: str | None = None, priority: int = 0
    ) -> Vendor:
        """Start one more vendor; it is called by its place, from 0."""
        vendor = Vendor(self, behave)
        port = await vendor.listen()
        base = f"http://127.0.0.1:{port}" + ("/v1" if wire.startswith("openai") else "")
        name = str(len(self.vendors))
        vendor.config = LLMConfig(
            wire,
            model or _MODELS[wire],
            api_key="sk-loopback",
            api_base=base,
            name=name,
            priority=priority,
        )
        self.vendors.append(vendor)
        return vendor

    async def open(self, **settings: Any) -> AsyncGateway:
        """Make the gateway, with default settings but for these; time begins now."""
        virtual = isinstance(self._loop, VirtualLoop)
        clock = {"clock": _VirtualClock(self._loop, self.seed)} if virtual else {}
        self.gateway = AsyncGateway([v.config for v in self.vendors], **clock, **settings)
        hold = self._loop.hold if isinstance(self._loop, VirtualLoop) else contextlib.nullcontext
        with hold():
            await self.gateway.warmup()  # loads litellm in a thread
        self._began = self._loop.time()
        return self.gateway

    async def aclose(self) -> None:
        """End everything; requests that still wait are cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gateway.aclose()
        for vendor in self.vendors:
            await vendor.aclose()

    def prompt(self, number: int | None = None) -> tuple[int, str]:
        """One that was never asked before, and its number."""
        number = next(self._numbers) if number is None else number
        return number, f"Request #{number}#: how much is {number} plus two?"

    def begin(self, kind: str = "chat", prompt: str = "", **options: Any) -> Request:
        """Let one request come now; its end is noted whenever it comes."""
        number, fresh = self.prompt()
        request = Request(number, self.now)
        ask = _KINDS[kind](self.gateway, prompt or fresh, options)
        task = self._loop.create_task(self._note(request, ask))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return request

    async def ask(self, kind: str = "chat", prompt: str = "", **options: Any) -> Request:
        """One request, waited for."""
        number, fresh = self.prompt()
        request = Request(number, self.now)
        await self._note(request, _KINDS[kind](self.gateway, prompt or fresh, options))
        return request

    async def traffic(
        self,
        rate: float,
        seconds: float = float("inf"),
        *,
        until: Callable[[Sequence[Request]], bool] | None = None,
        kind: str = "chat",
    ) -> list[Request]:
        """Let requests come at a steady rate, whether the ones before have ended or not.

        Args:
            rate: Requests a second.
            seconds: For how long.
            until: Looked at before each request; True ends the traffic.
            kind: chat, stream or embed.

        Returns:
            They have all begun by then; some may still wait.
        """
        requests: list[Request] = []
        start = self.now
        for index in itertools.count():
            at = index / rate
            if at >= seconds or (until is not None and until(requests)):
                break
            await asyncio.sleep(max(0.0, start + at - self.now))
            self._check()
            requests.append(self.begin(kind))
        await asyncio.sleep(max(0.0, start + seconds - self.now) if until is None else 0)
        return requests

    async def ended(self) -> None:
        """Wait until every request has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()

    def _check(self) -> None:
        """No error but the gateway's own is a result."""
        if self._broken is not None:
            raise RuntimeError("a request ended in a foreign error") from self._broken

    async def _note(self, request: Request, ask: Awaitable[str]) -> None:
        with contextlib.suppress(GatewayError):
            request.provider = await ask
        request.ended = self.now
        if request.provider is not None:
            self.answers.append(request)


async def _chat(gateway: AsyncGateway, prompt: Any, options: Json) -> str:
    return (await gateway.chat(prompt, **options)).provider


async def _stream(gateway: AsyncGateway, prompt: Any, options: Json) -> str:
    async with gateway.stream(prompt, **options) as stream:
        async for _ in stream:
            pass
    return stream.response.provider


async def _embed(gateway: AsyncGateway, prompt: Any, options: Json) -> str:
    return (await gateway.embed(prompt, **options)).provider


_KINDS = {"chat": _chat, "stream": _stream, "embed": _embed}


def in_world(play: Callable[[World], Awaitable[T]], *, seed: int = 1, real_time: bool = False) -> T:
    """Run one world on a loop of its own."""

    async def run() -> T:
        world = World(seed)
        try:
            return await play(world)
        finally:
            await world.aclose()

    factory = asyncio.new_event_loop if real_time else VirtualLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run())
