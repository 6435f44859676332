"""Test doubles for your own application, from the most realistic to the fastest.

- the `simulator` fixture: loopback servers that speak the vendors' protocols over real HTTP and
  break on command. pytest finds it once the package is installed (`aigateway.pytest_plugin`).
- `ScriptedVendor`: answers and failures from a list, without any HTTP.
- `FakeClock`: a minute passes in a microsecond; for circuits, cooldowns, deadlines and caches.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aigateway.clock import Clock, PutOff
from aigateway.errors import FailureKind
from aigateway.events import Operation
from aigateway.messages import (
    Capability,
    ChatRequest,
    Choice,
    Chunk,
    Completion,
    EmbeddingRequest,
    Embeddings,
    ProtocolName,
    Usage,
)
from aigateway.settings import LLMConfig
from aigateway.wires.assembly import Assembly
from aigateway.wires.client import Failure, VendorCallError
from aigateway.wires.wire import AnswerEnd

with contextlib.suppress(ImportError):  # pytest is needed for the fixture only
    from aigateway.pytest_plugin import simulator as simulator  # noqa: PLC0414 - pytest finds it


__all__ = ["FakeClock", "ScriptedStream", "ScriptedVendor", "Step", "scripted_configs"]

Piece = str | Chunk | Failure | FailureKind | Callable[[], Awaitable[object]]
"""One step of a scripted stream: content, a failure, or something to await."""


class ScriptedStream:
    """A step that is streamed in pieces.

    Args:
        *pieces: In order. After the last one the stream ends, unless it was a failure.
        usage: The vendor's token counts at the end.
        cost_usd: The price.
        finish_reason: The finish reason.
    """

    def __init__(
        self,
        *pieces: Piece,
        usage: Usage = Usage(1, 1, 2),  # noqa: B008 - it is frozen
        cost_usd: float | None = 0.001,
        finish_reason: str = "stop",
    ) -> None:
        self.pieces = pieces
        self.usage = usage
        self.cost_usd = cost_usd
        self.finish_reason = finish_reason


Step = (
    str
    | Completion
    | ScriptedStream
    | Failure
    | FailureKind
    | BaseException
    | Callable[[], Awaitable[object]]
)
"""What a scripted provider does with one call: answer (text, a completion or a stream), fail (with
a kind, which the vendor's words confirm, a failure or an exception), or await something and then
answer "ok"."""


class _FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def ring(self) -> None:
        if self._callback is not None:
            self._callback()

    def cancel(self) -> None:
        self._callback = None


class FakeClock:
    """A clock that only tests move.

    Its timers (`sleep`, `timeout`) expire in order while `advance` passes them. The tasks that wait
    for one run before the next one expires.

    Args:
        start: The first value of `now`.
        wall: The first value of `wall`, in seconds since the Unix epoch.
        seed: For `random`.
    """

    def __init__(
        self, start: float = 1000.0, *, wall: float = 1_700_000_000.0, seed: int = 0
    ) -> None:
        self._now = start
        self._wall = wall
        self._random = random.Random(seed)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def random(self) -> float:
        return self._random.random()

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        self._at(self._now + max(0.0, seconds), wake)
        await woken

    def call_later(self, seconds: float, callback: Callable[[], object]) -> _FakeTimer:
        timer = _FakeTimer(callback)
        self._at(self._now + max(0.0, seconds), timer.ring)
        return timer

    @contextlib.asynccontextmanager
    async def timeout(
        self,
        seconds: float,
        *,
        more: PutOff | None = None,
        task: asyncio.Task[Any] | None = None,  # noqa: ARG002
    ) -> AsyncIterator[asyncio.Timeout]:
        loop = asyncio.get_running_loop()
        over = False
        began = looked = self._now

        def expire() -> None:
            nonlocal looked
            if over:
                return
            put_off = 0.0 if more is None else more(seconds, began, looked)
            looked = self._now
            if put_off > 0:
                self._at(self._now + put_off, expire)
            else:
                scope.reschedule(loop.time())

        async with asyncio.timeout(None) as scope:
            self._at(self._now + seconds, expire)
            if seconds <= 0:
                expire()
            try:
                yield scope
            finally:
                over = True

    def set_wall(self, wall: float) -> None:
        """Set the wall clock; `now` does not change."""
        self._wall = wall

    def tick(self, seconds: float) -> None:
        """Let time pass for synchronous code; no waiting task runs."""
        self._now += seconds
        self._wall += seconds

    async def advance(self, seconds: float) -> None:
        """Let time pass; every waiting task runs at its moment."""
        end = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, ring = heapq.heappop(self._timers)
            self.tick(max(0.0, when - self._now))
            ring()
            await self.settle()
        self.tick(end - self._now)

    async def settle(self) -> None:
        """Run all tasks until they wait for time or I/O."""
        for _ in range(50):
            await asyncio.sleep(0)

    def _at(self, when: float, ring: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._order), ring))


class ScriptedVendor:
    """Vendors without HTTP: pass it as `AsyncGateway(..., vendor=ScriptedVendor())`.

    Each provider follows its own script, step by step. Without one, or after its end, it answers
    "ok".

        vendor = ScriptedVendor()
        vendor.script("openai/gpt-4o-mini", FailureKind.SERVER_ERROR, "an answer")
    """

    def __init__(self) -> None:
        self._scripts: dict[str, list[Step]] = {}
        self._always: dict[str, Step] = {}
        self._clients: list[_ScriptedClient] = []
        self.calls: list[tuple[str, ChatRequest | EmbeddingRequest]] = []
        """Every call, as (provider name, request)."""
        self.max_input_tokens: dict[str, int] = {}
        """Known context windows, by provider name."""
        self.without_price: set[str] = set()
        """Names of providers whose price is not known."""
        self.operations: dict[str, frozenset[Operation]] = {}
        """Known operations, by provider name."""
        self.accepts_prefill: set[str] = set()
        """Names of providers whose model continues a trailing assistant message."""
        self.capabilities: dict[str, Mapping[Capability, bool]] = {}
        """What the models can and cannot do, by provider name."""
        self.speaks: dict[str, Mapping[ProtocolName, bool | None]] = {}
        """Protocols that the providers speak, by provider name; None: it has to be asked."""
        self.open_streams = 0
        """Streams that are open: neither closed nor read to their end."""
        self.streams: list[_ScriptedVendorStream] = []
        """Every stream that was opened."""

    def __call__(self, config: LLMConfig, clock: Clock) -> _ScriptedClient:  # noqa: ARG002
        client = _ScriptedClient(self, config)
        self._clients.append(client)
        return client

    def script(self, provider: str, *steps: Step) -> None:
        """Append steps to a provider's script."""
        self._scripts.setdefault(provider, []).extend(steps)

    def always(self, provider: str, step: Step | None) -> None:
        """Set what a provider does after its script; None makes it healthy again."""
        if step is None:
            self._always.pop(provider, None)
        else:
            self._always[provider] = step

    def called(self, provider: str | None = None) -> int:
        """Return the number of calls, to one provider or to all."""
        return sum(provider in {None, name} for name, _ in self.calls)

    @property
    def open_clients(self) -> int:
        """Clients that are not closed."""
        return sum(not client.closed for client in self._clients)

    def _next(self, provider: str) -> Step:
        script = self._scripts.get(provider)
        return script.pop(0) if script else self._always.get(provider, "ok")


class _ScriptedClient:
    def __init__(self, vendor: ScriptedVendor, config: LLMConfig) -> None:
        self._vendor = vendor
        self._config = config
        self.closed = False

    @property
    def max_input_tokens(self) -> int | None:
        return self._vendor.max_input_tokens.get(self._config.name)

    @property
    def has_price(self) -> bool:
        return self._config.name not in self._vendor.without_price

    @property
    def operations(self) -> frozenset[Operation] | None:
        return self._config.operations or self._vendor.operations.get(self._config.name)

    @property
    def capabilities(self) -> Mapping[Capability, bool]:
        return self._vendor.capabilities.get(self._config.name, {})

    @property
    def accepts_prefill(self) -> bool:
        return self._config.name in self._vendor.accepts_prefill

    def speaks(self, protocol: ProtocolName) -> bool | None:
        return self._vendor.speaks.get(self._config.name, {}).get(protocol, False)

    def dropped(
        self,
        params: Mapping[str, Any],  # noqa: ARG002
        messages: Sequence[Mapping[str, Any]] = (),  # noqa: ARG002
    ) -> tuple[str, ...]:
        return ()

    async def prepare(self) -> None:
        pass

    def pause(self) -> float | None:
        return None

    async def chat(self, request: ChatRequest) -> Completion:
        step = await self._play(request)
        if isinstance(step, ScriptedStream):
            stream = _ScriptedVendorStream(self._vendor, self._config.model, step)
            while await stream.read() is not None:
                pass
            return stream.completion()
        return step if isinstance(step, Completion) else self._completion(step)

    async def stream(self, request: ChatRequest) -> _ScriptedVendorStream:
        step = await self._play(request)
        if isinstance(step, Completion):
            step = step.choices[0].text
        script = step if isinstance(step, ScriptedStream) else ScriptedStream(step)
        stream = _ScriptedVendorStream(self._vendor, self._config.model, script)
        self._vendor.streams.append(stream)
        return stream

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        await self._play(request)
        vectors = tuple((float(len(text)), 1.0) for text in request.inputs)
        return Embeddings(self._config.model, vectors, Usage(len(vectors), 0, len(vectors)), 0.0)

    async def aclose(self) -> None:
        self.closed = True

    async def _play(
        self, request: ChatRequest | EmbeddingRequest
    ) -> str | Completion | ScriptedStream:
        self._vendor.calls.append((self._config.name, request))
        await asyncio.sleep(0)
        step = self._vendor._next(self._config.name)  # noqa: SLF001 - two halves of one class
        if isinstance(step, FailureKind):
            step = Failure(step, certain=True)
        if isinstance(step, Failure):
            raise VendorCallError(step)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, str | Completion | ScriptedStream):
            return step
        result = await step()
        return result if isinstance(result, str | Completion | ScriptedStream) else "ok"

    def _completion(self, text: str) -> Completion:
        return Completion(
            id="scripted",
            model=self._config.model,
            choices=(Choice(text, "stop"),),
            usage=Usage(1, 1, 2),
            cost_usd=0.001,
        )


