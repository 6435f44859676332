"""Middleware on scripted vendors and virtual time: what it changes, refuses, breaks and costs."""

import asyncio
import contextlib
import gc
import json
import logging
import pickle
from dataclasses import replace

import pytest
from pydantic import BaseModel

from aigateway import (
    AsyncGateway,
    ChatRequest,
    Chunk,
    ConfigurationError,
    DeadlineExceededError,
    FailureKind,
    GatewaySettings,
    Middleware,
    MiddlewareFailedError,
    MiddlewareRefusedError,
    RequestRejectedError,
    StreamInterruptedError,
    ToolCallDelta,
    UnknownModelError,
    whole_words,
)
from aigateway.messages import Choice, Completion, NativeAnswer, NativeRequest
from aigateway.records import plain
from aigateway.request.pipeline import Pipeline
from aigateway.testing import ScriptedStream, scripted_configs

SECRET = "the-prompts-own-words"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": f'"{SECRET}"'}}


@pytest.fixture
async def make(clock, vendor):
    made = []

    def make_gateway(*middleware, names=("a", "b"), **settings):
        settings.setdefault("retry_rounds", 0)
        configs = scripted_configs(*names)
        gateway = AsyncGateway(
            configs, clock=clock, vendor=vendor, middleware=middleware, **settings
        )
        made.append(gateway)
        return gateway

    yield make_gateway
    for gateway in made:
        await gateway.aclose()
    assert vendor.open_streams == 0


def hidden(text):
    return text.replace(SECRET, "***")


class Redact(Middleware):
    """Takes one text out of everything; in streams also over the borders of chunks."""

    async def before(self, request):
        return request.map_texts(hidden)

    async def before_embedding(self, request):
        return request.map_texts(hidden)

    async def after(self, request, response):
        return response.map_texts(hidden)

    async def stream(self, request, chunks):
        async for chunk in whole_words(chunks):
            yield chunk.map_texts(hidden)


class ReadsNative(Redact):
    reads_native = True


