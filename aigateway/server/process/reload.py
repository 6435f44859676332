"""Reload the configuration while requests go on.

Changed providers are replaced in the running gateway: the others keep circuit, counters and
connections, and calls in flight end normally. A change in `[gateway]` makes a new gateway that
takes over; the old one is closed after its last request. `[server]` applies from the next request
on, except for fields that a socket or a process was made with.

A configuration that cannot work changes nothing, and is logged at level ERROR.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import GatewayError
from aigateway.events import Hook
from aigateway.gateway import AsyncGateway
from aigateway.server.process.configuration import NEEDS_RESTART, Configuration, Read
from aigateway.server.process.state import KeptState
from aigateway.server.service import Service
from aigateway.settings import ApiKey, GatewaySettings, LLMConfig, ServerSettings
from aigateway.telemetry.log import log_event

__all__ = ["FileWatch", "Reloader", "try_to_read", "watch"]

LOOK_SECONDS = 0.5
"""Between two checks of the file."""


class FileWatch:
    """Notices that a file has changed, once it has not changed further between two checks.

    It polls: a mounted ConfigMap, a network disk and an editor that replaces the file send no
    notification.

    Args:
        path: The file. While it is missing, nothing has changed: an editor may be writing it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._last = self._look()

    def has_changed(self) -> bool:
        """Return True once for each change; call it every `LOOK_SECONDS`."""
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
    """Call `then` whenever the file has changed, until cancelled."""
    while True:
        await clock.sleep(LOOK_SECONDS)
        if await asyncio.to_thread(file.has_changed):  # a dead network disk may block
            await then()


def try_to_read(read: Read, running: Configuration) -> Configuration | None:
    """Read the part of the configuration that works without a restart.

    Returns:
        None if it cannot work, which is logged.
    """
    try:
        new = read()
        in_force = new.without_restart_changes(running)
    except GatewayError as error:  # its message holds no key
        _refuse(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the old one stays in force
        _refuse(type(error).__name__)  # its message may quote a key
    else:
        _log_what_needs_a_restart(running, new)
        return in_force
    return None


class Reloader:
    """Replaces the configuration of a running service.

    Args:
        service: It runs.
        configuration: It was made from this.
        read: Reads it again.
        hooks: Hooks of new gateways.
        state: What the process keeps over a restart.

    Attributes:
        configuration: The one in force.
    """

    def __init__(
        self,
        service: Service,
        configuration: Configuration,
        read: Read,
        hooks: Sequence[Hook] = (),
        state: KeptState | None = None,
    ) -> None:
        self.configuration = configuration
        self._hooks = hooks if state is None else (*hooks, state.usage)
        self._state = state
        self._service = service
        self._read = read
        self._one_at_a_time = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def reload(self) -> bool:
        """Read and apply.

        Returns:
            Whether the new configuration is in force; if not, the log has the reason.
        """
        async with self._one_at_a_time:
            new = try_to_read(self._read, self.configuration)
            if new is None:
                return False
            try:
                changes = await self._apply(new)
            except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on
                # As above: only our own messages are known to hold no key.
                reason = str(error) if isinstance(error, GatewayError) else type(error).__name__
                log_event(
                    logging.ERROR,
                    "reload.failed",
                    "Not all of the new configuration is in force: {reason}",
                    reason=reason,
                )
                return False
            log_event(
                logging.WARNING,
                "reload.done",
                "{changes}",
                changes="; ".join(changes) or "nothing has changed",
            )
            return True

    async def aclose(self) -> None:
        """Close the gateways that requests still use; call it last."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _apply(self, new: Configuration) -> list[str]:
        old = self.configuration
        changes = []
        if new.gateway != old.gateway:
            await self._replace_gateway(new)
            self.configuration = replace(new, server=old.server)
            changes.append(f"[gateway] {', '.join(_changed(old.gateway, new.gateway))}")
        elif new.providers != old.providers:
            self._change_providers(new.providers)
            self.configuration = replace(old, providers=new.providers)
            await self._service.gateway.warmup()
        if new.providers != old.providers:
            changes.append(f"providers {_difference(_named(old.providers), _named(new.providers))}")
        if new.server != old.server:
            self._service.settings = new.server
            self._service.access = self._service.access.successor(
                new.server, self._service.gateway.fleet.leases
            )
            changes.append(_server_changes(old.server, new.server))
        self.configuration = new
        self._service.shared.replay()
        return changes

    def _change_providers(self, configs: tuple[LLMConfig, ...]) -> None:
        """Change the running gateway. It awaits nothing, so no request comes in between."""
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
        if self._state is not None:
            gateway.use_fleet(self._state.fleet(new.gateway, new.server.workers))
        gateway.take_over(self._service.gateway)
        try:
            await gateway.warmup()  # before it answers requests
        except BaseException:
            await gateway.aclose()
            raise
        task = asyncio.create_task(self._retire(gateway), name="aigateway-retire-gateway")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        await asyncio.sleep(0)  # by now it has taken over

    async def _retire(self, successor: AsyncGateway) -> None:
        old = self._service.gateway
        try:
            await self._service.replace(successor)
        finally:
            with contextlib.suppress(GatewayError):
                await old.aclose()


def _named(each: Iterable[LLMConfig | ApiKey]) -> dict[str, object]:
    return {str(one.name): one for one in each}


def _server_changes(old: ServerSettings, new: ServerSettings) -> str:
    parts = []
    if new.keys != old.keys:
        parts.append(f"keys {_difference(_named(old.keys), _named(new.keys))}")
    others = [name for name in _changed(old, new) if name != "keys"]
    return f"[server] {', '.join([*parts, *others])}"


def _difference(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    kinds = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(n for n in after.keys() & before.keys() if after[n] != before[n]),
    }
    parts = [f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names]
    return "; ".join(parts) or "in another order"


def _changed(
    old: GatewaySettings | ServerSettings, new: GatewaySettings | ServerSettings
) -> list[str]:
    return [n for n in type(new).model_fields if getattr(new, n) != getattr(old, n)]


def _refuse(reason: str) -> None:
    log_event(
        logging.ERROR,
        "reload.refused",
        "The new configuration cannot work, the old one stays in force: {reason}",
        reason=reason,
    )


def _log_what_needs_a_restart(old: Configuration, new: Configuration) -> None:
    waiting = [n for n in NEEDS_RESTART if getattr(old.server, n) != getattr(new.server, n)]
    if waiting:
        log_event(
            logging.WARNING,
            "reload.needs_restart",
            "[server] {fields} can only change with a restart.",
            fields=", ".join(waiting),
        )
