"""Services as processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Running


@pytest.fixture
def start(launch: Callable[..., Running], tmp_path: Path) -> Callable[..., Running]:
    """Start `aigateway serve` with arguments, in a directory of its own."""
    started: list[Running] = []

    def begin(*arguments: str, toml: str = "", **env: str) -> Running:
        directory = tmp_path / f"service{len(started)}"
        directory.mkdir()
        if toml:
            (directory / "aigateway.toml").write_text(toml)
        env = {"TMPDIR": str(directory), **env}
        started.append(launch(directory, "serve", "--port", "0", *arguments, env=env))
        return started[-1]

    return begin
