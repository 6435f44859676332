"""The connection to Redis or Valkey. Only this room imports redis.

No request waits for more than `BOUND`, and none while Redis is known to be lost: our own circuit
breaker knows. A background task probes and listens (`FleetClient.listen`), so no request has to.

Each command runs in a task of its own, which its caller does not cancel. So a caller that leaves,
or whose time is over, cannot leave a connection with an answer that the next command would read;
and a connection that takes long to open (TLS, a new cluster layout) is there for the next command.

What failed at the same moment counts once in the circuit: after a stall of our own event loop, or a
restart, all commands in flight fail together. A full pool of our own says nothing about Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import ipaddress
import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from aigateway.clock import Clock
from aigateway.errors import ConfigurationError
from aigateway.events import FleetLost, FleetRefused, FleetReturned
from aigateway.fleet.ledger import FleetUnavailableError
from aigateway.resilience.breaker import CircuitBreaker, CircuitState, Permit
from aigateway.settings import GatewaySettings
from aigateway.settings.redis_url import RedisAddress, redis_address
from aigateway.settings.secrets import has_a_key, keep_secret

__all__ = ["BOUND", "FleetClient", "FleetUnavailableError", "LuaScript"]

T = TypeVar("T")

BOUND = 0.05
"""Seconds that a caller waits for an answer, the wait for a free connection included."""

LATE = 0.01
"""Seconds by which a timer may be late on a busy machine."""

CONNECT_SECONDS, READ_SECONDS = 0.2, 0.25
"""The library's own bounds, which no caller waits for. They leave room for stalls of ours."""

CONNECTIONS = 16
"""Commands in flight at once; more wait, within their bound."""

LONGEST = 1.0
"""Seconds after which a command that its caller has left is given up."""

PING_SECONDS = 1.0
"""Seconds without a message after which the listener's own connection is checked."""

WRITE_SECONDS = 0.5
"""Seconds between probes of a server that refuses to write; more if it does so again and again."""

