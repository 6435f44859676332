"""The package as a whole: its face and its version."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import aigateway
from tests.public_face import RECORD, described

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there():
    for name in aigateway.__all__:
        assert getattr(aigateway, name) is not None
    assert set(aigateway.__all__) <= set(dir(aigateway))


def test_no_public_name_argument_default_metric_or_option_is_gone():
    assert set(RECORD.read_text().splitlines()) <= set(described())


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(aigateway, "nonsense")


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import aigateway", ["aigateway"]),
        ("from aigateway import GatewayError", ["aigateway", "aigateway.errors"]),
    ],
)
def test_a_name_loads_no_more_than_its_module(code, modules):
    code += "; import sys; print(*sorted(m for m in sys.modules if m.startswith('aigateway')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted({*modules, "aigateway.version"}) == done.stdout.split()


def test_the_changelog_knows_the_version():
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == aigateway.__version__
