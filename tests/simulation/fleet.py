"""Several gateways of one fleet on virtual time, and what they do to a vendor that dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aigateway import AsyncGateway, GatewayError, GatewaySettings
from aigateway.errors import AllProvidersFailedError, FailureKind
from aigateway.fleet.fleet import Fleet
from aigateway.resilience.breaker import CircuitState, FleetBreaker
from aigateway.testing import ScriptedVendor, scripted_configs
from aigateway.wires.client import Failure, VendorCallError
from tests.fleet.memory_bus import MemoryBus, MemoryLink
from tests.simulation.loop import START, SimulatedClock, SimulatedLoop
from tests.simulation.world import DEFAULTS

__all__ = ["Called", "FleetPlan", "FleetWorld", "Node", "Window", "play_fleet"]

Window = tuple[float, float]
"""From when to when something is so, in seconds since the run began."""


@dataclass(frozen=True)
class FleetPlan:
    """What happens.

    Attributes:
        seed: For all that is left open.
        rates: Requests a second of each node.
        even: Whether requests come at about equal distances; else at random.
        hosts: The machine of each node.
        dead: When the main vendor fails for all.
        sick: The machines for which it fails alone, and when.
        backup: Whether there is another vendor, which is always well.
        seconds: How long requests come.
        open_seconds: The open time of circuits.
        answer: Least and most seconds of a call.
        lost: Share of messages that are lost.
        bus_down: When nobody can reach the bus.
        bus_restarts: When it forgets all.
        cut: The node that cannot reach the bus, and when.
    """

    seed: int
    rates: tuple[float, ...] = (10.0, 10.0, 10.0)
    even: bool = False
    hosts: tuple[str, ...] = ()
    dead: Window = (5.0, 5.0)
    sick: tuple[tuple[str, ...], Window] | None = None
    backup: bool = True
    seconds: float = 40.0
    open_seconds: float = 2.0
    answer: Window = (0.02, 0.3)
    lost: float = 0.0
    bus_down: Window = (0.0, 0.0)
    bus_restarts: tuple[float, ...] = ()
    cut: tuple[int, Window] | None = None

    @property
    def quiet_bus(self) -> bool:
        """Whether the bus works all the time."""
        return not (self.lost or self.bus_restarts or self.cut) and self.bus_down == (0.0, 0.0)


@dataclass
class Called:
    """One call that reached the main vendor."""

    node: int
    began: float
    probe: bool
    ended: float = -1.0
    ok: bool = False


@dataclass
class Node:
    """One process."""

    number: int
    host: str
    gateway: AsyncGateway
    link: MemoryLink
    ended: list[tuple[float, str]] = field(default_factory=list)
    """When each request ended, and how."""

    @property
    def breaker(self) -> FleetBreaker:
        """Its circuit of the main vendor."""
        return next(iter(self.gateway._roster)).chat.breaker


class FleetWorld:
    """All that there is in one run."""

    def __init__(self, plan: FleetPlan, loop: SimulatedLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.clock = SimulatedClock(loop, str(plan.seed))
        self.random = random.Random(f"fleet/{plan.seed}")
        self.bus = MemoryBus(self.clock, str(plan.seed), plan.lost)
        self.calls: list[Called] = []
        self.nodes: list[Node] = []
        self.opened: list[tuple[float, int, Any]] = []
        """Each change of a circuit of the main vendor: when, at which node, and the event."""

    def time(self) -> float:
        return self.loop.time() - START

    async def run(self) -> None:
        self.nodes = [self._node(number) for number in range(len(self.plan.rates))]
        for window, change in self._troubles():
            self.loop.call_at(START + window, change)
        async with asyncio.TaskGroup() as group:
            for node in self.nodes:
                group.create_task(self._traffic(node))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def _troubles(self) -> list[tuple[float, Callable[[], object]]]:
        plan, bus = self.plan, self.bus
        begin, end = plan.bus_down
        found: list[tuple[float, Callable[[], object]]] = [
            (begin, partial(setattr, bus, "down", end > begin))
        ]
        found.append((end, partial(setattr, bus, "down", False)))
        found += [(at, bus.restart) for at in plan.bus_restarts]
        if plan.cut is not None:
            link, (begin, end) = self.nodes[plan.cut[0]].link, plan.cut[1]
            found.append((begin, partial(setattr, link, "cut", True)))
            found.append((end, partial(setattr, link, "cut", False)))
        return found

    def _node(self, number: int) -> Node:
        plan = self.plan
        settings = GatewaySettings(
            **{
                **DEFAULTS,
                "reset_timeout_seconds": plan.open_seconds,
                "max_open_seconds": 4 * plan.open_seconds,
                "attempt_timeout": 5.0,
            }
        )
        vendor = ScriptedVendor()
        gateway = AsyncGateway(
            scripted_configs(*(("main", "backup") if plan.backup else ("main",))),
            settings=settings,
            hooks=[_Watch(self, number)],
            clock=self.clock,
            vendor=vendor,
        )
        link = self.bus.link(f"node-{number}")
        fleet = Fleet(settings, self.clock, bus=link)
        assert fleet.votes is not None
        host = fleet.votes.host = plan.hosts[number] if plan.hosts else f"host-{number}"
        gateway.use_fleet(fleet)
        node = Node(number, host, gateway, link)
        vendor.always("main", partial(self._answer, node))
        return node

    async def _answer(self, node: Node) -> str:
        """What the main vendor does with a call."""
        call = Called(node.number, self.time(), node.breaker.probing)
        # A call is the probe if no other of this node is one.
        call.probe = call.probe and not any(
            other.probe and other.node == node.number and other.ended < 0 for other in self.calls
        )
        self.calls.append(call)
        try:
            await self.clock.sleep(self.random.uniform(*self.plan.answer))
            windows = [self.plan.dead]
            if self.plan.sick is not None and node.host in self.plan.sick[0]:
                windows.append(self.plan.sick[1])
            call.ok = not any(a <= self.time() < b for a, b in windows)
        finally:
            call.ended = self.time()
        if not call.ok:
            raise VendorCallError(Failure(FailureKind.SERVER_ERROR, status=500))
        return "ok"

    async def _traffic(self, node: Node) -> None:
        async with asyncio.TaskGroup() as group, node.gateway:
            number = 0
            while self.time() < self.plan.seconds:
                number += 1
                group.create_task(self._ask(node, f"{node.number}/{number}"))
                await self.clock.sleep(self._pause(self.plan.rates[node.number]))
            await self.clock.sleep(15.0)

    def _pause(self, rate: float) -> float:
        even = self.plan.even
        return self.random.uniform(0.8, 1.2) / rate if even else self.random.expovariate(rate)

    async def _ask(self, node: Node, prompt: str) -> None:
        end = "answered"
        try:
            await node.gateway.chat(prompt, cache=False, timeout=10.0)
        except AllProvidersFailedError as error:
            asked = any(cause.kind is not FailureKind.CIRCUIT_OPEN for cause in error.causes)
            end = "failed" if asked else "refused"
        except GatewayError as error:
            end = type(error).__name__
        node.ended.append((self.time(), end))

    def open_windows(self, node: int) -> list[Window]:
        """When a node's circuit was not closed."""
        found, began = [], None
        for at, number, event in self.opened:
            if number == node and event.old == "closed":
                began = at
            elif number == node and event.new == "closed" and began is not None:
                found.append((began, at))
                began = None
        return found if began is None else [*found, (began, float("inf"))]


@dataclass(frozen=True)
class _Watch:
    world: FleetWorld
    node: int

    def on_event(self, event: Any) -> None:
        if event.name.startswith("circuit.") and event.provider == "main":
            self.world.opened.append((self.world.time(), self.node, event))


def play_fleet(plan: FleetPlan) -> FleetWorld:
    """Play it through."""
    loop = SimulatedLoop(str(plan.seed), most_turns=2_000_000)
    world = FleetWorld(plan, loop)
    try:
        loop.run_until_complete(world.run())
    finally:
        loop.close()
    assert all(node.breaker.state is CircuitState.CLOSED for node in world.nodes)
    return world
