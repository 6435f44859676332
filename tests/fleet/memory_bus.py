"""What processes share, without Redis: for tests on virtual time. It can lose, delay and forget."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aigateway.clock import Clock
from aigateway.fleet.ledger import FleetUnavailableError

__all__ = ["MemoryBus", "MemoryLink"]

BOUND = 0.05
"""Seconds until a call that gets no answer gives up."""


@dataclass
class MemoryBus:
    """The server's side.

    Attributes:
        clock: Its time, which is the members' too.
        seed: For what is lost and how long things take.
        lost: Share of messages that reach nobody.
        delays: Least and most seconds that a message takes.
        down: Whether it answers anybody.
    """

    clock: Clock
    seed: str = ""
    lost: float = 0.0
    delays: tuple[float, float] = (0.0, 0.002)
    down: bool = False
    links: list[MemoryLink] = field(default_factory=list)
    statements: dict[str, tuple[float, str]] = field(default_factory=dict)
    probes: dict[str, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(f"bus/{self.seed}")

    def link(self, member: str) -> MemoryLink:
        """Let one more process in."""
        self.links.append(MemoryLink(self, member))
        return self.links[-1]

    def restart(self) -> None:
        """Forget everything, and tell the members that they can ask again."""
        self.statements.clear()
        self.probes.clear()
        for link in self.links:
            link.returned()


class MemoryLink:
    """One process's `CircuitBus`.

    Attributes:
        cut: Whether this process cannot reach the bus, nor the bus it.
    """

    def __init__(self, bus: MemoryBus, member: str) -> None:
        self._bus = bus
        self.member = member
        self.cut = False
        self._hear: Callable[[str | bytes], object] = lambda _: None
        self.returned: Callable[[], object] = lambda: None

    def connect(
        self, hear: Callable[[str | bytes], object], returned: Callable[[], object]
    ) -> None:
        self._hear, self.returned = hear, returned

    async def say(self, circuit: str, said: str, seconds: float) -> None:
        await self._reach()
        bus, now = self._bus, self._bus.clock.wall()
        value = f'{{"at":{now * 1000:.0f},"ends":{(now + seconds) * 1000:.0f},"said":{said}}}'
        bus.statements[f"{self.member} {circuit}"] = (now + seconds, value)
        for link in bus.links:
            if bus.random.random() >= bus.lost:
                bus.clock.call_later(bus.random.uniform(*bus.delays), _Delivery(link, value))
        await self._reach()

    async def read(self) -> tuple[float, Sequence[str | bytes]]:
        await self._reach()
        now = self._bus.clock.wall()
        kept = [value for ends, value in self._bus.statements.values() if ends > now]
        await self._reach()
        return now, kept

    async def take_probe(self, circuit: str, seconds: float) -> bool:
        await self._reach()
        now = self._bus.clock.wall()
        holder, ends = self._bus.probes.get(circuit, ("", now))
        granted = holder == self.member or ends <= now
        if granted:
            self._bus.probes[circuit] = (self.member, now + seconds)
        await self._reach()
        return granted

    async def drop_probe(self, circuit: str) -> None:
        await self._reach()
        if self._bus.probes.get(circuit, ("", 0.0))[0] == self.member:
            del self._bus.probes[circuit]
        await self._reach()

    def deliver(self, value: str) -> None:
        """Receive a message, unless it cannot be reached."""
        if not (self.cut or self._bus.down):
            self._hear(json.dumps(json.loads(value)))

    async def _reach(self) -> None:
        """Take the time of half a call; what is done may have been done though it fails later."""
        if self.cut or self._bus.down:
            await self._bus.clock.sleep(BOUND)
            raise FleetUnavailableError
        await self._bus.clock.sleep(self._bus.random.uniform(0.0, 0.001))


@dataclass
class _Delivery:
    link: MemoryLink
    value: str

    def __call__(self) -> None:
        self.link.deliver(self.value)
