"""The pages on moving: programs after the move, litellm's before, and complete tables."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.cli.from_litellm.options import OPTIONS
from aigateway.simulator import Fault, Simulator
from tests.docs.pages import MOVING, under
from tests.docs.test_pages import rows
from tests.processes import ROOT

KEY = "sk-simulated-master"
SERVICE = "127.0.0.1:8080"
PAGES = [ROOT / MOVING / f"litellm-{name}.md" for name in ("router", "proxy")]
DOCUMENTED = {
    name
    for page in PAGES
    for row in rows(page.read_text())
    for name in re.findall(r"`(\w+)`", row[0])
}


@pytest.fixture
def vendors():
    with Simulator.in_thread() as running:
        running.openai.behave(Fault.status(500))
        yield running


@pytest.fixture
def environment(vendors):
    return {
        "LITELLM_MASTER_KEY": KEY,
        "OPENAI_API_KEY": vendors.openai.key,
        "OPENAI_BASE_URL": vendors.openai.api_base,
        "ANTHROPIC_API_KEY": vendors.anthropic.key,
        "ANTHROPIC_BASE_URL": vendors.anthropic.url,
    }


def program(page, heading, language="python"):
    return under(f"{MOVING}{page}.md", heading, language)


def with_addresses(toml, vendors):
    """The providers of a page, at the simulated vendors; pages name no addresses."""
    for vendor in (vendors.openai, vendors.anthropic):
        own = f'provider = "{vendor.name}"\n'
        assert own in toml
        toml = toml.replace(own, f'{own}api_base = "{vendor.api_base}"\n')
    return toml


def test_litellms_router_and_what_comes_after_it(run_script, environment, vendors, tmp_path):
    for heading, requests in (("Before", 3), ("After", 1)):
        folder = tmp_path / heading
        folder.mkdir()
        before = vendors.openai.request_count
        process = run_script(folder, program("litellm-router", heading), env=environment)
        assert process.code == 0, process.log
        assert process.read("out") == "4 claude-haiku-4-5\n"
        assert vendors.openai.request_count - before == requests


class TestServices:
    @pytest.fixture
    def ask(self, start, run_script, environment, vendors, tmp_path):
        """Run the client of a page against a service with this configuration."""

        def ask(page, toml):
            service = start(toml=toml, **environment)
            address = service.url.removeprefix("http://").rstrip("/")
            text = program(page, "After")
            assert SERVICE in text
            process = run_script(tmp_path, text.replace(SERVICE, address), env=environment)
            assert process.code == 0, process.log
            assert vendors.anthropic.request_count == vendors.openai.request_count == 1
            return process.read("out")

        return ask

    def test_litellms_proxy(self, ask, environment, monkeypatch):
        Path("config.yaml").write_text(program("litellm-proxy", "Before", "yaml"))
        init = ["init", "--from-litellm", "config.yaml"]
        done = CliRunner().invoke(app, init)
        assert done.exit_code == 0
        made = tomllib.loads(Path("aigateway.toml").read_text())
        shown = tomllib.loads(program("litellm-proxy", "After", "toml"))
        assert {k: v for k, v in made.items() if v} == shown
        for name, value in environment.items():  # the addresses of the simulated vendors
            monkeypatch.setenv(name, value)
        assert CliRunner().invoke(app, [*init, "--force"]).exit_code == 0
        assert ask("litellm-proxy", Path("aigateway.toml").read_text()) == "4 claude-haiku-4-5\n"

    def test_portkey(self, ask, vendors):
        toml = with_addresses(program("portkey", "After", "toml"), vendors)
        assert ask("portkey", toml) == "4 claude-haiku-4-5\n"


def test_tensorzero(run_script, environment, vendors, tmp_path):
    toml = with_addresses(program("tensorzero", "After", "toml"), vendors)
    (tmp_path / "aigateway.toml").write_text(toml)
    process = run_script(tmp_path, program("tensorzero", "After"), env=environment)
    assert (process.code, process.read("out")) == (0, "4\n"), process.log


def test_every_option_that_init_knows_is_in_the_tables():
    assert {name for name in OPTIONS if not name.startswith("supports_")} <= DOCUMENTED


def test_every_argument_of_litellms_router_is_in_the_tables(run_script, tmp_path):
    names = "import inspect, litellm; print(*inspect.signature(litellm.Router.__init__).parameters)"
    process = run_script(tmp_path, names)
    assert process.code == 0, process.log
    arguments = set(process.read("out").split()) - {"self"}
    assert len(arguments) > 40
    assert arguments <= DOCUMENTED


class TestComparison:
    """Each cell of the comparison has a source: a page of its makers, or a file of this project."""

    TEXT = (ROOT / "docs" / "comparison.md").read_text()
    ROWS = rows(TEXT)
    SOURCE = re.compile(r"\[[^\]]+\]\((https://[^)]+)\)|`([\w/.]+)`")

    def test_each_row_ends_with_its_source(self):
        assert len(self.ROWS) > 50
        for row in self.ROWS:
            found = self.SOURCE.findall(row[-1])
            assert found, row
            assert not self.SOURCE.sub("", row[-1]).strip(" ,"), row
            is_ours = row[0] == "aigateway"
            assert all(bool(own) for _, own in found) if is_ours else True, row

    def test_our_sources_are_in_this_repository(self):
        named = [own for row in self.ROWS for _, own in self.SOURCE.findall(row[-1]) if own]
        assert len(named) > 10
        assert [path for path in named if not (ROOT / path).is_file()] == []

    def test_the_figures_are_those_of_the_benchmarks(self):
        measured = (ROOT / "docs" / "reference" / "figures.md").read_text().replace(",", "")
        figures = rows(self.TEXT.split("## Figures")[1])
        assert len(figures) > 5
        numbers = [
            number
            for row in figures
            for cell in row[1:-1]
            for number in re.findall(r"\d+(?:\.\d+)?", cell.replace(",", ""))
        ]
        whole = set(re.findall(r"(?<![\d.])\d+(?:\.\d+)?", measured))
        assert [number for number in numbers if number not in whole] == []


def test_links_between_pages_lead_somewhere():
    for page in (*(ROOT / MOVING).glob("*.md"), ROOT / "docs" / "comparison.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text()):
            assert not link or (page.parent / link).is_file(), (page, link)
