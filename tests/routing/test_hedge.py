"""Hedging, extra calls and what else keeps the tail short, on virtual time."""

import asyncio

import pytest

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    CircuitState,
    ContentPolicyError,
    FailureKind,
    RequestRejectedError,
    Usage,
)
from aigateway.resilience.retry import RetryBudget
from aigateway.routing.hedge import Hedges
from aigateway.settings import GatewaySettings
from aigateway.testing import ScriptedStream, scripted_configs
from aigateway.wires.client import Failure, VendorCallError
from tests.gateways import state_of

K = FailureKind
TOOL = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}


class Recorder:
    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def named(self, name):
        return [event for event in self.events if event.name == name]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
async def make(clock, vendor, recorder):
    made = []

    def make_gateway(*names, fields=None, **settings):
        settings = {"retry_rounds": 0, "hedge": True, "hedge_delay_seconds": 1} | settings
        configs = scripted_configs(*(names or ("a", "b", "c")), **(fields or {}))
        gateway = AsyncGateway(configs, clock=clock, vendor=vendor, hooks=[recorder], **settings)
        made.append(gateway)
        return gateway

    yield make_gateway
    for gateway in made:
        await gateway.aclose()
        assert gateway.get_metrics()["in_flight"] == 0
    assert vendor.open_streams == 0


def slow(clock, seconds, answer="late"):
    async def answer_late():
        await clock.sleep(seconds)
        return answer

    return answer_late


def provider(gateway, name):
    return gateway.get_metrics()["providers"][name]


async def ask(gateway, clock, seconds, prompt="hi", **options):
    asking = asyncio.create_task(gateway.chat(prompt, cache=False, **options))
    await clock.advance(seconds)
    assert asking.done()
    return await asking


