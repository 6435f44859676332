"""Streams over the direct lane, as servers really send them: in good order and in bad."""

import asyncio
import gc
import json
import logging

import pytest
from aiohttp import web

from aigateway import AsyncGateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import FailureKind
from aigateway.messages import Chunk, Usage
from aigateway.settings import LLMConfig, ProviderType
from aigateway.simulator import Answer, Fault, ToolCall
from aigateway.wires.client import VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.loading import load_litellm
from aigateway.wires.stream_reading import StreamReading
from tests.processes import PATIENCE
from tests.wires.calls import asking, ours
from tests.wires.shapes import SCHEMA, TOOL

OPENAI, ANTHROPIC, GEMINI = ProviderType.OPENAI, ProviderType.ANTHROPIC, ProviderType.GEMINI
MODELS = {OPENAI: "gpt-4o-mini", ANTHROPIC: "claude-haiku-4-5", GEMINI: "gemini-2.5-flash"}
BREAK = object()
"""In place of a piece: the connection is cut there."""


def sse(*events):
    return b"".join(
        b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n"
        for e in events
    )


def chunk(delta=None, finish=None, index=0, **more):
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {"id": "1", "created": 7, "model": "m", "choices": [choice]} | more


def says(text, **more):
    return chunk({"content": text}, **more)


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COUNT = {"id": "1", "model": "m", "choices": [], "usage": USAGE}
DONE = b"[DONE]"

START = {
    "type": "message_start",
    "message": {"id": "1", "model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def block(index, *deltas, **content):
    yield {"type": "content_block_start", "index": index, "content_block": content}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def end(reason, **usage):
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2, **usage}}


def partial(*parts, finish=None, **more):
    candidate = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "m", "responseId": "1"} | more


servers: dict[DirectClient, web.Server] = {}
"""Whom each client of `serve` talks to."""


@pytest.fixture
async def serve():
    """Make clients of a server that sends just these pieces."""
    closing = []
    servers.clear()

    async def make(*pieces, provider=OPENAI, model=None, stays=False, headers=None):
        async def answer(request):
            response = web.StreamResponse(headers=headers or {"content-type": "text/event-stream"})
            await response.prepare(request)
            for piece in pieces:
                if piece is BREAK:
                    await asyncio.sleep(0.01)
                    request.transport.abort()
                    break
                await response.write(piece)
                await asyncio.sleep(0)
            if stays:
                await asyncio.Event().wait()
            return response

        server = web.Server(answer, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        client = DirectClient(
            LLMConfig(
                provider,
                model or MODELS[provider],
                api_key="k",
                api_base=f"http://{host}:{port}",
            ),
            SYSTEM_CLOCK,
        )
        servers[client] = server
        closing.append((client, runner))
        return client

    yield make
    for client, runner in closing:
        await client.aclose()
        await runner.cleanup()


async def read_out(stream, said):
    while (chunks := await stream.read()) is not None:
        said += chunks


async def whole(client, request=None):
    stream = await client.stream(request or asking())
    said: list[Chunk] = []
    await read_out(stream, said)
    assert stream.finished
    assert await stream.read() is None
    completion = stream.completion()
    await stream.aclose()
    for index, choice in enumerate(completion.choices):
        assert "".join(c.text for c in said if c.index == index) == choice.text
    return completion


async def broken(client, request=None):
    """What came before the failure, and the failure, with nothing foreign behind it."""
    stream = await client.stream(request or asking())
    said: list[Chunk] = []
    try:
        with pytest.raises(VendorCallError) as caught:
            await read_out(stream, said)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
        traceback = caught.value.__traceback__
        while traceback is not None:
            if ours(traceback.tb_frame):
                assert "SECRET" not in repr(traceback.tb_frame.f_locals)
            traceback = traceback.tb_next
    finally:
        await stream.aclose()
    return "".join(chunk.text for chunk in said), caught.value.failure


# ── good order, as servers differ ────────────────────────────────────────────────────────────────

FINE = {
    "openai": sse(says("Hi"), says(" you"), chunk(finish="stop"), COUNT, DONE),
    "no-done": sse(says("Hi"), says(" you"), chunk(finish="stop"), COUNT),
    "usage-with-the-end": sse(says("Hi you"), chunk(finish="stop", usage=USAGE), DONE),
    "usage-in-every-chunk": sse(says("Hi", usage=USAGE), says(" you", finish="stop", usage=USAGE)),
    "crlf": sse(says("Hi you", finish="stop"), COUNT, DONE).replace(b"\n", b"\r\n"),
    "comments": b": hello\n\n" + sse(says("Hi you", finish="stop"), COUNT) + b": bye\n\n",
    "no-space": sse(says("Hi you", finish="stop"), COUNT, DONE).replace(b"data: ", b"data:"),
    "no-last-line": sse(says("Hi you", finish="stop"), COUNT).removesuffix(b"\n"),
    "byte-order-mark": b"\xef\xbb\xbf" + sse(says("Hi you", finish="stop"), COUNT, DONE),
    "unknown-fields": sse(
        says("Hi", obfuscation="x", system_fingerprint=None),
        chunk({"content": " you", "annotations": []}),
        chunk(finish="stop"),
        COUNT,
        DONE,
    ),
    "other-finish": sse(says("Hi you"), chunk(finish="eos_token"), COUNT, DONE),
    "junk-after-the-end": sse(says("Hi you", finish="stop"), COUNT, b"{nonsense", DONE),
    "error-after-the-end": sse(says("Hi you", finish="stop"), COUNT, {"error": {"code": 500}}),
    "junk-after-done": sse(says("Hi you", finish="stop"), COUNT, DONE, b"{nonsense"),
}


@pytest.mark.parametrize("stream", FINE)
async def test_streams_in_good_order(serve, stream):
    completion = await whole(await serve(FINE[stream]))
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason) == ("Hi you", "stop")
    assert (completion.id, completion.model) == ("1", "m")
    assert completion.usage == Usage(3, 2, 5)
    assert completion.cost_usd == pytest.approx(3 * 0.15e-6 + 2 * 0.6e-6)


