"""A cancellation at one chosen await of one caller."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Interrupt", "interrupted"]


@dataclass(slots=True)
class Interrupt:
    """Where one caller is cancelled.

    Attributes:
        number: Whose request: `Ask.number`.
        at: The how-manieth time that its task is suspended, from 1.
        moment: While it waits, or in the very turn in which what it waits for comes.
        seen: How often its task was suspended; filled in by the run.
    """

    number: int
    at: int
    moment: Literal["waiting", "waking"]
    seen: int = 0


async def interrupted(
    work: Coroutine[Any, Any, None], interrupt: Interrupt, cancel: Callable[[], None]
) -> None:
    """Run a coroutine, and have it cancelled where the interrupt says.

    Args:
        work: What to run.
        interrupt: Where.
        cancel: Cancels the task that it runs in.
    """
    await _stepped(work, interrupt, cancel)  # a task takes no generator from Python 3.12 on


@types.coroutine
def _stepped(
    work: Coroutine[Any, Any, None], interrupt: Interrupt, cancel: Callable[[], None]
) -> Generator[Any, Any, None]:
    thrown: BaseException | None = None
    while True:
        try:
            waits_for = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration:
            return
        interrupt.seen += 1
        if interrupt.seen == interrupt.at:
            if waits_for is None or interrupt.moment == "waiting":
                asyncio.get_running_loop().call_soon(cancel)
            else:
                # Before the task's own wake-up, which is registered when it gets the future.
                waits_for.add_done_callback(lambda _: cancel())
        thrown = None
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - all of them belong to the work
            thrown = error