class TestChat:
    async def test_a_second_provider_is_asked_after_the_delay_and_the_quicker_wins(
        self, make, vendor, clock, recorder
    ):
        gateway = make()
        vendor.script("a", slow(clock, 20))
        reply = await ask(gateway, clock, 1.1)
        assert (reply.provider, reply.text) == ("b", "ok")
        assert reply.latency_seconds == pytest.approx(1)
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            ("a", K.HEDGE_LOST),
            ("b", None),
        ]
        await clock.settle()
        assert provider(gateway, "a")["failures"] == {"outrun": 1}
        assert provider(gateway, "a")["in_flight"] == 0
        (event,) = recorder.named("request.hedged")
        assert (event.provider, event.second, event.after_seconds) == ("a", "b", 1)

    async def test_the_first_may_still_win(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", slow(clock, 2))
        vendor.script("b", slow(clock, 9))
        reply = await ask(gateway, clock, 2.1)
        assert (reply.provider, reply.text) == ("a", "late")
        await clock.settle()
        assert provider(gateway, "b")["failures"] == {"outrun": 1}
        assert provider(gateway, "b")["in_flight"] == 0

    async def test_of_two_answers_in_one_moment_one_is_used_and_both_are_good(
        self, make, vendor, clock
    ):
        gateway = make(failure_threshold=2)
        for name in "ab":
            vendor.script(name, K.SERVER_ERROR)
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat(f"{name} fails", model=name)
        answer = asyncio.Event()
        for name in "ab":
            vendor.script(name, answer.wait)
        asking = asyncio.create_task(gateway.chat("hi", cache=False))
        await clock.advance(1.5)
        answer.set()
        reply = await asking
        unused = "b" if reply.provider == "a" else "a"
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            (unused, K.HEDGE_LOST),
            (reply.provider, None),
        ]
        told = provider(gateway, unused)
        assert told["failures"] == {"server_error": 1, "outrun": 1}
        assert (told["total_tokens"], told["cost_usd"]) == (2, 0.001)
        for name in "ab":
            assert provider(gateway, name)["consecutive_failures"] == 0

    @pytest.mark.parametrize("fails", ["a", "b"])
    async def test_one_may_fail_in_the_moment_in_which_the_other_answers(
        self, make, vendor, clock, caplog, fails
    ):
        gateway = make()
        answer = asyncio.Event()

        async def fail():
            await answer.wait()
            raise RuntimeError

        for name in "ab":
            vendor.script(name, fail if name == fails else answer.wait)
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(1.5)
        answer.set()
        assert (await asking).provider == ("b" if fails == "a" else "a")
        await clock.settle()
        assert not gateway._pipeline._failovers._losers, "nothing is kept of those that lost"
        assert not [record for record in caplog.records if record.name == "asyncio"]

    async def test_none_before_the_delay(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", slow(clock, 0.9))
        assert (await ask(gateway, clock, 1)).provider == "a"
        assert vendor.called("b") == 0

    async def test_the_delay_is_the_providers_own_95th_percentile(self, make, vendor, clock):
        gateway = make(hedge_delay_seconds=50)
        vendor.always("a", slow(clock, 2))
        for turn in range(20):
            await ask(gateway, clock, 2.1, f"{turn}")
        vendor.script("a", slow(clock, 30))
        reply = await ask(gateway, clock, 2.1)
        assert (reply.provider, reply.latency_seconds) == ("b", pytest.approx(2))

    async def test_a_failure_of_either_leaves_it_to_the_other(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", slow(clock, 3))
        vendor.script("b", K.SERVER_ERROR)
        reply = await ask(gateway, clock, 3.1)
        assert reply.provider == "a"
        assert provider(gateway, "b")["consecutive_failures"] == 1

    async def test_if_both_fail_the_third_is_asked(self, make, vendor, clock):
        async def fail():
            await clock.sleep(2)
            vendor.script("a", K.SERVER_ERROR)
            raise RuntimeError

        gateway = make()
        vendor.script("a", fail)
        vendor.script("b", K.SERVER_ERROR)
        assert (await ask(gateway, clock, 2.1)).provider == "c"

    async def test_a_backup_that_loses_after_a_moment_is_never_blamed_for_it(
        self, make, vendor, clock
    ):
        gateway = make("a", "b", attempt_timeout=2, hedge_delay_seconds=0.05)
        vendor.always("a", slow(clock, 0.06))
        vendor.always("b", slow(clock, 0.05))
        for turn in range(9):
            assert (await ask(gateway, clock, 0.1, f"{turn}")).provider == "a"
        assert provider(gateway, "b")["failures"] == {"outrun": 9}
        await clock.advance(60)
        await ask(gateway, clock, 0.1)
        assert provider(gateway, "b")["circuit_state"] == "closed"
        assert provider(gateway, "b")["consecutive_failures"] == 0

    async def test_a_hedge_that_was_not_to_be_had_is_asked_for_again(self, make, vendor, clock):
        gateway = make("a", "b", fields={"max_concurrency": 1})
        vendor.script("b", slow(clock, 2.5))
        busy = asyncio.create_task(gateway.chat("busy", model="b", hedge=False))
        await clock.settle()
        vendor.script("a", slow(clock, 30))
        reply = await ask(gateway, clock, 3.1)
        assert reply.provider == "b"
        await busy

    async def test_and_not_in_a_tight_loop(self, make, vendor, clock):
        gateway = make("a", "b", fields={"max_concurrency": 1}, hedge_delay_seconds=0.01)
        vendor.script("b", slow(clock, 0.02))
        busy = asyncio.create_task(gateway.chat("busy", model="b", hedge=False))
        await clock.settle()
        vendor.script("a", slow(clock, 30))
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(0.055)
        assert busy.done()
        assert vendor.called("b") == 1
        await clock.advance(0.01)
        assert (await asking).provider == "b"

    @pytest.mark.parametrize("kind", [K.REJECTED, K.CONTENT_POLICY])
    async def test_a_refusal_by_one_waits_for_the_other(self, make, vendor, clock, kind):
        gateway = make()
        vendor.script("a", slow(clock, 3))
        vendor.script("b", kind)
        assert (await ask(gateway, clock, 3.1)).provider == "a"

    async def test_a_refusal_that_ends_all_is_raised_if_the_other_fails(self, make, vendor, clock):
        async def fail():
            await clock.sleep(2)
            raise RuntimeError

        gateway = make()
        vendor.script("a", fail)
        vendor.script("b", K.CONTENT_POLICY)
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(2.1)
        assert isinstance(asking.exception(), ContentPolicyError)
        assert vendor.called("c") == 0

    async def test_and_is_raised_if_the_other_fails(self, make, vendor, clock):
        async def fail():
            await clock.sleep(2)
            raise RuntimeError

        gateway = make()
        vendor.script("a", fail)
        vendor.script("b", K.REJECTED)
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(2.1)
        with pytest.raises(RequestRejectedError):
            await asking

    async def test_losing_a_probe_keeps_its_place_so_that_one_caller_meets_the_dead_provider(
        self, make, vendor, clock
    ):
        gateway = make("a", "b", failure_threshold=1, attempt_timeout=30, reset_timeout_seconds=60)
        vendor.script("a", K.SERVER_ERROR)
        await ask(gateway, clock, 0.1)
        clock.tick(61)
        vendor.always("a", slow(clock, 10**6))
        before = vendor.called("a")
        for turn in range(10):
            assert (await ask(gateway, clock, 1.1, f"{turn}")).provider == "b"
        assert vendor.called("a") == before + 1

    async def test_the_next_healthy_one_is_asked_and_not_one_that_would_be_probed(
        self, make, vendor, clock
    ):
        gateway = make(failure_threshold=1)
        vendor.script("b", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi", model="b")
        clock.tick(61)
        vendor.script("a", slow(clock, 9))
        assert (await ask(gateway, clock, 1.1)).provider == "c"

    async def test_cancelling_the_caller_ends_both_and_blames_nobody(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", slow(clock, 30))
        vendor.script("b", slow(clock, 30))
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(2)
        assert gateway.get_metrics()["in_flight"] == 2
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await clock.settle()
        for name in "ab":
            assert provider(gateway, name)["failures"] == {"cancelled": 1}

    async def test_never_to_a_provider_whose_circuit_is_not_closed(self, make, vendor, clock):
        gateway = make("a", "b", failure_threshold=1)
        vendor.script("b", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi", model="b")
        clock.tick(61)  # it could be probed now
        vendor.script("a", slow(clock, 5))
        assert (await ask(gateway, clock, 5.1)).provider == "a"
        assert vendor.called("b") == 1

    async def test_requests_with_tools_only_if_the_call_asks(self, make, vendor, clock):
        gateway = make()
        vendor.always("a", slow(clock, 3))
        assert (await ask(gateway, clock, 3.1, tools=[TOOL])).provider == "a"
        assert (await ask(gateway, clock, 3.1, tools=[TOOL], hedge=True)).provider == "b"

    async def test_a_call_may_say_no_and_must_say_it_plainly(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", slow(clock, 3))
        assert (await ask(gateway, clock, 3.1, hedge=False)).provider == "a"
        with pytest.raises(RequestRejectedError, match="hedge"):
            await gateway.chat("hi", hedge="yes")

    async def test_never_more_than_the_share_and_the_floor(self, make, vendor, clock):
        gateway = make(max_open_seconds=10_000, failure_threshold=1000, attempt_timeout=30)
        vendor.always("a", slow(clock, 1.5))
        for turn in range(30):
            await ask(gateway, clock, 1.6, f"{turn}", timeout=60)
        assert vendor.called("b") <= 12

    async def test_a_share_of_the_requests_may_be_hedged(self, make, vendor, clock):
        gateway = make(hedge_max_percent=30, attempt_timeout=30)
        for turn in range(40):
            await gateway.chat(f"quick {turn}", model="b")
        vendor.always("a", slow(clock, 1.5))
        for turn in range(15):
            await ask(gateway, clock, 1.6, f"{turn}")
        assert vendor.called("b") == 40 + 15

    async def test_each_is_paid_for_out_of_the_retry_budget_too(self, clock):
        extra = RetryBudget(clock)
        hedges = Hedges(GatewaySettings(), clock, extra)
        for _ in range(9):
            extra.take()
        assert extra.balance == 1
        assert hedges.try_acquire()
        assert extra.balance == 0
        assert not any(hedges.try_acquire() for _ in range(5))
        clock.tick(10)  # and those that were refused have cost nothing
        assert [hedges.try_acquire() for _ in range(10)] == [True] * 9 + [False]


class TestStream:
    async def test_the_first_content_wins_and_the_loser_is_closed(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", ScriptedStream(slow(clock, 30), "late"))
        vendor.script("b", ScriptedStream("in ", "time"))
        stream = gateway.stream("hi")

        async def read():
            return "".join([chunk.text async for chunk in stream])

        reading = asyncio.create_task(read())
        await clock.advance(1.1)
        assert await reading == "in time"
        assert stream.response.provider == "b"
        assert vendor.open_streams == 0

    async def test_the_delay_is_that_of_first_contents_however_long_answers_take(
        self, make, vendor, clock
    ):
        gateway = make(hedge_delay_seconds=50)

        async def read(prompt):
            stream = gateway.stream(prompt)
            text = "".join([chunk.text async for chunk in stream])
            return text, stream.response.provider

        def wait(seconds):
            return lambda: clock.sleep(seconds)

        for turn in range(20):
            vendor.script("a", ScriptedStream(wait(2), "so", wait(9), "so"))
            reading = asyncio.create_task(read(f"{turn}"))
            await clock.advance(12)
            await reading
        vendor.script("a", ScriptedStream(wait(60), "late"))
        reading = asyncio.create_task(read("last"))
        await clock.advance(2.1)
        assert await reading == ("ok", "b")

    async def test_the_first_content_that_is_not_used_is_closed(self, make, vendor, clock):
        gateway = make()
        content = asyncio.Event()
        for name in "ab":
            vendor.script(name, ScriptedStream(content.wait, name))
        stream = gateway.stream("hi")

        async def read():
            return "".join([chunk.text async for chunk in stream])

        reading = asyncio.create_task(read())
        await clock.advance(1.5)
        content.set()
        assert await reading == stream.response.provider
        await clock.settle()
        assert vendor.open_streams == 0
        assert not gateway._pipeline._failovers._losers

    async def test_two_first_contents_in_one_moment(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", ScriptedStream(slow(clock, 2), "first"))
        vendor.script("b", ScriptedStream(slow(clock, 1), "second"))
        stream = gateway.stream("hi")

        async def read():
            return "".join([chunk.text async for chunk in stream])

        reading = asyncio.create_task(read())
        await clock.advance(3)
        assert await reading in {"first", "second"}
        await clock.settle()
        assert vendor.open_streams == 0
        assert gateway.get_metrics()["in_flight"] == 0


class TestRetriesPerProvider:
    async def test_the_same_provider_again_before_the_next(self, make, vendor, clock):
        gateway = make(retries_per_provider=1, hedge=False)
        vendor.script("a", K.SERVER_ERROR)
        reply = await ask(gateway, clock, 1)
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            ("a", K.SERVER_ERROR),
            ("a", None),
        ]

    async def test_retry_after_is_honoured(self, make, vendor, clock):
        gateway = make(retries_per_provider=1, hedge=False)
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=3))
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(2.9)
        assert vendor.called("a") == 1
        await clock.advance(0.5)
        assert (await asking).provider == "a"

    async def test_a_rate_limit_without_retry_after_is_waited_out(self, make, vendor, clock):
        gateway = make(retries_per_provider=1, hedge=False)
        vendor.script("a", Failure(K.RATE_LIMITED, 429))
        assert (await ask(gateway, clock, 1.5)).provider == "a"

    async def test_rates_hold_for_retries_too(self, make, vendor, clock):
        gateway = make("a", "b", retries_per_provider=3, fields={"rpm": 1}, hedge=False)
        vendor.always("a", K.SERVER_ERROR)
        await ask(gateway, clock, 5)
        assert vendor.called("a") == 1

    async def test_one_that_takes_too_long_is_left(self, make, vendor, clock):
        gateway = make(retries_per_provider=1, hedge=False)
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=30))
        assert (await ask(gateway, clock, 0.1)).provider == "b"

    @pytest.mark.parametrize("kind", [K.AUTHENTICATION, K.UNSUPPORTED, K.TIMEOUT])
    async def test_what_cannot_pass_soon_is_not_tried_again(self, make, vendor, clock, kind):
        gateway = make(retries_per_provider=3, hedge=False)
        vendor.script("a", kind)
        await ask(gateway, clock, 0.1)
        assert vendor.called("a") == 1

    async def test_it_counts_one_failure_for_the_circuit(self, make, vendor, clock):
        gateway = make(retries_per_provider=2, hedge=False)
        vendor.always("a", K.SERVER_ERROR)
        await ask(gateway, clock, 3)
        assert vendor.called("a") == 3
        assert provider(gateway, "a")["consecutive_failures"] == 1


class TestExtraCalls:
    async def test_an_outage_does_not_become_a_storm(self, make, vendor, clock):
        gateway = make(
            "a", "b", retry_rounds=2, retries_per_provider=2, hedge=False, failure_threshold=10**6
        )
        vendor.always("a", K.SERVER_ERROR)
        vendor.always("b", K.SERVER_ERROR)

        async def one(turn):
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat(f"{turn}", cache=False)

        tasks = []
        for turn in range(1000):
            tasks.append(asyncio.create_task(one(turn)))
            await clock.advance(0.01)
        await clock.advance(60)
        await asyncio.gather(*tasks)
        # Two calls for each request are the plan; the rest is a share of the requests and a
        # little with time.
        assert vendor.called() <= 1000 * (2 + 0.2) + 70 + 100


class TestHangs:
    async def test_new_requests_prefer_the_next_provider_before_any_timeout(
        self, make, vendor, clock
    ):
        gateway = make(hedge=False, attempt_timeout=30)
        vendor.always("a", slow(clock, 0.1))
        for turn in range(20):
            await ask(gateway, clock, 0.2, f"{turn}")
        vendor.always("a", slow(clock, 10**6))
        stuck = [asyncio.create_task(gateway.chat(f"s{turn}")) for turn in range(5)]
        await clock.advance(0.3)
        assert (vendor.called("a"), vendor.called("b")) == (25, 0)
        await clock.advance(0.2)
        assert (await ask(gateway, clock, 0.01, "new")).provider == "b"
        assert provider(gateway, "a")["circuit_state"] == "closed"
        await clock.advance(30)
        for reply in await asyncio.gather(*stuck):
            assert reply.provider == "b"
        assert provider(gateway, "a")["circuit_state"] == "open"

    async def test_one_that_is_alone_is_asked_all_the_same(self, make, vendor, clock):
        gateway = make("a", hedge=False, attempt_timeout=30)
        vendor.always("a", slow(clock, 0.1))
        for turn in range(20):
            await ask(gateway, clock, 0.2, f"{turn}")
        vendor.always("a", slow(clock, 2))
        tasks = [asyncio.create_task(gateway.chat(f"s{turn}")) for turn in range(8)]
        await clock.advance(1)
        tasks.append(asyncio.create_task(gateway.chat("new")))
        await clock.advance(2.1)
        assert {reply.provider for reply in await asyncio.gather(*tasks)} == {"a"}

    async def test_hedged_away_from_a_hanging_provider_its_circuit_opens_all_the_same(
        self, make, vendor, clock
    ):
        gateway = make(attempt_timeout=2)
        vendor.always("a", slow(clock, 0.5))
        for turn in range(20):
            await ask(gateway, clock, 0.6, f"w{turn}")
        vendor.always("a", slow(clock, 10**6))
        for turn in range(5):
            assert (await ask(gateway, clock, 0.6, f"{turn}")).provider == "b"
        await clock.advance(3)
        assert (await ask(gateway, clock, 0.6, "new")).provider == "b"
        assert provider(gateway, "a")["circuit_state"] == str(CircuitState.OPEN)


class TestOwnStall:
    """The event loop stands still, as under `time.sleep`; an answer has arrived meanwhile."""

    @pytest.mark.parametrize("after", [0.25, 0.5, 0.75])
    async def test_it_is_no_reason_for_a_hedge(self, make, vendor, clock, after):
        gateway = make()
        vendor.script("a", slow(clock, 1.2))
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(after)
        clock.tick(2)
        await clock.advance(0)
        assert asking.done()
        assert [a.provider for a in (await asking).attempts] == ["a"]

    async def test_the_rest_of_the_delay_is_waited_for_after_it(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", slow(clock, 60))
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(0.25)
        clock.tick(2)
        await clock.advance(0.45)
        assert vendor.called("b") == 0
        await clock.advance(0.4)
        assert (await asking).provider == "b"

    async def test_no_provider_seems_to_hang_after_it(self, make, vendor, clock):
        gateway = make(hedge=False)
        vendor.always("a", slow(clock, 0.1))
        for turn in range(20):
            await ask(gateway, clock, 0.2, f"{turn}")
        came = asyncio.Event()
        vendor.always("a", came.wait)
        asks = [asyncio.create_task(gateway.chat(f"s{turn}")) for turn in range(8)]
        await clock.advance(0.25)
        clock.tick(2)
        asks.append(asyncio.create_task(gateway.chat("new")))
        await clock.settle()
        came.set()
        await clock.advance(0)
        assert {reply.provider for reply in await asyncio.gather(*asks)} == {"a"}


class TestSecondOpinion:
    """a and b are of one company, and both refuse; c is of another."""

    @pytest.fixture
    async def gateway(self, clock, vendor):
        configs = scripted_configs("a", "b", "c")
        configs[2] = configs[2].model_copy(update={"api_base": "http://127.0.0.1:8/v1"})
        async with AsyncGateway(
            configs, clock=clock, vendor=vendor, retry_rounds=0, hedge=True, hedge_delay_seconds=1
        ) as gateway:
            for name, seconds in [("a", 2), ("b", 0.5)]:

                async def refuse(seconds=seconds):
                    await clock.sleep(seconds)
                    raise VendorCallError(Failure(K.REJECTED, 400))

                vendor.always(name, refuse)
            yield gateway

    async def test_two_that_were_out_together_are_one_opinion(self, gateway, vendor, clock):
        reply = await ask(gateway, clock, 2.1)
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            ("b", K.REJECTED),
            ("a", K.REJECTED),
            ("c", None),
        ]

    async def test_another_company_that_refuses_ends_it(self, gateway, vendor, clock):
        vendor.always("c", Failure(K.REJECTED, 422))
        asking = asyncio.create_task(gateway.chat("hi", cache=False))
        await clock.advance(2.1)
        with pytest.raises(RequestRejectedError) as raised:
            await asking
        assert [cause.status for cause in raised.value.causes] == [400, 400, 422]


class TestNetwork:
    async def test_when_nobody_can_be_connected_to_the_error_says_so_and_circuits_stay_closed(
        self, make, vendor
    ):
        gateway = make(hedge=False)
        offline = Failure(K.CONNECTION, unreachable=True)
        for name in "abc":
            vendor.always(name, offline)
        for turn in range(20):
            with pytest.raises(AllProvidersFailedError, match="network"):
                await gateway.chat(f"{turn}")
        assert {p.circuit_state for p in gateway.providers} == {CircuitState.CLOSED}
        for name in "abc":
            vendor.always(name, None)
        assert (await gateway.chat("back")).provider == "a"

    async def test_nor_do_they_slam_when_many_ask_at_once(self, make, vendor):
        gateway = make(hedge=False)
        for name in "abc":
            vendor.always(name, Failure(K.CONNECTION, unreachable=True))
        results = await asyncio.gather(
            *(gateway.chat(f"{turn}") for turn in range(50)), return_exceptions=True
        )
        assert all(isinstance(result, AllProvidersFailedError) for result in results)
        assert {p.circuit_state for p in gateway.providers} == {CircuitState.CLOSED}

    async def test_circuits_that_opened_for_it_close_again_and_no_others(self, make, vendor, clock):
        gateway = make("a", "b", "c", hedge=False, failure_threshold=3)
        offline = Failure(K.CONNECTION, unreachable=True)
        vendor.always("a", K.TIMEOUT)
        vendor.always("b", offline)
        for turn in range(3):
            assert (await gateway.chat(f"{turn}")).provider == "c"
        assert [p.circuit_state for p in gateway.providers] == ["open", "open", "closed"]
        vendor.always("c", K.TIMEOUT)
        for turn in range(2):
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat(f"c{turn}", model="c")
        vendor.always("c", offline)
        clock.tick(70)  # the answers of c are too old to prove anything
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("c alone", model="c")
        assert [p.circuit_state for p in gateway.providers] == ["open", "closed", "closed"]
        assert provider(gateway, "c")["consecutive_failures"] == 2, "its own ones still count"

    async def test_a_refused_key_proves_nothing_as_it_is_not_asked_for_a_while(self, make, vendor):
        gateway = make(hedge=False, failure_threshold=1)
        vendor.always("a", K.AUTHENTICATION)
        for name in "bc":
            vendor.always(name, Failure(K.CONNECTION, unreachable=True))
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")
        assert {p.circuit_state for p in gateway.providers} == {CircuitState.CLOSED}

    async def test_any_status_is_a_sign_that_it_was_reached(self, make, vendor):
        gateway = make(hedge=False, failure_threshold=1)
        vendor.always("a", Failure(K.RATE_LIMITED, 429))
        for name in "bc":
            vendor.always(name, Failure(K.CONNECTION, unreachable=True))
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")
        assert [p.circuit_state for p in gateway.providers] == ["closed", "open", "open"]

    async def test_one_that_refuses_while_others_answer_is_blamed(self, make, vendor):
        gateway = make(hedge=False)
        vendor.always("a", Failure(K.CONNECTION, unreachable=True))
        for turn in range(5):
            assert (await gateway.chat(f"{turn}")).provider == "b"
        assert provider(gateway, "a")["circuit_state"] == "open"


class TestRates:
    async def test_a_provider_at_its_rate_is_passed_over(self, make, vendor, clock):
        gateway = make("a", "b", fields={"rpm": 2}, hedge=False)
        served = [(await gateway.chat(f"{turn}")).provider for turn in range(4)]
        assert served == ["a", "a", "b", "b"]

    async def test_with_nobody_free_the_request_waits_its_turn(self, make, vendor, clock):
        gateway = make("a", fields={"rpm": 1}, hedge=False, timeout=120, attempt_timeout=100)
        await gateway.chat("1")
        waiting = asyncio.create_task(gateway.chat("2"))
        await clock.advance(59)
        assert not waiting.done()
        await clock.advance(2)
        assert (await waiting).provider == "a"

    async def test_many_who_wait_are_served_in_order_and_each_wakes_once(self, make, vendor, clock):
        gateway = make("a", fields={"rpm": 10}, hedge=False, timeout=10_000, attempt_timeout=60)
        order = []

        async def one(turn):
            await gateway.chat(f"{turn}")
            order.append(turn)

        tasks = [asyncio.create_task(one(turn)) for turn in range(200)]
        await clock.advance(61 * 21)
        await asyncio.gather(*tasks)
        assert order == sorted(order)
        assert vendor.called("a") == 200

    async def test_a_wait_beyond_the_deadline_is_not_begun(self, make, vendor, clock):
        gateway = make("a", fields={"rpm": 1}, hedge=False, timeout=30)
        await gateway.chat("1")
        with pytest.raises(AllProvidersFailedError) as raised:
            await gateway.chat("2")
        assert raised.value.retry_after_seconds == pytest.approx(60, abs=1)

    @pytest.mark.parametrize(
        ("failure", "served_by"), [(K.SERVER_ERROR, "a"), (K.TIMEOUT, "b"), (K.DEADLINE, "b")]
    )
    async def test_tokens_of_a_failure_count_where_the_vendor_may_have_counted_them(
        self, make, vendor, failure, served_by
    ):
        gateway = make("a", "b", fields={"tpm": 1000}, hedge=False)
        vendor.script("a", failure)
        assert (await gateway.chat("1", max_tokens=600)).provider == "b"
        assert (await gateway.chat("2", max_tokens=300)).provider == "a"
        assert (await gateway.chat("3", max_tokens=700)).provider == served_by

    async def test_tokens_are_counted_as_the_vendor_does(self, make, vendor, clock):
        gateway = make("a", "b", fields={"tpm": 1000}, hedge=False)
        vendor.script("a", ScriptedStream("x", usage=Usage(899, 1, 900)))
        assert (await gateway.chat("1", max_tokens=10)).provider == "a"
        assert (await gateway.chat("2", max_tokens=500)).provider == "b"
        clock.tick(62)
        assert (await gateway.chat("3", max_tokens=500)).provider == "a"


class TestConcurrency:
    async def test_it_falls_when_throttled_and_comes_back(self, make, vendor, clock):
        gateway = make("a", "b", fields={"max_concurrency": 10}, hedge=False)

        def bound():
            return state_of(gateway, "a").max_in_flight

        for turn in range(3):
            vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=0.5))
            await gateway.chat(f"t{turn}")
            clock.tick(1)
        fallen = bound()
        assert 1 <= fallen < 10
        for turn in range(200):
            await gateway.chat(f"{turn}")
            clock.tick(1)
        assert bound() > fallen

    @pytest.mark.parametrize(
        ("failure", "falls"),
        [
            (Failure(K.SERVER_ERROR, 529), True),
            (Failure(K.SERVER_ERROR, 528), False),
            (Failure(K.SERVER_ERROR, 530), False),
            (Failure(K.RATE_LIMITED), True),
            (Failure(K.TIMEOUT), False),
        ],
    )
    async def test_only_what_speaks_of_load_lowers_it(self, make, vendor, failure, falls):
        gateway = make("a", "b", fields={"max_concurrency": 10}, hedge=False)
        vendor.script("a", failure)
        await gateway.chat("hi")
        assert (state_of(gateway, "a").max_in_flight < 10) is falls

    async def test_a_stream_without_content_in_time_lowers_it(self, make, vendor, clock, recorder):
        gateway = make("a", "b", fields={"max_concurrency": 10}, hedge=False)
        vendor.script("a", ScriptedStream(slow(clock, 10**6), "late"))
        reading = asyncio.create_task(anext(aiter(gateway.stream("hi"))))
        await clock.advance(60)
        await reading
        assert state_of(gateway, "a").max_in_flight < 10
        (failed,) = recorder.named("provider.failed")
        assert (failed.kind, failed.code) == (K.TIMEOUT, "first_token_timeout")
