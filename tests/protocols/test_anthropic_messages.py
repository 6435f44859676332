"""Anthropic's Messages: any conversation is read, and any answer is written, whole and streamed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway.errors import RequestRejectedError
from aigateway.messages import (
    ChatResponse,
    Choice,
    Chunk,
    Completion,
    Opening,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from aigateway.protocols.anthropic_messages import MESSAGES
from aigateway.request.checks import check_messages
from aigateway.request.validate import chat_request
from aigateway.settings import GatewaySettings
from tests.protocols.events import put_together, read_events

USER = {"role": "user", "content": "hi"}
THINKS = {"type": "enabled", "budget_tokens": 1024}


def read(messages=(USER,), **fields):
    return MESSAGES.read({"model": "m", "max_tokens": 9, "messages": [*messages], **fields}, {})


# ── any conversation is read ─────────────────────────────────────────────────────────────────

TEXTS = st.text(max_size=5)
MARKS: Any = st.just({}) | st.just({"cache_control": {"type": "ephemeral"}})
TEXT = st.builds(lambda text, mark: {"type": "text", "text": text} | mark, TEXTS, MARKS)
SOURCES = st.sampled_from(
    [
        {"type": "base64", "media_type": "image/png", "data": "iVBO"},
        {"type": "url", "url": "https://x.test/a"},
        {"type": "file", "file_id": "file_1"},
    ]
)
IMAGE = st.builds(lambda source, mark: {"type": "image", "source": source} | mark, SOURCES, MARKS)
DOCUMENT = st.builds(
    lambda source, more: {"type": "document", "source": source} | more,
    SOURCES
    | st.builds(lambda text: {"type": "text", "media_type": "text/plain", "data": text}, TEXTS)
    | st.builds(lambda parts: {"type": "content", "content": parts}, st.lists(TEXT, max_size=2)),
    st.fixed_dictionaries({}, optional={"title": TEXTS, "context": st.none() | TEXTS}),
)
FOUND = st.builds(
    lambda text: {"type": "search_result", "source": "s", "title": "t", "content": [text]}, TEXT
)
OTHER = st.sampled_from([{"type": "container_upload", "file_id": "f"}, {"type": "later", "x": [1]}])
SHOWN = st.one_of(TEXT, IMAGE, DOCUMENT, FOUND, OTHER)
THOUGHT = st.one_of(
    st.builds(
        lambda text, signed: {"type": "thinking", "thinking": text, "signature": signed},
        TEXTS,
        st.sampled_from(["", "c2lnbmVk", "aigateway1.e30=", "aigateway1.x", "aigateway1.\xff"]),
    ),
    st.builds(
        lambda data: {"type": "redacted_thinking", "data": data},
        st.sampled_from(["c2lnbmVk", "aigateway1.eyJyIjoxLCJjIjpbMV0sInMiOlsxXX0=", ""]),
    ),
)
INPUTS = st.dictionaries(TEXTS, TEXTS | st.lists(st.integers(-9, 9), max_size=2), max_size=2)


@st.composite
def conversations(draw):
    messages = []
    for turn in range(draw(st.integers(1, 3))):
        said = [*draw(st.lists(SHOWN, max_size=3)), {"type": "text", "text": "hi"}]
        messages.append({"role": "user", "content": draw(st.sampled_from(["hi", said]))})
        inputs = draw(st.lists(INPUTS, max_size=2))
        names = [f"toolu_{turn}_{index}" for index in range(len(inputs))]
        calls = [
            {"type": "tool_use", "id": name, "name": "f" * draw(st.integers(1, 90)), "input": given}
            for name, given in zip(names, inputs, strict=True)
        ]
        if draw(st.booleans()):
            reminder = {"type": "text", "text": "REMINDER"}
            messages.append({"role": "system", "content": [reminder]})
        blocks = draw(st.lists(TEXT | THOUGHT | OTHER, max_size=3)) + calls
        messages.append({"role": "assistant", "content": blocks or "hello"})
        if calls:
            shown = st.none() | TEXTS | st.lists(SHOWN, max_size=2)
            messages.append(
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": name,
                            "content": draw(shown),
                            "is_error": draw(st.booleans()),
                        }
                        for name in names
                    ],
                }
            )
        elif not any(block.get("text", "x") for block in blocks) and blocks:
            messages[-1]["content"] = "hello"
    return messages


@given(conversations())
def test_any_conversation_is_a_chat(messages):
    before = json.dumps(messages)
    asked = read(messages)
    assert json.dumps(messages) == before
    check_messages(asked.messages)  # as strict as for any chat
    chat_request(asked.messages, params={}, native=asked.native, settings=GatewaySettings())
    named = [b for m in messages if isinstance(m["content"], list) for b in m["content"]]
    calls = [call["id"] for m in asked.messages for call in m.get("tool_calls", ())]
    results = [m["tool_call_id"] for m in asked.messages if m["role"] == "tool"]
    assert calls == results == [b["id"] for b in named if b["type"] == "tool_use"]
    texts = [b["text"] for b in named if b["type"] == "text"]
    sent = json.dumps(asked.messages)
    assert all(json.dumps(text)[1:-1] in sent for text in texts)
    assert "aigateway1" not in sent
    foreign = {"container_upload", "later"}
    inner = [b for block in named for b in (block, *(block.get("content") or ())) if b is not block]
    every = [b for b in (*named, *inner) if isinstance(b, dict)]
    needs = any(b["type"] in foreign or b.get("source") == FILE for b in every)
    assert bool(asked.native.only) >= needs


FILE = {"type": "file", "file_id": "file_1"}


# ── any answer is written ────────────────────────────────────────────────────────────────────

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
CALLS = st.builds(
    lambda name, given, signed: (name, json.dumps(given), signed),
    st.sampled_from(["call_0", "functions.f:0", "call_1234567890", "x" * 99, "é", "aigw_1"]),
    INPUTS,
    st.none() | st.just("SIGNED"),
)
ANTHROPICS = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]


def pieces(text, at):
    return [part for part in (text[:at], text[at:]) if part]


@st.composite
def answers(draw):
    """A whole answer, and the chunks of a stream with the same content."""
    chunks, reasoning, thinking = [], draw(st.none() | WORDS), None
    if draw(st.booleans()):
        reasoning, thinking = "Hm.", json.dumps(ANTHROPICS)
    if reasoning:
        chunks += [Chunk(reasoning=piece) for piece in pieces(reasoning, draw(st.integers(0, 5)))]
    if thinking:
        chunks.append(Chunk(thinking_json=thinking))
    text = draw(st.just("") | WORDS)
    chunks += [Chunk(piece) for piece in pieces(text, draw(st.integers(0, 5)))]
    refusal = draw(st.none() | WORDS)
    chunks += [Chunk(refusal=refusal)] if refusal else []
    images = tuple(draw(st.lists(st.just("https://x.test/i"), max_size=2)))
    chunks += [Chunk(images=images)] if images else []
    calls = draw(st.lists(CALLS, max_size=3, unique_by=lambda call: call[0]))
    deltas = []
    for index, (name, arguments, signed) in enumerate(calls):
        deltas.append([ToolCallDelta(index, name, "f", thought_signature=signed)])
        cut = pieces(arguments, draw(st.integers(0, 5)))
        deltas[-1] += [ToolCallDelta(index, arguments=piece) for piece in cut]
    if draw(st.booleans()):  # one call after the other, or all at once
        chunks += [Chunk(tool_calls=(delta,)) for call in deltas for delta in call]
    else:
        longest = max(map(len, deltas), default=0)
        for at in range(longest):
            chunks.append(Chunk(tool_calls=tuple(call[at] for call in deltas if at < len(call))))
    signatures = tuple(draw(st.just([]) | st.just(["OF_TEXT"])))
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter", None]))
    chunks.append(Chunk(thought_signatures=signatures, finish_reason=finish, usage=Usage(9, 2)))
    made = tuple(ToolCall(n, "f", given, thought_signature=s) for n, given, s in calls)
    choice = Choice(
        text, finish, made, reasoning, refusal,
        images=images, thinking_json=thinking, thought_signatures=signatures,
    )  # fmt: skip
    completion = Completion(draw(st.sampled_from(["", "msg_1", "x"])), "m", (choice,), Usage(9, 2))
    return ChatResponse(completion, "p", request_id="r"), chunks


@given(answers(), st.sampled_from([None, THINKS, THINKS | {"display": "omitted"}]))
def test_the_events_of_a_stream_are_the_whole_message(answer, thinking):
    response, chunks = answer
    asked = read(thinking=thinking)
    whole = MESSAGES.write(response, asked)
    writer = MESSAGES.writer(Opening("p", "m", response.completion.id), asked, "r")
    events = [event for chunk in chunks for event in writer.events(chunk)]
    events += writer.end(response)
    assert put_together(read_events(b"".join(event.raw for event in events).decode())) == whole
    if any(block["type"] in {"text", "tool_use"} for block in whole["content"]):
        assert whole["content"][-1]["type"] in {"text", "tool_use"}
    names = [block["id"] for block in whole["content"] if block["type"] == "tool_use"]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 64 for name in names)
    if whole["content"]:
        goes_back_unchanged(response, asked, whole)


def goes_back_unchanged(response, asked, whole):
    """What the vendor wants back is in the next request as the vendor has written it."""
    results = [
        {"type": "tool_result", "tool_use_id": block["id"]}
        for block in whole["content"]
        if block["type"] == "tool_use"
    ]
    turn = {"role": "assistant", "content": whole["content"]}
    again = read(
        [USER, turn, {"role": "user", "content": [*results, {"type": "text", "text": "x"}]}]
    )
    (said,) = [m for m in again.messages if m["role"] == "assistant"]
    choice = response.choices[0]
    for call, back in zip(choice.tool_calls, said.get("tool_calls", ()), strict=True):
        assert back["id"] == call.id or len(call.id) > 38
        assert json.loads(back["function"]["arguments"]) == json.loads(call.arguments)
        signed = back.get("provider_specific_fields", {}).get("thought_signature")
        assert signed == call.thought_signature
    if choice.thinking_json:
        assert said["thinking_blocks"] == ANTHROPICS
    elif choice.reasoning and (choice.tool_calls or "display" not in asked.native.body):
        shown = (asked.native.body.get("thinking") or {"display": 1}).get("display") is None
        if shown or choice.tool_calls:
            assert said["reasoning_content"] == choice.reasoning


def test_text_in_the_middle_of_a_call_comes_after_it():
    asked = read()
    writer = MESSAGES.writer(Opening("p", "m", "x"), asked, "r")
    deltas = [ToolCallDelta(0, "call_123456", "f", '{"a": '), ToolCallDelta(0, arguments="1}")]
    chunks = [Chunk(tool_calls=(deltas[0],)), Chunk("Hi"), Chunk(tool_calls=(deltas[1],))]
    call = ToolCall("call_123456", "f", '{"a": 1}')
    response = ChatResponse(Completion("x", "m", (Choice("Hi", "tool_calls", (call,)),)), "p")
    events = [event for chunk in chunks for event in writer.events(chunk)]
    message = put_together(
        read_events(b"".join(e.raw for e in (*events, *writer.end(response))).decode())
    )
    assert [block.get("input", block.get("text")) for block in message["content"]] == [
        {"a": 1},
        "Hi",
    ]


def test_system_messages_go_where_every_server_takes_them():
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
        {"type": "text", "text": "Be brief."},
    ]
    first = {"role": "system", "content": "Be kind."}
    later = {"role": "system", "content": [{"type": "text", "text": "Be quick."}]}
    answer = {"role": "assistant", "content": "Hello."}
    assert read([USER, first, answer, later, USER], system=system).messages == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        USER,
        answer,
        {"role": "user", "content": "<system-reminder>\n\nBe quick.\n\n</system-reminder>"},
        USER,
    ]


@pytest.mark.parametrize(
    ("tool", "only"),
    [
        ({"name": "f", "input_schema": {}}, None),
        ({"type": "custom", "name": "f", "input_schema": {}}, None),
        ({"type": "bash_20250124", "name": "bash"}, "the tool bash_20250124"),
        ({"type": "web_search_20250305", "name": "web_search"}, "the tool web_search_20250305"),
    ],
)
def test_what_only_anthropic_knows(tool, only):
    assert read(tools=[tool]).native.only == only


def test_a_result_without_its_call_is_refused_by_name():
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    with pytest.raises(RequestRejectedError) as caught:
        read([{"role": "user", "content": [result]}])
    assert caught.value.param == "messages.0.content.0.tool_use_id"
