"""A job's figures as a file: `.json` for programs, `.html` for people."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aigateway.cli.batch.page import page
from aigateway.cli.batch.summary import Summary, plain_summary
from aigateway.errors import ConfigurationError

__all__ = ["check_report_path", "write_report"]


def check_report_path(path: Path, taken: Sequence[Path] = ()) -> None:
    """See, before a long job begins, that its report can be written when it is over.

    Args:
        path: Where to.
        taken: The job's other files; none of them may be the same.

    Raises:
        ConfigurationError: It cannot be written; the message says what to do.
    """
    _form(path)
    with _replacing(path) as draft:
        problem = _problem(path, taken)
        if problem is not None:
            raise ConfigurationError(problem)
        draft.touch()


def write_report(path: Path, summary: Summary) -> None:
    """Write the report; whoever looks sees the whole one, or the one that was there before.

    Raises:
        ConfigurationError: It cannot be written. The job's own files are not touched by that.
    """
    text = _form(path)(summary)
    with _replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def _problem(path: Path, taken: Sequence[Path]) -> str | None:
    if path.is_dir():
        return f"The report {path} is a folder; give a file in it."
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} for the report; make it first."
    if path.resolve() in {other.resolve() for other in taken}:
        return f"The report {path} would overwrite one of the job's own files; give another name."
    return None


def _form(path: Path) -> Callable[[Summary], str]:
    match path.suffix.lower():
        case ".json":
            return _json
        case ".html":
            return page
        case suffix:
            raise ConfigurationError(
                f"The report {path} ends in {suffix or 'no suffix'}; name it .html (a page to look"
                " at) or .json (plain figures)."
            )


def _json(summary: Summary) -> str:
    return json.dumps(plain_summary(summary), indent=2) + "\n"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside it to write to first. Nothing of it is left behind."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
    except OSError as error:
        raise ConfigurationError(
            f"The report {path} cannot be written ({error.strerror}); give another place, or make"
            " this one writable."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
