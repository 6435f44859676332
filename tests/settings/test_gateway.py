"""The gateway's settings: their defaults, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from aigateway.settings import GatewaySettings
from tests.settings.helpers import refused


def test_setting_defaults() -> None:
    assert GatewaySettings().model_dump() == {
        "timeout": 60,
        "attempt_timeout": 30,
        "first_token_timeout": 10,
        "thinking_timeout": 90,
        "idle_timeout": 15,
        "chat_over_stream": False,
        "retries_per_provider": 0,
        "hedge": False,
        "hedge_delay_seconds": 5,
        "hedge_max_percent": 5,
        "failure_threshold": 5,
        "reset_timeout_seconds": 60,
        "max_open_seconds": 120,
        "probe_lease_seconds": 60,
        "retry_rounds": 2,
        "max_retry_wait_seconds": 10,
        "max_cooldown_seconds": 300,
        "degraded_window_seconds": 30,
        "degraded_min_attempts": 20,
        "degraded_error_percent": 50,
        "degraded_latency_factor": 5,
        "degraded_canary_percent": 5,
        "disabled_recheck_seconds": 300,
        "disabled_recheck_max_seconds": 3600,
        "failover_on_rejection": "once",
        "failover_on_content_policy": False,
        "drop_unsupported_params": "hints",
        "cache_enabled": True,
        "cache_ttl_seconds": 3600,
        "cache_max_entries": 1000,
        "cache_max_memory_bytes": 134_217_728,
        "cache_url": None,
        "cache_max_bytes": 1_073_741_824,
        "agent_ttls": {},
        "middleware": (),
        "middleware_timeout": 5.0,
        "default_prices": None,
        "redis_url": None,
        "fleet_name": "default",
        "stale_if_error_seconds": 0,
        "max_concurrency": 256,
        "max_queue": 10_000,
        "max_prompt_bytes": 10_000_000,
        "log_prompts": False,
        "freeze_gc": False,
    }


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
        ({"cache_max_memory_bytes": -1}, ["cache_max_memory_bytes", "1000000"]),
        ({"cache_max_memory_bytes": 0}, ["cache_max_memory_bytes", "1000000"]),
        ({"cache_max_memory_bytes": 128}, ["cache_max_memory_bytes", "1000000"]),
        ({"cache_max_memory_bytes": 10**13}, ["cache_max_memory_bytes", "1099511627776"]),
        ({"cache_max_memory_bytes": "128 MB"}, ["cache_max_memory_bytes", "integer"]),
        ({"cache_url": "cache.db"}, ["cache_url", '"sqlite:///cache.db"']),
        ({"cache_url": "sqlite://cache.db"}, ["cache_url", "slashes"]),
        ({"cache_url": "sqlite:///"}, ["cache_url"]),
        ({"cache_url": "rediss://h"}, ["cache_url", "redis_url"]),
        ({"cache_max_bytes": 9_999_999}, ["cache_max_bytes"]),
        ({"stale_if_error_seconds": -1}, ["stale_if_error_seconds"]),
        ({"max_concurrency": 0}, ["max_concurrency"]),
        ({"max_queue": -1}, ["max_queue"]),
        ({"max_prompt_bytes": 0}, ["max_prompt_bytes"]),
        ({"agent_ttls": {"a": 0}}, ["agent_ttls.a (keyword)"]),
        ({"agent_ttls": 5}, ["agent_ttls"]),
        ({"cache_enabled": "perhaps"}, ["cache_enabled"]),
        (
            {"reset_timeout_seconds": 601, "max_open_seconds": 600},
            ["max_open_seconds", "reset_timeout_seconds"],
        ),
        ({"disabled_recheck_seconds": 3601}, ["disabled_recheck_max_seconds"]),
    ],
)
def test_refused_settings(fields: dict[str, Any], words: list[str]) -> None:
    message = refused(lambda: GatewaySettings(**fields))
    for word in words:
        assert word in message
    assert refused(lambda: GatewaySettings.load(**fields)) == message


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, 30),
        ({"timeout": 600}, 30),
        ({"timeout": 60}, 30),
        ({"timeout": 59}, 29.5),
        ({"timeout": 10}, 5),
        ({"timeout": 10, "attempt_timeout": 30}, 30),
        ({"timeout": 10, "attempt_timeout": 8}, 8),
        ({"timeout": 1, "attempt_timeout": 5}, 5),
    ],
)
def test_an_attempt_leaves_room_for_another_unless_told(
    fields: dict[str, Any], seconds: float
) -> None:
    made = GatewaySettings(**fields)
    assert made.attempt_timeout == seconds
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made)):
        assert other.attempt_timeout == seconds
        assert other.model_fields_set == set(fields), "what was worked out was not set"


def test_an_attempts_timeout_from_any_source_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "aigateway.toml").write_text("[gateway]\nattempt_timeout = 30\n")
    assert GatewaySettings(timeout=10).attempt_timeout == 30
    monkeypatch.setenv("AIGATEWAY_ATTEMPT_TIMEOUT", "9")
    assert GatewaySettings(timeout=10).attempt_timeout == 9


def test_a_timeout_from_the_environment_leaves_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "10")
    assert GatewaySettings().attempt_timeout == 5


def test_settings_pickle_and_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = GatewaySettings(timeout=5, agent_ttls={"a": 1})
    monkeypatch.setenv("AIGATEWAY_TIMEOUT", "9")
    for other in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert other == made
