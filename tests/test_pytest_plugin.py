"""The fixture that pytest finds in an environment with the package, in a pytest of its own."""

import os
import subprocess
import sys
import tomllib

import pytest

from tests.processes import PATIENCE, ROOT

MODULE = """
import sys

loaded = {name for name in sys.modules if name.partition(".")[0] in ("aigateway", "aiohttp")}


def test_the_start_of_pytest_loads_nothing_more():
    assert loaded == {"aigateway", "aigateway.pytest_plugin", "aigateway.version"}


async def test_the_fixture_is_there(simulator):
    assert simulator.openai.api_base.startswith("http://127.0.0.1:")
"""


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ([], "2 passed"),
        (["-p", "no:aigateway"], "fixture 'simulator' not found"),
        (["-p", "no:asyncio"], "needs pytest-asyncio: pip install pytest-asyncio"),
    ],
)
def test_pytest_finds_it_and_leaves_it_out(tmp_path, options, outcome):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = [f"{name} = {home}" for name, home in project["entry-points"]["pytest11"].items()]
    installed = tmp_path / "site" / "of_the_tree-1.dist-info"  # as a wheel has it
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: of-the-tree\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("\n".join(["[pytest11]", *points, ""]))
    if "no:asyncio" in options:  # and its package is not there
        (installed.parent / "pytest_asyncio.py").write_text("raise ImportError")
    (tmp_path / "test_it.py").write_text(MODULE)
    quiet = ["-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *options, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed.parent)])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
