"""How answers end, on each wire, whole and streamed, in both lanes: whole, cut, or broken off."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from aigateway.errors import FailureKind
from aigateway.messages import Completion
from aigateway.settings import LLMConfig
from aigateway.wires.client import VendorCallError
from tests.processes import PATIENCE
from tests.wires.calls import LANES, asking

WORDS = {
    "openai": {
        "stop": "stop",
        "length": "length",
        "content_filter": "content_filter",
        "eos": "stop",
        "end_turn": "stop",
        "completed": "stop",
        "done": "stop",
        "end": "stop",
        "finished": "stop",
        "MAX_TOKENS": "length",
        "sensitive": "content_filter",
        "error": None,
        "failed": None,
        "abort": None,
        "network_error": None,
        "insufficient_system_resource": None,
        "": None,
        None: None,
    },
    "anthropic": {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "pause_turn": "length",
        "refusal": "content_filter",
        "error": None,
        "something_new": None,
        None: None,
    },
    "gemini": {
        "STOP": "stop",
        "MAX_TOKENS": "length",
        "SAFETY": "content_filter",
        "RECITATION": "content_filter",
        "BLOCKLIST": "content_filter",
        "PROHIBITED_CONTENT": "content_filter",
        "SPII": "content_filter",
        "IMAGE_SAFETY": "content_filter",
        "IMAGE_PROHIBITED_CONTENT": "content_filter",
        "MALFORMED_FUNCTION_CALL": None,
        "UNEXPECTED_TOOL_CALL": None,
        "OTHER": None,
        "LANGUAGE": None,
        "FINISH_REASON_UNSPECIFIED": None,
        None: None,
    },
}
WORDS["azure"] = WORDS["openai_compatible"] = {
    reason: WORDS["openai"][reason] for reason in ("stop", "insufficient_system_resource", None)
}
CELLS = [
    pytest.param(wire, reason, end, lane, id=f"{wire}-{reason}-{lane.__name__}")
    for wire, words in WORDS.items()
    for place, (reason, end) in enumerate(words.items())
    for turn, lane in enumerate(LANES)
    if end is None or turn == place % 2
]
"""Each reason on each wire; those that break an answer off in both lanes, the others in turn."""
SLIPS = {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"}
MODELS = {"anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COUNT = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
DONE = b"data: [DONE]\n\n"
CUT = object()
"""In place of a piece: the connection breaks there."""


def openai_whole(text, reason, **beside):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason, **beside}
    return {"id": "1", "created": 7, "model": "m", "choices": [choice], "usage": USAGE}


def anthropic_whole(text, reason):
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": reason,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }


def gemini_whole(text, reason):
    candidate = {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}}
    if reason:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate],
        "usageMetadata": COUNT,
        "modelVersion": "m",
        "responseId": "1",
    }


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def openai_piece(text=None, reason=None, **beside):
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": reason, **beside}
    return event({"id": "1", "created": 7, "model": "m", "choices": [choice]})


def gemini_piece(text=None, reason=None):
    return event(gemini_whole(text or "", reason))


def openai_streamed(text, reason):
    return [openai_piece(text), openai_piece(None, reason), DONE]


def anthropic_streamed(text, reason):
    usage = {"input_tokens": 3, "output_tokens": 1}
    start = {"type": "message_start", "message": {"id": "1", "model": "m", "usage": usage}}
    block = {"type": "content_block_start", "index": 0}
    delta = {"type": "content_block_delta", "index": 0}
    end = {"type": "message_delta", "usage": {"output_tokens": 2}}
    return [
        event(start),
        event(block | {"content_block": {"type": "text", "text": ""}}),
        event(delta | {"delta": {"type": "text_delta", "text": text}}),
        event({"type": "content_block_stop", "index": 0}),
        event(end | {"delta": {"stop_reason": reason, "stop_sequence": None}}),
        event({"type": "message_stop"}),
    ]


def gemini_streamed(text, reason):
    return [gemini_piece(text), gemini_piece(None, reason)]


def shape_of(wire):
    return wire if wire in {"anthropic", "gemini"} else "openai"


WHOLE = {"openai": openai_whole, "anthropic": anthropic_whole, "gemini": gemini_whole}
STREAMED = {"openai": openai_streamed, "anthropic": anthropic_streamed, "gemini": gemini_streamed}


@pytest.fixture
async def serve(connect):
    """Make clients of a server that answers with this body, or with these pieces of a stream."""
    runners = []

    async def make(wire, answer, *, stays=False, status=200):
        async def handle(request):
            await request.read()
            if isinstance(answer, dict):
                return web.json_response(answer, status=status)
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for piece in answer:
                if piece is CUT:
                    await asyncio.sleep(0.02)  # what was written is read before
                    request.transport.abort()
                    break
                await response.write(piece)
                await asyncio.sleep(0.005)
            if stays:
                await asyncio.Event().wait()
            return response

        server = web.Server(handle, handler_cancellation=True)
        runners.append(web.ServerRunner(server, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        host, port = runners[-1].addresses[0][:2]
        version = "2024-10-21" if wire == "azure" else None
        base, model = f"http://{host}:{port}", MODELS.get(wire, "gpt-4o-mini")
        return connect(LLMConfig(wire, model, api_key="k", api_base=base, api_version=version))

    yield make
    for runner in runners:
        await runner.cleanup()


async def failure_of(reading):
    with pytest.raises(VendorCallError) as caught:
        await reading
    assert caught.value.__context__ is None
    return caught.value.failure


async def rest_of(stream):
    while await stream.read() is not None:
        pass


async def drained(client, **params):
    """Every chunk of a stream, and what they add up to."""
    stream = await client.stream(asking(**params))
    chunks = []
    try:
        while (batch := await stream.read()) is not None:
            chunks += batch
        return chunks, stream.completion()
    finally:
        await stream.aclose()


@pytest.mark.parametrize(("wire", "reason", "end", "lane"), CELLS)
async def test_every_reason(serve, wire, reason, end):
    whole = await serve(wire, WHOLE[shape_of(wire)]("Hel", reason))
    streamed = await serve(wire, STREAMED[shape_of(wire)]("Hel", reason))
    if end is not None:
        for completion in (await whole.chat(asking()), (await drained(streamed))[1]):
            choice = completion.choices[0]
            assert (choice.text, choice.finish_reason) == ("Hel", end)
            assert completion.usage.total_tokens == 5 or wire != "gemini"
        return
    kind = FailureKind.INVALID_OUTPUT if reason in SLIPS else FailureKind.BAD_ANSWER
    for failure in (await failure_of(whole.chat(asking())), await failure_of(drained(streamed))):
        assert (failure.kind, failure.status, failure.code) == (kind, 200, reason or None)


@pytest.mark.parametrize("wire", ["openai", "openai_compatible", "anthropic", "gemini"])
async def test_an_answer_may_begin_with_what_ends_it(serve, wire):
    """Then nothing is left of it; without `stop` an empty answer is none."""
    reason = {"anthropic": "stop_sequence", "gemini": "STOP"}.get(wire, "stop")
    whole = await serve(wire, WHOLE[shape_of(wire)]("", reason))
    streamed = await serve(wire, STREAMED[shape_of(wire)]("", reason))
    for completion in (
        await whole.chat(asking(stop=["Observation:"])),
        (await drained(streamed, stop=["Observation:"]))[1],
    ):
        choice = completion.choices[0]
        assert (choice.text, choice.finish_reason) == ("", "stop")
    for failing in (whole.chat(asking()), drained(streamed)):
        assert (await failure_of(failing)).kind is FailureKind.BAD_ANSWER


@pytest.mark.parametrize("reason", ["SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT"])
async def test_gemini_withholds_an_answer_of_which_nothing_was_said(serve, reason):
    body = gemini_whole("", reason)
    empty = gemini_whole("", reason)
    del empty["candidates"][0]["content"]
    for answer in (body, empty, [event(body)], [event(empty)]):
        client = await serve("gemini", answer)
        failing = client.chat(asking()) if isinstance(answer, dict) else drained(client)
        assert (await failure_of(failing)).kind is FailureKind.CONTENT_POLICY


@pytest.mark.parametrize("reason", ["stop", "error", None])
async def test_an_error_inside_the_choice(serve, reason):
    error = {"code": 429, "message": "Provider returned error"}
    whole = await serve("openai", openai_whole("Hel", reason, error=error))
    pieces = [openai_piece("Hel"), openai_piece(None, reason, error=error), DONE]
    for failing in (whole.chat(asking()), drained(await serve("openai", pieces))):
        assert (await failure_of(failing)).kind is FailureKind.RATE_LIMITED


async def test_one_of_two_answers_broke_off(serve):
    body = openai_whole("A", "stop")
    body["choices"].append({**openai_whole("B", "abort")["choices"][0], "index": 1})
    client = await serve("openai", body)
    assert (await failure_of(client.chat(asking(n=2)))).code == "abort"


PIECES = {"openai": (openai_piece, "stop", DONE), "gemini": (gemini_piece, "STOP", b"")}


@pytest.mark.parametrize("wire", PIECES)
class TestAServerThatSaysStopWithEachPiece:
    async def test_is_read_to_its_end(self, serve, wire):
        piece, stop, done = PIECES[wire]
        client = await serve(wire, [piece("", stop), piece("Hel", stop), piece("lo", stop), done])
        stream = await client.stream(asking())
        text = ""
        while (batch := await stream.read()) is not None:
            text += "".join(chunk.text for chunk in batch)
            assert text == "Hello" or not (text and stream.finished)
        assert (text, stream.completion().choices[0].finish_reason) == ("Hello", "stop")
        await stream.aclose()

    async def test_does_not_end_by_falling_silent(self, serve, wire):
        piece, stop, _ = PIECES[wire]
        client = await serve(wire, [piece("Hel", stop)], stays=True)
        stream = await client.stream(asking())
        while not await stream.read():
            pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.read(), 0.1)
        assert not stream.finished
        await stream.aclose()

    async def test_breaks(self, serve, wire):
        piece, stop, _ = PIECES[wire]
        client = await serve(wire, [piece("Hel", stop), piece("l", stop), CUT])
        assert (await failure_of(drained(client))).kind is FailureKind.CONNECTION

    async def test_content_behind_the_only_end_and_a_close(self, serve, wire):
        piece, stop, _ = PIECES[wire]
        client = await serve(wire, [piece("Hel", stop), piece("l")])
        assert (await failure_of(drained(client))).kind is FailureKind.BAD_ANSWER


@pytest.mark.parametrize("done", [DONE, b""], ids=["done", "open"])
async def test_garbage_behind_a_whole_answer(connect, done):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n" + head)
        for said in (openai_piece("Hel"), openai_piece(None, "stop") + done):
            writer.write(b"%x\r\n%s\r\n" % (len(said), said))
            await heard.wait()
        writer.write(b"zzz\r\nabc\r\n")
        writer.close()

    heard = asyncio.Event()
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    client = connect(LLMConfig("openai", "m", api_key="k", api_base=f"http://{host}:{port}"))
    stream = await client.stream(asking())
    while not await stream.read():
        pass
    heard.set()
    await rest_of(stream)
    choice = stream.completion().choices[0]
    assert (choice.text, choice.finish_reason) == ("Hel", "stop")
    await stream.aclose()
    server.close()
    await server.wait_closed()


async def test_content_behind_the_end_of_a_stream_that_is_closed_in_order(serve):
    client = await serve("openai", [openai_piece("Hel", "stop"), openai_piece("lo"), DONE])
    _, completion = await drained(client)
    choice = completion.choices[0]
    assert (choice.text, choice.finish_reason) == ("Hello", "stop")


async def test_the_last_reason_counts(serve):
    pieces = [openai_piece("Hel", "null"), openai_piece("lo", "running"), openai_piece(None, "eos")]
    _, completion = await drained(await serve("openai", [*pieces, DONE]))
    choice = completion.choices[0]
    assert (choice.text, choice.finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize("wire", ["openai", "gemini", "anthropic"])
async def test_half_a_character_waits_for_its_other_half(serve, wire):
    texts = ["a\ud83d", "\ude00b", "\ud83d", "\ude00"]
    if wire == "anthropic":
        first, begin, _, *rest = anthropic_streamed("", "end_turn")
        delta = {"type": "content_block_delta", "index": 0}
        said = [event(delta | {"delta": {"type": "text_delta", "text": t}}) for t in texts]
        pieces = [first, begin, *said, *rest]
    else:
        piece, stop, done = PIECES[wire]
        pieces = [*map(piece, texts), piece("", stop), done]
    chunks, completion = await drained(await serve(wire, pieces))
    assert "".join(chunk.text for chunk in chunks) == "a\U0001f600b\U0001f600"
    assert all(chunk.text.encode() for chunk in chunks)
    assert completion.choices[0].text == "a\U0001f600b\U0001f600"


async def test_half_a_character_in_arguments_and_reasoning(serve):
    def said(**delta):
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return event({"id": "1", "created": 7, "model": "m", "choices": [choice]})

    def called(arguments, **more):
        return said(tool_calls=[{"index": 0, "function": {"arguments": arguments} | more}])

    pieces = [
        said(reasoning_content="\ud83d"),
        said(reasoning_content="\ude00"),
        called('{"a": "\ud83d', name="f"),
        called('\ude00"}'),
        openai_piece(None, "tool_calls"),
        DONE,
    ]
    _, completion = await drained(await serve("openai_compatible", pieces))
    choice = completion.choices[0]
    assert choice.reasoning == "\U0001f600"
    assert choice.tool_calls[0].arguments == '{"a": "\U0001f600"}'


CUT_EMOJI = "a\ud83d"
"""As `max_tokens` leaves it."""


@pytest.mark.parametrize("wire", WORDS)
async def test_half_a_character_in_a_whole_text(serve, wire):
    client = await serve(wire, WHOLE[shape_of(wire)](CUT_EMOJI, _LENGTH[shape_of(wire)]))
    completion = await client.chat(asking())
    assert completion.choices[0].text == "a\ufffd"


@pytest.mark.parametrize("wire", WORDS)
async def test_half_a_character_at_the_end_of_a_stream(serve, wire):
    client = await serve(wire, STREAMED[shape_of(wire)](CUT_EMOJI, _LENGTH[shape_of(wire)]))
    chunks, completion = await drained(client)
    assert "".join(chunk.text for chunk in chunks) == completion.choices[0].text == "a\ufffd"


_LENGTH = {"openai": "length", "anthropic": "max_tokens", "gemini": "MAX_TOKENS"}


@pytest.mark.parametrize("wire", ["openai", "openai_compatible"])
async def test_halves_of_characters_beside_the_text(serve, wire):
    function = {"name": "f", "arguments": json.dumps({"a": "\ud83d", "b": "\ud83d\ude00"})}
    for arguments in (function["arguments"], '{"a": "\ud83d'):
        body = openai_whole("a", "length")
        body["choices"][0]["message"] |= {
            "reasoning_content": "r\ude00",
            "refusal": "\ud83dno",
            "tool_calls": [
                {"id": "c", "type": "function", "function": function | {"arguments": arguments}}
            ],
        }
        choice = (await (await serve(wire, body)).chat(asking())).choices[0]
        assert choice.reasoning == "r\ufffd"
        assert choice.refusal == "\ufffdno"
        assert choice.tool_calls[0].arguments == arguments.replace("\ud83d", "\ufffd")


@pytest.mark.parametrize(
    ("wire", "reason"), [("anthropic", "tool_use"), ("gemini", "STOP")], ids=["anthropic", "gemini"]
)
async def test_half_a_character_in_whole_arguments(serve, wire, reason):
    body = WHOLE[wire]("a", reason)
    if wire == "anthropic":
        call = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "\ud83d"}}
        body["content"].append(call)
    else:
        call = {"functionCall": {"name": "f", "args": {"a": "\ud83d"}}}
        body["candidates"][0]["content"]["parts"].append(call)
    (called,) = (await (await serve(wire, body)).chat(asking())).choices[0].tool_calls
    assert json.loads(called.arguments) == {"a": "\ufffd"}


@pytest.mark.parametrize("wire", WORDS)
async def test_half_a_character_in_an_error(serve, wire):
    error = {"error": {"type": "invalid_request_error", "message": "You said a\ud83d."}}
    client = await serve(wire, error, status=400)
    assert (await failure_of(client.chat(asking()))).detail == "You said a\ufffd."
    assert (await failure_of(drained(client))).detail == "You said a\ufffd."
    client = await serve(wire, [event({"type": "error", **error})])
    assert (await failure_of(drained(client))).detail == "You said a\ufffd."


@pytest.mark.parametrize("garbage", [b"zzz\r\nabc\r\n", b"3\r\nabcdef\r\n"])
async def test_what_is_no_http_is_noticed_at_once(connect, garbage):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        said = openai_piece("Hel")
        head = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"%x\r\n%s\r\n" % (len(said), said))
        await heard.wait()
        writer.write(garbage)
        await over.wait()
        writer.close()

    heard, over = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    client = connect(LLMConfig("openai", "m", api_key="k", api_base=f"http://{host}:{port}"))
    stream = await client.stream(asking())
    while not await stream.read():
        pass
    heard.set()
    # The server says nothing more and does not close: only what came tells.
    async with asyncio.timeout(PATIENCE):
        assert (await failure_of(rest_of(stream))).kind is FailureKind.BAD_ANSWER
    await stream.aclose()
    over.set()
    server.close()
    await server.wait_closed()


def odd_bodies(body):
    """Yield the body with a list in the place of each text, at any depth."""
    if isinstance(body, str):
        yield []
    elif isinstance(body, list):
        for index, each in enumerate(body):
            for odd in odd_bodies(each):
                yield [*body[:index], odd, *body[index + 1 :]]
    elif isinstance(body, dict):
        for name, each in body.items():
            for odd in odd_bodies(each):
                yield {**body, name: odd}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("wire", WHOLE)
async def test_a_list_in_the_place_of_a_text_is_an_answer_or_a_failure(serve, wire, lane):
    for odd in odd_bodies(WHOLE[wire]("Hi.", "STOP" if wire == "gemini" else "stop")):
        client = await serve(wire, odd)
        with contextlib.suppress(VendorCallError):  # anything else would blame the provider
            assert isinstance(await client.chat(asking()), Completion)
