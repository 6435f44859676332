"""The files of one job: answers, errors, and the manifest that ties them to an input.

Without the manifest a resumed job could mix the answers of two prompts under one id.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from aigateway.batch.files.input import OPTIONS_WITHOUT_EFFECT, Source
from aigateway.batch.files.output import Journal, encoded
from aigateway.errors import ConfigurationError

__all__ = [
    "JobFiles",
    "JobPaths",
    "atomic_write",
    "check_manifest",
    "manifest_path",
    "write_manifest",
]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The input, the output for answers, and the errors file for lines without an answer."""

    source: Path
    output: Path
    errors: Path

    @classmethod
    def of(cls, source: Path, output: Path, errors: Path | None) -> JobPaths:
        """Return the given paths, with the usual name for an errors file that is None.

        Raises:
            ConfigurationError: They cannot be the files of a job.
        """
        if not output.name:
            raise ConfigurationError(f"{output} is a folder; name a file in it.")
        errors = errors or output.with_name(f"{output.stem}.errors{output.suffix}")
        paths = cls(source, output, errors)
        if len({path.resolve() for path in paths.all}) < len(paths.all):
            raise ConfigurationError(
                "The input, the output and the errors file must be three different files."
            )
        for path in (output, errors):
            if path.exists() and not path.is_file():
                raise ConfigurationError(f"{path} is not a regular file.")
            if not path.parent.is_dir():
                raise ConfigurationError(
                    f"{path} cannot be written: the folder {path.parent} does not exist."
                )
        return paths

    @property
    def all(self) -> tuple[Path, ...]:
        """The three of them and the manifest."""
        return self.source, self.output, self.errors, manifest_path(self.output)

    @property
    def errors_from_output(self) -> str:
        """The errors file relative to the output, so that both can be moved together."""
        return os.path.relpath(self.errors, self.output.parent)

    def begun(self, *, resume: bool) -> bool:
        """Return whether there are records to resume from.

        Raises:
            ConfigurationError: There are, and `resume` is False.
        """
        written = [path for path in (self.output, self.errors) if _has_content(path)]
        if written and not resume:
            raise ConfigurationError(
                f"{written[0]} already exists. Continue it with --resume, or name another file."
            )
        return bool(written)


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The open files of a job."""

    answers: Journal
    errors: Journal

    @classmethod
    async def open(
        cls,
        paths: JobPaths,
        source: Source,
        options: Mapping[str, Any],
        *,
        resume: bool,
        ask_failed: bool = False,
    ) -> JobFiles:
        """Open the files of a new or resumed job.

        Args:
            paths: Where they are.
            source: The input.
            options: Must be the same when a job is resumed, except for those without an effect on
                the answers.
            resume: Whether to continue from existing records.
            ask_failed: On resume, also repeat requests that were rejected.

        Raises:
            ConfigurationError: A file cannot be written, or belongs to another input.
        """
        begun = paths.begun(resume=resume)
        same = {
            name: value for name, value in options.items() if name not in OPTIONS_WITHOUT_EFFECT
        }
        same["errors"] = paths.errors_from_output
        fingerprint = await source.fingerprint()
        if begun:
            check_manifest(paths, fingerprint, same)
        with contextlib.ExitStack() as opened:
            answers = opened.enter_context(Journal(paths.output))  # locked from here on
            if not begun:
                write_manifest(paths.output, fingerprint, same)
            elif paths.errors.exists():
                _keep_final(paths.errors, ask_failed=ask_failed)
            files = cls(answers, opened.enter_context(Journal(paths.errors)))
            opened.pop_all()
            return files

    def close(self) -> None:
        """Close both files, and remove an empty errors file.

        Raises:
            JournalError: The disk refuses to keep the records.
        """
        with contextlib.closing(self.answers), contextlib.closing(self.errors):
            if self.errors.is_empty:
                self.errors.path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that replaces `path` if the block ends without an error.

    Raises:
        OSError: It cannot be written, or moved.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def manifest_path(output: Path) -> Path:
    """Return the path of an output's manifest."""
    return output.with_name(f"{output.name}.job")


def write_manifest(output: Path, fingerprint: str, options: Mapping[str, Any]) -> None:
    """Write the manifest of a new output. Raises `ConfigurationError` if it cannot be written."""
    path = manifest_path(output)
    manifest = {"format": _FORMAT, "input_sha256": fingerprint, "options": _digests(options)}
    text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        with atomic_write(path) as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None


def check_manifest(paths: JobPaths, fingerprint: str, options: Mapping[str, Any]) -> None:
    """Check that an output belongs to this input and these options.

    Raises:
        ConfigurationError: It does not, or the manifest is missing.
    """
    path = manifest_path(paths.output)
    try:
        found = orjson.loads(path.read_bytes())
        known = (
            (found["input_sha256"], dict(found["options"])) if found["format"] == _FORMAT else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known is None:
        raise ConfigurationError(
            f"{path} is missing or cannot be read, so the input of {paths.output} is unknown."
            " Name another output to start again."
        )
    if known[0] != fingerprint:
        raise ConfigurationError(
            f"{paths.source} has changed since {paths.output} was begun, so answers could belong"
            " to other prompts. Restore it, or name another output."
        )
    now, then = _digests(options), known[1]
    changed = sorted(name for name in now | then if then.get(name) != now.get(name))
    if changed:
        raise ConfigurationError(
            f"{paths.output} was begun with a different {', '.join(changed)}. Give the same value,"
            " or name another output."
        )


def _digests(options: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of the options that are not None: a template may be confidential."""
    return {
        name: hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
        for name, value in options.items()
        if value is not None
    }


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _keep_final(errors: Path, *, ask_failed: bool) -> None:
    """Keep only the errors of lines that are not sent again."""
    try:
        with Journal(errors) as old, atomic_write(errors) as kept:
            for _, record in old.records():
                if record["aigateway"].get("final") and not ask_failed:
                    kept.write(encoded(record))
    except OSError as error:
        raise ConfigurationError(f"{errors} cannot be written: {error.strerror}.") from None
