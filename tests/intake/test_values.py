"""What a parameter's value must look like."""

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
