"""The gateway's own promises: cache, coalescing, stale answers, books, hooks, life."""

import asyncio
import gc
import json
import logging
import pickle
import traceback

import pytest
import structlog
from pydantic import BaseModel, field_validator

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    ConfigurationError,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    GatewaySettings,
    NoProvidersError,
    RequestRejectedError,
    UnknownModelError,
)
from aigateway.events import (
    CircuitChanged,
    CircuitForced,
    ProviderFailed,
    RequestFailed,
    RequestServed,
)
from aigateway.messages import Choice, Completion
from aigateway.testing import scripted_configs
from aigateway.wires.client import Failure

K = FailureKind
SECRET = "sk-live-do-not-show-me"


@pytest.fixture
async def make(clock, vendor):
    made = []

    def make_gateway(*names, fields=None, hooks=(), **settings):
        settings.setdefault("retry_rounds", 0)
        configs = scripted_configs(*(names or ("a", "b")), **(fields or {}))
        made.append(AsyncGateway(configs, clock=clock, vendor=vendor, hooks=hooks, **settings))
        return made[-1]

    yield make_gateway
    for gateway in made:
        await gateway.aclose()


def balanced(metrics):
    """Whether every request ended in exactly one way."""
    ends = ("cache_hits", "stale_answers", "coalesced", "served", "failures", "cancelled")
    return metrics["total_requests"] == sum(metrics[end] for end in ends)


