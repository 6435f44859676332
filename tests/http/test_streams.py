"""Streams over real HTTP, on each of the four wires, through the gateway."""

import asyncio
import gc

import pytest

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    FailureKind,
    StreamInterruptedError,
)
from aigateway.simulator import Answer, Fault, Simulator, ToolCall
from tests.gateways import gateway_for, metrics_of, name_of, until
from tests.processes import PATIENCE

pytestmark = pytest.mark.slow

K = FailureKind
TALE = Answer(text="Once upon a time there was an end.", usage={"prompt_tokens": 7})


@pytest.fixture
def telling(pair):
    """The pair, with something to say."""
    vendor, backup = pair
    vendor.answer(TALE)
    backup.answer("from the backup")
    return pair


async def text_of(stream):
    return "".join([chunk.text async for chunk in stream])


class TestWhole:
    async def test_the_same_answer_as_chat_piece_by_piece(self, telling):
        vendor, _ = telling
        async with gateway_for(vendor, cache_enabled=False) as gateway:
            stream = gateway.stream("hi")
            chunks = [chunk async for chunk in stream]
            whole = await gateway.chat("hi")
        assert "".join(chunk.text for chunk in chunks) == TALE.text
        assert len(chunks) > 4
        assert chunks[-1].finish_reason == "stop"
        assert chunks[-1].usage == whole.usage
        reply = stream.response
        assert (reply.text, reply.usage, reply.cost_usd, reply.finish_reason, reply.model) == (
            whole.text,
            whole.usage,
            whole.cost_usd,
            whole.finish_reason,
            whole.model,
        )
        assert len(vendor.received) == 2

    async def test_tool_calls(self, telling):
        vendor, _ = telling
        vendor.answer(Answer(tool_calls=[ToolCall("weather", {"city": "Oslo"})]))
        tool = {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
        async with gateway_for(vendor) as gateway:
            stream = gateway.stream("hi", tools=[tool])
            deltas = [d async for chunk in stream for d in chunk.tool_calls]
        (call,) = stream.response.tool_calls
        assert call.name == "weather"
        assert "".join(d.arguments for d in deltas) == call.arguments
        assert stream.response.finish_reason == "tool_calls"

    async def test_the_connection_is_used_again(self, telling):
        vendor, _ = telling
        async with gateway_for(vendor, cache_enabled=False) as gateway:
            for _ in range(5):
                await text_of(gateway.stream("hi"))
            assert vendor.open_connections == 1


BEFORE_THE_FIRST = [
    pytest.param(Fault.refuse(), K.CONNECTION, True, id="refused"),
    pytest.param(Fault.reset(), K.CONNECTION, True, id="reset"),
    pytest.param(Fault.server_error(500), K.SERVER_ERROR, True, id="500"),
    pytest.param(Fault.overloaded(), K.SERVER_ERROR, True, id="overloaded"),
    pytest.param(Fault.rate_limited(retry_after=9), K.RATE_LIMITED, False, id="429"),
    pytest.param(Fault.bad_key(), K.AUTHENTICATION, False, id="bad key"),
    pytest.param(Fault.error_event(), K.SERVER_ERROR, True, id="error event"),
    pytest.param(Fault.cut_stream(), K.BAD_ANSWER, True, id="empty stream"),
    pytest.param(Fault.html(), K.BAD_ANSWER, True, id="HTML"),
    pytest.param(Fault.empty(), K.BAD_ANSWER, True, id="nothing"),
    pytest.param(Fault.stall_stream(), K.TIMEOUT, True, id="no content"),
    pytest.param(Fault.hang(), K.TIMEOUT, True, id="no answer"),
]


@pytest.mark.parametrize(("fault", "kind", "counts"), BEFORE_THE_FIRST)
async def test_before_the_first_content_the_next_provider_gives_one_clean_stream(
    telling, fault, kind, counts
):
    vendor, backup = telling
    vendor.behave(fault)
    hasty = {"timeout": 0.3} if kind is K.TIMEOUT else {}
    configs = [vendor.config(**hasty), backup.config(priority=-1)]
    async with AsyncGateway(configs, retry_rounds=0) as gateway:
        stream = gateway.stream("hi")
        assert await text_of(stream) == "from the backup"
        failed, served = stream.response.attempts
        assert failed.failure == kind
        assert served.ok
        assert metrics_of(gateway, vendor)["consecutive_failures"] == counts
        assert len(backup.received) == 1


AFTER_THE_FIRST = [
    pytest.param(Fault.error_event(after=2), {K.SERVER_ERROR}, id="error event"),
    pytest.param(Fault.cut_stream(after=2), {K.BAD_ANSWER}, id="no finish reason"),
    pytest.param(
        Fault.cut_stream(after=2, clean=False), {K.CONNECTION, K.BAD_ANSWER}, id="hung up"
    ),
    pytest.param(Fault.reset_in_body(), {K.CONNECTION, K.BAD_ANSWER}, id="reset"),
    pytest.param(Fault.malformed(), {K.BAD_ANSWER}, id="corrupt chunk"),
    pytest.param(Fault.stall_stream(after=2), {K.TIMEOUT}, id="silence"),
]


class TestAfterTheFirstContent:
    @pytest.mark.parametrize(("fault", "kinds"), AFTER_THE_FIRST)
    async def test_a_break_is_raised_with_what_came_and_counts(self, telling, fault, kinds):
        vendor, backup = telling
        vendor.behave(fault)
        idle = 0.3 if K.TIMEOUT in kinds else PATIENCE
        async with gateway_for(vendor, backup, idle_timeout=idle) as gateway:
            stream = gateway.stream("hi")
            first = await anext(stream)
            with pytest.raises(StreamInterruptedError) as raised:
                await text_of(stream)
            assert metrics_of(gateway, vendor)["consecutive_failures"] == 1
        error = raised.value
        assert error.causes[-1].kind in kinds
        assert error.text.startswith(first.text)
        assert TALE.text.startswith(error.text)
        assert error.text
        assert backup.received == ()
        assert error.__cause__ is None

    @pytest.mark.parametrize(("fault", "kinds"), AFTER_THE_FIRST)
    async def test_restart(self, telling, fault, kinds):
        vendor, backup = telling
        vendor.behave(fault)
        idle = 0.3 if K.TIMEOUT in kinds else PATIENCE
        async with gateway_for(vendor, backup, idle_timeout=idle) as gateway:
            stream = gateway.stream("hi", resume="restart")
            chunks = [chunk async for chunk in stream]
        mark = [chunk.restarted for chunk in chunks].index(True)
        assert "".join(chunk.text for chunk in chunks[mark:]) == "from the backup"
        assert stream.response.text == "from the backup"
        assert stream.response.attempts[0].failure in kinds

    async def test_continue_sends_the_partial_text_to_one_that_takes_it(self, telling):
        willing, broken = telling
        broken.behave(Fault.cut_stream(after=3))
        broken.answer(TALE)
        willing.answer(" and so on.")
        configs = [
            broken.config(),
            willing.config(priority=-1, extra={"supports_assistant_prefill": True}),
        ]
        async with AsyncGateway(configs) as gateway:
            stream = gateway.stream("hi", resume="continue")
            text = await text_of(stream)
        assert text == "Once upon a and so on."
        assert stream.response.resumed
        (sent,) = willing.received
        turns = sent.body.get("messages") or sent.body["contents"]
        assert turns[-1]["role"] in {"assistant", "model"}

    async def test_leaving_at_the_mark_closes_the_new_connection(self, telling):
        vendor, backup = telling
        vendor.behave(Fault.cut_stream(after=2))
        backup.behave(Fault.stall_stream(after=1))
        async with gateway_for(vendor, backup) as gateway:
            async with gateway.stream("hi", resume="restart") as stream:
                async for chunk in stream:
                    if chunk.restarted:
                        break
            await until(lambda: backup.open_connections == 0)
            assert gateway.get_metrics()["in_flight"] == 0

    @pytest.mark.parametrize(
        ("fault", "idle"),
        [(Fault.cut_stream(after=2), PATIENCE), (Fault.stall_stream(after=2), 0.3)],
    )
    async def test_chat_over_a_stream_begins_anew_unseen(self, telling, fault, idle):
        vendor, backup = telling
        vendor.behave(fault)
        async with gateway_for(vendor, backup, chat_over_stream=True, idle_timeout=idle) as gateway:
            reply = await gateway.chat("hi")
        assert reply.text == "from the backup"


class TestLeaving:
    @pytest.mark.parametrize("how", ["aclose", "break", "cancel"])
    async def test_the_vendors_connection_is_closed_at_once(self, telling, how):
        vendor, _ = telling
        vendor.behave(Fault.stall_stream(after=2))
        async with gateway_for(vendor) as gateway:
            stream = gateway.stream("hi")
            await anext(stream)
            assert vendor.open_connections == 1
            if how == "aclose":
                await stream.aclose()
            elif how == "break":
                del stream
            else:
                reading = asyncio.create_task(text_of(stream))
                await asyncio.sleep(0.01)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            await until(lambda: vendor.open_connections == 0)
            assert metrics_of(gateway, vendor)["consecutive_failures"] == 0
            assert metrics_of(gateway, vendor)["in_flight"] == 0

    async def test_a_thousand_streams_opened_and_abandoned_leave_nothing(self, recwarn):
        async with Simulator() as simulator:
            for vendor in simulator.vendors:
                vendor.behave(Fault.stall_stream(after=1))
            before = asyncio.all_tasks()
            async with gateway_for(*simulator.vendors) as gateway:
                names = [provider.name for provider in gateway.providers]

                async def open_and_leave(turn):
                    stream = gateway.stream(f"{turn}", model=names[turn % 4])
                    await anext(stream)

                for start in range(0, 1000, 100):
                    await asyncio.gather(*map(open_and_leave, range(start, start + 100)))
                await until(
                    lambda: (
                        not any(vendor.open_connections for vendor in simulator.vendors)
                        and asyncio.all_tasks() <= before
                    )
                )
                metrics = gateway.get_metrics()
                assert (metrics["cancelled"], metrics["in_flight"]) == (1000, 0)
            gc.collect()
        assert [str(warning.message) for warning in recwarn] == []

    async def test_a_hedge_that_loses_is_closed(self, simulator):
        simulator.openai.behave(Fault.stall_stream())
        async with gateway_for(
            simulator.openai, simulator.anthropic, hedge=True, hedge_delay_seconds=0.05
        ) as gateway:
            stream = gateway.stream("hi")
            await text_of(stream)
            assert stream.response.provider.startswith("anthropic")
            await until(lambda: simulator.openai.open_connections == 0)


class TestCircuit:
    async def test_a_probe_is_judged_at_its_first_content(self, telling):
        vendor, backup = telling
        async with gateway_for(
            vendor, backup, failure_threshold=1, reset_timeout_seconds=0.05
        ) as gateway:
            vendor.behave(Fault.server_error())
            await text_of(gateway.stream("1"))
            assert metrics_of(gateway, vendor)["circuit_state"] == "open"
            await asyncio.sleep(0.06)
            vendor.behave(Fault.cut_stream(after=2))
            stream = gateway.stream("2")
            await anext(stream)
            assert metrics_of(gateway, vendor)["circuit_state"] == "closed"
            with pytest.raises(StreamInterruptedError):
                await text_of(stream)
            assert metrics_of(gateway, vendor)["circuit_state"] == "open"

    async def test_who_waits_for_the_probe_goes_on_at_its_first_content(self, telling):
        vendor, _ = telling
        async with gateway_for(
            vendor, failure_threshold=1, reset_timeout_seconds=0.05, cache_enabled=False
        ) as gateway:
            vendor.behave(Fault.server_error())
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat("1")
            await asyncio.sleep(0.06)
            vendor.recover()
            vendor.behave(Fault.stall_stream(after=2), times=1)
            stream = gateway.stream("2")
            probing = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            assert (await gateway.chat("3", timeout=PATIENCE)).provider == name_of(vendor)
            await probing
            await stream.aclose()


async def test_a_stream_fills_the_cache_and_a_hit_is_streamed(telling):
    vendor, _ = telling
    async with gateway_for(vendor) as gateway:
        await text_of(gateway.stream("hi"))
        assert (await gateway.chat("hi")).cached
        stream = gateway.stream("hi")
        assert await text_of(stream) == TALE.text
        assert stream.response.cached
    assert len(vendor.received) == 1


async def test_when_nobody_can_be_connected_to_it_looks_like_the_network(simulator):
    for vendor in simulator.vendors:
        vendor.behave(Fault.refuse())
    async with gateway_for(*simulator.vendors) as gateway:
        for turn in range(8):
            with pytest.raises(Exception, match="own network"):
                await gateway.chat(f"{turn}")
        assert {str(p.circuit_state) for p in gateway.providers} == {"closed"}
        for vendor in simulator.vendors:
            vendor.recover()
        assert (await gateway.chat("back")).provider.startswith("openai")
