"""`gateway.stream` on scripted vendors and virtual time: failover, breaks, resuming, the books."""

import asyncio
import gc
import json
import pickle
from types import MappingProxyType
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    Chunk,
    CircuitState,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    MisuseError,
    RequestRejectedError,
    StreamInterruptedError,
    ToolCallDelta,
    UnknownModelError,
    testing,
)
from aigateway.messages import Usage
from aigateway.testing import ScriptedStream, scripted_configs
from aigateway.wires.client import Failure
from tests.gateways import state_of

K = FailureKind
ASSISTANT = "assistant"


@pytest.fixture
async def make(clock, vendor):
    made = []

    def make_gateway(*names, fields=None, **settings):
        settings.setdefault("retry_rounds", 0)
        configs = scripted_configs(*(names or ("a", "b", "c")), **(fields or {}))
        made.append(AsyncGateway(configs, clock=clock, vendor=vendor, **settings))
        return made[-1]

    yield make_gateway
    for gateway in made:
        await gateway.aclose()
    assert vendor.open_streams == 0


def silence():
    return asyncio.Event().wait()


def silence_until(clock, seconds):
    async def wait():
        await clock.sleep(seconds)

    return wait


def balanced(gateway):
    metrics = gateway.get_metrics()
    ends = ("cache_hits", "stale_answers", "coalesced", "served", "failures", "cancelled")
    return metrics["total_requests"] == sum(metrics[end] for end in ends)


async def read(stream):
    return [chunk async for chunk in stream]


async def broken(stream):
    """What came before the break, and the break."""
    chunks = []
    try:
        async for chunk in stream:
            chunks.append(chunk)  # noqa: PERF401 - what came before the error counts
    except StreamInterruptedError as error:
        return chunks, error
    pytest.fail("it did not break")


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


class TestWhole:
    async def test_pieces_come_as_they_are_and_the_last_one_says_how_it_ended(self, make, vendor):
        vendor.script("a", ScriptedStream("Hel", "lo", usage=Usage(3, 2, 5)))
        stream = make().stream("hi")
        chunks = await read(stream)
        assert [chunk.text for chunk in chunks] == ["Hel", "lo", ""]
        assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop"]
        assert [chunk.usage for chunk in chunks] == [None, None, Usage(3, 2, 5)]

    async def test_the_response_is_what_chat_gives(self, make, vendor):
        vendor.script("a", K.SERVER_ERROR, ScriptedStream("Hel", "lo", cost_usd=0.25))
        gateway = make()
        stream = gateway.stream("hi")
        with pytest.raises(GatewayError, match="has not come to its end"):
            _ = stream.response
        await read(stream)
        reply = stream.response
        assert (reply.text, reply.provider, reply.finish_reason) == ("ok", "b", "stop")
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            ("a", K.SERVER_ERROR),
            ("b", None),
        ]
        again = gateway.stream("other")
        await read(again)
        assert (again.response.text, again.response.cost_usd) == ("Hello", 0.25)
        assert again.response.request_id != reply.request_id
        assert balanced(gateway)

    async def test_tool_calls_reasoning_and_refusals_are_put_together(self, make, vendor):
        vendor.script(
            "a",
            ScriptedStream(
                Chunk(reasoning="Well, "),
                Chunk(reasoning="then."),
                Chunk(tool_calls=(ToolCallDelta(0, "c1", "look", '{"a'),)),
                Chunk(tool_calls=(ToolCallDelta(0, arguments='": 1}'),)),
                Chunk(tool_calls=(ToolCallDelta(1, "c2", "go", "{}"),)),
                finish_reason="tool_calls",
            ),
        )
        stream = make().stream("hi")
        await read(stream)
        reply = stream.response
        assert reply.reasoning == "Well, then."
        assert [(c.id, c.name, c.arguments) for c in reply.tool_calls] == [
            ("c1", "look", '{"a": 1}'),
            ("c2", "go", "{}"),
        ]
        assert reply.finish_reason == "tool_calls"

    async def test_parsed_is_filled_and_an_answer_that_does_not_fit_is_a_break(self, make, vendor):
        class Sum(BaseModel):
            total: int

        vendor.script("a", ScriptedStream('{"total"', ": 4}"), ScriptedStream("four"))
        gateway = make()
        stream = gateway.stream("2+2", response_format=Sum)
        await read(stream)
        assert stream.response.parsed == Sum(total=4)
        with pytest.raises(StreamInterruptedError) as raised:
            await read(gateway.stream("2 + 2", response_format=Sum))
        assert raised.value.causes[-1].kind is K.INVALID_OUTPUT
        assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED

    async def test_bad_input_is_refused_before_anything_is_sent(self, make, vendor):
        gateway = make()
        with pytest.raises(UnknownModelError):
            gateway.stream("hi", model="nobody's")
        with pytest.raises(RequestRejectedError, match="resume"):
            gateway.stream("hi", resume="sometimes")
        with pytest.raises(RequestRejectedError):
            gateway.stream("hi", temperature=9)
        assert vendor.calls == []
        assert gateway.get_metrics()["total_requests"] == 0

    async def test_the_words_of_other_libraries_are_understood(self, make, vendor):
        stream = make().stream("hi", stream=True, stream_options={"include_usage": True})
        await read(stream)
        assert "stream" not in vendor.calls[0][1].params
        assert "stream_options" not in vendor.calls[0][1].params


