"""A provider to vary, and a refusal that is searched for secrets."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aigateway.errors import ConfigurationError
from aigateway.settings import LLMConfig, ProviderType

KEY = "sk-very-secret-0123456789"
TOKEN = "Bearer very-secret-token"
HERE = str(Path(__file__).parent)


def config(**fields: Any) -> LLMConfig:
    return LLMConfig(**{"provider": ProviderType.OPENAI, "model": "m", "api_key": KEY} | fields)


def refused(make: Callable[[], object]) -> str:
    """The message of the refusal, after making sure that nothing foreign or secret is in it."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    # The first frames are the test's own: there the key stands in the source.
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(HERE):
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
