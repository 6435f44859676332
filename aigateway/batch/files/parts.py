"""Parts: the records of a shard, until they are in the output.

A worker writes the records of each shard to a part of its own. The next run moves
them to the output, on one machine or on many. A kill in the middle leaves the part, and
no record is moved twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import NamedTuple, Self

from aigateway.batch.files.index import Index, failed_at
from aigateway.batch.files.input import LINES_PER_TURN
from aigateway.batch.files.output import Journal, JournalInUseError, Record
from aigateway.batch.files.paths import JobFiles
from aigateway.batch.files.totals import JobTotals
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError

__all__ = ["ACTIVE_FILE", "ShardPart", "merge_part", "merge_parts"]

ACTIVE_FILE = "active"
"""A file beside the parts. Its time is when the job last ran."""

_LOCK_SECONDS = 30.0
"""How long a part may still be written by a worker that is about to end."""

_LOOK_AGAIN = 0.1


class ShardPart(NamedTuple):
    """The files of one part."""

    answers: Path
    errors: Path

    @classmethod
    def of(cls, folder: Path, number: int) -> Self:
        """Return the part of a shard."""
        return cls(folder / f"{number:06}.jsonl", folder / f"{number:06}.errors.jsonl")

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return sum(path.stat().st_size for path in self if path.exists())

    async def open(self) -> JobFiles:
        """Open its files, once their last writer has ended.

        Raises:
            JournalInUseError: It still writes after half a minute.
            ConfigurationError: They cannot be written.
        """
        with contextlib.ExitStack() as opened:
            answers = opened.enter_context(await _unlocked(self.answers))
            errors = opened.enter_context(await _unlocked(self.errors))
            opened.pop_all()
            return JobFiles(answers, errors)


async def _unlocked(path: Path) -> Journal:
    end = SYSTEM_CLOCK.now() + _LOCK_SECONDS
    while True:
        try:
            return Journal(path)
        except JournalInUseError:
            if SYSTEM_CLOCK.now() >= end:
                raise
        await SYSTEM_CLOCK.sleep(_LOOK_AGAIN)


async def merge_part(
    part: ShardPart, index: Index, files: JobFiles, totals: JobTotals, *, resuming: bool = False
) -> None:
    """Move the records of a part to the files of its job, and remove the part.

    Args:
        part: The part.
        index: All lines of the job; those that are done are left out.
        files: The files of the job.
        totals: Adds up the records.
        resuming: Whether they are of an earlier run: then errors of providers are dropped, so that
            the lines are asked again.

    Raises:
        ConfigurationError: The records belong to another input, or cannot be read.
        JournalError: The output cannot be written. The part stays.
    """
    found = await part.open()
    moved = JobTotals()
    try:
        with contextlib.closing(found.answers), contextlib.closing(found.errors):
            for source, target in ((found.answers, files.answers), (found.errors, files.errors)):
                for number, (_, record) in enumerate(source.records()):
                    if number % LINES_PER_TURN == 0:
                        await asyncio.sleep(0)
                    if not (resuming and _is_asked_again(record, files)):
                        _move(record, index, target, moved, part)
            for journal in (files.answers, files.errors):
                await asyncio.to_thread(journal.sync)
            for path in part:
                path.unlink()
    finally:
        totals.include(moved)


def _is_asked_again(record: Record, files: JobFiles) -> bool:
    final = record["aigateway"].get("final") and not files.ask_failed
    return record["error"] is not None and not final


def _move(record: Record, index: Index, target: Journal, moved: JobTotals, part: ShardPart) -> None:
    name = record["custom_id"]
    number, place = index.find(name)
    if not number:
        raise ConfigurationError(
            f"{part.answers} has records that do not belong to the input. Name another output."
        )
    if place is None:
        place = target.append(record)
        index.finish(name, failed_at(place) if record["error"] else place)
        moved.add(record)


async def merge_parts(
    index: Index, files: JobFiles, totals: JobTotals, *, resuming: bool = True
) -> None:
    """Move the records of all parts, and remove their folder.

    Raises:
        ConfigurationError: As `merge_part`.
        JournalError: As `merge_part`.
    """
    folder = files.parts
    numbers = {path.name.partition(".")[0] for path in folder.glob("*.jsonl")}
    moved = JobTotals()
    for number in sorted(filter(str.isdigit, numbers)):
        part = ShardPart.of(folder, int(number))
        await merge_part(part, index, files, moved, resuming=resuming)
    moved.earlier = moved.done if resuming else 0
    totals.include(moved)
    with contextlib.suppress(OSError):
        (folder / ACTIVE_FILE).unlink(missing_ok=True)
        folder.rmdir()
