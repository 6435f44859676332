"""The second level in Redis, and coalescing across processes.

One call of one script, bounded like every call, gives a request the answer, or the right to get it,
or says that another process is getting it. The right is a lease with a heartbeat: it ends soon
after its process does. A request that waits is woken by a message, and asks again now and then,
since messages may be lost.

An answer belongs to a *generation*. `clear` begins a new one; scripts find only answers of the
present one, and older ones end by their time to live. Where Redis has lost its memory, scripts
begin a generation whose name says so: what processes have in memory stays.

Not over aiocache's `RedisBackend`: it makes a pool of its own, without our circuit and bounds;
its reads cannot give the right to fetch or the time that is left; it sets seconds as whole numbers
or in a second command; and its `clear` is KEYS or FLUSHDB, which stops a shared server.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakSet

from aigateway.cache.memory import ExpiringLRU
from aigateway.cache.second_level import Stored, report_defect
from aigateway.clock import Clock
from aigateway.figures import SecondLevelMetrics
from aigateway.fleet.client import FleetClient, FleetUnavailableError, LuaScript

__all__ = ["SharedCache"]

LEASE_SECONDS = 2.0
"""A process that gets an answer and gives no sign of life for so long is taken for dead."""

_HEARTBEAT_SECONDS = 0.5
_POLL_SECONDS = 0.5
"""After which a request that waits asks again, should the message be lost."""

_LEARN_SECONDS = 1.0
"""After which a process without messages knows of a `clear`."""

_PATIENCE_SECONDS = 30.0
"""A request waits no longer for another process, however long its own deadline is."""

_DONE_SECONDS = 1.0
"""How long a caller waits for what it has written, or a process that ends."""

_MOST_QUEUED, _QUEUE_BYTES = 10_000, 32_000_000
"""Writes that may wait for Redis; more are dropped."""

_LONGEST_MS = 10 * 365 * 86_400_000
"""For answers that never expire: with a time to live, Redis may evict them."""

_MOST_DOOMED = 10_000
"""Deletions that are kept while Redis is away; with more, everything is cleared."""

_GENERATION = """
local generation = redis.pcall('GET', KEYS[1])
if type(generation) ~= 'string' then
  generation = ARGV[1]
  redis.pcall('SET', KEYS[1], generation)
end
"""

_READ = LuaScript(
    "cache read",
    _GENERATION
    + """
-- KEYS: generation, answer, lease, lease of background requests
-- ARGV: new generation, token ('' only reads), lease in ms, 1 in the background, 1 for stale
local value = redis.pcall('GET', KEYS[2])
if type(value) == 'string' then
  local made, stale, start = string.match(value, '^(%S+) (%d+) ()')
  if made == generation then
    local fresh = redis.call('PTTL', KEYS[2]) - stale
    if fresh > 0 or ARGV[5] == '1' then
      return {generation, 'found', string.sub(value, start), fresh}
    end
  end
end
if ARGV[2] == '' then return {generation, 'none'} end
local lease = KEYS[3]
for i = 3, 3 + ARGV[4] do
  lease = KEYS[i]
  if redis.call('EXISTS', lease) == 1 then
    redis.pcall('HSET', lease, 'waited', '1')
    return {generation, 'busy'}
  end
end
local set = redis.pcall('HSET', lease, 'token', ARGV[2])
if type(set) == 'table' then return {generation, 'none'} end -- the server takes no writes
redis.call('PEXPIRE', lease, ARGV[3])
return {generation, 'yours'}
""",
    writes=False,
)

_WRITE = LuaScript(
    "cache write",
    _GENERATION
    + """
-- KEYS: generation, answer, lease, lease of background requests
-- ARGV: new generation, known generation, value ('' drops it), fresh ms ('' keeps what is there),
--   stale ms, token, background token, channel, message if it is stored, message if it is not
local stored = 0
if ARGV[4] ~= '' then
  if ARGV[3] == '' then
    redis.call('DEL', KEYS[2])
  elseif ARGV[2] == '' or ARGV[2] == generation then
    redis.call('SET', KEYS[2], generation .. ' ' .. ARGV[5] .. ' ' .. ARGV[3],
      'PX', string.format('%d', ARGV[4] + ARGV[5]))
    stored = 1
  end
