"""One provider: what is accepted, and that nothing shows its key."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from aigateway.errors import ConfigurationError
from aigateway.settings import LLMConfig, ProviderType
from tests.settings.helpers import KEY, TOKEN, config, refused


def test_defaults() -> None:
    made = LLMConfig(ProviderType.OPENAI, "gpt-4o-mini", api_key=KEY)
    assert made.provider is ProviderType.OPENAI
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
def test_a_missing_key_names_its_variable(provider, variable):
    message = refused(lambda: LLMConfig(ProviderType(provider), "m", api_base="https://h"))
    assert "api_key" in message
    assert variable in message


def test_no_key_is_needed_where_there_may_be_none() -> None:
    assert LLMConfig("openai_compatible", "m", api_base="http://localhost:1/v1").api_key is None
    assert LLMConfig("litellm", "bedrock/x").api_key is None


@pytest.mark.parametrize("option", ["fallbacks", "mock_response", "stream", "model_list"])
def test_options_that_the_gateway_rules(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"extra: cannot hold {option}"):
        LLMConfig("openai", "gpt-4o-mini", api_key="sk-1", extra={option: True})


def test_nothing_secret_is_shown() -> None:
    made = config(headers={"Authorization": TOKEN}, extra={"password": KEY})
    for text in (repr(made), str(made), f"{made}"):
        assert KEY not in text
        assert TOKEN not in text


def test_dumps_mask_what_may_be_secret() -> None:
    made = config(headers={"Authorization": TOKEN}, extra={"password": KEY, "nested": [KEY]})
    for text in (str(made.model_dump()), made.model_dump_json(), str(made.model_dump(mode="json"))):
        assert "password" in text
        assert KEY not in text
        assert TOKEN not in text
    assert LLMConfig(**made.model_dump()) == made
    assert made.headers == {"Authorization": TOKEN}
    assert made.extra == {"password": KEY, "nested": [KEY]}


def test_pickle_and_copy() -> None:
    made = config(headers={"A": "b"}, extra={"x": [1]}, aliases=["a"])
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert other == made
        assert other.name == made.name
        assert isinstance(other.api_key, SecretStr)
        assert other.api_key.get_secret_value() == KEY


def test_the_callers_mappings_are_copied() -> None:
    headers = {"A": "b"}
    made = config(headers=headers)
    headers["A"] = "c"
    assert made.headers == {"A": "b"}


@pytest.mark.parametrize("given", [["chat"], ("chat",), {"chat"}, frozenset({"chat"})])
def test_operations(given: Any) -> None:
    assert config(operations=given).operations == frozenset({"chat"})
    assert config().operations is None


@pytest.mark.parametrize("given", [[], ["images"], "chat", ["chat", "images"]])
def test_operations_that_are_none(given: Any) -> None:
    assert "operations" in refused(lambda: config(operations=given))


def test_a_key_with_whitespace_is_named_in_plain_words() -> None:
    message = refused(lambda: config(api_key=f" {KEY}"))
    assert message == (
        "LLMConfig: api_key: has whitespace or a character that keys do not have; use .strip()"
    )
