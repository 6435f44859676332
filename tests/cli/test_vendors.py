"""`aigateway vendors`: all that can be reached, and the lines that configure each."""

from __future__ import annotations

import json
import sys
import tomllib

from typer.testing import CliRunner

from aigateway import LLMConfig
from aigateway.cli import app
from aigateway.cli.vendors import RECIPES


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["vendors", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_every_vendor_has_lines_that_load():
    code, stdout, _ = run("--json")
    vendors = json.loads(stdout)
    assert code == 0
    assert [v["name"] for v in vendors[: len(RECIPES)]] == [recipe.name for recipe in RECIPES]
    assert {"fireworks_ai", "xai", "cerebras"} <= {vendor["name"] for vendor in vendors}
    for vendor in vendors:
        (table,) = tomllib.loads(vendor["toml"])["providers"]
        named = table.pop("api_key_env", None)
        assert LLMConfig(**table, api_key="k").model == table["model"]
        assert named in {None, *vendor["variables"]}
        if vendor not in vendors[: len(RECIPES)]:  # litellm's map has no names of variables
            assert (named, vendor["variables"]) == (None, [])
            assert vendor["remarks"][0].startswith("Untested; see litellm's page")


def test_a_word_finds_vendors():
    code, stdout, _ = run("Vertex")
    assert code == 0
    assert stdout.startswith("# Google Vertex AI: https://cloud.google.com/")
    assert '# Needs google-auth: pip install "aigateway[vertex]"\n' in stdout
    assert tomllib.loads(stdout)["providers"][0]["model"].startswith("vertex_ai/")
    assert run("groq")[1].count("[[providers]]") == 1
    assert "\n# Untested; see litellm's page for its credentials." in run("sagemaker")[1]
    code, stdout, stderr = run("no-such-vendor")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: no vendor has 'no-such-vendor' in its name; `aigateway vend")


def test_the_list_loads_no_litellm(monkeypatch):
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    assert " deepseek " in run()[1]
    assert "litellm" not in sys.modules