async def test_a_stream_cut_at_every_byte(serve):
    body = sse(says("Hi"), says(" you", finish="stop"), COUNT, DONE)
    client = await serve(*(body[i : i + 1] for i in range(len(body))))
    assert (await whole(client)).choices[0].text == "Hi you"


async def test_ordinary_streams_need_no_litellm(vendor, monkeypatch):
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    await client.prepare()
    monkeypatch.setattr(StreamReading, "_parse", None)
    vendor.answer("one two three")
    completion = await whole(client)
    assert completion.choices[0].text == "one two three"
    assert completion.usage.total_tokens
    assert completion.cost_usd
    await client.aclose()


async def test_no_usage_is_no_price(serve):
    completion = await whole(await serve(sse(says("Hi", finish="stop"), DONE)))
    assert (completion.usage, completion.cost_usd) == (Usage(), None)


async def test_the_end_does_not_wait_for_the_server(serve):
    client = await serve(sse(says("Hi", finish="stop"), DONE), stays=True)
    async with asyncio.timeout(PATIENCE):
        assert (await whole(client)).choices[0].text == "Hi"


async def test_a_break_after_the_end_harms_nobody(serve):
    completion = await whole(await serve(sse(says("Hi", finish="stop")), BREAK))
    assert completion.choices[0].text == "Hi"


async def test_several_answers_one_after_the_other(serve):
    client = await serve(
        sse(says("a"), chunk(finish="stop")),
        sse(says("b", index=1), chunk(finish="length", index=1), COUNT, DONE),
    )
    stream = await client.stream(asking(n=2))
    seen = []
    while await stream.read() is not None:
        seen.append(stream.finished)
    assert stream.finished
    choices = stream.completion().choices
    assert [(c.text, c.finish_reason) for c in choices] == [("a", "stop"), ("b", "length")]
    await stream.aclose()


async def test_a_break_between_two_answers_is_a_break(serve):
    client = await serve(sse(says("a"), chunk(finish="stop")), BREAK)
    assert (await broken(client, asking(n=2)))[1].kind is FailureKind.CONNECTION


async def test_logprobs_are_collected(serve):
    first, second = ({"content": [{"token": t, "logprob": -1}], "refusal": None} for t in "ab")
    events = [says("a"), says("b", finish="stop")]
    events[0]["choices"][0]["logprobs"] = first
    events[1]["choices"][0]["logprobs"] = second
    completion = await whole(await serve(sse(*events, DONE)), asking(logprobs=True))
    content = json.loads(completion.choices[0].logprobs_json or "")["content"]
    assert [token["token"] for token in content] == ["a", "b"]


