"""Where settings are read from, in what order, and what is refused there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aigateway.settings import GatewaySettings, load_providers
from tests.settings.helpers import KEY, refused


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def timeout(**keywords: Any) -> float:
        return GatewaySettings.load(**keywords).timeout

    assert timeout() == 60
    (tmp_path / "aigateway.toml").write_text("[gateway]\ntimeout = 2\nmax_queue = 7\n")
    assert timeout() == 2
    (tmp_path / ".env").write_text("AIGATEWAY_TIMEOUT=3\nOPENAI_API_KEY=x\ntimeout=9\nOTHER=1\n")
    assert timeout() == 3
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "4")
    assert timeout() == 4
    assert timeout(timeout=5) == 5
    assert GatewaySettings().max_queue == 7
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "")
    assert timeout() == 3, "an empty variable is unset"


def test_agent_ttls_of_all_sources_are_put_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "aigateway.toml").write_text("[gateway.agent_ttls]\na = 1\nb = 2\n")
    monkeypatch.setenv("AIGATEWAY_AGENT_TTLS", '{"b": 3}')
    assert GatewaySettings().agent_ttls == {"a": 1, "b": 3}


def test_dotenv_changes_no_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"AIGATEWAY_TIMEOUT=3\nOPENAI_API_KEY={KEY}\n")
    before = dict(os.environ)
    GatewaySettings()
    assert len(load_providers()) == 1
    assert dict(os.environ) == before


def test_dotenv_is_not_looked_for_upwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"AIGATEWAY_TIMEOUT=3\nOPENAI_API_KEY={KEY}\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert GatewaySettings().timeout == 60
    assert load_providers() == ()


def test_a_directory_called_dotenv_is_no_file(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert GatewaySettings().timeout == 60
    assert load_providers() == ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AIGATEWAY_TIMOUT", "5", ["AIGATEWAY_TIMOUT", 'did you mean "AIGATEWAY_TIMEOUT"?']),
        ("AIGATEWAY_API_KEY", KEY, ["AIGATEWAY_API_KEY", "no setting"]),
        ("AIGATEWAY_TIMEOUT", KEY, ["timeout (AIGATEWAY_TIMEOUT in the environment or .env)"]),
        ("AIGATEWAY_AGENT_TTLS", KEY, ["AIGATEWAY_AGENT_TTLS", "JSON object"]),
        ("AIGATEWAY_AGENT_TTLS", "[1]", ["agent_ttls", "dictionary"]),
        ("AIGATEWAY_CACHE_ENABLED", "perhaps", ["cache_enabled", "boolean"]),
        ("AIGATEWAY_CONFIG", "gone.toml", ["gone.toml", "cannot be read", "AIGATEWAY_CONFIG"]),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_refused_variables(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    value: str,
    words: list[str],
    place: str,
) -> None:
    (tmp_path / ".env").write_text(
        f"OPENAI_API_KEY={KEY}\n" + (f"{name}='{value}'\n" if place == ".env" else "")
    )
    if place == "environment":
        monkeypatch.setenv(name, value)
    message = refused(GatewaySettings)
    for word in words:
        assert word in message


def test_lower_case_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("aigateway_timeout", "5")
    assert GatewaySettings().timeout == 5
    monkeypatch.setenv("aigateway_timout", "5")
    assert "aigateway_timout" in refused(GatewaySettings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gateway]\ntimout = 5", ["aigateway.toml, [gateway]", 'did you mean "timeout"?']),
        ("[gatway]\ntimeout = 5", ["aigateway.toml", 'did you mean "gateway"?']),
        (f"[[provider]]\napi_key = '{KEY}'", ['did you mean "providers"?']),
        ("[gateway]\ntimeout = 0", ["timeout (aigateway.toml)"]),
        ("[gateway]\ntimeout =", ["aigateway.toml", "line 2, column", "correct"]),
        (f"[gateway]\napi_key = '{KEY}", ["end of document"]),
        ("gateway = 5", ["aigateway.toml", "[gateway]"]),
        ("providers = 5", ["[[providers]]"]),
        (f"providers = ['{KEY}']", ["[[providers]]"]),
    ],
)
def test_refused_files(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "aigateway.toml").write_text(f"{text}\n")
    message = refused(GatewaySettings)
    for word in words:
        assert word in message


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "aigateway.toml").write_bytes(b"\xff\xfe")
    assert "aigateway.toml is not UTF-8" in refused(GatewaySettings)
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe")
    assert ".env is not UTF-8" in refused(GatewaySettings)
    assert ".env is not UTF-8" in refused(load_providers)


def test_config_variable_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[gateway]\ntimeout = 2\n")
    monkeypatch.setenv("AIGATEWAY_CONFIG", str(tmp_path / "other.toml"))
    assert GatewaySettings().timeout == 2
