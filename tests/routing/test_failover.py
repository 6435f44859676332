"""One request across providers: failover, deadlines, places and verdicts, on virtual time."""

import asyncio
import itertools
import pickle
from typing import Any

import pytest

from aigateway.errors import (
    AllProvidersFailedError,
    ContentPolicyError,
    ContextWindowExceededError,
    DeadlineExceededError,
    FailureKind,
    OverloadedError,
    RequestRejectedError,
)
from aigateway.events import CircuitChanged, ProviderDisabled
from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatRequest, Choice, Completion, Origin
from aigateway.resilience.breaker import CircuitState
from aigateway.routing.attempt import AttemptEnd
from aigateway.routing.candidates import RequestState
from aigateway.routing.guards import Guards
from aigateway.routing.work import ChatWork
from aigateway.testing import scripted_configs
from aigateway.wires.client import Failure, VendorCallError
from tests.gateways import state_of

K = FailureKind


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


def hang():
    return asyncio.Event().wait()


_numbers = itertools.count()


def another():
    """A prompt that was not asked before: repeats of a request count once."""
    return f"question {next(_numbers)}"


async def fails(gateway, error, **options):
    with pytest.raises(error) as raised:
        await gateway.chat(another(), cache=False, **options)
    return raised.value


class TestFailover:
    async def test_the_best_provider_answers(self, make, vendor):
        reply = await make().chat("hi")
        assert (reply.provider, reply.text) == ("a", "ok")
        assert [name for name, _ in vendor.calls] == ["a"]

    @pytest.mark.parametrize(
        "kind",
        [K.SERVER_ERROR, K.BAD_ANSWER, K.CONNECTION, K.TIMEOUT, K.UNKNOWN],
    )
    async def test_a_sick_provider_is_left_and_blamed(self, make, vendor, kind):
        gateway = make()
        vendor.always("a", kind)
        for _ in range(5):
            assert (await gateway.chat(another())).provider == "b"
        assert state_of(gateway, "a").circuit_state is CircuitState.OPEN
        reply = await gateway.chat(another())
        assert vendor.called("a") == 5, "the open circuit is not asked"
        assert [a.provider for a in reply.attempts] == ["b"]

    @pytest.mark.parametrize(
        "kind", [K.AUTHENTICATION, K.PERMISSION, K.NO_CREDIT, K.MODEL_NOT_FOUND]
    )
    async def test_one_set_up_wrong_is_disabled_at_once_and_not_blamed(self, make, vendor, kind):
        gateway = make()
        vendor.script("a", kind)
        assert (await gateway.chat("1")).provider == "b"
        status = state_of(gateway, "a")
        assert (status.disabled_reason, status.circuit_state) == (kind, CircuitState.CLOSED)
        assert status.retry_after_seconds == pytest.approx(300)
        assert (await gateway.chat("2")).provider == "b"
        assert vendor.called("a") == 1

    async def test_an_operation_that_is_not_offered_is_off_at_once_and_the_other_is_not(
        self, make, vendor
    ):
        gateway = make("a", "b")
        vendor.script("a", Failure(K.NOT_OFFERED, 405))
        assert (await gateway.embed("x")).provider == "b"
        assert (await gateway.embed("y")).provider == "b"
        assert vendor.called("a") == 1
        assert (await gateway.chat("hi")).provider == "a"

    async def test_a_disabled_one_is_checked_by_one_request_and_comes_back(
        self, make, vendor, clock
    ):
        gateway = make()
        vendor.script("a", K.AUTHENTICATION)
        await gateway.chat("1")
        clock.tick(300)
        assert (await gateway.chat("2")).provider == "a"
        assert state_of(gateway, "a").disabled_reason is None

    async def test_a_bare_refusal_disables_when_a_second_request_meets_it(self, make, vendor):
        gateway = make()
        vendor.always("a", Failure(K.AUTHENTICATION, 401))
        same = another()
        for _ in range(3):
            assert (await gateway.chat(same, cache=False)).provider == "b"
        assert state_of(gateway, "a").disabled_reason is None
        await gateway.chat(another())
        assert state_of(gateway, "a").disabled_reason is K.AUTHENTICATION

    @pytest.mark.parametrize(
        ("kind", "cools"),
        [
            (K.SERVER_ERROR, True),
            (K.BAD_ANSWER, True),
            (K.RATE_LIMITED, True),
            (K.CONNECTION, False),
            (K.UNKNOWN, False),
            (K.UNSUPPORTED, False),
        ],
    )
    async def test_a_wish_to_be_left_alone_counts_where_it_can_be_meant(
        self, make, vendor, kind, cools
    ):
        gateway = make()
        vendor.script("a", Failure(kind, retry_after=9))
        assert (await gateway.chat("hi")).provider == "b"
        assert state_of(gateway, "a").retry_after_seconds == (9 if cools else None)

    async def test_a_rate_limit_cools_down_and_is_neutral(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=7))
        assert (await gateway.chat("1")).provider == "b"
        assert state_of(gateway, "a").retry_after_seconds == pytest.approx(7)
        assert (await gateway.chat("2")).provider == "b"
        clock.tick(7)
        assert (await gateway.chat("3")).provider == "a"

    async def test_a_rate_limit_does_not_end_a_streak(self, make, vendor):
        gateway = make()
        for step in [K.SERVER_ERROR] * 4 + [Failure(K.RATE_LIMITED, 429, 0.0), K.SERVER_ERROR]:
            vendor.script("a", step)
            await gateway.chat(another())
        assert state_of(gateway, "a").circuit_state is CircuitState.OPEN

    async def test_a_sick_one_that_says_when_is_left_alone_until_then(self, make, vendor, clock):
        gateway = make()
        vendor.script("a", Failure(K.SERVER_ERROR, 503, retry_after=3))
        await gateway.chat("1")
        assert state_of(gateway, "a").retry_after_seconds == pytest.approx(3)
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 1

    async def test_an_exception_nobody_foresaw_counts_and_goes_on(self, make, vendor):
        gateway = make()
        vendor.always("a", ZeroDivisionError("secret prompt"))
        for _ in range(5):
            assert (await gateway.chat(another())).provider == "b"
        assert state_of(gateway, "a").circuit_state is CircuitState.OPEN

    async def test_repeats_of_one_request_count_once(self, make, vendor):
        gateway = make()
        for name in "abc":
            vendor.always(name, K.SERVER_ERROR)
        for _ in range(20):
            with pytest.raises(AllProvidersFailedError):
                await gateway.chat("the bad prompt", cache=False)
        counted = [p["consecutive_failures"] for p in gateway.get_metrics()["providers"].values()]
        assert counted == [1, 1, 1]
        vendor.always("a", None)
        assert (await gateway.chat("an innocent one")).provider == "a"

    async def test_attempts_tell_the_whole_story(self, make, vendor):
        vendor.script("a", Failure(K.SERVER_ERROR, 500))
        vendor.script("b", K.UNSUPPORTED)
        reply = await make().chat("hi")
        assert [(a.provider, a.failure, a.status, a.ok) for a in reply.attempts] == [
            ("a", K.SERVER_ERROR, 500, False),
            ("b", K.UNSUPPORTED, None, False),
            ("c", None, None, True),
        ]

    async def test_an_attempt_ends_once(self, make, clock):
        gateway = make("a")
        await gateway.chat("hi")
        now = clock.now()
        request = ChatRequest(({"role": "user", "content": "hi"},))
        state = RequestState(request, "chat", gateway._roster, now, now + 60)

        class Ending(ChatWork):
            async def ask(self, attempt):
                attempt.end(AttemptEnd.LEFT)
                return Completion("", "", (Choice(),))

        with pytest.raises(AssertionError, match="ended twice"):
            await gateway._pipeline._failovers.run(state, Ending(request))
        assert state_of(gateway, "a").in_flight == 0


