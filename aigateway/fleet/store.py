"""The embedded store of one machine: an SQLite file that the processes of a service share.

It has what outlives a restart: the accounts of shared limits (`SqliteLedger`), who used what
(`UsageRecorder`, `read_usage`), operators' orders, and what was learned of prices and latencies.

SQLite by the standard library: what is kept is small and relational, and several processes write
it, each in transactions that read, compute and write. An ORM or a key-value layer over it would
only hide the transaction.

- Each process has one connection, on a thread of its own. Nothing here blocks the event loop.
- A killed process loses what it has not handed over yet; the file survives (WAL). What a power
  failure may cost are the last transactions, not the file (`synchronous=NORMAL`).
- A damaged file is set aside, and a new one begun. A disk that is full or gone is logged once; what
  could not be written is written later, or lost with the process. No caller waits or fails.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from aigateway.clock import SYSTEM_CLOCK, Clock
from aigateway.errors import ConfigurationError
from aigateway.events import (
    MOST_UNCOUNTED,
    AnswerDiscarded,
    AttemptEnded,
    Event,
    RequestEnded,
    ServedCall,
)
from aigateway.fleet.ledger import (
    DAY,
    HOLD_SECONDS,
    Account,
    Claim,
    FleetUnavailableError,
    Grant,
    LedgerAnswer,
)
from aigateway.fleet.sqlite_file import DamagedFileError, SqliteFile, is_damage, reason_of
from aigateway.telemetry.log import log_event

__all__ = [
    "STATE_FILE",
    "SqliteLedger",
    "Store",
    "UsageCounts",
    "UsageRecorder",
    "UsageRow",
    "begin_store",
    "read_learned",
    "read_usage",
    "write_learned",
]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

STATE_FILE = "aigateway-state.sqlite"
"""The name of the file in its directory."""

KEPT_DAYS = 400
"""Days of usage that are kept."""

LEARNED_DAYS = 30
"""What was learned is dropped if it was not seen again for so long."""

_IDLE_ACCOUNT_DAYS = 3
"""An account of a limit that no process has claimed for so long has nothing left that counts."""

_BUSY_SECONDS = 1.0
"""A transaction waits so long for that of another process."""

_EXCHANGE_SECONDS = 1.0
"""An exchange that takes longer counts as failed."""

_MOST_BUSY = 10
"""Transactions in a row that another process may keep from being made, until that is logged."""

_MOST_WAITING = 64
"""Transactions that may wait for a disk that does not answer."""

_APPLICATION = 0x41694777  # "AiGw"

_MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE accounts (name TEXT PRIMARY KEY, account TEXT NOT NULL, at REAL NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE members (name TEXT PRIMARY KEY, seen REAL NOT NULL, serial INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE usage (
        day INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
        requests INTEGER NOT NULL, answered INTEGER NOT NULL, failed INTEGER NOT NULL,
        cached INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        cost_usd REAL NOT NULL, unpriced INTEGER NOT NULL,
        PRIMARY KEY (day, key, model)
    ) WITHOUT ROWID;
    CREATE TABLE orders (subject TEXT PRIMARY KEY, content BLOB NOT NULL, at REAL NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE learned (name TEXT PRIMARY KEY, value TEXT NOT NULL, at REAL NOT NULL)
        WITHOUT ROWID;
    INSERT INTO meta VALUES ('epoch', lower(hex(randomblob(8))));
    """,
)
"""Each makes a file of the version before it one of the next; `user_version` counts them."""


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def _file(path: Path) -> SqliteFile:
    return SqliteFile(
        path,
        _APPLICATION,
        _MIGRATIONS,
        event="state.set_aside",
        loss="Accounts, usage and forced circuits begin anew in a new file."
        " `sqlite3 {aside} .recover` may save what was in it.",
        busy_seconds=_BUSY_SECONDS,
        keeps_others=False,
    )


