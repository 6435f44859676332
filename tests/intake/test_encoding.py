"""What cannot be written as JSON, and how the culprit is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel

from aigateway import intake
from aigateway.errors import RequestRejectedError
from aigateway.intake.params import CHAT_PARAMS
from aigateway.messages import ChatRequest
from tests.intake.helpers import CYCLE, INF, NAN, SECRET, SETTINGS, USER, chat, embed, refused


DEEP: list[Any] = []


@dataclass
class Record:
    role: str = "user"
    content: float = NAN


def test_a_null_is_no_nan() -> None:
    assert chat([{**USER, "name": None}]).messages == ({**USER, "name": None},)


def test_numpys_floats_are_floats() -> None:
    class Float64(float):
        """As numpy's: a float to Python, unknown to orjson."""

    assert chat(temperature=Float64(0.5)).params == {"temperature": 0.5}
    assert "temperature" in refused(lambda: chat(temperature=Float64("nan")))
    assert "NaN" in refused(lambda: chat(logit_bias={"1": Float64("nan")}))
