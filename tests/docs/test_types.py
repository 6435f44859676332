"""The programs of README and docs pass a strict type check, all in one run."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.docs.pages import blocks
from tests.processes import PATIENCE, ROOT


def test_the_programs_are_typed(tmp_path):
    programs = blocks("python")
    assert len(programs) > 15
    for number, block in enumerate(programs):
        path = tmp_path / f"program_{number}.py"
        path.write_text(f"# {block}\n{block.text}")
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