class TestCache:
    async def test_a_repeated_request_is_remembered(self, make, vendor):
        gateway = make()
        first, second = await gateway.chat("hi"), await gateway.chat("hi")
        assert (first.cached, second.cached) == (False, True)
        assert second.text == first.text
        assert (second.provider, second.cost_usd, second.attempts) == ("a", 0.0, ())
        assert vendor.called() == 1

    async def test_per_call_and_per_agent_lifetimes(self, make, clock):
        gateway = make(cache_ttl_seconds=1000, agent_ttls={"market": 60})
        await gateway.chat("1", agent="market")
        await gateway.chat("2", agent="other")
        await gateway.chat("3", agent="market", cache_ttl=5)
        clock.tick(6)
        assert not (await gateway.chat("3", agent="market", cache=False)).cached
        assert (await gateway.chat("1")).cached, "the agent is no part of the key"
        clock.tick(55)
        assert not (await gateway.chat("1", cache=False)).cached
        assert (await gateway.chat("2")).cached

    async def test_false_neither_reads_nor_fills_and_refresh_only_fills(self, make, vendor):
        gateway = make()
        await gateway.chat("hi", cache=False)
        assert not (await gateway.chat("hi")).cached
        assert not (await gateway.chat("hi", cache=False)).cached
        vendor.script("a", "newer")
        assert not (await gateway.chat("hi", cache="refresh")).cached
        remembered = await gateway.chat("hi")
        assert (remembered.cached, remembered.text) == (True, "newer")

    async def test_can_be_switched_off(self, make, vendor):
        gateway = make(cache_enabled=False)
        await asyncio.gather(gateway.chat("hi"), gateway.chat("hi"))
        assert vendor.called() == 2

    async def test_is_bounded(self, make):
        gateway = make(cache_max_entries=3)
        for i in range(10):
            await gateway.chat(str(i))
        assert len(gateway.cache) == 3
        assert (await gateway.chat("9")).cached
        assert not (await gateway.chat("0", cache=False)).cached

    async def test_is_bounded_in_bytes(self, make, vendor):
        gateway = make("a", cache_max_memory_bytes=1_000_000)
        for i in range(20):
            vendor.script("a", "x" * 100_000)
            await gateway.chat(str(i))
            assert gateway.cache.stats()["bytes"] <= 1_000_000
        stats = gateway.get_metrics()["cache"]
        assert (stats["entries"], stats["evictions"], stats["max_bytes"]) == (9, 11, 1_000_000)
        assert (await gateway.chat("19")).cached
        vendor.script("a", "x" * 125_000)
        assert len((await gateway.chat("longer")).text) == 125_000
        assert gateway.get_metrics()["cache"]["too_large"] == 1
        assert not (await gateway.chat("longer")).cached

    async def test_failures_are_not_remembered(self, make, vendor):
        gateway = make("a")
        vendor.script("a", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")
        assert (await gateway.chat("hi")).text == "ok"

    async def test_a_hit_cannot_be_changed_for_the_next_caller(self, make, vendor):
        class City(BaseModel):
            name: str

        gateway = make()
        vendor.script("a", '{"name": "Oslo"}')
        first = await gateway.chat("hi", response_format=City)
        first.parsed.name = "changed"
        with pytest.raises(AttributeError):
            first.completion.model = "changed"
        openai = first.to_openai()
        openai["choices"][0]["message"]["content"] = "changed"
        second = await gateway.chat("hi", response_format=City)
        assert second.cached
        assert second.parsed == City(name="Oslo")
        assert second.to_openai()["choices"][0]["message"]["content"] == '{"name": "Oslo"}'

    async def test_the_public_face_meets_what_chat_remembers(self, make, vendor):
        gateway = make()
        await gateway.cache.set("Be terse.", "hi", None, "by hand", ttl_seconds=60)
        reply = await gateway.chat("hi", system="Be terse.")
        assert (reply.text, reply.cached) == ("by hand", True)
        await gateway.chat("other")
        found = await gateway.cache.get(None, "other")
        assert found is not None
        assert found.text == "ok"
        assert vendor.called() == 1

    async def test_the_messages_are_the_gateways_own(self, make, vendor):
        gateway = make()
        messages = [{"role": "user", "content": "hi"}]
        task = asyncio.create_task(gateway.chat(messages))
        await asyncio.sleep(0)
        messages[0]["content"] = "changed"
        await task
        assert vendor.calls[0][1].messages[0]["content"] == "hi"
        assert (await gateway.chat("hi")).cached


class TestCoalescing:
    async def test_a_hundred_at_once_make_one_call(self, make, vendor):
        gateway = make()
        replies = await asyncio.gather(*(gateway.chat("hi") for _ in range(100)))
        assert vendor.called() == 1
        assert sum(r.coalesced for r in replies) == 99
        metrics = gateway.get_metrics()
        assert (metrics["served"], metrics["coalesced"]) == (1, 99)
        assert balanced(metrics)
        assert sum(r.cost_usd or 0 for r in replies) == pytest.approx(0.001)

    @pytest.mark.parametrize("victim", [0, 1, 99])
    async def test_cancelling_one_does_not_fail_the_others(self, make, vendor, clock, victim):
        gateway = make()
        release = asyncio.Event()
        vendor.script("a", release.wait)
        tasks = [asyncio.create_task(gateway.chat("hi")) for _ in range(100)]
        await clock.settle()
        tasks[victim].cancel()
        await clock.settle()
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(victim), asyncio.CancelledError)
        assert [r.text for r in results if not isinstance(r, BaseException)] == ["ok"] * 99
        assert vendor.called() == 1
        assert balanced(gateway.get_metrics())

    async def test_an_error_reaches_all_and_is_not_remembered(self, make, vendor):
        gateway = make("a")
        vendor.script("a", K.SERVER_ERROR)
        results = await asyncio.gather(
            *(gateway.chat("hi") for _ in range(20)), return_exceptions=True
        )
        assert all(isinstance(r, AllProvidersFailedError) for r in results)
        assert vendor.called() == 1
        assert (await gateway.chat("hi")).text == "ok"
        assert balanced(gateway.get_metrics())

    async def test_when_all_have_left_the_vendor_is_left_too(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", asyncio.Event().wait)
        tasks = [asyncio.create_task(gateway.chat("hi")) for _ in range(5)]
        await clock.settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert gateway.get_metrics()["in_flight"] == 0

    async def test_one_with_more_time_outlives_the_one_that_began(self, make, vendor, clock):
        gateway = make("a", attempt_timeout=30)
        release = asyncio.Event()
        vendor.always("a", release.wait)
        short = asyncio.create_task(gateway.chat("hi", timeout=2))
        await clock.settle()
        long = asyncio.create_task(gateway.chat("hi", timeout=20))
        await clock.advance(2)
        with pytest.raises(DeadlineExceededError):
            await short
        assert not long.done()
        release.set()
        assert (await long).text == "ok"

    async def test_one_with_less_time_leaves_and_harms_none(self, make, vendor, clock):
        gateway = make("a")
        release = asyncio.Event()
        vendor.always("a", release.wait)
        patient = asyncio.create_task(gateway.chat("hi"))
        await clock.settle()
        hasty = asyncio.create_task(gateway.chat("hi", timeout=1))
        await clock.advance(1)
        with pytest.raises(DeadlineExceededError):
            await hasty
        release.set()
        assert (await patient).text == "ok"

    async def test_one_with_more_time_waits_for_a_rate_limit_that_the_first_could_not(
        self, make, vendor, clock
    ):
        gateway = make("a", retry_rounds=1)
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=3))
        hasty = asyncio.create_task(gateway.chat("hi", timeout=2))
        patient = asyncio.create_task(gateway.chat("hi", timeout=60))
        await clock.advance(10)
        with pytest.raises(AllProvidersFailedError):
            await hasty
        assert (await patient).text == "ok"

    async def test_when_the_first_has_left_the_answer_is_counted_and_paid_for_once(
        self, make, vendor, clock
    ):
        recorder = Recorder()
        gateway = make(hooks=[recorder])
        release = asyncio.Event()
        vendor.script("a", release.wait)
        first, *others = [asyncio.create_task(gateway.chat("hi")) for _ in range(4)]
        await clock.settle()
        first.cancel()
        await clock.settle()
        release.set()
        replies = await asyncio.gather(*others)
        await asyncio.gather(first, return_exceptions=True)
        metrics = gateway.get_metrics()
        assert (metrics["served"], metrics["coalesced"], metrics["cancelled"]) == (1, 2, 1)
        assert sum(r.cost_usd or 0 for r in replies) == pytest.approx(metrics["cost_usd"])
        assert len(recorder.of(RequestServed)) == 1

    async def test_a_refresh_is_not_answered_by_an_older_call(self, make, vendor, clock):
        gateway = make("a")
        release = asyncio.Event()
        vendor.script("a", release.wait, "newer")
        older = asyncio.create_task(gateway.chat("hi"))
        await clock.settle()
        assert (await gateway.chat("hi", cache="refresh")).text == "newer"
        release.set()
        await older


