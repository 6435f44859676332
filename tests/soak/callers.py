"""What the callers do, and the books they keep of it, apart from the gateway's own.

Every prompt carries a word that no other has (a nonce), or that only those share who ask the same
thing. A simulated vendor answers with the prompt itself, so an answer that is not word for word
the caller's own prompt was mixed up, cut or put together wrongly.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    DeadlineExceededError,
    OverloadedError,
    StreamInterruptedError,
)
from aigateway.simulator.answers import embed

__all__ = ["Books", "Crowd"]

PAUSE_SECONDS = 0.25
"""Mean time between two requests of one caller."""

FORESEEN = (
    AllProvidersFailedError,
    DeadlineExceededError,
    OverloadedError,
    StreamInterruptedError,
)
"""What callers may get while vendors are ill. Any other error is a finding."""


@dataclass(slots=True)
class Books:
    """What callers saw.

    Attributes:
        asked: Requests by the way they were asked.
        outcomes: How they ended: a kind of answer, "left", "cancelled", or an error's class.
        findings: What must not happen, by description.
        seconds: How long each answer took (arrays, since memory is what is watched here).
    """

    asked: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    seconds: array[float] = field(default_factory=lambda: array("f"))

    @property
    def failures(self) -> int:
        """Requests whose caller got an error."""
        return sum(self.outcomes[kind.__name__] for kind in FORESEEN)

    def percentile(self, percent: int) -> float:
        """Of the answers' seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


class Crowd:
    """Callers of one gateway. The same seed makes the same callers with the same prompts."""

    def __init__(self, gateway: AsyncGateway, books: Books, seed: int) -> None:
        self._gateway = gateway
        self._books = books
        self._seed = seed
        self._nonces = itertools.count()
        self._began = asyncio.get_running_loop().time()

    async def ask_for(self, round_number: int, callers: int, seconds: float) -> None:
        """Let them ask until the time is over and the last one has its answer."""
        ends = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                chance = random.Random(f"{self._seed}/{round_number}/{number}")
                group.create_task(self._caller(chance, ends))

    async def _caller(self, chance: random.Random, ends: float) -> None:
        kinds: dict[str, tuple[int, Callable[[random.Random], Awaitable[str]]]] = {
            "chat": (30, self._chat),
            "chat in a hurry": (5, self._hurry),
            "chat, cancelled": (7, self._cancelled),
            "shared chat": (20, self._shared),
            "shared chat, cancelled": (3, self._shared_cancelled),
            "stream": (15, self._stream),
            "stream, left": (10, self._left),
            "embed": (10, self._embed),
        }
        weights = [weight for weight, _ in kinds.values()]
        while asyncio.get_running_loop().time() < ends:
            (name,) = chance.choices(list(kinds), weights)
            self._books.asked[name] += 1
            self._books.outcomes[await self._outcome(kinds[name][1](chance))] += 1
            await asyncio.sleep(chance.expovariate(1 / PAUSE_SECONDS))

    async def _outcome(self, asking: Awaitable[str]) -> str:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            outcome = await asking
        except FORESEEN as error:
            return type(error).__name__
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self._books.findings[f"unforeseen {type(error).__name__}: {error}"] += 1
            return "unforeseen"
        if outcome not in {"left", "cancelled"}:
            self._books.seconds.append(loop.time() - began)
        return outcome

    # ── ways to ask ──────────────────────────────────────────────────────────────────────────

    async def _chat(self, chance: random.Random, timeout: float | None = None) -> str:  # noqa: ASYNC109
        prompt = self._prompt(chance)
        reply = await self._gateway.chat(prompt, timeout=timeout, cache=chance.random() < 0.5)
        return self._judged(prompt, reply.text, "answered")

    async def _hurry(self, chance: random.Random) -> str:
        return await self._chat(chance, timeout=chance.uniform(0.01, 0.3))

    async def _shared(self, chance: random.Random) -> str:
        """Ask what others ask in the same second, and what was asked in the one before."""
        second = int(asyncio.get_running_loop().time() - self._began) - chance.randrange(2)
        prompt = f"shared-{second}-{chance.randrange(3)} is what several of us want to know"
        reply = await self._gateway.chat(prompt)
        how = "from the cache" if reply.cached else "coalesced" if reply.coalesced else "answered"
        return self._judged(prompt, reply.text, how)

    async def _cancelled(self, chance: random.Random) -> str:
        return await _cut(self._chat(chance), chance)

    async def _shared_cancelled(self, chance: random.Random) -> str:
        return await _cut(self._shared(chance), chance)

    async def _stream(self, chance: random.Random) -> str:
        prompt = self._prompt(chance)
        resume: Literal["restart"] | None = "restart" if chance.random() < 0.7 else None
        text, restarted = "", False
        async with self._gateway.stream(prompt, resume=resume, cache=False) as stream:
            async for chunk in stream:
                if chunk.restarted:
                    text, restarted = "", True
                text += chunk.text
        if stream.response.text != text:
            self._books.findings["a stream's response is not what it streamed"] += 1
        return self._judged(prompt, text, "streamed, restarted" if restarted else "streamed")

    async def _left(self, chance: random.Random) -> str:
        prompt, text, enough = self._prompt(chance), "", chance.randrange(1, 8)
        async with self._gateway.stream(prompt, cache=False) as stream:
            async for chunk in stream:
                text += chunk.text
                enough -= 1
                if not enough:
                    break
        if not prompt.startswith(text):
            self._books.findings["a stream that was left gave another's text"] += 1
        return "left"

    async def _embed(self, chance: random.Random) -> str:
        texts = [self._prompt(chance) for _ in range(chance.randrange(1, 4))]
        response = await self._gateway.embed(texts, model="vectors")
        for text, vector in zip(texts, response.vectors, strict=True):
            if any(abs(a - b) > 1e-6 for a, b in zip(embed(text, None), vector, strict=True)):
                self._books.findings["vectors of another text"] += 1
        return "embedded"

    def _prompt(self, chance: random.Random) -> str:
        words = " ".join(f"{chance.getrandbits(32):08x}" for _ in range(chance.randrange(6, 20)))
        return f"nonce-{next(self._nonces)} {words}"

    def _judged(self, prompt: str, text: str, outcome: str) -> str:
        if text != prompt:
            what = "part of its own" if text and text in prompt else "another"
            self._books.findings[f"a caller got {what} answer ({outcome})"] += 1
        return outcome


async def _cut(asking: Awaitable[str], chance: random.Random) -> str:
    """Cancel it after a moment, if it takes that long."""
    task = asyncio.ensure_future(asking)
    await asyncio.wait({task}, timeout=chance.uniform(0.001, 0.1))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return "cancelled"
