"""Every request and every attempt is told of once, however it ends, and the books balance."""

import asyncio

import pytest

from aigateway import AsyncGateway, FailureKind, GatewayError
from aigateway.events import (
    AnswerDiscarded,
    AttemptEnded,
    ProviderFailed,
    RequestEnded,
    RequestServed,
)
from aigateway.messages import Choice, Completion, Origin, Usage
from aigateway.testing import ScriptedStream, scripted_configs
from aigateway.wires.client import Failure, VendorCallError
from tests.telemetry.books import Books

K = FailureKind


@pytest.fixture
def books():
    return Books()


@pytest.fixture
async def make(clock, vendor, books):
    made = []

    def make_gateway(*names, fields=None, also=(), **settings):
        configs = scripted_configs(*(names or ("a", "b")), **(fields or {}))
        settings = {"retry_rounds": 0} | settings
        hooks = [books, *also]
        made.append(AsyncGateway(configs, clock=clock, vendor=vendor, hooks=hooks, **settings))
        return made[-1]

    yield make_gateway
    for gateway in made:
        await gateway.aclose()
        await clock.settle()
        assert list(books.problems(gateway.get_metrics())) == []


def after(clock, seconds, answer="late"):
    async def wait():
        await clock.sleep(seconds)
        return answer

    return wait


async def test_served_after_a_failover(make, vendor, clock, books):
    gateway = make()

    async def fail_slowly():
        await clock.sleep(2)
        raise AssertionError  # becomes a failure of unknown kind

    vendor.script("a", fail_slowly)
    vendor.script("b", after(clock, 3))
    asking = asyncio.create_task(gateway.chat("hi", agent="market"))
    await clock.advance(10)
    reply = await asking
    first, second = books.of(AttemptEnded)
    assert (first.provider, first.failure, first.attempt) == ("a", K.UNKNOWN, 1)
    assert (second.provider, second.failure, second.attempt) == ("b", None, 2)
    assert (first.latency_seconds, second.latency_seconds) == (2, 3)
    assert (second.vendor, second.model) == ("openai_compatible", "simulated")
    assert second.usage == reply.usage
    (event,) = books.of(RequestEnded)
    assert (event.request_id, event.outcome, event.provider) == (reply.request_id, "served", "b")
    assert (event.agent, event.operation, event.streamed, event.error) == (
        "market",
        "chat",
        False,
        "",
    )
    assert (event.attempts, event.latency_seconds, event.vendor_seconds) == (2, 5, 5)
    assert event.overhead_seconds == 0
    assert event.first_content_seconds is None


async def test_a_hit_a_shared_one_and_a_stale_one(make, vendor, clock, books):
    gateway = make("a", cache_ttl_seconds=60, stale_if_error_seconds=600)
    vendor.script("a", after(clock, 2))
    both = asyncio.gather(gateway.chat("hi"), gateway.chat("hi"))
    await clock.advance(2)
    await both
    await gateway.chat("hi")
    async for _ in gateway.stream("hi"):
        pass
    await clock.advance(61)
    vendor.script("a", K.SERVER_ERROR)
    assert (await gateway.chat("hi")).stale
    events = books.of(RequestEnded)
    first_two = {event.outcome: event for event in events[:2]}
    assert first_two.keys() == {"served", "coalesced"}  # who wakes first is not said
    assert books.outcomes[2:] == ["hit", "hit", "stale"]
    shared, (hit, streamed, stale) = first_two["coalesced"], events[2:]
    assert {event.provider for event in events} == {"a"}
    assert (shared.attempts, shared.vendor_seconds) == (0, 2), "it waited for the other"
    assert (hit.vendor_seconds, streamed.streamed) == (0, True)
    assert stale.error == ""


async def test_failed_and_cancelled(make, vendor, clock, books):
    gateway = make("a")
    vendor.script("a", K.SERVER_ERROR, after(clock, 60))
    with pytest.raises(GatewayError):
        await gateway.chat("hi")
    leaving = asyncio.create_task(gateway.chat("hi"))
    await clock.advance(5)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    failed, cancelled = books.of(RequestEnded)
    assert (failed.outcome, failed.error) == ("failed", "AllProvidersFailedError")
    assert (cancelled.outcome, cancelled.error) == ("cancelled", "CancelledError")
    assert (cancelled.provider, cancelled.vendor_seconds) == (None, 5)
    assert [event.failure for event in books.of(AttemptEnded)] == [K.SERVER_ERROR, K.CANCELLED]


