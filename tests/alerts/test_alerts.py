"""The alert rules, checked and run by Prometheus' own tool. Where it is missing, they fail."""

import shutil
import subprocess
from pathlib import Path

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yml"
CASES = Path(__file__).with_name("alerts.test.yml")


def promtool(*arguments):
    tool = shutil.which("promtool")
    assert tool, "promtool is not on PATH: it is in Debian's package `prometheus`"
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_valid():
    assert "14 rules found" in promtool("check", "rules", str(RULES))


def test_each_fires_and_stays_silent():
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    fires: dict[str, list[bool]] = {rule["alert"]: [] for rule in group["rules"]}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for tested in case["alert_rule_test"]:
            fires[tested["alertname"]].append(bool(tested["exp_alerts"]))
    assert all(set(each) == {True, False} for each in fires.values()), fires
    promtool("test", "rules", str(CASES))


def test_the_tool_notices_a_rule_that_never_fires(tmp_path):
    for name, text in ((RULES.name, RULES.read_text()), (CASES.name, CASES.read_text())):
        broken = text.replace("aigateway_fleet_available == 0", "aigateway_fleet_available == 7")
        (tmp_path / name).write_text(broken.replace("../../deploy/prometheus/", ""))
    done = subprocess.run(
        [str(shutil.which("promtool")), "test", "rules", str(tmp_path / CASES.name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "AigatewayFleetLost" in done.stdout + done.stderr
