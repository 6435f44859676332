"""What is needed to run the service somewhere fits together. There is no Docker to try it with."""

from __future__ import annotations

import configparser
import hashlib
import http.server
import json
import os
import re
import shlex
import subprocess
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.main import get_command
from typer.testing import CliRunner

from aigateway import __version__
from aigateway.cli import app
from aigateway.settings import GatewaySettings, ServerSettings
from tests.fleet.servers import Server

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TRIAL = {"trial": "trial", "admin": "trial-admin", "prometheus": "trial-metrics"}
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
        if found:
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
        hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
        assert {fragment["path"] for fragment in hook["fragments"]} <= set(copied)
        assert set(project["project"]["license-files"]) <= set(copied)
        pins = (ROOT / "requirements/image.txt").read_text()
        extras = project["project"]["optional-dependencies"]
        needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
        for extra in ("server", "redis", "otel"):
            needed += extras[extra]
        for requirement in needed:
            name = re.split(r"[^\w-]", requirement)[0]
            assert re.search(rf"^{name}==", pins, re.MULTILINE), requirement
        for line in (ROOT / ".dockerignore").read_text().splitlines():
            assert line.startswith(("#", "*")) or line.removeprefix("!") in copied, line
        assert "/opt/aigateway/bin/pip install --no-cache-dir --require-hashes" in DOCKERFILE

    def test_keeps_its_state_where_its_user_may_write(self):
        last = "\n".join(stages()[-1])
        (directory,) = re.findall(r"AIGATEWAY_SERVER_STATE_DIR=(\S+)", last)
        (uid,) = re.findall(r"--uid (\d+)", last)
        assert f"install --directory --owner {uid} --group {uid} --mode 0700 {directory}" in last
        assert f"USER {uid}:{uid}" in last

    def test_the_last_stage_runs_as_nobody_special_and_keeps_no_source(self):
        assert len(stages()) == 2
        last = stages()[-1]
        (user,) = [line for line in last if line.startswith("USER")]
        assert user.split()[1].partition(":")[0] not in {"0", "root"}
        assert [line for line in last if line.startswith("COPY")] == [
            "COPY --from=build /opt/aigateway /opt/aigateway"
        ]
        assert re.search(r"^ARG PYTHON=python:3\.\d+-slim$", DOCKERFILE, re.MULTILINE)
        assert {stage[0].split()[1] for stage in stages()} == {"${PYTHON}"}

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

    def test_its_versions_are_those_that_are_tested(self):
        def pinned(file: str) -> dict[str, str]:
            text = (ROOT / f"requirements/{file}.txt").read_text()
            return dict(re.findall(r"^([a-z0-9][^ ]*)==([^ ]+)", text, re.MULTILINE))

        image, tested = pinned("image"), pinned("dev")
        (line,) = re.findall(r"pip uninstall --yes --quiet (.+) pip$", DOCKERFILE, re.MULTILINE)
        build_only = line.split()
        assert {"fastapi", "uvicorn", "litellm", "opentelemetry-sdk", "redis"} <= image.keys()
        assert image.items() - tested.items() <= {(name, image[name]) for name in build_only}