class TestStale:
    async def test_stands_in_when_every_provider_fails(self, make, vendor, clock):
        gateway = make("a", cache_ttl_seconds=10, stale_if_error_seconds=100)
        await gateway.chat("hi")
        clock.tick(50)
        vendor.always("a", K.SERVER_ERROR)
        reply = await gateway.chat("hi")
        assert (reply.text, reply.stale, reply.cached) == ("ok", True, True)
        metrics = gateway.get_metrics()
        assert (metrics["stale_answers"], metrics["cache_hits"]) == (1, 0)
        assert balanced(metrics)
        clock.tick(100)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")

    async def test_is_off_by_default(self, make, vendor, clock):
        gateway = make("a", cache_ttl_seconds=10)
        await gateway.chat("hi")
        clock.tick(11)
        vendor.always("a", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")

    async def test_never_for_the_callers_own_fault(self, make, vendor, clock):
        gateway = make("a", cache_ttl_seconds=10, stale_if_error_seconds=100)
        await gateway.chat("hi")
        clock.tick(50)
        vendor.always("a", K.REJECTED)
        with pytest.raises(GatewayError, match="rejected"):
            await gateway.chat("hi")


class TestStructuredOutput:
    class Sum(BaseModel):
        total: int

    async def test_an_answer_that_does_not_parse_goes_on_to_the_next(self, make, vendor):
        gateway = make()
        vendor.script("a", "I would rather not")
        vendor.script("b", '{"total": 4}')
        reply = await gateway.chat("2+2", response_format=self.Sum)
        assert reply.parsed == self.Sum(total=4)
        assert reply.attempts[0].failure is K.INVALID_OUTPUT
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 0

    async def test_a_validator_with_a_bug_blames_none_and_the_books_balance(self, make, vendor):
        class Broken(BaseModel):
            total: int

            @field_validator("total")
            @classmethod
            def look_up(cls, total):
                return {}[total]

        gateway = make()
        for name in "ab":
            vendor.always(name, '{"total": 4}')
        for _ in range(6):
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat("2+2", response_format=Broken)
        await gateway.chat("2+2", response_format=self.Sum)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("2+2", response_format=Broken)
        assert {p.circuit_state for p in gateway.providers} == {"closed"}
        metrics = gateway.get_metrics()
        assert balanced(metrics)
        assert metrics["providers"]["a"]["total_tokens"] == 2 * 8, "each answer was paid for"

    async def test_a_validator_that_changes_its_mind_is_the_callers(self, make, vendor):
        asked = 0

        class Fickle(BaseModel):
            total: int

            @field_validator("total")
            @classmethod
            def once(cls, total):
                nonlocal asked
                asked += 1
                if asked > 1:
                    raise ValueError(SECRET)
                return total

        gateway = make("a")
        vendor.always("a", '{"total": 4}')
        with pytest.raises(GatewayError, match="Fickle") as raised:
            await gateway.chat("2+2", response_format=Fickle)
        assert SECRET not in "".join(traceback.format_exception(raised.value))
        assert balanced(gateway.get_metrics())

    async def test_the_error_does_not_quote_the_answer(self, make, vendor):
        gateway = make()
        for name in "ab":
            vendor.always(name, SECRET)
        with pytest.raises(AllProvidersFailedError) as raised:
            await gateway.chat("2+2", response_format=self.Sum)
        assert SECRET not in "".join(traceback.format_exception(raised.value))

    async def test_a_refusal_is_an_answer(self, make, vendor):
        refusal = Completion("x", "m", (Choice(refusal="I cannot."),))
        vendor.script("a", refusal)
        reply = await make().chat("2+2", response_format=self.Sum)
        assert reply.parsed is None
        assert reply.choices[0].refusal == "I cannot."

    async def test_two_classes_of_one_schema_judge_for_themselves(self, make, vendor):
        def strict():
            class Sum(BaseModel):
                total: int

                @field_validator("total")
                @classmethod
                def is_even(cls, total):
                    if total % 2:
                        raise ValueError(SECRET)
                    return total

            return Sum

        gateway = make("a")
        vendor.script("a", '{"total": 3}', '{"total": 4}', '{"total": 6}')
        lax, even = self.Sum, strict()
        replies = await asyncio.gather(
            gateway.chat("2+2", response_format=lax), gateway.chat("2+2", response_format=even)
        )
        assert [r.parsed.total for r in replies] == [3, 4]
        assert (await gateway.chat("2+2", response_format=even)).parsed.total == 6
        assert (await gateway.chat("2+2", response_format=even)).cached


class TestBooks:
    async def test_the_documented_keys(self, make, vendor):
        gateway = make()
        await gateway.chat("hi")
        await gateway.chat("hi")
        await gateway.chat("hi")
        for name in "ab":
            vendor.always(name, Failure(K.AUTHENTICATION, 401, certain=True))
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("other")
        metrics = gateway.get_metrics()
        documented = (
            "total_requests",
            "cache_hits",
            "cache_hit_rate_percent",
            "failures",
            "providers_active",
        )
        assert [metrics[key] for key in documented] == [4, 2, 50.0, 1, 0]
        assert json.loads(json.dumps(metrics)) == metrics

    async def test_per_provider(self, make, vendor):
        gateway = make()
        vendor.script("a", Failure(K.SERVER_ERROR, 500), K.TIMEOUT)
        for i in range(4):
            await gateway.chat(str(i))
        a = gateway.get_metrics()["providers"]["a"]
        assert a["attempts"] == 4
        assert a["failures"] == {"server_error": 1, "timeout": 1}
        assert a["attempts"] == a["successes"] + sum(a["failures"].values())
        # Two answers of two tokens, and the prompt of the call that timed out.
        assert (a["total_tokens"], a["cost_usd"]) == (5, 0.002)
        assert set(a["latency_seconds"]) == {"p50", "p95", "p99"}

    async def test_the_rate_has_two_decimals(self, make):
        gateway = make()
        for prompt in "aab":
            await gateway.chat(prompt)
        assert gateway.get_metrics()["cache_hit_rate_percent"] == 33.33

    async def test_bad_input_is_no_request(self, make):
        gateway = make()
        with pytest.raises(UnknownModelError):
            await gateway.chat("hi", model="nonsense")
        assert gateway.get_metrics()["total_requests"] == 0


class Recorder:
    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def of(self, kind):
        return [e for e in self.events if isinstance(e, kind)]


class TestHooksAndLogs:
    async def test_hooks_get_frozen_records(self, make, vendor, clock):
        recorder = Recorder()
        gateway = make(hooks=[recorder])
        vendor.always("a", Failure(K.SERVER_ERROR, 503))
        for i in range(5):
            await gateway.chat(str(i))
        assert len(recorder.of(ProviderFailed)) == 5
        assert [e.name for e in recorder.of(CircuitChanged)] == ["circuit.opened"]
        assert len(recorder.of(RequestServed)) == 5
        vendor.always("a", None)
        clock.tick(60)
        await gateway.chat("probe")
        names = [e.name for e in recorder.of(CircuitChanged)]
        assert names == ["circuit.opened", "circuit.half_opened", "circuit.closed"]
        with pytest.raises(AttributeError):
            recorder.events[0].provider = "changed"

    async def test_one_that_raises_is_logged_and_harms_nothing(self, make, vendor, caplog):
        class Broken:
            def on_event(self, event):
                raise ZeroDivisionError

        recorder = Recorder()
        gateway = make(hooks=[Broken(), recorder])
        assert (await gateway.chat("hi")).text == "ok"
        assert recorder.of(RequestServed)
        assert "hook.raised" in caplog.text
        assert "Broken" in caplog.text

    async def test_no_prompt_no_answer_no_key_in_the_log(self, make, vendor, caplog):
        caplog.set_level(logging.DEBUG)
        recorder = Recorder()
        gateway = make(fields={"api_key": SECRET}, hooks=[recorder])
        vendor.script("a", ZeroDivisionError(SECRET))
        vendor.script("b", SECRET)
        await gateway.chat(f"prompt {SECRET}", system=SECRET)
        await gateway.chat(f"prompt {SECRET}", system=SECRET)
        for name in "ab":
            vendor.always(name, RuntimeError(SECRET))
        with pytest.raises(AllProvidersFailedError) as raised:
            await gateway.chat(SECRET)
        assert "provider.failed" in caplog.text
        assert "request.served" in caplog.text
        assert "cache.hit" in caplog.text
        for told in (
            caplog.text,
            repr(recorder.events),
            "".join(traceback.format_exception(raised.value)),
            repr(gateway.get_metrics()),
            repr(gateway.providers),
            repr(pickle.loads(pickle.dumps(raised.value)).causes),
        ):
            assert SECRET not in told

    async def test_prompts_are_logged_when_asked_for(self, make, vendor, caplog):
        caplog.set_level(logging.INFO)
        await make(log_prompts=True).chat("the prompt")
        assert "request.content" in caplog.text
        assert "the prompt" in caplog.text

    async def test_goes_to_structlog_where_that_is_configured(self, make, vendor):
        vendor.script("a", K.SERVER_ERROR)
        try:
            with structlog.testing.capture_logs() as logs:
                structlog.configure(processors=structlog.get_config()["processors"])
                await make().chat("hi")
        finally:
            structlog.reset_defaults()
        events = {entry["event"]: entry for entry in logs}
        assert events["provider.failed"]["kind"] == "server_error"
        assert events["provider.failed"]["log_level"] == "warning"
        assert events["request.served"]["attempts"] == 2

    async def test_an_unconfigured_process_prints_nothing(self, make, vendor, capfd):
        vendor.script("a", K.AUTHENTICATION)
        await make().chat("hi")
        assert capfd.readouterr() == ("", "")


class TestProviders:
    async def test_come_and_go_at_run_time(self, make, vendor):
        gateway = make("a")
        gateway.add_provider(scripted_configs("better", priority=99)[0])
        assert (await gateway.chat("1")).provider == "better"
        assert [p.name for p in gateway.providers] == ["better", "a"]
        gateway.remove_provider("better")
        assert (await gateway.chat("2")).provider == "a"
        with pytest.raises(ConfigurationError, match="nonsense"):
            gateway.remove_provider("nonsense")
        with pytest.raises(ConfigurationError, match="'a'"):
            gateway.add_provider(scripted_configs("a")[0])

    async def test_a_removed_one_ends_its_calls_and_closes(self, make, vendor, clock):
        gateway = make("a", "b")
        release = asyncio.Event()
        vendor.script("a", release.wait)
        task = asyncio.create_task(gateway.chat("hi"))
        await clock.settle()
        gateway.remove_provider("a")
        assert (await gateway.chat("other")).provider == "b"
        assert vendor.open_clients == 2
        release.set()
        assert (await task).provider == "a"
        await clock.settle()
        assert vendor.open_clients == 1

    async def test_may_be_removed_from_another_thread(self, make, vendor, clock):
        gateway = make("a", "b")
        await gateway.chat("hi")
        await asyncio.to_thread(gateway.remove_provider, "a")
        await clock.settle()
        assert vendor.open_clients == 0
        assert (await gateway.chat("other")).provider == "b"

    async def test_nothing_configured_fails_at_start(self):
        with pytest.raises(NoProvidersError, match="OPENAI_API_KEY"):
            AsyncGateway()

    async def test_not_even_added_later(self):
        gateway = AsyncGateway([])
        with pytest.raises(NoProvidersError):
            await gateway.chat("hi")

    async def test_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
        gateway = AsyncGateway(timeout=7)
        assert [p.vendor for p in gateway.providers] == ["openai", "anthropic"]
        assert gateway.settings.timeout == 7
        assert SECRET not in repr((gateway, gateway.providers, gateway.settings))

    async def test_settings_may_be_given_whole_and_overridden(self):
        gateway = AsyncGateway([], settings=GatewaySettings(timeout=9, max_queue=5), timeout=8)
        assert (gateway.settings.timeout, gateway.settings.max_queue) == (8, 5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"timeout": -1}, "timeout"),
            ({"time_out": 1}, "did you mean"),
            ({"providers": ["gpt-4o"]}, "LLMConfig"),
        ],
    )
    async def test_what_cannot_work_fails_at_start(self, arguments, message):
        with pytest.raises(ConfigurationError, match=f"(?i){message}"):
            AsyncGateway(**{"providers": [], **arguments})


