"""Follow a guide for contributors word by word, in a copy of the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.processes import PATIENCE, ROOT

BLOCKS = re.compile(r"^```(python|diff)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A new file, or changes to one; the first line names it."""


def follow(guide: str, tree: Path) -> tuple[list[str], str]:
    """Carry out the steps of a guide, then run its test (the last step) and those of the pages.

    Args:
        guide: Its name under docs/.
        tree: An empty folder.

    Returns:
        The files that the steps touch, in order, and what pytest printed.
    """
    for folder in ("aigateway", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "noxfile.py", "mkdocs.yml"):
        shutil.copy(ROOT / file, tree)
    carried_out = changed(guide)
    for file, content in carried_out.items():
        (tree / file).parent.mkdir(exist_ok=True)
        (tree / file).write_text(content)
    files = list(carried_out)
    pages = ["tests/docs/test_pages.py", "--deselect=tests/docs/test_pages.py::TestReadme"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", files[-1], *pages],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "HOME": str(tree)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return files, run.stdout


def changed(guide: str) -> dict[str, str]:
    """Return the files that the steps of a guide touch, in order, with what they hold after it."""
    contents: dict[str, str] = {}
    for kind, file, text in BLOCKS.findall((ROOT / "docs" / guide).read_text()):
        if kind == "python":
            assert not (ROOT / file).exists(), f"{file} is there already"
            contents[file] = text
            continue
        content = contents.get(file) or (ROOT / file).read_text()
        for part in text.split("...\n"):
            lines = part.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] != "+")
            after = "".join(line[1:] for line in lines if line[0] != "-")
            assert content.count(before) == 1, f"{file} does not hold this once: {before}"
            content = content.replace(before, after)
        contents[file] = content
    return contents
