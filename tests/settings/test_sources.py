"""Settings and providers from keywords, the environment, `.env` and the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from aigateway.settings import GatewaySettings, load_providers
from tests.settings.helpers import KEY, TOKEN, refused


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
        ("AIGATEWAY_TIMEOUT", KEY, ["timeout (AIGATEWAY_TIMEOUT in PLACE)"]),
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
    where = ".env" if place == ".env" else "the environment"
    for word in words:
        assert word.replace("PLACE", where) in message


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


AZURE_ENV = {
    "AZURE_OPENAI_API_KEY": KEY,
    "AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com/",
    "AZURE_OPENAI_DEPLOYMENT": "prod",
}


def test_nothing_configured() -> None:
    assert load_providers() == ()
    assert load_providers({"OPENAI_MODEL": "m", "OPENAI_API_KEY": ""}) == ()


def test_all_four_in_their_order() -> None:
    made = load_providers(
        AZURE_ENV | {"OPENAI_API_KEY": KEY, "GEMINI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    )
    assert [(c.name, c.priority, c.api_base) for c in made] == [
        ("openai/gpt-4o-mini", 40, None),
        ("azure/prod", 30, "https://r.openai.azure.com"),
        ("gemini/gemini-3.5-flash-lite", 20, None),
        ("anthropic/claude-haiku-4-5", 10, None),
    ]
    assert made[1].api_version == "2024-10-21"
    assert all(c.api_key == SecretStr(KEY) for c in made)


@pytest.mark.parametrize("prefix", ["OPENAI_", "GEMINI_", "ANTHROPIC_"])
def test_each_vendor_takes_model_base_and_priority(prefix: str) -> None:
    (made,) = load_providers(
        {
            f"{prefix}API_KEY": KEY,
            f"{prefix}MODEL": "special",
            f"{prefix}BASE_URL": "http://localhost:1/v1/",
            f"{prefix}PRIORITY": "7",
        }
    )
    assert made.model == "special"
    assert made.priority == 7
    assert made.api_base is not None
    assert made.api_base.startswith("http://localhost:1")


def test_gemini_endpoint() -> None:
    (made,) = load_providers({"GEMINI_API_KEY": KEY, "GEMINI_ENDPOINT": "https://h/"})
    assert made.api_base == "https://h/v1beta"


def test_azure_variables() -> None:
    (made,) = load_providers(
        AZURE_ENV
        | {
            "AZURE_OPENAI_API_VERSION": "2025-02-01-preview",
            "AZURE_OPENAI_MODEL": "gpt-4o",
            "AZURE_OPENAI_PRIORITY": "99",
        }
    )
    assert made.api_version == "2025-02-01-preview"
    assert made.model == "prod"
    assert made.aliases == ("gpt-4o",)
    assert made.priority == 99
    base_url = {k: v for k, v in AZURE_ENV.items() if not k.endswith("ENDPOINT")}
    (made,) = load_providers(base_url | {"AZURE_OPENAI_BASE_URL": "https://b"})
    assert made.api_base == "https://b"


def test_azures_model_is_an_alias_and_what_its_price_goes_by() -> None:
    (made,) = load_providers(AZURE_ENV)
    assert (made.aliases, made.extra) == ((), {})
    (made,) = load_providers(AZURE_ENV | {"AZURE_OPENAI_MODEL": "gpt-4o"})
    assert made.model == "prod"
    assert (made.aliases, made.extra) == (("gpt-4o",), {"base_model": "gpt-4o"})
    (other,) = load_providers({"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "gpt-4o"})
    assert (other.aliases, other.extra) == ((), {})


@pytest.mark.parametrize("missing", ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENT"])
def test_an_incomplete_azure_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name, value in AZURE_ENV.items():
        monkeypatch.setenv(name, "" if name == missing else value)
    assert f"without {missing};" in refused(load_providers)
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    assert load_providers() == ()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OPENAI_PRIORITY", "first", ["OPENAI_* variables", "priority", "integer"]),
        ("OPENAI_BASE_URL", f"https://h?key={KEY}", ["OPENAI_* variables", "api_base"]),
        ("OPENAI_API_KEY", f"{KEY}\n", ["OPENAI_* variables", "api_key", "whitespace"]),
    ],
)
def test_bad_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(variable, value)
    message = refused(load_providers)
    for word in words:
        assert word in message


def test_environment_over_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_MODEL=from-file\n")
    assert load_providers({"OPENAI_MODEL": ""})[0].model == "from-file"
    assert load_providers({"OPENAI_MODEL": "from-env"})[0].model == "from-env"
    (tmp_path / "other").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_MODEL=from-other\n")
    assert load_providers({}, tmp_path / "other")[0].model == "from-other"
    assert "cannot be read" in refused(lambda: load_providers({}, tmp_path / "gone"))


def test_providers_of_the_file_replace_the_environments(tmp_path: Path) -> None:
    (tmp_path / "aigateway.toml").write_text(f"""
        [[providers]]
        provider = "openai"
        model = "a"
        api_key_env = "MY_KEY"
        priority = 3
        aliases = ["fast"]
        headers = {{ X-Team = "blue" }}

        [[providers]]
        provider = "openai_compatible"
        model = "b"
        api_base = "http://localhost:8000/v1"

        [[providers]]
        provider = "anthropic"
        model = "c"

        [[providers]]
        provider = "gemini"
        model = "d"
        api_key = "{KEY}2"
    """)
    made = load_providers({"MY_KEY": KEY, "ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": "other"})
    assert [c.name for c in made] == [
        "openai/a",
        "openai_compatible/b",
        "anthropic/c",
        "gemini/d",
    ]
    keys = [c.api_key for c in made]
    assert keys == [SecretStr(KEY), None, SecretStr(KEY), SecretStr(f"{KEY}2")]
    assert made[0].aliases == ("fast",)
    assert made[0].headers == {"X-Team": "blue"}


def test_a_file_without_providers_leaves_the_environments(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[gateway]\ntimeout = 1\n")
    assert len(load_providers({"OPENAI_API_KEY": KEY}, toml=path)) == 1
    assert "cannot be read" in refused(lambda: load_providers({}, toml=Path("gone.toml")))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('model = "m"', ["providers[1]", "provider", "required"]),
        ('provider = "openai"', ["providers[1]", "model", "required"]),
        ('provider = ["openai"]\nmodel = "m"', ["providers[1]", "provider"]),
        ('provider = "opnai"\nmodel = "m"', ["providers[1]", "provider", "'openai'"]),
        ('provider = "anthropic"\nmodel = "m"', ["providers[1]", "ANTHROPIC_API_KEY"]),
        (
            'provider = "openai"\nmodel = "m"\napi_key_env = "GONE"',
            ["providers[1]", "api_key_env", "set"],
        ),
        ('provider = "openai"\nmodel = "m"\napi_key_env = 5', ["api_key_env"]),
        ('provider = "openai"\nmodel = "m"\napi_key_envv = "X"', ['did you mean "api_key_env"']),
        (
            f'provider = "openai"\nmodel = "m"\napi_key = "{KEY}"\napi_key_env = "MY_KEY"',
            ["api_key_env", "without api_key"],
        ),
        (
            f'provider = "openai"\nmodel = "m"\napi_key = "{KEY}"\nweigth = 1',
            ["providers[1]", 'did you mean "weight"?'],
        ),
        (
            (
                f'provider = "openai"\nmodel = "m"\napi_key = "{KEY}"\nweight = 0\n'
                f'headers = {{ A = "{TOKEN}" }}'
            ),
            ["providers[1]", "weight"],
        ),
        (f'provider = "openai"\nmodel = "m"\napi_key = " {KEY}"', ["providers[1]", "api_key"]),
    ],
)
def test_bad_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: str, words: list[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    (tmp_path / "aigateway.toml").write_text(f"""
[[providers]]
provider = "gemini"
model = "first"
api_key = "{KEY}"
headers = {{ A = "{TOKEN}" }}
[[providers]]
{table}
""")
    message = refused(load_providers)
    for word in words:
        assert word in message