class TestForcedCircuits:
    async def test_open_asks_a_healthy_provider_no_more(self, make, vendor):
        gateway = make()
        gateway.force_circuit("a", "open")
        assert (await gateway.chat("hi")).provider == "b"
        assert vendor.called("a") == 0
        status = gateway.providers[0]
        assert (status.forced, status.active, status.circuit_state) == (True, False, "open")
        gateway.force_circuit("a", "auto")
        assert (await gateway.chat("other")).provider == "a"
        assert not gateway.providers[0].forced

    async def test_open_stays_so_however_long_it_lasts(self, make, vendor, clock):
        gateway = make()
        gateway.force_circuit("a", "open")
        clock.tick(1e6)
        assert (await gateway.chat("hi")).provider == "b"

    async def test_closed_asks_a_provider_however_often_it_fails(self, make, vendor):
        gateway = make(failure_threshold=2)
        vendor.always("a", K.SERVER_ERROR)
        gateway.force_circuit("a", "closed")
        for number in range(5):
            assert (await gateway.chat(str(number))).provider == "b"
        assert vendor.called("a") == 5
        gateway.force_circuit("a", "auto")
        for number in range(5, 10):
            await gateway.chat(str(number))
        assert vendor.called("a") == 5 + 2
        assert gateway.providers[0].circuit_state == "open"

    async def test_auto_leaves_a_circuit_alone_that_was_not_forced(self, make, vendor):
        gateway = make(failure_threshold=1)
        vendor.script("a", K.SERVER_ERROR)
        await gateway.chat("hi")
        gateway.force_circuit("a", "auto")
        assert gateway.providers[0].circuit_state == "open"

    @pytest.mark.parametrize("by", ["here", "another thread"])
    async def test_who_waits_goes_on(self, make, vendor, clock, by):
        """The only place is taken by a call that never ends; the next provider is forced closed."""
        gateway = make(failure_threshold=1, fields={"max_concurrency": 1})
        vendor.script("b", K.SERVER_ERROR)
        vendor.script("a", K.SERVER_ERROR, asyncio.Event().wait)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("breaks both circuits")
        gateway.force_circuit("a", "closed")
        stuck = asyncio.create_task(gateway.chat("stuck"))
        await clock.settle()
        waiting = asyncio.create_task(gateway.chat("waiting"))
        await clock.settle()
        assert gateway.get_metrics()["waiting"] == 1
        if by == "here":
            gateway.force_circuit("b", "closed")
        else:
            await asyncio.to_thread(gateway.force_circuit, "b", "closed")
        assert (await waiting).provider == "b"
        stuck.cancel()
        await clock.settle()

    async def test_a_network_that_seems_dead_does_not_undo_it(self, make, vendor):
        gateway = make("a", "b", "c", failure_threshold=1)
        offline = Failure(K.CONNECTION, unreachable=True)
        for name in ("a", "b", "c"):
            vendor.always(name, offline)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("hi")
        gateway.force_circuit("a", "open")
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat("other")
        assert gateway.providers[0].forced
        assert gateway.providers[0].circuit_state == "open"

    async def test_each_order_is_an_event_with_who_gave_it(self, make, caplog):
        recorder = Recorder()
        gateway = make(hooks=[recorder])
        with caplog.at_level(logging.WARNING, "aigateway"):
            gateway.force_circuit("a", "open", by="ops")
            gateway.force_circuit("a", "open", by="ops")
        forced = [event for event in recorder.events if isinstance(event, CircuitForced)]
        assert forced == 2 * [CircuitForced("a", "open", "ops")]
        assert "event='operator.circuit_forced' provider='a' state='open' by='ops'" in caplog.text

    async def test_what_cannot_be_is_refused(self, make):
        gateway = make()
        with pytest.raises(ConfigurationError, match="nonsense"):
            gateway.force_circuit("nonsense", "open")
        with pytest.raises(ConfigurationError, match="auto"):
            gateway.force_circuit("a", "ajar")


