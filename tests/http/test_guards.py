"""The three laws of the guards, over real HTTP: what callers get while vendors fail."""

import asyncio
import itertools
import time

import pytest

from aigateway import AllProvidersFailedError, AsyncGateway, FailureKind, RequestRejectedError
from aigateway.simulator import Fault
from tests.gateways import state_of, until
from tests.server.visitors import eventually

pytestmark = pytest.mark.slow

K = FailureKind


def guards(gateway, name, operation="chat"):
    return state_of(gateway, name).operations[operation]


async def answered(gateway, prompts):
    """How many of these are answered, asked ten at a time."""
    places = asyncio.Semaphore(10)

    async def ask(prompt):
        async with places:
            return await gateway.chat(prompt)

    results = await asyncio.gather(*map(ask, prompts), return_exceptions=True)
    return sum(not isinstance(result, Exception) for result in results)


@pytest.fixture
async def vendors(simulator):
    """Three vendors of different wires, quick."""
    found = [simulator.openai, simulator.anthropic, simulator.gemini]
    for vendor in found:
        vendor.latency = 0.002
    return found


def gateway_of(*vendors, **settings):
    configs = [
        vendor.config(priority=10 - place, name=f"p{place}") for place, vendor in enumerate(vendors)
    ]
    settings.setdefault("retry_rounds", 0)
    return AsyncGateway(configs, **settings)


class TestTheLastCandidateIsAsked:
    @pytest.mark.parametrize(("count", "asked"), [(1, 100), (3, 300)])
    async def test_a_brownout_of_all_answers_as_many_as_trying_each_once(
        self, vendors, count, asked
    ):
        for place, vendor in enumerate(vendors):
            vendor.behave(Fault.random(0.5, Fault.server_error(500), seed=place))
        async with gateway_of(*vendors[:count]) as gateway:
            await gateway.warmup()
            share = await answered(gateway, [f"question {i}" for i in range(asked)]) / asked
            refused = [p["failures"].get("circuit_open", 0) for p in _providers(gateway)]
        assert share >= 1 - 0.5**count - 0.08
        assert not any(refused)

    async def test_two_that_flap_in_turn_answer_everything(self, vendors):
        async with gateway_of(*vendors[:2]) as gateway:
            await gateway.warmup()
            for turn in range(4):
                for place, vendor in enumerate(vendors[:2]):
                    if turn % 2 == place:
                        vendor.behave(Fault.server_error(500))
                    else:
                        vendor.recover()
                prompts = [f"question {turn}/{i}" for i in range(30)]
                assert await answered(gateway, prompts) == 30

    async def test_streams_and_embeddings_are_asked_as_last_resort_too(self, simulator):
        vendor = simulator.openai
        vendor.behave(Fault.server_error(500))
        configs = [vendor.config(name="p0"), vendor.config(name="p1", model=vendor.embedding_model)]
        async with AsyncGateway(configs, retry_rounds=0, failure_threshold=1) as gateway:
            await gateway.warmup()
            for operation in ("chat", "embeddings"):
                with pytest.raises(Exception, match="All LLM providers failed"):
                    await (gateway.chat("hi") if operation == "chat" else gateway.embed("hi"))
            assert guards(gateway, "p0").circuit_state == "open"
            assert guards(gateway, "p1", "embeddings").circuit_state == "open"
            vendor.recover()
            async with gateway.stream("hi again") as stream:
                assert [chunk.text async for chunk in stream]
            assert stream.response.attempts[0].last_resort
            reply = await gateway.embed("hi again")
            assert reply.attempts[0].last_resort
            assert guards(gateway, "p0").circuit_state == "closed"

    async def test_a_dead_fleet_gets_a_trickle(self, vendors):
        for vendor in vendors:
            vendor.behave(Fault.server_error(500))
        async with gateway_of(*vendors, timeout=1.5) as gateway:
            await gateway.warmup()
            began = asyncio.get_running_loop().time()
            await answered(gateway, [f"question {i}" for i in range(30)])
            seconds = asyncio.get_running_loop().time() - began
        for vendor in vendors:
            opening = 5 + 9  # the streak, and what was out with its last
            assert len(vendor.received) <= opening + 4 * seconds + 2


