"""`aigateway init`: the file that it writes loads, and so does each line that it only suggests."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.cli.init import Draft, rendered
from aigateway.settings import (
    GatewaySettings,
    ServerSettings,
    environment_providers,
    load_providers,
)

PROSE = re.compile(r"^#( .*)?\n|^\n", re.MULTILINE)
SETTING = re.compile(r"^#([a-z_0-9]+) = ", re.MULTILINE)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


READ: dict[str, Callable[[], object]] = {
    "gateway": lambda: GatewaySettings().model_dump(),
    "server": lambda: ServerSettings().model_dump(),
    "providers": load_providers,
}


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    Path(".env").write_text(
        "AZURE_OPENAI_API_KEY=secret-2\nAZURE_OPENAI_ENDPOINT=https://x.openai.azure.com\n"
        "AZURE_OPENAI_DEPLOYMENT=d\nAZURE_OPENAI_MODEL=gpt-4o\n"
    )


def test_the_file_stands_for_the_environment_that_it_was_made_from(keys):
    code, stdout, stderr = run("init")
    text = Path("aigateway.toml").read_text()
    assert (code, stdout) == (0, "")
    assert "Wrote aigateway.toml; providers: openai/gpt-4o-mini, azure/d." in stderr
    assert "secret" not in text + stderr
    assert len(load_providers()) == 2
    assert load_providers() == tuple(found.config for found in environment_providers())
    code, stdout, _ = run("check")
    assert code == 0, stdout


def test_other_vendors_are_written_by_their_recipes(monkeypatch):
    monkeypatch.setenv("MISTRAL_API_KEY", "secret-3")
    code, _, stderr = run("init")
    assert (code, "providers: mistral/mistral-small-latest." in stderr) == (0, True)
    (config,) = load_providers()
    assert (config.name, config.api_base) == (
        "mistral/mistral-small-latest",
        "https://api.mistral.ai/v1",
    )


def test_each_commented_setting_is_valid_and_shows_its_default(keys):
    run("init")
    text = Path("aigateway.toml").read_text()
    before = {table: read() for table, read in READ.items()}
    names = []
    for match in SETTING.finditer(text):
        start = match.start()
        with_it = text[:start] + text[start + 1 :]
        Path("aigateway.toml").write_text(PROSE.sub("", with_it))  # reading comments takes long
        unset = re.sub(r"[\s#]", "", text[:start]).endswith("Notset;forexample:")
        table = re.findall(r"^\[+(\w+)\]", text[:start], re.MULTILINE)[-1]
        same = READ[table]() == before[table]
        assert same is not unset, match[0]
        names.append(match[1])
    fields = {*GatewaySettings.model_fields, *ServerSettings.model_fields}
    assert fields <= set(names)
    assert "capabilities" in names  # of a provider


def test_without_a_key_the_file_says_what_a_provider_looks_like():
    code, text, _ = run("init", "--output", "-")
    assert code == 0
    assert "providers" not in tomllib.loads(text)
    example = "\n".join(line[6:] for line in text.splitlines() if line.startswith("#     "))
    assert tomllib.loads(example)["providers"][0]["api_key_env"] == "OPENAI_API_KEY"
    assert not list(Path().iterdir())


def test_it_replaces_a_file_only_by_force(keys):
    Path("mine.toml").write_text("mine")
    code, _, stderr = run("init", "-o", "mine.toml")
    assert (code, Path("mine.toml").read_text()) == (2, "mine")
    assert "mine.toml exists; --force" in stderr
    code, _, stderr = run("init", "-o", "mine.toml", "--force")
    assert code == 0
    assert stderr.endswith("Next: aigateway check --config mine.toml\n")
    code, _, stderr = run("init", "-o", "no/such/directory.toml")
    assert code == 2
    assert stderr.startswith("error: no/such/directory.toml cannot be written (")


def test_any_text_survives():
    odd = 'a "quoted" \\ name\x7f\n\u2028 \U0001f600'
    draft = Draft(
        [{"provider": "litellm", "model": odd, "extra": {"a b": [1, {"c": odd}], "d": None}}],
        {"timeout": 5.5, "middleware": []},
        {"port": 1},
        ["A remark " * 30],
    )
    made = tomllib.loads(rendered(draft))
    assert made["providers"] == [
        {"provider": "litellm", "model": odd, "extra": {"a b": [1, {"c": odd}]}}
    ]
    assert made["gateway"] == {"timeout": 5.5, "middleware": []}
    assert made["server"] == {"port": 1}