class _ScriptedVendorStream:
    """A `VendorStream` that follows a script."""

    def __init__(self, vendor: ScriptedVendor, model: str, script: ScriptedStream) -> None:
        self._vendor = vendor
        self._pieces = list(script.pieces)
        self._script = script
        self._assembly = Assembly(model)
        self._open = True
        vendor.open_streams += 1

    @property
    def finished(self) -> bool:
        return self._assembly.finished

    def finish(self, reason: str) -> None:
        """Give the finish reason, though the stream continues."""
        self._assembly.add(Chunk())
        self._assembly.finish(0, AnswerEnd(reason, reason))

    async def read(self) -> Sequence[Chunk] | None:
        await asyncio.sleep(0)
        if not self._pieces:
            self._assembly.finish(
                0, AnswerEnd(self._script.finish_reason, self._script.finish_reason)
            )
            self._assembly.usage = self._script.usage
            await self.aclose()
            return None
        piece = self._pieces.pop(0)
        if isinstance(piece, FailureKind):
            piece = Failure(piece)
        if isinstance(piece, Failure):
            raise VendorCallError(piece)
        if isinstance(piece, str):
            piece = Chunk(piece)
        if isinstance(piece, Chunk):
            self._assembly.add(piece)
            return (piece,)
        await piece()
        return ()

    def completion(self) -> Completion:
        whole = self._assembly.usage is not None
        return replace(
            self._assembly.completion(), cost_usd=self._script.cost_usd if whole else None
        )

    async def aclose(self) -> None:
        self._vendor.open_streams -= self._open
        self._open = False


def scripted_configs(*names: str, **fields: object) -> list[LLMConfig]:
    """Return providers for a `ScriptedVendor`; the first name has the highest priority."""
    return [
        LLMConfig.model_validate(
            {
                "provider": "openai_compatible",
                "model": "simulated",
                "name": name,
                "api_base": "http://127.0.0.1:9/v1",
                "priority": len(names) - place,
                **fields,
            }
        )
        for place, name in enumerate(names)
    ]
