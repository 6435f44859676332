"""Configuration: what is accepted, where it is read, and that no message shows a key."""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from aigateway.errors import ConfigurationError
from aigateway.settings import GatewaySettings, LLMConfig, ProviderType, load_providers

KEY = "sk-very-secret-0123456789"
TOKEN = "Bearer very-secret-token"
OPENAI = ProviderType.OPENAI
AZURE_ENV = {
    "AZURE_OPENAI_API_KEY": KEY,
    "AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com/",
    "AZURE_OPENAI_DEPLOYMENT": "prod",
}


@pytest.fixture(autouse=True)
def _clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("AIGATEWAY_", "OPENAI_", "AZURE_", "GEMINI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def config(**fields: Any) -> LLMConfig:
    return LLMConfig(**{"provider": OPENAI, "model": "m", "api_key": KEY} | fields)


def refused(make: Callable[[], object]) -> str:
    """The message of the refusal, after making sure that nothing foreign or secret is in it."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    # The first two frames are the test's own: there the key stands in the source.
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    printed = "".join(
        traceback.TracebackException(ConfigurationError, error, inner, capture_locals=True).format()
    )
    for secret in (KEY, TOKEN):
        assert secret not in printed
        assert secret not in str(error)
        assert secret not in repr(error)
    assert "\n" not in str(error)
    return str(error)


# --- one provider -------------------------------------------------------------------------------


def test_defaults() -> None:
    made = LLMConfig(OPENAI, "gpt-4o-mini", api_key=KEY)
    assert made.provider is OPENAI
    assert made.name == "openai/gpt-4o-mini"
    assert (made.priority, made.weight, made.aliases, made.headers, made.extra) == (
        0,
        1,
        (),
        {},
        {},
    )
    assert made.api_base is None
    assert made.api_version is None
    assert made.timeout is None
    assert isinstance(made.api_key, SecretStr)
    assert made.api_key.get_secret_value() == KEY


def test_the_vendor_may_be_given_by_value_and_the_key_as_secret() -> None:
    made = LLMConfig("openai", "m", api_key=SecretStr(KEY))
    assert made == config()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "openai/m"),
        ({"name": None}, "openai/m"),
        ({"name": "fast"}, "fast"),
        ({"provider": "litellm", "model": "bedrock/x", "api_key": None}, "bedrock/x"),
        (
            {"provider": "openai_compatible", "api_base": "http://h/v1", "model": "org/llama"},
            "openai_compatible/org/llama",
        ),
    ],
)
def test_name(fields: dict[str, Any], name: str) -> None:
    assert config(**fields).name == name


@pytest.mark.parametrize(
    ("provider", "given", "base", "version"),
    [
        ("openai", "https://h/v1/", "https://h/v1", None),
        ("openai", "https://h", "https://h", None),
        ("openai_compatible", "http://localhost:8000/v1//", "http://localhost:8000/v1", None),
        ("litellm", "http://h/x/", "http://h/x", None),
        ("gemini", "https://h", "https://h/v1beta", None),
        ("gemini", "https://h/", "https://h/v1beta", None),
        ("gemini", "https://h/v1beta/", "https://h/v1beta", None),
        ("gemini", "https://h/v1", "https://h/v1", None),
        ("gemini", "https://h/v1alpha/proxy", "https://h/v1alpha/proxy", None),
        ("gemini", "https://v1.host/vault", "https://v1.host/vault/v1beta", None),
        ("anthropic", "https://h", "https://h", None),
        ("anthropic", "https://h/v1/", "https://h", None),
        ("anthropic", "https://h/p/v1", "https://h/p", None),
        ("azure", "https://h/", "https://h", "2024-10-21"),
        ("azure", "https://h/openai/", "https://h", "2024-10-21"),
        ("azure", "https://h/openai/v1/", "https://h", "v1"),
        ("azure", "https://h/gw/openai", "https://h/gw", "2024-10-21"),
    ],
)
def test_addresses(provider: str, given: str, base: str, version: str | None) -> None:
    made = config(provider=provider, api_base=given)
    assert (made.api_base, made.api_version) == (base, version)
    assert made.model_copy() == made
    assert LLMConfig(**dict(made)) == made, "making one again from its own fields changes nothing"


def test_azure_version_stands_when_given() -> None:
    made = config(
        provider="azure", api_base="https://h/openai/v1", api_version="2025-01-01-preview"
    )
    assert made.api_version == "2025-01-01-preview"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"provider": "opnai"}, ["provider", "'openai'"]),
        ({"provider": None}, ["provider", "required"]),
        ({"model": None}, ["model", "required"]),
        ({"model": ""}, ["model", "visible"]),
        ({"model": " m"}, ["model", "whitespace"]),
        ({"model": "openai/gpt"}, ["model", "leave off"]),
        ({"name": ""}, ["name"]),
        ({"name": "a\nb"}, ["name"]),
        ({"aliases": ["ok", "bad "]}, ["aliases.1"]),
        ({"aliases": "fast"}, ["aliases", "tuple"]),
        ({"weight": 0}, ["weight", "greater than 0"]),
        ({"weight": -1}, ["weight"]),
        ({"weight": float("inf")}, ["weight", "finite"]),
        ({"weight": float("nan")}, ["weight", "finite"]),
        ({"priority": 1.5}, ["priority", "integer"]),
        ({"priority": KEY}, ["priority", "integer"]),
        ({"timeout": 0}, ["timeout"]),
        ({"timeout": float("nan")}, ["timeout", "finite"]),
        ({"reset_timeout_seconds": -1}, ["reset_timeout_seconds"]),
        ({"max_concurrency": 0}, ["max_concurrency"]),
        ({"failure_threshold": 0}, ["failure_threshold"]),
        ({"weigth": 2}, ["weigth", 'did you mean "weight"?']),
        ({"self": 2}, ["self"]),
        ({"api_key": ""}, ["api_key", "empty"]),
        ({"api_key": KEY + "\n"}, ["api_key", "whitespace", "strip"]),
        ({"api_key": KEY + "\N{EN DASH}"}, ["api_key"]),
        ({"api_key": 5}, ["api_key"]),
        ({"headers": {"X": TOKEN + "\r\nY: 1"}}, ["headers.X", "line break"]),
        ({"headers": {"X": TOKEN}, "weight": 0}, ["weight"]),
        ({"extra": {"X": TOKEN}, "weight": 0}, ["weight"]),
        ({"extra": TOKEN}, ["extra", "dictionary"]),
        ({"provider": "azure"}, ["api_base", "azure.com"]),
        ({"provider": "openai_compatible"}, ["api_base", "localhost"]),
        ({"api_base": "h/v1"}, ["api_base", "https://"]),
        ({"api_base": "ftp://h"}, ["api_base"]),
        ({"api_base": "https://"}, ["api_base"]),
        ({"api_base": "https://h:99999"}, ["api_base"]),
        ({"api_base": "https://[::1"}, ["api_base"]),
        ({"api_base": "https://h/a b"}, ["api_base"]),
        ({"api_base": f"https://user:{KEY}@h"}, ["api_base", "password"]),
        ({"api_base": f"https://h/?key={KEY}"}, ["api_base", "api_key"]),
        ({"api_base": f"https://h/#{KEY}"}, ["api_base"]),
    ],
)
def test_refused(fields: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: config(**fields))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("provider", "variable"),
    [
        ("openai", "OPENAI_API_KEY"),
        ("azure", "AZURE_OPENAI_API_KEY"),
        ("gemini", "GEMINI_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
    ],
)
def test_a_missing_key_names_its_variable(provider: str, variable: str) -> None:
    message = refused(lambda: LLMConfig(provider, "m", api_base="https://h"))
    assert "api_key" in message
    assert variable in message


def test_every_problem_is_named_at_once() -> None:
    message = refused(lambda: config(weight=0, timeout=0))
    assert "weight" in message
    assert "timeout" in message


def test_no_key_is_needed_where_there_may_be_none() -> None:
    assert LLMConfig("openai_compatible", "m", api_base="http://localhost:1/v1").api_key is None
    assert LLMConfig("litellm", "bedrock/x").api_key is None


def test_nothing_secret_is_shown() -> None:
    made = config(headers={"Authorization": TOKEN}, extra={"password": KEY})
    for text in (repr(made), str(made), f"{made}"):
        assert KEY not in text
        assert TOKEN not in text


def test_pickle_and_copy() -> None:
    made = config(headers={"A": "b"}, extra={"x": [1]}, aliases=["a"])
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert other == made
        assert other.name == made.name
        assert other.api_key is not None
        assert other.api_key.get_secret_value() == KEY


def test_the_callers_mappings_are_copied() -> None:
    headers = {"A": "b"}
    made = config(headers=headers)
    headers["A"] = "c"
    assert made.headers == {"A": "b"}


@pytest.mark.parametrize("make", [config, GatewaySettings])
def test_frozen(make: Callable[[], Any]) -> None:
    made = make()

    def assign() -> None:
        made.timeout = KEY

    def delete() -> None:
        del made.timeout

    assert "timeout cannot be changed" in refused(assign)
    assert "timeout cannot be changed" in refused(delete)


def test_model_validate_raises_our_error() -> None:
    assert (
        LLMConfig.model_validate({"provider": "openai", "model": "m", "api_key": KEY}) == config()
    )
    assert LLMConfig.model_validate(made := config()) is made
    assert "model" in refused(lambda: LLMConfig.model_validate({"provider": "openai"}))
    assert "mapping" in refused(lambda: LLMConfig.model_validate(5))
    assert "timeout" in refused(lambda: GatewaySettings.model_validate({"timeout": 0}))


# --- settings -----------------------------------------------------------------------------------


def test_setting_defaults() -> None:
    assert GatewaySettings().model_dump() == {
        "timeout": 60,
        "attempt_timeout": 30,
        "failure_threshold": 5,
        "reset_timeout_seconds": 60,
        "max_open_seconds": 600,
        "probe_lease_seconds": 60,
        "retry_rounds": 2,
        "max_retry_wait_seconds": 10,
        "disabled_recheck_seconds": 300,
        "disabled_recheck_max_seconds": 3600,
        "failover_on_rejection": False,
        "failover_on_content_policy": False,
        "drop_unsupported_params": False,
        "cache_enabled": True,
        "cache_ttl_seconds": 3600,
        "cache_max_entries": 1000,
        "agent_ttls": {},
        "stale_if_error_seconds": 0,
        "max_concurrency": 256,
        "max_queue": 10_000,
        "max_prompt_bytes": 10_000_000,
        "log_prompts": False,
    }


def test_every_field_is_described() -> None:
    for model in (LLMConfig, GatewaySettings):
        for name, field in model.model_fields.items():
            assert field.description, name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"timout": 1}, ['"timout"', 'did you mean "timeout"?']),
        ({"_env_file": "x"}, ["_env_file"]),
        ({"timeout": 0}, ["timeout (keyword)"]),
        ({"timeout": float("nan")}, ["timeout", "finite"]),
        ({"attempt_timeout": float("inf")}, ["attempt_timeout", "finite"]),
        ({"failure_threshold": 0}, ["failure_threshold"]),
        ({"failure_threshold": 2.5}, ["failure_threshold"]),
        ({"retry_rounds": -1}, ["retry_rounds"]),
        ({"max_retry_wait_seconds": -1}, ["max_retry_wait_seconds"]),
        ({"cache_ttl_seconds": 0}, ["cache_ttl_seconds"]),
        ({"cache_max_entries": 0}, ["cache_max_entries"]),
        ({"stale_if_error_seconds": -1}, ["stale_if_error_seconds"]),
        ({"max_concurrency": 0}, ["max_concurrency"]),
        ({"max_queue": -1}, ["max_queue"]),
        ({"max_prompt_bytes": 0}, ["max_prompt_bytes"]),
        ({"agent_ttls": {"a": 0}}, ["agent_ttls.a (keyword)"]),
        ({"agent_ttls": 5}, ["agent_ttls"]),
        ({"cache_enabled": "perhaps"}, ["cache_enabled"]),
        ({"reset_timeout_seconds": 601}, ["max_open_seconds", "reset_timeout_seconds"]),
        ({"disabled_recheck_seconds": 3601}, ["disabled_recheck_max_seconds"]),
    ],
)
def test_refused_settings(fields: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: GatewaySettings(**fields))
    for word in words:
        assert word in message
    assert refused(lambda: GatewaySettings.load(**fields)) == message


def test_an_attempt_may_be_allowed_more_than_a_request() -> None:
    assert GatewaySettings(timeout=1, attempt_timeout=5).attempt_timeout == 5


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


def test_settings_pickle_and_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = GatewaySettings(timeout=5, agent_ttls={"a": 1})
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "9")
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert other == made


# --- providers from the environment -------------------------------------------------------------


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
    assert all(c.api_key is not None and c.api_key.get_secret_value() == KEY for c in made)


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


# --- providers from the file --------------------------------------------------------------------


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
    keys = [c.api_key.get_secret_value() if c.api_key else None for c in made]
    assert keys == [KEY, None, KEY, f"{KEY}2"]
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
