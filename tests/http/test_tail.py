"""What keeps the tail short, over real HTTP: hedges, limits, hangs, and a network that is gone."""

import asyncio
import contextlib

import pytest

from aigateway import AllProvidersFailedError, FailureKind
from aigateway.simulator import Answer, Fault
from tests import gateways
from tests.gateways import name_of, status_of, until
from tests.processes import PATIENCE

pytestmark = pytest.mark.slow

K = FailureKind


def gateway_for(*vendors, **settings):
    return gateways.gateway_for(*vendors, **{"cache_enabled": False} | settings)


class TestHedging:
    async def test_chat(self, pair):
        slow, quick = pair
        slow.behave(Fault.hang())
        async with gateway_for(slow, quick, hedge=True, hedge_delay_seconds=0.05) as gateway:
            reply = await gateway.chat("hi")
            assert reply.provider == name_of(quick)
            assert [a.failure for a in reply.attempts] == [K.HEDGE_LOST, None]
            await until(lambda: slow.open_connections == 0)
            assert status_of(gateway, slow).in_flight == 0

    async def test_stream(self, pair):
        slow, quick = pair
        slow.behave(Fault.stall_stream())
        async with gateway_for(slow, quick, hedge=True, hedge_delay_seconds=0.05) as gateway:
            stream = gateway.stream("hi")
            text = "".join([chunk.text async for chunk in stream])
            assert text == stream.response.text
            assert stream.response.provider == name_of(quick)
            await until(lambda: slow.open_connections == 0)

    async def test_none_where_the_first_is_quick(self, pair):
        quick, other = pair
        async with gateway_for(quick, other, hedge=True) as gateway:
            for turn in range(20):
                await gateway.chat(f"{turn}")
        assert other.received == ()


class TestLimits:
    async def test_concurrency_falls_on_429_and_comes_back(self, pair):
        vendor, backup = pair
        async with gateway_for(vendor, backup, fields={"max_concurrency": 8}) as gateway:
            await gateway.warmup()  # so that all begin before the first is answered
            vendor.behave(Fault.rate_limited(retry_after=1))  # longer than all of them take
            await asyncio.gather(*(gateway.chat(f"{turn}") for turn in range(8)))
            fallen = status_of(gateway, vendor).max_in_flight
            assert fallen == 7, "once in a round trip"
            vendor.recover()
            await asyncio.sleep(1)
            for _ in range(12):
                await asyncio.gather(*(gateway.chat(f"{turn}") for turn in range(8)))
            assert status_of(gateway, vendor).max_in_flight == 8

    async def test_first_token_timeouts_count_and_slow_answers_do_not(self, pair):
        vendor, backup = pair
        vendor.latency = 0.1
        async with gateway_for(vendor, backup, first_token_timeout=0.05) as gateway:
            await gateway.chat("hi")
            assert status_of(gateway, vendor).max_in_flight == 256
            vendor.behave(Fault.hang())
            with contextlib.suppress(AllProvidersFailedError):  # the backup has no more time
                async for _ in gateway.stream("hi"):
                    pass
            assert status_of(gateway, vendor).max_in_flight < 256

    @pytest.mark.parametrize("wire", ["openai", "azure", "anthropic"])  # Gemini says no such thing
    @pytest.mark.parametrize("streamed", [False, True])
    async def test_a_vendor_that_says_nothing_is_left_is_not_asked_again(
        self, simulator, wire, streamed
    ):
        vendor, backup = simulator.vendor(wire), simulator.gemini
        vendor.headers = {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "20s",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2999-01-01T00:00:00Z",
        }
        async with gateway_for(vendor, backup) as gateway:
            served = []
            for turn in range(3):
                if streamed:
                    stream = gateway.stream(f"{turn}")
                    async for _ in stream:
                        pass
                    served.append(stream.response.provider)
                else:
                    served.append((await gateway.chat(f"{turn}")).provider)
        assert served == [name_of(vendor), name_of(backup), name_of(backup)]
        assert len(vendor.received) == 1

    async def test_rpm_is_kept_on_our_side(self, pair):
        vendor, backup = pair
        async with gateway_for(vendor, backup, fields={"rpm": 3}) as gateway:
            await asyncio.gather(*(gateway.chat(f"{turn}") for turn in range(6)))
        assert (len(vendor.received), len(backup.received)) == (3, 3)

    async def test_tpm_counts_what_the_vendor_counted(self, pair):
        vendor, backup = pair
        async with gateway_for(vendor, backup, fields={"tpm": 60}) as gateway:
            for used, asked in ((5, 1), (20, 2), (20, 2)):
                vendor.answer(Answer("x", usage={"prompt_tokens": used, "completion_tokens": 1}))
                await gateway.chat("hi", max_tokens=50)  # 51 by estimate
                assert len(vendor.received) == asked
        assert len(backup.received) == 1