class TestCallersFault:
    @pytest.mark.parametrize(
        ("kind", "error"),
        [(K.REJECTED, RequestRejectedError), (K.CONTENT_POLICY, ContentPolicyError)],
    )
    async def test_is_raised_at_once_and_blames_nobody(self, make, vendor, kind, error):
        gateway = make()
        vendor.always("a", Failure(kind, 400))
        for _ in range(6):
            raised = await fails(gateway, error)
        assert vendor.called("b") == 0
        assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED
        assert [c.kind for c in raised.causes] == [kind]

    @pytest.mark.parametrize(
        ("kind", "setting"),
        [
            (K.REJECTED, "failover_on_rejection"),
            (K.CONTENT_POLICY, "failover_on_content_policy"),
        ],
    )
    async def test_settings_can_let_it_go_on(self, make, vendor, kind, setting):
        vendor.always("a", kind)
        vendor.always("b", kind)
        assert (await make(**{setting: True}).chat("hi")).provider == "c"

    async def test_too_long_goes_on_to_a_larger_window_only(self, make, vendor):
        vendor.max_input_tokens = {"a": 8_000, "b": 4_000, "c": 100_000}
        vendor.always("a", K.CONTEXT_WINDOW)
        reply = await make().chat("hi")
        assert reply.provider == "c"
        assert vendor.called("b") == 0

    @pytest.mark.parametrize("known", [{}, {"a": 8_000}, {"b": 9_000}, {"a": 9_000, "b": 9_000}])
    async def test_too_long_is_raised_where_nobody_is_known_to_take_more(self, make, vendor, known):
        vendor.max_input_tokens = known
        vendor.always("a", K.CONTEXT_WINDOW)
        await fails(make(), ContextWindowExceededError)
        assert vendor.called() == 1

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            (K.REJECTED, "The request was rejected as invalid: a: rejected (HTTP 400)."),
            (
                K.CONTENT_POLICY,
                "The content policy refused the request: a: content_policy (HTTP 400).",
            ),
            (K.CONTEXT_WINDOW, "The prompt is too long: a: context_window (HTTP 400)."),
            (
                K.UNSUPPORTED,
                (
                    "No provider supports what this request asks for (drop_unsupported_params"
                    " leaves out parameters that a model does not take): a: unsupported (HTTP 400)."
                ),
            ),
        ],
    )
    async def test_the_error_says_what_is_wrong(self, make, vendor, kind, words):
        vendor.always("a", Failure(kind, 400))
        assert str(await fails(make("a"), RequestRejectedError)) == words

    async def test_to_ask_again_without_a_hint_is_no_retry(self, make, vendor):
        gateway = make("a")
        vendor.script("a", Failure(K.UNSUPPORTED, 400, mendable=True))
        await gateway.warmup()
        while gateway._pipeline._failovers._budget.take():
            pass
        reply = await gateway.chat("hi")
        assert [(a.provider, a.failure) for a in reply.attempts] == [
            ("a", K.UNSUPPORTED),
            ("a", None),
        ]

    async def test_what_no_provider_supports_is_the_callers_to_change(self, make, vendor):
        for name in "abc":
            vendor.always(name, K.UNSUPPORTED)
        raised = await fails(make(), RequestRejectedError)
        assert "drop_unsupported_params" in str(raised)


class TestAllFail:
    async def test_the_message_and_one_cause_for_each(self, make, vendor, clock):
        gateway = make()
        for _ in range(5):
            gateway._roster.named("c").chat.breaker.acquire().failure()
        vendor.always("a", Failure(K.SERVER_ERROR, 500))
        vendor.always("b", Failure(K.RATE_LIMITED, 429, retry_after=30))
        vendor.always("c", Failure(K.SERVER_ERROR, 503))
        error = await fails(gateway, AllProvidersFailedError)
        assert str(error) == (
            "All LLM providers failed: a: server_error (HTTP 500);"
            " b: rate_limited (HTTP 429, retry in 30.0 s);"
            " c: server_error (HTTP 503, retry in 1.0 s)"
        )
        assert error.retry_after_seconds == 1
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.causes) == (str(error), error.causes)

    @pytest.mark.parametrize(
        ("failure", "requests", "told", "status"),
        [
            (K.AUTHENTICATION, 2, 5, 300),  # when it is checked as last resort, and as of right
            (K.SERVER_ERROR, 1, 1, 60),
            (Failure(K.RATE_LIMITED, 429, retry_after=30), 2, 30, 30),
        ],
    )
    async def test_it_tells_when_a_request_has_a_chance_again(
        self, make, vendor, failure, requests, told, status
    ):
        gateway = make("a", failure_threshold=1, timeout=1)
        vendor.always("a", failure)
        for _ in range(requests):
            error = await fails(gateway, AllProvidersFailedError)
        assert error.retry_after_seconds == pytest.approx(told)
        assert state_of(gateway, "a").retry_after_seconds == pytest.approx(status)

    async def test_nothing_foreign_hangs_on_the_error(self, make, vendor):
        for name in "abc":
            vendor.always(name, ZeroDivisionError("the prompt"))
        error = await fails(make(), AllProvidersFailedError)
        seen, todo = [], [error]
        while todo:
            current = todo.pop()
            seen.append(current)
            todo += [e for e in (current.__cause__, current.__context__) if e is not None]
        assert seen == [error]


