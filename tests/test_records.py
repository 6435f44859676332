"""What every public record has: a repr of one line without content, and `to_dict()` for JSON."""

import dataclasses
import datetime as dt
import json
import math
import pickle
import typing
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel

import aigateway
from aigateway import (
    AllProvidersFailedError,
    Attempt,
    BatchResult,
    ChatResponse,
    Choice,
    Chunk,
    EmbeddingResponse,
    FailureKind,
    ProviderFailure,
    ToolCall,
    Usage,
    events,
)
from aigateway.messages import AnsweredItem, Completion, Embeddings, FailedItem
from aigateway.records import Record, plain, shown_cost
from aigateway.testing import scripted_configs

CONTENT = "the content"
RECORDS = [
    found
    for name in aigateway.__all__
    if dataclasses.is_dataclass(found := getattr(aigateway, name))
]


class City(BaseModel):
    name: str


class Sized(BaseModel):
    x: float
    raw: bytes
    more: typing.Any = None


def answer(**fields):
    call = ToolCall("c1", "f", json.dumps({"q": CONTENT}), thought_signature=CONTENT)
    choice = Choice(
        CONTENT,
        "stop",
        (call,),
        reasoning=CONTENT,
        refusal=CONTENT,
        logprobs_json='{"content": []}',
        sources_json=json.dumps({"citations": [CONTENT]}),
    )
    completion = Completion("id", "gpt", (choice,), Usage(12, 8, 20), 1 / 3e5)
    attempt = Attempt("openai/gpt", "gpt", None, None, 1 / 3, 1 / 3e5)
    return ChatResponse(completion, "openai/gpt", attempts=(attempt,), **fields)


def test_an_answer_in_one_line_and_as_values():
    reply = answer(latency_seconds=0.314159265, parsed=City(name="Oslo"), request_id="r")
    assert repr(reply) == "<ChatResponse openai/gpt 12+8 tokens $0.0000033 0.31 s>"
    values = json.loads(json.dumps(reply.to_dict()))
    assert (values["text"], values["parsed"], values["model"]) == (CONTENT, {"name": "Oslo"}, "gpt")
    assert values["cost_usd"] == values["attempts"][0]["cost_usd"] == 3.3333e-06
    assert values["latency_seconds"] == 0.314159
    assert values["choices"][0]["sources"] == {"citations": [CONTENT]}
    assert values["tool_calls"][0]["name"] == "f"
    assert answer(cached=True).to_dict()["cost_usd"] == 0.0


def test_reprs_show_no_content():
    reply = answer()
    failed = FailedItem(1, "row 1", CONTENT, error=AllProvidersFailedError.of(()))
    items = (AnsweredItem(0, "0", CONTENT, reply), failed)
    embeddings = Embeddings("m", ((0.25, 0.5),), Usage(3, 0, 3))
    request = aigateway.AsyncGateway(scripted_configs("a")).check(CONTENT, temperature=0)
    records = [
        reply,
        reply.completion,
        *reply.choices,
        *reply.tool_calls,
        Chunk(CONTENT, reasoning=CONTENT),
        *items,
        BatchResult(items),
        EmbeddingResponse(embeddings, "p"),
        embeddings,
        request,
        ProviderFailure("p", FailureKind.SERVER_ERROR, 500, detail=CONTENT),
    ]
    for record in records:
        shown = repr(record)
        assert CONTENT not in shown
        assert "0.25" not in shown
        assert "\n" not in shown
        assert len(shown) < 120
        assert repr(pickle.loads(pickle.dumps(record))) == shown
        json.dumps(record.to_dict())
    assert repr(failed) == "<FailedItem 1 row 1 AllProvidersFailedError 0.00 s>"
    assert BatchResult(items).to_dict()["items"][1]["error"]["error"] == "AllProvidersFailedError"


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_public_record_has_both(kind):
    assert callable(kind.to_dict)
    assert kind.__repr__ is not object.__repr__
    assert issubclass(kind, Record) or kind is ProviderFailure


def test_every_event_has_its_name_and_plain_values():
    for kind in typing.get_args(events.Event):
        assert issubclass(kind, Record)
    event = events.ProviderFailed("r", "p", FailureKind.TIMEOUT, None, None, math.inf)
    assert json.loads(json.dumps(event.to_dict())) == {
        "event": "provider.failed",
        "request_id": "r",
        "provider": "p",
        "kind": "timeout",
        "status": None,
        "code": None,
        "latency_seconds": None,
        "attempt": 0,
        "last_resort": False,
    }


FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text() | st.sampled_from(["x", "x_json", "price_usd", "wait_seconds"])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), FINITE, st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)
ATOMS = [st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()]
ODD = [st.sampled_from(FailureKind), st.just(City), st.frozensets(st.text()), st.dates()]
VALUES = st.recursive(
    st.one_of(*ATOMS, *ODD, st.just(object())),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.one_of(NAMES, *ATOMS, *ODD), inner)
        | st.tuples(inner)
        | st.builds(Sized, x=st.floats(), raw=st.binary(), more=inner)
    ),
)


def as_read(record):
    return json.loads(json.dumps(record.to_dict(), allow_nan=False))


@settings(max_examples=20)
@given(VALUES, JSON)
def test_any_record_becomes_json_and_the_callers_values_stay(anything, said):
    request = {"prompt": "p", "metadata": said, "odd": anything}
    item = as_read(FailedItem(1, "1", request, error=ValueError("x")))
    assert item["request"]["metadata"] == said
    reply = answer(parsed=anything)
    choice = dataclasses.replace(reply.choices[0], logprobs_json=json.dumps([said, math.nan]))
    completion = dataclasses.replace(reply.completion, choices=(choice,))
    read = as_read(dataclasses.replace(reply, completion=completion))
    assert read["choices"][0]["logprobs"] == [said, None]
    as_read(ChatResponse(completion, "p", parsed=Sized(x=math.inf, raw=b"\xff", more=anything)))


def test_values_that_json_lacks():
    odd = {b"a": dt.date(2026, 1, 2), 1: Decimal("1.50"), None: Fraction(1, 2), (1, 2): {3}}
    assert plain(odd) == {"a": "2026-01-02", "1": "1.50", "null": 0.5, "[1, 2]": [3]}
    assert plain([RootModel[str]("a"), RootModel[float](math.inf)]) == ["a", None]
    assert plain({"cost_usd": 1e-13, "x_json": "free text", "x": 2}) == {
        "cost_usd": 1e-13,
        "x_json": "free text",
        "x": 2,
    }


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (None, None),
        (0.0, "$0.00"),
        (12.345, "$12.35"),
        (0.0012345, "$0.0012"),
        (1e-15, "$0.000000000000"),
    ],
)
def test_costs_have_two_figures(cost, shown):
    assert shown_cost(cost) == shown


def test_a_generic_record_is_made_with_its_type_and_stays_as_it_is():
    reply = ChatResponse[City](Completion("", "gpt", (Choice("a"),)), "openai/gpt")
    item = AnsweredItem[City](0, "0", CONTENT, reply)
    assert (item.response, item.response.text) == (reply, "a")
    for record, name in ((reply, "provider"), (item, "error"), (reply, "nonsense")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(record, name, None)
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            delattr(record, name)
    failed = dataclasses.replace(item, response=None, error=ValueError())
    assert isinstance(failed, FailedItem)


@dataclasses.dataclass(frozen=True, slots=True)
class Parent(Record):
    first: int
    many: list[int] = dataclasses.field(default_factory=list)
    named: int = dataclasses.field(default=3, kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Child(Parent):
    last: int = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Computed(Child):
    double: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "double", 2 * self.first)


class Plain(Child):
    """As an application may make one: no dataclass of its own."""


@pytest.mark.parametrize("kind", [Parent, Child, Computed, Plain])
def test_a_record_is_made_as_a_dataclass_is(kind):
    one, other = kind(1), kind(first=1, many=[], named=3)
    assert one == other
    assert hash(dataclasses.replace(one, many=())) == hash(dataclasses.replace(other, many=()))
    assert type(one) is kind
    assert one.many is not other.many
    assert dataclasses.replace(one, named=5).named == 5
    assert pickle.loads(pickle.dumps(one)) == one
    assert getattr(one, "double", 2) == 2
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required .* 'first'"):
        kind()
    with pytest.raises(TypeError):
        kind(1, [], 3, 4, 5)
    for change in (lambda: setattr(one, "first", 2), lambda: delattr(one, "first")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