async def test_refusals_and_reasoning(serve):
    completion = await whole(
        await serve(
            sse(
                chunk({"reasoning_content": "Hm"}),
                chunk({"reasoning": "m"}),
                chunk({"refusal": "No."}),
                chunk(finish="stop"),
            )
        )
    )
    assert (completion.choices[0].reasoning, completion.choices[0].refusal) == ("Hmm", "No.")


def piece(index, **call):
    function = {name: call.pop(name) for name in ("name", "arguments") if name in call}
    place = {} if index is None else {"index": index}
    return chunk({"tool_calls": [{**place, **call, "function": function}]})


CALLS = {
    "openai": [
        piece(0, id="x", type="function", name="f", arguments=""),
        piece(0, arguments='{"a"'),
        piece(1, id="y", type="function", name="g", arguments="{}"),
        piece(0, arguments=": 1}"),
    ],
    "one-index-for-all": [
        piece(0, id="x", name="f", arguments='{"a": 1}'),
        piece(0, id="y", name="g", arguments="{}"),
    ],
    "no-index": [
        piece(None, id="x", name="f", arguments='{"a"'),
        piece(None, arguments=": 1}"),
        piece(None, id="y", name="g", arguments="{}"),
    ],
    "the-id-in-every-piece": [
        piece(0, id="x", name="f", arguments='{"a"'),
        piece(0, id="x", arguments=": 1}"),
        piece(1, id="y", name="g", arguments="{}"),
    ],
}


@pytest.mark.parametrize("pieces", CALLS)
@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
async def test_tool_calls_are_told_apart(serve, pieces, finish):
    client = await serve(sse(*CALLS[pieces], chunk(finish=finish), DONE))
    (choice,) = (await whole(client)).choices
    assert choice.finish_reason == "tool_calls"
    assert [(c.id, c.name, c.arguments) for c in choice.tool_calls] == [
        ("x", "f", '{"a": 1}'),
        ("y", "g", "{}"),
    ]


# ── the other wires ──────────────────────────────────────────────────────────────────────────────


async def test_anthropic_thinking_tools_and_caches(serve):
    start = json.loads(json.dumps(START))
    start["message"]["usage"] |= {"cache_read_input_tokens": 10, "cache_creation_input_tokens": 4}
    events = [
        start,
        *block(
            0,
            {"type": "thinking_delta", "thinking": "Hm"},
            {"type": "signature_delta", "signature": "x"},
            type="thinking",
            thinking="",
        ),
        *block(1, {"type": "text_delta", "text": "Look:"}, type="text", text=""),
        *block(
            2,
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"a": 1}'},
            type="tool_use",
            id="x",
            name="f",
            input={},
        ),
        *block(
            3,
            {"type": "input_json_delta", "partial_json": ""},
            type="tool_use",
            id="y",
            name="g",
            input={},
        ),
        end("tool_use"),
        STOP,
    ]
    completion = await whole(await serve(sse(*events), provider=ANTHROPIC))
    (choice,) = completion.choices
    assert (choice.text, choice.reasoning, choice.finish_reason) == ("Look:", "Hm", "tool_calls")
    assert [(c.id, c.name, c.arguments) for c in choice.tool_calls] == [
        ("x", "f", '{"a": 1}'),
        ("y", "g", "{}"),
    ]
    usage = completion.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (17, 10, 2)
    # 3 fresh, 10 read and 4 written at one dollar, a tenth and five quarters; answers at five.
    assert completion.cost_usd == pytest.approx((3 + 10 * 0.1 + 4 * 1.25 + 2 * 5) * 1e-6)


async def test_anthropic_json_as_a_tool_call_is_a_text(serve):
    events = [
        START,
        *block(
            0,
            {"type": "input_json_delta", "partial_json": '{"total"'},
            {"type": "input_json_delta", "partial_json": ": 4}"},
            type="tool_use",
            id="x",
            name="json_tool_call",
            input={},
        ),
        end("tool_use"),
        STOP,
    ]
    client = await serve(sse(*events), provider=ANTHROPIC, model="claude-3-haiku-20240307")
    (choice,) = (await whole(client, asking(response_format=SCHEMA))).choices
    assert json.loads(choice.text) == {"total": 4}
    assert (choice.finish_reason, choice.tool_calls) == ("stop", ())