class TestRounds:
    async def test_waits_for_the_first_to_be_free_and_asks_again(self, make, vendor, clock):
        gateway = make(retry_rounds=2)
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=5))
        vendor.script("b", Failure(K.RATE_LIMITED, 429, retry_after=3))
        vendor.script("c", K.AUTHENTICATION)
        task = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(2.9)
        assert not task.done()
        await clock.advance(0.4)
        assert (await task).provider == "b"
        assert vendor.called() == 4

    async def test_one_request_blames_a_provider_once(self, make, vendor, clock):
        gateway = make("a", retry_rounds=4)
        vendor.always("a", K.SERVER_ERROR)
        task = asyncio.create_task(fails(gateway, AllProvidersFailedError))
        await clock.advance(30)
        await task
        assert vendor.called("a") == 5
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 1

    async def test_no_wait_where_waiting_cannot_help(self, make, vendor):
        gateway = make(retry_rounds=5)
        for name in "abc":
            vendor.always(name, K.AUTHENTICATION)
        await fails(gateway, AllProvidersFailedError)
        assert vendor.called() == 3

    async def test_an_open_circuit_is_not_worth_a_minutes_wait(self, make, vendor):
        gateway = make("a", retry_rounds=5)
        for _ in range(5):
            gateway._roster.named("a").chat.breaker.acquire().failure()
        vendor.always("a", K.SERVER_ERROR)
        await fails(gateway, AllProvidersFailedError)
        assert vendor.called() == 1, "once, as last resort"

    @pytest.mark.parametrize(
        ("kind", "again"),
        [
            (K.SERVER_ERROR, True),
            (K.BAD_ANSWER, True),
            (K.CONNECTION, True),
            (K.TIMEOUT, True),
            (K.UNKNOWN, True),
            (K.RATE_LIMITED, True),
            (K.INVALID_OUTPUT, False),
            (K.UNSUPPORTED, False),
            (K.AUTHENTICATION, False),
        ],
    )
    async def test_only_what_may_pass_is_asked_again(self, make, vendor, clock, kind, again):
        gateway = make("a", "b", retry_rounds=1)
        vendor.script("a", kind)
        vendor.script("b", Failure(K.RATE_LIMITED, 429, retry_after=3), K.SERVER_ERROR)
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(4)
        assert vendor.called("a") == 1 + again
        assert isinstance(asking.exception(), AllProvidersFailedError) is not again

    async def test_a_further_round_is_told_with_its_number_and_the_wait(self, make, vendor, clock):
        told = []

        class Hook:
            def on_event(self, event):
                if event.name == "request.retrying":
                    told.append((event.round, event.wait_seconds))

        gateway = make("a", retry_rounds=2, hooks=[Hook()])
        vendor.script("a", Failure(K.RATE_LIMITED, 429, retry_after=3), K.SERVER_ERROR)
        asking = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(5)
        await asking
        assert [number for number, _ in told] == [1, 2]
        assert 3 <= told[0][1] <= 3.25
        assert 0 <= told[1][1] <= 0.5

    @pytest.mark.parametrize("rounds", [0, 1])
    async def test_one_that_cools_down_is_waited_for_in_a_further_round(
        self, make, vendor, clock, rounds
    ):
        gateway = make("a", "b", retry_rounds=rounds)
        gateway._roster.named("a").chat.cooldown.throttle(2)
        vendor.always("b", K.AUTHENTICATION)
        asking = asyncio.create_task(gateway.chat(another()))
        await clock.advance(2.3)
        if rounds:
            assert (await asking).provider == "a"
        else:
            assert isinstance(asking.exception(), AllProvidersFailedError)

    async def test_so_is_an_open_circuit_that_soon_lets_one_through(self, make, vendor, clock):
        gateway = make("a", "b", retry_rounds=1, reset_timeout_seconds=2)
        guards = gateway._roster.named("a").chat
        for _ in range(5):
            guards.breaker.acquire().failure()
        guards.cooldown.throttle(1)  # else it would be asked as last resort
        vendor.always("b", K.AUTHENTICATION)
        asking = asyncio.create_task(gateway.chat(another()))
        await clock.advance(2.3)
        assert (await asking).provider == "a"

    async def test_a_place_that_comes_too_late_hides_no_provider_that_is_back_in_time(
        self, make, vendor, clock
    ):
        full, cools = scripted_configs("full", "cools")
        full = full.model_copy(update={"rpm": 1})
        async with AsyncGateway([full, cools], clock=clock, vendor=vendor) as gateway:
            assert (await gateway.chat(another())).provider == "full"
            clock.tick(1)
            vendor.script("cools", Failure(K.RATE_LIMITED, 429, retry_after=4))
            asking = asyncio.create_task(gateway.chat(another(), timeout=6))
            await clock.advance(5)
            assert (await asking).provider == "cools"