class TestBeforeTheFirstContent:
    @pytest.mark.parametrize(
        "step",
        [
            pytest.param(K.CONNECTION, id="refused"),
            pytest.param(Failure(K.SERVER_ERROR, 503), id="503"),
            pytest.param(ScriptedStream(K.SERVER_ERROR), id="error event"),
            pytest.param(ScriptedStream(K.BAD_ANSWER), id="empty"),
        ],
    )
    async def test_the_next_provider_and_one_clean_stream(self, make, vendor, step):
        vendor.script("a", step)
        vendor.script("b", ScriptedStream("one", " two"))
        gateway = make()
        stream = gateway.stream("hi")
        assert text_of(await read(stream)) == "one two"
        assert stream.response.provider == "b"
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 1

    async def test_a_rate_limit_cools_down(self, make, vendor):
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=9))
        gateway = make()
        await read(gateway.stream("hi"))
        assert state_of(gateway, "a").retry_after_seconds == pytest.approx(9)

    async def test_silence_is_given_up_after_first_token_timeout(self, make, vendor, clock):
        vendor.script("a", ScriptedStream(silence))
        gateway = make(first_token_timeout=3)
        stream = gateway.stream("hi")
        reading = asyncio.create_task(read(stream))
        await clock.advance(2.9)
        assert not reading.done()
        await clock.advance(0.2)
        assert text_of(await reading) == "ok"
        (first, _) = stream.response.attempts
        assert (first.provider, first.failure) == ("a", K.TIMEOUT)
        assert first.latency_seconds == pytest.approx(3)
        assert stream.response.first_content_seconds == pytest.approx(3)

    async def test_what_is_no_content_does_not_count(self, make, vendor, clock):
        async def ping():
            await clock.sleep(1)

        vendor.script("a", ScriptedStream(*[ping] * 10, "late"))
        gateway = make(first_token_timeout=3)
        stream = gateway.stream("hi")
        reading = asyncio.create_task(read(stream))
        await clock.advance(3.5)
        await reading
        assert stream.response.provider == "b"

    @pytest.mark.parametrize(
        ("asked", "by"),
        [({"reasoning_effort": "high"}, "a"), ({"reasoning_effort": "none"}, "b"), ({}, "b")],
    )
    async def test_a_model_that_is_asked_to_think_may_be_silent(
        self, make, vendor, clock, asked, by
    ):
        vendor.script("a", ScriptedStream(silence_until(clock, 85), "deep"))
        gateway = make(first_token_timeout=3)
        stream = gateway.stream("hi", **asked)
        reading = asyncio.create_task(read(stream))
        await clock.advance(86)
        await reading
        assert stream.response.provider == by

    async def test_but_not_before_it_begins(self, make, vendor, clock):
        vendor.script("a", silence)
        gateway = make(first_token_timeout=3)
        stream = gateway.stream("hi", reasoning_effort="high")
        reading = asyncio.create_task(read(stream))
        await clock.advance(3.1)
        await reading
        assert stream.response.provider == "b"

    async def test_and_a_whole_answer_may_take_as_long(self, make, vendor, clock):
        vendor.script("a", silence_until(clock, 85))
        asking = asyncio.create_task(make().chat("hi", thinking={"type": "adaptive"}))
        await clock.advance(86)
        assert (await asking).provider == "a"

    async def test_nobody_answers(self, make, vendor):
        gateway = make("a", "b")
        vendor.always("a", K.SERVER_ERROR)
        vendor.always("b", ScriptedStream(K.CONNECTION))
        with pytest.raises(AllProvidersFailedError) as raised:
            await read(gateway.stream("hi"))
        assert [c.kind for c in raised.value.causes] == [K.SERVER_ERROR, K.CONNECTION]
        assert balanced(gateway)

    async def test_the_timeout_bounds_the_search(self, make, vendor, clock):
        gateway = make("a", timeout=5, attempt_timeout=60, first_token_timeout=60)
        vendor.always("a", ScriptedStream(silence))
        reading = asyncio.create_task(read(gateway.stream("hi")))
        await clock.advance(5.1)
        with pytest.raises(DeadlineExceededError):
            await reading

    async def test_and_not_the_answer(self, make, vendor, clock):
        async def pause():
            await clock.sleep(4)

        vendor.script("a", ScriptedStream("a", pause, "b", pause, "c"))
        gateway = make(timeout=5)
        reading = asyncio.create_task(read(gateway.stream("hi")))
        await clock.advance(9)
        assert text_of(await reading) == "abc"