async def test_anthropic_pings_and_unknown_events(serve):
    events = [
        START,
        {"type": "ping"},
        *block(0, {"type": "text_delta", "text": "Hi"}, type="text", text=""),
        {"type": "something_new"},
        {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 1}},
        end("stop_sequence"),
        STOP,
    ]
    completion = await whole(await serve(sse(*events), provider=ANTHROPIC))
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("Hi", "stop")
    assert completion.usage == Usage(3, 2, 5)


async def test_gemini_thoughts_calls_and_their_count(serve):
    call = {"functionCall": {"name": "f", "args": {"a": 1}}}
    usage = {"promptTokenCount": 3, "totalTokenCount": 3}
    full = {**usage, "candidatesTokenCount": 2, "thoughtsTokenCount": 4, "totalTokenCount": 9}
    events = [
        partial({"text": "Hm", "thought": True}, usageMetadata=usage),
        partial({"text": "Look:"}, usageMetadata=usage),
        partial(call, usageMetadata=usage),
        partial(call),
        partial({"text": ""}, finish="STOP", usageMetadata=full),
    ]
    completion = await whole(await serve(sse(*events), provider=GEMINI))
    (choice,) = completion.choices
    assert (choice.text, choice.reasoning, choice.finish_reason) == ("Look:", "Hm", "tool_calls")
    assert [(c.name, json.loads(c.arguments)) for c in choice.tool_calls] == [("f", {"a": 1})] * 2
    assert completion.usage == Usage(3, 6, 9, 0, 4)
    assert completion.cost_usd == pytest.approx(3 * 0.3e-6 + 6 * 2.5e-6)


@pytest.mark.parametrize("part", [{"text": "Hm", "thought": True}, {"text": "Hi"}])
async def test_gemini_content_is_no_end(serve, part):
    client = await serve(sse(partial(part)), provider=GEMINI)
    assert (await broken(client))[1].kind is FailureKind.BAD_ANSWER


async def test_gemini_withholds_an_answer(serve):
    cut_off = {"candidates": [{"index": 0, "finishReason": "SAFETY"}], "modelVersion": "m"}
    assert (await broken(await serve(sse(cut_off), provider=GEMINI)))[1].kind is (
        FailureKind.CONTENT_POLICY
    )
    partly = await whole(await serve(sse(partial({"text": "Hi"}), cut_off), provider=GEMINI))
    assert (partly.choices[0].text, partly.choices[0].finish_reason) == ("Hi", "content_filter")


# ── bad order ────────────────────────────────────────────────────────────────────────────────────

BAD = {
    "nothing": (OPENAI, b"", FailureKind.BAD_ANSWER),
    "only-comments": (OPENAI, b": hello\n\n: bye\n\n", FailureKind.BAD_ANSWER),
    "only-done": (OPENAI, sse(DONE), FailureKind.BAD_ANSWER),
    "no-end": (OPENAI, sse(says("SECRET")), FailureKind.BAD_ANSWER),
    "no-end-but-done": (OPENAI, sse(says("SECRET"), DONE), FailureKind.BAD_ANSWER),
    "corrupt": (OPENAI, sse(says("SECRET"), b"{SECRET"), FailureKind.BAD_ANSWER),
    "no-object": (OPENAI, sse(b'["SECRET"]'), FailureKind.BAD_ANSWER),
    "wrong-shape": (OPENAI, sse({"choices": "SECRET"}), FailureKind.BAD_ANSWER),
    "says-nothing": (OPENAI, sse(chunk(finish="stop"), DONE), FailureKind.BAD_ANSWER),
    "withheld": (OPENAI, sse(chunk(finish="content_filter")), FailureKind.CONTENT_POLICY),
    "html": (OPENAI, b"<html>SECRET</html>", FailureKind.BAD_ANSWER),
    "error": (
        OPENAI,
        sse(says("SECRET"), {"error": {"message": "SECRET", "code": "rate_limit_exceeded"}}),
        FailureKind.RATE_LIMITED,
    ),
    "error-as-text": (OPENAI, sse({"error": "SECRET"}), FailureKind.BAD_ANSWER),
    "old-error": (
        OPENAI,
        sse({"object": "error", "message": "SECRET", "code": 503}),
        FailureKind.SERVER_ERROR,
    ),
    "error-body": (
        OPENAI,
        b'{"error": {"message": "SECRET", "code": "insufficient_quota"}}',
        FailureKind.NO_CREDIT,
    ),
    "anthropic-error": (
        ANTHROPIC,
        b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n',
        FailureKind.SERVER_ERROR,
    ),
    "anthropic-no-end": (ANTHROPIC, sse(START, STOP), FailureKind.BAD_ANSWER),
    "gemini-error": (
        GEMINI,
        sse({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "SECRET"}}),
        FailureKind.RATE_LIMITED,
    ),
    "gemini-error-list": (
        GEMINI,
        b'[{"error": {"code": 503, "status": "UNAVAILABLE", "message": "SECRET"}}]',
        FailureKind.SERVER_ERROR,
    ),
}


