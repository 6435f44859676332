"""The guide to adding a vendor works: its steps are carried out in a copy of the tree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "adding-a-vendor.md"
BLOCKS = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def carry_out(kind: str, file: Path, text: str) -> None:
    if kind == "python":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return
    lines = text.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    content = file.read_text()
    assert content.count(before) == 1, f"{file.name} does not hold this once: {before}"
    file.write_text(content.replace(before, after))


def test_the_guide_is_followed(tmp_path):
    for folder in ("aigateway", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    steps = BLOCKS.findall(GUIDE.read_text())
    assert len(steps) == 6
    for kind, file, text in steps:
        carry_out(kind, tmp_path / file, text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", steps[-1][1]]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout
