"""Batches on scripted vendors and virtual time: order, windows, progress, ends, leftovers."""

import asyncio
import contextlib
import gc
import logging
import math
import random
import weakref
from typing import Any

import pytest

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    BatchItem,
    BatchProgress,
    BatchResult,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    NoProvidersError,
    RequestRejectedError,
    UnknownModelError,
)
from aigateway.batch.engine import BatchRun, as_completed
from aigateway.clock import SYSTEM_CLOCK
from aigateway.messages import ChatRequest, ChatResponse, Choice, Completion, Origin, Usage
from aigateway.testing import FakeClock, ScriptedVendor, Step, scripted_configs
from aigateway.wires.client import Failure, VendorCallError
from tests.processes import PATIENCE

K = FailureKind
ANSWER = ChatResponse(Completion("i", "m", (Choice("x", "stop"),)), "a")


class Vendor(ScriptedVendor):
    """Knows which call the step that is taken belongs to."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def _next(self, provider):
        self.steps += 1  # steps are taken in the order of the calls
        return super()._next(provider)

    @property
    def prompt(self):
        return prompt_of(self.calls[self.steps - 1])


@pytest.fixture
def vendor():
    return Vendor()


@pytest.fixture
async def make(clock, vendor):
    made = []

    def make_gateway(*names, fields=None, **settings):
        settings.setdefault("retry_rounds", 0)
        configs = scripted_configs(*(names or ("a",)), **(fields or {}))
        made.append(AsyncGateway(configs, clock=clock, vendor=vendor, **settings))
        return made[-1]

    yield make_gateway
    for gateway in made:
        metrics = gateway.get_metrics()
        assert (metrics["in_flight"], metrics["waiting"]) == (0, 0)
        await gateway.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Echo:
    """A vendor's step that answers with the prompt after as long as `seconds` says."""

    def __init__(self, vendor, clock, seconds=lambda _: 1.0):
        self.vendor, self.clock, self.seconds = vendor, clock, seconds
        self.out = self.most = self.begun = 0
        vendor.always("a", self)

    async def __call__(self):
        prompt = self.vendor.prompt
        self.begun += 1
        self.out += 1
        self.most = max(self.most, self.out)
        try:
            await self.clock.sleep(self.seconds(prompt))
        finally:
            self.out -= 1
        return f"answer to {prompt}"


def prompt_of(call):
    return call[1].messages[-1]["content"]


def asked(vendor):
    return [prompt_of(call) for call in vendor.calls]


async def through(clock, work, *, step=0.5, most=400):
    """Let time pass until the work is done."""
    task = asyncio.ensure_future(work)
    for _ in range(most):
        await clock.advance(step)
        if task.done():
            return await task
    task.cancel()
    pytest.fail("it never came to its end")


async def one_by_one(requests):
    for request in requests:
        await asyncio.sleep(0)
        yield request


SHAPES = {
    "list": list,
    "tuple": tuple,
    "generator": lambda requests: (request for request in requests),
    "async": one_by_one,
}


