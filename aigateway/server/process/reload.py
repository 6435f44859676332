"""The configuration read anew while requests go on.

A difference in providers is made at the gateway that runs: those that are the same keep circuit,
counters and connections, one that changed is taken out and put in anew, and calls that are out end
as they would have. A difference in `[gateway]` makes a new gateway, which goes on where the old
one is; that one is closed when its last request is over. `[server]` counts from the next request
on, but for what a socket or a process hangs on.

What cannot work changes nothing and is said at level ERROR.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import GatewayError
from aigateway.events import Hook
from aigateway.gateway import AsyncGateway
from aigateway.server.process.configuration import NEEDS_RESTART, Configuration, Read
from aigateway.server.service import Service
from aigateway.settings import GatewaySettings, LLMConfig

__all__ = ["FileWatch", "Reloader", "try_to_read", "watch"]

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks at the file."""


class FileWatch:
    """Whether a file is another one than before, once it has come to rest.

    It is looked at, not waited for: a mounted ConfigMap, a network disk and a file that an editor
    puts in the place of another tell nobody that they changed.

    Args:
        path: The file. While there is none, nothing has changed: an editor may be at it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._last = self._look()

    def has_changed(self) -> bool:
        """To be asked every `LOOK_SECONDS`. Says so once for each change."""
        seen = self._look()
        at_rest, self._last = seen == self._last, seen
        if not at_rest or seen is None or seen == self._known:
            return False
        self._known = seen
        return True

    def _look(self) -> tuple[int, int, int] | None:
        try:
            about = self._path.stat()
        except (OSError, ValueError):
            return None
        return about.st_ino, about.st_size, about.st_mtime_ns


async def watch(
    file: FileWatch, then: Callable[[], Awaitable[object]], clock: Clock = SYSTEM_CLOCK
) -> None:
    """Call `then` whenever the file is another one, until cancelled."""
    while True:
        await clock.sleep(LOOK_SECONDS)
        if await asyncio.to_thread(file.has_changed):  # a dead network disk may take for ever
            await then()


def try_to_read(read: Read, running: Configuration) -> Configuration | None:
    """Read the configuration, as far as it can be in force without a restart.

    Returns:
        None if it cannot work, which is said in the log.
    """
    try:
        new = read()
        in_force = new.beside(running)
    except GatewayError as error:  # its message holds no key
        _log.error(
            "reload.refused: the new configuration cannot work, the old one stays: %s", error
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the old one goes on
        # What it says may quote a value, which may be a key.
        _log.error(
            "reload.refused: the new configuration cannot be read (%s), the old one stays.",
            type(error).__name__,
        )
    else:
        _say_what_needs_a_restart(running, new)
        return in_force
    return None


class Reloader:
    """Puts another configuration in place of the one a service runs with.

    Args:
        service: What runs.
        configuration: What it was made from.
        read: Reads it anew.
        hooks: Get the events of the gateways it makes.

    Attributes:
        configuration: The one in force.
    """

    def __init__(
        self,
        service: Service,
        configuration: Configuration,
        read: Read,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.configuration = configuration
        self._hooks = hooks
        self._service = service
        self._read = read
        self._one_at_a_time = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def reload(self) -> bool:
        """Read and apply.

        Returns:
            Whether the new configuration is in force. If not, the log says why.
        """
        async with self._one_at_a_time:
            new = try_to_read(self._read, self.configuration)
            if new is None:
                return False
            try:
                told = await self._apply(new)
            except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on
                # As above: only our own words are known to hold no key.
                _log.error(
                    "reload.failed: not all of the new configuration is in force (%s).",
                    error if isinstance(error, GatewayError) else type(error).__name__,
                )
                return False
            _log.warning("reload.done: %s", "; ".join(told) or "nothing has changed")
            return True

    async def aclose(self) -> None:
        """Close the gateways that are still needed by somebody; to be called at the very end."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _apply(self, new: Configuration) -> list[str]:
        old = self.configuration
        told = []
        if new.gateway != old.gateway:
            await self._replace_gateway(new)
            self.configuration = replace(new, server=old.server)
            told.append(f"[gateway] {_names(old.gateway, new.gateway)}")
        elif new.providers != old.providers:
            self._change_providers(new.providers)
            self.configuration = replace(old, providers=new.providers)
            await self._service.gateway.warmup()
        if new.providers != old.providers:
            told.append(_difference(old.providers, new.providers))
        if new.server != old.server:
            self._service.settings = new.server
            self._service.access = self._service.access.successor(new.server)
            told.append("[server]")
        self.configuration = new
        self._service.workers.replay()
        return told

    def _change_providers(self, configs: tuple[LLMConfig, ...]) -> None:
        """Make the difference at the gateway that runs. No request can come in between."""
        gateway = self._service.gateway
        wanted = {config.name: config for config in configs}
        present = {config.name: config for config in self.configuration.providers}
        for name, config in present.items():
            if wanted.get(name) != config:
                gateway.remove_provider(name)
        for name, config in wanted.items():
            if present.get(name) != config:
                gateway.add_provider(config)

    async def _replace_gateway(self, new: Configuration) -> None:
        gateway = new.make_gateway(self._hooks)
        gateway.take_over(self._service.gateway)
        try:
            await gateway.warmup()  # before anybody waits for it
        except BaseException:
            await gateway.aclose()
            raise
        task = asyncio.create_task(self._retire(gateway), name="aigateway-retire-gateway")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        await asyncio.sleep(0)  # by now it has taken its place

    async def _retire(self, successor: AsyncGateway) -> None:
        old = self._service.gateway
        try:
            await self._service.replace(successor)
        finally:
            with contextlib.suppress(GatewayError):
                await old.aclose()


def _difference(old: tuple[LLMConfig, ...], new: tuple[LLMConfig, ...]) -> str:
    before = {config.name: config for config in old}
    after = {config.name: config for config in new}
    kinds = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(n for n in after.keys() & before.keys() if after[n] != before[n]),
    }
    parts = [f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names]
    return "providers " + ("; ".join(parts) or "in another order")


def _names(old: GatewaySettings, new: GatewaySettings) -> str:
    fields = type(new).model_fields
    return ", ".join(name for name in fields if getattr(new, name) != getattr(old, name))


def _say_what_needs_a_restart(old: Configuration, new: Configuration) -> None:
    waiting = [n for n in NEEDS_RESTART if getattr(old.server, n) != getattr(new.server, n)]
    if waiting:
        _log.warning(
            "reload.needs_restart: [server] %s cannot change while it runs; restart it for that.",
            ", ".join(waiting),
        )