class TestTime:
    async def test_a_hang_ends_at_the_attempt_timeout_and_counts(self, make, vendor, clock):
        gateway = make(attempt_timeout=2)
        vendor.script("a", hang)
        task = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(1.9)
        assert not task.done()
        await clock.advance(0.1)
        reply = await task
        assert reply.provider == "b"
        assert reply.attempts[0].failure is K.TIMEOUT
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 1

    async def test_a_providers_own_timeout_stands_over_the_setting(self, make, vendor, clock):
        gateway = make(attempt_timeout=30, fields={"timeout": 1})
        vendor.script("a", hang)
        task = asyncio.create_task(gateway.chat("hi"))
        await clock.advance(1)
        assert (await task).provider == "b"

    async def test_no_chain_of_attempts_outruns_the_deadline(self, make, vendor, clock):
        gateway = make(attempt_timeout=4)
        for name in "abc":
            vendor.always(name, hang)
        began = clock.now()
        task = asyncio.create_task(fails(gateway, DeadlineExceededError, timeout=10))
        await clock.advance(9.9)
        assert not task.done()
        await clock.advance(0.1)
        error = await task
        assert clock.now() - began == pytest.approx(10)
        assert [(c.provider, c.kind) for c in error.causes] == [
            ("a", K.TIMEOUT),
            ("b", K.TIMEOUT),
            ("c", K.DEADLINE),
        ]

    async def test_the_callers_short_deadline_is_not_the_providers_fault(self, make, vendor, clock):
        gateway = make("a")
        vendor.always("a", hang)
        for _ in range(6):
            task = asyncio.create_task(fails(gateway, DeadlineExceededError, timeout=0.5))
            await clock.advance(0.5)
            await task
        assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED
        assert gateway.get_metrics()["providers"]["a"]["failures"] == {"deadline": 6}

    async def test_after_the_deadline_nobody_else_is_called(self, make, vendor, clock):
        gateway = make()
        for name in "abc":
            vendor.always(name, hang)
        await gateway.warmup()
        task = asyncio.create_task(fails(gateway, DeadlineExceededError, timeout=0.05))
        await clock.settle()
        clock.tick(0.06)  # the loop is late, but by less than what counts as a stall
        await clock.advance(0.1)
        await task
        assert vendor.called() == 1

    async def test_waiting_for_another_round_ends_before_the_deadline(self, make, vendor, clock):
        gateway = make("a", retry_rounds=5)
        vendor.always("a", Failure(K.RATE_LIMITED, 429, retry_after=5))
        error = await fails(gateway, AllProvidersFailedError, timeout=4)
        assert error.retry_after_seconds == 5


class TestCancel:
    async def test_five_cancelled_calls_leave_the_circuit_closed(self, make, vendor, clock):
        gateway = make("a")
        vendor.always("a", hang)
        for _ in range(5):
            task = asyncio.create_task(gateway.chat("hi", cache=False))
            await clock.settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        status = state_of(gateway, "a")
        assert (status.circuit_state, status.in_flight) == (CircuitState.CLOSED, 0)
        assert gateway.get_metrics()["cancelled"] == 5

    async def test_a_cancelled_probe_gives_its_place_back(self, make, vendor, clock):
        gateway = make("a")
        vendor.script("a", *[K.SERVER_ERROR] * 5)
        for _ in range(5):
            await fails(gateway, AllProvidersFailedError)
        clock.tick(60)
        vendor.script("a", hang)
        probe = asyncio.create_task(gateway.chat("hi", cache=False))
        await clock.settle()
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert (await gateway.chat("hi", cache=False)).provider == "a"
        assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED

    async def test_at_the_end_of_the_open_time_one_of_a_hundred_meets_the_dead_one(
        self, make, vendor, clock
    ):
        gateway = make("a", "b")
        vendor.always("a", K.SERVER_ERROR)
        for _ in range(5):
            await gateway.chat(another())
        clock.tick(60)
        replies = await asyncio.gather(*(gateway.chat(another()) for _ in range(100)))
        assert {r.provider for r in replies} == {"b"}
        assert vendor.called("a") == 6


