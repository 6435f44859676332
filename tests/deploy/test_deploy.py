"""What is needed to run the service somewhere fits together. There is no Docker to try it with."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.main import get_command
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/aigateway.json").read_text())


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def services() -> Any:
    return load("compose.yaml")["services"]


def stages() -> list[list[str]]:
    """The instructions of the Dockerfile, by stage."""
    joined = re.sub(r"\\\n", " ", "\n".join(re.findall(r"^(?!#).+", DOCKERFILE, re.MULTILINE)))
    found: list[list[str]] = []
    for line in joined.splitlines():
        if line.startswith("FROM "):
            found.append([])
        found[-1].append(line)
    return found


class TestDockerfile:
    def test_what_is_copied_is_there(self):
        for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE):
            *sources, _ = line.split()
            for source in sources:
                assert (ROOT / source).exists(), source

    def test_builds_with_what_the_package_needs(self):
        copied = " ".join(re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE)).split()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert project["project"]["readme"] in copied
        assert set(project["project"]["license-files"]) <= set(copied)
        (extras,) = re.findall(r"\[([a-z,]+)\]", DOCKERFILE)
        assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()

    def test_the_last_stage_runs_as_nobody_special_and_keeps_no_source(self):
        assert len(stages()) == 2
        last = stages()[-1]
        (user,) = [line for line in last if line.startswith("USER")]
        assert user.split()[1].partition(":")[0] not in {"0", "root"}
        assert [line for line in last if line.startswith("COPY")] == [
            "COPY --from=build /opt/aigateway /opt/aigateway"
        ]
        assert last[0].split()[1].endswith("-slim")

    def test_starts_the_command_with_options_that_it_has(self):
        last = stages()[-1]
        entry, command = (
            json.loads(line.split(" ", 1)[1])
            for line in last
            if line.startswith(("ENTRYPOINT", "CMD"))
        )
        assert entry == ["aigateway", "serve"]
        serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
        known = {option for parameter in serve.params for option in parameter.opts}
        assert {word for word in command if word.startswith("-")} <= known

    def test_its_variables_are_settings(self):
        names = re.findall(r"AIGATEWAY_SERVER_([A-Z_]+)=", DOCKERFILE)
        assert names
        assert {name.lower() for name in names} <= ServerSettings.model_fields.keys()

    def test_the_constraints_it_draws_from_the_lock_are_whole(self):
        (script,) = re.findall(r"sed -n '(.+)' requirements/dev.txt", DOCKERFILE)
        pattern = script.removeprefix("s/^\\(").partition("\\).*")[0]
        assert pattern == r"[a-z0-9][^ ]*==[^ ]*\( ;[^\\]*\)\{0,1\}"
        found = re.findall(
            r"^([a-z0-9][^ ]*==[^ ]*(?: ;[^\\]*)?)",
            (ROOT / "requirements/dev.txt").read_text(),
            re.MULTILINE,
        )
        names = {line.partition("==")[0] for line in found}
        assert {"fastapi", "uvicorn", "prometheus-client", "litellm", "opentelemetry-sdk"} <= names


class TestCompose:
    def test_every_file_that_is_mounted_is_there(self, services):
        for service in services.values():
            for volume in service.get("volumes", ()):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (ROOT / source).is_dir(), source
                else:
                    assert source in load("compose.yaml")["volumes"]

    def test_ports_are_open_to_this_machine_only_and_agree(self, services):
        for service in services.values():
            for port in service.get("ports", ()):
                assert port.startswith("127.0.0.1:")
        (port,) = services["aigateway"]["ports"]
        inside = port.rpartition(":")[2]
        assert f"EXPOSE {inside}" in DOCKERFILE
        assert f"AIGATEWAY_SERVER_PORT={inside}" in DOCKERFILE
        (scrape,) = load("deploy/prometheus/prometheus.yml")["scrape_configs"]
        assert scrape["static_configs"] == [{"targets": [f"aigateway:{inside}"]}]
        assert scrape["metrics_path"] == "/metrics"

    def test_prometheus_finds_its_files_and_its_key(self, services):
        (config,) = [c for c in services["prometheus"]["command"] if c.startswith("--config.file=")]
        assert mounted(services["prometheus"], config.partition("=")[2]).is_file()
        (scrape,) = load("deploy/prometheus/prometheus.yml")["scrape_configs"]
        path = Path(scrape["authorization"]["credentials_file"])
        assert path.parent == Path("/run/secrets")
        assert path.name in services["prometheus"]["secrets"]
        assert path.name in load("compose.yaml")["secrets"]

    def test_grafana_finds_its_files(self, services):
        grafana = services["grafana"]
        home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        assert mounted(grafana, home).is_file()
        (provider,) = load("deploy/grafana/provisioning/dashboards/aigateway.yaml")["providers"]
        assert list(mounted(grafana, provider["options"]["path"]).glob("*.json"))
        (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
        assert source["url"] == "http://prometheus:9090"

    def test_the_settings_are_where_the_service_looks(self, services):
        directory = re.findall(r"^WORKDIR (.+)$", DOCKERFILE, re.MULTILINE)[-1]
        file = mounted(services["aigateway"], f"{directory}/aigateway.toml")
        assert tomllib.loads(file.read_text()) == {}

    def test_what_is_under_way_has_time_to_end(self, services):
        grace = services["aigateway"]["stop_grace_period"]
        assert int(grace.removesuffix("s")) > ServerSettings().drain_seconds + 5


def mounted(service: Any, path: str) -> Path:
    """The file of this tree that stands at that path in a container."""
    for volume in service["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith(".") and Path(path).is_relative_to(target):
            return Path(ROOT, source, Path(path).relative_to(target))
    raise AssertionError(f"nothing is mounted at {path}")


def test_systemd():
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "deploy/systemd/aigateway.service")
    service = unit["Service"]
    assert service["ExecStart"].endswith("/aigateway serve")
    assert int(service["TimeoutStopSec"]) > ServerSettings().drain_seconds + 5
    assert service["RestartPreventExitStatus"] == "2"


class TestDashboard:
    def test_every_panel_asks_the_source_that_is_provisioned(self):
        (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
        for panel in DASHBOARD["panels"]:
            for asked in (panel, *panel["targets"]):
                assert asked["datasource"] == {"type": source["type"], "uid": source["uid"]}

    def test_panels_have_their_own_ids_and_do_not_overlap(self):
        ids = [panel["id"] for panel in DASHBOARD["panels"]]
        assert len(set(ids)) == len(ids)
        taken: set[tuple[int, int]] = set()
        for panel in DASHBOARD["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells

    def test_brackets_are_closed(self):
        for expression in expressions():
            for pair in ("()", "{}", "[]"):
                assert expression.count(pair[0]) == expression.count(pair[1]), expression


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_one_that_the_service_has():
    from aigateway import AsyncGateway, LLMConfig
    from aigateway.telemetry.prometheus import Prometheus

    metrics = Prometheus()
    gateway = AsyncGateway([LLMConfig(provider="openai", model="m", api_key="k")])
    metrics.watch(lambda: gateway)
    known: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        names = {family.name}
        if family.type == "counter":
            names = {f"{family.name}_total"}
        elif family.type == "histogram":
            names = {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        for name in names:
            known[name] = {label for sample in family.samples for label in sample.labels}
    used = {name for line in expressions() for name in re.findall(r"aigateway_\w+", line)}
    assert used <= known.keys(), used - known.keys()
    assert len(used) > 12


@pytest.mark.parametrize("path", ["compose.yaml", "deploy/config/aigateway.toml"])
def test_the_commands_that_are_told_work(path):
    told = re.findall(r"aigateway (key [^`\n]+)", (ROOT / path).read_text())
    assert told
    for arguments in told:
        done = CliRunner().invoke(app, arguments.split())
        assert done.exit_code == 0, done.output
