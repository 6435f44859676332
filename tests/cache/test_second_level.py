"""The form of answers below the memory: an exact round trip, and no damaged value is an answer."""

import dataclasses
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.cache.memory import Remembered
from aigateway.cache.second_level import (
    FORMAT,
    MAX_VALUE_BYTES,
    WrittenAnswer,
    decoded,
    encoded,
)
from aigateway.messages import Choice, Completion, NativeAnswer

PLAIN = {
    str: st.text(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bytes: st.binary(),
    bool: st.booleans(),
    type(None): st.none(),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Return values of a type, with every field of every record, those of the future included."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(
            kind, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind)}
        )
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=2).map(tuple)
    if origin is typing.Literal:
        return st.sampled_from(args)
    return st.one_of([values_of(each) for each in args]) if args else PLAIN[kind]


@given(values_of(Completion), st.text(), st.text())
def test_every_field_comes_back_as_it_was(completion, provider, made_by):
    value = encoded(completion, provider, made_by)
    assert decoded(value) == WrittenAnswer(FORMAT, provider, made_by, completion)
    # Equality does not tell 1 from 1.0 or True.
    found = decoded(value)
    assert found is not None
    assert repr(dataclasses.asdict(found.completion)) == repr(dataclasses.asdict(completion))


def test_an_entry_in_memory_has_no_more_than_that():
    assert {f.name for f in dataclasses.fields(Remembered)} == {"completion", "provider", "waited"}


@given(values_of(Completion), st.data())
def test_a_damaged_value_is_a_miss_or_well_formed(completion, data):
    value = bytearray(encoded(completion, "p", ""))
    if data.draw(st.booleans()):
        value = value[: data.draw(st.integers(0, len(value) - 1))]
    else:
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    found = decoded(bytes(value))
    if found is not None:
        assert decoded(encoded(found.completion, found.provider, found.made_by)) == found


VALUE = (
    b'[1,"openai/gpt","0123","{"id":"i","model":"m","choices":[{"text":"t","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},"cost_usd":0.5,'
    b'"created":7,"native":{"protocol":"messages","body":"e30=","events":["YQ=="]}}]'
).replace(b'"{', b"{")


def test_a_value_of_an_earlier_release_is_read():
    """Its format is this one's. If this fails, raise `FORMAT`."""
    found = decoded(VALUE)
    assert found is not None
    assert found[:3] == (1, "openai/gpt", "0123")
    completion = found.completion
    assert completion.choices == (Choice("t", "stop"),)
    assert (completion.cost_usd, completion.created, completion.usage.total_tokens) == (0.5, 7, 3)
    assert completion.native == NativeAnswer("messages", b"{}", (b"a",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[1,", b"[2,"),  # a later format
        (b'"created"', b'"invented"'),  # a field of a later release
        (b'"id":"i",', b""),
        (b'"text":"t"', b'"text":5'),
        (b'"created":7', b'"created":"7"'),
        (b'"messages"', b'"gopher"'),
        (b'"e30="', b'"e3"'),
        (VALUE, b""),
        (VALUE, b"null"),
        (VALUE, b"\x80\x04K\x01."),  # a pickle
    ],
)
def test_what_another_release_or_program_wrote_is_a_miss(old, new):
    assert old in VALUE
    assert decoded(VALUE.replace(old, new)) is None


@pytest.mark.parametrize(
    "completion",
    [
        Completion("i", "m", (Choice("half \ud800"),)),
        Completion("i", "m", (Choice("x" * MAX_VALUE_BYTES),)),
        Completion("i", "m", (), created=2**64),
    ],
)
def test_what_json_cannot_say_or_is_too_long_is_no_value(completion):
    assert encoded(completion, "p", "") == b""


def test_a_price_that_is_no_number_is_not_known():
    found = decoded(encoded(Completion("i", "m", (), cost_usd=math.inf), "p", ""))
    assert found is not None
    assert found.completion.cost_usd is None
