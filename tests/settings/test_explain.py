"""What a refusal says."""

from __future__ import annotations

import pytest

from aigateway.settings import suggestion
from tests.settings.helpers import config, refused


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