async def test_a_leader_that_leaves_and_the_call_that_goes_on(make, vendor, clock, books):
    gateway = make("a")
    vendor.script("a", after(clock, 5))
    leader = asyncio.create_task(gateway.chat("hi"))
    await clock.settle()
    heir = asyncio.create_task(gateway.chat("hi"))
    await clock.advance(1)
    leader.cancel()
    await clock.advance(4)
    await heir
    left, served = books.of(RequestEnded)
    assert (left.outcome, left.attempts) == ("cancelled", 1)
    assert left.vendor_seconds == left.latency_seconds == 1
    assert (served.outcome, served.vendor_seconds) == ("served", 5)
    (attempt,) = books.of(AttemptEnded)
    assert (attempt.request_id, attempt.failure) == (left.request_id, None)


async def test_overlapping_attempts_count_once_as_waiting(make, vendor, clock, books):
    gateway = make(hedge=True, hedge_delay_seconds=1)
    vendor.script("a", after(clock, 20))
    vendor.script("b", after(clock, 4))
    asking = asyncio.create_task(gateway.chat("hi"))
    await clock.advance(6)
    await asking
    outrun, won = books.of(AttemptEnded)
    assert (outrun.failure, outrun.attempt, outrun.latency_seconds) == (K.HEDGE_LOST, 1, 5)
    assert (won.failure, won.attempt, won.latency_seconds) == (None, 2, 4)
    (event,) = books.of(RequestEnded)
    assert (event.latency_seconds, event.vendor_seconds, event.attempts) == (5, 5, 2)


PRICED = {"input_cost_per_token": 0.0001, "output_cost_per_token": 0.0002}


class TestUnanswered:
    """What an attempt comes to that brought nothing, or not all."""

    LONG = "h" * 400

    @pytest.fixture
    async def ask(self, make, vendor, clock, books):
        async def ask(step, *, seconds=60.0, leave=False, **options):
            gateway = make(attempt_timeout=20, fields={"extra": PRICED})
            vendor.script("a", step)
            asking = asyncio.create_task(gateway.chat(self.LONG, max_tokens=50, **options))
            await clock.advance(seconds)
            if leave:
                asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            return books.of(AttemptEnded)[0]

        return ask

    @pytest.mark.parametrize(
        ("how", "kind", "written"),
        [
            ({}, K.TIMEOUT, 0),  # silent beyond its own time: it has read the prompt only
            ({"timeout": 10}, K.DEADLINE, 50),  # half of it is kept for b
            ({"seconds": 5, "leave": True}, K.CANCELLED, 50),
        ],
    )
    async def test_what_the_vendor_could_have_written_is_counted(
        self, ask, clock, how, kind, written
    ):
        event = await ask(after(clock, 10**6), **how)
        assert event.failure is kind
        prompt = event.usage.prompt_tokens
        assert prompt > 50
        assert event.usage == Usage(prompt, written, prompt + written)
        assert event.cost_usd == pytest.approx(prompt * 0.0001 + written * 0.0002)

    @pytest.mark.parametrize(
        "failure",
        [
            Failure(K.SERVER_ERROR, 500),
            Failure(K.CONNECTION),
            Failure(K.TIMEOUT, 504),
            Failure(K.TIMEOUT, unreachable=True),
            Failure(K.DEADLINE, 408),
        ],
    )
    async def test_what_the_vendor_says_it_did_not_do_costs_nothing(self, ask, failure):
        event = await ask(failure, seconds=0.1)
        assert (event.failure, event.usage, event.cost_usd) == (failure.kind, Usage(), None)

    @pytest.mark.parametrize("end", ["left", "broken"])
    async def test_what_came_of_a_stream_is_counted(self, make, vendor, books, end):
        gateway = make("a", fields={"extra": PRICED})
        pieces = ["some words that came"] + [K.SERVER_ERROR] * (end == "broken")
        vendor.script("a", ScriptedStream(*pieces, "more"))
        async with gateway.stream(self.LONG) as stream:
            await anext(stream)
            if end == "broken":
                with pytest.raises(GatewayError):
                    await anext(stream)
        (event,) = books.of(AttemptEnded)
        usage = event.usage
        assert usage.prompt_tokens > 50
        assert 3 <= usage.completion_tokens <= 10
        assert event.cost_usd == pytest.approx(
            usage.prompt_tokens * 0.0001 + usage.completion_tokens * 0.0002
        )


