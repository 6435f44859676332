"""The pages agree with the code about settings, failures, events, metrics and commands."""

from __future__ import annotations

import re
import shlex
import typing

import pytest
from pydantic_core import PydanticUndefined
from typer.main import get_command

import aigateway
from aigateway import AsyncGateway, FailureKind, GatewaySettings, LLMConfig, events, testing
from aigateway.cli import app
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.telemetry import Prometheus
from aigateway.testing import ScriptedVendor, scripted_configs
from aigateway.wires.failures import VERDICTS, Failover, Gate
from tests.docs import commands
from tests.docs.pages import PAGES, blocks
from tests.docs.self_contained import foreign_assets
from tests.processes import ROOT

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
SETTINGS = (REFERENCE / "settings.md").read_text()
(ApiKey, _) = typing.get_args(ServerSettings.model_fields["keys"].annotation)
OBSERVABILITY = (DOCS / "guides" / "observability.md").read_text()


def rows(text):
    """The cells of all tables but their heads."""
    lines = re.findall(r"^\| *(.*?) *\|$(?!\n\|--)", text, re.MULTILINE)
    return [re.split(r" *\| *", line) for line in lines if not line.startswith("--")]


def in_words(name, field):
    """A default as the page writes it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "needed"
    if value is None or value == ():
        return "none"
    if isinstance(value, str):
        return f'"{value}"' if value else f"`provider/{name.replace('name', 'model')}`"
    return str(value).lower() if isinstance(value, bool) else f"{value:.10g}" if value else "0"


def test_the_page_of_commands_has_each_with_its_options():
    assert commands.PAGE.read_text().partition(commands.MARK)[2].strip() == (
        commands.tables().strip()
    ), "run python -m tests.docs.commands"


class TestSettings:
    @pytest.mark.parametrize(
        ("model", "begin", "end"),
        [
            (GatewaySettings, "## The gateway", "## A provider"),
            (LLMConfig, "## A provider", "## The service"),
            (ServerSettings, "## The service", "Each entry of `keys`"),
            (ApiKey, "Each entry of `keys`", None),
        ],
    )
    def test_each_stands_there_with_its_default(self, model, begin, end):
        section = SETTINGS.split(begin, 1)[1].split(end, 1)[0] if end else SETTINGS.split(begin)[1]
        documented = {row[0]: row[1] for row in rows(section) if row[0].startswith("`")}
        fields = {
            f"`{name}`": "{}" if field.default_factory is dict else in_words(name, field)
            for name, field in model.model_fields.items()
        }
        assert documented == fields


class TestFailures:
    FAILOVER: typing.ClassVar = {
        Failover.NEVER: "no",
        Failover.ALWAYS: "yes",
        Failover.SECOND_OPINION: "second opinion",
        Failover.LARGER_WINDOW: "larger window",
    }

    def test_the_table_is_the_one_of_the_code(self):
        table = rows((REFERENCE / "failures.md").read_text())
        documented = {
            row[0].strip("`"): (row[2].partition(",")[0], row[3], row[4])
            for row in table
            if row[0].startswith("`")
        }
        assert documented == {
            str(kind): (
                self.FAILOVER[verdict.failover],
                "failure" if verdict.counts else "neutral",
                str(verdict.gate).replace("_", " "),
            )
            for kind, verdict in VERDICTS.items()
        }
        assert set(documented) == set(FailureKind)
        assert {gate for _, _, gate in documented.values()} == {
            str(gate).replace("_", " ") for gate in Gate
        }


class TestReference:
    def test_every_public_name_has_its_place(self):
        text = "\n".join(path.read_text() for path in REFERENCE.glob("*.md"))
        shown = set(re.findall(r"^::: aigateway\.(\w+)$", text, re.MULTILINE))
        assert shown - {"events", "testing"} == set(aigateway.__all__) - {
            "Event",  # a union, described in words
            "Hook",
            "__version__",
        }
        assert {"events", "testing"} <= shown
        assert "Hook" in events.__all__
        assert testing.__all__

    def test_every_event_is_in_the_guide(self):
        named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", OBSERVABILITY))
        names = {
            record.name
            for record in typing.get_args(events.Event)
            if isinstance(record.name, str) and record not in events.ON_REQUEST
        }
        assert names <= named

    async def test_every_metric_is_in_the_guide_with_its_kind(self):
        metrics = Prometheus()
        gateway = AsyncGateway(
            scripted_configs("one"),
            vendor=ScriptedVendor(),
            hooks=[metrics],
            redis_url="redis://127.0.0.1:1",  # nothing listens there
        )
        key = ApiKey(name="web", sha256="0" * 64, budget_usd=1, rpm=1)
        service = Service(gateway, ServerSettings(keys=(key,)), prometheus=metrics)
        service.state_is_kept = lambda: True
        async with gateway:
            families = list(metrics.registry.collect())
        table = OBSERVABILITY.split("### Prometheus metrics")[1].partition("\n## ")[0]
        documented = {
            name: row[1] for row in rows(table) for name in re.findall(r"`(\w+)`", row[0])
        }
        kinds = {
            family.name + "_total" * (family.type == "counter"): family.type for family in families
        }
        assert documented == kinds


class TestCommands:
    def test_the_pages_name_options_that_exist(self):
        commands = get_command(app).commands  # type: ignore[attr-defined]
        lines = [
            line.partition(" | ")[0]
            for block in blocks("sh")
            for line in block.text.splitlines()
            if line.startswith("aigateway ")
        ]
        assert len(lines) > 10
        for line in lines:
            _, command, *words = shlex.split(line, comments=True)
            known = {option for parameter in commands[command].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, line

    def test_the_sessions_of_nox_exist(self):
        pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
        named = {name for path in pages for name in re.findall(r"nox -s (\w+)", path.read_text())}
        sessions = re.findall(
            r"^def (\w+)\(session:", (ROOT / "noxfile.py").read_text(), re.MULTILINE
        )
        assert {"demo", "tests", "docs"} <= named <= set(sessions)


class TestReadme:
    TEXT = (ROOT / "README.md").read_text()

    def test_is_short(self):
        assert len(self.TEXT.splitlines()) <= 150

    def test_its_links_lead_somewhere(self):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", self.TEXT)
        assert len(links) > 10
        assert [link for link in links if not (ROOT / link).exists()] == []


def test_assets_of_other_hosts_are_found(tmp_path):
    (tmp_path / "index.html").write_text(
        '<link rel="canonical" href="https://a.example"><a href="https://b.example">b</a>'
        '<script src="x.js"></script><img src="//c.example/c.png">'
        '<link rel="preconnect" href="https://d.example">'
        '<style>@import "https://e.example/e.css";</style>'
    )
    (tmp_path / "style.css").write_text("p { background: url(https://f.example/f.png) }")
    assert list(foreign_assets(tmp_path)) == [
        "index.html: //c.example/c.png",
        "index.html: https://d.example",
        "index.html: https://e.example/e.css",
        "style.css: https://f.example/f.png",
    ]
