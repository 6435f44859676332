"""What an entry is said to take, against what it takes."""

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aigateway.cache.size import answer_size, entry_size
from aigateway.messages import Choice, Completion, Embeddings, NativeAnswer, ToolCall
from tests.processes import ROOT

LONG = 100_000


def with_one_long_text(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield values of a type with one long text each, in every field that can hold one."""
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    make = kind
    if kind is str or kind is bytes:
        yield "", "x" * LONG if kind is str else b"x" * LONG
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            for place, value in with_one_long_text(hints[field.name]):
                given = {**REQUIRED.get(kind, {}), field.name: value}
                yield f"{field.name} {place}", make(**given)
    elif origin is tuple:
        for place, value in with_one_long_text(kinds[0]):
            yield place, (value,)
    elif origin is not typing.Literal:
        for each in kinds:
            yield from with_one_long_text(each)


REQUIRED: dict[Any, dict[str, Any]] = {
    Completion: {"id": "", "model": "", "choices": (Choice(),)},
    ToolCall: {"id": "", "name": "", "arguments": ""},
    NativeAnswer: {"protocol": "messages"},
}
ANSWERS = dict(with_one_long_text(Completion))
del ANSWERS["choices finish_reason "]  # one of a few words in all answers that vendors give


def test_every_field_has_an_answer_here() -> None:
    assert {name.split()[0] for name in ANSWERS} == {
        *("id", "model", "choices", "system_fingerprint", "service_tier", "sources_json", "native")
    }
    assert len(ANSWERS) >= 23


@pytest.mark.parametrize("place", ANSWERS)
def test_every_text_of_an_answer_counts(place: str) -> None:
    for size in (answer_size("k", ANSWERS[place]), entry_size("k", {"a": [ANSWERS[place]]})):
        assert LONG < size < LONG + 5000


def test_containers_count_with_what_they_hold() -> None:
    text = "x" * LONG
    for value in ([text], {text}, {"a": {text: 1}}, (1.5, [(text,)]), Embeddings(text, ())):
        assert LONG < entry_size("k", value) < LONG + 2000
        assert LONG < entry_size(("k", value), None) < LONG + 2000
    assert entry_size("k", [same := ["x"], same]) < 1000
    cycle: list[Any] = []
    cycle.append(cycle)
    assert entry_size("k", cycle) < 1000


def test_the_memory_that_entries_take_is_as_estimated() -> None:
    """By tracemalloc, in a process of its own, where no other thread takes memory."""
    program = Path(__file__).with_name("held_memory.py")
    done = subprocess.run(
        [sys.executable, program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shapes = [line.split(",") for line in done.stdout.splitlines()]
    assert len(shapes) >= 15
    for name, held, estimated in shapes:
        assert 1 / 1.5 < int(estimated) / int(held) < 1.5, (name, held, estimated)
