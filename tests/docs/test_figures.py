"""The page of figures says what the results say."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.report import PAGE, RESULTS, page
from tests.processes import ROOT

DOCUMENTS = [json.loads(path.read_bytes()) for path in sorted(RESULTS.glob("*.json"))]


def test_the_page_is_what_the_results_say():
    assert len(DOCUMENTS) > 10
    assert PAGE.read_text() == page(), "run python -m benchmarks.report"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["name"])
def test_each_result_can_be_measured_again_and_is_shown(document):
    text = PAGE.read_text()
    command = f"python -m nox -s bench -- {document['name']}`"
    assert command in text
    assert all(cell in text for table in document["tables"] for cell in table["columns"])
    assert (ROOT / "docs" / "assets" / "figures" / f"{document['name']}.svg").is_file()
    assert f"(../assets/figures/{document['name']}.svg)" in text


def test_a_result_that_has_changed_changes_the_page(tmp_path, monkeypatch):
    document = {
        **DOCUMENTS[0],
        "targets": [{"what": "a chat", "bound": "1.4x", "measured": "1.5x", "met": False}],
    }
    (tmp_path / "one.json").write_text(json.dumps(document))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    command = f"`python -m nox -s bench -- {document['name']}`"
    assert f"| a chat | 1.4x | 1.5x | missed | {command} |" in page()


def test_a_result_without_a_place_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "one.json").write_text(json.dumps({**DOCUMENTS[0], "name": "unheard"}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="has no place for unheard"):
        page()
