"""`aigateway check`: what the configuration does, what looks wrong in it, and no secret."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aigateway.cli import app
from aigateway.simulator import Fault, Simulator

KEY = "abcdef-very-secret-0123456789"
PASSWORD = "hunter2hunter2"
DIGEST = "1" * 64
OPENAI = '[[providers]]\nprovider = "openai"\nmodel = "gpt-4o-mini"\n'
CLAUDE = '[[providers]]\nprovider = "anthropic"\nmodel = "claude-haiku-4-5"\n'


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["check", *arguments])
    for secret in (KEY, PASSWORD, DIGEST):
        assert secret not in done.output
        assert secret[-6:] not in done.output
    return done.exit_code, done.stdout, done.stderr


def checked(text: str) -> Any:
    Path("aigateway.toml").write_text(text)
    Path("aigateway.toml").chmod(0o600)
    code, stdout, _ = run("--json")
    assert code == 0
    return json.loads(stdout)


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Path(".env").write_text(f"ANTHROPIC_API_KEY={KEY}2\nAIGATEWAY_CACHE_TTL_SECONDS=60\n")
    Path(".env").chmod(0o600)


def test_it_sends_nothing(monkeypatch):
    sent = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda *given: sent.append(given))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: sent.append(given))
    redis = f'[gateway]\nredis_url = "redis://u:{PASSWORD}@redis.example.com/0"\n'
    found = checked(f"{redis}{OPENAI}{CLAUDE}")
    assert found["settings"]["gateway"]["redis_url"]["value"] == "redis.example.com:6379"
    assert sent == []


def test_it_says_what_happens_and_where_that_was_read():
    Path("aigateway.toml").write_text(
        f"[gateway]\ntimeout = 40\n[server]\nport = 9090\nadmin_sha256 = '{DIGEST}'\n"
        f"{CLAUDE}{OPENAI}priority = 2\nrpm = 500\nheaders = {{ x-team = '{KEY}' }}\n"
    )
    code, stdout, stderr = run()
    assert (code, stderr) == (0, "")
    assert stdout.index("openai/gpt-4o-mini") < stdout.index("anthropic/claude-haiku-4-5")
    for line in (
        "      key        OPENAI_API_KEY in the environment\n",
        "      key        ANTHROPIC_API_KEY in .env\n",
        "      from       aigateway.toml, providers[1]\n",
        "      price      $0.15 in, $0.60 out per million tokens\n",
        "      limits     rpm 500\n",
        "      headers    x-team\n",
        "  timeout           = 40.0  (aigateway.toml)\n",
        "  cache_ttl_seconds = 60.0  (AIGATEWAY_CACHE_TTL_SECONDS in .env)\n",
        "  admin_sha256 = set  (aigateway.toml)\n",
        "  cache      1000 answers for 60 s\n",
        "  service    127.0.0.1 port 9090, 1 worker\n",
    ):
        assert line in stdout
    assert "images" in stdout
    assert "warning" not in stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OPENAI, "is the only provider"),
        (OPENAI, "ANTHROPIC_API_KEY in .env is not used"),
        (OPENAI + OPENAI.replace("-mini", ""), "openai/gpt-4o share one vendor and key"),
        (f"{OPENAI}timeout = 90\n{CLAUDE}", "timeout (90 s) is longer than that of a whole requ"),
        (f"[gateway]\nattempt_timeout = 60\n{OPENAI}{CLAUDE}", "leaves nothing of timeout"),
        (f"[server]\nrequest_timeout = 5\n{OPENAI}{CLAUDE}", "request_timeout (5 s) is shorter"),
        (OPENAI.replace("-mini", "-nano-9"), "does not know gpt-4o-nano-9"),
        (f"{OPENAI}api_key = 'sk-ant-{KEY}'\n{CLAUDE}", "its key looks like one of anthropic"),
        (f"{OPENAI}api_key = 'your-api-key'\n{CLAUDE}", "looks like a placeholder"),
        (f"{OPENAI}api_key = '\"{KEY}\"'\n{CLAUDE}", "has a quotation mark at an end"),
        (f"{OPENAI}api_base = 'http://proxy.example.com/v1'\n", "the key travels unencrypted"),
        (
            (
                "[[providers]]\nprovider = 'openai_compatible'\nmodel = 'm'\n"
                "api_base = 'http://localhost:8000'\n"
            ),
            "most servers need /v1",
        ),
        (
            "[[providers]]\nprovider = 'litellm'\nmodel = 'vertex_ai/gemini-3.5-flash'\n",
            'needs google-auth; pip install "aigateway[vertex]"',
        ),
        (
            (
                f"[server]\nkeys = [{{ name = 'team', sha256 = '{DIGEST}', models = ['gone'] }}]\n"
                f"{OPENAI}{CLAUDE}"
            ),
            "key team may request gone, which no provider serves",
        ),
        (
            (
                f"[server]\nkeys = [{{ name = 'team', sha256 = '{DIGEST}', budget_usd = 5 }}]\n"
                f"{OPENAI}{CLAUDE.replace('haiku-4-5', 'zzz-9')}"
            ),
            "key team has a budget, so its requests never go to anthropic/claude-zzz-9",
        ),
    ],
)
def test_it_warns(monkeypatch, text, words):
    monkeypatch.setattr(
        "aigateway.wires.loading._PACKAGES", {"vertex_ai": ("x.y", "google-auth", "vertex")}
    )
    assert [w for w in checked(text)["warnings"] if words in w]


def test_it_does_not_warn_of_what_works():
    keys = (
        f"[server]\nkeys = [{{ name = 'team', sha256 = '{DIGEST}', models = ['auto'] }},"
        f" {{ name = 'eye', sha256 = '{DIGEST[:-1]}2', models = [], monitor = true }}]\n"
    )
    compatible = (
        "[[providers]]\nprovider = 'openai_compatible'\nmodel = 'gpt-4o-mini'\n"
        "api_base = 'https://proxy.example.com/v1'\napi_key_env = 'OPENAI_API_KEY'\n"
        "extra = { base_model = 'gpt-4o-mini' }\n"
    )
    found = checked(f"{keys}{compatible}{CLAUDE}")
    assert found["warnings"] == []
    access = "team (only auto); eye (asks for nothing, sees what all have used)"
    assert found["summary"]["access"] == access


def test_prices_of_the_settings_stand_in():
    prices = "[gateway]\ndefault_prices = { input = 0.5, output = 1.5 }\n"
    known, unknown = checked(prices + OPENAI + CLAUDE.replace("haiku-4-5", "zzz-9"))["providers"]
    assert known["price_usd_per_million"] == {"input": 0.15, "output": 0.6}
    assert unknown["price_usd_per_million"] == {"input": 0.5, "output": 1.5}


def test_a_file_that_others_can_read():
    assert not [w for w in checked(OPENAI)["warnings"] if "chmod" in w]
    Path(".env").chmod(0o644)
    assert [w for w in checked(OPENAI)["warnings"] if "chmod 600 .env" in w]
    code, stdout, _ = run("--strict")
    assert (code, "warnings:\n" in stdout) == (1, True)


def test_an_invalid_configuration_is_code_two(monkeypatch, tmp_path):
    code, stdout, stderr = run("--config", str(tmp_path / "gone.toml"))
    assert (code, stdout) == (2, "")
    assert "gone.toml cannot be read" in stderr
    monkeypatch.setenv("AIGATEWAY_CONFIG", "other.toml")
    Path("other.toml").write_text(f"[gateway]\ntimout = 3\n{OPENAI}")
    code, stdout, _ = run("--json")
    assert code == 2
    assert json.loads(stdout)["ok"] is False
    assert 'did you mean "timeout"' in json.loads(stdout)["error"]


def test_ask(monkeypatch):
    with Simulator.in_thread() as simulator:
        simulator.anthropic.behave(Fault.bad_key())
        monkeypatch.setenv("OPENAI_BASE_URL", simulator.openai.api_base)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.anthropic.api_base)
        code, stdout, _ = run("--ask")
        assert (simulator.openai.request_count, simulator.anthropic.request_count) == (1, 1)
    assert code == 1
    assert "      answer     ok, " in stdout
    assert "      answer     authentication (HTTP 401), " in stdout
    assert "the vendor refuses the key; make a new one" in stdout