REFUSED_SECONDS = 30.0
"""Seconds for which a script that the server refuses (by ACL, or as wrong) is not tried again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LuaScript:
    """A Lua script. All its keys have the fleet's one hash tag, so a cluster can run it.

    Attributes:
        name: For messages.
        text: Its source.
        writes: Whether it is of no use to a server that refuses to write. One that only reads, or
            catches the refusal (`redis.pcall`), is run all the same.
        sha: Its name at the server.
    """

    name: str
    text: str
    writes: bool = True
    sha: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False)
        object.__setattr__(self, "sha", digest.hexdigest())


_LOGIN = "correct the user and the password in redis_url; until then this process shares nothing"
_ALLOW = "let the user of redis_url run it (ACL SETUSER); until then it is not shared"

_PROBE = LuaScript("probe", "redis.call('SET', KEYS[1], '1', 'PX', 1000) return 1")
"""It writes: a full server, or a replica, answers a PING."""


_ALONE = "each process goes on with its share of the limits and its own cache"
_READS_ON = "each process goes on with its share of the limits; shared answers are still read"


class FleetClient:
    """One client with a bounded pool, behind our own circuit breaker.

    Belongs to one event loop at a time, like the gateway. A forked process opens connections of its
    own.

    A server that is full, or a replica, refuses writes: then `available` is False and scripts that
    write raise at once, but reads still work (`readable`), so cached answers are served on.

    Args:
        settings: `redis_url` and `fleet_name`.
        clock: Time.
        report: Called with each `FleetLost`, `FleetRefused` and `FleetReturned`.

    Raises:
        ConfigurationError: Options of the URL cannot work.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        clock: Clock,
        report: Callable[[FleetLost | FleetRefused | FleetReturned], object] = lambda _: None,
    ) -> None:
        assert settings.redis_url is not None  # noqa: S101 - else there is no client
        self._address = redis_address(settings.redis_url.get_secret_value())
        self._prefix = f"aigateway:{{{settings.fleet_name}}}:"
        self._clock = clock
        self._report = report
        self._maker = _Maker(self._address)
        self._connections: _Connections | None = None
        self._breaker = CircuitBreaker(
            3, 0.25, max_open_seconds=0.75, probe_lease_seconds=10.0, clock=clock
        )
        self._breaker.on_change = self._circuit_changed
        self._judge = _Judge()
        self._read_only = ""  # why writes are refused
        self._read_only_since = float("-inf")
        self._write_pause = WRITE_SECONDS
        self._met = False  # whether it has answered yet
        self._lost_since: float | None = None
        self._lost = ""  # what the latest event said of
        self._reason = ""
        self._auth = False  # whether that is the login
        self._refused: dict[str, tuple[str, float]] = {}  # by script: why, and until when
        self._handlers: dict[str, list[Callable[[bytes], object]]] = {}
        self._returned: list[Callable[[], object]] = []
        self._process = 0
        self._member = ""

    def __repr__(self) -> str:
        return f"FleetClient({self._address}, {self._breaker.state})"

    @property
    def member(self) -> str:
        """Identifies this process in the fleet; also after a fork."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._member = f"{socket.gethostname()}-{self._process}-{secrets.token_hex(4)}"
        return self._member

    @property
    def available(self) -> bool:
        """Whether Redis answered lately, as far as is known. False costs a caller nothing.

        True at first, until a command has failed.
        """
        return self._breaker.state is CircuitState.CLOSED and not self._read_only

    @property
    def readable(self) -> bool:
        """Whether `get` works: also where Redis refuses to write."""
        return self._breaker.state is CircuitState.CLOSED

    # ── commands ─────────────────────────────────────────────────────────────────────────────

    async def run(
        self,
        script: LuaScript,
        keys: Sequence[str],
        args: Sequence[Any] = (),
        *,
        seconds: float = BOUND,
    ) -> Any:
        """Run a script, bounded at 50 ms.

        Args:
            script: The script.
            keys: At least one, without the prefix `aigateway:{fleet}:`, which is added.
            args: Texts, bytes and numbers.
            seconds: Another bound, if no request waits. To be late is no failure of Redis then.

        Raises:
            FleetUnavailableError: There was no answer. The script may still run, or have run.
        """
        if self._read_only and script.writes:
            raise FleetUnavailableError(f"Redis at {self._address} refuses to write.")
        return await self._ask(script.name, partial(self._evaluate, script, keys, args), seconds)

    async def _evaluate(
        self, script: LuaScript, keys: Sequence[str], args: Sequence[Any], redis: Any
    ) -> Any:
        words = (len(keys), *(self._prefix + key for key in keys), *args)
        try:
            return await redis.execute_command("EVALSHA", script.sha, *words)
        except self._judge.errors.NoScriptError:  # restarted empty, or another node
            return await redis.execute_command("EVAL", script.text, *words)

    async def _ask(
        self, name: str, command: Callable[[Any], Awaitable[T]], seconds: float = BOUND
    ) -> T:
        """Run a command in a task of its own, and wait for it as long as a caller may."""
        if self._breaker.state is not CircuitState.CLOSED:
            raise FleetUnavailableError(f"Redis at {self._address} is lost.")
        why, until = self._refused.get(name, ("", 0.0))
        if why and self._clock.now() < until:
            raise FleetUnavailableError(f"Redis refuses {name}: {why}")
        connections = self._connect()
        permit: Permit | None = None
        began = self._clock.now()
        try:
            async with self._clock.timeout(seconds, more=self._more):
                await connections.slots.acquire()
                permit = self._permit()
                if permit is None:  # lost meanwhile
                    connections.slots.release()
                    raise FleetUnavailableError(f"Redis at {self._address} is lost.")
                task = connections.begin(self._settle(connections, name, permit, command))
                return await asyncio.shield(task)
        except TimeoutError:
            if permit is None:
                busy = f"all {CONNECTIONS} connections to Redis are in use"
                raise FleetUnavailableError(f"Within {seconds} s {busy}.") from None
            # While it may still connect, or our own event loop is late, its own end counts.
            if self._met and seconds == BOUND and self._clock.now() - began - BOUND < LATE:
                self._blame(permit, f"no answer within {BOUND} s")
            raise FleetUnavailableError(f"Redis at {self._address} is slow.") from None

    def _permit(self) -> Permit | None:
        """Return a permit unless Redis is lost; probes are `_watch`'s."""
        given = self._breaker.acquire() if self.readable else None
        return given if isinstance(given, Permit) else None

    async def _settle(
        self,
        connections: _Connections,
        name: str,
        permit: Permit,
        command: Callable[[Any], Awaitable[T]],
    ) -> T:
        """Run a command, and settle its permit by how it really ends."""
        try:
            async with self._clock.timeout(LONGEST):
                result = await command(connections.redis)
            self._succeeded(permit, name)
        except Exception as error:  # noqa: BLE001 - whatever the library raises, a request must not
            self._failed(permit, name, error)
            message = f"Redis at {self._address} did not answer: {_text(error)}"
            raise FleetUnavailableError(message) from None
        finally:
            permit.release()
            connections.slots.release()
        return result

    # ── what the ends mean ───────────────────────────────────────────────────────────────────

    def _more(self, limit: float, began: float, looked: float) -> float:
        """Give a caller the time back, once, for which our own event loop stood still."""
        late = self._clock.now() - began - limit
        return min(late, BOUND) if looked == began and late > LATE else 0.0

    def _succeeded(self, permit: Permit, name: str) -> None:
        permit.success()
        self._met = True
        if self._refused:
            self._refused.pop(name, None)

    def _failed(self, permit: Permit, name: str, error: Exception) -> None:
        kind, text = self._judge(error), _text(error)
        if kind == "pool":
            permit.release()
        elif kind == "refused":
            permit.success()
            self._refuse(name, text)
        elif kind == "read-only":
            self._refuse_writes(text)
            permit.success()
        else:
            self._blame(permit, text, auth=kind == "auth")

    def _blame(self, permit: Permit, reason: str, *, auth: bool = False) -> None:
        self._reason, self._auth = reason, auth
        # What fails at the same moment counts once.
        permit.failure(int(self._clock.now() / BOUND))

    def _refuse(self, name: str, text: str) -> None:
        """Note that the server refuses a script, by its ACL or since it is wrong."""
        known = self._refused.get(name, ("", 0.0))[0]
        self._refused[name] = (text, self._clock.now() + REFUSED_SECONDS)
        if known != text:
            self._report(FleetRefused(str(self._address), name, text, _ALLOW))

    def _refuse_writes(self, text: str) -> None:
        if self._read_only:
            return
        # Around its limit of memory, a server accepts and refuses in turns: then ask less often.
        now = self._clock.now()
        again = now - self._read_only_since < 2 * REFUSED_SECONDS
        self._write_pause = min(2 * self._write_pause, REFUSED_SECONDS) if again else WRITE_SECONDS
        self._read_only, self._read_only_since = text, now
        self._state_changed(text)

    def _circuit_changed(self, old: CircuitState, new: CircuitState) -> None:
        del old
        if new is not CircuitState.HALF_OPEN:
            self._state_changed(self._read_only or self._reason)

    def _state_changed(self, reason: str) -> None:
        """Report a change, once."""
        if self.readable:
            lost = "writes" if self._read_only else ""
        else:
            lost = "login" if self._auth else "all"
        if lost == self._lost:
            return
        self._lost, now = lost, self._clock.now()
        if self._connections is not None:
            self._connections.note(lost=bool(lost), readable=self.readable)
        where = str(self._address)
        if not lost:
            seconds = now - (self._lost_since or now)
            self._lost_since = None
            self._report(FleetReturned(where, round(seconds, 3)))
            for handler in self._returned:
                _call(handler)
            return
        if self._lost_since is None:
            self._lost_since = now
        if lost == "login":
            self._report(FleetRefused(where, lost, reason, _LOGIN))
        else:
            effect = _READS_ON if lost == "writes" else _ALONE
            self._report(FleetLost(where, reason, effect, writes_only=lost == "writes"))

    # ── in the background ────────────────────────────────────────────────────────────────────

    def subscribe(self, channel: str, handler: Callable[[bytes], object]) -> None:
        """Call `handler` with each message to a channel (without prefix), while `listen` runs.

        Subscribe before `listen` begins. Messages may be lost; whatever depends on them also polls.
        Scripts publish to `channel_name(channel)`.
        """
        self._handlers.setdefault(self.channel_name(channel), []).append(handler)

    def channel_name(self, channel: str) -> str:
        """Return the whole name of a channel, for `redis.call('PUBLISH', ...)`."""
        return self._prefix + channel

    def on_return(self, handler: Callable[[], object]) -> None:
        """Call `handler` each time Redis can be asked again after it could not."""
        self._returned.append(handler)

    async def listen(self) -> None:
        """Receive messages, and notice that Redis is back, until cancelled."""
        connections = self._connect()
        tasks = [connections.begin(work(connections)) for work in (self._watch, self._receive)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(tasks)
            raise
        await _end(tasks)  # a defect of ours
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _watch(self, connections: _Connections) -> None:
        """Connect; later on probe while Redis is lost, or refuses to write."""
        permit = self._permit()
        if permit is not None:
            await self._probe(connections, permit)
        while True:
            await connections.until_lost(self._clock)
            refusal = self._breaker.refusal()
            if refusal is not None:
                await self._clock.sleep(max(refusal.retry_after, BOUND))
                continue
            if self.readable:
                await self._clock.sleep(self._write_pause)
            given = self._breaker.acquire()
            if isinstance(given, Permit):
                await self._probe(connections, given)

    async def _probe(self, connections: _Connections, permit: Permit) -> None:
        try:
            # A server that was demoted keeps its connections: ask whichever is behind the name now.
            await connections.disconnect_idle()
            for seconds in (LONGEST, BOUND):  # the first may have to connect
                async with self._clock.timeout(seconds, more=self._more):
                    await self._evaluate(_PROBE, ["probe"], (), connections.redis)
        except Exception as error:  # noqa: BLE001 - it is judged
            self._failed(permit, _PROBE.name, error)
            if _PROBE.name not in self._refused:
                return
        else:
            self._read_only = ""
            self._succeeded(permit, _PROBE.name)
        finally:
            permit.release()
        self._read_only = ""
        self._state_changed("")

    async def _receive(self, connections: _Connections) -> None:
        """Receive messages; connect again whenever the connection breaks."""
        while True:
            await connections.readable.wait()
            permit = self._permit()
            if permit is None:
                continue
            try:
                async with connections.subscription(self._clock) as messages:
                    await self._read(messages, permit)
            except Exception as error:  # noqa: BLE001 - it is judged
                # The permit may have been settled hours ago.
                self._failed(self._permit() or permit, "SUBSCRIBE", error)
            refused = "SUBSCRIBE" in self._refused
            await self._clock.sleep(REFUSED_SECONDS if refused else BOUND)

    async def _read(self, messages: Any, permit: Permit) -> None:
        """Read messages until the connection breaks."""
        names = list(self._handlers) or [self.channel_name("members")]
        async with self._clock.timeout(LONGEST):
            await messages.subscribe(*names)
        asked = True  # for an answer: to SUBSCRIBE, then to PING
        while True:
            message = await messages.get_message(timeout=LONGEST / 2 if asked else PING_SECONDS)
            if message is not None:
                asked = False
                self._succeeded(permit, "SUBSCRIBE")
                if message["type"] == "message":
                    channel = message["channel"].decode()
                    for handler in self._handlers.get(channel, ()):
                        _call(partial(handler, message["data"]))
            elif asked:
                raise TimeoutError
            else:
                asked = True
                await messages.ping()

    # ── connections ──────────────────────────────────────────────────────────────────────────

    def _connect(self) -> _Connections:
        """Return the connections of the running event loop, which are opened when used."""
        loop = asyncio.get_running_loop()
        if self._connections is None or self._connections.loop is not loop:
            self.abandon()
            self._connections = _Connections(self._maker, loop)
            self._connections.note(lost=not self.available, readable=self.readable)
        return self._connections

    async def aclose(self) -> None:
        """Close every connection."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    def abandon(self) -> None:
        """Drop the connections: their event loop is gone, or they are another process's."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.end.drop()


def _call(handler: Callable[[], object]) -> None:
    try:
        handler()
    except Exception:  # noqa: BLE001 - one listener's fault must not deafen the others
        _log.exception("A listener to the fleet raised; the others are not affected.")


def _text(error: Exception) -> str:
    """Return what an error says, without what was sent: the server quotes the arguments."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    text = str(error).partition(", with args beginning")[0].partition(" with args: ")[0][:200]
    return type(error).__name__ if not text or has_a_key(text) else text


class _Judge:
    """Says of an error whose it is: "failure", "auth", "read-only", "refused" or "pool"."""

    _READ_ONLY = re.compile(r"(^|[ -])(OOM|READONLY|MISCONF|NOREPLICAS) ")
    _TROUBLE = re.compile(r"(^|[ -])(BUSY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|UNKILLABLE) ")

    def __init__(self) -> None:
        self.errors = errors = importlib.import_module("redis.exceptions")
        self._auth = (errors.AuthenticationError, errors.AuthorizationError)
        self._writes = (errors.OutOfMemoryError, errors.ReadOnlyError)
        self._failures = (
            errors.ClusterError,
            errors.AskError,
            errors.TryAgainError,
            errors.NoScriptError,
        )

    def __call__(self, error: Exception) -> str:
        if isinstance(error, self.errors.MaxConnectionsError):
            return "pool"
        if isinstance(error, self._auth):
            return "auth"
        text = str(error)
        if isinstance(error, self._writes) or self._READ_ONLY.search(text):
            return "read-only"
        if isinstance(error, self._failures) or self._TROUBLE.search(text):
            return "failure"
        ours = (self.errors.ResponseError, self.errors.DataError)
        return "refused" if isinstance(error, ours) else "failure"


# ── the library ──────────────────────────────────────────────────────────────────────────────────


class _Maker:
    """Makes redis-py's objects, from options that were checked at the start."""

    def __init__(self, address: RedisAddress) -> None:
        self.asyncio = importlib.import_module("redis.asyncio")
        self._library = importlib.import_module("redis.asyncio.connection")
        importlib.import_module("aigateway.wires.http")  # loaded now, not within a request
        self.address = address
        self._sentinel_options: dict[str, Any] = {}
        self._lookups = _Lookups()
        try:
            self._options = self._parsed()
            kind, self._tls = self._checked()
            self.connection_class = self._ours(kind)
        except (ValueError, TypeError, OSError, self._library.RedisError) as error:
            # A library's text may quote the value of an option, such as a password.
            name = getattr(error, "filename", None) or type(error).__name__
            raise ConfigurationError(
                f'redis_url: an option after "?" is not known or cannot work ({name}).'
            ) from None

    def _parsed(self) -> dict[str, Any]:
        options: dict[str, Any] = dict(self._library.parse_url(self.address.url))
        keep_secret(o for n, o in options.items() if n.endswith("password") and isinstance(o, str))
        for name in [name for name in options if name.startswith("sentinel_")]:
            self._sentinel_options[name.removeprefix("sentinel_")] = options.pop(name)
        retry = importlib.import_module("redis.asyncio.retry").Retry
        backoff = importlib.import_module("redis.backoff").NoBackoff
        return options | {
            "socket_timeout": READ_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry": retry(backoff(), 0),
            "decode_responses": False,  # what we read is bytes
            "protocol": 2,  # a server before 6 has no other, and it saves a journey
        }

    def _checked(self) -> tuple[type[Any], Any]:
        """Return the class of connections, and their certificates, which take 30 ms to load."""
        kind = self._options.pop("connection_class", self._library.Connection)
        trial = kind(**self._options)
        if kind is not self._library.SSLConnection:
            return kind, None
        trial.ssl_context.get()
        return kind, trial.ssl_context

    def _ours(self, kind: type[Any]) -> type[Any]:
        """Return a class of connections that share the certificates, and look names up apart."""
        tls, lookups = self._tls, self._lookups

        class FleetConnection(kind):  # type: ignore[misc]
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                if tls is not None:
                    self.ssl_context = tls

            async def _connect(self) -> None:
                if hasattr(self, "host"):
                    await lookups.wait(self.host)
                await super()._connect()

        return FleetConnection

    def server(self, host: str | None = None, port: int | None = None, most: int = 1) -> Any:
        """Return a client of one server, or of one node."""
        there = {} if host is None else {"host": host, "port": port}
        pool = self._library.ConnectionPool(
            connection_class=self.connection_class,
            max_connections=most,
            **(self._options | there),
        )
        return self.asyncio.Redis.from_pool(pool)

    def clients(self) -> list[Any]:
        """Return a client of what the URL names, and then one of each sentinel."""
        most = CONNECTIONS + 2  # the listener's, and the probe's
        if self.address.kind == "server":
            return [self.server(most=most)]
        if self.address.kind == "cluster":
            return [self._cluster(most)]
        sentinel = importlib.import_module("redis.asyncio.sentinel")
        tls = self._tls is not None
        options = {n: o for n, o in self._options.items() if n not in {"host", "port"}}
        own = {"username", "password", "db"}
        asked = {n: o for n, o in options.items() if n not in own} | self._sentinel_options
        sentinels = sentinel.Sentinel(
            self.address.hosts, sentinel_kwargs=asked | ({"ssl": True} if tls else {}), **options
        )
        for each in sentinels.sentinels:
            each.connection_pool.connection_class = self.connection_class
        managed = "SentinelManagedSSLConnection" if tls else "SentinelManagedConnection"
        master = sentinels.master_for(
            self.address.service,
            connection_class=self._ours(getattr(sentinel, managed)),
            max_connections=most,
        )
        return [master, *sentinels.sentinels]

    def _cluster(self, most: int) -> Any:
        library = importlib.import_module("redis.asyncio.cluster")
        options = {n: o for n, o in self._options.items() if n not in {"host", "port", "db"}}
        nodes = [library.ClusterNode(host, port) for host, port in self.address.hosts]
        if self._tls is not None:
            options["ssl"] = True
        cluster = library.RedisCluster(startup_nodes=nodes, max_connections=most, **options)
        cluster.connection_kwargs["connection_class"] = self.connection_class
        for node in cluster.nodes_manager.startup_nodes.values():
            node.connection_class = self.connection_class
        return cluster


class _Lookups:
    """Looks each name up once at a time, in a thread of its own.

    A lookup that hangs must not take the threads of the event loop, which looks up vendors' names
    with them, one after the other; nor may it hold up the end of the process.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[None]] = {}

    async def wait(self, host: str) -> None:
        """Wait until the name can be looked up; if there is no such name, the caller will see."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return
        key = (asyncio.get_running_loop(), host)
        if key not in self._running:
            self._running[key] = key[0].create_future()
            threading.Thread(target=self._look_up, args=key, daemon=True).start()
        await asyncio.shield(self._running[key])

    def _look_up(self, loop: asyncio.AbstractEventLoop, host: str) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            socket.getaddrinfo(host, None)
        try:
            loop.call_soon_threadsafe(self._end, loop, host)
        except RuntimeError:  # the loop is closed
            self._running.pop((loop, host), None)

    def _end(self, loop: asyncio.AbstractEventLoop, host: str) -> None:
        self._running.pop((loop, host)).set_result(None)


class _Connections:
    """The connections of one event loop, closed with it at the latest.

    Attributes:
        loop: The event loop.
        redis: The library's client.
        slots: One for each command in flight.
        lost: Set while Redis is lost, or refuses to write.
        readable: Set while it is not lost.
    """

    def __init__(self, maker: _Maker, loop: asyncio.AbstractEventLoop) -> None:
        from aigateway.wires.http import LoopEnd  # noqa: PLC0415 - it loads aiohttp

        self.loop = loop
        self._maker = maker
        clients = maker.clients()
        self.redis = clients[0]
        self.slots = asyncio.Semaphore(CONNECTIONS)
        self.lost = asyncio.Event()
        self.readable = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        open_ = (self._tasks, clients)
        self.end = LoopEnd(partial(_close, *open_), partial(_drop, *open_))

    def note(self, *, lost: bool, readable: bool) -> None:
        """Wake what waits for a state."""
        for event, happened in ((self.lost, lost), (self.readable, readable)):
            (event.set if happened else event.clear)()

    def begin(self, work: Any) -> asyncio.Task[Any]:
        """Begin a task that ends with the connections."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left

    @contextlib.asynccontextmanager
    async def subscription(self, clock: Clock) -> AsyncIterator[Any]:
        """Yield a listener of the library's, and close it."""
        own = None
        if self._maker.address.kind == "cluster":  # a message goes to all nodes: listen to any
            known = [(n.host, n.port) for n in self.redis.get_nodes()] or self._maker.address.hosts
            host, port = known[int(clock.random() * len(known))]
            own = self._maker.server(host, port)
        messages = (self.redis if own is None else own).pubsub()
        try:
            yield messages
        finally:
            await _quietly(messages.aclose())
            if own is not None:
                await _quietly(own.aclose())

    async def until_lost(self, clock: Clock) -> None:
        """Wait until Redis is lost; meanwhile follow the sentinels to another master.

        One that was demoted in good order answers for ten more seconds.
        """
        while not self.lost.is_set():
            if self._maker.address.kind != "sentinel":
                await self.lost.wait()
                return
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(PING_SECONDS):
                    await self.lost.wait()
            pool = self.redis.connection_pool
            with contextlib.suppress(Exception):  # the commands will see
                before = pool.master_address
                async with clock.timeout(LONGEST):
                    if before not in {None, await pool.get_master_address()}:
                        await pool.disconnect()

    async def disconnect_idle(self) -> None:
        """Close connections that no command uses. A cluster's client does so by itself."""
        pool = getattr(self.redis, "connection_pool", None)
        if pool is not None:
            await _quietly(pool.disconnect(inuse_connections=False))

    async def aclose(self) -> None:
        """Close every connection."""
        await self.end.close()


async def _quietly(closing: Awaitable[Any]) -> None:
    """Wait until something is closed; how a dead connection closes matters to none."""
    with contextlib.suppress(Exception):
        await closing


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end.

    Before Python 3.12 `asyncio.wait_for`, which the library uses, may swallow a cancellation.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=BOUND)


async def _close(tasks: set[asyncio.Task[Any]], clients: list[Any]) -> None:
    await _end(tasks)
    while clients:
        await _quietly(clients.pop(0).aclose())


def _drop(tasks: set[asyncio.Task[Any]], clients: list[Any]) -> None:
    """Close the sockets of clients whose event loop is closed."""
    from aigateway.wires.http import close_socket  # noqa: PLC0415 - it loads aiohttp

    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - its loop is gone
    for connection in _open_connections(clients):
        writer, connection._writer, connection._reader = connection._writer, None, None  # noqa: SLF001 - there is no public way without a loop
        if writer is not None:
            close_socket(writer.transport)
    tasks.clear()
    clients.clear()


def _open_connections(clients: Sequence[Any]) -> Iterator[Any]:
    for client in clients:
        manager = getattr(client, "nodes_manager", None)
        if manager is not None:
            for node in {*manager.nodes_cache.values(), *manager.startup_nodes.values()}:
                yield from node._connections  # noqa: SLF001
        pool = getattr(client, "connection_pool", None)
        if pool is not None:
            yield from (*pool._available_connections, *pool._in_use_connections)  # noqa: SLF001