class TestPlaces:
    async def test_a_full_provider_lets_the_next_one_serve(self, make, vendor, clock):
        gateway = make("a", "b", fields={"max_concurrency": 1})
        vendor.script("a", hang)
        first = asyncio.create_task(gateway.chat("1"))
        await clock.settle()
        assert (await gateway.chat("2")).provider == "b"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    async def test_with_nobody_free_it_waits_for_a_place(self, make, vendor, clock):
        gateway = make("a", fields={"max_concurrency": 2})
        release = asyncio.Event()
        vendor.always("a", release.wait)
        tasks = [asyncio.create_task(gateway.chat(str(i))) for i in range(6)]
        await clock.settle()
        assert vendor.called() == 2
        assert gateway.get_metrics()["waiting"] == 4
        release.set()
        await asyncio.gather(*tasks)
        assert vendor.called() == 6
        assert gateway.get_metrics()["in_flight"] == 0

    async def test_the_wait_ends_at_the_deadline(self, make, vendor, clock):
        gateway = make("a", fields={"max_concurrency": 1})
        vendor.always("a", hang)
        first = asyncio.create_task(gateway.chat("1"))
        await clock.settle()
        second = asyncio.create_task(fails(gateway, DeadlineExceededError, timeout=3))
        await clock.advance(3)
        assert [c.kind for c in (await second).causes] == [K.SATURATED]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert gateway.get_metrics()["waiting"] == 0

    async def test_past_the_queues_bound_it_is_refused(self, make, vendor, clock):
        gateway = make("a", max_concurrency=1, max_queue=1)
        vendor.always("a", hang)
        tasks = [asyncio.create_task(gateway.chat(str(i))) for i in range(2)]
        await clock.settle()
        await fails(gateway, OverloadedError)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert state_of(gateway, "a").in_flight == 0

    async def test_those_who_wait_for_a_dead_provider_are_let_out_in_doses(
        self, make, vendor, clock
    ):
        gateway = make("a", fields={"max_concurrency": 5})
        vendor.always("a", K.SERVER_ERROR)
        tasks = [asyncio.create_task(gateway.chat(str(i))) for i in range(30)]
        await clock.advance(0)
        assert vendor.called() <= 10, "four were out with the one that opened it"
        await clock.advance(1)
        assert vendor.called() <= 15, "four a second"
        await clock.advance(20)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r) for r in results} == {AllProvidersFailedError}
        metrics = gateway.get_metrics()
        assert (metrics["waiting"], metrics["in_flight"]) == (0, 0)
        assert vendor.called() == 30, "none is refused that has not asked"

    async def test_those_who_wait_for_one_set_up_wrong_hear_it(self, make, vendor, clock):
        gateway = make("a", fields={"max_concurrency": 5})
        vendor.always("a", K.AUTHENTICATION)
        results = await asyncio.gather(
            *(gateway.chat(str(i)) for i in range(30)), return_exceptions=True
        )
        assert {type(r) for r in results} == {AllProvidersFailedError}
        assert vendor.called() <= 9, "four were out with the one that disabled it"
        clock.tick(1)
        tasks = [asyncio.create_task(gateway.chat(str(i))) for i in range(30)]
        await clock.advance(3.9)
        assert not any(task.done() for task in tasks), "they wait for the next check"
        called = vendor.called()
        await clock.advance(0.2)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r) for r in results} == {AllProvidersFailedError}
        assert vendor.called() == called + 1, "one check speaks for all"

    async def test_a_refusal_reaches_all_who_waited_for_the_check_past_those_who_came_since(
        self, make, vendor, clock
    ):
        late: list[asyncio.Task[Any]] = []

        class Hook:
            def on_event(self, event):
                if isinstance(event, ProviderDisabled) and event.provider == "a" and waiting:
                    clock.tick(0.001)
                    late.append(ask("late"))

        def ask(partition):
            question = gateway.chat(another(), origin=Origin(partition=partition), timeout=30)
            return asyncio.create_task(question)

        gateway = make("a", hooks=[Hook()])
        waiting = []
        vendor.always("a", K.AUTHENTICATION)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(1)
        waiting += [ask("early") for _ in range(15)]
        await clock.advance(4.1)
        assert (vendor.called(), len(late)) == (2, 1)
        assert all(task.done() for task in waiting)
        assert not late[0].done()
        late[0].cancel()
        await asyncio.gather(*waiting, *late, return_exceptions=True)

    async def test_one_set_up_wrong_is_asked_as_last_resort_and_enabled(self, make, vendor, clock):
        gateway = make("a")
        vendor.script("a", K.AUTHENTICATION)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(5)
        reply = await gateway.chat(another())
        assert (reply.provider, reply.attempts[0].last_resort) == ("a", True)
        assert state_of(gateway, "a").disabled_reason is None

    async def test_a_check_that_brings_no_verdict_is_followed_by_none_for_a_while(
        self, make, vendor, clock
    ):
        gateway = make("a")
        vendor.script("a", K.AUTHENTICATION, hang)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(5)
        check = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        check.cancel()
        await asyncio.gather(check, return_exceptions=True)
        other = asyncio.create_task(gateway.chat(another()))
        await clock.advance(4.9)
        assert vendor.called("a") == 2
        await clock.advance(0.2)
        assert (await other).provider == "a"

    async def test_a_refusal_reaches_all_that_were_there_before_it(self, make, vendor, clock):
        gateway = make("c", "a", "b", failure_threshold=50, timeout=300, attempt_timeout=200)
        late, check = asyncio.Event(), asyncio.Event()

        async def fails_late():
            await late.wait()
            raise OSError

        async def refuses_late():
            await check.wait()
            raise VendorCallError(Failure(K.AUTHENTICATION, 401, certain=True))

        vendor.script("c", K.SERVER_ERROR, fails_late, *[K.SERVER_ERROR] * 3)
        vendor.script("a", K.AUTHENTICATION, refuses_late)
        vendor.script("b", K.AUTHENTICATION, K.AUTHENTICATION)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(1)
        asks = []
        for pause in (4, 0, 1, 0):  # one that fails late, two checks, and one that waits for both
            asks.append(asyncio.create_task(fails(gateway, AllProvidersFailedError)))
            await clock.advance(pause)
            await clock.settle()
        late.set()
        await clock.settle()
        assert not asks[0].done(), "it waits for the check of a"
        check.set()
        await clock.settle()
        assert asks[0].done()
        assert not asks[3].done(), "it waits for a check of b"
        await clock.advance(300)
        await asyncio.gather(*asks, return_exceptions=True)

    async def test_time_that_frees_another_provider_ends_the_wait(self, make, vendor, clock):
        gateway = make("a", "b", fields={"max_concurrency": 1}, attempt_timeout=50)
        gateway._roster.named("b").chat.cooldown.throttle(5)
        vendor.script("a", hang)
        first = asyncio.create_task(gateway.chat("1"))
        await clock.settle()
        second = asyncio.create_task(gateway.chat("2"))
        await clock.advance(4.9)
        assert not second.done()
        await clock.advance(0.2)
        assert (await second).provider == "b"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    async def test_a_long_queue_costs_little_for_each_request(self, make, vendor, monkeypatch):
        looked = 0
        original = Guards.refusal

        def counted(self):
            nonlocal looked
            looked += 1
            return original(self)

        monkeypatch.setattr(Guards, "refusal", counted)
        gateway = make("a", max_concurrency=4)
        await asyncio.gather(*(gateway.chat(str(i)) for i in range(500)))
        assert vendor.called() == 500
        assert looked < 500 * 10


class TestShortDeadline:
    async def test_a_hang_leaves_half_of_the_time_to_the_next(self, make, vendor, clock):
        gateway = make("a", "b")
        vendor.always("a", hang)
        task = asyncio.create_task(gateway.chat("hi", timeout=20))
        await clock.advance(9.9)
        assert not task.done()
        await clock.advance(0.2)
        reply = await task
        assert (reply.provider, reply.attempts[0].failure) == ("b", K.DEADLINE)
        assert gateway.get_metrics()["providers"]["a"]["consecutive_failures"] == 0


