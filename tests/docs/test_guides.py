"""The guides for contributors work, each from its text alone, and touch few files."""

from __future__ import annotations

import re

import pytest

from tests.docs.guides import changed, follow
from tests.processes import ROOT

pytestmark = pytest.mark.slow

GUIDES = ("adding-a-policy.md", "adding-a-metric.md", "adding-an-endpoint.md")


@pytest.mark.proof
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_is_followed(guide, tmp_path):
    files, _ = follow(guide, tmp_path)
    assert len(files) <= 5


@pytest.mark.parametrize("guide", [*GUIDES, "adding-a-vendor.md"])
def test_a_guide_names_lines_that_are_there(guide):
    assert changed(guide)


@pytest.mark.parametrize("guide", GUIDES)
def test_contributing_lists_the_files_of_a_guide(guide):
    text = (ROOT / "docs" / guide).read_text()
    files = set(re.findall(r"^# ((?:aigateway|docs)/\S+)$", text, re.MULTILINE))
    (recipe,) = re.findall(
        rf"^- .*\(docs/{guide}\).*$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    assert files <= set(re.findall(r"`([^`]+)`", recipe))


def test_the_files_that_contributors_are_sent_to_exist():
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {
        path
        for page in pages
        for path in re.findall(r"`((?:aigateway|tests|docs|deploy)/[^`<>\s]+)`", page.read_text())
    }
    new = {
        file
        for guide in ("adding-a-vendor.md", *GUIDES)
        for file in re.findall(
            r"^```python\n# (\S+)$", (ROOT / "docs" / guide).read_text(), re.MULTILINE
        )
    }
    assert len(named) > 40
    assert [path for path in sorted(named - new) if not (ROOT / path).exists()] == []
