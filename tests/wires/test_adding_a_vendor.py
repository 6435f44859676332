"""The guide to adding a vendor works: its steps are carried out in a copy of the tree."""

import pytest

from tests.docs.guides import follow

pytestmark = [pytest.mark.slow, pytest.mark.proof]


def test_the_guide_is_followed(tmp_path):
    files, _ = follow("adding-a-vendor.md", tmp_path)
    assert files == [
        "aigateway/settings/provider.py",
        "aigateway/wires/acme/__init__.py",
        "aigateway/wires/registry.py",
        "docs/guides/providers.md",
        "tests/wires/test_acme.py",
    ]