class TestProbes:
    async def test_a_request_does_not_probe_what_it_has_seen_fail(self, make, vendor, clock):
        gateway = make(
            "a", retry_rounds=5, failure_threshold=1, reset_timeout_seconds=1, timeout=60
        )
        vendor.always("a", K.SERVER_ERROR)
        task = asyncio.create_task(fails(gateway, AllProvidersFailedError))
        await clock.advance(60)
        await task
        assert vendor.called("a") == 1

    async def test_with_nobody_else_to_ask_the_others_wait_for_the_probe(self, make, vendor, clock):
        gateway = make("a", retry_rounds=2, failure_threshold=1)
        vendor.script("a", K.SERVER_ERROR)
        failing = asyncio.create_task(fails(gateway, AllProvidersFailedError))
        await clock.advance(1)
        error = await failing
        assert error.retry_after_seconds == 1, "as last resort"
        clock.tick(60)
        release = asyncio.Event()
        vendor.script("a", release.wait)
        tasks = [asyncio.create_task(gateway.chat(str(i))) for i in range(20)]
        await clock.advance(0.9)
        assert vendor.called("a") == 2
        assert not any(task.done() for task in tasks)
        release.set()
        await clock.advance(5)
        replies = await asyncio.gather(*tasks)
        assert {r.provider for r in replies} == {"a"}

    async def test_a_probe_that_hangs_keeps_no_other_back_for_long(self, make, vendor, clock):
        gateway = make("a", failure_threshold=1, retry_rounds=0)
        vendor.script("a", K.SERVER_ERROR)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(60)
        vendor.script("a", hang)
        probe = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        other = asyncio.create_task(gateway.chat(another()))
        await clock.advance(1.1)
        assert (await other).provider == "a"
        assert state_of(gateway, "a").circuit_state is CircuitState.CLOSED
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)

    async def test_one_that_is_forced_open_is_not_asked_as_last_resort(self, make, vendor):
        gateway = make("a")
        gateway.force_circuit("a", "open")
        await fails(gateway, AllProvidersFailedError)
        assert vendor.called() == 0

    async def test_to_ask_one_for_the_first_time_is_no_extra_call(self, make, vendor, clock):
        gateway = make("a", "b", retry_rounds=1)
        gateway._roster.named("a").chat.cooldown.throttle(0.5)
        vendor.script("b", K.AUTHENTICATION)
        asking = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        while gateway._pipeline._failovers._budget.take():
            pass
        await clock.advance(0.9)
        assert (await asking).provider == "a"

    async def test_of_two_reasons_to_leave_one_alone_each_end_is_noticed(self, make, vendor, clock):
        gateway = make("a", "b", failure_threshold=1)
        vendor.script("a", K.SERVER_ERROR)
        vendor.script("b", K.AUTHENTICATION)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(0.5)
        gateway._roster.named("a").chat.cooldown.throttle(2)  # and its circuit is open for 60 s
        asking = asyncio.create_task(gateway.chat(another()))  # b is checked in 5 s
        await clock.advance(1.9)
        assert not asking.done()
        await clock.advance(0.2)
        assert asking.done()
        assert (await asking).provider == "a"

    async def test_an_error_says_why_a_provider_is_left_alone_at_its_end(self, make, vendor, clock):
        gateway = make("a", "b", fields={"rpm": 3}, failure_threshold=1, timeout=10)
        vendor.script("a", K.SERVER_ERROR, hang)
        for _ in range(3):
            await gateway.chat(another())
        out = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        waiting = asyncio.create_task(fails(gateway, AllProvidersFailedError))
        await clock.settle()
        gateway._roster.named("a").chat.cooldown.throttle(60)
        await clock.advance(1.1)
        assert [cause.kind for cause in (await waiting).causes] == [K.COOLING_DOWN, K.SATURATED]
        out.cancel()
        await asyncio.gather(out, return_exceptions=True)

    async def test_one_whose_place_comes_too_late_keeps_no_request_from_its_last_resort(
        self, make, vendor, clock
    ):
        gateway = make("a", "b", fields={"rpm": 3}, failure_threshold=1, timeout=10)
        vendor.script("a", K.SERVER_ERROR)
        for _ in range(3):
            assert (await gateway.chat(another())).provider == "b"
        clock.tick(1)  # the rate of b allows the next call in a minute
        reply = await gateway.chat(another())
        assert (reply.provider, reply.attempts[0].last_resort) == ("a", True)

    async def test_one_that_can_wait_longer_keeps_no_other_from_its_last_resort(
        self, make, vendor, clock
    ):
        gateway = make("a", "b", fields={"rpm": 3}, failure_threshold=1)
        vendor.script("a", K.SERVER_ERROR, hang)
        for _ in range(3):
            assert (await gateway.chat(another())).provider == "b"
        clock.tick(1)  # the rate of b allows the next call in 59 seconds
        hung, patient, other = [
            asyncio.create_task(gateway.chat(another(), timeout=timeout)) for timeout in (9, 90, 10)
        ]
        await clock.advance(0.9)
        assert vendor.called("a") == 2, "the next dose comes when that one is overdue"
        await clock.advance(0.2)
        assert other.done()
        assert (other.result().provider, other.result().attempts[0].last_resort) == ("a", True)
        for task in (hung, patient):
            task.cancel()
        await asyncio.gather(hung, patient, return_exceptions=True)

    async def test_when_that_probe_fails_the_others_take_their_turns(self, make, vendor, clock):
        gateway = make("a", failure_threshold=1)
        vendor.always("a", K.SERVER_ERROR)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(60)
        tasks = [asyncio.create_task(gateway.chat(str(i))) for i in range(8)]
        await clock.advance(0.9)
        assert 2 <= vendor.called("a") <= 6, "four a second"
        vendor.always("a", None)
        await clock.advance(5)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        served = [r for r in results if not isinstance(r, BaseException)]
        assert len(served) >= 3
        assert all(r.attempts[-1].ok for r in served)
        assert any(r.attempts[-1].last_resort for r in served)


class TestLastCandidate:
    async def test_one_whose_rate_is_used_up_for_longer_does_not_keep_from_the_last_resort(
        self, clock, vendor
    ):
        limited, broken = scripted_configs("limited", "broken")
        limited = limited.model_copy(update={"rpm": 1})
        gateway = AsyncGateway([limited, broken], clock=clock, vendor=vendor, retry_rounds=0)
        async with gateway:
            vendor.always("broken", K.SERVER_ERROR)
            for i in range(5):
                with pytest.raises(AllProvidersFailedError):
                    await gateway.chat(f"{i}", model="broken")
            assert state_of(gateway, "broken").circuit_state is CircuitState.OPEN
            assert (await gateway.chat("uses the rate up")).provider == "limited"
            vendor.always("broken", None)
            clock.tick(1)
            reply = await gateway.chat("the last candidate is asked", timeout=10)
            assert reply.provider == "broken"
            assert reply.attempts[-1].last_resort


