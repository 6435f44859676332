"""What all settings have in common, and the texts of refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aigateway.settings import GatewaySettings, LLMConfig, ServerSettings, suggestion
from tests.settings.helpers import KEY, config, refused


def test_every_field_is_described() -> None:
    for model in (LLMConfig, GatewaySettings, ServerSettings):
        for name, field in model.model_fields.items():
            assert field.description, name


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


def test_every_problem_is_named_at_once() -> None:
    message = refused(lambda: config(weight=0, timeout=0))
    assert "weight" in message
    assert "timeout" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [("timout", '; did you mean "timeout"?'), ("zzz", ""), ("", "")],
)
def test_suggestion(name: str, said: str) -> None:
    assert suggestion(name, ["timeout", "max_queue"]) == said