class TestRetries:
    async def test_the_same_provider_again_before_the_next(self, pair):
        vendor, backup = pair
        vendor.behave(Fault.server_error(), times=1)
        async with gateway_for(vendor, backup, retries_per_provider=1) as gateway:
            reply = await gateway.chat("hi")
        assert [a.failure for a in reply.attempts] == [K.SERVER_ERROR, None]
        assert (len(vendor.received), len(backup.received)) == (2, 0)

    async def test_retry_after_is_honoured(self, pair):
        vendor, backup = pair
        vendor.behave(Fault.rate_limited(retry_after=0.2), times=1)
        async with gateway_for(vendor, backup, retries_per_provider=1) as gateway:
            await gateway.chat("hi")
        first, second = vendor.received
        assert second.at - first.at >= 0.2


class TestQueue:
    async def test_a_full_provider_is_passed_over_then_waited_for_then_refused(self, pair):
        vendor, backup = pair
        for each in pair:
            each.latency = 0.2
        fields = {"max_concurrency": 1}
        async with gateway_for(vendor, backup, fields=fields, max_queue=1) as gateway:
            await gateway.warmup()
            replies = await asyncio.gather(
                *(gateway.chat(f"{turn}") for turn in range(4)), return_exceptions=True
            )
        assert [type(reply).__name__ for reply in replies] == [
            *["ChatResponse"] * 3,
            "OverloadedError",
        ]
        assert len(vendor.received) + len(backup.received) == 3


class TestSigns:
    async def test_a_hang_is_noticed_before_it_times_out(self, pair):
        vendor, backup = pair
        async with gateway_for(vendor, backup, attempt_timeout=30) as gateway:
            for turn in range(20):
                await gateway.chat(f"{turn}")
            vendor.behave(Fault.hang())
            stuck = [asyncio.create_task(gateway.chat(f"s{turn}")) for turn in range(5)]
            await until(lambda: len(vendor.received) == 25)
            async with asyncio.timeout(PATIENCE):
                while (await gateway.chat("new", timeout=2)).attempts[0].provider == name_of(
                    vendor
                ):
                    pass
            assert status_of(gateway, vendor).circuit_state == "closed"
            assert not any(task.done() for task in stuck)
            for task in stuck:
                task.cancel()
            await asyncio.wait(stuck)

    async def test_no_connection_to_anybody_looks_like_the_network(self, pair):
        for vendor in pair:
            vendor.behave(Fault.refuse())
        async with gateway_for(*pair) as gateway:
            for turn in range(8):
                with pytest.raises(AllProvidersFailedError, match="own network"):
                    await gateway.chat(f"{turn}")
            assert {str(p.circuit_state) for p in gateway.providers} == {"closed"}
            for vendor in pair:
                vendor.recover()
            assert (await gateway.chat("back")).provider == name_of(pair[0])

    async def test_extra_calls_are_bounded_in_an_outage(self, pair):
        for vendor in pair:
            vendor.behave(Fault.server_error())
        async with gateway_for(*pair, retry_rounds=5, failure_threshold=10_000) as gateway:
            results = await asyncio.gather(
                *(gateway.chat(f"{turn}") for turn in range(200)), return_exceptions=True
            )
        assert all(isinstance(result, AllProvidersFailedError) for result in results)
        sent = sum(len(vendor.received) for vendor in pair)
        # Two for each are the plan; the stock, the share and some seconds are extra.
        assert 400 < sent <= 400 + 10 + 0.2 * 200 + 10
