"""Whatever stands in the environment or a file: settings that work, or `ConfigurationError`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from aigateway import AsyncGateway, ConfigurationError, GatewaySettings, LLMConfig
from aigateway.testing import ScriptedVendor
from tests.fuzz.laboratory import KEY

_NAMES = st.sampled_from(
    [f"AIGATEWAY_{name.upper()}" for name in GatewaySettings.model_fields]
    + ["AIGATEWAY_NONSENSE", "aigateway_timeout", "AIGATEWAY_AGENT_TTLS__X", "AIGATEWAY_"]
    + ["OPENAI_API_KEY", "OPENAI_MODEL", "OPENAI_BASE_URL", "OPENAI_PRIORITY", "GEMINI_API_KEY"]
    + ["GEMINI_ENDPOINT", "ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"]
    + ["AZURE_OPENAI_DEPLOYMENT", "AZURE_OPENAI_API_VERSION", "AZURE_OPENAI_MODEL"]
    + ["AIGATEWAY_CONFIG"]
)
_ODD = st.sampled_from(
    [
        "",
        " ",
        "0",
        "-1",
        "1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "9" * 400,
        "9" * 5000,
        "true",
        "{}",
        '{"a": 1}',
        '{"a": NaN}',
        "[" * 3000,
        '{"a":' * 1100,
        "null",
        '{"a": 1e400}',
        "http://a",
        "http://[",
        "http://a:99999",
        "http://[::1%25eth0]/",
        "https://xn--/",
        "~",
        "/",
        "~nobody/x",
        ".",
        "http://a..b",
        "http://" + "a" * 300,
        "a\x00b",
        "sk-x\n",
        "é",
        "http://é.",
        "http://a/%zz",
        "http://a/ü",
        "http://0x7f.1",
        "http://1.2.3.4.5",
        "http://a:",
        "http://a:0",
    ]
)
_VALUES = _ODD | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)
_ENVIRONMENT_TEXT = _VALUES.filter(lambda text: "\x00" not in text).map(
    lambda text: text.encode("utf-8", "replace").decode("utf-8", "surrogateescape")
) | st.binary(max_size=8).map(
    lambda raw: raw.replace(b"\x00", b"").decode("utf-8", "surrogateescape")
)

_TOML_VALUES = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "1.5",
        "nan",
        "inf",
        "true",
        '"x"',
        "''",
        "[]",
        "{}",
        "1979-05-27T07:32:00Z",
        "9" * 400,
        "9" * 5000,
        "1e400",
        "[" * 3000,
        "[" * 100 + "]" * 100,
        "{a=" * 3000,
        "{a=1}",
        '{"" = 1}',
        "[{}]",
        '"http://["',
        '"\\ud800"',
        '"a\\u0000b"',
        "0xffffffffffffffffffff",
    ]
)
_TOML_KEYS = st.sampled_from(
    [
        *GatewaySettings.model_fields,
        "provider",
        "model",
        "api_key",
        "api_key_env",
        "api_base",
        "priority",
        "name",
        "aliases",
        "weight",
        "timeout",
        "headers",
        "extra",
        "rpm",
        "tpm",
        "max_concurrency",
        "failure_threshold",
        "reset_timeout_seconds",
        "a.b.c",
        '""',
    ]
)
_TOML_LINES = (
    st.tuples(_TOML_KEYS, _TOML_VALUES).map(" = ".join)
    | st.sampled_from(["[gateway]", "[[providers]]", "[providers]", "[gateway.agent_ttls]", "[x]"])
    | st.sampled_from(['provider = "openai"', 'model = "m"', 'api_key = "sk-x"', "gateway = 1"])
    | st.text(max_size=10)
)
_PROVIDER = '[[providers]]\nprovider = "openai"\nmodel = "m"\napi_key = "sk-x"\n'
_TOML = st.lists(_TOML_LINES, max_size=6).map("\n".join)
_TOML_FILES = (
    _TOML | _TOML.map(lambda more: _PROVIDER + more) | _TOML.map(lambda more: "[gateway]\n" + more)
).map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("settings")


def attempt(folder: Path, env: Mapping[str, str], files: Mapping[str, bytes]) -> None:
    """Make a gateway from these sources alone."""
    for name in (".env", "aigateway.toml"):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    os.chdir(folder)
    given_env: dict[str, str] = {"HOME": str(folder), **env}
    with mock.patch.dict(os.environ, given_env, clear=True):
        try:
            gateway = AsyncGateway(vendor=ScriptedVendor())
        except ConfigurationError as error:
            problem = error
        else:
            gateway.get_metrics()
            assert gateway.providers
            return
    assert problem.__context__ is None
    assert KEY not in str(problem)
    assert len(str(problem)) < 20_000


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(env=st.dictionaries(_NAMES, _ENVIRONMENT_TEXT, max_size=4))
@example(env={"AIGATEWAY_FAILURE_THRESHOLD": "9" * 400, "OPENAI_API_KEY": KEY})
@example(env={"AIGATEWAY_CONFIG": "~nobody-of-that-name/aigateway.toml"})
@example(env={"AIGATEWAY_AGENT_TTLS": "[" * 3000})
def test_any_environment(folder: Path, env: dict[str, str]) -> None:
    attempt(folder, {"OPENAI_API_KEY": KEY, **env}, {})


@given(
    content=st.lists(st.tuples(_NAMES, _VALUES.map(quoted) | _VALUES).map("=".join), max_size=4)
    .map("\n".join)
    .map(lambda text: text.encode("utf-8", "replace"))
    | st.binary(max_size=60)
)
@example(content=b'AIGATEWAY_CONFIG="a\x00b"')
def test_any_dotenv(folder: Path, content: bytes) -> None:
    attempt(folder, {"OPENAI_API_KEY": KEY}, {".env": content})


@given(content=_TOML_FILES)
@example(content=b"[gateway]\nx = " + b"[" * 3000)
@example(content=b"[gateway]\ntimeout = " + b"9" * 5000)
def test_any_file(folder: Path, content: bytes) -> None:
    attempt(folder, {"OPENAI_API_KEY": KEY}, {"aigateway.toml": content})


_HOSTS = st.text(st.sampled_from("ax0é💩-_.:[]@%*\u00ad\uff11"), min_size=1, max_size=8)


@given(
    host=_HOSTS
    | st.sampled_from(["xn--", "xn--a", "é.", "a..b", "[::1]", "a[::1]", "[::1]a", "a]", "a" * 64])
)
def test_an_address_that_is_accepted_can_be_called(host: str) -> None:
    try:
        config = LLMConfig("openai", "m", api_key=KEY, api_base=f"http://{host}/v1")
    except ConfigurationError:
        return
    assert URL(f"{config.api_base}/chat/completions", encoded=True).host
