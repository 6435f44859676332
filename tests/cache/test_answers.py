import pytest

from aigateway.cache.memory import ttl_for, worth_keeping
from aigateway.messages import Choice, Completion, ToolCall

CALL = (ToolCall("c1", "add", "{}"),)


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (Choice("4", "stop"), True),
        (Choice("", "tool_calls", CALL), True),
        (Choice("", "stop", CALL), True),
        (Choice("", "function_call", CALL), True),
        (Choice("a long story", "length"), True),
        (Choice("", "length"), False),
        (Choice("so: ", "length", CALL), False),
        (Choice("", "stop"), False),
        (Choice("half", "content_filter"), False),
        (Choice("half", None), False),
        (Choice("half", "insufficient_system_resource"), False),
        (Choice("", "stop", refusal="I cannot help with that."), False),
        (Choice("well", "stop", refusal="no"), False),
    ],
)
def test_worth_keeping(choice: Choice, kept: bool) -> None:
    assert worth_keeping(Completion("1", "gpt", (choice,))) is kept


def test_every_choice_counts() -> None:
    good, bad = Choice("4", "stop"), Choice("4", "content_filter")
    assert worth_keeping(Completion("1", "gpt", (good, good)))
    assert not worth_keeping(Completion("1", "gpt", (good, bad)))
    assert not worth_keeping(Completion("1", "gpt", ()))


@pytest.mark.parametrize(
    ("agent", "cache_ttl", "expected"),
    [
        (None, None, 3600),
        ("news", None, 60),
        ("other", None, 3600),
        ("news", 5, 5),
        (None, 5, 5),
        ("news", 0, 0),
    ],
)
def test_the_closest_word_counts(
    agent: str | None, cache_ttl: float | None, expected: float
) -> None:
    assert ttl_for(agent, cache_ttl, {"news": 60}, 3600) == expected
