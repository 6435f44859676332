"""Counts of tokens in a stream of Gemini's, where every event has one and few of them matter."""

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import Usage
from aigateway.settings import LLMConfig
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.json_bodies import mend_usage
from aigateway.wires.litellm.lane import call_options
from aigateway.wires.loading import load_litellm
from aigateway.wires.translation import translation_for
from tests.wires.bodies import GEMINI, Vendor, read_out
from tests.wires.calls import asking

GROUNDED = {"groundingMetadata": {"webSearchQueries": ["x"]}}


def event(*parts, **more):
    candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}} | more
    return {"candidates": [candidate], "modelVersion": "m", "responseId": "1"}


PIECE = event({"text": "Hi"})
EVENTS = [
    *[PIECE] * 4,
    event({"text": "Hm", "thought": True}),
    event({"functionCall": {"name": "f", "args": {"a": 1}}}),
    event({"text": "Hi"}, **GROUNDED),
    {"responseId": "1"},
]

ODD: list[Any] = [
    None,
    0,
    -1,
    True,
    1.5,
    7.0,
    "7",
    "0",
    "x",
    2**53,
    [],
    [7],
    [{}],
    {},
    {"tokenCount": 5},
]
FIGURES = [
    *("promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount"),
    *("cachedContentTokenCount", "toolUsePromptTokenCount", "of_details"),
]
DETAILS = ["promptTokensDetails", "candidatesTokensDetails", "textCount"]

USUAL, MISSING = object(), object()


@st.composite
def usages(draw):
    """A count, mostly with one thing odd or missing: with more, few of them would matter."""
    count = draw(st.integers(1, 50))
    usage = dict.fromkeys(FIGURES, count)
    usage |= {name: [{"modality": "AUDIO", "tokenCount": count}] for name in DETAILS}
    if not draw(st.integers(0, 7)):
        usage["more_details"] = {"aTokens": count, "bTokens": count}
    name, odd = draw(st.sampled_from(list(usage))), draw(st.sampled_from([USUAL, MISSING, *ODD]))
    if odd is MISSING:
        del usage[name]
    elif odd is not USUAL:
        usage[name] = odd
    return usage


@st.composite
def counting(draw, events=EVENTS):
    """An event with a count, or with none."""
    drawn = copy.deepcopy(draw(st.sampled_from(events)))
    if draw(st.integers(0, 9)):
        drawn["usageMetadata"] = draw(st.one_of(*[usages()] * 9, st.sampled_from(ODD)))
    return drawn


def details_then(odd):
    """Two events: with details, and with something else in their place."""
    figures = {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11}
    details = [{"modality": "AUDIO", "tokenCount": 9}]
    counts = [figures | {"promptTokensDetails": each} for each in (details, odd)]
    return [PIECE | {"usageMetadata": each} for each in counts]


@pytest.fixture
async def begin():
    """Begins to read a stream."""
    litellm = await load_litellm()
    config = LLMConfig(GEMINI, "gemini-2.5-flash", api_key="k")
    options = call_options(config, drop_unsupported_params=False)
    translation = translation_for(litellm, config, options)
    assert translation is not None
    sent = translation.request(asking(), streamed=True)
    assert sent is not None
    return lambda: translation.reading(sent)


def read(reading, *events):
    reading.take([(b"", json.dumps(each).encode()) for each in events])


def counted(reading):
    """What a reading has counted, in our form and in litellm's."""
    by_litellm = reading.count()
    return reading.assembly.usage, by_litellm and by_litellm.model_dump()


@pytest.mark.hypothesis
async def test_it_is_all_the_same_how_often_a_count_is_asked_for(begin):
    @settings(max_examples=4 * settings().max_examples)
    @given(st.lists(st.tuples(counting(), st.booleans()), min_size=2, max_size=4))
    def check(events):
        always, sometimes, once = begin(), begin(), begin()
        for each, asked in events:
            for reading in (always, sometimes, once):
                read(reading, each)
            so_far = counted(always)
            assert not asked or counted(sometimes) == so_far
            if once.problem is not None:
                break  # litellm could not read it
        assert counted(sometimes) == counted(once) == so_far

    check()


@pytest.mark.hypothesis
async def test_each_count_holds_until_another_takes_its_place(begin):
    @example(details_then([7]))
    @example(details_then([]))
    @example(details_then(7))
    @settings(max_examples=4 * settings().max_examples)
    @given(st.lists(counting([PIECE]), min_size=2, max_size=4))
    def check(events):
        many, one = begin(), begin()
        read(many, *events)
        read(one, PIECE | {"usageMetadata": added_up(events)})
        assert counted(many) == counted(one)

    check()


def added_up(events):
    """The counts of all events: mended each by itself, and put one over the other."""
    so_far: dict[str, Any] = {}
    for each in copy.deepcopy(events):
        mend_usage(each)
        put_over(so_far, each.get("usageMetadata") or {})
    return so_far


def put_over(so_far, more):
    for name, count in more.items():
        if isinstance(count, dict) and isinstance(so_far.get(name), dict):
            put_over(so_far[name], count)
        elif count or name not in so_far:
            so_far[name] = count


def spoken(prompt, answer, cached, **more):
    figures = {"promptTokenCount": prompt, "candidatesTokenCount": answer}
    return figures | {"cachedContentTokenCount": cached, "totalTokenCount": 40} | more


@pytest.mark.parametrize(
    ("last", "usage"),
    [
        (spoken(30, 3, 8, totalTokenCount=33), Usage(30, 3, 33, 8)),
        ({"candidatesTokenCount": 3}, Usage(30, 3, 40, 8)),
        (spoken(30, 3, 0), Usage(30, 3, 40, 8)),
        (spoken(2**53, 3, 8), Usage(30, 3, 40, 8)),
        (spoken(-1, 3, 8), Usage(30, 3, 40, 8)),
        (spoken(None, "3", 8.0), Usage(30, 3, 40, 8)),
        (spoken(30, True, "x"), Usage(30, 2, 40, 8)),
        ("none", Usage(30, 2, 40, 8)),
        (None, Usage(30, 2, 40, 8)),
    ],
)
async def test_what_has_been_counted_when_a_stream_breaks(last, usage):
    async with Vendor() as vendor:
        counts = [spoken(30, 1, 8), spoken(30, 2, 8), last]
        vendor.events = [PIECE | {"usageMetadata": each} for each in counts]
        client = DirectClient(vendor.config(GEMINI), SYSTEM_CLOCK)
        try:
            stream = await client.stream(asking())
            with pytest.raises(VendorCallError):  # it has no end
                await read_out(stream)
            assert stream.completion().usage == usage
            await stream.aclose()
        finally:
            await client.aclose()


@pytest.mark.parametrize("odd", [1.5, [], {}, [7]])
async def test_a_count_that_is_none_beside_a_tool_call(odd):
    async with Vendor() as vendor:
        call = {"functionCall": {"name": "f", "args": {}}}
        first = event({"text": "Hi"}) | {"usageMetadata": spoken(30, 1, 8)}
        last = event(call, finishReason="STOP") | {"usageMetadata": spoken(30.0, "2", odd)}
        vendor.events = [first, last]
        client = DirectClient(vendor.config(GEMINI), SYSTEM_CLOCK)
        try:
            stream = await client.stream(asking())
            await read_out(stream)
            completion = stream.completion()
            await stream.aclose()
        finally:
            await client.aclose()
    assert [call.name for call in completion.choices[0].tool_calls] == ["f"]
    assert completion.usage == Usage(30, 2, 40, 8)