end
for i = 3, 4 do
  local lease = redis.pcall('HMGET', KEYS[i], 'token', 'waited')
  if ARGV[i + 3] ~= '' and lease[1] == ARGV[i + 3] then
    redis.call('DEL', KEYS[i])
    if lease[2] then redis.call('PUBLISH', ARGV[8], ARGV[10 - stored]) end
  end
end
return {generation, stored}
""",
)

_KEEP = LuaScript(
    "cache heartbeat",
    _GENERATION
    + """
-- KEYS: generation, leases.  ARGV: new generation, lease in ms, a token for each lease
for i = 2, #KEYS do
  if redis.pcall('HGET', KEYS[i], 'token') == ARGV[i + 1] then
    redis.pcall('PEXPIRE', KEYS[i], ARGV[2])
  end
end
return {generation}
""",
    writes=False,
)

_DELETE = LuaScript(
    "cache delete",
    _GENERATION
    + """
-- KEYS: generation, answer.  ARGV: new generation, channel, message
local fresh = 0
local value = redis.pcall('GET', KEYS[2])
if type(value) == 'string' then
  local made, stale = string.match(value, '^(%S+) (%d+) ')
  if made == generation and redis.call('PTTL', KEYS[2]) > tonumber(stale) then fresh = 1 end
end
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return fresh
""",
)

_CLEAR = LuaScript(
    "cache clear",
    """