class TestBlameTakesEvidence:
    @pytest.mark.parametrize(
        "fault", [Fault.server_error(500), Fault.empty(), Fault.reset(), Fault.hang()]
    )
    async def test_one_bad_prompt_again_and_again_harms_no_other(self, vendors, clock, fault):
        for vendor in vendors:
            vendor.behave(Fault.bad_prompt("poison", fault))
        async with gateway_of(*vendors, clock=clock, attempt_timeout=1) as gateway:
            await gateway.warmup()
            for turn in range(2):
                poisoned = [
                    asyncio.create_task(gateway.chat("poison", cache=False)) for _ in range(3)
                ]
                if fault.name == "hang":
                    for vendor in vendors:
                        asked = 3 * (turn + 1)
                        await until(lambda it=vendor, so=asked: len(it.received) == so)
                        await clock.advance(1)
                for error in await asyncio.gather(*poisoned, return_exceptions=True):
                    assert isinstance(error, AllProvidersFailedError)
            assert [p.circuit_state for p in gateway.providers] == ["closed"] * 3
            for number in range(10):
                reply = await gateway.chat(f"innocent {number}")
                assert (reply.provider, len(reply.attempts)) == ("p0", 1)

    async def test_many_bad_prompts_harm_no_other(self, vendors):
        for vendor in vendors:
            vendor.behave(Fault.bad_prompt("poison", Fault.server_error(500)))
        async with gateway_of(*vendors) as gateway:
            await gateway.warmup()

            async def poison():
                for number in itertools.count():
                    await answered(gateway, [f"poison {number}"])

            bad = asyncio.create_task(poison())
            assert await answered(gateway, [f"innocent {i}" for i in range(120)]) == 120
            bad.cancel()

    @pytest.mark.parametrize("code", [401, 402, 403, 404])
    async def test_a_bare_status_disables_on_the_second_distinct_request(self, vendors, code):
        sick, backup = vendors[:2]
        sick.behave(Fault.empty(code))
        async with gateway_of(sick, backup) as gateway:
            for _ in range(4):
                assert (await gateway.chat("the same", cache=False)).provider == "p1"
            assert guards(gateway, "p0").disabled_reason is None
            await gateway.chat("another")
            assert guards(gateway, "p0").disabled_reason is not None

    async def test_an_answer_between_two_bare_refusals_is_evidence_to_the_contrary(self, vendors):
        sick, backup = vendors[:2]
        async with gateway_of(sick, backup) as gateway:
            for number in range(6):
                if number % 2:
                    sick.recover()
                else:
                    sick.behave(Fault.empty(404))
                await gateway.chat(f"question {number}")
            assert guards(gateway, "p0").disabled_reason is None

    @pytest.mark.parametrize("fault", [Fault.file_not_found(), Fault.no_tools()])
    async def test_what_a_model_cannot_do_disables_nothing(self, vendors, fault):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        for unable, able in ((vendors[0], vendors[1]), (vendors[1], vendors[2])):
            unable.behave(Fault.bad_prompt("special", fault))
            async with gateway_of(unable, able) as gateway:
                for number in range(3):
                    reply = await gateway.chat(f"special {number}", tools=[tool])
                    assert reply.attempts[0].failure is K.UNSUPPORTED
                    assert reply.provider == "p1"
                assert (await gateway.chat("ordinary")).provider == "p0"

    @pytest.mark.parametrize("code", [405, 501])
    async def test_what_is_not_offered_switches_off_that_operation_only(self, simulator, code):
        vendor = simulator.openai
        both = {"operations": ("chat", "embeddings")}
        config = vendor.config(name="p0", **both)
        async with AsyncGateway([config], retry_rounds=0) as gateway:
            vendor.behave(Fault.not_offered(code), times=1)
            with pytest.raises(Exception, match="not_offered"):
                await gateway.embed("a text", model="p0")
            assert guards(gateway, "p0", "embeddings").disabled_reason is K.NOT_OFFERED
            assert guards(gateway, "p0", "chat").active
            assert (await gateway.chat("hi")).provider == "p0"

    async def test_an_embedding_request_to_a_chat_model_leaves_chat_alone(self, simulator):
        async with AsyncGateway([simulator.openai.config(name="p0")], retry_rounds=0) as gateway:
            simulator.openai.behave(Fault.not_an_embedding_model(), times=3)
            for number in range(3):
                with pytest.raises(RequestRejectedError):
                    await gateway.embed(f"text {number}", model="p0")
            assert (await gateway.chat("hi")).provider == "p0"

    async def test_our_own_stall_is_no_providers_fault(self, vendors):
        for vendor in vendors:
            vendor.latency = 0.2
        events = []

        class Hook:
            def on_event(self, event):
                events.append(event)

        configs = [vendors[0].config(name="p0"), vendors[1].config(name="p1", priority=-1)]
        async with AsyncGateway(configs, attempt_timeout=2.0, hooks=[Hook()]) as gateway:
            await gateway.warmup()
            tasks = [asyncio.create_task(gateway.chat(f"question {i}")) for i in range(20)]
            await asyncio.sleep(0.1)
            time.sleep(2.5)  # noqa: ASYNC251 - this is what an application does wrong
            replies = await asyncio.gather(*tasks)
            assert {reply.provider for reply in replies} == {"p0"}
            assert {len(reply.attempts) for reply in replies} == {1}
        stalls = [event for event in events if event.name == "loop.stalled"]
        assert sum(event.seconds for event in stalls) >= 2.0
        assert stalls[0].in_flight == 20
        assert not [event for event in events if event.name == "provider.failed"]


