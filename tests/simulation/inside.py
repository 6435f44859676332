"""What the world knows of the gateway's inner parts. Everything else it sees from outside.

A gateway that is built differently has to change this module, and no other of this folder:

- Each permit that a breaker gives is settled once, and a half-open one has one probe out.
- Nobody waits in the queue who could go on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from aigateway import AsyncGateway
from aigateway.resilience.breaker import CircuitBreaker, Permit, Rejected
from aigateway.routing.plan import choose
from tests.simulation.invariants import SLACK, Watch

__all__ = ["Inside"]


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
        acquire = CircuitBreaker.acquire

        def noted(breaker: CircuitBreaker) -> Permit | Rejected:
            permit = acquire(breaker)
            if isinstance(permit, Permit):
                self._given(breaker, permit)
            return permit

        def counted(name: str) -> Any:
            settle = getattr(Permit, name)

            def settled(permit: Permit) -> None:
                self._settlements[permit] += 1
                settle(permit)

            return mock.patch.object(Permit, name, settled)

        with (
            mock.patch.object(CircuitBreaker, "acquire", noted),
            counted("success"),
            counted("failure"),
            counted("release"),
        ):
            yield

    def _given(self, breaker: CircuitBreaker, permit: Permit) -> None:
        """A breaker lets a call through. Of probes, one at a time and until its lease ends."""
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
        for group, waiters in limiter._groups.items():
            assert isinstance(group, tuple)
            candidates, tried, tokens = group
            if all(waiter.woken.done() for waiter in waiters):
                continue
            found = choose(candidates, tried, limiter.has_place, tokens)
            if found.provider is not None or not found.full:
                self._watch.broken("waits", f"somebody waits who could go on, until {until}")

    def check_permits(self) -> None:
        """After the gateway has closed: each was settled, and once."""
        for number, permit in enumerate(self._permits):
            times = self._settlements[permit]
            if times != 1 or not permit._settled:
                self._watch.broken("permits", f"permit {number} was settled {times} times")
