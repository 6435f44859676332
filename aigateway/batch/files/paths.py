"""The files of one job: answers, lines that got none, and the note of what they belong to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigateway.batch.files import manifest
from aigateway.batch.files.atomic_file import written_anew
from aigateway.batch.files.journal import Journal
from aigateway.batch.files.lines import Source
from aigateway.batch.files.records import encoded
from aigateway.batch.files.requests import WITHOUT_EFFECT
from aigateway.errors import ConfigurationError

__all__ = ["Files", "Paths"]


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the files are.

    Attributes:
        source: The input.
        output: For the answers.
        errors: For the lines that got none.
    """

    source: Path
    output: Path
    errors: Path

    @classmethod
    def of(cls, source: Path, output: Path, errors: Path | None) -> Paths:
        """Those that were named, and the usual name for what was not.

        Raises:
            ConfigurationError: They cannot be the files of a job.
        """
        if not output.name:
            raise ConfigurationError(f"{output} is a folder; name a file in it.")
        errors = errors or output.with_name(f"{output.stem}.errors{output.suffix}")
        paths = cls(source, output, errors)
        if len({path.resolve() for path in paths.all}) < len(paths.all):
            raise ConfigurationError("The input, the output and the file of errors must be three.")
        for path in (output, errors):
            if path.exists() and not path.is_file():
                raise ConfigurationError(f"{path} is no ordinary file; name one that is.")
            if not path.parent.is_dir():
                raise ConfigurationError(
                    f"{path} cannot be written: there is no folder {path.parent}."
                )
        return paths

    @property
    def manifest(self) -> Path:
        """Of the note."""
        return manifest.manifest_of(self.output)

    @property
    def all(self) -> tuple[Path, ...]:
        """The four of them."""
        return self.source, self.output, self.errors, self.manifest

    @property
    def errors_from_output(self) -> str:
        """Where the errors are, as seen from the output: both may be moved together."""
        return os.path.relpath(self.errors, self.output.parent)

    def begun(self, *, resume: bool) -> bool:
        """Whether there is something to go on from.

        Raises:
            ConfigurationError: There is, and it should not be gone on from.
        """
        written = [path for path in (self.output, self.errors) if _has_content(path)]
        if written and not resume:
            raise ConfigurationError(
                f"{written[0]} is there already. Go on from it with --resume, or name another file."
            )
        return bool(written)


@dataclass(frozen=True, slots=True)
class Files:
    """The open files of a job."""

    answers: Journal
    errors: Journal

    @classmethod
    async def open(
        cls,
        paths: Paths,
        source: Source,
        options: Mapping[str, Any],
        *,
        resume: bool,
        ask_failed: bool = False,
    ) -> Files:
        """Open the files of a job that begins, or goes on.

        Args:
            paths: Where they are.
            source: The input.
            options: What must be the same when the job goes on, but for what has no effect on
                an answer.
            resume: Whether to go on from what is there, if there is anything.
            ask_failed: When going on, ask even those again whose request was at fault.

        Raises:
            ConfigurationError: One of them cannot be written, or does not belong to the input.
        """
        begun = paths.begun(resume=resume)
        same = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        same["errors"] = paths.errors_from_output
        fingerprint = await source.fingerprint()
        if begun:
            manifest.resume(paths.output, paths.source, fingerprint, same)
        with contextlib.ExitStack() as opened:
            answers = opened.enter_context(Journal(paths.output))  # locked from here on
            if not begun:
                manifest.begin(paths.output, fingerprint, same)
            elif paths.errors.exists():
                _keep_final(paths.errors, ask_failed=ask_failed)
            files = cls(answers, opened.enter_context(Journal(paths.errors)))
            opened.pop_all()
            return files

    def close(self) -> None:
        """Close both; a file of errors without any is taken away.

        Raises:
            JournalError: The disk does not keep what was written.
        """
        with contextlib.closing(self.answers), contextlib.closing(self.errors):
            if self.errors.is_empty:
                self.errors.path.unlink(missing_ok=True)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _keep_final(errors: Path, *, ask_failed: bool) -> None:
    """Of the lines that failed keep those that asking again is no use for."""
    try:
        with Journal(errors) as old, written_anew(errors) as kept:
            for _, record in old.records():
                if record["aigateway"].get("final") and not ask_failed:
                    kept.write(encoded(record))
    except OSError as error:
        raise ConfigurationError(f"{errors} cannot be written: {error.strerror}.") from None