-- KEYS: generation.  ARGV: new generation, channel, message
redis.call('SET', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
""",
)

_CHANNEL = "cache"
_GENERATION_KEY = "cache:generation"
_BEGUN, _LOST = "cleared", "lost"
"""Why a generation began; part of its name."""


class SharedCache:
    """A second level in Redis, for the processes of a fleet.

    Args:
        client: The connection.
        clock: Time.
    """

    def __init__(self, client: FleetClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._memories: WeakSet[ExpiringLRU[Any]] = WeakSet()
        self._generation = self._first_generation = ""  # the present one; the first that it learned
        self._leases: dict[tuple[str, bool], str] = {}  # tokens, by key and background
        self._waiting: dict[str, set[asyncio.Future[bool]]] = {}  # True: the answer is there
        self._queue: deque[tuple[Callable[[], Coroutine[Any, Any, None]], int]] = deque()
        self._queued_bytes = 0
        self._more: asyncio.Event | None = None  # only while it runs
        self._doomed: set[str] = set()  # to be deleted, and not to be read until then
        self._clears = False  # likewise, all of them
        self._writes = self._dropped = 0
        client.subscribe(_CHANNEL, self._hear)
        client.on_return(self._catch_up)

    @property
    def available(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return self._client.readable and not self._clears

    def attach(self, memory: ExpiringLRU[Any]) -> None:
        """See `SecondLevel`."""
        self._memories.add(memory)

    # ── on the way of a request ──────────────────────────────────────────────────────────────

    async def read(self, key: str, *, stale: bool = False) -> Stored | None:
        """See `SecondLevel`."""
        found = await self._read(key, "", stale=stale)
        return found if isinstance(found, Stored) else None

    async def fetch(self, key: str, *, patience: float, background: bool) -> Stored | None:
        """See `SecondLevel`."""
        token = secrets.token_hex(8)
        found = await self._read(key, token, background=background)
        if found == "busy":
            end = self._clock.now() + min(patience, _PATIENCE_SECONDS)
            while found == "busy" and (left := end - self._clock.now()) > 0:
                if await self._failed_elsewhere(key, min(left, _POLL_SECONDS)):
                    return None
                found = await self._read(key, token, background=background)
            if isinstance(found, Stored):
                return found._replace(waited=True)
        return found if isinstance(found, Stored) else None

    async def _failed_elsewhere(self, key: str, seconds: float) -> bool:
        """Wait for news of a key; return whether another process failed to get its answer."""
        news: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(news)
        try:
            async with self._clock.timeout(seconds):
                return not await news
        except TimeoutError:
            return False
        finally:
            waiting.discard(news)
            if not waiting:
                self._waiting.pop(key, None)

    async def _read(
        self, key: str, token: str, *, background: bool = False, stale: bool = False
    ) -> Stored | str:
        """Return what the script says; "none" if it does not answer."""
        if not self.available or key in self._doomed:
            return "none"
        args = (_new(_LOST), token, int(LEASE_SECONDS * 1000), int(background), int(stale))
        before = self._generation
        try:
            answer = await self._client.run(_READ, _keys(key), args)
            generation, word = answer[0].decode(), answer[1].decode()
        except BaseException as error:
            if token:  # the script may have run
                self._leases[key, background] = token
            if isinstance(error, FleetUnavailableError):
                return "none"
            self.give_up(key, background=background)
            raise
        if word == "yours":
            self._leases[key, background] = token
        if self._generation not in {before, generation} or self._clears:
            return "none"  # all was cleared meanwhile
        self._learn(generation)
        return Stored(answer[2], answer[3] / 1000) if word == "found" else word

    # ── in the background ────────────────────────────────────────────────────────────────────

    def give_up(self, key: str, *, background: bool) -> None:
        """See `SecondLevel`."""
        token = self._leases.pop((key, background), "")
        tokens = ("", token) if background else (token, "")
        if token and not self._enqueue(lambda: self._write(key, b"", (0, 0), tokens, "")):
            self._dropped -= 1  # no answer is lost, and the lease ends by itself

    def write(self, key: str, value: bytes, seconds: float, stale_seconds: float) -> None:
        """See `SecondLevel`."""
        self._dropped += not value
        stale = int(min(stale_seconds * 1000, _LONGEST_MS))
        ms = max(1, int(min(seconds * 1000, _LONGEST_MS)))
        # The rights to get this answer end now.
        tokens = (self._leases.pop((key, False), ""), self._leases.pop((key, True), ""))
        made = self._generation  # it is of this one, though all may be cleared before it is written
        self._enqueue(lambda: self._write(key, value, (ms, stale), tokens, made), len(value))

    async def _write(
        self, key: str, value: bytes, times: tuple[int, int], tokens: tuple[str, str], made: str
    ) -> None:
        messages = (f"done {key}", f"alone {key}")
        ms, stale = times  # fresh and stale; without the first only the rights end
        channel, made = self._client.channel_name(_CHANNEL), made or self._first_generation
        args = (_new(_LOST), made, value, ms or "", stale, *tokens, channel, *messages)
        try:
            answer = await self._client.run(_WRITE, _keys(key), args)
        except FleetUnavailableError:
            self._dropped += bool(value)
            return
        self._learn(answer[0].decode())
        if not ms:
            return
        self._writes += answer[1]
        self._dropped += bool(value) and not answer[1]
        if answer[1] or not value:
            self._doomed.discard(key)

    async def written(self) -> None:
        """See `SecondLevel`."""
        await self._done(_nothing)

    async def delete(self, key: str) -> bool:
        """See `SecondLevel`."""
        self._doomed.add(key)
        if len(self._doomed) > _MOST_DOOMED:
            self._doomed.clear()
            self._clears = True
        fresh: list[bool] = []
        await self._done(lambda: self._delete(key, fresh))
        return any(fresh)

    async def clear(self) -> None:
        """See `SecondLevel`."""
        self._clears = True
        self._doomed.clear()
        await self._done(self._clear)

    async def _delete(self, key: str, fresh: list[bool]) -> None:
        if key not in self._doomed:
            return  # it has been written since
        message = f"drop {self._client.member} {key}"
        args = (_new(_LOST), self._client.channel_name(_CHANNEL), message)
        try:
            fresh.append(bool(await self._client.run(_DELETE, _keys(key)[:2], args)))
        except FleetUnavailableError:
            return  # it stays doomed
        self._doomed.discard(key)

    async def _clear(self) -> None:
        generation = _new(_BEGUN)
        args = (generation, self._client.channel_name(_CHANNEL), f"clear {generation}")
        try:
            await self._client.run(_CLEAR, [_GENERATION_KEY], args)
        except FleetUnavailableError:
            return  # nothing is read until it has been done
        self._learn(generation)
        self._clears = False

    def _catch_up(self) -> None:
        """Do what could not be done while Redis was away."""
        if not self._client.available:
            return
        if self._clears:
            self._enqueue(self._clear)
        for key in self._doomed:
            self._enqueue(lambda key=key: self._delete(key, []))  # type: ignore[misc]

    async def _done(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something after what is queued, and wait for it if Redis answers."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def do() -> None:
            try:
                await work()
            finally:
                if not done.done():
                    done.set_result(None)

        if self._more is None:
            await asyncio.sleep(0)  # for `write_all`, if the fleet was joined just now
        if self._more is None or not self._client.available:
            return
        self._enqueue(do)
        try:
            async with self._clock.timeout(_DONE_SECONDS):
                await done
        except TimeoutError:
            return

    def _enqueue(self, work: Callable[[], Coroutine[Any, Any, None]], size: int = 0) -> bool:
        full = len(self._queue) >= _MOST_QUEUED or self._queued_bytes + size > _QUEUE_BYTES
        if full or not self._client.available:
            self._dropped += 1
            return False
        self._queue.append((work, size))
        self._queued_bytes += size
        if self._more is not None:
            self._more.set()
        return True

    # ── what goes on while it is in use ──────────────────────────────────────────────────────

    async def write_all(self) -> None:
        """Write what is queued, until cancelled; then write the rest."""
        self._more = more = asyncio.Event()
        try:
            while True:
                await self._write_queued()
                more.clear()
                await more.wait()
        except asyncio.CancelledError:  # not `finally`: an abandoned task ends on a closed loop
            self._more = None
            async with self._clock.timeout(_DONE_SECONDS):
                await self._write_queued()
            raise

    def abandon(self) -> None:
        """Forget who waits: their event loop is gone."""
        self._more = None
        self._waiting.clear()
        self._leases.clear()

    async def _write_queued(self) -> None:
        while self._queue:
            work, size = self._queue[0]
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - one answer must not end all writing
                report_defect(error)
            # Only now: what a cancellation interrupts is written again, at the end.
            self._queue.popleft()
            self._queued_bytes -= size

    async def keep(self) -> None:
        """Give signs of life for what this process gets, and learn the generation."""
        learned = -_LEARN_SECONDS
        while True:
            now = self._clock.now()
            if self._leases or now - learned >= _LEARN_SECONDS:
                learned = now
                self._catch_up()
                try:
                    await self._say_alive()
                except FleetUnavailableError:  # the client says so
                    pass
                except Exception as error:  # noqa: BLE001 - as above
                    report_defect(error)
            await self._clock.sleep(_HEARTBEAT_SECONDS)

    async def _say_alive(self) -> None:
        leases = list(self._leases.items())
        keys = [_GENERATION_KEY, *(_keys(key)[2 + later] for (key, later), _ in leases)]
        args = (_new(_LOST), int(LEASE_SECONDS * 1000), *(token for _, token in leases))
        self._learn((await self._client.run(_KEEP, keys, args))[0].decode())

    def _learn(self, generation: str) -> None:
        """Note the present generation; if all was cleared, drop what is in memory, too."""
        known, self._generation = self._generation, generation
        self._first_generation = self._first_generation or generation
        if known and known != generation and generation.startswith(_BEGUN):
            for memory in self._memories:
                memory.clear()

    def _hear(self, message: bytes) -> None:
        word, _, rest = message.decode().partition(" ")
        if word in {"done", "alone"}:
            for news in self._waiting.get(rest, ()):
                if not news.done():
                    news.set_result(word == "done")
        elif word == "clear":
            self._learn(rest)
        elif word == "drop":
            member, _, key = rest.partition(" ")
            if member != self._client.member:
                for memory in self._memories:
                    memory.discard(key)

    def stats(self) -> SecondLevelMetrics:
        """See `SecondLevel`."""
        return {"second_writes": self._writes, "second_dropped": self._dropped}


def _keys(key: str) -> list[str]:
    return [
        _GENERATION_KEY,
        f"cache:answer:{key}",
        f"cache:lease:{key}",
        f"cache:lease:background:{key}",
    ]


def _new(why: str) -> str:
    return f"{why}:{secrets.token_hex(8)}"


async def _nothing() -> None:
    return
