"""A fleet in many random worlds: what it promises, whatever the bus between its gateways does."""

from __future__ import annotations

import random

import pytest

from tests.simulation.fleet import Called, FleetPlan, FleetWorld, Window, play_fleet

GAP = 4.0
"""Seconds in which a node with traffic has a request, and one poll has passed."""


def drawn(seed: int) -> FleetPlan:
    """Draw a plan: sizes, troubles of the vendor, of one node, and of the bus."""
    dice = random.Random(f"plan/{seed}")
    nodes = dice.randint(2, 5)
    begin = dice.uniform(2.0, 5.0)
    sick = dice.random() < 0.5
    length = dice.choice((0.0, 0.0, 8.0) if sick else (3.0, 8.0))

    def window(most: float) -> Window:
        at = dice.uniform(2.0, 8.0)
        return at, at + dice.uniform(0.5, most)

    return FleetPlan(
        seed,
        rates=tuple(dice.choice((2.0, 5.0, 20.0)) for _ in range(nodes)),
        hosts=("host-0", *(f"host-{dice.randint(0, 2)}" for _ in range(nodes - 1))),
        dead=(begin, begin + length),
        sick=(("host-0", "host-1")[: dice.randint(1, 2)], window(10.0)) if sick else None,
        backup=dice.random() < 0.7,
        seconds=36.0,
        open_seconds=dice.choice((0.5, 1.0, 2.0)),
        lost=dice.choice((0.0, 0.0, 0.3, 1.0)),
        bus_down=window(6.0) if dice.random() < 0.3 else (0.0, 0.0),
        bus_restarts=(dice.uniform(2.0, 12.0),) if dice.random() < 0.3 else (),
        cut=(nodes - 1, window(6.0)) if dice.random() < 0.3 else None,
    )


def problems(world: FleetWorld) -> list[str]:
    """Return which promises were broken."""
    return [*last_candidate(world), *recovery(world), *cut_off(world), *probes(world)]


def last_candidate(world: FleetWorld) -> list[str]:
    """A request is never refused for circuits alone, and never fails while one is well."""
    ends = {end for node in world.nodes for _, end in node.ended}
    allowed = {"answered"} if world.plan.backup else {"answered", "failed"}
    return [f"requests ended as {ends - allowed}"] if ends - allowed else []


def recovery(world: FleetWorld) -> list[str]:
    """When all is well again, every node uses the vendor within its open time and a few seconds."""
    plan = world.plan
    well = max(plan.dead[1], plan.sick[1][1] if plan.sick else 0.0)
    # The open time is at most four times the shortest; each sick machine may put off others once.
    latest = well + 4 * plan.open_seconds * (1 + len(plan.sick[0] if plan.sick else ())) + GAP
    if plan.quiet_bus and plan.sick is None:  # the first answer frees all
        latest = min(call.ended for call in world.calls if call.ok and call.ended > well) + GAP
    found = []
    for node in world.nodes:
        late = [began for began, ended in world.open_windows(node.number) if ended > latest]
        if late:
            found.append(f"node {node.number} is open since {late[0]:.2f} at {latest:.2f}")
        if not any(
            call.node == node.number and call.began > well and call.ok for call in world.calls
        ):
            found.append(f"node {node.number} does not call the vendor that is back")
    return found


def comes_back(world: FleetWorld) -> list[str]:
    """A quiet fleet uses the vendor from the first request after the open time."""
    latest = world.plan.dead[1] + 4 * world.plan.open_seconds + 1.0
    found = []
    for node in world.nodes:
        by_main = {call.ended for call in world.calls if call.node == node.number and call.ok}
        by_other = [at for at, _ in node.ended if at > latest and at not in by_main]
        if by_other:
            found.append(f"node {node.number} has another answer at {by_other[0]:.2f}")
    return found


def cut_off(world: FleetWorld) -> list[str]:
    """A node that sees no failure is not opened by a sick machine, whatever that one says.

    Two may open it. It comes back with its own next probe, although those two go on failing.
    """
    plan = world.plan
    if plan.dead[0] < plan.dead[1] or plan.sick is None:
        return []
    longest = 4 * plan.open_seconds + GAP if len(plan.sick[0]) > 1 else 0.0
    return [
        f"node {node.number} is cut off at {began:.2f} until {ended:.2f}"
        for node in world.nodes
        if node.host not in plan.sick[0]
        for began, ended in world.open_windows(node.number)
        if ended - began > longest
    ]


def probes(world: FleetWorld) -> list[str]:
    """While the bus works, the fleet has one probe out until one is answered."""
    plan = world.plan
    if not plan.quiet_bus or plan.sick:
        return []
    out: Called | None = None
    for call in sorted(world.calls, key=lambda call: call.began):
        if not call.probe or call.began >= plan.dead[1]:
            continue
        if out is not None and call.began < out.ended:
            return [f"nodes {out.node} and {call.node} probe at {call.began:.3f}"]
        out = call
    return []


@pytest.mark.parametrize("seed", range(4))
def test_a_fleet_keeps_its_promises(seed: int) -> None:
    plan = drawn(seed)
    found = problems(play_fleet(plan))
    assert not found, f"{plan}: {found}"


@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_fleet_comes_back(seed: int) -> None:
    dice = random.Random(f"quiet/{seed}")
    nodes = (1, 3, 6)[seed % 3]
    plan = FleetPlan(
        seed,
        rates=tuple(dice.choice((0.05, 0.2, 0.4)) for _ in range(nodes)),
        even=True,
        dead=(0.0, 120.0),
        seconds=400.0,
        open_seconds=dice.choice((0.5, 2.0, 8.0)),
    )
    world = play_fleet(plan)
    found = [*last_candidate(world), *comes_back(world)]
    assert not found, f"{plan}: {found}"
    assert [call for call in world.calls if call.probe]