@pytest.mark.parametrize("stream", BAD)
async def test_streams_in_bad_order(serve, stream):
    provider, body, kind = BAD[stream]
    said, failure = await broken(await serve(body, provider=provider))
    assert (failure.kind, failure.status) == (kind, 200)
    assert said == ("SECRET" if b'"content": "SECRET"' in body else "")


async def test_a_break_in_the_middle(serve):
    said, failure = await broken(await serve(sse(says("Hi")), BREAK))
    assert (said, failure.kind) == ("Hi", FailureKind.CONNECTION)


async def test_what_came_before_a_break_is_not_lost_to_one_who_reads_later(serve):
    client = await serve(sse(says("one"), says("two")), BREAK)
    stream = await client.stream(asking())
    while stream._content.exception() is None:  # noqa: ASYNC110 - the server is another party
        await asyncio.sleep(0.001)
    said: list[Chunk] = []
    with pytest.raises(VendorCallError) as caught:
        await read_out(stream, said)
    assert caught.value.failure.kind == "connection"
    assert [chunk.text for chunk in said] == ["one", "two"]
    assert stream.completion().choices[0].text == "onetwo"
    await stream.aclose()


async def test_an_event_without_end_is_no_answer(serve, monkeypatch):
    monkeypatch.setattr("aigateway.wires.stream_reading.LONGEST_EVENT", 1000)
    said, failure = await broken(await serve(sse(says("Hi")), b"data: " + b"x" * 2000))
    assert (said, failure.kind) == ("Hi", FailureKind.BAD_ANSWER)


async def test_an_answer_in_one_piece_is_an_answer(serve):
    body = {
        "id": "1",
        "created": 7,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}
        ],
        "usage": USAGE,
    }
    client = await serve(json.dumps(body).encode(), headers={"content-type": "application/json"})
    completion = await whole(client)
    assert (completion.choices[0].text, completion.usage) == ("4", Usage(3, 2, 5))
    assert completion.cost_usd is not None


async def test_what_says_nothing_has_been_counted(serve):
    stream = await (await serve(sse(chunk(finish="stop"), COUNT, DONE))).stream(asking())
    with pytest.raises(VendorCallError) as caught:
        await stream.read()
    answer = caught.value.answer
    assert answer is not None
    assert (answer.usage.total_tokens, bool(answer.cost_usd)) == (5, True)
    await stream.aclose()


# ── connections ──────────────────────────────────────────────────────────────────────────────────


