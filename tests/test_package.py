"""The package as a whole: its face and its version."""

import re
from pathlib import Path

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


def test_the_changelog_knows_the_version():
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == aigateway.__version__