class TestLife:
    async def test_a_closed_gateway_says_so(self, make, vendor):
        gateway = make()
        await gateway.chat("hi")
        await gateway.aclose()
        await gateway.aclose()
        assert vendor.open_clients == 0
        with pytest.raises(GatewayError, match="closed"):
            await gateway.chat("hi")

    async def test_closing_ends_what_is_in_flight_with_an_error(self, make, vendor, clock):
        gateway = make()
        vendor.always("a", asyncio.Event().wait)
        tasks = [asyncio.create_task(gateway.chat("hi", cache=c)) for c in (True, True, False)]
        await clock.settle()
        await gateway.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, GatewayError) for r in results), results
        assert balanced(gateway.get_metrics())

    async def test_is_refused_on_a_second_running_loop(self, make):
        gateway = make()
        await gateway.chat("hi")

        def elsewhere():
            async def ask():
                with pytest.raises(GatewayError, match="another event loop"):
                    await gateway.chat("hi")

            asyncio.run(ask())

        await asyncio.to_thread(elsewhere)

    def test_moves_to_the_next_loop_when_one_is_over(self, vendor):
        gateway = AsyncGateway(scripted_configs("a"), vendor=vendor)
        assert asyncio.run(gateway.chat("1")).text == "ok"
        assert asyncio.run(gateway.chat("1")).cached
        assert asyncio.run(gateway.chat("2")).text == "ok"

    async def test_leaves_no_task(self, make, vendor, clock):
        gc.collect()  # what earlier tests left to the collector may make tasks of its own
        await clock.settle()
        before = asyncio.all_tasks()
        gateway = make()
        await asyncio.gather(*(gateway.chat("hi") for _ in range(10)))
        await gateway.aclose()
        gc.collect()
        assert asyncio.all_tasks() == before

    async def test_call_llm_gives_the_text(self, make, vendor):
        assert await make().call_llm(system="Be terse.", user="hi", temperature=0) == "ok"
        assert [m["role"] for m in vendor.calls[0][1].messages] == ["system", "user"]

    async def test_embeds_with_failover(self, make, vendor):
        gateway = make()
        vendor.script("a", Failure(K.SERVER_ERROR, 500))
        reply = await gateway.embed(["one", "three"])
        assert reply.provider == "b"
        assert reply.vectors == ((3.0, 1.0), (5.0, 1.0))
        assert balanced(gateway.get_metrics())


async def test_request_failed_carries_the_causes(make, vendor):
    recorder = Recorder()
    gateway = make("a", hooks=[recorder])
    vendor.script("a", Failure(K.SERVER_ERROR, 500))
    with pytest.raises(AllProvidersFailedError):
        await gateway.chat("hi")
    (failed,) = recorder.of(RequestFailed)
    assert failed.error == "AllProvidersFailedError"
    assert [(c.provider, c.kind) for c in failed.causes] == [("a", K.SERVER_ERROR)]


@pytest.mark.parametrize("body", [None, [], "x", 5])
@pytest.mark.parametrize("name", ["messages", "responses", "completions"])
async def test_a_body_of_a_protocol_must_be_a_mapping(make, vendor, name, body):
    gateway = make()
    with pytest.raises(
        RequestRejectedError, match=f"mapping, as of JSON, not {type(body).__name__}"
    ):
        await getattr(gateway, name)(body)
    assert not vendor.calls