class TestAttemptIsOut:
    """An attempt of last resort is out, and others wait for its end, however late the next dose."""

    @pytest.fixture(params=[K.SERVER_ERROR, K.AUTHENTICATION])
    async def waiting(self, request, make, vendor, clock):
        gateway, self.release = make("a", failure_threshold=1), asyncio.Event()
        vendor.script("a", request.param, self.release.wait)
        await fails(gateway, AllProvidersFailedError)
        clock.tick(5)
        first = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        assert vendor.called("a") == 2
        waiting = asyncio.create_task(gateway.chat(another(), timeout=0.8))
        await clock.advance(0.3)
        yield waiting
        for task in (first, waiting):
            task.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)

    async def test_its_answer_serves_them_too(self, waiting, clock):
        assert not waiting.done()
        self.release.set()
        await clock.settle()
        assert waiting.done()
        assert (await waiting).provider == "a"

    async def test_else_their_deadline_ends_it(self, waiting, clock):
        await clock.advance(0.49)
        assert not waiting.done()
        await clock.advance(0.02)
        assert isinstance(waiting.exception(), DeadlineExceededError)


class TestLastMoments:
    """A request that waits for a dose of last resort, in the last quarter of its time.

    Another took the dose of a, whose next one is due after a second. This one begins after 0.3
    seconds, has 0.8, and takes no turn of a last resort from 0.9 on.
    """

    @pytest.fixture
    async def gateway(self, make, vendor, clock):
        gateway = make("a", "b", failure_threshold=1, reset_timeout_seconds=0.95)
        vendor.script("a", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat(another(), model="a")
        return gateway

    @pytest.fixture
    async def release(self, gateway, vendor, clock):
        """Lets the one that took the dose be answered."""
        release = asyncio.Event()
        vendor.script("a", release.wait)
        other = asyncio.create_task(gateway.chat(another(), model="a"))
        await clock.advance(0.3)
        assert vendor.called("a") == 2
        yield release
        release.set()
        await other

    async def test_a_circuit_that_closes_then_serves_it(self, gateway, release, clock):
        waiting = asyncio.create_task(gateway.chat(another(), model="a", timeout=0.8))
        await clock.advance(0.63)
        release.set()
        await clock.settle()
        assert waiting.done()
        assert (await waiting).provider == "a"

    async def test_so_does_a_cooldown_that_ends_then(self, gateway, release, clock):
        gateway._roster.named("b").chat.cooldown.throttle(0.7)
        waiting = asyncio.create_task(gateway.chat(another(), timeout=0.8))
        await clock.advance(0.69)
        assert not waiting.done()
        await clock.advance(0.02)
        assert waiting.done()
        assert (await waiting).provider == "b"

    async def test_it_takes_neither_a_probe_nor_a_dose(self, gateway, release, vendor, clock):
        waiting = asyncio.create_task(fails(gateway, DeadlineExceededError, model="a", timeout=0.8))
        await clock.advance(0.79)
        assert not waiting.done()
        await clock.advance(0.02)
        await waiting
        assert vendor.called("a") == 2

    async def test_one_that_then_asks_and_fails_waits_for_no_more(
        self, gateway, release, vendor, clock
    ):
        vendor.always("a", K.SERVER_ERROR)
        waiting = asyncio.create_task(
            fails(gateway, AllProvidersFailedError, model="a", timeout=0.8)
        )
        await clock.advance(0.63)
        release.set()
        await clock.settle()
        assert waiting.done()
        await waiting


@pytest.mark.parametrize(("left", "asks"), [(0.95, False), (1.05, True)])
async def test_a_turn_of_last_resort_is_taken_with_a_second_left(make, vendor, clock, left, asks):
    gateway = make("a")
    vendor.script("a", K.AUTHENTICATION)
    await fails(gateway, AllProvidersFailedError)  # it may be checked in 5 seconds
    await clock.advance(0.2 + left)
    waiting = asyncio.create_task(gateway.chat(another(), timeout=4.8))
    await clock.advance(4.9)
    assert isinstance(waiting.exception(), DeadlineExceededError) is not asks
    assert vendor.called("a") == 1 + asks


class TestFullBesideBroken:
    """One healthy provider with one place, which is taken; and one whose circuit is open."""

    @pytest.fixture
    async def gateway(self, make, vendor, clock):
        gateway = make("full", "broken", fields={"max_concurrency": 1}, failure_threshold=1)
        vendor.script("broken", K.SERVER_ERROR)
        with pytest.raises(AllProvidersFailedError):
            await gateway.chat(another(), model="broken")
        clock.tick(1)
        return gateway

    @pytest.fixture
    async def out(self, gateway, vendor, clock):
        """The call that has the place."""
        vendor.script("full", hang)
        out = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        assert vendor.called("full") == 1
        yield out
        out.cancel()
        await asyncio.gather(out, return_exceptions=True)

    @pytest.mark.parametrize(("seconds", "after"), [(60, 1.0), (4, 1.0), (2, 0.5), (0.4, 0.1)])
    async def test_one_that_waits_too_long_takes_the_last_resort(
        self, gateway, out, clock, seconds, after
    ):
        waiting = asyncio.create_task(gateway.chat(another(), timeout=seconds))
        await clock.advance(after * 0.95)
        assert not waiting.done()
        await clock.advance(after * 0.1)
        assert waiting.done()
        reply = await waiting
        assert (reply.provider, reply.attempts[0].last_resort) == ("broken", True)

    async def test_a_short_queue_drives_no_request_to_a_broken_provider(
        self, gateway, vendor, clock
    ):
        vendor.always("full", lambda: clock.sleep(0.2))
        called = vendor.called("broken")
        asks = [asyncio.create_task(gateway.chat(another())) for _ in range(5)]
        await clock.advance(2)
        assert {(await ask).provider for ask in asks} == {"full"}
        assert vendor.called("broken") == called

    async def test_each_has_its_own_time_whatever_the_order_in_the_queue(
        self, gateway, out, vendor, clock
    ):
        vendor.always("broken", K.SERVER_ERROR)
        asks = []
        for called, tenant in [(1, "a"), (1, "a"), (2, "b"), (3, "a")]:
            assert vendor.called("broken") == called
            question = gateway.chat(another(), origin=Origin(partition=tenant))
            asks.append(asyncio.create_task(question))
            await clock.advance(0.6)
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)

    async def test_it_waits_on_for_the_place_while_the_dose_is_used_up(
        self, gateway, out, vendor, clock
    ):
        vendor.script("broken", hang)
        hung, waiting = [asyncio.create_task(gateway.chat(another())) for _ in range(2)]
        await clock.advance(1.5)
        assert vendor.called("broken") == 2, "the first of them is out, and keeps the second back"
        out.cancel()
        await clock.settle()
        assert (await waiting).provider == "full"
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)


