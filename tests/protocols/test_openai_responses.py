"""OpenAI's Responses as a chat and back: nothing is lost, and events agree with the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

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
from aigateway.protocols.openai_responses import RESPONSES
from aigateway.request.checks import check_messages
from aigateway.request.stream import endings, pieces

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
WORDS = st.text('abc xyz\n"é', min_size=1, max_size=12)

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}},
    {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
    {
        "type": "namespace",
        "name": "a very long name of a namespace!",
        "tools": [
            {"type": "custom", "name": "with a very long name, and signs that no vendor takes"}
        ],
    },
    {"type": "custom", "name": "n__f"},
    {"type": "local_shell"},
    {"type": "apply_patch"},
]


def read(**body):
    return RESPONSES.read({"model": "m", "tools": TOOLS, **body}, {})


NAMES = {(tool["function"]["name"]): tool for tool in read(input="x").options["tools"]}


def test_names_of_tools_are_fit_and_different():
    assert len(NAMES) == len(TOOLS)
    assert all(
        len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in NAMES
    )


# ── requests ─────────────────────────────────────────────────────────────────────────────────

PARTS = st.one_of(
    st.builds(lambda text: {"type": "input_text", "text": text}, TEXTS),
    st.just({"type": "input_image", "image_url": "data:image/png;base64,aa"}),
    st.just({"type": "input_file", "file_data": "data:application/pdf;base64,aa"}),
    st.just({"type": "input_audio", "input_audio": {"data": "aa", "format": "mp3"}}),
)
SAID = st.one_of(TEXTS, st.lists(PARTS, min_size=1, max_size=3))
ANSWERS = st.one_of(
    TEXTS,
    st.lists(
        st.one_of(
            st.builds(lambda text: {"type": "output_text", "text": text}, TEXTS),
            st.builds(lambda text: {"type": "refusal", "refusal": text}, TEXTS),
        ),
        min_size=1,
        max_size=2,
    ),
)
CALLS = st.one_of(
    st.just({"type": "function_call", "name": "f", "arguments": "{}"}),
    st.just({"type": "function_call", "name": "f", "namespace": "n", "arguments": "{}"}),
    st.just({"type": "custom_tool_call", "name": "n__f", "input": "x"}),
    st.just({"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"]}}),
)
OUTPUTS = {"function_call": "function_call_output"}


@st.composite
def conversations(draw):
    """Items in any order in which a client may send them."""
    items: list[dict[str, Any]] = [{"role": "user", "content": draw(SAID)}]
    for turn in range(draw(st.integers(0, 4))):
        role = draw(st.sampled_from(["user", "assistant", "developer", "calls", "reasoning"]))
        if role == "calls":
            calls = draw(st.lists(CALLS, min_size=1, max_size=3))
            ids = [f"call_{turn if draw(st.booleans()) else 0}_{n}" for n in range(len(calls))]
            results = [
                {"type": f"{call['type']}_output", "call_id": name, "output": draw(TEXTS)}
                for call, name in zip(calls, ids, strict=True)
            ]
            made = [{**call, "call_id": name} for call, name in zip(calls, ids, strict=True)]
            each = [item for pair in zip(made, results, strict=True) for item in pair]
            items += draw(st.sampled_from([[*made, *results], [*made, *reversed(results)], each]))
        elif role == "reasoning":
            items.append({"type": "reasoning", "summary": [], "encrypted_content": "openai's"})
        else:
            said = draw(ANSWERS if role == "assistant" else SAID)
            items.append({"type": "message", "role": role, "content": said})
    return items


@given(conversations(), st.none() | TEXTS)
def test_any_conversation_becomes_a_chat(items, instructions):
    request = read(input=items, instructions=instructions)
    check_messages(request.messages)
    assert request.native.only is None
    said = json.dumps(request.messages, ensure_ascii=False)
    assert all(json.dumps(text, ensure_ascii=False)[1:-1] in said for text in _texts(items))
    # Each result follows its call, and what the model says after it is another message.
    waiting: list[str] = []
    for message in request.messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls") or ()]
            names = [call["function"]["name"] for call in message.get("tool_calls") or ()]
            assert set(names) <= NAMES.keys()
    assert not waiting


def _texts(value):
    if isinstance(value, dict):
        kept = {"text", "refusal", "output", "content"}
        return [
            found
            for name, held in value.items()
            if name in kept
            for found in ([held] if isinstance(held, str) else _texts(held))
        ]
    return [found for held in value for found in _texts(held)] if isinstance(value, list) else []


# ── answers ──────────────────────────────────────────────────────────────────────────────────

OPENING = Opening("p", "m", created=7)
MAYBE = st.none() | WORDS


@st.composite
def completions(draw):
    kind = draw(st.sampled_from(["plain", "anthropic", "gemini"]))
    blocks = [{"type": "thinking", "thinking": draw(WORDS), "signature": "s"}]
    blocks += [{"type": "redacted_thinking", "data": "d"}] if draw(st.booleans()) else []
    calls = tuple(
        ToolCall(
            f"call_{index}",
            name,
            json.dumps({"input": draw(WORDS)}),
            thought_signature=draw(MAYBE) if kind == "gemini" else None,
        )
        for index, name in enumerate(
            draw(st.lists(st.sampled_from([*NAMES, "unknown"]), max_size=3))
        )
    )
    choice = Choice(
        draw(st.just("") | WORDS),
        draw(st.sampled_from(["stop", "length", "content_filter", "tool_calls"])),
        calls,
        reasoning=draw(MAYBE),
        refusal=draw(MAYBE),
        thinking_json=json.dumps(blocks) if kind == "anthropic" else None,
        thought_signatures=("t",) if kind == "gemini" and draw(st.booleans()) else (),
        images=("data:image/png;base64,aa",) if draw(st.booleans()) else (),
        sources_json=json.dumps(
            {"annotations": [{"type": "url_citation", "url_citation": {"url": "http://a"}}]}
        )
        if draw(st.booleans())
        else None,
    )
    return Completion("id", "m", (choice,), Usage(1, 2, 3, 1, 1), created=7)


def chunks_of(completion: Completion, draw):
    """The chunks of a stream, with arguments in pieces and parts of calls mixed."""
    deltas: list[Chunk] = []
    for chunk in pieces(completion):
        if not chunk.tool_calls:
            yield chunk
            continue
        (call,) = chunk.tool_calls
        cut = draw(st.integers(0, len(call.arguments)))
        yield replace(chunk, tool_calls=(replace(call, arguments=call.arguments[:cut]),))
        rest = ToolCallDelta(call.index, arguments=call.arguments[cut:], type=call.type)
        deltas.append(Chunk(tool_calls=(rest,)))
    yield from draw(st.permutations(deltas))
    yield from endings(completion)


def without_id(item):
    return {name: value for name, value in item.items() if name != "id"}


@given(completions(), st.data())
def test_the_events_put_together_are_the_whole_answer(completion, data):
    request = read(input="x", stream=True, temperature=0.5)
    response = ChatResponse(completion, "p")
    writer = RESPONSES.writer(OPENING, request, "r")
    events = [event for chunk in chunks_of(completion, data.draw) for event in writer.events(chunk)]
    events += writer.end(response)
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert all(event.data["type"] == event.name for event in events)

    last = events[-1].data["response"]
    output = put_together([event.data for event in events])
    assert output == last["output"]
    whole = RESPONSES.write(response, request)
    assert [*map(without_id, whole["output"])] == [*map(without_id, output)]
    different = {"id", "output"}
    assert {n: v for n, v in whole.items() if n not in different} == {
        n: v for n, v in last.items() if n not in different
    }
    assert events[-1].name == f"response.{whole['status']}"
    assert len({item["id"] for item in output}) == len(output)


def put_together(events):
    """What a client has that looks at the events of items, parts and deltas alone."""
    items: dict[int, dict[str, Any]] = {}
    written: dict[tuple[Any, ...], str] = {}
    for event in events:
        kind = event["type"].removeprefix("response.")
        where = event.get("output_index"), event.get("content_index"), event.get("summary_index")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items[event["output_index"]] = event["item"]
        elif kind.endswith(".delta"):
            assert event["item_id"] == items[event["output_index"]]["id"]
            written[where] = written.get(where, "") + event["delta"]
        elif kind.endswith("part.done"):
            part = event["part"]
            assert part.get("text", part.get("refusal")) == written.get(where, "")
        elif kind == "output_item.done":
            assert event["item"]["id"] == items[event["output_index"]]["id"]
            given = event["item"].get("arguments", event["item"].get("input"))
            if isinstance(given, str):
                assert given == written.get(where, "")
            items[event["output_index"]] = event["item"]
    return [items[index] for index in sorted(items)]


@given(completions())
def test_an_answer_that_is_sent_back_is_the_same(completion):
    (choice,) = completion.choices
    request = read(input="x")
    output = RESPONSES.write(ChatResponse(completion, "p"), request)["output"]
    results = [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "done"}
        for item in output
        if "call_id" in item
    ]
    again = read(input=[{"role": "user", "content": "x"}, *output, *results])
    said = [message for message in again.messages if message["role"] == "assistant"]
    assert "\n\n".join(message["content"] or "" for message in said) == choice.text
    assert "".join(message.get("refusal", "") for message in said) == (choice.refusal or "")
    calls = [call for message in said for call in message.get("tool_calls") or ()]
    assert [call["function"]["name"] for call in calls] == [call.name for call in choice.tool_calls]
    signed = [call.get("provider_specific_fields", {}).get("thought_signature") for call in calls]
    assert signed == [call.thought_signature for call in choice.tool_calls]
    thought = {name: value for message in said for name, value in message.items()}
    if choice.thinking_json is not None and said:
        assert thought["thinking_blocks"] == choice.thinking_blocks
    elif choice.reasoning is not None and said:
        assert thought["reasoning_content"] == choice.reasoning
    if choice.thought_signatures and said:
        beside = thought["provider_specific_fields"]
        assert beside == {"thought_signatures": list(choice.thought_signatures)}
