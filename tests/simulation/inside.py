"""What the world knows of the gateway's inner parts. Everything else it sees from outside.

A gateway that is built differently has to change this module, and no other of this folder:

- Each permit that a breaker gives is settled once, and a half-open one has one probe out.
- Nobody waits in the queue who could go on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from types import FunctionType
from typing import Any
from unittest import mock

from aigateway import AsyncGateway
from aigateway.resilience.breaker import CircuitBreaker, Permit, Rejected
from aigateway.routing.candidates import RequestState
from aigateway.routing.failover import Failovers
from tests.simulation.invariants import SLACK, Watch

__all__ = ["Inside"]

MOST_LOOKED_AT = 20
"""Waiters of a group that are looked at each time: with thousands of them it would take minutes."""


class Inside:
    """Looks into one gateway.

    Args:
        watch: Is told what is broken.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._permits: list[Permit] = []
        self._settlements: Counter[Permit] = Counter()
        self._probes: dict[CircuitBreaker, tuple[Permit, float]] = {}

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Note each permit that a breaker gives, and each settlement."""

        def noting(name: str) -> Any:
            acquire = getattr(CircuitBreaker, name)

            def noted(breaker: CircuitBreaker) -> Permit | Rejected:
                permit: Permit | Rejected = acquire(breaker)
                if isinstance(permit, Permit):
                    self._given(breaker, permit)
                return permit

            return mock.patch.object(CircuitBreaker, name, noted)

        def counted(name: str) -> Any:
            settle = getattr(Permit, name)

            def settled(permit: Permit, *given: Hashable) -> None:
                self._settlements[permit] += 1
                settle(permit, *given)

            return mock.patch.object(Permit, name, settled)

        with (
            noting("acquire"),
            noting("acquire_last_resort"),
            counted("success"),
            counted("failure"),
            counted("release"),
        ):
            yield

    def _given(self, breaker: CircuitBreaker, permit: Permit) -> None:
        """A breaker lets a call through. Of probes, one at a time and until its lease ends."""
        if self._permits and self._permits[-1] is permit:
            return  # one way to ask for it goes through the other
        self._permits.append(permit)
        if not permit.probe:
            return
        now = self._watch.time()
        earlier, given = self._probes.get(breaker, (permit, 0.0))
        lease_ends = given + breaker.probe_lease_seconds
        if earlier is not permit and not self._settlements[earlier] and now < lease_ends:
            self._watch.broken("one_probe", f"another probe is out since {given}")
        self._probes[breaker] = (permit, now)

    def idle(self, gateway: AsyncGateway, until: float) -> None:
        """Nothing happens before `until`: nobody may wait who could go on now."""
        limiter = gateway._limiter
        if not limiter.waiting or until - self._watch.time() <= 2 * SLACK:
            return
        heaps = [heap for group in limiter._groups.values() for heap in group.by_queue.values()]
        for heap in heaps:
            for waiter in heap[:MOST_LOOKED_AT]:
                if not waiter.woken.done() and _could_go_on(waiter.ready):
                    self._watch.broken("waits", f"a request waits that could go on, until {until}")

    def check_permits(self) -> None:
        """After the gateway has closed: each was settled, and once."""
        for number, permit in enumerate(self._permits):
            times = self._settlements[permit]
            if times != 1 or not permit._settled:
                self._watch.broken("permits", f"permit {number} was settled {times} times")


def _could_go_on(ready: Callable[[], bool]) -> bool:
    """What `ready` would say, without what it does: no timer is set, nothing is drawn.

    Only providers that were added since are taken in: the first of a group looks for all of them.
    """
    assert isinstance(ready, FunctionType)
    cells = zip(ready.__code__.co_freevars, ready.__closure__ or (), strict=True)
    known = {name: cell.cell_contents for name, cell in cells}
    failovers, request = known["self"], known["request"]
    assert isinstance(failovers, Failovers)
    assert isinstance(request, RequestState)
    request.add_new_providers()
    kept = [(candidate.canary, candidate.seen) for candidate in request.candidates]
    for candidate in request.candidates:
        candidate.canary, candidate.seen = candidate.canary or False, True
    found = failovers._choose(request)
    for candidate, (canary, seen) in zip(request.candidates, kept, strict=True):
        candidate.canary, candidate.seen = canary, seen
    return found.candidate is not None or not (found.waits or request.nearly_over)