def begin_store(path: Path, clock: Clock = SYSTEM_CLOCK) -> Mapping[str, bytes] | None:
    """Make sure that processes can use this file, before they are forked.

    Args:
        path: The file.
        clock: Time.

    Returns:
        Operators' orders by subject, as of the last run; None if the file cannot be used, which is
        logged.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        patient = replace(_file(path), busy_seconds=_BUSY_SECONDS * 5)
        with contextlib.closing(patient.open()) as db:
            db.execute("BEGIN IMMEDIATE")
            _purge(db, clock.wall())
            db.execute("COMMIT")
            return dict(db.execute("SELECT subject, content FROM orders"))
    except (OSError, sqlite3.Error, DamagedFileError) as error:
        log_event(
            logging.WARNING,
            "state.not_kept",
            "The state cannot be kept in {path} ({reason}): accounts, usage and forced circuits"
            " will not outlive this run. Set state_dir to a directory that can be written, or to"
            ' ":memory:".',
            path=str(path),
            reason=reason_of(error),
        )
        return None


def _purge(db: sqlite3.Connection, now: float) -> None:
    """Drop what is too old to be of use."""
    db.execute("DELETE FROM usage WHERE day < ?", (int(now // DAY) - KEPT_DAYS,))
    db.execute("DELETE FROM learned WHERE at < ?", (now - LEARNED_DAYS * DAY,))
    db.execute("DELETE FROM accounts WHERE at < ?", (now - _IDLE_ACCOUNT_DAYS * DAY,))


# ── one process ──────────────────────────────────────────────────────────────────────────────────


class Store:
    """The file, as one process uses it: one transaction after the other, on a thread of its own.

    Args:
        path: The file; `begin_store` has prepared it.
        clock: Time.

    Attributes:
        path: As given.
    """

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = path
        self.clock = clock
        self._jobs: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Work[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection | None = None
        self._file = _file(path)
        self._mark: tuple[int, int] | None = None
        self._failing = False
        self._busy = 0
        self._purged_on = int(clock.wall() // DAY)

    @property
    def available(self) -> bool:
        """Whether the last transaction worked."""
        return not self._failing

    async def run(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own, on the store's thread.

        A caller that is cancelled while it waits for its turn takes its work back.

        Raises:
            FleetUnavailableError: The file cannot be used now. Nothing was written.
        """
        if self._jobs.qsize() >= _MOST_WAITING:
            raise FleetUnavailableError(f"{self.path} does not answer.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="aigateway-store", daemon=True)
            self._thread.start()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.put((future, work))
        return await asyncio.wrap_future(future)

    async def aclose(self, seconds: float = 2.0) -> None:
        """Close the file after the transactions that wait; a dead disk is not waited for."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join, seconds)

    # ── on its thread ────────────────────────────────────────────────────────────────────────

    def _live(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    result = self._transact(work)
                except BaseException as error:  # noqa: BLE001 - it is the caller's
                    outcome = partial(future.set_exception, error)
                else:
                    outcome = partial(future.set_result, result)
                outcome()
        self._close()

    def _transact(self, work: Work[T]) -> T:
        try:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            self._purge_daily(db)
            result = work(db)
            db.execute("COMMIT")
        except (OSError, sqlite3.Error, DamagedFileError) as error:
            self._failed(error)
            raise FleetUnavailableError(f"{self.path}: {reason_of(error)}") from None
        except BaseException:
            self._close()  # which rolls back
            raise
        self._busy = 0
        if self._failing:
            self._failing = False
            log_event(
                logging.WARNING,
                "state.kept_again",
                "pid {pid} can write {path} again; nothing of this process was lost.",
                pid=os.getpid(),
                path=str(self.path),
            )
        return result

    def _connection(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now."""
        if self._db is not None and self._mark is not None and self._mark == self._file.mark():
            return self._db
        self._close()  # another process has set it aside, or it was removed
        self._db = self._file.open()
        self._mark = self._file.mark()
        return self._db

    def _failed(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        with contextlib.suppress(sqlite3.Error):
            if self._db is not None and self._db.in_transaction:
                self._db.rollback()
        self._busy = self._busy + 1 if code == sqlite3.SQLITE_BUSY else 0
        if 0 < self._busy < _MOST_BUSY:
            return  # another process is slow; the next exchange tries again
        # The next transaction opens it anew, and checks it.
        self._close()
        if is_damage(error):
            try:
                self._file.discard(self._mark, error)
            except OSError as failure:
                error = failure
            else:
                return
        if not self._failing:
            self._failing = True
            log_event(
                logging.WARNING,
                "state.not_written",
                "pid {pid} cannot write {path} ({reason}): it goes on by itself, and writes the"
                " accounts when it can again. Check the disk.",
                pid=os.getpid(),
                path=str(self.path),
                reason=reason_of(error),
            )

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _purge_daily(self, db: sqlite3.Connection) -> None:
        now = self.clock.wall()
        if int(now // DAY) != self._purged_on:
            self._purged_on = int(now // DAY)
            _purge(db, now)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


class SqliteLedger:
    """A ledger of the processes of one machine, which outlives them.

    Args:
        store: Where it is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        """See `Ledger`."""
        try:
            async with self._store.clock.timeout(_EXCHANGE_SECONDS):
                return await self._store.run(partial(self._exchange, member, claims, serial))
        except TimeoutError:
            raise FleetUnavailableError(f"{self._store.path} is too slow.") from None

    def _exchange(
        self, member: str, claims: Sequence[Claim], serial: int, db: sqlite3.Connection
    ) -> LedgerAnswer:
        now = self._store.clock.wall()
        epoch = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        if epoch is None:
            raise DamagedFileError("it has no epoch")
        found = db.execute("SELECT serial FROM members WHERE name = ?", (member,)).fetchone()
        last = found[0] if found else 0
        if serial < last:
            raise FleetUnavailableError("A later exchange has been booked.")
        db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (member, now, serial))
        db.execute("DELETE FROM members WHERE seen + ? <= ?", (DAY, now))
        # A clock that was set back must not keep the dead for longer.
        db.execute("UPDATE members SET seen = ? WHERE seen > ?", (now, now))
        live = [
            name
            for (name,) in db.execute(
                "SELECT name FROM members WHERE seen + ? > ?", (HOLD_SECONDS, now)
            )
        ]
        grants = [self._grant(member, claim, now, db, is_new=serial > last) for claim in claims]
        return LedgerAnswer(epoch[0], len(live), grants, sum(name < member for name in live))

    @staticmethod
    def _grant(
        member: str, claim: Claim, now: float, db: sqlite3.Connection, *, is_new: bool
    ) -> Grant:
        name = claim.limit.name
        row = db.execute("SELECT account FROM accounts WHERE name = ?", (name,)).fetchone()
        account = _account(row[0]) if row else Account()
        grant = account.grant(member, claim, now, is_new=is_new)
        text = _text(account)
        if row is None or text != row[0]:
            db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)", (name, text, now))
        return grant


def _account(text: str) -> Account:
    try:
        buckets, holds = orjson.loads(text)
        return Account(dict(buckets), {name: (units, ends) for name, units, ends in holds})
    except (TypeError, ValueError):
        raise DamagedFileError("an account in it cannot be read") from None


def _text(account: Account) -> str:
    holds = [(name, units, ends) for name, (units, ends) in account.holds.items()]
    return orjson.dumps([list(account.buckets.items()), holds]).decode()


# ── usage ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class UsageCounts:
    """What was used.

    Attributes:
        requests: Requests that have ended.
        answered: Those that got an answer, also a cached one.
        failed: Those whose caller got an error. The rest was cancelled by its caller.
        cached: Those answered from the cache, or together with an identical one.
        input_tokens: Tokens to be paid for, also of answers that were not used.
        output_tokens: Likewise.
        cost_usd: US dollars, as the accounts of keys count them.
        unpriced: Calls to vendors whose price is not known.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0

    def add(self, other: UsageCounts) -> None:
        """Add another one's figures."""
        for column in fields(self):
            name = column.name
            setattr(self, name, getattr(self, name) + getattr(other, name))


_MOST_ASKED = 10_000

_COLUMNS = [column.name for column in fields(UsageCounts)]

_ADD_USAGE = (
    f"INSERT INTO usage (day, key, model, {', '.join(_COLUMNS)})"  # noqa: S608 - constants
    f" VALUES ({', '.join('?' * (3 + len(_COLUMNS)))}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in _COLUMNS)
)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key used of one model on one day.

    Attributes:
        day: Days since 1970 (UTC).
        key: The key's name; "" without keys.
        model: The model of the provider; "" if no provider was asked.
        usage: What was used.
    """

    day: int
    key: str
    model: str
    usage: UsageCounts


class UsageRecorder:
    """A hook of the gateway that counts who used what, until `flush` writes it.

    Calls count for the model that was asked; a request for the model that answered it, or else for
    the last one that was asked.

    Args:
        store: Where it is written.
    """

    wants: tuple[type[Event], ...] = (AttemptEnded, AnswerDiscarded, RequestEnded)

    def __init__(self, store: Store) -> None:
        self._store = store
        # Each event with its day; counted later, many at once.
        self.uncounted: deque[ServedCall | tuple[int, Event]] = deque()
        self._counted: dict[tuple[int, str, str], UsageCounts] = {}
        self._models: dict[str, str] = {}  # by provider
        self._asked: dict[str, str] = {}  # by request, until it ends

    def on_event(self, event: Event) -> None:
        """Count the end of a call or of a request."""
        self.uncounted.append((int(self._store.clock.wall() // DAY), event))
        if len(self.uncounted) >= MOST_UNCOUNTED:
            self.count()

    def counted(self) -> dict[tuple[int, str, str], UsageCounts]:
        """Return what was counted and is not written, by day, key and model."""
        self.count()
        return self._counted

    def count(self) -> None:
        """Count what was noted."""
        while self.uncounted:
            end = self.uncounted.popleft()
            if isinstance(end, ServedCall):
                self._served(end)
                continue
            day, event = end
            if isinstance(event, RequestEnded):
                self._request_ended(day, event)
            elif isinstance(event, (AttemptEnded, AnswerDiscarded)):
                self._call_ended(day, event)

    def _served(self, call: ServedCall) -> None:
        self._models[call.provider] = call.model
        usage = self._usage(int(call.wall // DAY), call.tenant, call.model)
        usage.input_tokens += call.prompt_tokens
        usage.output_tokens += call.completion_tokens
        usage.cost_usd += call.cost_usd or 0.0
        usage.unpriced += call.cost_usd is None
        usage.requests += 1
        usage.answered += 1

    def _call_ended(self, day: int, event: AttemptEnded | AnswerDiscarded) -> None:
        tokens = event.usage
        if isinstance(event, AttemptEnded):
            self._models[event.provider] = event.model
            self._asked[event.request_id] = event.model
            if len(self._asked) > _MOST_ASKED:  # attempts that ended after their request
                del self._asked[next(iter(self._asked))]
            usage = self._usage(day, event.tenant, event.model)
            answered = event.failure is None
        else:
            usage = self._usage(day, event.tenant, self._models.get(event.provider, ""))
            answered = False
        usage.input_tokens += tokens.prompt_tokens
        usage.output_tokens += tokens.completion_tokens
        usage.cost_usd += event.cost_usd or 0.0
        usage.unpriced += event.cost_usd is None and (answered or tokens.total_tokens > 0)

    def _request_ended(self, day: int, event: RequestEnded) -> None:
        asked = self._asked.pop(event.request_id, event.model)
        usage = self._usage(day, event.tenant, self._models.get(event.provider or "", asked))
        usage.requests += 1
        usage.failed += event.outcome == "failed"
        usage.answered += event.outcome not in {"failed", "cancelled"}
        usage.cached += event.outcome in {"hit", "stale", "coalesced"}

    def _usage(self, day: int, key: str, model: str) -> UsageCounts:
        counted = self._counted.get((day, key, model))
        if counted is None:
            counted = self._counted[day, key, model] = UsageCounts()
        return counted

    async def flush(self) -> None:
        """Write what was counted; what cannot be written is kept for the next time."""
        counted, self._counted = self.counted(), {}
        if not counted:
            return
        rows = [(*place, *astuple(usage)) for place, usage in counted.items()]
        try:
            await self._store.run(lambda db: db.executemany(_ADD_USAGE, rows))
        except FleetUnavailableError:
            for place, usage in counted.items():
                self._counted.setdefault(place, UsageCounts()).add(usage)


def read_usage(path: Path, since: int) -> list[UsageRow]:
    """Read what was used, without a change to the file, also while a service writes it.

    Args:
        path: The file.
        since: The first day, in days since 1970.

    Raises:
        ConfigurationError: There is no such file, or it cannot be read.
    """
    if not path.exists():
        raise ConfigurationError(
            f"there is no {path}. `aigateway serve` makes it; name its directory with --state-dir,"
            " or the service's file with --config."
        )
    reason: Exception | None = None
    # Without a log beside it, no service is running; then SQLite need not make one to read.
    at_rest = not path.with_name(f"{path.name}-wal").exists()
    for mode in ("mode=ro&immutable=1", "mode=ro") if at_rest else ("mode=ro",):
        try:
            address = f"file:{quote(str(path.absolute()))}?{mode}"
            with contextlib.closing(
                sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS * 5)
            ) as db:
                found = db.execute(
                    f"SELECT day, key, model, {', '.join(_COLUMNS)} FROM usage"  # noqa: S608
                    " WHERE day >= ? ORDER BY day, key, model",
                    (since,),
                ).fetchall()
            return [
                UsageRow(day, key, model, UsageCounts(*counts))
                for day, key, model, *counts in found
            ]
        except sqlite3.Error as error:
            reason = reason or error
    raise ConfigurationError(f"{path} cannot be read ({reason}).")


# ── orders, and what was learned ─────────────────────────────────────────────────────────────────


def write_learned(
    orders: Mapping[str, bytes | None],
    learned: Mapping[str, str],
    now: float,
    db: sqlite3.Connection,
) -> None:
    """Write orders by subject (None ends one), and what was learned, as JSON by name."""
    for subject, content in orders.items():
        db.execute("DELETE FROM orders WHERE subject = ?", (subject,))
        if content is not None:
            db.execute("INSERT INTO orders VALUES (?, ?, ?)", (subject, content, now))
    db.executemany(
        "INSERT OR REPLACE INTO learned VALUES (?, ?, ?)",
        [(name, value, now) for name, value in learned.items()],
    )


def read_learned(db: sqlite3.Connection) -> dict[str, tuple[str, float]]:
    """Return what was learned by name: JSON, and when."""
    return {name: (value, at) for name, value, at in db.execute("SELECT * FROM learned")}
