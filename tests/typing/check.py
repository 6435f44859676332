"""Check the programs in `cases/` with mypy and pyright, against the installed package.

`python -m tests.typing.check`, in an environment that has the package as users have it, after
`npm ci --prefix tests/typing/node`. Exit 1 if a checker misses an error that is marked, or finds
another one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.py"))
PYRIGHT = HERE / "node" / "node_modules" / "pyright" / "index.js"

Error = tuple[str, int]
"""File and line."""


def mypy(folder: str) -> dict[Error, str]:
    """Return what mypy finds."""
    lines = _output(folder, sys.executable, "-m", "mypy", "--strict", "--output=json", ".")
    found = [json.loads(line) for line in lines.splitlines()]
    return {
        (Path(each["file"]).name, each["line"]): each["message"]
        for each in found
        if each["severity"] == "error"
    }


def pyright(folder: str) -> dict[Error, str]:
    """Return what pyright finds."""
    python = f"--pythonpath={sys.executable}"
    report = json.loads(_output(folder, "node", str(PYRIGHT), "--outputjson", python, "."))
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    }


def _output(folder: str, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def differences(checker: str, found: dict[Error, str]) -> Iterator[str]:
    """Yield where a checker disagrees with the marks."""
    marked = set()
    for case in CASES:
        for number, line in enumerate(case.read_text().splitlines(), 1):
            mark = re.search(r"  # error(?:: (\w+))?$", line)
            if mark and mark[1] in {None, checker}:
                marked.add((case.name, number))
    assert len(marked) > 40
    for file, number in sorted(marked - found.keys()):
        yield f"{file}:{number}: {checker} finds no error"
    for (file, number), message in sorted(found.items()):
        if (file, number) not in marked:
            yield f"{file}:{number}: {checker}: {message}"


def main() -> None:
    """Check with both."""
    with tempfile.TemporaryDirectory() as folder:  # beside no configuration, and no source
        for case in CASES:
            shutil.copy(case, folder)
        wrong = [*differences("mypy", mypy(folder)), *differences("pyright", pyright(folder))]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"mypy and pyright agree with {len(CASES)} files of cases.")


if __name__ == "__main__":
    main()
