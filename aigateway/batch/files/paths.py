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
from aigateway.cache.key import same_number
from aigateway.errors import ConfigurationError

__all__ = [
    "TABLES",
    "JobFiles",
    "JobPaths",
    "atomic_write",
    "check_manifest",
    "keep_final",
    "manifest_path",
    "parts_folder",
    "write_manifest",
]

_FORMAT = 1

TABLES = (".csv", ".tsv", ".parquet")
"""Outputs that are made of the records at the end."""

_LINES_OF_JSON = (".jsonl", ".ndjson", ".json", "")


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The files of a job.

    Attributes:
        source: The input.
        output: The records of answers.
        errors: The records of lines without an answer.
        table: The table that is made of both; None if the records are what the user wants.
    """

    source: Path
    output: Path
    errors: Path
    table: Path | None = None

    @classmethod
    def of(cls, source: Path, output: Path, errors: Path | None) -> JobPaths:
        """Return the given paths, with the usual name for an errors file that is None.

        The records of a table are in a folder beside it.

        Raises:
            ConfigurationError: They cannot be the files of a job.
        """
        if not output.name:
            raise ConfigurationError(f"{output} is a folder; name a file in it.")
        table, suffix = None, output.suffix.lower()
        if suffix in TABLES:
            table, folder = output, manifest_path(output)
            output, errors = folder / "records.jsonl", errors or folder / "errors.jsonl"
        errors = errors or output.with_name(f"{output.stem}.errors{output.suffix}")
        paths = cls(source, output, errors, table)
        if len({path.resolve() for path in paths.all}) < len(paths.all):
            raise ConfigurationError(
                "The input, the output and the errors file must be three different files."
            )
        for path in (table or output, errors):
            if path.exists() and not path.is_file():
                raise ConfigurationError(f"{path} is not a regular file.")
            if not path.parent.is_dir() and (table is None or path.parent != output.parent):
                raise ConfigurationError(
                    f"{path} cannot be written: the folder {path.parent} does not exist."
                )
        if table is None and suffix not in _LINES_OF_JSON:
            raise ConfigurationError(
                f"{output} ends in {suffix}; name the output .jsonl (records as lines of JSON),"
                f" or {', '.join(TABLES)} (a table)."
            )
        return paths

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them and the manifest."""
        table = () if self.table is None else (self.table,)
        return self.source, self.output, self.errors, manifest_path(self.output), *table

    @property
    def errors_from_output(self) -> str:
        """The errors file relative to the output, so that both can be moved together."""
        return os.path.relpath(self.errors, self.output.parent)

    def begun(self, *, resume: bool) -> bool:
        """Return whether there are records to resume from.

        Raises:
            ConfigurationError: There are, and `resume` is False; or there is a table of something
                else.
        """
        folder = self.output.parent
        if self.table is not None and folder.is_file():
            raise ConfigurationError(_of_an_earlier_version(self.table, self.source))
        parts = sorted(parts_folder(self.output).glob("*.jsonl"))
        written = [path for path in (self.output, self.errors, *parts) if _has_content(path)]
        table = self.table if self.table is not None and self.table.exists() else None
        if (written or table) and not resume:
            raise ConfigurationError(
                f"{table or written[0]} already exists. Continue it with --resume, or name another"
                " file."
            )
        if table and not written:
            raise ConfigurationError(
                f"{table} cannot be continued: its records are not in {folder}. Name another file."
            )
        return bool(written)


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The open files of a job.

    Attributes:
        answers: Its answers.
        errors: Its lines without an answer.
        ask_failed: Whether lines are asked again that were rejected in an earlier run.
    """

    answers: Journal
    errors: Journal
    ask_failed: bool = False

    @property
    def parts(self) -> Path:
        """The folder with the parts of shards."""
        return parts_folder(self.answers.path)

    @classmethod
    async def open(
        cls,
        paths: JobPaths,
        source: Source,
        options: Mapping[str, Any],
        *,
        resume: bool,
        ask_failed: bool = False,
        keep_errors: bool = False,
    ) -> JobFiles:
        """Open the files of a new or resumed job.

        Args:
            paths: Where they are.
            source: The input.
            options: Must be the same when a job is resumed, except for those without an effect on
                the answers.
            resume: Whether to continue from existing records.
            ask_failed: On resume, also repeat requests that were rejected.
            keep_errors: On resume, keep all errors: nothing is sent.

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
        if paths.table is not None:
            _make_folder(paths.output.parent)
        with contextlib.ExitStack() as opened:
            answers = opened.enter_context(Journal(paths.output))  # locked from here on
            if not begun:
                write_manifest(paths.output, fingerprint, same)
            elif paths.errors.exists() and not keep_errors:
                keep_final(paths.errors, ask_failed=ask_failed)
            files = cls(answers, opened.enter_context(Journal(paths.errors)), ask_failed)
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
def atomic_write(path: Path, draft: Path | None = None) -> Iterator[IO[bytes]]:
    """Give a file to write that replaces `path` if the block ends without an error.

    Args:
        path: The file to be.
        draft: The path until then, on the same disk; None takes a new one beside it.

    Raises:
        OSError: It cannot be written, or moved.
    """
    temporary = draft or path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def parts_folder(output: Path) -> Path:
    """Return the folder with the parts of an output that several workers write."""
    return output.with_name(f"{output.name}.parts")


def keep_final(errors: Path, *, ask_failed: bool) -> None:
    """Keep only the errors of lines that are not sent again.

    Raises:
        ConfigurationError: The file cannot be written, or another process writes to it.
    """
    try:
        with Journal(errors) as old, atomic_write(errors) as kept:
            for _, record in old.records():
                if record["aigateway"].get("final") and not ask_failed:
                    kept.write(encoded(record))
    except OSError as error:
        raise ConfigurationError(f"{errors} cannot be written: {error.strerror}.") from None


def write_manifest(output: Path, fingerprint: str, options: Mapping[str, Any]) -> None:
    """Write the manifest of a new output. Raises `ConfigurationError` if it cannot be written."""
    path = manifest_path(output)
    digests = _digests(_same_numbers(options))
    manifest = {"format": _FORMAT, "input_sha256": fingerprint, "options": digests}
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
    now, then = _digests(_same_numbers(options)), known[1]
    earlier = _digests(options)  # as earlier versions wrote them
    changed = sorted(
        name for name in now | then if then.get(name) not in {now.get(name), earlier.get(name)}
    )
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


def _same_numbers(value: Any) -> Any:
    """Return options with whole floats as ints, at every depth."""
    if isinstance(value, Mapping):
        return {name: _same_numbers(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_same_numbers(each) for each in value]
    return same_number(value)


def _of_an_earlier_version(table: Path, source: Path) -> str:
    """Return what to do with a table that holds lines of JSON."""
    output = table.with_suffix(".jsonl")
    errors = table.with_name(f"{table.stem}.errors{table.suffix}")
    return (
        f"{table} was written by an earlier version, as lines of JSON. To continue it, rename it to"
        f" {output} and {manifest_path(table)} to {manifest_path(output)}, and run: aigateway batch"
        f" {source} {output} --errors {errors} --resume. Or name another output."
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made: {error.strerror}.") from None


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