class TestCompose:
    def test_every_file_that_is_mounted_is_there(self, services):
        for service in services.values():
            for volume in service.get("volumes", ()):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert volume.endswith(":ro")
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
        assert scrape["dns_sd_configs"] == [
            {"names": ["aigateway"], "type": "A", "port": int(inside)}
        ]
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

    def test_its_variables_are_settings(self, services):
        names = {n for n in services["aigateway"]["environment"] if n.startswith("AIGATEWAY_")}
        assert "AIGATEWAY_REDIS_URL" in names
        assert {
            n.removeprefix("AIGATEWAY_").lower() for n in names
        } <= GatewaySettings.model_fields.keys()

    def test_the_state_of_the_service_and_of_valkey_outlives_a_container(self, services):
        (state,) = re.findall(r"AIGATEWAY_SERVER_STATE_DIR=(\S+)", DOCKERFILE)
        assert f"state:{state}" in services["aigateway"]["volumes"]
        assert "valkey:/data" in services["valkey"]["volumes"]

    def test_only_the_service_reaches_valkey(self, services):
        (network,) = services["valkey"]["networks"]
        assert load("compose.yaml")["networks"][network] == {"internal": True}
        others = services.keys() - {"aigateway", "valkey"}
        assert not [name for name in others if "networks" in services[name]]
        assert set(services["aigateway"]["networks"]) == {"default", network}
        assert "ports" not in services["valkey"]
        assert (
            services["aigateway"]["environment"]["AIGATEWAY_REDIS_URL"] == "redis://valkey:6379/0"
        )

    def test_containers_with_data_may_do_no_more_than_they_need(self, services):
        for name in ("aigateway", "valkey"):
            assert services[name]["read_only"] is True
            assert services[name]["cap_drop"] == ["ALL"]
            assert services[name]["security_opt"] == ["no-new-privileges:true"]

    def test_valkey_starts_and_evicts_answers_only(self, services, tmp_path):
        """Fill it: what has no time to live stays, as budgets must; writing never fails."""
        command = services["valkey"]["command"]
        assert command[0] == "valkey-server"
        with Server(tmp_path, *command[1:]) as valkey:
            limit = int(valkey("CONFIG GET", "maxmemory")["maxmemory"])
            assert limit == 256 * 2**20
            valkey(
                "CONFIG", "SET", "maxmemory", int(valkey("INFO", "memory")["used_memory"]) + 2**21
            )
            valkey("SET", "budget", "1")
            for number in range(400):
                valkey("SET", f"answer:{number}", "x" * 10_000, "EX", 3600)
            assert valkey("INFO", "stats")["evicted_keys"] > 0
            assert valkey("GET", "budget") == b"1"
            assert valkey("CONFIG GET", "appendonly") == {"appendonly": "yes"}

    def test_the_trial_needs_nothing_but_itself(self, services):
        trial = [name for name in services if services[name].get("profiles") == ["trial"]]
        for name in trial:
            assert set(services[name].get("depends_on", ())) <= set(trial)
            assert not services[name].keys() & {"env_file", "secrets"}
            for volume in services[name].get("volumes", ()):
                assert volume.startswith("./deploy/")  # it keeps nothing
        config = load("deploy/trial/prometheus.yml")
        [rules_file] = config["rule_files"]
        assert mounted(services["trial-prometheus"], rules_file).is_file()
        [scrape] = config["scrape_configs"]
        assert scrape["static_configs"] == [{"targets": ["trial:8080"]}]
        settings = tomllib.loads((ROOT / "deploy/trial/aigateway.toml").read_text())["server"]
        digests = {key["name"]: key["sha256"] for key in settings["keys"]}
        known = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in TRIAL.items()}
        assert {**digests, "admin": settings["admin_sha256"]} == known
        assert scrape["authorization"]["credentials"] == TRIAL["prometheus"]
        said = (ROOT / "compose.yaml").read_text()
        assert "x-api-key: trial'" in said
        assert "(key: trial-admin)" in said

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