class TestInputs:
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    async def test_items_are_in_the_order_of_the_input(self, make, vendor, clock, shape):
        rng = random.Random(7)
        Echo(vendor, clock, lambda _: rng.uniform(0.1, 3))
        prompts = [f"p{n}" for n in range(50)]
        result = await through(clock, make().batch(shape(prompts), concurrency=7))
        assert [item.index for item in result] == list(range(50))
        assert [item.id for item in result.items] == [str(n) for n in range(50)]
        assert [reply.text for reply in result.responses] == [f"answer to {p}" for p in prompts]
        assert result.complete
        assert result.errors == ()

    @pytest.mark.parametrize("ask", ["batch", "as_completed", "map"])
    async def test_tenants_share_no_answer(self, make, ask):
        """What a request brings along stands over what is shared, and both count."""
        gateway = make()

        async def one(request, **shared):
            if ask == "map":
                assert isinstance(request, str)
                result = await gateway.map("{text}", [{"text": request}], **shared)
                return result.items[0].response
            if ask == "batch":
                return (await gateway.batch([request], **shared)).items[0].response
            [item] = [item async for item in gateway.as_completed([request], **shared)]
            return item.response

        theirs, ours = Origin(partition="them", tenant="them"), Origin(partition="us")
        await gateway.chat("hi", origin=theirs)
        assert not (await one("hi")).cached
        assert (await one("hi", origin=theirs)).cached
        assert not (await one("hi", origin=ours)).cached
        if ask != "map":
            request = gateway.check("hi", origin=theirs)
            assert request.partition == "them"
            assert (await one(request)).cached
            assert (await one(request, origin=ours)).cached
            assert (await one({"prompt": "hi", "origin": theirs}, origin=ours)).cached
            anonymous = gateway.check("other")
            await gateway.chat("other", origin=theirs)
            assert (await one(anonymous, origin=theirs)).cached

    async def test_the_cost_of_a_request_is_reported_to_its_origin(self, make):
        told: list[float | None] = []
        gateway = make()
        result = await gateway.batch(["a", "b"], origin=Origin(on_cost=told.append))
        assert result.errors == ()
        assert len(told) == 2

    async def test_an_origin_is_an_origin(self, make):
        gateway = make()
        with pytest.raises(RequestRejectedError, match="origin must be an Origin, not dict"):
            await gateway.batch(["a"], origin={"partition": "x"})
        with pytest.raises(RequestRejectedError, match="origin must be an Origin, not str"):
            await gateway.chat("a", origin="x")
        assert gateway.check("a", origin=None).partition == ""

    async def test_every_form_of_a_request(self, make, vendor):
        messages = [{"role": "user", "content": "list"}]
        requests = [
            "text",
            messages,
            {"prompt": "dict", "id": "mine", "seed": 3, "temperature": None},
            {"messages": messages, "id": 7, "cache": False, "agent": "x", "hedge": False},
            ChatRequest(
                ({"role": "user", "content": "whole"},), "simulated", {"seed": 5}, request_id="r"
            ),
        ]
        gateway = make()
        result = await gateway.batch(requests, concurrency=1, temperature=0.5, seed=1)
        result.raise_for_errors()
        assert [item.id for item in result] == ["0", "1", "mine", "7", "r"]
        assert [item.request for item in result] == requests
        assert asked(vendor) == ["text", "list", "dict", "list", "whole"]
        sent = [request for _, request in vendor.calls]
        assert [r.params for r in sent if isinstance(r, ChatRequest)] == [
            {"temperature": 0.5, "seed": seed} for seed in (1, 1, 3, 1, 5)
        ]

    async def test_nothing_in_nothing_out(self, make):
        result = await make().batch([])
        assert (len(result), result.cost_usd, result.usage) == (0, 0.0, Usage())
        result.raise_for_errors()
        assert [item async for item in make("b").as_completed(iter(()))] == []

    @pytest.mark.parametrize("requests", ["one prompt", b"bytes", {"prompt": "x"}, 7, None])
    async def test_one_request_is_no_batch(self, make, requests):
        gateway = make()
        with pytest.raises(RequestRejectedError, match=r"there is chat\(\)"):
            await gateway.batch(requests)
        with pytest.raises(RequestRejectedError):
            gateway.as_completed(requests)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"concurrency": 0}, "concurrency must be"),
            ({"concurrency": True}, "concurrency must be"),
            ({"concurrency": "many"}, "concurrency must be"),
            ({"timeout": 0}, "timeout must be"),
            ({"timeout": "soon"}, "timeout must be"),
            ({"on_progress": 5}, "on_progress must be"),
            ({"on_progress": AsyncGateway.chat}, "must be a plain function"),
            ({"model": "nobody"}, "No provider serves"),
            ({"model": ["a"]}, "model must be"),
            ({"outage_patience": -1}, "outage_patience must be"),
            ({"outage_patience": False}, "outage_patience must be"),
            ({"outage_patience": math.inf}, "None for no end"),
            ({"temperature": "hot"}, "temperature must be"),
            ({"system": 5}, "system must be"),
            ({"hedge": "yes"}, "hedge must be"),
            ({"no_such": 1}, "no_such"),
            ({"prompt": "for all"}, "prompt"),
        ],
        ids=lambda value: (
            value
            if isinstance(value, str)
            else next(iter(value)) + type(next(iter(value.values()))).__name__
        ),
    )
    async def test_invalid_arguments_are_refused_at_once(self, make, options, says):
        gateway = make()
        with pytest.raises(RequestRejectedError, match=says):
            gateway.as_completed(["x"], **options)
        with pytest.raises(RequestRejectedError, match=says):
            await gateway.batch(["x"], **options)
        with pytest.raises(RequestRejectedError, match=says):
            await gateway.map("{x}", [{"x": 1}], **options)
        assert gateway.get_metrics()["total_requests"] == 0

    async def test_without_providers_it_is_refused_at_once(self):
        with pytest.raises(NoProvidersError):
            await AsyncGateway([]).batch(["x"])

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            7,
            None,
            [],
            {},
            {"prompt": "a", "messages": []},
            {"prompt": "a", "id": 1.5},
            {"prompt": "a", "id": True},
            {"prompt": "a", "no_such": 1},
            {"prompt": "a", "prompt_or_messages": "b"},
            {"prompt": "a", "background": True},
            {"prompt": "a", "params": {}},
            {"prompt": "a", "hedge": "yes"},
            {"prompt": "a", 5: 6},
            {"prompt": "a", "timeout": -1},
            {"prompt": "a", "model": "nobody"},
            {"prompt": Ellipsis},
        ],
        ids=repr,
    )
    async def test_a_bad_item_is_refused_and_harms_no_other(self, make, vendor, bad):
        result = await make().batch(["one", bad, "two"], concurrency=2)
        assert [item.ok for item in result] == [True, False, True]
        assert isinstance(result.errors[0], RequestRejectedError)
        assert result.failed[0].request is bad
        assert asked(vendor) == ["one", "two"]
        with pytest.raises(ExceptionGroup, match="1 of 3 requests of the batch failed") as raised:
            result.raise_for_errors()
        assert raised.value.exceptions == result.errors

    async def test_a_mapping_that_raises_harms_no_other(self, make):
        class Broken(dict[str, str]):
            def items(self):
                raise RuntimeError("broken")

        result = await make().batch(["one", Broken(prompt="x"), "two"])
        assert [type(item.error) for item in result] == [type(None), RuntimeError, type(None)]