class TestSecondOpinion:
    async def test_a_rejection_is_offered_to_another_vendor_once(self, vendors):
        vendors[0].behave(Fault.bad_request())
        async with gateway_of(*vendors) as gateway:
            reply = await gateway.chat("hi")
            assert reply.provider == "p1"
            assert [a.failure for a in reply.attempts] == [K.REJECTED, None]
            assert guards(gateway, "p0").active

    async def test_where_two_vendors_reject_it_is_the_callers_fault(self, vendors):
        for vendor in vendors:
            vendor.behave(Fault.bad_request())
        async with gateway_of(*vendors) as gateway:
            with pytest.raises(RequestRejectedError) as raised:
                await gateway.chat("hi")
        assert [(c.provider, c.kind) for c in raised.value.causes] == [
            ("p0", K.REJECTED),
            ("p1", K.REJECTED),
        ]
        assert [len(vendor.received) for vendor in vendors] == [1, 1, 0]

    async def test_a_provider_of_the_same_vendor_is_not_asked(self, simulator):
        same = await simulator.add("openai", name="same")
        simulator.openai.behave(Fault.bad_request())
        configs = [simulator.openai.config(priority=2, name="p0"), same.config(name="p1")]
        async with AsyncGateway(configs) as gateway:
            with pytest.raises(RequestRejectedError):
                await gateway.chat("hi")
        assert not same.received

    @pytest.mark.parametrize(("setting", "asked"), [(True, [1, 1, 1]), (False, [1, 0, 0])])
    async def test_the_setting_asks_all_or_none(self, vendors, setting, asked):
        for vendor in vendors:
            vendor.behave(Fault.bad_request())
        async with gateway_of(*vendors, failover_on_rejection=setting) as gateway:
            with pytest.raises(RequestRejectedError):
                await gateway.chat("hi")
        assert [len(vendor.received) for vendor in vendors] == asked

    async def test_opinions_come_out_of_the_budget_for_extra_calls(self, vendors):
        for vendor in vendors:
            vendor.behave(Fault.bad_request())
        async with gateway_of(*vendors) as gateway:
            await gateway.warmup()
            assert await answered(gateway, [f"question {i}" for i in range(100)]) == 0
        assert len(vendors[0].received) == 100
        assert len(vendors[1].received) < 60, "ten at first, and a fifth of the requests"


