"""A file that is written whole or not at all: beside its place first, then moved there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["written_anew"]


@contextlib.contextmanager
def written_anew(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; when the block ends without an error, it takes the place of `path`.

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