class TestProvidersComeAndGo:
    async def test_requests_that_wait_go_to_a_provider_that_was_added(self, make, vendor, clock):
        gateway = make("a", fields={"max_concurrency": 1})
        vendor.always("a", hang)
        tasks = [asyncio.create_task(gateway.chat(another())) for _ in range(4)]
        await clock.settle()
        (config,) = scripted_configs("b")
        gateway.add_provider(config)
        await clock.settle()
        assert [task.done() for task in tasks] == [False, True, True, True]
        assert {task.result().provider for task in tasks[1:]} == {"b"}
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)

    @pytest.mark.parametrize("removed", [False, True])
    async def test_a_circuit_that_opens_after_its_removal_is_not_taken_for_that_of_a_new_one(
        self, make, vendor, clock, removed
    ):
        changes = []

        class Hook:
            wants = (CircuitChanged,)

            def on_event(self, event):
                changes.append((event.provider, event.new))

        gateway = make("a", failure_threshold=1, hooks=[Hook()])
        failing = asyncio.Event()

        async def fail():
            await failing.wait()
            raise VendorCallError(Failure(K.SERVER_ERROR))

        vendor.script("a", fail)
        task = asyncio.create_task(gateway.chat(another()))
        await clock.settle()
        if removed:
            gateway.remove_provider("a")
            gateway.add_provider(scripted_configs("a")[0])
        failing.set()
        await asyncio.gather(task, return_exceptions=True)
        assert changes == ([] if removed else [("a", "open")])

    async def test_one_that_the_new_provider_has_failed_keeps_no_other_from_it(
        self, make, vendor, clock
    ):
        gateway = make("a", fields={"max_concurrency": 1})
        vendor.always("a", hang)
        failing, answering = asyncio.Event(), asyncio.Event()

        async def fail():
            await failing.wait()
            raise VendorCallError(Failure(K.CONNECTION))

        vendor.script("b", fail, answering.wait)
        tasks = [asyncio.create_task(gateway.chat(another())) for _ in range(3)]
        await clock.settle()
        gateway.add_provider(scripted_configs("b", max_concurrency=1)[0])
        await clock.settle()
        other = asyncio.create_task(gateway.embed(another(), origin=Origin(partition="other")))
        await clock.settle()
        failing.set()
        await clock.settle()
        assert vendor.called("b") == 2, "the other tenant's is next"
        answering.set()
        await clock.settle()
        assert [task.done() for task in (other, *tasks)] == [True, False, False, True]
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)

    async def test_one_that_cannot_use_the_new_provider_keeps_no_other_from_it(
        self, make, vendor, clock
    ):
        gateway = make("a", fields={"max_concurrency": 1})
        vendor.always("a", hang)
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        tasks = [
            asyncio.create_task(gateway.chat(prompt))
            for prompt in (another(), [{"role": "user", "content": [picture]}], another())
        ]
        await clock.settle()
        gateway.add_provider(scripted_configs("b", capabilities={"vision": False})[0])
        await clock.settle()
        assert [task.done() for task in tasks] == [False, False, True]
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)

    async def test_one_that_waits_for_a_model_hears_that_it_is_gone_past_those_that_wait_for_any(
        self, make, vendor, clock
    ):
        gateway = make("a", fields={"max_concurrency": 1})
        vendor.always("a", hang)
        vendor.always("b", hang)
        (config,) = scripted_configs("b", max_concurrency=2)
        tasks = [
            asyncio.create_task(gateway.chat(another(), model=model))
            for model in ("a", None, None, None, "a")
        ]
        await clock.settle()
        gateway.add_provider(config)
        await clock.settle()
        assert [vendor.called(name) for name in "ab"] == [1, 2]
        gateway.remove_provider("a")
        await clock.settle()
        assert [task.done() for task in tasks] == [False, False, False, False, True]
        assert isinstance(tasks[-1].exception(), AllProvidersFailedError)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_a_provider_that_is_replaced_loses_no_request_that_waits(
        self, make, vendor, clock
    ):
        gateway = make("a", fields={"max_concurrency": 1})
        vendor.script("a", hang)
        tasks = [asyncio.create_task(gateway.chat(another())) for _ in range(4)]
        await clock.settle()
        gateway.remove_provider("a")
        (config,) = scripted_configs("a")
        gateway.add_provider(config)
        await clock.settle()
        assert {task.result().provider for task in tasks[1:]} == {"a"}
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)


class TestOwnStall:
    async def test_an_answer_that_came_during_a_stall_is_not_too_late(self, make, vendor, clock):
        gateway = make("a")
        came = asyncio.Event()
        vendor.script("a", came.wait)
        task = asyncio.create_task(gateway.chat(another(), timeout=2))
        await clock.advance(0.5)
        came.set()
        clock.tick(5)
        reply = await task
        assert (reply.provider, len(reply.attempts)) == ("a", 1)

    async def test_a_stall_before_a_failure_extends_the_deadline_for_the_next(
        self, make, vendor, clock
    ):
        gateway = make("a", "b")
        await gateway.warmup()
        came, answered = asyncio.Event(), asyncio.Event()

        async def fail_later():
            await came.wait()
            raise VendorCallError(Failure(K.SERVER_ERROR, 500))

        vendor.script("a", fail_later)
        vendor.script("b", answered.wait)
        task = asyncio.create_task(gateway.chat(another(), timeout=10))
        await clock.advance(0.5)
        clock.tick(4)
        await clock.advance(0.1)
        came.set()
        await clock.advance(7)
        assert not task.done(), "it gets back what the stall took"
        answered.set()
        assert (await task).provider == "b"

    async def test_a_circuit_that_is_forced_closed_is_asked_whatever_it_says(self, make, vendor):
        gateway = make("a")
        gateway.force_circuit("a", "closed")
        for failure in (K.AUTHENTICATION, Failure(K.RATE_LIMITED, 429, 60), K.SERVER_ERROR):
            vendor.script("a", failure)
            await fails(gateway, AllProvidersFailedError)
        assert (await gateway.chat(another())).provider == "a"