async def test_a_failure_is_told_at_once_with_all_that_is_known(make, vendor, clock, books):
    told = []

    class Hook:
        wants = (ProviderFailed,)

        def on_event(self, event):
            told.append(event)

    gateway = make(failure_threshold=1, attempt_timeout=20, also=[Hook()])

    async def fail():
        await clock.sleep(2)
        raise VendorCallError(Failure(K.SERVER_ERROR, 503, code="overloaded"))

    vendor.script("a", fail)
    asking = asyncio.create_task(gateway.chat("hi"))
    await clock.advance(3)
    reply = await asking
    vendor.script("a", K.UNSUPPORTED)
    vendor.script("b", K.UNSUPPORTED)
    with pytest.raises(GatewayError):
        await gateway.chat("ho")
    first, by_b, last = told
    assert (first.request_id, first.provider, first.kind) == (reply.request_id, "a", K.SERVER_ERROR)
    assert (first.status, first.code, first.latency_seconds) == (503, "overloaded", 2)
    assert (first.attempt, first.last_resort) == (1, False)
    assert (by_b.provider, by_b.attempt, by_b.last_resort) == ("b", 1, False)
    assert (last.provider, last.attempt, last.last_resort) == ("a", 2, True)
    assert [(e.status, e.last_resort) for e in books.of(AttemptEnded)] == [
        (503, False),
        (None, False),
        (None, False),
        (None, True),
    ]


class TestLateAnswer:
    """An attempt that was outrun or given up brings an answer all the same: that is paid for."""

    @pytest.fixture
    def stubborn(self, clock):
        async def answer_all_the_same():
            try:
                await clock.sleep(10**6)
            except asyncio.CancelledError:
                return "too late"

        return answer_all_the_same

    async def test_what_was_counted_already_is_not_counted_twice(
        self, make, vendor, clock, books, stubborn
    ):
        gateway = make(hedge=True, hedge_delay_seconds=1, fields={"extra": PRICED})
        paid: list[float | None] = []
        vendor.script("a", stubborn)
        origin = Origin(on_cost=paid.append)
        asking = asyncio.create_task(gateway.chat("h" * 400, max_tokens=50, origin=origin))
        await clock.advance(2)
        assert (await asking).provider == "b"
        outrun, _ = books.of(AttemptEnded)
        prompt = outrun.usage.prompt_tokens
        assert prompt > 1
        assert outrun.usage.completion_tokens == 50, "as many as it could have written"
        assert outrun.cost_usd == pytest.approx(prompt * 0.0001 + 50 * 0.0002)
        (late,) = books.of(AnswerDiscarded)
        assert (late.provider, late.usage, late.cost_usd) == ("a", Usage(0, 0, 0), 0)
        assert paid == [pytest.approx(outrun.cost_usd), pytest.approx(0.001), 0]

    async def test_what_goes_beyond_that_is_counted(self, make, vendor, clock, books):
        gateway = make(hedge=True, hedge_delay_seconds=1, fields={"extra": PRICED})
        paid: list[float | None] = []
        answer = Completion("x", "m", (Choice("late", "stop"),), Usage(500, 90, 590), 0.9)

        async def answer_all_the_same():
            try:
                await clock.sleep(10**6)
            except asyncio.CancelledError:
                return answer

        vendor.script("a", answer_all_the_same)
        origin = Origin(on_cost=paid.append)
        asking = asyncio.create_task(gateway.chat("h" * 400, max_tokens=50, origin=origin))
        await clock.advance(2)
        await asking
        outrun, _ = books.of(AttemptEnded)
        (late,) = books.of(AnswerDiscarded)
        prompt = outrun.usage.prompt_tokens
        assert late.usage == Usage(500 - prompt, 40, 540 - prompt)
        assert late.cost_usd == pytest.approx(0.9 - outrun.cost_usd)
        assert paid[-1] == late.cost_usd
        counted = gateway.get_metrics()["providers"]["a"]
        assert (counted["prompt_tokens"], counted["completion_tokens"]) == (500, 90)
        assert counted["cost_usd"] == pytest.approx(0.9)


