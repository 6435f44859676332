"""`python -m benchmarks.batch_run CANDIDATE COUNT ROOT`: one batch, in a process of its own.

Prints what it cost as one line of JSON. A candidate imports its library when it begins, and nothing
of the other benchmarks is imported: whatever is loaded here counts as that candidate's memory.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Run = Callable[[Iterable[str]], Awaitable[int]]
"""Has all prompts answered, keeps the answers until then, and counts those that have a text."""

KEY = "sk-loopback"
MODEL = "gpt-4o-mini"
CONCURRENCY = 16
WARM = CONCURRENCY
"""Prompts before anything is measured, so that every connection is open."""
SETTLE = 0.05
"""Seconds for what a library leaves to do after its answers; its CPU counts."""


@dataclass(frozen=True)
class Cost:
    """What one batch cost.

    Attributes:
        seconds: From its begin to its last answer.
        cpu: Seconds of CPU in that time, of the whole process.
        peak_mb: The most memory that was resident until its end.
        grown_mb: How far that is above the most before it began; None where that is not known.
        answered: How many prompts have an answer.
        asked: How many prompts there were.
    """

    seconds: float
    cpu: float
    peak_mb: float
    grown_mb: float | None
    answered: int
    asked: int


def prompts(count: int, begin: int = 0) -> Iterator[str]:
    """Prompts of which none is like another."""
    return (f"What is {number} plus two?" for number in range(begin, begin + count))


def messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


# ── candidates ───────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def aigateway_batch(root: str) -> AsyncIterator[Run]:
    async with _gateway(root) as gateway:

        async def run(given: Iterable[str]) -> int:
            result = await gateway.batch(given, concurrency=CONCURRENCY)
            return sum(item.ok and bool(item.response.text) for item in result.items)

        yield run


@contextlib.asynccontextmanager
async def aigateway_as_completed(root: str) -> AsyncIterator[Run]:
    async with _gateway(root) as gateway:

        async def run(given: Iterable[str]) -> int:
            answered = 0
            async for item in gateway.as_completed(iter(given), concurrency=CONCURRENCY):
                answered += item.ok and bool(item.response.text)
            return answered

        yield run


def _gateway(root: str) -> Any:
    """Everything on, as by default; logs at INFO, to nowhere."""
    from aigateway import AsyncGateway, LLMConfig

    log = logging.getLogger("aigateway")
    log.addHandler(logging.StreamHandler(Path(os.devnull).open("w", encoding="utf-8")))  # noqa: SIM115 - lives on
    log.setLevel(logging.INFO)
    log.propagate = False
    return AsyncGateway([LLMConfig("openai", MODEL, api_key=KEY, api_base=f"{root}/v1")])


@contextlib.asynccontextmanager
async def litellm_semaphore(root: str) -> AsyncIterator[Run]:
    litellm = _litellm()
    options = {"api_key": KEY, "api_base": f"{root}/v1", "num_retries": 0, "max_retries": 0}

    async def run(given: Iterable[str]) -> int:
        places = asyncio.Semaphore(CONCURRENCY)

        async def ask(prompt: str) -> Any:
            async with places:
                return await litellm.acompletion(
                    model=f"openai/{MODEL}", messages=messages(prompt), **options
                )

        answers = await asyncio.gather(*(ask(each) for each in given), return_exceptions=True)
        return _texts(answers)

    yield run


@contextlib.asynccontextmanager
async def litellm_router(root: str) -> AsyncIterator[Run]:
    """In chunks, because nothing in it waits.

    `abatch_completion` begins all at once, and `max_parallel_requests` refuses with a 429 what is
    beyond it.
    """
    deployment = {"model": f"openai/{MODEL}", "api_key": KEY, "api_base": f"{root}/v1"}
    listed = {"model_name": "llm", "litellm_params": {**deployment, "max_retries": 0}}
    router = _litellm().Router(model_list=[listed], num_retries=0)

    async def run(given: Iterable[str]) -> int:
        left, answers = iter(given), []
        while chunk := [messages(each) for each in itertools.islice(left, CONCURRENCY)]:
            for of_one in await router.abatch_completion(models=["llm"], messages=chunk):
                answers += of_one  # one for each model
        return _texts(answers)

    yield run


@contextlib.asynccontextmanager
async def langchain_abatch(root: str) -> AsyncIterator[Run]:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, api_key=KEY, base_url=f"{root}/v1", max_retries=0)

    async def run(given: Iterable[str]) -> int:
        limit = {"max_concurrency": CONCURRENCY}
        answers = await model.abatch(list(given), config=limit, return_exceptions=True)
        return sum(not isinstance(each, Exception) and bool(each.content) for each in answers)

    yield run


def _litellm() -> Any:
    import litellm

    litellm.suppress_debug_info = True
    return litellm


def _texts(answers: Iterable[Any]) -> int:
    return sum(
        not isinstance(each, Exception) and bool(each.choices[0].message.content)
        for each in answers
    )


CANDIDATES: Mapping[str, Callable[[str], AbstractAsyncContextManager[Run]]] = {
    each.__name__: each
    for each in (
        aigateway_batch,
        aigateway_as_completed,
        litellm_semaphore,
        litellm_router,
        langchain_abatch,
    )
}


# ── what it costs ────────────────────────────────────────────────────────────────────────────


async def measure(candidate: str, count: int, root: str) -> Cost:
    async with CANDIDATES[candidate](root) as run:
        await run(list(prompts(WARM, begin=count)))
        # As they come out of a generator, memory is all the candidate's own; else they are the
        # caller's, and there before.
        streamed = candidate == aigateway_as_completed.__name__
        given = prompts(count) if streamed else list(prompts(count))
        gc.collect()
        before = peak_mb()
        cpu, wall = time.process_time(), time.perf_counter()
        answered = await run(given)
        seconds = time.perf_counter() - wall
        await asyncio.sleep(SETTLE)
        cpu, peak = time.process_time() - cpu, peak_mb()
    return Cost(seconds, cpu, peak, peak - before, answered, count)


def peak_mb() -> float:
    """The most that was resident; not `ru_maxrss`, in which a child begins with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    warnings.simplefilter("ignore")
    candidate, count, root = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(asyncio.run(measure(candidate, int(count), root)))))


if __name__ == "__main__":
    main()