class TestHealthIsNotBinary:
    async def test_one_that_fails_half_of_its_calls_is_asked_after_the_healthy(self, vendors):
        vendors[0].behave(*[Fault.server_error(500), None])
        async with gateway_of(*vendors[:2]) as gateway:
            for number in range(60):
                await gateway.chat(f"question {number}")
            assert guards(gateway, "p0").degraded == "errors"
            assert guards(gateway, "p0").circuit_state == "closed"
            asked = len(vendors[0].received)
            for number in range(100):
                await gateway.chat(f"later {number}")
            assert 5 <= len(vendors[0].received) - asked <= 10, "the canaries"
            vendors[0].recover()
            for number in range(120):
                await gateway.chat(f"healed {number}")
            assert guards(gateway, "p0").degraded is None
            assert (await gateway.chat("the last")).provider == "p0"

    async def test_one_that_is_much_slower_than_usual_is_asked_after_the_others(self, vendors):
        async with gateway_of(*vendors[:2]) as gateway:
            await gateway.warmup()
            for number in range(30):
                assert (await gateway.chat(f"question {number}")).provider == "p0"
            usual = max(usual for usual, _ in gateway.usual_latencies().values())
            vendors[0].latency = 0.4 + 10 * usual  # however slow this machine is
            for turn in range(4):
                await answered(gateway, [f"slow {turn}/{i}" for i in range(10)])
            assert guards(gateway, "p0").degraded == "latency"
            replies = [await gateway.chat(f"later {number}") for number in range(20)]
            assert sum(reply.provider == "p0" for reply in replies) == 1, "the canary"


class TestWhatOneRequestMeets:
    """Every fifth prompt is one that a vendor, or a firewall before it, does not like."""

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize(
        "fault",
        [Fault.status(503, retry_after=86400), Fault.empty(403), Fault.empty(404)],
        ids=["Retry-After", "403", "404"],
    )
    async def test_does_no_harm_to_others(self, vendors, fault, count):
        async with gateway_of(*vendors[:count]) as gateway:
            await gateway.warmup()
            for place in range(count):
                await gateway.chat("hi", model=f"p{place}")
            for number in range(24):
                bad = number % 5 == 4
                for vendor in vendors[:count]:
                    vendor.behave(fault) if bad else vendor.recover()
                good = await answered(gateway, [f"question {number}"])
                assert good == (0 if bad else 1), number


class TestCooldown:
    async def test_a_day_is_cut_and_an_operator_can_end_it(self, vendors):
        vendors[0].behave(Fault.rate_limited(retry_after=86400), times=1)
        async with gateway_of(*vendors[:2]) as gateway:
            assert (await gateway.chat("one")).provider == "p1"
            assert 200 < guards(gateway, "p0").retry_after_seconds <= 300
            gateway.force_circuit("p0", "closed")
            assert (await gateway.chat("two")).provider == "p0"

    async def test_an_error_says_when_it_is_asked_again_not_what_the_vendor_wishes(self, vendors):
        vendors[0].behave(Fault.rate_limited(retry_after=86400))
        async with gateway_of(*vendors[:1]) as gateway:
            for number in range(2):
                with pytest.raises(AllProvidersFailedError) as caught:
                    await gateway.chat(f"question {number}")
                assert 290 < (caught.value.retry_after_seconds or 0) <= 300

    @pytest.mark.parametrize("hangs", [False, True])
    async def test_beside_the_one_that_tries_it_nobody_is_refused(self, vendors, hangs):
        (vendor,) = vendors[:1]
        vendor.behave(Fault.rate_limited(retry_after=86400), times=1)
        async with gateway_of(vendor, max_cooldown_seconds=0.2) as gateway:
            await gateway.warmup()
            assert await answered(gateway, ["one"]) == 0
            if hangs:
                vendor.behave(Fault.hang(), times=1)
            else:
                vendor.latency = 0.2
            await asyncio.sleep(0.2)
            trial = asyncio.create_task(gateway.chat("the trial"))
            await eventually(lambda: gateway.providers[0].in_flight == 1)
            assert await answered(gateway, [f"question {i}" for i in range(10)]) == 10
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)

    async def test_after_the_cut_one_request_tries_it(self, vendors, clock):
        vendors[0].behave(Fault.rate_limited(retry_after=86400))
        async with gateway_of(*vendors[:2], clock=clock) as gateway:
            await gateway.warmup()
            await gateway.chat("one")
            asked = len(vendors[0].received)
            await clock.advance(300)
            assert await answered(gateway, [f"question {i}" for i in range(10)]) == 10
            assert len(vendors[0].received) == asked + 1


def _providers(gateway):
    return gateway.get_metrics()["providers"].values()