class TestAfterTheFirstContent:
    @pytest.mark.parametrize("kind", [K.CONNECTION, K.SERVER_ERROR, K.BAD_ANSWER])
    async def test_a_break_is_raised_with_what_came(self, make, vendor, kind):
        vendor.script("a", ScriptedStream("Once", " upon", kind))
        gateway = make()
        came, error = await broken(gateway.stream("hi"))
        assert [chunk.text for chunk in came] == ["Once", " upon"]
        assert (error.text, error.provider, error.causes[-1].kind) == ("Once upon", "a", kind)
        assert "Once" not in str(error)
        assert "Once" not in repr(error)
        again = pickle.loads(pickle.dumps(error))
        assert (again.text, again.provider, again.causes) == (error.text, "a", error.causes)
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 1
        assert vendor.called("b") == 0
        assert balanced(gateway)

    async def test_silence_longer_than_idle_timeout_is_a_break(self, make, vendor, clock):
        vendor.script("a", ScriptedStream("Once", silence))
        gateway = make(idle_timeout=4)
        reading = asyncio.create_task(read(gateway.stream("hi")))
        await clock.advance(3.9)
        assert not reading.done()
        await clock.advance(0.2)
        with pytest.raises(StreamInterruptedError) as raised:
            await reading
        assert raised.value.causes[-1].kind is K.TIMEOUT

    @pytest.mark.parametrize("over", [False, True])
    async def test_pings_are_no_content(self, make, vendor, clock, over):
        async def ping():
            await clock.sleep(3)

        vendor.script("a", ScriptedStream("Once", *[ping] * 100, "late"))
        gateway = make("a", idle_timeout=10, chat_over_stream=over, timeout=1000)
        asking = asyncio.create_task(gateway.chat("hi") if over else read(gateway.stream("hi")))
        await clock.advance(10.1)
        with pytest.raises(AllProvidersFailedError if over else StreamInterruptedError):
            await asking

    @pytest.mark.parametrize("over", [False, True])
    async def test_a_stall_of_the_loop_is_no_silence(self, make, vendor, clock, over):
        async def stall():
            clock.tick(20)

        vendor.script("a", ScriptedStream("Once ", stall, "upon ", stall, "a time"))
        gateway = make("a", idle_timeout=10, chat_over_stream=over, timeout=1000)
        if over:
            assert (await gateway.chat("hi")).text == "Once upon a time"
        else:
            chunks = await read(gateway.stream("hi"))
            assert "".join(chunk.text for chunk in chunks) == "Once upon a time"

    async def test_what_should_not_come_through_is_a_break_too(self, make, vendor):
        async def bug():
            raise KeyError("x")

        vendor.script("a", ScriptedStream("Once", bug))
        gateway = make()
        _, error = await broken(gateway.stream("hi"))
        assert error.causes[-1].kind is K.UNKNOWN
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 1

    async def test_a_slow_reader_is_not_a_silent_vendor(self, make, vendor, clock):
        vendor.script("a", ScriptedStream("a", "b", "c"))
        gateway = make(idle_timeout=4)
        came = []
        async for chunk in gateway.stream("hi"):
            came.append(chunk.text)
            clock.tick(100)
        assert "".join(came) == "abc"

    async def test_a_vendor_that_says_stop_and_then_nothing_has_answered(self, make, vendor, clock):
        class Lingering(ScriptedStream):
            pass

        script = Lingering("all", silence)
        vendor.script("a", script)
        gateway = make()
        stream = gateway.stream("hi")
        came = [await anext(stream)]
        inner = vendor.streams[-1]
        inner.finish("stop")
        rest = asyncio.create_task(read(stream))
        await clock.advance(1.1)
        assert text_of(came + await rest) == "all"
        assert stream.response.finish_reason == "stop"
        assert stream.response.attempts[-1].ok


