"""A dead network told from a dead provider: if nobody at all can be connected to, it is the way."""

from __future__ import annotations

from aigateway.clock import Clock

__all__ = ["Reachability"]


RECENT = 60.0
"""Seconds for which an answer proves that the network is up. One from before proves nothing."""


class Reachability:
    """Who could be connected to the last time it was tried. Synchronous, for one event loop.

    A provider that was never tried counts neither way: it will be, by the very request that finds
    the others unreachable, and if it answers the network is up again.
    """

    __slots__ = ("_clock", "_down", "_up")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._up: dict[str, float] = {}  # when each last answered
        self._down: set[str] = set()

    @property
    def down(self) -> frozenset[str]:
        """Names of those to whom no connection could be made."""
        return frozenset(self._down)

    @property
    def network_is_down(self) -> bool:
        """Whether two or more could not be connected to, and nobody has answered of late."""
        since = self._clock.now() - RECENT
        return len(self._down) > 1 and not any(at > since for at in self._up.values())

    def reached(self, name: str) -> None:
        """It answered something."""
        self._up[name] = self._clock.now()
        if self._down:
            self._down.discard(name)

    def unreachable(self, name: str) -> bool:
        """No connection could be made; says whether that is the network's fault."""
        self._up.pop(name, None)
        self._down.add(name)
        return self.network_is_down

    def forget(self, name: str) -> None:
        """It is a provider no more."""
        self._up.pop(name, None)
        self._down.discard(name)
