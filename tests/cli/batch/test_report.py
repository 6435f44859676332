import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aigateway.batch.files.totals import JobTotals
from aigateway.cli.batch.report import _page as page
from aigateway.cli.batch.report import check_report_path, write_report
from aigateway.cli.batch.summary import Summary, plain_summary
from aigateway.errors import ConfigurationError
from tests.cli.batch.jobs import ANSWER, LONG, OPENAI, add, answer, mixed_totals

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "link", "img", "input"}
SUMMARY = Summary(
    mixed_totals(),
    1103,
    50.0,
    "interrupted",
    Path("in.jsonl"),
    Path("out.jsonl"),
    Path("errors.jsonl"),
    Path("report.html"),
    1_790_000_000.0,
)
EMPTY = Summary(JobTotals(), 0, 0.0, None, Path("in.jsonl"), Path("out.jsonl"))


class Reader(HTMLParser):
    """Sees to it that every tag is closed, and keeps tags and words."""

    def __init__(self, html):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def charts(html):
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    return {chart.get("aria-label"): chart for chart in found}


def lengths(chart, kind):
    return [
        float(bar.get("width").rstrip("%"))
        for bar in chart.iter(f"{SVG}rect")
        if bar.get("class") == kind
    ]


class TestPage:
    def test_has_every_figure(self):
        text = Reader(page(SUMMARY)).text
        for words in (
            "Batch report: in.jsonl",
            "Stopped: interrupted, 1,000 lines left , ended 2026-09-21 14:13 UTC",
            "Answered 100 9.0 % of 1,103",
            "Failed 3 2.9 % of 103",
            "Cached 4",
            "Cost $0.0900 6 answers unpriced",
            "Tokens in 960",
            "Tokens out 1,920",
            "Time of this run 0:50",
            "Lines per second 2.1",
            "internal_error 3",
            "timeout 6",
            "answers out.jsonl errors errors.jsonl report report.html",
        ):
            assert words in text
        assert LONG in text

    def test_every_chart_has_its_bars(self):
        drawn = charts(page(SUMMARY))
        spread, served, latencies, costs = drawn.values()
        assert len(lengths(spread, "answers")) == len(SUMMARY.totals.latency.bars())
        assert lengths(served, "answers")[0] > lengths(served, "answers")[1] > 0
        assert lengths(served, "failures") == [pytest.approx(lengths(served, "answers")[1])]
        for kind in ("p50", "p95", "p99"):
            assert len(lengths(latencies, kind)) == 2
        assert lengths(costs, "cost") == [pytest.approx(68)]
        words = "".join(costs.itertext())
        assert "$0.0900" in words
        assert LONG in words

    @pytest.mark.parametrize("summary", [SUMMARY, EMPTY])
    def test_needs_nothing_from_elsewhere(self, summary):
        html = page(summary)
        assert "default-src 'none'" in html
        assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace(
            "http-equiv", ""
        )
        assert "url(" not in html
        for tag, attributes in Reader(html).tags:
            assert tag not in {"script", "link", "img", "iframe", "object"}
            assert not any(name.startswith("on") or name == "src" for name in attributes)

    def test_without_answers(self):
        text = Reader(page(EMPTY)).text
        assert "Complete" in text
        assert "No vendor answered." in text
        assert charts(page(EMPTY)) == {}

    def test_one_answer_is_enough_for_every_chart(self):
        totals = JobTotals()
        add(totals, answer())
        assert len(charts(page(replace(SUMMARY, totals=totals)))) == 4

    def test_no_answer_is_in_it(self):
        assert ANSWER not in page(SUMMARY)

    @given(st.text(min_size=1, max_size=60))
    @example("<script>alert(1)</script>")
    @example("a\"'&\x00\x1b\ufffe")
    def test_any_name_is_only_a_name(self, name):
        html = page(
            replace(
                SUMMARY,
                totals=mixed_totals(name),
                stopped=name,
                input_path=Path(name.replace("/", "")),
                output_path=Path(name),
            )
        )
        usual = Reader(page(replace(SUMMARY, totals=mixed_totals("some"))))
        assert len(charts(html)) == 4
        if name not in {OPENAI, LONG}:  # else two providers become one
            assert sorted(tag for tag, _ in Reader(html).tags) == sorted(
                tag for tag, _ in usual.tags
            )


class TestFile:
    def test_json_holds_the_plain_figures(self, tmp_path):
        path = tmp_path / "report.json"
        write_report(path, SUMMARY)
        assert json.loads(path.read_text()) == plain_summary(SUMMARY)

    def test_html_holds_the_page(self, tmp_path):
        path = tmp_path / "Report.HTML"
        path.write_text("an older one")
        write_report(path, SUMMARY)
        assert path.read_text() == page(SUMMARY)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_name_that_is_no_text(self, tmp_path):
        odd = replace(SUMMARY, input_path=Path("in\udcff.jsonl"))
        for name in ("report.json", "report.html"):
            write_report(tmp_path / name, odd)
        assert json.loads((tmp_path / "report.json").read_text())["input"] == "in\udcff.jsonl"
        assert "in?.jsonl" in (tmp_path / "report.html").read_text()

    def test_a_failed_write_leaves_only_the_old_report(self, tmp_path):
        (tmp_path / "report.html").mkdir()
        with pytest.raises(ConfigurationError, match="cannot be written"):
            write_report(tmp_path / "report.html", SUMMARY)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


class TestCheck:
    @pytest.mark.parametrize("name", ["report.html", "report.json", "REPORT.HTML"])
    def test_leaves_no_trace_of_a_good_one(self, tmp_path, name):
        check_report_path(tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["report", "report.txt", "report.pdf", ".html"])
    def test_another_suffix_is_refused_with_the_way_out(self, tmp_path, name):
        with pytest.raises(ConfigurationError, match=r"name it \.html .* or \.json"):
            check_report_path(tmp_path / name)

    def test_a_folder_is_no_file(self, tmp_path):
        (tmp_path / "report.html").mkdir()
        with pytest.raises(ConfigurationError, match="is a folder"):
            check_report_path(tmp_path / "report.html")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigurationError, match="does not exist"):
            check_report_path(tmp_path / "missing" / "report.html")

    def test_a_name_that_the_disk_refuses(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"cannot be written .* name another file"):
            check_report_path(tmp_path / f"{'x' * 300}.html")

    def test_the_job_s_own_files_are_safe(self, tmp_path):
        out = tmp_path / "out.json"
        with pytest.raises(ConfigurationError, match="own files"):
            check_report_path(tmp_path / "." / "out.json", taken=[tmp_path / "in.jsonl", out])
        check_report_path(tmp_path / "report.json", taken=[out])
