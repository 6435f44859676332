"""The programs of README and docs pass a strict type check, all in one run."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.docs.pages import MOVED, blocks, under
from tests.processes import PATIENCE, ROOT


def test_the_programs_are_typed(tmp_path):
    programs = {str(block): block.text for block in blocks("python")}
    programs |= {page: under(page, "After", "python") for page in MOVED}
    assert len(programs) > 20
    for number, (name, text) in enumerate(programs.items()):
        path = tmp_path / f"program_{number}.py"
        path.write_text(f"# {name}\n{text}")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(tmp_path)],
        cwd=ROOT,  # where the configuration and the cache are
        env={**os.environ, "MYPYPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"no issues found in {len(programs)} source files" in run.stdout