class TestRestart:
    async def test_another_provider_begins_anew_after_a_mark(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", " upon", K.CONNECTION))
        vendor.script("b", ScriptedStream("There", " was"))
        gateway = make()
        stream = gateway.stream("hi", resume="restart")
        chunks = await read(stream)
        mark = next(i for i, chunk in enumerate(chunks) if chunk.restarted)
        assert text_of(chunks[:mark]) == "Once upon"
        assert text_of(chunks[mark:]) == "There was"
        reply = stream.response
        assert (reply.text, reply.provider, reply.resumed) == ("There was", "b", False)
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            ("a", K.CONNECTION),
            ("b", None),
        ]
        assert balanced(gateway)

    @pytest.mark.parametrize("how", ["aclose", "break", "error"])
    async def test_leaving_at_the_mark_leaves_nothing(self, make, vendor, how):
        class WipedError(Exception):
            pass

        vendor.script("a", ScriptedStream("Once", K.CONNECTION))
        vendor.script("b", ScriptedStream("There", silence))
        gateway = make("a", "b")
        try:
            async with gateway.stream("hi", resume="restart") as stream:
                async for chunk in stream:
                    if chunk.restarted:
                        if how == "error":
                            raise WipedError  # noqa: TRY301 - an application's own
                        if how == "aclose":
                            await stream.aclose()
                        break
        except WipedError:
            assert how == "error"
        assert vendor.open_streams == 0
        assert gateway.get_metrics()["in_flight"] == 0
        assert state_of(gateway, "b").in_flight == 0
        assert balanced(gateway)

    async def test_one_that_refuses_the_request_does_not_keep_it_from_the_next(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", K.CONNECTION))
        vendor.script("b", K.REJECTED)
        stream = make().stream("hi", resume="restart")
        await read(stream)
        assert stream.response.provider == "c"

    async def test_where_nobody_is_left_the_first_break_is_raised_and_no_mark(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", K.CONNECTION))
        vendor.always("b", K.SERVER_ERROR)
        gateway = make("a", "b")
        came, error = await broken(gateway.stream("hi", resume="restart"))
        assert (error.provider, error.text) == ("a", "Once")
        assert [str(cause) for cause in error.causes] == ["b: server_error", "a: connection"]
        assert not any(chunk.restarted for chunk in came)

    async def test_a_provider_that_broke_is_not_asked_again(self, make, vendor):
        vendor.always("a", ScriptedStream("x", K.CONNECTION))
        vendor.always("b", ScriptedStream("y", K.CONNECTION))
        gateway = make("a", "b", retry_rounds=2)
        with pytest.raises(StreamInterruptedError):
            await read(gateway.stream("hi", resume="restart"))
        assert [name for name, _ in vendor.calls] == ["a", "b"]

    async def test_the_only_provider_begins_anew_once(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", K.CONNECTION), ScriptedStream("There", " was"))
        stream = make("a").stream("hi", resume="restart")
        chunks = await read(stream)
        assert [chunk.restarted for chunk in chunks].count(True) == 1
        assert stream.response.text == "There was"
        vendor.always("b", ScriptedStream("x", K.CONNECTION))
        with pytest.raises(StreamInterruptedError):
            await read(make("b").stream("hi", resume="restart"))
        assert [name for name, _ in vendor.calls] == ["a", "a", "b", "b"]

    @pytest.mark.parametrize("kind", [K.REJECTED, K.UNSUPPORTED, K.SERVER_ERROR])
    async def test_what_a_vendor_refuses_in_the_middle_another_may_answer(self, make, vendor, kind):
        vendor.script("a", ScriptedStream("Once", kind))
        vendor.script("b", ScriptedStream("There", " was"))
        stream = make().stream("hi", resume="restart")
        await read(stream)
        assert (stream.response.text, stream.response.provider) == ("There was", "b")

    async def test_it_has_time_of_its_own(self, make, vendor, clock):
        async def pause():
            await clock.sleep(9)

        vendor.script("a", ScriptedStream("x", pause, K.CONNECTION))
        gateway = make(timeout=5)
        stream = gateway.stream("hi", resume="restart")
        reading = asyncio.create_task(read(stream))
        await clock.advance(10)
        await reading
        assert stream.response.provider == "b"


class TestContinue:
    async def test_a_willing_provider_goes_on_from_the_text(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", " upon ", K.CONNECTION))
        vendor.script("c", ScriptedStream(" a", " time.", usage=Usage(9, 2, 11), cost_usd=0.5))
        vendor.accepts_prefill = {"c"}
        gateway = make()
        stream = gateway.stream("hi", resume="continue")
        assert text_of(await read(stream)) == "Once upon a time."
        reply = stream.response
        assert (reply.text, reply.provider, reply.resumed) == ("Once upon a time.", "c", True)
        # What the second vendor counted, and the estimate for the first: 2 bytes and 11.
        assert (reply.usage.total_tokens, reply.cost_usd) == (11 + 1 + 3, 0.5)
        name, request = vendor.calls[-1]
        assert name == "c"
        assert request.messages[-1] == {"role": ASSISTANT, "content": "Once upon"}
        assert vendor.called("b") == 0
        assert balanced(gateway)

    async def test_the_sources_of_both_parts_are_there(self, make, vendor):
        first, second = (Chunk(t, sources_json=f'{{"citations": ["{t}"]}}') for t in "ab")
        vendor.script("a", ScriptedStream(first, K.CONNECTION))
        vendor.script("c", ScriptedStream(second))
        vendor.accepts_prefill = {"c"}
        stream = make().stream("hi", resume="continue")
        assert text_of(await read(stream)) == "ab"
        assert stream.response.sources == {"citations": ["a", "b"]}

    @pytest.mark.parametrize(
        ("pieces", "params"),
        [
            pytest.param((Chunk(tool_calls=(ToolCallDelta(0, "c", "f", "{"),)),), {}, id="tools"),
            pytest.param((Chunk(images=("https://picture.test",)),), {}, id="picture"),
            pytest.param(("{",), {"response_format": {"type": "json_object"}}, id="format"),
            pytest.param((Chunk("x", index=1),), {"n": 2}, id="n"),
            pytest.param((Chunk(reasoning="hm"),), {}, id="no text yet"),
        ],
    )
    async def test_never_where_text_is_not_all(self, make, vendor, pieces, params):
        vendor.script("a", ScriptedStream(*pieces, K.CONNECTION))
        vendor.accepts_prefill = {"b", "c"}
        with pytest.raises(StreamInterruptedError):
            await read(make().stream("hi", resume="continue", **params))
        assert vendor.called("b") + vendor.called("c") == 0

    async def test_never_where_nobody_is_known_to_be_able_to(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", K.CONNECTION))
        with pytest.raises(StreamInterruptedError):
            await read(make().stream("hi", resume="continue"))

    async def test_a_joined_answer_is_not_remembered(self, make, vendor):
        vendor.script("a", ScriptedStream("Once", K.CONNECTION))
        vendor.accepts_prefill = {"b"}
        gateway = make()
        await read(gateway.stream("hi", resume="continue"))
        assert not (await gateway.chat("hi")).cached


class TestCircuit:
    async def test_a_probe_is_judged_at_the_first_content_and_a_later_break_counts_once(
        self, make, vendor, clock
    ):
        gateway = make("a", failure_threshold=1)
        vendor.script("a", K.SERVER_ERROR, ScriptedStream("x", "y", K.CONNECTION))
        with pytest.raises(AllProvidersFailedError):
            await read(gateway.stream("hi"))
        clock.tick(61)
        stream = gateway.stream("hi")
        await anext(stream)
        assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED
        with pytest.raises(StreamInterruptedError):
            await read(stream)
        assert state_of(gateway, "a").circuit_state is CircuitState.OPEN
        assert gateway.get_metrics()["providers"]["a"]["attempts"] == 2

    async def test_who_waits_for_a_probe_goes_on_at_its_first_content(self, make, vendor, clock):
        gateway = make("a", failure_threshold=1)
        vendor.script("a", K.SERVER_ERROR, ScriptedStream(silence_until(clock, 5), "x", silence))
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")
        clock.tick(61)
        stream = gateway.stream("1")
        probing = asyncio.create_task(anext(stream))
        await clock.settle()
        waiting = asyncio.create_task(gateway.chat("2"))
        await clock.advance(5.1)
        assert (await probing).text == "x"
        await clock.settle()
        assert (await waiting).provider == "a"
        await stream.aclose()

    async def test_five_breaks_in_a_row_open_it(self, make, vendor):
        gateway = make()
        vendor.always("a", ScriptedStream("x", K.CONNECTION))
        for turn in range(5):
            assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED
            with pytest.raises(StreamInterruptedError):
                await read(gateway.stream(f"{turn}"))
        assert state_of(gateway, "a").circuit_state is CircuitState.OPEN

    async def test_the_place_is_held_as_long_as_the_stream(self, make, vendor):
        gateway = make("a", fields={"max_concurrency": 1})
        stream = gateway.stream("1")
        await anext(stream)
        assert state_of(gateway, "a").in_flight == 1
        waiting = asyncio.create_task(read(gateway.stream("2")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        await read(stream)
        assert text_of(await waiting) == "ok"
        assert state_of(gateway, "a").in_flight == 0


class TestLeaving:
    async def leave_by_aclose(self, stream):
        async with stream:
            await anext(stream)

    async def leave_by_break(self, stream):
        async for _ in stream:
            break
        del stream

    async def leave_by_cancellation(self, stream):
        async def first_and_on():
            async for _ in stream:
                pass

        task = asyncio.create_task(first_and_on())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @pytest.mark.parametrize("how", ["aclose", "break", "cancellation"])
    async def test_closes_the_vendors_stream_and_is_neutral(self, make, vendor, how):
        gateway = make()
        vendor.script("a", ScriptedStream("x", silence if how == "cancellation" else "y", "z"))
        streams = [gateway.stream("hi")]
        await getattr(self, f"leave_by_{how}")(streams.pop())
        for _ in range(20):
            await asyncio.sleep(0)
        gc.collect(0)
        assert vendor.open_streams == 0
        metrics = gateway.get_metrics()
        assert metrics["providers"]["a"]["consecutive_failures"] == 0
        assert metrics["providers"]["a"]["failures"] == {"cancelled": 1}
        assert (metrics["cancelled"], metrics["in_flight"]) == (1, 0)
        assert balanced(gateway)

    async def test_another_task_may_close_it_under_the_reader(self, make, vendor):
        gateway = make()
        vendor.script("a", ScriptedStream("x", silence))
        stream = gateway.stream("hi")
        reading = asyncio.create_task(read(stream))
        for _ in range(20):
            await asyncio.sleep(0)
        await stream.aclose()
        assert vendor.open_streams == 0
        assert text_of(await reading) == "x"
        with pytest.raises(GatewayError, match="no whole answer"):
            _ = stream.response
        assert balanced(gateway)

    async def test_only_one_task_can_read(self, make, vendor):
        vendor.script("a", ScriptedStream("x", silence))
        stream = make().stream("hi")
        reading = asyncio.create_task(read(stream))
        for _ in range(20):
            await asyncio.sleep(0)
        with pytest.raises(GatewayError, match="Another task"):
            await anext(stream)
        await stream.aclose()
        await reading

    async def test_one_that_is_handed_over_has_one_reader_too(self, make, vendor):
        began, go_on = asyncio.Event(), asyncio.Event()

        async def wait():
            began.set()
            await go_on.wait()

        vendor.script("a", ScriptedStream("x", wait, "y"))
        stream = make().stream("hi")
        await stream.start()
        events = stream.sse()
        read = [await anext(events)]
        reading = asyncio.create_task(anext(events))
        await began.wait()
        await asyncio.sleep(0)
        with pytest.raises(MisuseError, match="Another task"):
            await anext(events)
        go_on.set()
        read += [await reading, *[event async for event in events]]
        text = b"".join(read).decode()
        assert '"x"' in text
        assert '"y"' in text
        assert text.endswith("[DONE]\n\n")

    async def test_after_a_cancelled_read_half_an_answer_is_not_taken_for_a_whole_one(
        self, make, vendor
    ):
        vendor.script("a", ScriptedStream("x", silence))
        stream = make().stream("hi")
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        with pytest.raises(GatewayError, match="cancelled"):
            await anext(stream)

    async def test_one_that_was_never_read_was_never_asked(self, make, vendor):
        gateway = make()
        stream = gateway.stream("hi")
        await stream.aclose()
        assert await read(stream) == []
        assert vendor.calls == []
        assert gateway.get_metrics()["total_requests"] == 0

    async def test_leaving_after_the_last_chunk_is_no_leaving(self, make, vendor):
        gateway = make()
        async for chunk in gateway.stream("hi"):
            if chunk.finish_reason:
                break
        await asyncio.sleep(0)
        assert gateway.get_metrics()["served"] == 1
        assert balanced(gateway)

    async def test_a_gateway_that_closes_says_so_to_who_reads(self, make, vendor):
        gateway = make()
        vendor.script("a", ScriptedStream("x", silence))
        vendor.script("b", ScriptedStream("x", "y"))
        busy, idle = gateway.stream("1"), gateway.stream("2", model="b")
        reading = asyncio.create_task(read(busy))
        await anext(idle)
        await gateway.aclose()
        with pytest.raises(GatewayError, match="closed"):
            await reading
        with pytest.raises(GatewayError, match="closed"):
            await anext(idle)
        with pytest.raises(GatewayError, match="closed"):
            await read(gateway.stream("3"))
        assert vendor.open_streams == 0


class TestCache:
    async def test_a_whole_stream_fills_it_for_streams_and_chats(self, make, vendor):
        gateway = make()
        vendor.script("a", ScriptedStream("Once", " upon", " a time."))
        await read(gateway.stream("hi"))
        assert (await gateway.chat("hi")).cached
        stream = gateway.stream("hi")
        chunks = await read(stream)
        assert text_of(chunks) == "Once upon a time."
        assert len(chunks) > 3, "piece by piece"
        assert (chunks[-1].finish_reason, chunks[-1].usage.total_tokens) == ("stop", 2)
        assert stream.response.cached
        assert stream.response.cost_usd == 0
        assert vendor.called() == 1
        assert balanced(gateway)

    async def test_a_stream_that_was_left_or_broke_does_not(self, make, vendor):
        gateway = make()
        async with gateway.stream("hi") as stream:
            await anext(stream)
        vendor.script("a", ScriptedStream("x", K.CONNECTION))
        with pytest.raises(StreamInterruptedError):
            await read(gateway.stream("hi"))
        assert not (await gateway.chat("hi")).cached

    async def test_a_gateway_that_closes_cuts_no_hit_short_without_a_word(self, make, vendor):
        gateway = make()
        vendor.script("a", ScriptedStream("one two three"))
        await read(gateway.stream("hi"))
        stream = gateway.stream("hi")
        await anext(stream)
        await gateway.aclose()
        with pytest.raises(GatewayError, match="closed"):
            await read(stream)

    async def test_refresh_and_false(self, make, vendor):
        gateway = make()
        await gateway.chat("hi")
        for cache in (False, "refresh"):
            stream = gateway.stream("hi", cache=cache)
            await read(stream)
            assert not stream.response.cached
        assert vendor.called() == 3

    async def test_a_stale_answer_stands_in_when_nobody_begins(self, make, vendor, clock):
        gateway = make("a", cache_ttl_seconds=10, stale_if_error_seconds=100)
        await read(gateway.stream("hi"))
        clock.tick(50)
        vendor.always("a", K.SERVER_ERROR)
        stream = gateway.stream("hi")
        assert text_of(await read(stream)) == "ok"
        assert stream.response.stale
        assert balanced(gateway)


class TestChatOverStream:
    async def test_the_answer_is_the_same(self, make, vendor):
        vendor.script("a", ScriptedStream("Hel", "lo", usage=Usage(3, 2, 5), cost_usd=0.5))
        reply = await make(chat_over_stream=True).chat("hi")
        assert (reply.text, reply.usage, reply.cost_usd) == ("Hello", Usage(3, 2, 5), 0.5)

    async def test_a_cut_begins_anew_unseen(self, make, vendor):
        vendor.script("a", ScriptedStream("Hel", K.CONNECTION))
        reply = await make(chat_over_stream=True).chat("hi")
        assert (reply.text, reply.provider) == ("ok", "b")

    @pytest.mark.parametrize(
        ("script", "settings"),
        [
            pytest.param((silence,), {"first_token_timeout": 2}, id="first"),
            pytest.param(("x", silence), {"idle_timeout": 2}, id="idle"),
        ],
    )
    async def test_silence_is_noticed_long_before_the_attempt_timeout(
        self, make, vendor, clock, script, settings
    ):
        vendor.script("a", ScriptedStream(*script))
        gateway = make(chat_over_stream=True, attempt_timeout=30, **settings)
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(2.1)
        reply = await asking
        assert [(a.provider, a.failure) for a in reply.attempts] == [("a", K.TIMEOUT), ("b", None)]


# ── who answers ──────────────────────────────────────────────────────────────────────────────


async def test_the_opening_says_who_answers_from_the_first_chunk_on(make, vendor):
    gateway = make("a", "b")
    vendor.script("a", K.SERVER_ERROR)
    vendor.script("b", ScriptedStream("one", "two"))
    async with gateway.stream("hi") as stream:
        assert stream.opening is None
        await anext(stream)
        assert stream.opening is not None
        assert (stream.opening.provider, stream.opening.model) == ("b", "simulated")
        assert (stream.opening.attempts, stream.opening.cached) == (2, False)
        async for _ in stream:
            pass
    async with gateway.stream("hi") as again:
        await anext(again)
        assert again.opening is not None
        assert (again.opening.provider, again.opening.attempts) == ("b", 0)
        assert again.opening.cached
        assert not again.opening.stale


async def test_the_opening_of_a_stale_answer_says_so(make, vendor, clock):
    gateway = make("a", cache_ttl_seconds=1, stale_if_error_seconds=60)
    async for _ in gateway.stream("hi"):
        pass
    await clock.advance(2)
    vendor.script("a", K.SERVER_ERROR)
    async with gateway.stream("hi") as stream:
        await anext(stream)
        assert stream.opening is not None
        assert stream.opening.stale


async def test_the_opening_of_a_resumed_stream_names_the_last_provider(make, vendor):
    gateway = make("a", "b")
    vendor.script("a", ScriptedStream("one", K.SERVER_ERROR))
    async with gateway.stream("hi", resume="restart") as stream:
        providers = [stream.opening.provider async for _ in stream if stream.opening is not None]
    assert providers[0] == "a"
    assert providers[-1] == "b"


async def test_an_answer_without_content_has_an_opening_too(make, vendor):
    gateway = make("a")
    vendor.script("a", ScriptedStream())
    async with gateway.stream("hi") as stream:
        await anext(stream)
        assert stream.opening is not None
        assert (stream.opening.provider, stream.opening.attempts) == ("a", 1)


# ── for a browser ────────────────────────────────────────────────────────────────────────────


def data_of(events):
    """The data of OpenAI's events, but for the last one."""
    lines = b"".join(events).removesuffix(b"\n\n").split(b"\n\n")
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]


def said_in(events):
    deltas = [c["delta"] for e in data_of(events) for c in e.get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)


class TestStart:
    async def test_it_comes_back_with_the_first_content_which_is_not_lost(self, make, vendor):
        vendor.script("a", K.SERVER_ERROR)
        vendor.script("b", ScriptedStream("one ", "two"))
        stream = make("a", "b").stream("hi")
        assert await stream.start() is stream
        assert stream.opening is not None
        assert (stream.opening.provider, stream.opening.attempts) == ("b", 2)
        assert await stream.start() is stream
        assert text_of(await read(stream)) == "one two"
        assert vendor.called() == 2

    async def test_what_the_vendor_does_not_date_is_dated_on_arrival(self, make, clock):
        gateway, arrived = make("a"), int(clock.wall())
        whole = await gateway.chat("hi")
        stream = await gateway.stream("hello").start()
        await clock.advance(60)
        assert b'"created":%d' % arrived in b"".join([event async for event in stream.sse()])
        again = await gateway.chat("hi")
        assert again.cached
        for reply in (whole, stream.response, again):
            assert reply.to_openai()["created"] == arrived

    async def test_an_outage_is_known_before_anything_is_sent(self, make, vendor):
        for name in "abc":
            vendor.always(name, K.SERVER_ERROR)
        stream = make().stream("hi")
        with pytest.raises(AllProvidersFailedError) as caught:
            await stream.start()
        assert caught.value.http_status == 503
        assert caught.value.http_headers == {"Retry-After": "1"}
        assert caught.value.to_openai()["error"]["code"] == "all_providers_failed"
        with pytest.raises(MisuseError, match="begin another"):
            await stream.start()

    async def test_a_mistake_of_the_program_is_no_outage(self, make):
        gateway = make("a")
        with pytest.raises(MisuseError, match="has not started") as caught:
            gateway.stream("hi").sse()
        assert (caught.value.http_status, caught.value.http_headers) == (500, {})
        assert caught.value.to_openai()["error"]["code"] == "misuse"
        await gateway.aclose()
        with pytest.raises(MisuseError, match="is closed"):
            await gateway.chat("hi")

    async def test_async_with_waits_for_the_first_read_and_closes_what_has_started(
        self, make, vendor
    ):
        gateway = make("a")
        async with gateway.stream("hi"):
            pass
        assert vendor.called() == 0
        vendor.script("a", ScriptedStream("one", silence))
        async with await gateway.stream("hi").start():
            assert vendor.open_streams == 1
        assert vendor.open_streams == 0


class TestServerSentEvents:
    async def test_they_are_openais_chunks(self, make, vendor):
        vendor.script("a", ScriptedStream("one ", "two", usage=Usage(3, 2, 5)))
        stream = await make("a").stream("hi").start()
        *events, done = [event async for event in stream.sse(include_usage=True)]
        assert done == b"data: [DONE]\n\n"
        chunks = [ChatCompletionChunk.model_validate(data) for data in data_of(events)]
        assert said_in(events) == "one two"
        assert chunks[0].choices[0].delta.role == ASSISTANT
        assert (chunks[0].model, chunks[0].object) == ("simulated", "chat.completion.chunk")
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 5

    async def test_what_came_together_is_sent_together(self, make, vendor, monkeypatch):
        read_one = testing._ScriptedVendorStream.read

        async def read_three(stream):
            return [piece for _ in range(3) for piece in await read_one(stream) or ()]

        monkeypatch.setattr(testing._ScriptedVendorStream, "read", read_three)
        words = [f'"{place}" \\ é\n' for place in range(6)]
        vendor.script("a", ScriptedStream(*words, K.SERVER_ERROR))
        stream = await make("a").stream("hi").start()
        *events, broken = [event async for event in stream.sse()]
        assert [event.count(b"data: ") for event in events] == [3, 3]
        assert said_in(events) == "".join(words)
        assert b'"error"' in broken

    async def test_a_chunk_alone_is_one_too(self, make, vendor):
        stream = make("a").stream("hi")
        chunks = await read(stream)
        written = [
            ChatCompletionChunk.model_validate(chunk.to_openai(stream.opening)) for chunk in chunks
        ]
        assert written[0].choices[0].delta.content == "ok"
        assert {chunk.model for chunk in written} == {"simulated"}
        assert written[-1].choices[0].finish_reason == "stop"
        assert written[-1].usage is not None
        assert ChatCompletionChunk.model_validate(Chunk("x").to_openai()).choices

    async def test_they_have_to_be_started(self, make, vendor):
        stream = make("a").stream("hi")
        with pytest.raises(GatewayError, match=r"await stream\.start\(\)"):
            stream.sse()
        assert vendor.called() == 0

    async def test_a_break_is_an_event_in_place_of_done(self, make, vendor):
        vendor.script("a", ScriptedStream("one", K.CONNECTION))
        stream = await make("a").stream("hi").start()
        events = [event async for event in stream.sse()]
        assert said_in(events) == "one"
        assert data_of(events)[-1]["error"]["code"] == "stream_interrupted"
        assert b"[DONE]" not in b"".join(events)

    async def test_silence_has_comments(self, make, vendor, clock):
        vendor.script("a", ScriptedStream("one", silence_until(clock, 40), "two"))
        stream = await make("a", idle_timeout=100).stream("hi").start()
        reading = asyncio.create_task(read(stream.sse()))
        await clock.advance(41)
        events = await reading
        assert events.count(b": waiting\n\n") == 2
        assert said_in([event for event in events if event[:1] != b":"]) == "onetwo"

    @pytest.mark.parametrize("seconds", [None, 15.0])
    async def test_closing_them_closes_the_vendors_stream(self, make, vendor, seconds):
        gateway = make("a")
        vendor.script("a", *[ScriptedStream("one", "two", silence) for _ in range(2)])
        stream = await gateway.stream("hi").start()
        events = stream.sse(ping_seconds=seconds)
        assert b"one" in await anext(events)
        await events.aclose()
        assert vendor.open_streams == 0
        stream = await gateway.stream("hi").start()
        reading = asyncio.create_task(read(stream.sse(ping_seconds=seconds)))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert vendor.open_streams == 0
        assert gateway.get_metrics()["cancelled"] == 2

    async def test_a_response_may_read_them_behind_async_with(self, make, vendor):
        async with await make("a").stream("hi").start() as stream:
            events = stream.sse()
            with pytest.raises(GatewayError, match="taken before"):
                stream.sse()
        assert said_in([event async for event in events]) == "ok"

    async def test_events_of_a_stream_that_was_closed_say_so(self, make, vendor):
        vendor.script("a", ScriptedStream("one", "two"))
        stream = await make("a").stream("hi").start()
        events = stream.sse()
        await stream.aclose()
        (only,) = [event async for event in events]
        assert b"error" in only

    async def test_events_that_are_dropped_leave_nothing_open(self, make, vendor):
        vendor.script("a", ScriptedStream("one", silence))
        async with await make("a").stream("hi").start() as stream:
            events = stream.sse()
        del events, stream
        gc.collect()
        await asyncio.sleep(0.01)
        assert vendor.open_streams == 0


class TestEventsOfOtherProtocols:
    BODY = MappingProxyType(
        {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    )

    async def test_they_are_the_protocols_own_with_its_error(self, make, vendor):
        gateway = make("a")
        stream = await gateway.stream_messages(self.BODY, cache=False).start()
        text = b"".join([event async for event in stream.sse()])
        assert text.startswith(b"event: message_start\n")
        assert b"event: message_stop\n" in text
        vendor.script("a", ScriptedStream("one", K.CONNECTION))
        async with await gateway.stream_messages(self.BODY, cache=False).start() as stream:
            events = stream.sse()
        text = b"".join([event async for event in events])
        assert b'event: error\ndata: {"type":"error","error":{"type":"api_error"' in text
        vendor.script("a", ScriptedStream("one", K.CONNECTION))
        stream = gateway.stream_responses({"input": "hi"}, cache=False)
        with pytest.raises(GatewayError, match="has not started"):
            stream.sse()
        await stream.start()
        assert b"event: response.failed\n" in b"".join([event async for event in stream.sse()])
        stream = await gateway.stream_completions({"prompt": "hi"}, cache=False).start()
        assert (await read(stream.sse()))[-1].endswith(b"data: [DONE]\n\n")

    @pytest.mark.parametrize("protocol", ["chat", "messages"])
    async def test_events_that_are_closed_before_their_first_close_the_stream(
        self, make, vendor, protocol
    ):
        vendor.script("a", ScriptedStream("one", silence), ScriptedStream("one", silence))
        gateway = make("a")

        async def handed_over() -> Any:
            if protocol == "chat":
                stream: Any = gateway.stream("hi", cache=False)
            else:
                stream = gateway.stream_messages(self.BODY, cache=False)
            async with await stream.start():
                return stream, stream.sse()

        stream, events = await handed_over()
        assert vendor.open_streams == 1
        await events.aclose()
        assert (vendor.open_streams, await read(events)) == (0, [])
        stream, events = await handed_over()
        with pytest.raises(LookupError):
            await events.athrow(LookupError())
        assert vendor.open_streams == 0
        assert stream is not None

    async def test_an_outage_is_known_before_anything_is_sent(self, make, vendor):
        vendor.always("a", K.SERVER_ERROR)
        stream = make("a").stream_messages(self.BODY)
        with pytest.raises(AllProvidersFailedError):
            await stream.start()
        with pytest.raises(GatewayError, match="begin another"):
            await stream.start()