class Named(Middleware):
    """Notes its calls, and leaves its name in front of everything."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    async def before(self, request):
        self.log.append(f"before {self.name}")
        return request.map_texts(lambda text: f"{self.name}{text}")

    async def after(self, request, response):
        self.log.append(f"after {self.name}")
        return response.map_texts(lambda text: f"{self.name}{text}")

    async def stream(self, request, chunks):
        self.log.append(f"stream {self.name}")
        yield Chunk(self.name)
        async for chunk in chunks:
            yield chunk


def hook(**hooks):
    """A middleware without the base class, with these hooks."""
    made = {name: staticmethod(call) if callable(call) else call for name, call in hooks.items()}
    return type("Own", (), made)()


def sent(vendor):
    return [request.messages[-1]["content"] for _, request in vendor.calls]


async def read(stream):
    async with stream:
        return [chunk async for chunk in stream]


async def refused(stream):
    """What came before the refusal."""
    chunks = []
    try:
        async for chunk in stream:
            chunks.append(chunk.text)  # noqa: PERF401 - what came before the refusal counts
    except MiddlewareRefusedError:
        return chunks
    pytest.fail("it was not refused")


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def ends(gateway):
    metrics = gateway.get_metrics()
    names = ("cache_hits", "stale_answers", "coalesced", "served", "failures", "cancelled")
    assert metrics["total_requests"] == sum(metrics[name] for name in names)
    return {name: metrics[name] for name in names if metrics[name]}


class TestOrder:
    async def test_before_goes_in_order_and_the_answer_in_reverse(self, make, vendor):
        log: list[str] = []
        gateway = make(Named("x", log), Named("y", log))
        vendor.always("a", "answer")
        assert (await gateway.chat("ask")).text == "xyanswer"
        assert text_of(await read(gateway.stream("other"))) == "xyanswer"
        assert sent(vendor) == ["yxask", "yxother"]
        assert log[:4] == ["before x", "before y", "after y", "after x"]
        assert log[4:6] == ["before x", "before y"]
        assert sorted(log[6:]) == ["stream x", "stream y"]

    async def test_only_what_a_class_has_is_called(self, make, vendor):
        async def before(request):
            return replace(request, params={**request.params, "seed": 7})

        gateway = make(hook(before=before))
        await gateway.chat("hi")
        await read(gateway.stream("hi", temperature=1))
        assert [dict(request.params) for _, request in vendor.calls] == [
            {"seed": 7},
            {"temperature": 1, "seed": 7},
        ]

    async def test_without_any_the_pipeline_is_the_plain_one(self, make):
        assert type(make()._pipeline) is Pipeline

    async def test_batches_and_embeddings_pass_too(self, make, vendor):
        gateway = make(Redact())
        vendor.always("a", f"it is {SECRET}!")
        result = await gateway.batch([f"1 {SECRET}", f"2 {SECRET}"])
        assert [response.text for response in result.responses] == ["it is ***!"] * 2
        assert sorted(sent(vendor)) == ["1 ***", "2 ***"]
        await gateway.embed([SECRET, "plain"])
        assert vendor.calls[-1][1].inputs == ("***", "plain")
        await gateway.embed([[1, 2], [3]])
        assert vendor.calls[-1][1].inputs == ((1, 2), (3,))


class TestRequests:
    async def test_texts_of_every_message_can_be_changed(self, make, vendor):
        messages = [
            {"role": "system", "content": SECRET},
            {"role": "user", "content": [{"type": "text", "text": SECRET}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": SECRET},
        ]
        await make(Redact()).chat(messages)
        (request,) = [request for _, request in vendor.calls]
        assert SECRET not in str(request)
        assert str(request.messages).count("***") == 4

    async def test_the_key_of_the_cache_is_that_of_the_changed_request(self, make, vendor):
        gateway = make(Redact())
        await gateway.chat(f"a {SECRET}")
        again = await gateway.chat("a ***")
        assert again.cached
        assert vendor.called() == 1

    async def test_a_message_changed_in_its_place_counts_as_changed(self, make, vendor):
        async def before(request):
            request.messages[0]["content"] = "other"
            return request

        gateway = make(hook(before=before))
        given = [{"role": "user", "content": "mine"}]
        await gateway.chat(given)
        assert (await gateway.chat("other")).cached
        assert sent(vendor) == ["other"]
        assert given[0]["content"] == "mine"

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"messages": ()}, "messages must have at least one"),
            ({"messages": ({"role": "nobody", "content": SECRET},)}, r"messages\[0\]"),
            ({"params": {"temperature": 9}}, "temperature"),
            ({"params": {"seed": object()}}, "JSON"),
            ({"params": [SECRET]}, "AttributeError"),
            ({"partition": "another tenant"}, "changed partition"),
            ({"request_id": "other"}, "changed request_id"),
        ],
    )
    async def test_a_changed_request_is_validated_again(self, make, vendor, change, problem):
        async def before(request):
            return replace(request, **change)

        with pytest.raises(MiddlewareFailedError, match=problem) as caught:
            await make(hook(before=before)).chat(SECRET)
        assert "middleware Own failed: before" in str(caught.value)
        assert SECRET not in str(caught.value)
        assert vendor.called() == 0

    async def test_the_model_may_be_changed(self, make, vendor):
        async def before(request):
            return replace(request, model=request.messages[0]["content"])

        gateway = make(hook(before=before))
        assert (await gateway.chat("b")).provider == "b"
        with pytest.raises(UnknownModelError):
            await gateway.chat("c")

    async def test_the_body_of_another_protocol_goes_once_the_request_is_changed(
        self, make, vendor
    ):
        async def before(request):
            return replace(
                request, messages=replace(request, native=None).map_texts(hidden).messages
            )

        gateway = make(hook(before=before, reads_native=True))
        native = NativeRequest("messages", {"input": SECRET})
        for text in ("plain", SECRET):
            await gateway._pipeline.chat(replace(gateway.check(text), native=native))
        kept, dropped = [request for _, request in vendor.calls]
        assert (kept.native, dropped.native) == (native, None)
        only = replace(gateway.check(SECRET), native=replace(native, only="previous_response_id"))
        with pytest.raises(RequestRejectedError, match="previous_response_id") as caught:
            await gateway._pipeline.chat(only)
        assert caught.value.param == "previous_response_id"
        assert vendor.called() == 2

    async def test_map_texts_reaches_the_body_of_another_protocol(self, make, vendor):
        gateway = make(ReadsNative())
        body = {
            "system": [{"type": SECRET, "text": SECRET}],
            "metadata": {"user_id": SECRET},
            "messages": [
                {"role": "user", "content": [{"type": "brandnew", "what": [SECRET]}]},
                {
                    "role": "assistant",
                    "content": [
                        {
                            "type": "tool_use",
                            "name": "f",
                            "input": {"name": SECRET, "deep": {"id": SECRET}},
                        }
                    ],
                },
                {"role": "assistant", "content": [{"type": "thinking", "thinking": SECRET}]},
            ],
        }
        native = NativeRequest("messages", body)
        await gateway._pipeline.chat(replace(gateway.check(SECRET), native=native))
        made = vendor.calls[0][1].native
        left = json.loads(json.dumps(made.body).replace("***", SECRET))
        assert left == body
        assert json.dumps(made.body).count(SECRET) == 2  # a type, and signed thinking
        plain = replace(native, body={"messages": []})
        assert plain.map_texts(hidden) is plain

    async def test_a_middleware_that_changes_the_body_itself_keeps_it(self, make, vendor):
        other = NativeRequest("messages", {"input": "***"})

        async def before(request):
            return replace(request.map_texts(hidden), native=other)

        gateway = make(hook(before=before, reads_native=True))
        native = NativeRequest("messages", {"input": SECRET})
        await gateway._pipeline.chat(replace(gateway.check(SECRET), native=native))
        assert vendor.calls[0][1].native is other

    @pytest.mark.parametrize("blind", [0, 1])
    async def test_one_that_does_not_read_the_body_itself_lets_chats_alone_pass(
        self, make, vendor, blind
    ):
        async def before(request):
            return replace(request, native=native)

        native = NativeRequest("messages", {"input": SECRET})
        pair = [ReadsNative(), hook(before=before)]
        gateway = make(pair[blind], pair[not blind])
        await gateway._pipeline.chat(replace(gateway.check("plain"), native=native))
        assert vendor.calls[0][1].native is None
        only = replace(native, only="previous_response_id", instead="send the history")
        with pytest.raises(RequestRejectedError, match=r"previous_response_id.*send the history"):
            await gateway._pipeline.chat(replace(gateway.check("plain"), native=only))
        assert vendor.called() == 1


class TestAnswers:
    async def test_every_answer_passes_also_a_cached_and_a_shared_one(self, make, vendor):
        gateway = make(Redact())
        vendor.script("a", f"{SECRET} said")
        first, second = await asyncio.gather(gateway.chat("q"), gateway.chat("q"))
        third = await gateway.chat("q")
        assert (first.coalesced, second.coalesced, third.cached) == (False, True, True)
        assert [first.text, second.text, third.text] == ["*** said"] * 3
        assert text_of(await read(gateway.stream("q"))) == "*** said"
        assert vendor.called() == 1
        assert ends(gateway) == {"served": 1, "coalesced": 1, "cache_hits": 2}

    async def test_what_belongs_to_the_answer_as_it_was_goes(self, make, vendor):
        choice = Choice(SECRET, "stop", reasoning=SECRET, logprobs_json='{"content":[]}')
        native = NativeAnswer("messages", SECRET.encode())
        vendor.script("a", Completion("i", "m", (choice,), native=native))
        vendor.script("a", Completion("i", "m", (replace(choice, text="-", reasoning="-"),)))
        gateway = make(Redact())
        changed, kept = await gateway.chat("1"), await gateway.chat("2")
        assert SECRET not in repr(changed.to_openai())
        assert (changed.completion.native, changed.choices[0].logprobs_json) == (None, None)
        unseen = NativeAnswer("messages", json.dumps({"content": [{"new": SECRET}]}).encode())
        vendor.script("a", Completion("i", "m", (Choice("-", "stop"),), native=unseen))
        assert (await make(ReadsNative()).chat("hi")).completion.native is None
        assert kept.choices[0].logprobs_json == '{"content":[]}'

    async def test_an_answer_that_nothing_changes_keeps_its_own_form(self, make, vendor):
        answer = Completion(
            "i", "m", (Choice("-", "stop"),), created=1, native=NativeAnswer("messages")
        )
        vendor.always("a", answer)
        assert (await make(ReadsNative()).chat("hi")).completion is answer
        for seen in (make(Redact()), make(ReadsNative(), hook(stream=Redact().stream))):
            assert (await seen.chat("hi")).completion == replace(answer, native=None)

    async def test_a_parsed_answer_follows_the_text(self, make, vendor):
        class Answer(BaseModel):
            text: str

        class Number(BaseModel):
            text: int

        async def after(request, response):
            return response.map_texts(lambda text: text.replace("1", "one"))

        gateway = make(Redact(), hook(after=after))
        vendor.always("a", f'{{"text": "{SECRET}"}}')
        answer = await gateway.chat(SECRET, response_format=Answer)
        assert answer.parsed == Answer(text="***")
        stream = gateway.stream("q2", response_format=Answer)
        await read(stream)
        assert stream.response.parsed == Answer(text="***")
        vendor.always("a", '{"text": 1}')
        with pytest.raises(MiddlewareFailedError, match="response_format"):
            await gateway.chat("q3", response_format=Number)

    async def test_an_answer_may_be_withheld(self, make, vendor):
        async def after(request, response):
            raise MiddlewareRefusedError("No.", code="unsafe", status=403)

        gateway = make(hook(after=after))
        with pytest.raises(MiddlewareRefusedError) as caught:
            await gateway.chat("hi")
        assert ends(gateway) == {"failures": 1}
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.code, copy.status, copy.causes) == ("No.", "unsafe", 403, ())
        assert gateway.get_metrics()["providers"]["a"]["failures"] == {}
        assert vendor.called("b") == 0


class TestStreams:
    async def test_text_is_held_back_over_the_borders_of_chunks(self, make, vendor):
        pieces = ["It is the-pro", "mpts-own-", "words", " indeed", ", the-prompts"]
        vendor.script("a", ScriptedStream(*pieces))
        stream = make(Redact()).stream("hi")
        chunks = await read(stream)
        assert text_of(chunks) == stream.response.text == "It is *** indeed, the-prompts"
        assert all(SECRET not in chunk.text for chunk in chunks)
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
        assert chunks[-1].usage is not None
        assert stream.response.usage == chunks[-1].usage
        assert len(chunks) > 3

    async def test_content_arrives_as_it_comes(self, make, vendor, clock):
        go_on = asyncio.Event()
        vendor.script("a", ScriptedStream("one ", go_on.wait, "two"))
        async with make(Redact()).stream("hi") as stream:
            assert (await anext(stream)).text == "one "
            assert stream.opening.provider == "a"
            go_on.set()
            assert text_of([chunk async for chunk in stream]) == "two"

    async def test_a_refusal_ends_it_and_the_call(self, make, vendor):
        async def stream(request, chunks):
            async for chunk in chunks:
                if "bad" in chunk.text:
                    raise MiddlewareRefusedError("Not that.")
                yield chunk

        vendor.script("a", ScriptedStream("good ", "bad ", "worse"))
        gateway = make(hook(stream=stream))
        assert await refused(gateway.stream("hi")) == ["good "]
        assert vendor.open_streams == vendor.called("b") == 0
        assert ends(gateway) == {"failures": 1}
        assert gateway.get_metrics()["providers"]["a"]["failures"] == {"cancelled": 1}

    async def test_nothing_of_a_chunk_gets_past_it(self, make, vendor):
        def of_call(index, *parts, **first):
            return [
                Chunk(tool_calls=(ToolCallDelta(index, arguments=p, **first if not n else {}),))
                for n, p in enumerate(parts)
            ]

        signed = json.dumps([{"type": "thinking", "thinking": SECRET, "signature": "x"}])
        half, rest = SECRET[:9], SECRET[9:]
        chunks = [
            Chunk(reasoning=f"so {half}"),
            Chunk(reasoning=rest),
            Chunk(thinking_json=signed),
            Chunk(f"x {half}"),
            Chunk(rest),
            *of_call(0, f'{{"q": "{half}', f'{rest}"}}', id="1", name="f"),
            *of_call(1, f'{{"r": "{half}', f'{rest}"}}', id="2", name="g"),
            Chunk(refusal=f"no {half}"),
            Chunk(refusal=rest),
        ]
        vendor.always("a", ScriptedStream(*chunks))
        answers = []
        for middleware in (Redact(), hook(stream=Redact().stream), hook(after=Redact().after)):
            gateway = make(middleware)
            stream = gateway.stream("hi")
            seen = await read(stream)
            assert SECRET not in repr(plain([*seen, stream.response]))
            fields = ("reasoning", "text", "tool_calls", "refusal")
            came = [name for chunk in seen for name in fields if getattr(chunk, name)]
            assert came.index("reasoning") < came.index("text") < came.index("tool_calls")
            answers += [stream.response, await gateway.chat("hi")]
        for answer in answers:
            (choice,) = answer.choices
            assert (choice.reasoning, choice.text, choice.refusal) == ("so ***", "x ***", "no ***")
            assert [call.arguments for call in choice.tool_calls] == [
                '{"q": "***"}',
                '{"r": "***"}',
            ]
            assert choice.thinking_json is None

    async def test_words_come_whole_and_in_order(self):
        async def given():
            for chunk in ("one t", "wo", " th"):
                yield Chunk(chunk)
            yield Chunk(tool_calls=(ToolCallDelta(0, "1", "f", '{"a', "custom"),))
            yield Chunk(tool_calls=(ToolCallDelta(0, arguments='": 1}', type="custom"),))
            yield Chunk("four", index=1)
            yield Chunk("five")

        said = [
            chunk.text or [(call.name, call.arguments, call.type) for call in chunk.tool_calls]
            async for chunk in whole_words(given())
            if chunk != Chunk(index=chunk.index)
        ]
        call = [[("f", "", "custom")], [("", '{"a": ', "custom")], [("", "1}", "custom")]]
        assert said == ["one ", "two ", "th", *call, "five", "four"]

    async def test_one_that_only_has_after_holds_the_answer_back(self, make, vendor):
        async def after(request, response):
            if SECRET in response.text:
                raise MiddlewareRefusedError("No.")
            return response.map_texts(str.upper)

        vendor.script("a", ScriptedStream("a ", "b"), ScriptedStream("a ", SECRET))
        gateway = make(hook(after=after))
        stream = gateway.stream("1")
        assert text_of(await read(stream)) == stream.response.text == "A B"
        assert await refused(gateway.stream("2")) == []

    async def test_one_that_only_has_stream_gets_whole_answers_in_pieces(self, make, vendor):
        native = NativeAnswer("messages")
        kept = Completion("i", "m", (Choice("two words", "stop"),), created=1, native=native)
        vendor.script("a", f"it is {SECRET}!", kept)
        gateway = make(hook(stream=Redact().stream, reads_native=True))
        first, again = await gateway.chat("hi"), await gateway.chat("hi")
        assert (first.text, again.text, again.cached) == ("it is ***!", "it is ***!", True)
        assert (await gateway.chat("other")).completion is kept

    async def test_the_rest_of_an_answer_that_is_cut_is_read_and_paid(self, make, vendor):
        async def stream(request, chunks):
            yield await anext(chunks)

        vendor.script("a", ScriptedStream("one ", "two ", "three", cost_usd=0.25))
        gateway = make(hook(stream=stream))
        answer = gateway.stream("hi")
        assert text_of(await read(answer)) == answer.response.text == "one "
        assert answer.response.cost_usd == 0.25
        assert (await gateway.chat("hi")).cached
        assert ends(gateway) == {"served": 1, "cache_hits": 1}

    async def test_one_that_starts_over_begins_with_a_new_generator(self, make, vendor):
        broken = ScriptedStream("held", FailureKind.CONNECTION)
        vendor.script("a", broken)
        vendor.script("b", ScriptedStream("new ", "answer"))
        stream = make(Redact()).stream("hi", resume="restart")
        chunks = await read(stream)
        (place,) = [place for place, chunk in enumerate(chunks) if chunk.restarted]
        assert text_of(chunks[place:]) == stream.response.text == "new answer"
        assert stream.opening.provider == "b"

    async def test_a_break_passes_also_if_the_middleware_swallows_it(self, make, vendor):
        async def swallow(request, chunks):
            try:
                async for chunk in chunks:
                    yield chunk
            except Exception:  # noqa: BLE001
                yield Chunk("all is well")

        vendor.always("a", ScriptedStream("one ", FailureKind.CONNECTION))
        for middleware in (Redact(), hook(stream=swallow)):
            with pytest.raises(StreamInterruptedError):
                await read(make(middleware).stream("hi"))

    async def test_events_of_the_providers_own_protocol_are_left_out(self, make, vendor):
        native = (SECRET.encode(),)
        chunks = [Chunk(native_events=native), Chunk("text", native_events=native)]
        vendor.script("a", ScriptedStream(*chunks), ScriptedStream(*chunks))
        stream = make(Redact()).stream("hi")
        assert all(not chunk.native_events for chunk in await read(stream))
        assert stream.response.completion.native is None
        plain = await read(make(hook(before=Redact().before)).stream("hi"))
        assert [chunk.native_events for chunk in plain if chunk.native_events] == [native] * 2

    async def test_tool_calls_may_be_taken_out(self, make, vendor):
        async def stream(request, chunks):
            async for chunk in chunks:
                yield replace(chunk, tool_calls=())

        call = Chunk(tool_calls=(ToolCallDelta(0, "1", "f", "{}"),))
        vendor.script("a", ScriptedStream("text", call, finish_reason="tool_calls"))
        answer = make(hook(stream=stream)).stream("hi", tools=TOOLS)
        chunks = await read(answer)
        assert not any(chunk.tool_calls for chunk in chunks)
        assert (answer.response.tool_calls, answer.response.finish_reason) == ((), "stop")

    async def test_leaving_early_closes_everything(self, make, vendor):
        closed = []

        async def stream(request, chunks):
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                closed.append(True)

        vendor.script("a", ScriptedStream("one", "two", "three"))
        gateway = make(hook(stream=stream), Redact())
        async with gateway.stream("hi") as answer:
            await anext(answer)
        assert closed == [True]
        assert vendor.open_streams == 0
        assert ends(gateway) == {"cancelled": 1}

    async def test_garbage_is_closed_once(self, make, vendor):
        closed, reported = asyncio.Event(), []

        async def stream(request, chunks):
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await asyncio.sleep(0)
                closed.set()

        vendor.script("a", ScriptedStream("one", "two"))
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        cycle = [make(hook(stream=stream)).stream("hi")]
        await anext(cycle[0])
        cycle.append(cycle)  # so that the collector finds all generators at once
        del cycle
        gc.collect()
        await closed.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        gc.collect()  # an error of a task is reported when the task is garbage
        assert (reported, vendor.open_streams) == ([], 0)


async def raising(*_):
    raise ValueError(SECRET)


async def raising_stream(request, chunks):
    async for chunk in chunks:
        yield chunk
        raise ValueError(SECRET)


def raising_at_once(request, chunks):
    raise ValueError(SECRET)


async def yields_text(request, chunks):
    yield "text"


def not_async(*given):
    return given[-1]


async def empties(request, response):
    return replace(response, completion=None)


async def returns_nothing(*_):
    return None


class TestFaults:
    @pytest.mark.parametrize(
        ("hooks", "problem"),
        [
            ({"before": raising}, "before raised ValueError"),
            ({"before": not_async}, "before is not async"),
            ({"before": returns_nothing}, "before returned NoneType, not ChatRequest"),
            ({"after": raising}, "after raised ValueError"),
            ({"after": not_async}, "after is not async"),
            ({"after": returns_nothing}, "after returned NoneType, not ChatResponse"),
            ({"after": empties}, "after returned an answer with another type"),
            ({"stream": raising}, "stream is no async generator"),
            ({"stream": raising_stream}, "stream raised ValueError"),
            ({"stream": raising_at_once}, "stream raised ValueError"),
            ({"stream": yields_text}, "stream yielded str, not Chunk"),
        ],
    )
    async def test_a_broken_hook_fails_the_request_and_says_nothing_of_it(
        self, make, vendor, caplog, hooks, problem
    ):
        gateway = make(hook(**hooks))
        asked = read(gateway.stream(SECRET)) if "stream" in hooks else gateway.chat(SECRET)
        with caplog.at_level(logging.DEBUG), pytest.raises(MiddlewareFailedError) as caught:
            await asked
        assert problem in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None
        assert SECRET not in caplog.text + str(caught.value)
        assert problem in caplog.text
        assert ends(gateway) == {"failures": 1}
        assert vendor.called("b") == 0

    @pytest.mark.parametrize("name", ["before", "after", "before_embedding"])
    async def test_a_hook_has_its_time(self, make, vendor, clock, name):
        async def slow(*given):
            await clock.sleep(seconds)
            return given[-1]

        gateway = make(hook(**{name: slow}), middleware_timeout=2)
        for seconds, expected in ((1.9, None), (2.1, MiddlewareFailedError)):
            ask = gateway.embed if name == "before_embedding" else gateway.chat
            task = asyncio.create_task(ask(f"{seconds}"))
            await clock.advance(3)
            assert type(task.exception()) is (expected or type(None))
        assert "took more than 2 s" in str(task.exception())

    @pytest.mark.parametrize("name", ["before", "after", "stream"])
    async def test_the_deadline_of_the_request_counts_too(self, make, vendor, clock, name):
        async def slow(*given):
            await clock.sleep(2)
            return given[-1]

        async def slowly(request, chunks):
            async for chunk in chunks:
                await clock.sleep(2)
                yield chunk

        slow_ones = [hook(**{name: slowly if name == "stream" else slow}) for _ in range(2)]
        task = asyncio.create_task(make(*slow_ones).chat("hi", timeout=3))
        await clock.advance(3.5)
        assert type(task.exception()) is DeadlineExceededError
        assert vendor.called() == (name != "before")

    async def test_a_stale_answer_has_the_time_of_the_hook(self, make, vendor, clock):
        async def slow(request, response):
            await clock.sleep(1)
            return response

        settings = {"stale_if_error_seconds": 600, "cache_ttl_seconds": 1}
        gateway = make(hook(after=slow), names="a", **settings)
        vendor.script("a", "old", lambda: clock.sleep(60))
        first = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(5)
        again = asyncio.create_task(gateway.chat("hi", timeout=3))
        await clock.advance(5)
        assert (first.result().text, again.result().text, again.result().stale) == (
            "old",
            "old",
            True,
        )

    @pytest.mark.parametrize("name", ["before", "after", "stream"])
    async def test_a_cancellation_of_its_own_is_a_fault(self, make, vendor, name):
        async def cancelled(*_):
            raise asyncio.CancelledError

        async def stream(request, chunks):
            raise asyncio.CancelledError
            yield

        gateway = make(hook(**{name: stream if name == "stream" else cancelled}))
        with pytest.raises(MiddlewareFailedError, match=f"{name} was cancelled from within"):
            await gateway.chat("hi")
        assert ends(gateway) == {"failures": 1}

    async def test_one_that_swallows_its_cancellation_does_not_pass(self, make, vendor, clock):
        async def slow(request):
            with contextlib.suppress(asyncio.CancelledError):
                await clock.sleep(9)
            return request

        gateway = make(hook(before=slow), middleware_timeout=2)
        late = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(3)
        assert "took more than 2 s" in str(late.exception())
        gone = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(1)
        gone.cancel()
        await clock.settle()
        assert gone.cancelled()
        assert vendor.called() == 0
        assert ends(gateway) == {"failures": 1, "cancelled": 1}

    async def test_waiting_for_the_vendor_does_not_count(self, make, vendor, clock):
        async def pause():
            await clock.sleep(8)

        async def slow(request, chunks):
            async for chunk in chunks:
                await clock.sleep(float(chunk.text))
                yield chunk

        gateway = make(hook(stream=slow), Redact(), middleware_timeout=2)
        vendor.script("a", ScriptedStream("1.5 ", pause, "1.9 ", pause, "2.1 "))
        seen = []

        async def ask():
            async for chunk in gateway.stream("hi"):
                seen.append(chunk.text)  # noqa: PERF401 - what came before the error counts

        task = asyncio.create_task(ask())
        await clock.advance(60)
        assert isinstance(task.exception(), MiddlewareFailedError)
        assert seen == ["1.5 ", "1.9 "]

    @pytest.mark.parametrize("reads", [0, 1])
    async def test_one_that_yields_without_end_fails(self, make, vendor, clock, reads):
        async def endless(request, chunks):
            for _ in range(reads):
                yield await anext(chunks)
            while True:
                await clock.sleep(0.5)
                yield Chunk("x")

        gateway = make(hook(stream=endless), middleware_timeout=2)
        for ask in (gateway.chat("hi"), read(gateway.stream("hi"))):
            task = asyncio.create_task(ask)
            await clock.advance(3)
            assert "took more than 2 s" in str(task.exception())

    async def test_waiting_for_the_caller_does_not_count(self, make, vendor, clock):
        async def stream(request, chunks):
            async for chunk in chunks:
                yield chunk
                yield Chunk("!")

        async def ask():
            said = []
            async for chunk in make(hook(stream=stream), middleware_timeout=2).stream("hi"):
                said.append(chunk.text)
                await clock.sleep(9)
            return "".join(said)

        vendor.script("a", ScriptedStream("1", "2"))
        task = asyncio.create_task(ask())
        await clock.advance(60)
        assert task.result() == "1!2!"


class Tracing:
    """A tracer that keeps what it gets."""

    def __init__(self):
        self.seen = []

    def on_event(self, event):
        pass

    def trace_request(self, request, *, streamed):
        self.seen.append(request.messages)
        return self

    def attempt(self, *_):
        return hook(headers={}, ended=lambda *_: None)

    def ended(self, event, answer):
        self.seen.append(answer and answer.choices)


async def test_traces_get_what_is_left(make, vendor, clock):
    async def refuse(request):
        if "no" in str(request.messages):
            raise MiddlewareRefusedError("No.")
        return request

    vendor.always("a", SECRET)
    tracing = Tracing()
    settings = {"clock": clock, "vendor": vendor, "hooks": [tracing]}
    middleware = [hook(before=refuse), Redact()]
    async with AsyncGateway(scripted_configs("a"), middleware=middleware, **settings) as gateway:
        await gateway.chat(SECRET)
        await read(gateway.stream(f"2 {SECRET}"))
        with pytest.raises(MiddlewareRefusedError):
            await gateway.chat(f"no {SECRET}")
    seen = repr(plain(tracing.seen))
    assert SECRET not in seen
    assert len(tracing.seen) == 6
    assert seen.count("***") == 4


async def test_the_log_gets_what_goes_out(make, vendor, caplog):
    async def refuse(request, response):
        if "never" in response.text:
            raise MiddlewareRefusedError("No.")
        return response

    caplog.set_level(logging.INFO)
    vendor.script("a", f"1 {SECRET}", f"2 {SECRET}", f"never {SECRET}", f"never {SECRET}")
    gateway = make(Redact(), hook(after=refuse), log_prompts=True)
    await gateway.chat("1")
    await gateway.chat("1")  # from the cache: it was logged when it came
    await read(gateway.stream("2"))
    for ask in (gateway.chat("3"), read(gateway.stream("4"))):
        with pytest.raises(MiddlewareRefusedError):
            await ask
    content = [line for line in caplog.text.splitlines() if "request.content" in line]
    assert len(content) == 2
    assert ["1 ***" in content[0], "2 ***" in content[1]] == [True, True]
    assert SECRET not in caplog.text
    assert "never" not in caplog.text


class TestConfiguration:
    async def test_an_import_path_a_class_and_a_factory(self, make, vendor, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.path", list(__import__("sys").path))
        (tmp_path / "aigateway.toml").write_text(
            '[gateway]\nmiddleware = ["own_guards:Shout", "own_guards:made.it"]\n'
        )
        (tmp_path / "own_guards.py").write_text(
            "class Shout:\n    async def before(self, request):\n"
            "        return request.map_texts(str.upper)\n"
            "class made:\n    it = Shout()\n"
        )
        monkeypatch.setenv("AIGATEWAY_CONFIG", str(tmp_path / "aigateway.toml"))
        configs = scripted_configs("a")
        async with AsyncGateway(configs, vendor=vendor) as gateway:
            await gateway.chat("loud")
        assert sent(vendor) == ["LOUD"]
        async with make(Redact, lambda: Redact()) as gateway:  # noqa: PLW0108 - a factory
            await gateway.chat(SECRET)
        assert sent(vendor)[-1] == "***"

    def test_the_environment_takes_a_list(self, monkeypatch):
        monkeypatch.setenv("AIGATEWAY_MIDDLEWARE", '["a.b:c"]')
        assert GatewaySettings().middleware == ("a.b:c",)
        monkeypatch.setenv("AIGATEWAY_MIDDLEWARE", "a.b:c")
        with pytest.raises(ConfigurationError, match="AIGATEWAY_MIDDLEWARE must be a JSON list"):
            GatewaySettings()

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ("os:getcwd", "must be a list"),
            (["no colon"], '"no colon": must be written "package.module:name"'),
            (["..:x"], "must be written"),
            (["no_such_module:x"], "\"no_such_module:x\": No module named 'no_such_module'"),
            (["os:no_such_name"], "os has no no_such_name"),
            (["os:sep"], '"os:sep": has none of before'),
            ([object()], "middleware object: has none of before"),
            ([type("Empty", (Middleware,), {})], "Empty: has none of before"),
            ([Named], "Named: cannot be made without arguments"),
        ],
    )
    def test_what_cannot_work_is_named_at_the_start(self, given, problem):
        with pytest.raises(ConfigurationError, match=problem):
            AsyncGateway(scripted_configs("a"), middleware=given)


async def test_requests_of_map_texts_are_the_same_if_nothing_changes():
    request = ChatRequest(({"role": "user", "content": "x"},))
    assert request.map_texts(str) is request
