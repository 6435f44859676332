"""`aigateway init --from-litellm`: what it writes loads, and nothing is left out silently."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from aigateway import AsyncGateway, ConfigurationError
from aigateway.cli import app
from aigateway.cli.from_litellm.draft import draft_from_litellm
from aigateway.cli.from_litellm.options import OPTIONS
from aigateway.cli.init import rendered
from aigateway.settings import GatewaySettings, ServerSettings, load_providers
from tests.processes import ROOT

EXAMPLES = sorted((ROOT / "tests" / "cli" / "litellm_configs").glob("*.yaml"))
OUTPUT = Path("aigateway.toml")
DRAWN = max(20, settings().max_examples // 2)  # each takes long
ADDRESSES = {  # variables for addresses, as the examples name them
    "LOCAL_API_BASE": "http://127.0.0.1:8001/v1",
    "AZURE_API_BASE": "https://me.openai.azure.com",
}


def run(config, *arguments):
    """Take over a configuration, given as text or as what the YAML stands for."""
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    Path("config.yaml").write_text(text)
    done = CliRunner().invoke(app, ["init", "--from-litellm", "config.yaml", *arguments])
    return done.exit_code, done.stderr


def taken(config):
    """Take over a configuration, and return the file as it is read."""
    code, stderr = run(config, "--force")
    assert code == 0, stderr
    return tomllib.loads(OUTPUT.read_text()), stderr


def deployment(group, model="openai/gpt-4o", info=None, **params):
    entry = {"model_name": group, "litellm_params": {"model": model, **params}}
    return entry | ({"model_info": info} if info else {})


def loaded(path=OUTPUT):
    """Load a file as a process would in which each variable that it names is set."""
    tables = tomllib.loads(path.read_text())["providers"]
    env = {table["api_key_env"]: "sk-loaded" for table in tables if "api_key_env" in table}
    return load_providers(env, toml=path)


class TestVendors:
    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ({"model": "gpt-4o"}, ("openai", "gpt-4o", None, "OPENAI_API_KEY")),
            (
                {"model": "claude-haiku-4-5"},
                ("anthropic", "claude-haiku-4-5", None, "ANTHROPIC_API_KEY"),
            ),
            (
                {"model": "gemini/gemini-2.5-pro"},
                ("gemini", "gemini-2.5-pro", None, "GEMINI_API_KEY"),
            ),
            (
                {
                    "model": "azure/d",
                    "api_base": "https://a.openai.azure.com/",
                    "api_key": "os.environ/K",
                },
                ("azure", "d", "https://a.openai.azure.com/", "K"),
            ),
            (
                {"model": "openai/org/m", "api_base": "http://gpu:8000/v1", "api_key": "EMPTY"},
                ("openai_compatible", "org/m", "http://gpu:8000/v1", None),
            ),
            (
                {"model": "openai/m", "api_base": "https://api.openai.com/v1"},
                ("openai", "m", "https://api.openai.com/v1", "OPENAI_API_KEY"),
            ),
            (
                {"model": "ollama_chat/llama3"},
                ("openai_compatible", "llama3", "http://localhost:11434/v1", None),
            ),
            (
                {"model": "hosted_vllm/m", "api_base": "http://v:1/v1"},
                ("openai_compatible", "m", "http://v:1/v1", None),
            ),
            (
                {"model": "m", "custom_llm_provider": "openai", "api_base": "http://v:1/v1"},
                ("openai_compatible", "m", "http://v:1/v1", None),
            ),
            (
                {"model": "groq/llama-3.1-8b-instant", "api_key": "os.environ/GROQ_API_KEY"},
                ("litellm", "groq/llama-3.1-8b-instant", None, "GROQ_API_KEY"),
            ),
            (
                {"model": "vertex_ai/gemini-2.5-pro"},
                ("litellm", "vertex_ai/gemini-2.5-pro", None, None),
            ),
            (
                {"model": "bedrock/us.amazon.nova-pro-v1:0"},
                ("litellm", "bedrock/us.amazon.nova-pro-v1:0", None, None),
            ),
            (
                {"model": "openai/responses/gpt-5"},
                ("litellm", "openai/responses/gpt-5", None, None),
            ),
            (
                {"model": "text-completion-openai/gpt-3.5-turbo-instruct"},
                ("openai", "gpt-3.5-turbo-instruct", None, "OPENAI_API_KEY"),
            ),
        ],
    )
    def test_each_becomes_what_litellm_would_ask(self, params, expected):
        content, _ = taken({"model_list": [{"model_name": "a", "litellm_params": params}]})
        (table,) = content["providers"]
        names = ("provider", "model", "api_base", "api_key_env")
        assert tuple(map(table.get, names)) == expected
        assert loaded()

    def test_addresses_come_from_the_variables_that_litellm_reads(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_BASE", "http://proxy:1/v1")
        Path(".env").write_text("AZURE_API_BASE=https://me.openai.azure.com\nREGION=eu\n")
        listed = [
            deployment("a"),
            deployment("b", "azure/d"),
            deployment("c", "openai/m", api_base="os.environ/UNSET"),
        ]
        content, stderr = taken({"model_list": listed})
        bases = [table["api_base"] for table in content["providers"]]
        assert bases == ["http://proxy:1/v1", "https://me.openai.azure.com"]
        assert content["providers"][0]["api_key_env"] == "OPENAI_API_KEY"
        assert "model_list[2] (c): not taken over: its api_base is in UNSET" in stderr

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            (deployment("openai/*", "openai/*"), "a provider is one model"),
            (deployment("all", "*"), "a provider is one model"),
            (deployment("router", "auto_router/complexity_router"), "there is no such router"),
            (
                deployment("image", "dall-e-3", {"mode": "image_generation"}),
                "its mode is image_generation",
            ),
            (deployment("azure", "azure/d"), "AZURE_API_BASE is not set"),
            (
                deployment("entra", "azure/d", api_base="https://a.b", azure_ad_token="x"),
                "get_bearer_token_provider",
            ),
            (deployment("speech", "openai/tts-1"), "it is for audio_speech; a mode in"),
            (deployment("bad", "openai/m", api_base="gpu:8000"), "api_base: must be a URL"),
            ({"model_name": "none"}, "it has no model"),
            ("text", "it has no model_name"),
        ],
    )
    def test_what_cannot_be_a_provider_is_named(self, entry, reason):
        content, stderr = taken({"model_list": [entry, deployment("good")]})
        assert len(content["providers"]) == 1
        assert ": not taken over: " in stderr
        assert reason in stderr
        shown = OUTPUT.read_text().replace("\n# ", " ")
        assert reason in shown.split("[[providers]]")[0]
        code, stderr = run({"model_list": [entry]}, "--force")
        assert code == 2
        assert reason in stderr
        assert "Traceback" not in stderr


class TestSecrets:
    def test_none_is_copied_or_shown(self):
        secret = "5ecret"
        config = {
            "model_list": [
                deployment(
                    "a b",
                    api_key=f"sk-{secret}",
                    extra_headers={"X-Token": secret, "X-Team": "blue"},
                ),
                deployment("a b", "openai/gpt-4o-mini", api_key=f"sk-{secret}-2"),
                deployment("b", "bedrock/m", aws_secret_access_key=secret, aws_region_name="eu"),
            ],
            "router_settings": {"redis_host": "r", "redis_password": secret},
            "general_settings": {
                "master_key": secret,
                "database_url": f"postgres://u:{secret}@h/d",
            },
            "environment_variables": {"SOME": secret},
        }
        content, stderr = taken(config)
        assert secret not in stderr
        assert secret not in OUTPUT.read_text()
        variables = [table.get("api_key_env") for table in content["providers"]]
        assert variables == ["A_B_API_KEY", "A_B_API_KEY_2", None]
        assert content["providers"][0]["headers"] == {"X-Team": "blue"}
        assert content["providers"][2]["extra"] == {"aws_region_name": "eu"}
        for word in (
            "put it into A_B_API_KEY_2",
            "extra_headers.X-Token",
            "AIGATEWAY_REDIS_URL",
            "sha256sum",
            "environment_variables.SOME",
        ):
            assert word in stderr

    def test_one_key_is_one_variable_and_no_name_is_taken_twice(self):
        listed = [
            deployment("a", api_key="sk-1x"),
            deployment("b", "openai/b", api_key="sk-1x"),
            deployment("c", "openai/c", api_key="os.environ/D_API_KEY"),
            deployment("d", "openai/d", api_key="sk-2x"),
        ]
        content, _ = taken({"model_list": listed})
        by_model = {table["model"]: table["api_key_env"] for table in content["providers"]}
        assert by_model == {
            "gpt-4o": "A_API_KEY",
            "b": "A_API_KEY",
            "c": "D_API_KEY",
            "d": "D_API_KEY_2",
        }


HOSTILE = {
    "python.yaml": "model_list: !!python/object/apply:os.system ['touch owned']",
    "deep.yaml": "[" * 500_000,
    "anchors.yaml": "a: &a [x]\n"
    + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    ),
    "round.yaml": "model_list: &a [*a]",
    "itself.yaml": "include: [itself.yaml]",
    "remote.yaml": "include: ['s3://bucket/x.yaml']",
    "include.yaml": "include: {a: b}",
    "list.yaml": "- a",
    "empty.yaml": "",
    "huge.yaml": f"model_list: 0x{'f' * 9000}",
    "long.yaml": "#" * 1_000_001,
    "broken.yaml": "model_list: [sk-secret: {",
    "bytes.yaml": "a: \x00",
    "date.yaml": "a: 2024-99-99",
    "none.yaml": "model_list: []",
    "wide.yaml": f"a: [{','.join('1' * 200_000)}]",
    "merged.yaml": "a0: &a0 {k: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
    "text.yaml": f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 50_000)}]",
    "minutes.yaml": f"a: {':'.join(['59'] * 300_000)}",
    "many.yaml": json.dumps({"model_list": [deployment("a")] * 501}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name):
    Path(name).write_text(HOSTILE[name])
    done = CliRunner().invoke(app, ["init", "--from-litellm", name])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {name}")
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not OUTPUT.exists()
    assert not Path("owned").exists()


def test_a_file_that_is_too_large_is_refused_after_a_bounded_part(monkeypatch):
    counted = []
    parse = yaml.parse

    def counting(*arguments, **options):
        for event in parse(*arguments, **options):
            counted.append(event)
            yield event

    monkeypatch.setattr(yaml, "parse", counting)
    monkeypatch.delattr(yaml, "load")  # nothing is built
    Path("wide.yaml").write_text(HOSTILE["wide.yaml"])
    with pytest.raises(ConfigurationError, match=r"more than 100,000 values"):
        draft_from_litellm(Path("wide.yaml"))
    assert 100_000 <= len(counted) < 100_010


def test_many_unknown_options_are_counted_and_not_listed():
    unknown = dict.fromkeys((f"x{n}" for n in range(5_000)), 1)
    config = {"model_list": [deployment("a", **unknown)], "litellm_settings": unknown}
    content, stderr = taken(json.dumps(config))
    assert [table["model"] for table in content["providers"]] == ["gpt-4o"]
    assert stderr.count("and 4950 more: they come after") == 1
    assert len(stderr.splitlines()) < 110
    assert OUTPUT.stat().st_size < 50_000


def test_files_that_cannot_be_read_are_refused():
    for name in ("no.yaml", ".", "a\x00b"):
        with pytest.raises(ConfigurationError):
            draft_from_litellm(Path(name))
    Path("latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        draft_from_litellm(Path("latin.yaml"))


def test_included_files_are_merged_as_litellm_does():
    Path("sub").mkdir()
    Path("sub/more.yaml").write_text(
        "include: [last.yaml]\nmodel_list: [{model_name: b, litellm_params: {model: openai/b}}]"
    )
    Path("sub/last.yaml").write_text("litellm_settings: {num_retries: 1}")
    content, _ = taken(
        {
            "include": ["sub/more.yaml"],
            "model_list": [deployment("a")],
            "litellm_settings": {"num_retries": 7},
        }
    )
    assert [table["model"] for table in content["providers"]] == ["gpt-4o", "b"]
    assert content["gateway"]["retry_rounds"] == 1


class TestSettings:
    def test_they_become_ours(self):
        config = {
            "model_list": [
                deployment(
                    "a",
                    rpm="10",
                    weight=2,
                    timeout="12",
                    cooldown_time=5,
                    max_parallel_requests=3,
                    temperature=0,
                )
            ],
            "litellm_settings": {
                "request_timeout": 200,
                "drop_params": True,
                "cache": True,
                "cache_params": {"type": "redis", "host": "r", "ttl": 60},
            },
            "router_settings": {
                "num_retries": 0,
                "allowed_fails": 2,
                "cooldown_time": 30,
                "stream_timeout": 20,
                "routing_strategy": "simple-shuffle",
            },
            "general_settings": {"global_max_parallel_requests": 9},
        }
        content, _ = taken(config)
        assert content["gateway"] == {
            "attempt_timeout": 200.0,
            "timeout": 400.0,
            "first_token_timeout": 20.0,
            "retry_rounds": 0,
            "reset_timeout_seconds": 30.0,
            "failure_threshold": 3,
            "drop_unsupported_params": True,
            "max_concurrency": 9,
            "cache_ttl_seconds": 60.0,
            "redis_url": "redis://r:6379/0",
        }
        assert content["server"] == {"request_timeout": 400.0}
        (table,) = content["providers"]
        assert table == {
            "provider": "openai",
            "model": "gpt-4o",
            "api_key_env": "OPENAI_API_KEY",
            "rpm": 10,
            "weight": 2.0,
            "timeout": 12.0,
            "reset_timeout_seconds": 5.0,
            "max_concurrency": 3,
            "extra": {"temperature": 0},
            "priority": 0,
            "aliases": ["a"],
        }
        assert GatewaySettings(**content["gateway"]).timeout == 400
        assert ServerSettings(**content["server"]).request_timeout == 400

    def test_what_litellm_did_not_do_is_not_done(self):
        content, stderr = taken({"model_list": [deployment("a")]})
        assert content["gateway"] == {"cache_enabled": False}
        assert "cache: litellm remembered nothing" in stderr

    def test_model_info_says_what_a_model_can_do(self):
        info = {
            "id": "mine",
            "mode": "chat",
            "base_model": "gpt-4o",
            "max_input_tokens": 9,
            "supports_vision": True,
            "input_cost_per_token": 1e-06,
            "access_groups": ["x"],
        }
        content, stderr = taken({"model_list": [deployment("a", info=info)]})
        (table,) = content["providers"]
        assert (table["name"], table["operations"], table["capabilities"]) == (
            "mine",
            ["chat"],
            {"vision": True},
        )
        assert table["extra"] == {
            "max_input_tokens": 9,
            "base_model": "gpt-4o",
            "input_cost_per_token": 1e-06,
        }
        assert "model_info.access_groups" in stderr

    def test_every_option_that_is_left_out_is_named_with_its_reason(self):
        left = {"retry_policy": {"x": 1}, "made_up": 1, "routing_strategy": "cost-based-routing"}
        config = {
            "model_list": [deployment("a", tags=["x"], stream_timeout=1, unheard_of=2)],
            "router_settings": left,
            "litellm_settings": {"success_callback": ["langfuse", "otel"]},
            "guardrails": [],
        }
        _, stderr = taken(config)
        text = OUTPUT.read_text().replace("\n# ", " ")
        for option in (
            "tags",
            "stream_timeout",
            "unheard_of",
            "router_settings.retry_policy",
            "router_settings.made_up",
            "routing_strategy cost-based-routing",
            "litellm_settings.success_callback",
            "guardrails",
        ):
            (line, *_) = [line for line in stderr.splitlines() if option in line]
            assert line in text
        assert "otel = true" in stderr


class TestRouting:
    def priorities(self, config):
        content, stderr = taken(config)
        listed = {
            table.get("name", f"{table['provider']}/{table['model']}"): (
                table["priority"],
                {table["model"], *table.get("aliases", ())},
            )
            for table in content["providers"]
        }
        return listed, stderr

    def asked(self, listed, model):
        """The providers that answer to a name, in the order in which they are asked."""
        names = [name for name, (_, answers) in listed.items() if model in answers]
        return sorted(names, key=lambda name: -listed[name][0])

    def test_order_and_aliases(self):
        config = {
            "model_list": [
                deployment("a", order=2),
                deployment("a", "anthropic/c", order=1),
                deployment("b", "openai/b"),
            ],
            "router_settings": {
                "model_group_alias": {"x": "a", "y": {"model": "b", "hidden": True}, "z": "none"}
            },
        }
        listed, stderr = self.priorities(config)
        for name in ("a", "x"):
            assert self.asked(listed, name) == ["anthropic/c", "openai/gpt-4o"]
        assert self.asked(listed, "y") == ["openai/b"]
        assert "model_group_alias.z: it is no group" in stderr

    def test_one_deployment_in_two_groups_is_one_provider(self):
        listed, _ = self.priorities({"model_list": [deployment("new"), deployment("old")]})
        assert listed == {"openai/gpt-4o": (0, {"gpt-4o", "new", "old"})}

    def test_fallbacks_follow_each_other_and_go_both_ways(self):
        listed = [deployment(name, f"openai/m-{name}") for name in "abcd"]
        config = {
            "model_list": listed,
            "litellm_settings": {
                "fallbacks": [{"a": ["b"]}, {"b": ["c", "a"]}, {"nowhere": ["a"]}],
                "default_fallbacks": ["d"],
            },
        }
        found, stderr = self.priorities(config)
        assert self.asked(found, "a") == [f"openai/m-{name}" for name in "abcd"]
        assert self.asked(found, "b") == ["openai/m-b", "openai/m-c", "openai/m-a#2", "openai/m-d"]
        assert self.asked(found, "d") == ["openai/m-d"]
        assert "a copy that stands in" in stderr
        assert "fallbacks: nowhere: it is no group" in stderr

    def test_content_policy_and_context_window(self):
        config = {
            "model_list": [deployment("a"), deployment("b", "openai/b")],
            "router_settings": {"content_policy_fallbacks": [{"a": ["b"]}]},
        }
        listed, stderr = self.priorities(config)
        assert self.asked(listed, "a") == ["openai/gpt-4o", "openai/b"]
        assert "failover_on_content_policy = true" in OUTPUT.read_text()
        assert "the fallback answers after any failure" in stderr

    def test_a_model_that_has_the_name_of_another_group_is_pointed_out(self):
        _, stderr = self.priorities(
            {"model_list": [deployment("fast"), deployment("gpt-4o", "anthropic/c")]}
        )
        assert "gpt-4o: the provider answers for it, too" in stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_taken_over(path, monkeypatch):
    for name, value in ADDRESSES.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["init", "--from-litellm", str(path)])
    assert done.exit_code == 0, done.stderr
    providers = loaded()
    content = yaml.safe_load(path.read_text())
    groups = {entry["model_name"] for entry in content["model_list"]}
    answered = {
        name for config in providers for name in (config.model, config.name, *config.aliases)
    }
    lost = {group for group in groups - answered if f"({group}): not taken over" not in done.stderr}
    assert not lost
    assert len({config.name for config in providers}) == len(providers)
    AsyncGateway(providers, **tomllib.loads(OUTPUT.read_text())["gateway"])


# ── whatever the YAML says ───────────────────────────────────────────────────────────────────────

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "os.environ/SET",
            "os.environ/UNSET",
            "1",
            "-1",
            "0",
            "\x00",
            "a\nb",
            "#x",
            "[t]",
            '"',
            "http://h/v1",
            "\x7f",
            "é",
        ]
    ),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
_GROUP = st.sampled_from(["a", "b", "gpt-4o", "openai/gpt-4o", "*", "x y", "a\nb", ""])
_MODEL = st.sampled_from(
    [
        "gpt-4o",
        "openai/m",
        "azure/d",
        "anthropic/c",
        "gemini/g",
        "ollama/l",
        "bedrock/b",
        "hosted_vllm/v",
        "openai/*",
        "openai/",
        "/",
        "text-completion-openai/i",
        "os.environ/SET",
        "azure/responses/x",
    ]
)
_OPTIONS = st.dictionaries(st.sampled_from(sorted(OPTIONS)) | st.text(max_size=6), _ODD, max_size=4)
_ENTRY = st.fixed_dictionaries(
    {
        "model_name": _GROUP | _ODD,
        "litellm_params": st.builds(lambda m, o: {**o, "model": m}, _MODEL | _ODD, _OPTIONS),
    },
    optional={"model_info": _OPTIONS | _ODD, "rpm": _ODD, "tpm": _ODD},
)
_FALLBACKS = (
    st.lists(st.dictionaries(_GROUP, st.lists(_GROUP, max_size=3), max_size=2), max_size=3) | _ODD
)
_SECTION = st.builds(
    lambda options, routes: {**options, **routes},
    _OPTIONS,
    st.dictionaries(
        st.sampled_from(
            [
                "fallbacks",
                "context_window_fallbacks",
                "content_policy_fallbacks",
                "default_fallbacks",
            ]
        ),
        _FALLBACKS,
    ),
)
_NAMES = ("litellm_settings", "router_settings", "general_settings")
_ODD_SECTIONS = dict.fromkeys(("include", "environment_variables", "x"), _ODD)
_CONFIG = st.one_of(
    st.fixed_dictionaries(
        {"model_list": st.lists(_ENTRY, max_size=4).map(lambda drawn: [*drawn, deployment("b")])},
        optional=dict.fromkeys(_NAMES, _SECTION),
    ),
    st.fixed_dictionaries(
        {"model_list": st.lists(_ENTRY | _ODD, max_size=5) | _ODD},
        optional=dict.fromkeys(_NAMES, _SECTION | _ODD) | _ODD_SECTIONS,
    ),
)


@settings(max_examples=DRAWN)
@given(_CONFIG)
def test_any_configuration_gives_a_file_that_loads_or_an_exact_refusal(config):
    path = Path("drawn.yaml")
    path.write_text(json.dumps(config))  # JSON is YAML, and keeps what is odd
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SET", "https://set.openai.azure.com")
        try:
            made = draft_from_litellm(path)
        except ConfigurationError as error:
            made, refusal = None, str(error)
    if made is None:
        assert refusal.startswith("drawn.yaml")
        return
    OUTPUT.write_text(rendered(made.draft))
    AsyncGateway(loaded(), **tomllib.loads(OUTPUT.read_text())["gateway"])
    assert all("\n" not in part for remark in made.remarks for part in remark)


_CORE = "5ecret0fThisTest"
_SECRET_NAMES = ["api_key", "zen_apikey", "API-KEY", "apiKey", "token", "access_token", "secret"]
_SECRET_NAMES += ["password", "db_pass", "passwd", "Authorization", "proxy_auth", "credential"]
_SECRET_NAMES += ["vertex_credentials", "Set-Cookie", "private_key", "aws_secret_access_key"]
_SECRET_TEXTS = [
    f"Bearer {_CORE}",
    f"Basic {_CORE}",
    f"sk-{_CORE}",
    f"sk-ant-{_CORE}",
    f"xoxb-{_CORE}",
    f"ghp_{_CORE}",
    f"eyJhbGciOiJIUzI1NiJ9.{_CORE}.x",
    f"AKIA{_CORE}",
    f"-----BEGIN PRIVATE KEY-----\n{_CORE}",
    f"https://me:{_CORE}@host/v1",
    f"https://host/v1?api-key={_CORE}",
    f"the header is Bearer {_CORE}",
]
_BY_NAME = st.tuples(st.sampled_from(_SECRET_NAMES), st.just(_CORE))
_BY_TEXT = st.tuples(
    st.sampled_from(["note", "x", "description", "url", "headers"]), st.sampled_from(_SECRET_TEXTS)
)
_NEST = st.recursive(
    st.builds(lambda pair: dict([pair]), _BY_NAME | _BY_TEXT)
    | st.builds(lambda text: {text: 1}, st.sampled_from(_SECRET_TEXTS)),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(st.sampled_from(["inner", "function", "a"]), inner, min_size=1)
    ),
    max_leaves=4,
)
_HIDING = st.sampled_from(["tools", "extra_body", "metadata", "user", "stop", "response_format"])
_WITH_SECRETS = st.dictionaries(_HIDING, _NEST, max_size=2)
_MORE = st.dictionaries(
    st.sampled_from(["model", "custom_llm_provider", "api_base", "api_version", "base_model"]),
    st.sampled_from(_SECRET_TEXTS),
    max_size=1,
)
_HEADERS = st.dictionaries(
    st.sampled_from(["X-Api", "X-Session", "Ocp-Apim-Subscription", "x", "Cookie"]), st.just(_CORE)
) | st.dictionaries(st.sampled_from(["X-Team", "User-Agent"]), st.sampled_from(_SECRET_TEXTS))
_HIDDEN = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from(["a", "b", *_SECRET_TEXTS]),
        "litellm_params": st.builds(
            lambda model, headers, pairs, *more: {
                "model": model,
                "extra_headers": headers,
                **dict(pairs),
                **{name: value for each in more for name, value in each.items()},
            },
            st.sampled_from(["openai/m", "groq/m", "bedrock/m", "anthropic/c"]),
            _HEADERS,
            st.lists(_BY_NAME | _BY_TEXT, max_size=2),
            _WITH_SECRETS,
            _MORE,
        ),
        "model_info": _WITH_SECRETS
        | st.fixed_dictionaries({"id": st.sampled_from(_SECRET_TEXTS)})
        | st.fixed_dictionaries({"mode": st.sampled_from(_SECRET_TEXTS)}),
    }
)
_ANYWHERE = st.fixed_dictionaries(
    {"model_list": st.lists(_HIDDEN, min_size=1, max_size=3).map(lambda d: [*d, deployment("z")])},
    optional={
        **dict.fromkeys(_NAMES, st.dictionaries(st.sampled_from(sorted(OPTIONS)), _NEST)),
        "environment_variables": _NEST,
        "router_settings": st.fixed_dictionaries(
            {},
            optional={
                "redis_host": st.just(f"me:{_CORE}@host"),
                "routing_strategy": st.sampled_from(_SECRET_TEXTS),
                "model_group_alias": st.dictionaries(st.sampled_from(_SECRET_TEXTS), st.just("z")),
                "fallbacks": st.just([{"z": _SECRET_TEXTS}]),
            },
        ),
    },
)


@settings(max_examples=DRAWN // 3)
@given(_ANYWHERE)
def test_no_secret_is_in_the_file_or_in_a_message(config):
    Path("drawn.yaml").write_text(json.dumps(config))
    OUTPUT.unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["init", "--from-litellm", "drawn.yaml"])
    assert done.exit_code == 0, done.output
    assert _CORE.lower() not in (OUTPUT.read_text() + done.stdout + done.stderr).lower()
    assert loaded()


def test_what_only_looks_like_a_secret_is_kept():
    options = {
        "max_tokens": 100,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"type": "function", "function": {"name": "f", "description": "A basic task"}}],
        "input_cost_per_token": 1e-06,
        "logit_bias": {"50256": -100},
    }
    headers = {"User-Agent": "us/1.0", "anthropic-beta": "context-1m-2025-08-07"}
    content, _ = taken({"model_list": [deployment("a", extra_headers=headers, **options)]})
    assert content["providers"][0]["extra"] == options
    assert content["providers"][0]["headers"] == headers


# ── the same providers are asked ─────────────────────────────────────────────────────────────────

BESIDE_LITELLM = """
import asyncio, json, yaml
from pathlib import Path
import litellm
from aigateway import AsyncGateway
from aigateway.settings import load_providers
from aigateway.cli.from_litellm.draft import draft_from_litellm
from aigateway.cli.init import rendered
from aigateway.simulator import Fault, Simulator

