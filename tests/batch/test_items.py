"""Rows as prompts; `test_engine.py` has the forms of a request."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.batch.items import row_reader
from aigateway.errors import RequestRejectedError


@pytest.mark.parametrize(
    "template", ["{a[b]}", "{a[c].real}", "{d.x}", "{a[b]!r}", "{e:>{a[b]}}", "{a[b]:>8}"]
)
def test_a_field_that_leads_to_none_is_named(template):
    row = {"a": {"b": None, "c": None}, "d": SimpleNamespace(x=None), "e": "secret"}
    with pytest.raises(RequestRejectedError) as refused:
        row_reader(template)(row)
    assert re.search(r"has None for '(a\[b\]|d\.x)'|AttributeError", str(refused.value))
    assert "secret" not in str(refused.value)


def test_values_that_only_look_like_none_are_used():
    row = {"a": "None", "b": 0, "c": "", "d": [None]}
    assert row_reader("{a} {b} {c} {d}")(row).prompt == "None 0  [None]"


@pytest.mark.parametrize(
    ("template", "helps"),
    [('{"a": {b}}', True), ("{\n  x}", True), ("{nope}", False), ("{a cell (%)}", False)],
)
def test_braces_that_are_meant_as_text_are_explained(template, helps):
    with pytest.raises(RequestRejectedError) as refused:
        row_reader(template)({"b": 1})
    assert ("write {{ and }} for braces" in str(refused.value)) is helps


@given(st.text(alphabet="{}ab:!.0[] "), st.dictionaries(st.sampled_from("ab"), st.text()))
def test_any_template_and_any_row_end_in_a_prompt_or_a_refusal(template, row):
    try:
        prompt = row_reader(template)(row)
    except RequestRejectedError:
        return
    assert prompt.prompt == template.format_map(row)