async def settled(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the other side does not say when
            await asyncio.sleep(0.005)


async def test_a_whole_stream_gives_its_connection_back(vendor):
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    for _ in range(5):
        await whole(client)
        await asyncio.sleep(0.01)  # the last bytes of the body
    assert vendor.open_connections == 1
    await client.chat(asking())
    assert vendor.open_connections == 1
    await client.aclose()
    await settled(lambda: vendor.open_connections == 0)


async def test_a_stream_that_is_left_is_closed_at_once(vendor):
    vendor.behave(Fault.stall_stream(1))
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    stream = await client.stream(asking("one two three"))
    while not await stream.read():
        pass
    assert vendor.open_connections == 1
    await stream.aclose()
    await stream.aclose()
    await settled(lambda: vendor.open_connections == 0)
    assert stream.completion().choices[0].text == "one"
    await client.aclose()


async def test_a_read_that_is_cancelled_leaves_nothing(vendor):
    vendor.behave(Fault.stall_stream(0))
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    stream = await client.stream(asking())
    before = len(asyncio.all_tasks())
    reading = asyncio.create_task(read_out(stream, []))
    await asyncio.sleep(0.02)
    reading.cancel()
    await asyncio.wait([reading])
    await stream.aclose()
    await settled(lambda: vendor.open_connections == 0)
    assert len(asyncio.all_tasks()) <= before
    await client.aclose()


async def test_closing_the_client_closes_its_streams(vendor):
    vendor.behave(Fault.stall_stream(1))
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    other = DirectClient(vendor.config(), SYSTEM_CLOCK)  # keeps the pool open
    await other.prepare()
    stream = await client.stream(asking("one two three"))
    await client.aclose()
    await settled(lambda: vendor.open_connections == 0)
    with pytest.raises(VendorCallError):
        await read_out(stream, [])
    await stream.aclose()
    await other.aclose()
    with pytest.raises(RuntimeError):
        await client.stream(asking())


async def test_a_server_that_never_ends_its_body_loses_the_connection(serve):
    client = await serve(sse(says("Hi", finish="stop"), DONE), stays=True)
    await whole(client)
    await settled(lambda: not [c for c in servers[client].connections if c.transport])


async def test_forgotten_streams_are_no_leak_of_the_clients(vendor):
    client = DirectClient(vendor.config(), SYSTEM_CLOCK)
    await client.stream(asking())
    await client.aclose()
    gc.collect()  # pytest makes an unclosed response an error
    await settled(lambda: vendor.open_connections == 0)


# ── the other lane ───────────────────────────────────────────────────────────────────────────────


async def test_a_litellm_whose_reader_changed_is_met_with_one_warning(
    simulator, monkeypatch, caplog
):
    await load_litellm()
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator

    def changed(self, *, everything_else):
        raise AssertionError

    monkeypatch.setattr(ModelResponseIterator, "chunk_parser", changed)
    caplog.set_level(logging.WARNING, "aigateway")
    client = DirectClient(simulator.anthropic.config(), SYSTEM_CLOCK)
    await client.prepare()
    monkeypatch.undo()
    for _ in range(2):
        assert (await whole(client)).choices[0].text == "4"
    assert (await client.chat(asking())).choices[0].text == "4"
    await client.aclose()
    assert caplog.text.count("Streams go through") == 1
    agents = [
        r.headers["user-agent"].startswith("aigateway/") for r in simulator.anthropic.received
    ]
    assert agents == [False, False, True]


async def test_callbacks_of_the_user_see_streams(simulator):
    litellm = await load_litellm()
    litellm.success_callback.append(lambda *_: None)
    try:
        client = DirectClient(simulator.openai.config(), SYSTEM_CLOCK)
        assert (await whole(client)).choices[0].text == "4"
        await client.aclose()
    finally:
        litellm.success_callback.pop()
    agent = simulator.openai.received[0].headers["user-agent"]
    assert not agent.startswith("aigateway/")


async def test_renamed_tools_come_back_under_their_names(simulator):
    tool = json.loads(json.dumps(TOOL).replace('"weather"', '"weather/now"'))
    simulator.anthropic.answer(Answer(tool_calls=(ToolCall("weather_now", {"city": "Oslo"}),)))
    client = DirectClient(simulator.anthropic.config(), SYSTEM_CLOCK)
    request = asking("Weather?", tools=[tool])
    names = [
        (await whole(client, request)).choices[0].tool_calls[0].name,
        (await client.chat(request)).choices[0].tool_calls[0].name,
    ]
    assert simulator.anthropic.received[0].body["tools"][0]["name"] == "weather_now"
    assert names == ["weather/now", "weather/now"]
    await client.aclose()


@pytest.mark.parametrize("model", ["o4-mini", "o3-mini", "o1"])
async def test_a_model_streams_whatever_litellm_thinks(simulator, model):
    config = simulator.azure.config(model=model)
    async with AsyncGateway([config]) as gateway:
        texts = [chunk.text async for chunk in gateway.stream("What is 2+2?")]
    assert "".join(texts) == "4"
    assert simulator.azure.received[-1].body["stream"] is True