class TestWindow:
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    async def test_no_more_are_out_or_read_than_allowed(self, make, vendor, clock, shape):
        echo = Echo(vendor, clock)
        read = 0

        def prompts():
            nonlocal read
            for n in range(40):
                read += 1
                yield f"p{n}"

        source = shape(prompts()) if shape in {one_by_one, SHAPES["generator"]} else None
        requests = source or shape(f"p{n}" for n in range(40))
        task = asyncio.ensure_future(make().batch(requests, concurrency=5))
        await clock.settle()
        assert (echo.out, read) == (5, 5 if source else 0)
        await through(clock, task)
        assert echo.most == 5

    async def test_the_gateways_own_bound_stands_over_concurrency(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        gateway = make(max_concurrency=3)
        task = asyncio.ensure_future(gateway.batch([f"{n}" for n in range(30)], concurrency=20))
        await clock.settle()
        assert (echo.out, gateway.get_metrics()["waiting"]) == (3, 0)
        await through(clock, task)

    async def test_a_slow_consumer_slows_the_batch(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        items = make().as_completed((f"p{n}" for n in range(20)), concurrency=4)
        first = await through(clock, anext(items))
        await clock.advance(100)
        assert echo.begun == 4  # one is taken, three are done: nobody reads on until they are asked
        assert first.response.text == "answer to p0"
        await anext(items)
        await clock.settle()
        assert echo.begun == 6
        rest = await through(clock, collected(items))
        assert len(rest) == 18
        assert echo.most <= 4

    async def test_as_completed_gives_the_quickest_first(self, make, vendor, clock):
        Echo(vendor, clock, {"slow": 9.0, "quick": 1.0, "middling": 4.0}.__getitem__)
        items = make().as_completed(["slow", "quick", "middling"])
        order = [item.request for item in await through(clock, collected(items))]
        assert order == ["quick", "middling", "slow"]

    async def test_done_items_come_while_the_input_is_slow(self, make, clock):
        async def slow_input():
            yield "one"
            await clock.sleep(100)
            yield "two"

        items = make().as_completed(slow_input())
        assert (await through(clock, anext(items))).request == "one"
        assert clock.now() < 1050
        assert [item.request for item in await through(clock, collected(items))] == ["two"]

    async def test_auto_follows_the_adaptive_limits(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        gateway = make("a", fields={"max_concurrency": 8}, cache_enabled=False)
        task = asyncio.ensure_future(
            gateway.batch([f"{n}" for n in range(60)], concurrency="auto", timeout=1000)
        )
        await clock.settle()
        assert echo.out == 8
        vendor.script("a", *[Failure(K.RATE_LIMITED, retry_after=0.1)] * 8)
        await clock.advance(1.05)
        assert gateway.providers[0].max_in_flight < 8
        result = await through(clock, task)
        assert echo.most == 8
        assert len(result) == 60

    async def test_auto_leaves_unavailable_providers_out(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        vendor.always("b", K.AUTHENTICATION)
        gateway = make("b", "a", fields={"max_concurrency": 3})
        await through(clock, gateway.chat("finds out that b is set up wrong"))
        task = asyncio.ensure_future(gateway.batch([f"{n}" for n in range(9)], concurrency="auto"))
        await clock.settle()
        assert (echo.out, gateway.get_metrics()["waiting"]) == (3, 0)
        await through(clock, task)

    async def test_memory_does_not_grow_with_the_number_of_requests(self):
        peaks = [await live_at_most(count) for count in (2_000, 20_000)]
        assert max(peaks) <= 3 * 16


async def live_at_most(count):
    """Requests that are alive at once, at most, while `as_completed` takes that many through."""
    live = peak = 0

    class Request(dict[str, str]):
        pass

    def gone():
        nonlocal live
        live -= 1

    def requests():
        nonlocal live, peak
        for _ in range(count):
            request = Request(prompt="x")
            weakref.finalize(request, gone).atexit = False
            live += 1
            peak = max(peak, live)
            yield request
            del request

    async def ask(prompt, options):
        await asyncio.sleep(0)
        return ANSWER

    done = 0
    async for _ in as_completed(ask, requests(), BatchRun(SYSTEM_CLOCK, lambda: 16)):
        done += 1
    assert done == count
    return peak


async def collected(items):
    return [item async for item in items]


class TestEnds:
    async def test_an_error_is_an_item_and_its_causes_are_kept(self, make, vendor):
        vendor.script("a", "fine", K.SERVER_ERROR, "fine")
        result = await make().batch(["one", "two", "three"], concurrency=1)
        assert [item.ok for item in result] == [True, False, True]
        failed = result.failed[0]
        assert failed.error.causes[0].kind is K.SERVER_ERROR
        assert failed.error.__traceback__ is None  # it would keep the whole request in memory
        assert result.items[0].attempts == result.responses[0].attempts != ()

    async def test_usage_and_cost_leave_cached_answers_out(self, make):
        gateway = make()
        await gateway.chat("known")
        result = await gateway.batch(["known", "new", "new", "newer"], concurrency=1)
        assert [reply.cached for reply in result.responses] == [True, False, True, False]
        assert result.usage == Usage(2, 2, 4)
        assert result.cost_usd == pytest.approx(0.002)

    async def test_the_same_prompt_at_once_is_asked_once(self, make, vendor):
        result = await make().batch(["same"] * 20)
        assert vendor.called() == 1
        assert result.usage == Usage(1, 1, 2)
        assert len(result.responses) == 20

    async def test_fail_fast_raises_the_first_error_and_ends_the_rest(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        vendor.script("a", echo, K.SERVER_ERROR)
        with pytest.raises(GatewayError, match="server_error"):
            await through(
                clock, make().batch((f"{n}" for n in range(99)), concurrency=3, fail_fast=True)
            )
        assert echo.out == 0
        assert echo.begun == 2
        assert echo.clock.now() < 1001

    async def test_a_timeout_keeps_finished_items(self, make, vendor, clock):
        echo = Echo(vendor, clock, float)
        prompts = ["1", "2", "30", "3", "40", "50", "1"]
        result = await through(clock, make().batch(prompts, concurrency=3, timeout=5))
        assert [item.ok for item in result] == [True, True, False, True, False, False, False]
        assert {type(error) for error in result.errors} == {DeadlineExceededError}
        assert "5 s" in str(result.errors[0])
        assert result.complete
        assert echo.out == 0
        assert echo.begun == 6

    async def test_a_timeout_leaves_the_rest_of_a_generator_unread(self, make, vendor, clock):
        Echo(vendor, clock)
        prompts = (f"{n}" for n in range(1000))
        result = await through(clock, make().batch(prompts, concurrency=2, timeout=4.5))
        assert [item.ok for item in result] == [True] * 8 + [False] * 2
        assert not result.complete
        assert next(prompts) == "10"

    async def test_a_timeout_ends_the_wait_for_a_slow_input(self, make, clock):
        async def stuck():
            yield "one"
            await asyncio.Event().wait()

        result = await through(clock, make().batch(stuck(), timeout=4.5))
        assert [item.ok for item in result] == [True]
        assert not result.complete

    async def test_a_timeout_that_finds_a_request_not_begun_loses_no_item(self, clock):
        over = asyncio.get_running_loop().create_future()
        begun = []

        class AnyMoment(FakeClock):
            async def sleep(self, seconds):
                await over

        async def ask(prompt, options):
            begun.append(prompt)
            await asyncio.sleep(0)
            return ANSWER

        items = as_completed(ask, ["one", "two"], BatchRun(AnyMoment(), lambda: 1, timeout=1))
        assert (await anext(items)).request == "one"
        second = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        over.set_result(None)  # in the moment in which the second gets its task
        assert isinstance((await second).error, DeadlineExceededError)
        assert begun == ["one"]
        await items.aclose()

    @pytest.mark.parametrize("shape", [list, one_by_one], ids=["sync", "async"])
    async def test_an_input_that_raises_loses_nothing_that_was_read(
        self, make, vendor, clock, shape
    ):
        Echo(vendor, clock)

        def prompts():
            yield "one"
            yield "two"
            raise OSError("disk")

        def requests():
            return prompts() if shape is list else one_by_one(prompts())

        result = await through(clock, make().batch(requests()))
        assert [item.ok for item in result] == [True, True]
        assert isinstance(result.input_error, OSError)
        assert not result.complete
        with pytest.raises(ExceptionGroup, match="its input raised") as raised:
            result.raise_for_errors()
        assert raised.value.exceptions == (result.input_error,)
        seen: list[BatchItem] = []
        with pytest.raises(OSError, match="disk"):
            await through(clock, taken(make("b").as_completed(requests()), seen))
        assert len(seen) == 2
        with pytest.raises(OSError, match="disk"):
            await through(clock, make("c").batch(requests(), fail_fast=True))

    async def test_a_task_cancelled_from_outside_is_an_item_with_an_error(self, clock):
        async def ask(prompt, options):
            task = asyncio.current_task()
            if prompt == "two" and task is not None:
                task.cancel()
            await asyncio.sleep(0)
            return ANSWER

        items = await collected(as_completed(ask, ["one", "two"], BatchRun(clock, lambda: 1)))
        assert [item.ok for item in items] == [True, False]
        assert "cancelled" in str(items[1].error)

    async def test_auto_outlives_the_last_provider(self, make, clock, vendor):
        Echo(vendor, clock)
        gateway = make(fields={"max_concurrency": 2})
        task = asyncio.ensure_future(
            gateway.batch([f"{n}" for n in range(5)], concurrency="auto", model="simulated")
        )
        await clock.settle()
        gateway.remove_provider("a")
        result = await through(clock, task)
        assert result.input_error is None
        assert [item.ok for item in result] == [True, True, False, False, False]

    async def test_a_closed_gateway_ends_a_batch_with_errors(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make()
        task = asyncio.ensure_future(gateway.batch(["one", "two", "three"], concurrency=2))
        await clock.settle()
        await gateway.aclose()
        result = await task
        assert len(result.errors) == 3
        assert all("closed" in str(error) for error in result.errors)

    def test_a_result_shows_no_prompt_and_no_answer(self):
        async def ask_it():
            vendor = ScriptedVendor()
            vendor.script("a", "the-secret-answer", K.SERVER_ERROR)
            async with AsyncGateway(
                scripted_configs("a"), vendor=vendor, retry_rounds=0
            ) as gateway:
                return await gateway.batch(["the-secret-prompt", "the-secret-two"], concurrency=1)

        result = asyncio.run(ask_it())
        for shown in (repr(result), *map(repr, result.items), *map(str, result.errors)):
            assert "secret" not in shown


async def taken(items, seen):
    async for item in items:
        seen.append(item)


class TestLeaving:
    async def test_cancelling_a_batch_cancels_requests_in_flight(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        task = asyncio.ensure_future(make().batch((f"{n}" for n in range(99)), concurrency=5))
        await clock.advance(2.5)
        assert echo.out == 5
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (echo.out, len(asyncio.all_tasks())) == (0, 1)

    async def test_break_cancels_requests_in_flight(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        gateway = make()

        async def first():
            async for item in gateway.as_completed((f"{n}" for n in range(99)), timeout=500):
                return item.index
            return None

        assert await through(clock, first()) == 0
        gc.collect()
        await clock.settle()
        assert (echo.out, len(asyncio.all_tasks())) == (0, 1)

    async def test_an_exception_in_the_loops_body_cancels_requests_in_flight(
        self, make, vendor, clock
    ):
        echo = Echo(vendor, clock)

        async def fails():
            items = make().as_completed(f"{n}" for n in range(99))
            async with contextlib.aclosing(items):
                async for _ in items:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await through(clock, fails())
        assert (echo.out, len(asyncio.all_tasks())) == (0, 1)

    async def test_an_iterator_that_is_never_begun_needs_no_closing(self, make, vendor):
        items = make().as_completed(["x"])
        await items.aclose()
        assert vendor.called() == 0

    @pytest.mark.parametrize("seed", range(15))
    async def test_whenever_it_is_left_nothing_remains(self, make, vendor, clock, seed):
        rng = random.Random(seed)
        echo = Echo(vendor, clock, lambda _: rng.uniform(0, 3))
        steps: list[Step] = [echo, echo, K.SERVER_ERROR, K.RATE_LIMITED, K.REJECTED]
        vendor.script("a", *rng.choices(steps, k=30))
        shape: Any = rng.choice(list(SHAPES.values()))
        work = make(max_concurrency=4, failure_threshold=1000).batch(
            shape(f"{n}" for n in range(60)),
            concurrency=rng.choice([1, 3, 9, "auto"]),
            timeout=rng.choice([None, 5]),
            fail_fast=rng.random() < 0.3,
        )
        task = asyncio.ensure_future(work)
        await clock.advance(rng.uniform(0, 8))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, GatewayError):
            await task
        assert (echo.out, len(asyncio.all_tasks())) == (0, 1)


class TestProgress:
    async def test_it_counts_finished_requests(self, make, vendor):
        vendor.script("a", "one", K.SERVER_ERROR)
        seen: list[BatchProgress] = []
        await make().batch(["one", "two", "one", ""], concurrency=1, on_progress=seen.append)
        assert [(p.done, p.failed, p.cached, p.total) for p in seen] == [
            (1, 0, 0, 4),
            (2, 1, 0, 4),
            (3, 1, 1, 4),
            (4, 2, 1, 4),
        ]
        assert seen[-1].usage == Usage(1, 1, 2)
        assert seen[-1].cost_usd == pytest.approx(0.001)

    async def test_the_total_of_a_generator_is_not_known(self, make):
        seen: list[BatchProgress] = []
        await make().batch((f"{n}" for n in range(3)), on_progress=seen.append)
        assert [p.total for p in seen] == [None] * 3

    async def test_an_error_of_the_listener_is_logged_and_changes_nothing(self, make, caplog):
        def watch(progress):
            raise ValueError("the-secret-prompt")

        with caplog.at_level(logging.WARNING, "aigateway"):
            result = await make().batch(["a", "b"], on_progress=watch)
        assert len(result.responses) == 2
        assert "on_progress raised ValueError" in caplog.text
        assert "secret" not in caplog.text


class TestMap:
    async def test_rows_become_prompts(self, make, vendor):
        rows = [{"name": "Ann", "id": "x", "n": 3.14159}, {"name": "Bob", "n": 2}]
        result = await make().map("{{{name}}}: {n:.1f} {{}}", iter(rows), concurrency=1, seed=4)
        assert asked(vendor) == ["{Ann}: 3.1 {}", "{Bob}: 2.0 {}"]
        assert [(item.id, item.request) for item in result] == [("x", rows[0]), ("1", rows[1])]
        assert vendor.calls[0][1].params == {"seed": 4}

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ({"n": 1}, r"The template needs name, n; this row has no 'name'"),
            ({"name": "Ann", "n": "secret"}, r"cannot be formatted \(ValueError\)"),
            ({"name": "Ann", "n": 1, "id": []}, '"id" must be'),
            (["Ann", 1], "A row must be a mapping .* not list"),
            ({"name": None, "n": 1}, "this row has None for 'name'"),
            ({"name": "Ann", "n": None}, "this row has None for 'n'"),
        ],
        ids=repr,
    )
    async def test_a_row_that_does_not_fit_is_an_item_with_an_error(self, make, vendor, row, says):
        good = {"name": "Bob", "n": 2}
        result = await make().map("{name}: {n:.1f}", [row, good])
        assert [item.ok for item in result] == [False, True]
        with pytest.raises(RequestRejectedError, match=says) as refused:
            raise result.errors[0]
        assert "secret" not in str(refused.value)
        assert refused.value.__context__ is refused.value.__cause__ is None
        assert vendor.called() == 1

    @pytest.mark.parametrize("template", ["{", "}", "{}", "{0}", "a {name", 7, None])
    async def test_a_template_that_cannot_work_is_refused_at_once(self, make, template):
        with pytest.raises(RequestRejectedError, match="template"):
            await make().map(template, [{"name": "x"}])


class TestBind:
    async def test_options_are_set_and_those_of_the_call_stand_over_them(self, make, vendor):
        ask = make().bind(system="Be terse.", seed=1, temperature=0)
        async with asyncio.TaskGroup() as group:
            group.create_task(ask("one"))
            group.create_task(ask("two", seed=2))
        assert [[m["content"] for m in r.messages] for _, r in vendor.calls] == [
            ["Be terse.", "one"],
            ["Be terse.", "two"],
        ]
        assert [r.params["seed"] for _, r in vendor.calls] == [1, 2]
        assert "terse" not in repr(ask)

    async def test_a_crowd_stays_out_of_the_queue_and_each_has_its_whole_time(
        self, make, vendor, clock
    ):
        echo = Echo(vendor, clock)
        gateway = make(max_concurrency=5, max_queue=1)
        ask = gateway.bind(timeout=2)
        crowd = asyncio.gather(*(ask(f"{n}") for n in range(100)))
        await clock.settle()
        assert (echo.out, gateway.get_metrics()["waiting"]) == (5, 0)
        replies = await through(clock, crowd)
        assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(100)]
        assert echo.most == 5

    async def test_all_bound_calls_share_one_bound(self, make, vendor, clock):
        echo = Echo(vendor, clock)
        gateway = make(max_concurrency=3, max_queue=1)
        one, two = gateway.bind(seed=1), gateway.bind(seed=2)
        await through(clock, asyncio.gather(*(f(f"{n}") for n in range(9) for f in (one, two))))
        assert echo.most == 3

    async def test_the_call_reports_an_unknown_model(self, make):
        with pytest.raises(UnknownModelError):
            await make().bind(model="nobody")("hi")


class TestPriority:
    async def test_a_chat_goes_before_a_waiting_batch(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make(fields={"max_concurrency": 1})
        batch = asyncio.ensure_future(gateway.batch([f"b{n}" for n in range(10)], timeout=500))
        await clock.settle()
        assert gateway.get_metrics()["waiting"] == 9
        chats = asyncio.gather(gateway.chat("now"), gateway.chat("and now"))
        await through(clock, chats)
        assert asked(vendor)[:3] == ["b0", "now", "and now"]
        assert len((await through(clock, batch)).responses) == 10

    async def test_a_stream_does_too(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make(fields={"max_concurrency": 1})
        batch = asyncio.ensure_future(gateway.batch([f"b{n}" for n in range(5)]))
        await clock.settle()
        await through(clock, collected(gateway.stream("now")))
        assert asked(vendor)[:2] == ["b0", "now"]
        await through(clock, batch)

    async def test_a_chat_does_not_wait_for_the_same_request_at_the_end_of_a_batch(
        self, make, vendor, clock
    ):
        Echo(vendor, clock)
        gateway = make(fields={"max_concurrency": 1})
        batch = asyncio.ensure_future(gateway.batch([f"b{n}" for n in range(10)]))
        await clock.settle()
        reply = await through(clock, gateway.chat("b9"))
        assert not reply.coalesced
        assert asked(vendor)[:2] == ["b0", "b9"]
        await through(clock, batch)

    async def test_a_batch_joins_the_same_chat_in_flight(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make()
        chat = asyncio.ensure_future(gateway.chat("same"))
        await clock.settle()
        result = await through(clock, gateway.batch(["same"]))
        assert result.responses[0].coalesced
        assert vendor.called() == 1
        await chat

    async def test_bound_calls_are_not_in_the_background(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make(fields={"max_concurrency": 1})
        batch = asyncio.ensure_future(gateway.batch([f"b{n}" for n in range(5)]))
        await clock.settle()
        await through(clock, gateway.bind()("now"))
        assert asked(vendor)[:2] == ["b0", "now"]
        await through(clock, batch)

    async def test_a_batch_that_fills_the_queue_keeps_no_chat_out(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make(max_queue=3, fields={"max_concurrency": 1})
        batch = asyncio.ensure_future(gateway.batch([f"b{n}" for n in range(4)]))
        await clock.settle()
        assert gateway.get_metrics()["waiting"] == 3
        assert (await through(clock, gateway.chat("now"))).text == "answer to now"
        assert len((await through(clock, batch)).responses) == 4


class Away(Echo):
    """A vendor that fails up to a moment, and is well from then on."""

    def __init__(self, vendor, clock, failure, seconds, *names):
        super().__init__(vendor, clock)
        for name in names:
            vendor.always(name, self)
        self.failure, self.back_at = failure, clock.now() + seconds

    async def __call__(self):
        if self.clock.now() >= self.back_at:
            return await super().__call__()
        if self.failure is HANGS:
            await self.clock.sleep(1000)
        raise VendorCallError(self.failure)


HANGS = Failure(K.TIMEOUT)
UNREACHABLE = Failure(K.CONNECTION, unreachable=True)


async def shut(gateway, vendor, clock, *, seconds=1e9):
    """Let a provider's circuit open; the vendor stays dead for so long."""
    vendor.script("a", *[K.SERVER_ERROR] * 5)
    for number in range(5):
        with contextlib.suppress(GatewayError):
            await through(clock, gateway.chat(f"{number} at {clock.now()}", cache=False))
    assert not gateway.providers[0].active
    Away(vendor, clock, Failure(K.SERVER_ERROR, 500), seconds, "a")


class TestOutage:
    @pytest.mark.parametrize("names", ["a", "ab"])
    @pytest.mark.parametrize(
        "failure",
        [
            Failure(K.SERVER_ERROR, status=503),
            Failure(K.SERVER_ERROR, status=503, retry_after=70),
            Failure(K.RATE_LIMITED, retry_after=30),
            Failure(K.RATE_LIMITED, retry_after=0),
            Failure(K.RATE_LIMITED),
            UNREACHABLE,
            HANGS,
        ],
        ids=["503", "503, later", "429, later", "429, at once", "429", "unreachable", "hangs"],
    )
    async def test_whatever_it_is_no_request_is_lost(self, make, vendor, clock, failure, names):
        Away(vendor, clock, failure, 110, *names)
        gateway = make(*names, retry_rounds=2, attempt_timeout=15)
        prompts = [f"p{n}" for n in range(60)]
        began = clock.now()
        result = await through(clock, gateway.batch(prompts), step=1)
        result.raise_for_errors()
        assert [reply.text for reply in result.responses] == [f"answer to {p}" for p in prompts]
        assert clock.now() - began < 300
        assert vendor.called() < 2500

    async def test_an_open_circuit_is_waited_for_with_a_trickle_of_calls(self, make, vendor, clock):
        gateway = make()
        await shut(gateway, vendor, clock, seconds=57.5)
        unread = iter(range(100))
        prompts = (f"p{n}" for n in unread)
        batch = asyncio.ensure_future(gateway.batch(prompts, concurrency=56))
        await clock.advance(57)
        assert 5 + 100 < vendor.called() < 5 + 4 * 57, "two to four a second"
        assert len(list(unread)) == 44
        assert len((await through(clock, batch)).responses) == 56

    async def test_a_dead_network_is_waited_for(self, make, vendor, clock):
        gateway = make("a", "b")
        await through(clock, gateway.batch(["an answer of a minute ago proves nothing"]))
        await clock.advance(61)
        Away(vendor, clock, UNREACHABLE, 200, "a", "b")
        batch = gateway.batch([f"p{n}" for n in range(9)], concurrency=1)
        result = await through(clock, batch, step=1)
        result.raise_for_errors()
        assert vendor.called() < 150

    async def test_when_the_patience_is_over_all_fail_in_the_ordinary_words(
        self, make, vendor, clock
    ):
        gateway = make()
        await shut(gateway, vendor, clock)
        began = clock.now()
        prompts = [f"p{n}" for n in range(40)]
        result = await through(
            clock, gateway.batch(prompts, concurrency=4, outage_patience=100), step=0.1, most=2000
        )
        assert clock.now() - began == pytest.approx(100, abs=1)
        assert {type(error) for error in result.errors} == {AllProvidersFailedError}
        assert len(result.errors) == 40
        assert "circuit_open (retry in" in str(result.errors[-1])
        assert vendor.called() < 5 + 4 * 100

    async def test_an_answer_renews_the_patience(self, make, vendor, clock):
        busy = Failure(K.RATE_LIMITED, retry_after=40)
        vendor.script("a", *[busy, "fine"] * 10)
        began = clock.now()
        batch = make().batch([f"p{n}" for n in range(10)], concurrency=1, outage_patience=50)
        (await through(clock, batch, step=5)).raise_for_errors()
        assert clock.now() - began >= 400

    async def test_a_cached_answer_does_not(self, make, vendor, clock):
        gateway = make()
        await gateway.chat("known")
        await shut(gateway, vendor, clock)
        began = clock.now()
        batch = gateway.batch(["known", "new"], concurrency=1, outage_patience=20)
        result = await through(clock, batch)
        assert [item.ok for item in result] == [True, False]
        assert clock.now() - began < 25

    async def test_without_patience_it_fails_at_once(self, make, vendor, clock):
        gateway = make()
        await shut(gateway, vendor, clock)
        began = clock.now()
        result = await through(clock, gateway.batch(["x", "y"], outage_patience=0), step=0.1)
        assert len(result.errors) == 2
        assert clock.now() - began < 2, "each takes its turn of the last resort at most"

    async def test_without_end_it_waits_as_long_as_it_takes(self, make, vendor, clock):
        Away(vendor, clock, Failure(K.RATE_LIMITED, retry_after=7200), 7200, "a")
        began = clock.now()
        batch = make().batch(["x"], outage_patience=None)
        (await through(clock, batch, step=60)).raise_for_errors()
        assert clock.now() - began >= 7200

    async def test_a_request_that_fails_at_healthy_providers_is_not_repeated_for_ever(
        self, make, vendor, clock
    ):
        async def answer():
            if vendor.prompt == "poison":
                raise VendorCallError(Failure(K.SERVER_ERROR, status=500))
            return "fine"

        for name in "ab":
            vendor.always(name, answer)
        prompts = ["p0", "poison", *(f"p{n}" for n in range(1, 20))]
        result = await through(clock, make("a", "b", retry_rounds=2).batch(prompts, concurrency=2))
        assert [item.request for item in result.failed] == ["poison"]
        assert asked(vendor).count("poison") <= 6

    async def test_one_that_is_throttled_for_its_size_is_given_up(self, make, vendor, clock):
        async def answer():
            if vendor.prompt == "large":
                raise VendorCallError(Failure(K.RATE_LIMITED, retry_after=2))
            await clock.sleep(1)
            return "fine"

        vendor.always("a", answer)
        prompts = ["large", *(f"p{n}" for n in range(250))]
        began = clock.now()
        batch = make().batch(prompts, concurrency=2, outage_patience=60)
        result = await through(clock, batch, most=4000)
        assert [item.request for item in result.failed] == ["large"]
        assert 60 <= result.failed[0].latency_seconds <= 65
        assert clock.now() - began > 100  # the others went on being answered

    async def test_a_bad_key_is_not_waited_for(self, make, vendor):
        vendor.always("a", K.AUTHENTICATION)
        result = await asyncio.wait_for(make().batch([f"p{n}" for n in range(9)]), PATIENCE)
        assert len(result.errors) == 9
        assert vendor.called() <= 9

    async def test_the_batchs_own_timeout_stands_over_it(self, make, vendor, clock):
        gateway = make()
        await shut(gateway, vendor, clock)
        result = await through(clock, gateway.batch(["x", "y"], timeout=20, concurrency=1))
        assert {type(error) for error in result.errors} == {DeadlineExceededError}
        assert "The batch's timeout of 20 s" in str(result.errors[0])

    async def test_cancelled_while_it_waits_it_leaves_nothing(self, make, vendor, clock):
        gateway = make()
        await shut(gateway, vendor, clock)
        batch = asyncio.ensure_future(gateway.batch(f"p{n}" for n in range(50)))
        await clock.advance(12)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        await clock.advance(1)  # the watch for stalls ticks once more
        assert len(asyncio.all_tasks()) == 1

    async def test_a_gateway_that_is_closed_ends_the_wait(self, make, vendor, clock):
        gateway = make()
        await shut(gateway, vendor, clock)
        batch = asyncio.ensure_future(gateway.batch(f"p{n}" for n in range(50)))
        await clock.settle()
        await gateway.aclose()
        await clock.advance(5)
        assert all("closed" in str(error) for error in (await batch).errors)

    async def test_a_provider_that_is_added_is_noticed(self, make, vendor, clock):
        gateway = make()
        await shut(gateway, vendor, clock)
        batch = asyncio.ensure_future(gateway.batch([f"p{n}" for n in range(50)]))
        await clock.settle()
        gateway.add_provider(*scripted_configs("b"))
        await clock.advance(5)
        assert {reply.provider for reply in (await batch).responses} == {"b"}

    async def test_requests_for_another_model_do_not_wait(self, make, vendor, clock):
        gateway = make("a", "b")
        await shut(gateway, vendor, clock, seconds=30)
        requests = [
            {"prompt": "waits"},
            {"prompt": "goes", "model": "b"},
            {"prompt": "nobody's", "model": "nobody"},
            {"prompt": "none", "model": ["a"]},
        ]
        items = gateway.as_completed(requests, model="a")
        async with contextlib.aclosing(items):
            seen = [await anext(items) for _ in range(3)]
            assert {item.index: type(item.error) for item in seen} == {
                1: type(None),
                2: UnknownModelError,
                3: RequestRejectedError,
            }
            assert (await through(clock, anext(items))).ok

    async def test_a_short_rate_limit_costs_auto_nothing(self, make, vendor, clock):
        Echo(vendor, clock)
        gateway = make(fields={"max_concurrency": 64}, retry_rounds=2)
        vendor.script("a", *[Failure(K.RATE_LIMITED, retry_after=0.5)] * 150)
        result = await through(
            clock, gateway.batch([f"p{n}" for n in range(200)], concurrency="auto")
        )
        result.raise_for_errors()

    async def test_a_rate_of_our_own_is_waited_for(self, make, vendor, clock):
        gateway = make(fields={"rpm": 10}, timeout=20, attempt_timeout=10)
        began = clock.now()
        batch = gateway.batch([f"p{n}" for n in range(25)], concurrency=25)
        (await through(clock, batch)).raise_for_errors()
        assert clock.now() - began > 60

    async def test_a_probe_that_takes_longer_than_a_request_may(self, make, vendor, clock):
        gateway = make(attempt_timeout=50)
        await shut(gateway, vendor, clock)
        await clock.advance(60)
        Echo(vendor, clock, lambda prompt: 40 if prompt == "probe" else 1)
        probe = asyncio.ensure_future(gateway.chat("probe"))
        await clock.settle()
        requests = [{"prompt": f"p{n}", "timeout": 5} for n in range(20)]
        (await through(clock, gateway.batch(requests))).raise_for_errors()
        await through(clock, probe)


def test_a_result_can_be_made_by_hand():
    result = BatchResult(())
    assert (result.responses, result.errors, result.failed) == ((), (), ())
    result.raise_for_errors()


class TestIdenticalRequests:
    """Each is asked once, however far apart and whatever the cache has room for."""

    ROWS = tuple({"n": n % 15} for n in range(45))

    async def test_are_asked_once(self, make, vendor):
        vendor.always("a", "ok")
        gateway = make("a", cache_max_entries=2)
        result = await gateway.map("S: {n}", self.ROWS, concurrency=4)
        assert len(vendor.calls) == 15
        assert [reply.cached for reply in result.responses] == [False] * 15 + [True] * 30
        again = await gateway.batch([f"S: {row['n']}" for row in self.ROWS], concurrency=1)
        assert len(vendor.calls) == 30, "a batch recalls only its own answers"
        assert again.texts() == ["ok"] * 45

    @pytest.mark.parametrize(
        ("settings", "options", "calls"),
        [
            ({}, {"cache": False}, 45),
            ({}, {"cache": "refresh"}, 45),
            ({"cache_enabled": False}, {}, 45),
        ],
    )
    async def test_are_asked_again_where_no_answer_may_be_shared(
        self, make, vendor, settings, options, calls
    ):
        vendor.always("a", "ok")
        gateway = make("a", **settings)
        await gateway.map("S: {n}", self.ROWS, concurrency=1, **options)
        assert len(vendor.calls) == calls

    async def test_with_a_poor_answer_are_asked_again(self, make, vendor):
        vendor.always("a", "")
        await make("a").map("S: {n}", self.ROWS, concurrency=1)
        assert len(vendor.calls) == 45

    async def test_are_asked_once_below_middleware(self, clock, vendor):
        class Louder:
            async def after(self, request, response):
                return response.map_texts(str.upper)

        vendor.always("a", "ok")
        async with AsyncGateway(
            scripted_configs("a"),
            vendor=vendor,
            clock=clock,
            middleware=[Louder()],  # type: ignore[list-item]
            cache_max_entries=2,
        ) as gateway:
            result = await gateway.map("S: {n}", self.ROWS, concurrency=4)
        assert (len(vendor.calls), set(result.texts())) == (15, {"OK"})

    async def test_one_by_one_only_as_far_as_the_cache_has_room(self, make, vendor):
        vendor.always("a", "ok")
        gateway = make("a", cache_max_entries=2)
        prompts = [f"S: {row['n']}" for row in self.ROWS]
        assert len([item async for item in gateway.as_completed(prompts, concurrency=1)]) == 45
        assert len(vendor.calls) == 45


class TestNothingIsSwallowed:
    async def test_a_base_exception_is_raised(self):
        class Stop(BaseException):
            pass

        vendor = ScriptedVendor()
        vendor.script("a", "ok", Stop())
        async with AsyncGateway(scripted_configs("a"), vendor=vendor, retry_rounds=0) as gateway:
            with pytest.raises(Stop):
                await gateway.batch(["1", "2", "3"])

    async def test_a_timeout_before_the_input_was_read_is_no_proper_end(self):
        vendor = ScriptedVendor()
        async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:

            async def slowly(items):
                async for _ in items:
                    await asyncio.sleep(0.03)

            prompts = (f"{turn}" for turn in range(100))
            items = gateway.as_completed(prompts, concurrency=2, timeout=0.05)
            with pytest.raises(DeadlineExceededError, match="read to its end"):
                await slowly(items)
            assert len(list(prompts)) > 50

    async def test_a_cancelled_input_is_reported(self):
        async def source():
            yield "a"
            raise asyncio.CancelledError

        async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
            result = await gateway.batch(source())
        assert isinstance(result.input_error, GatewayError)
