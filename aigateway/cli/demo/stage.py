"""Plays the story: breaks vendors on time, sends the callers, and keeps the books."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aigateway.cli.demo.ledger import Chronicle, Ledger, Outcome
from aigateway.cli.demo.story import Call, Phase, apply_phase, calls
from aigateway.clock import Clock
from aigateway.errors import GatewayError
from aigateway.gateway import AsyncGateway
from aigateway.simulator import Simulator

__all__ = ["Stage"]


@dataclass(slots=True)
class Stage:
    """One performance.

    Attributes:
        current: Index of the phase that is on; -1 before the first.
        began: When, on the clock's own scale.
        over: Whether the last caller has gone.
    """

    simulator: Simulator
    gateway: AsyncGateway
    chronicle: Chronicle
    phases: tuple[Phase, ...]
    clock: Clock
    ledger: Ledger = field(default_factory=Ledger)
    current: int = -1
    began: float = field(init=False)
    over: bool = False

    def __post_init__(self) -> None:
        self.began = self.clock.now()

    @property
    def seconds(self) -> float:
        """How long the story takes."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self.clock.now() - self.began

    @property
    def phase(self) -> Phase:
        """The phase that is on."""
        return self.phases[max(0, self.current)]

    async def play(self, rate: float, seed: int) -> None:
        """From the first caller to the last."""
        self.began = self.clock.now()
        self._begin_phase(0)
        async with asyncio.TaskGroup() as together:
            together.create_task(self._turn_phases())
            for call in calls(self.seconds, rate, seed):
                await self._until(call.due)
                together.create_task(self._ask(call))
        self.over = True

    async def _turn_phases(self) -> None:
        end = 0.0
        for index, phase in enumerate(self.phases[:-1]):
            end += phase.seconds
            await self._until(end)
            self._begin_phase(index + 1)

    def _begin_phase(self, index: int) -> None:
        self.current = index
        self.chronicle.tell(f"== {self.phase.title} ==", "bold")
        apply_phase(self.phase, self.simulator)

    async def _until(self, due: float) -> None:
        await self.clock.sleep(max(0.0, due - self.elapsed))

    async def _ask(self, call: Call) -> None:
        phase, began = self.current, self.clock.now()
        try:
            reply = await self.gateway.chat(call.prompt, cache=call.cache)
        except GatewayError:
            ended = self.clock.now()
            self.ledger.add(Outcome(phase, ended, ended - began, None))
            return
        ended = self.clock.now()
        from_cache = reply.cached or reply.coalesced
        self.ledger.add(
            Outcome(phase, ended, ended - began, reply.provider, from_cache, reply.attempts)
        )
