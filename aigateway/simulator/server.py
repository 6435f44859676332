"""The simulator: four vendors on loopback, more on demand, and a control endpoint if asked for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from aigateway.simulator.control import ControlPanel
from aigateway.simulator.listener import LoopbackServer
from aigateway.simulator.vendor import SimulatedVendor

__all__ = ["Simulator"]

_FIRST_FOUR = ("openai", "azure", "gemini", "anthropic")
_THREAD_SECONDS = 10.0


class Simulator:
    """Starts OpenAI, Azure, Gemini and Anthropic on 127.0.0.1, in the running loop.

    Use it as an async context manager, or with `in_thread` from code that has no loop. Leaving
    the context ends every request at once, even hanging ones.
    """

    openai: SimulatedVendor
    azure: SimulatedVendor
    gemini: SimulatedVendor
    anthropic: SimulatedVendor

    def __init__(
        self,
        *,
        ports: Sequence[int] = (0, 0, 0, 0),
        control_port: int | None = None,
        received_limit: int = 50_000,
    ) -> None:
        """Prepare the vendors; nothing listens yet.

        Args:
            ports: For OpenAI, Azure, Gemini, Anthropic; 0 takes a free one.
            control_port: Where `/_simulator` is served; 0 takes a free port, None serves none.
            received_limit: How many requests each vendor remembers.
        """
        if len(ports) != len(_FIRST_FOUR):
            raise ValueError(f"ports needs four numbers ({', '.join(_FIRST_FOUR)})")
        self._ports = tuple(ports)
        self._control_port = control_port
        self._received_limit = received_limit
        self._vendors: list[SimulatedVendor] = []
        self._control: LoopbackServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        vendors = " ".join(f"{vendor.name} {vendor.url}" for vendor in self._vendors)
        return f"<Simulator {vendors or 'has not started'}>"

    @property
    def vendors(self) -> tuple[SimulatedVendor, ...]:
        """All vendors, in the order they were started."""
        return tuple(self._vendors)

    @property
    def control_url(self) -> str | None:
        """The URL of the control endpoint, if there is one."""
        return f"http://127.0.0.1:{self._control.port}/_simulator" if self._control else None

    def vendor(self, name: str) -> SimulatedVendor:
        """Return a vendor by name; KeyError if there is none."""
        for vendor in self._vendors:
            if vendor.name == name:
                return vendor
        raise KeyError(name)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            for wire, port in zip(_FIRST_FOUR, self._ports, strict=True):
                setattr(self, wire, await self._start(wire, wire, port))
            if self._control_port is not None:
                self._control = LoopbackServer(ControlPanel(self).handle, self._control_port)
                await self._control.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every port and end every request."""
        closing = [vendor.close() for vendor in self._vendors]
        if self._control is not None:
            closing.append(self._control.close())
        await asyncio.gather(*closing)

    async def add(self, wire: str, name: str | None = None, *, port: int = 0) -> SimulatedVendor:
        """Start one more vendor.

        Args:
            wire: "openai", "azure", "gemini", "anthropic" or "openai_compatible".
            name: Must be new; by default the wire with a number.
            port: 0 takes a free one.

        Raises:
            ValueError: No such wire, or the name is taken.
        """
        taken = {vendor.name for vendor in self._vendors}
        if name is None:
            names = (f"{wire}-{number}" for number in range(2, len(taken) + 3))
            name = wire if wire not in taken else next(n for n in names if n not in taken)
        elif name in taken:
            raise ValueError(f"there is already a vendor named {name!r}")
        return await self._start(wire, name, port)

    def add_from_thread(self, wire: str, name: str | None = None) -> SimulatedVendor:
        """`add`, for code outside the simulator's loop (see `in_thread`)."""
        if self._loop is None:
            raise RuntimeError("the simulator is not running")
        adding = asyncio.run_coroutine_threadsafe(self.add(wire, name), self._loop)
        return adding.result(_THREAD_SECONDS)

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, **options: Any) -> Iterator[Self]:
        """Run a simulator in a thread with its own loop, for synchronous code.

        Its vendors are used as usual; more of them come from `add_from_thread`.

        Args:
            **options: As for the class.
        """
        simulator = cls(**options)
        started = threading.Event()
        problem: list[BaseException] = []
        stop: list[asyncio.Event] = []

        async def run() -> None:
            async with simulator:
                stop.append(asyncio.Event())
                started.set()
                await stop[0].wait()

        def body() -> None:
            try:
                asyncio.run(run())
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                problem.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=body, name="aigateway-simulator", daemon=True)
        thread.start()
        started.wait(_THREAD_SECONDS)
        try:
            if problem:
                raise problem[0]
            yield simulator
        finally:
            if stop and simulator._loop and not simulator._loop.is_closed():
                simulator._loop.call_soon_threadsafe(stop[0].set)
            thread.join(_THREAD_SECONDS)

    async def _start(self, wire: str, name: str, port: int) -> SimulatedVendor:
        vendor = SimulatedVendor(wire, name, port=port, received_limit=self._received_limit)
        self._vendors.append(vendor)
        await vendor.start()
        return vendor