def test_the_health_check_of_the_image_tells_a_service_from_none(tmp_path):
    """Without a Python: it runs every ten seconds."""
    (line,) = re.findall(r"^ +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    command = json.loads(line)
    assert command[0] == "bash"

    def check(port: int) -> int:
        environment = {"PATH": os.environ["PATH"], "AIGATEWAY_SERVER_PORT": str(port)}
        return subprocess.run(command, env=environment, check=False, capture_output=True).returncode

    class Answer(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            assert check(server.server_port) == 0
            Answer.status = 503
            assert check(server.server_port) != 0
        finally:
            server.shutdown()
    assert check(server.server_port) != 0


def test_systemd():
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "deploy/systemd/aigateway.service")
    service = unit["Service"]
    assert service["ExecStart"].endswith("/aigateway serve")
    assert int(service["TimeoutStopSec"]) > ServerSettings().drain_seconds + 5
    assert service["RestartPreventExitStatus"] == "2"
    assert (
        service["Environment"] == f"AIGATEWAY_SERVER_STATE_DIR=/var/lib/{service['StateDirectory']}"
    )


def test_the_chart_has_the_version_of_the_package():
    assert load("deploy/helm/aigateway/Chart.yaml")["appVersion"] == __version__
    compose = load("compose.yaml")["services"]["valkey"]["image"]
    values = load("deploy/helm/aigateway/values.yaml")["valkey"]["image"]
    assert compose == f"{values['repository']}:{values['tag']}"


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


def test_the_chart_has_the_alerts_of_prometheus():
    # A copy: a link that leads out of the chart is lost in a package of it, and on Windows.
    copy = ROOT / "deploy/helm/aigateway/alerts.yml"
    assert copy.read_bytes() == (ROOT / "deploy/prometheus/alerts.yml").read_bytes()


def rules() -> list[dict[str, Any]]:
    """The alert rules; `nox -s alerts` tests when they fire."""
    assert load("deploy/prometheus/prometheus.yml")["rule_files"] == ["alerts.yml"]
    [group] = load("deploy/prometheus/alerts.yml")["groups"]
    return list(group["rules"])


def test_each_alert_leads_to_its_section():
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^a-z0-9 ]", "", each.lower()).replace(" ", "-") for each in headings]
        assert anchor in anchors, rule["alert"]
        assert f"`{rule['alert']}`" in (ROOT / page).read_text()


def test_every_metric_of_the_dashboard_and_the_alerts_is_one_that_the_service_has():
    from aigateway import AsyncGateway, LLMConfig
    from aigateway.server.service import Service
    from aigateway.settings import ApiKey
    from aigateway.telemetry.prometheus import Prometheus

    metrics = Prometheus()
    gateway = AsyncGateway(
        [LLMConfig(provider="openai", model="m", api_key="k")], redis_url="redis://127.0.0.1:1/0"
    )
    key = ApiKey(name="web", sha256="0" * 64, budget_usd=1, rpm=1)
    service = Service(gateway, ServerSettings(keys=(key,)), prometheus=metrics)
    service.state_is_kept = lambda: True
    known: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        names = {family.name}
        if family.type == "counter":
            names = {f"{family.name}_total"}
        elif family.type == "histogram":
            names = {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        for name in names:
            known[name] = {label for sample in family.samples for label in sample.labels}
    for lines in (expressions(), [rule["expr"] for rule in rules()]):
        used = {name for line in lines for name in re.findall(r"aigateway_\w+", line)}
        assert used <= known.keys(), used - known.keys()
        assert len(used) > 10


@pytest.mark.parametrize("path", ["compose.yaml", "deploy/config/aigateway.toml"])
def test_the_commands_that_are_told_work(path):
    told = re.findall(r"aigateway (key [^`\n]+)", (ROOT / path).read_text())
    assert told
    for arguments in told:
        done = CliRunner().invoke(app, shlex.split(arguments))
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "path", ["compose.yaml", "docs/guides/keys.md", "docs/guides/kubernetes.md"]
)
def test_each_command_that_makes_prometheus_key_makes_one_that_sees_all_accounts(path, tmp_path):
    """Without them, the alerts on budgets and rates see no account but its own."""
    told = re.findall(r"aigateway (key --name prometheus[^`\n>]*)", (ROOT / path).read_text())
    assert told
    for arguments in told:
        given = shlex.split(arguments.partition("--append")[0])
        done = CliRunner().invoke(app, [*given, "--append", str(tmp_path / "aigateway.toml")])
        assert done.exit_code == 0, done.output
    assert keys_of((tmp_path / "aigateway.toml").read_text()) == [(True, [])]


@pytest.mark.parametrize("path", ["deploy/config/aigateway.toml", "deploy/trial/aigateway.toml"])
def test_prometheus_key_in_a_file_sees_all_accounts(path):
    text = (ROOT / path).read_text()
    if path == "deploy/config/aigateway.toml":
        text = text.partition("#\n")[2].partition("\n\n")[0].replace("# ", "")
    assert keys_of(text) == [(True, [])]


def keys_of(text: str) -> list[Any]:
    keys = tomllib.loads(text)["server"]["keys"]
    mine = [key for key in keys if key["name"] == "prometheus"]
    return [(key.get("monitor"), key.get("models")) for key in mine]
