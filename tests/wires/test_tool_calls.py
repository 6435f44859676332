"""Tool calls of sloppy servers: what the caller is given, whole and streamed, in both lanes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import FailureKind
from aigateway.messages import ChatRequest, ToolCall
from aigateway.wires.client import Failure
from aigateway.wires.tool_calls import CallPiece, ToolCallReader, is_cut
from tests.wires.calls import asking
from tests.wires.shapes import TOOL
from tests.wires.test_ends import (
    DONE,
    anthropic_streamed,
    anthropic_whole,
    drained,
    event,
    failure_of,
    gemini_whole,
    openai_piece,
    openai_whole,
    rest_of,
    serve,
)

__all__ = ["serve"]

USED = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"city": "Oslo"}}
SEARCHED = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": "x"}}
PARTS = ({"functionCall": {"name": "f"}}, {"functionCall": {"name": "g", "args": {"a": 1}}})
OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'


def call(name="", arguments="", call_id=None, index=None, **more):
    given = {"function": {"name": name, "arguments": arguments}, **more}
    given |= {} if call_id is None else {"id": call_id}
    return given if index is None else given | {"index": index}


def with_calls(*calls, finish="tool_calls"):
    body = openai_whole(None, finish)
    body["choices"][0]["message"]["tool_calls"] = [{"type": "function", **c} for c in calls]
    return body


def delta(**content):
    choice = {"index": 0, "delta": content, "finish_reason": None}
    return event({"id": "1", "created": 7, "model": "m", "choices": [choice]})


def with_deltas(*calls, finish="tool_calls"):
    pieces = [delta(tool_calls=[c]) for c in calls]
    return [*pieces, openai_piece(None, finish), DONE]


def seen(chunks):
    """What a client puts together of the deltas, by index; ids and names come once."""
    calls: dict[int, list[Any]] = {}
    for piece in (piece for chunk in chunks for piece in chunk.tool_calls):
        entry = calls.setdefault(piece.index, [[], [], ""])
        entry[0] += [piece.id] if piece.id else []
        entry[1] += [piece.name] if piece.name else []
        entry[2] += piece.arguments
    assert sorted(calls) == list(range(len(calls)))
    assert all(len(ids) == len(names) == 1 for ids, names, _ in calls.values())
    return [(ids[0], names[0], arguments) for _, (ids, names, arguments) in sorted(calls.items())]


async def calls_of(client):
    """What a streamed answer calls: the deltas say the same as the whole."""
    chunks, completion = await drained(client, tools=[TOOL])
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert seen(chunks) == [(c.id, c.name, c.arguments) for c in choice.tool_calls]
    return choice.tool_calls


STREAMS = {
    "empty ids": [call("f", OSLO, "", 0), call("g", ROME, "", 1)],
    "no ids": [call("f", OSLO, None, 0), call("g", ROME, None, 1)],
    "indices that jump": [call("f", OSLO, "a", 2), call("g", ROME, "b", 7)],
    "one index and ids": [call("f", OSLO, "a", 0), call("g", ROME, "b", 0)],
    "one index, no ids": [call("f", OSLO, "", 0), call("g", ROME, "", 0)],
    "one id": [call("f", OSLO, "a", 0), call("g", ROME, "a", 1)],
    "no index": [call("f", OSLO, "a"), call("g", ROME, "b")],
    "neither id nor index": [
        call("f", '{"city":'),
        call("", ' "Oslo"}'),
        call("g", '{"city": '),
        call("", '"Rome"}'),
    ],
    "heads and tails apart": [
        call("f", "", "a", 0),
        call("", OSLO, None, 1),
        call("g", "", "b", 2),
        call("", ROME, None, 3),
    ],
    "repeated ids and names": [
        call("f", '{"city":', "a", 0),
        call("f", ' "Oslo"}', "a", 0),
        call("g", '{"city": ', "b", 1),
        call("g", '"Rome"}', "b", 1),
    ],
    "a new id with each piece": [
        call("f", '{"city":', "a", 0),
        call("", ' "Oslo"}', "b", 0),
        call("g", '{"city": ', "c", 1),
        call("", '"Rome"}', "d", 1),
    ],
    "by id alone": [
        call("f", "", "a"),
        call("", OSLO, "a"),
        call("g", "", "b"),
        call("", ROME, "b"),
    ],
    "empty ones first": [
        call("f", "{}", "a", 0),
        call("", OSLO, None, 0),
        call("g", "{}", "b", 1),
        call("", ROME, None, 1),
    ],
    "mixed up": [
        call("f", "", "a", 0),
        call("g", "", "b", 1),
        call("", ROME, None, 1),
        call("", OSLO, None, 0),
    ],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_calls_of_a_stream_are_told_apart(serve, name):
    calls = await calls_of(await serve("openai_compatible", with_deltas(*STREAMS[name])))
    assert [(c.name, json.loads(c.arguments)["city"]) for c in calls] == [
        ("f", "Oslo"),
        ("g", "Rome"),
    ]
    assert len({c.id for c in calls}) == 2
    assert all(0 < len(c.id) <= 40 for c in calls)


@pytest.mark.parametrize("call_id", [None, ""])
@pytest.mark.parametrize(
    "again",
    [
        [call("g", '{"id":7}', None, 0)],
        [call("g", "", None, 0), call("", '{"id":7}', None, 0)],
        [call("g", "{}", None, 0), call("", '{"id":7}', None, 0)],
    ],
    ids=["at once", "head first", "placeholder first"],
)
async def test_a_call_without_arguments_keeps_none_of_the_next(serve, call_id, again):
    pieces = [call("f", "{}", call_id, 0), *again]
    calls = await calls_of(await serve("openai_compatible", with_deltas(*pieces)))
    assert [(c.name, c.arguments) for c in calls] == [("f", "{}"), ("g", '{"id":7}')]


async def test_the_same_name_behind_a_placeholder_is_the_same_call(serve):
    pieces = [call("f", "{}", None, 0), call("f", OSLO, None, 0)]
    (only,) = await calls_of(await serve("openai_compatible", with_deltas(*pieces)))
    assert (only.name, only.arguments) == ("f", OSLO)


async def test_one_id_for_a_call_without_arguments_and_the_next(serve):
    pieces = [call("f", "{}", "a", 0), call("g", OSLO, "a", 1)]
    calls = await calls_of(await serve("openai_compatible", with_deltas(*pieces)))
    assert [(c.name, c.arguments) for c in calls] == [("f", "{}"), ("g", OSLO)]


@pytest.mark.parametrize("ids", [("", ""), (None, None), ("a", "a")])
async def test_calls_of_a_whole_answer_have_ids_of_their_own(serve, ids):
    client = await serve("openai", with_calls(call("f", OSLO, ids[0]), call("g", "", ids[1])))
    first, second = await whole_calls(client)
    assert first.id != second.id
    assert first.id
    assert second.id
    assert (first.arguments, second.arguments) == (OSLO, "{}")


async def whole_calls(client):
    choice = (await client.chat(asking(tools=[TOOL]))).choices[0]
    assert choice.finish_reason == "tool_calls"
    return choice.tool_calls


@pytest.mark.parametrize("wire", ["openai", "azure", "openai_compatible"])
async def test_arguments_that_come_as_an_object(serve, wire):
    given = [call("f", {"city": "Oslo"}, "a", 0), call("g", {}, "b", 1)]
    whole = await whole_calls(await serve(wire, with_calls(*given)))
    streamed = await calls_of(await serve(wire, with_deltas(*given)))
    for calls in (whole, streamed):
        assert [(c.name, c.arguments) for c in calls] == [("f", OSLO), ("g", "{}")]


async def test_a_streamed_call_without_arguments(serve):
    pieces = with_deltas(call("f", "", "a", 0), call("g", OSLO, "b", 1))
    calls = await calls_of(await serve("openai", pieces))
    assert [(c.name, c.arguments) for c in calls] == [("f", "{}"), ("g", OSLO)]


async def test_an_old_function_call(serve):
    body = openai_whole(None, "function_call")
    body["choices"][0]["message"]["function_call"] = {"name": "f", "arguments": OSLO}
    (whole,) = await whole_calls(await serve("openai", body))
    pieces = [
        delta(role="assistant", content=None, function_call={"name": "f", "arguments": ""}),
        delta(function_call={"arguments": OSLO}),
        openai_piece(None, "function_call"),
        DONE,
    ]
    (streamed,) = await calls_of(await serve("openai", pieces))
    assert whole.id
    assert streamed.id
    assert [(c.name, c.arguments) for c in (whole, streamed)] == [("f", OSLO)] * 2


class TestArgumentsThatAreCut:
    @pytest.mark.parametrize("finish", ["tool_calls", "stop"])
    async def test_are_broken_off(self, serve, finish):
        cut = call("f", '{"city": "Os', "a", 0)
        whole = await serve("openai", with_calls(cut, finish=finish))
        streamed = await serve("openai", with_deltas(cut, finish=finish))
        for failing in (whole_calls(whole), calls_of(streamed)):
            assert (await failure_of(failing)).kind is FailureKind.BAD_ANSWER

    async def test_by_the_callers_own_limit_are_an_answer(self, serve):
        cut = call("f", '{"city": "Os', "a", 0)
        client = await serve("openai", with_deltas(cut, finish="length"))
        _, completion = await drained(client, tools=[TOOL])
        assert completion.choices[0].finish_reason == "length"

    @pytest.mark.parametrize(
        ("text", "cut"),
        [
            ('{"a": [1', True),
            ('{"a": "}', True),
            ('{"a": "\\"', True),
            ('{"a": tru', True),
            ("{'a': 1}", False),
            ("a text", False),
            ('{"a": 1}}', False),
            ("", False),
        ],
    )
    def test_are_known(self, text, cut):
        assert is_cut(text) == cut


class TestGemini:
    async def test_calls_without_arguments(self, serve):
        body = gemini_whole("", "STOP")
        body["candidates"][0]["content"]["parts"] = [*PARTS]
        whole = await whole_calls(await serve("gemini", body))
        streamed = await calls_of(await serve("gemini", [event(body)]))
        for calls in (whole, streamed):
            assert [(c.name, json.loads(c.arguments)) for c in calls] == [
                ("f", {}),
                ("g", {"a": 1}),
            ]


class TestAnthropic:
    def streamed(self, *blocks, reason):
        first, *_, end, stop = anthropic_streamed("", reason)
        pieces = [first]
        for index, block in enumerate(blocks):
            start = {"type": "content_block_start", "index": index, "content_block": block}
            pieces += [event(start), event({"type": "content_block_stop", "index": index})]
        return [*pieces, end, stop]

    async def test_input_that_comes_with_the_start(self, serve):
        pieces = self.streamed(USED, reason="tool_use")
        (made,) = await calls_of(await serve("anthropic", pieces))
        assert (made.id, made.name, json.loads(made.arguments)) == (
            "toolu_1",
            "f",
            {"city": "Oslo"},
        )

    async def test_no_input(self, serve):
        pieces = self.streamed(USED | {"input": {}}, reason="tool_use")
        (made,) = await calls_of(await serve("anthropic", pieces))
        assert made.arguments == "{}"

    async def test_what_the_vendor_calls_itself(self, serve):
        body = anthropic_whole("Found.", "tool_use")
        body["content"] = [SEARCHED, *body["content"], USED]
        (whole,) = await whole_calls(await serve("anthropic", body))
        pieces = self.streamed(SEARCHED, USED, reason="tool_use")
        (streamed,) = await calls_of(await serve("anthropic", pieces))
        assert whole.id == streamed.id == "toolu_1"


PIECE = st.tuples(
    st.none() | st.integers(0, 3),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "f", "g"]),
    st.sampled_from(["", "{}", '{"a"', ": 1}", '{"b": 2}']),
)


@given(st.lists(PIECE, max_size=8))
def test_whatever_comes_each_call_says_its_id_and_its_name_once(pieces):
    reader = ToolCallReader()
    deltas = [d for d in (reader.read(CallPiece(*piece)) for piece in pieces) if d is not None]
    deltas += reader.close()
    ids = [d.id for d in deltas if d.id]
    indices = sorted({d.index for d in deltas})
    assert len(set(ids)) == len(ids) == len(indices)
    assert indices == list(range(len(indices)))
    for index in indices:
        assert sum(bool(d.name) for d in deltas if d.index == index) <= 1
        assert "".join(d.arguments for d in deltas if d.index == index)


GREP = {"type": "custom", "custom": {"name": "grep", "description": "Search."}}
WRITTEN = '{"pattern": "half'  # free text: it only looks like JSON that was cut
CUSTOM = {"id": "call_1", "type": "custom", "custom": {"name": "grep", "input": WRITTEN}}
FUNCTION = {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": OSLO}}
CUSTOM_CALLS = [
    {"index": 0, "id": "call_1", "type": "custom", "custom": {"name": "grep", "input": ""}},
    {"index": 0, "custom": {"input": WRITTEN[:7]}},
    {"index": 0, "custom": {"input": WRITTEN[7:]}},
    {"index": 1, **FUNCTION},
]


class TestCustomTools:
    """OpenAI's tools whose input is free text."""

    @pytest.mark.parametrize("finish", ["tool_calls", "stop"])
    @pytest.mark.parametrize("wire", ["openai", "azure", "openai_compatible"])
    async def test_whole(self, serve, wire, finish):
        client = await serve(wire, with_calls(CUSTOM, FUNCTION, finish=finish))
        choice = (await client.chat(asking(tools=[GREP, TOOL]))).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.tool_calls == (
            ToolCall("call_1", "grep", WRITTEN, "custom"),
            ToolCall("call_2", "f", OSLO),
        )

    async def test_nothing_written_is_no_json(self, serve):
        empty = CUSTOM | {"custom": {"name": "grep", "input": ""}}
        client = await serve("openai", with_calls(empty))
        calls = (await client.chat(asking(tools=[GREP]))).choices[0].tool_calls
        assert calls == (ToolCall("call_1", "grep", "", "custom"),)
        client = await serve("openai", with_deltas({"index": 0, **empty}))
        _, completion = await drained(client, tools=[GREP])
        assert completion.choices[0].tool_calls == calls

    @pytest.mark.parametrize("more", [{}, {"provider_specific": {"odd": [1]}}], ids=["", "odd"])
    @pytest.mark.parametrize("wire", ["openai", "azure", "openai_compatible"])
    async def test_streamed(self, serve, wire, more):
        pieces = [delta(tool_calls=[c], **more) for c in CUSTOM_CALLS]
        client = await serve(wire, [*pieces, openai_piece(None, "tool_calls"), DONE])
        chunks, completion = await drained(client, tools=[GREP, TOOL])
        calls = completion.choices[0].tool_calls
        assert calls == (
            ToolCall("call_1", "grep", WRITTEN, "custom"),
            ToolCall("call_2", "f", OSLO),
        )
        assert seen(chunks) == [(c.id, c.name, c.arguments) for c in calls]
        types = [(p.index, p.type) for chunk in chunks for p in chunk.tool_calls]
        assert set(types) == {(0, "custom"), (1, "function")}

    async def test_the_history_goes_back_as_it_came(self, simulator, connect):
        for vendor in (simulator.openai, simulator.azure):
            vendor.behave(None)
            client = connect(vendor.config())
            answered = {"role": "assistant", "content": None, "tool_calls": [CUSTOM, FUNCTION]}
            results = [
                {"role": "tool", "tool_call_id": c["id"], "content": "x"}
                for c in (CUSTOM, FUNCTION)
            ]
            asked = {"role": "user", "content": "hi"}
            choice = {"type": "custom", "custom": {"name": "grep"}}
            request = ChatRequest(
                (asked, answered, *results), params={"tools": [GREP, TOOL], "tool_choice": choice}
            )
            await client.chat(request)
            await rest_of(await client.stream(request))
            for received in vendor.received:
                assert received.body["messages"][1]["tool_calls"] == [CUSTOM, FUNCTION]
                assert received.body["tools"] == [GREP, TOOL]
                assert received.body["tool_choice"] == choice

    @pytest.mark.parametrize("wire", ["gemini", "anthropic"])
    async def test_other_wires_are_passed_over(self, simulator, connect, wire):
        vendor = getattr(simulator, wire)
        answered = {"role": "assistant", "content": None, "tool_calls": [CUSTOM]}
        result = {"role": "tool", "tool_call_id": "call_1", "content": "x"}
        asked = {"role": "user", "content": "hi"}
        refused = Failure(FailureKind.UNSUPPORTED, code="custom_tools", param="tools")
        for request in (asking(tools=[GREP]), ChatRequest((asked, answered, result))):
            for dropping in ("hints", True):
                client = connect(vendor.config(), drop_unsupported_params=dropping)
                assert await failure_of(client.chat(request)) == refused
                assert await failure_of(client.stream(request)) == refused
        assert vendor.request_count == 0