async def test_headers_of_a_trace_stand_over_the_callers(vendor, clock):
    class Trace:
        def __init__(self):
            self.headers = {"traceparent": "ours"}

        def attempt(self, *_):
            return self

        def ended(self, *_):
            pass

    class Hook:
        def on_event(self, event):
            pass

        def trace_request(self, request, *, streamed):
            return Trace()

    origin = Origin(headers={"TraceParent": "theirs", "X-Own": "1"})
    async with AsyncGateway(
        scripted_configs("a"), clock=clock, vendor=vendor, hooks=[Hook()]
    ) as gateway:
        await gateway.chat("hi", origin=origin)
    (_, request) = vendor.calls[0]
    assert request.headers == {"X-Own": "1", "traceparent": "ours"}


async def test_a_stream_tells_its_first_content_and_its_end(make, vendor, clock, books):
    gateway = make()

    def wait(seconds):
        return lambda: clock.sleep(seconds)

    vendor.script("a", K.SERVER_ERROR)
    vendor.script("b", ScriptedStream(wait(2), "one", wait(3), "two"))

    async def read():
        return [chunk.text async for chunk in gateway.stream("hi")]

    reading = asyncio.create_task(read())
    await clock.advance(10)
    assert "".join(await reading) == "onetwo"
    failed, served = books.of(AttemptEnded)
    assert (failed.streamed, failed.first_content_seconds) == (True, None)
    assert (served.first_content_seconds, served.latency_seconds) == (2, 5)
    (event,) = books.of(RequestEnded)
    assert (event.streamed, event.first_content_seconds, event.latency_seconds) == (True, 2, 5)


async def test_a_stream_that_is_left_and_one_that_breaks(make, vendor, books):
    gateway = make("a", cache_enabled=False)
    vendor.script("a", ScriptedStream("one", "two"), ScriptedStream("one", K.SERVER_ERROR))
    async with gateway.stream("hi") as stream:
        await anext(stream)
    with pytest.raises(GatewayError):
        _ = [chunk async for chunk in gateway.stream("hi")]
    assert books.outcomes == ["cancelled", "failed"]
    assert [event.failure for event in books.of(AttemptEnded)] == [K.CANCELLED, K.SERVER_ERROR]
    assert all(event.first_content_seconds is not None for event in books.of(RequestEnded))


async def test_embeddings(make, books):
    await make("a").embed(["one", "two"])
    (attempt,), (event,) = books.of(AttemptEnded), books.of(RequestEnded)
    assert (attempt.operation, event.operation, event.outcome) == (
        "embeddings",
        "embeddings",
        "served",
    )
    assert attempt.usage.prompt_tokens == 2


async def test_the_same_provider_again_is_a_retry(make, vendor, books, clock):
    gateway = make("a", retries_per_provider=1)
    vendor.script("a", K.SERVER_ERROR)
    asking = asyncio.create_task(gateway.chat("hi"))
    await clock.advance(10)
    await asking
    assert [event.retry for event in books.of(AttemptEnded)] == [False, True]


class TestWants:
    async def test_a_hook_gets_what_it_names(self, vendor, clock):
        class Listener:
            def __init__(self, wants):
                self.wants = wants
                self.events = []

            def on_event(self, event):
                self.events.append(event.name)

        hooks = [Listener((RequestServed,)), Listener(None), Listener(())]
        vendor.script("a", K.SERVER_ERROR)
        async with AsyncGateway(
            scripted_configs("a", "b"), clock=clock, vendor=vendor, hooks=hooks
        ) as gateway:
            await gateway.chat("hi")
            await gateway.chat("hi")
        served, anything, nothing = hooks
        assert served.events == ["request.served"]
        assert anything.events == ["provider.failed", "request.served", "cache.hit"]
        assert nothing.events == []

    async def test_nobody_who_wants_it_means_that_it_is_not_made(self, make, vendor, monkeypatch):
        made: list[object] = []
        for name in ("AttemptEnded", "RequestEnded"):
            for module in ("aigateway.routing.attempt", "aigateway.telemetry.recorder"):
                monkeypatch.setattr(f"{module}.{name}", made.append, raising=False)
        async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:
            await gateway.chat("hi")
            async for _ in gateway.stream("ho"):
                pass
        assert made == []
        assert vendor.called() == 2
