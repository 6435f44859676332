"""`python -m benchmarks.calls`: the package's own function calls in one uncached chat.

OpenAI's wire over the direct lane, to the simulator on loopback; the gateway is warm. `-v` names
the functions. Generated `__init__`s of dataclasses do not count, a coroutine counts once.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType

import aigateway
from aigateway import AsyncGateway
from aigateway.simulator import Simulator

ROOT = Path(aigateway.__file__).parent
WARM = 40
"""Chats before the one that counts: answers are looked at closely until then."""

Place = tuple[str, str, bool]
"""A file, a function, and whether that is a coroutine."""


async def called() -> Counter[Place]:
    """Return the calls of each function of the package in one chat, without the simulator.

    Of five chats the one with the fewest: a timer may fire in the middle of another.
    """
    with Simulator.in_thread() as simulator:
        async with AsyncGateway([simulator.openai.config(name="a")]) as gateway:
            await gateway.warmup()
            for number in range(WARM):
                await gateway.chat(f"number {number}")
            chats = [await _called(gateway, f"counted {number}") for number in range(5)]
    return min(chats, key=total)


async def _called(gateway: AsyncGateway, prompt: str) -> Counter[Place]:
    calls: Counter[Place] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("simulator/"):
                lasting = bool(code.co_flags & inspect.CO_COROUTINE)
                calls[name, code.co_qualname, lasting] += 1

    sys.setprofile(note)
    try:
        await gateway.chat(prompt)
    finally:
        sys.setprofile(None)
    return calls


def total(calls: Counter[Place]) -> int:
    """Return the number of calls; a coroutine that was resumed is still one."""
    return sum(1 if lasting else number for (_, _, lasting), number in calls.items())


def main() -> None:
    """Print the figures."""
    calls = asyncio.run(called())
    files = defaultdict(list)
    for name, function, _ in calls:
        files[name].append(function)
    print(f"{total(calls)} own calls in {len(files)} files")
    if "-v" in sys.argv:
        for name, functions in sorted(files.items()):
            print(f"{name}: {', '.join(functions)}")


if __name__ == "__main__":
    main()
