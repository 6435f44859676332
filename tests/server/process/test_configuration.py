"""What is read at the start, and as many descriptors as the settings can need."""

from __future__ import annotations

import logging
import resource

import pytest

from aigateway import ConfigurationError, LLMConfig
from aigateway.server.process.configuration import raise_descriptor_limit, read_configuration

PROVIDERS = [LLMConfig("openai", "m", api_key="k")]
FILES = resource.RLIMIT_NOFILE


@pytest.fixture(autouse=True)
def as_before():
    before, restore = resource.getrlimit(FILES), resource.setrlimit  # some tests replace it
    yield
    restore(FILES, before)


@pytest.fixture
def hard():
    return resource.getrlimit(FILES)[1]


@pytest.mark.parametrize(
    ("base", "host", "refused"),
    [
        ("http://127.0.0.1:8123", "localhost", True),
        ("http://localhost:8123", "0.0.0.0", True),
        ("http://10.0.0.5:8123", "10.0.0.5", True),
        ("http://127.0.0.1:8124", "127.0.0.1", False),
        ("http://127.0.0.1:8123", "10.0.0.5", False),
        ("https://api.anthropic.com", "127.0.0.1", False),
    ],
)
def test_a_provider_that_is_the_service_itself_is_refused(base, host, refused):
    providers = [LLMConfig("anthropic", "auto", api_key="k", api_base=base)]
    keys = {"keys": [{"name": "a", "sha256": "0" * 64}]}
    given = {"host": host, "port": 8123, **keys}
    if refused:
        with pytest.raises(ConfigurationError, match="ANTHROPIC_BASE_URL"):
            read_configuration(given, providers)
    else:
        read_configuration(given, providers)


def test_the_soft_limit_becomes_the_hard_one(hard):
    resource.setrlimit(FILES, (256, hard))
    raise_descriptor_limit(read_configuration({"max_connections": 10}, PROVIDERS))
    assert resource.getrlimit(FILES) == (hard, hard)


@pytest.mark.parametrize(("fewer", "warned"), [(0, False), (1, True)])
def test_it_warns_of_one_too_few(monkeypatch, caplog, fewer, warned):
    allowed = 10 + 20 + 64 - fewer
    monkeypatch.setenv("AIGATEWAY_MAX_CONCURRENCY", "20")
    # The hard limit of this process could not be raised again.
    monkeypatch.setattr(resource, "getrlimit", lambda which: (50, allowed))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    with caplog.at_level(logging.WARNING):
        raise_descriptor_limit(read_configuration({"max_connections": 10}, PROVIDERS))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned


def test_where_the_hard_limit_cannot_be_had_it_takes_what_is_needed(monkeypatch, caplog):
    asked = []

    def macos(which, limits):
        asked.append(limits)
        if limits[0] == resource.RLIM_INFINITY:
            raise ValueError

    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, unlimited))
    monkeypatch.setattr(resource, "setrlimit", macos)
    raise_descriptor_limit(read_configuration({"max_connections": 10}, PROVIDERS))
    assert asked == [(unlimited, unlimited), (10 + 2048 + 64, unlimited)]
    assert not caplog.records


def test_where_nothing_can_be_had_it_says_what_there_is(monkeypatch, caplog):
    def no(which, limits):
        raise OSError

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 100_000))
    monkeypatch.setattr(resource, "setrlimit", no)
    raise_descriptor_limit(read_configuration({}, PROVIDERS))
    assert "may open 256 files" in caplog.text


# ── what it is that may be needed ────────────────────────────────────────────────────────────


def test_a_service_lets_more_calls_out_than_a_library_and_freezes_what_is_loaded():
    gateway = read_configuration({}, PROVIDERS).gateway
    assert (gateway.max_concurrency, gateway.freeze_gc) == (2048, True)


def test_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.setenv("AIGATEWAY_MAX_CONCURRENCY", "256")
    assert read_configuration({}, PROVIDERS).gateway.max_concurrency == 256


def test_or_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "[gateway]\nmax_concurrency = 7\nfreeze_gc = false\n"
    (tmp_path / "aigateway.toml").write_text(lines)
    gateway = read_configuration({}, PROVIDERS).gateway
    assert (gateway.max_concurrency, gateway.freeze_gc) == (7, False)