NAMES = ("openai", "anthropic", "gemini")
MESSAGES = [{"role": "user", "content": "Who are you?"}]

async def before(config, model):
    router = litellm.Router(config["model_list"], **config["router_settings"])
    try:
        return (await router.acompletion(model=model, messages=MESSAGES)).choices[0].message.content
    except Exception:
        return None

async def after(configs, model):
    async with AsyncGateway(configs, retry_rounds=0) as gateway:
        try:
            return (await gateway.chat("Who are you?", model=model)).text
        except Exception:
            return None

async def main():
    async with Simulator() as simulator:
        vendors = {name: simulator.vendor(name) for name in NAMES}
        def given(name, model, **more):
            params = {"model": f"{name}/{model}", "api_base": vendors[name].api_base}
            return {**params, "api_key": "os.environ/KEY", **more}
        listed = [
            ("best", given("openai", "gpt-4o-mini", order=2)),
            ("best", given("anthropic", "claude-haiku-4-5", order=1)),
            ("spare", given("gemini", "gemini-3.5-flash-lite")),
            ("last", given("openai", "gpt-4o")),
        ]
        config = {
            "model_list": [{"model_name": each[0], "litellm_params": each[1]} for each in listed],
            "router_settings": {
                "num_retries": 0,
                "fallbacks": [{"best": ["spare"]}, {"spare": ["last", "best"]}],
                "model_group_alias": {"alias": "best"},
            },
        }
        Path("config.yaml").write_text(yaml.safe_dump(config))
        Path("aigateway.toml").write_text(rendered(draft_from_litellm(Path("config.yaml")).draft))
        configs = load_providers()
        found = []
        for dead in ((), NAMES[1:2], NAMES[:2], NAMES[::2], NAMES):
            for name, vendor in vendors.items():
                vendor.answer(name)
                vendor.behave(Fault.status(500)) if name in dead else vendor.recover()
            for model in ("best", "spare", "alias"):
                answers = await before(config, model), await after(configs, model)
                found.append([dead, model, *answers])
        print(json.dumps(found))

asyncio.run(main())
"""


def test_the_same_vendor_answers_as_through_litellms_router(run_script, tmp_path):
    process = run_script(tmp_path, BESIDE_LITELLM, env={"KEY": "sk-any"})
    assert process.code == 0, process.log
    found = json.loads(process.read("out").splitlines()[-1])
    assert len(found) == 15
    # litellm knows no fallbacks of an alias; here it has those of its group.
    others = [row for row in found if row[2] != row[3]]
    assert others == [[["openai", "anthropic"], "alias", None, "gemini"]]
    assert len({row[3] for row in found}) == 4  # each vendor, and no answer
