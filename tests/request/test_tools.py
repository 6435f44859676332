"""`gateway.run_tools`: functions as tools, on scripted vendors and over real HTTP."""

import asyncio
import json
import threading
from datetime import date
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel

from aigateway import (
    AllProvidersFailedError,
    AsyncGateway,
    DeadlineExceededError,
    FailureKind,
    GatewayError,
    RequestRejectedError,
    ToolCall,
    ToolRoundsExceededError,
    Usage,
)
from aigateway.messages import Choice, Completion
from aigateway.simulator import Answer, Fault
from aigateway.simulator import ToolCall as SimulatedCall
from aigateway.testing import scripted_configs
from tests.gateways import gateway_for
from tests.processes import PATIENCE

K = FailureKind


class InterruptError(BaseException):
    """As pytest's and anyio's own: no `Exception`."""


class Unit(StrEnum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class City(BaseModel):
    name: str
    country: str = "NO"


async def weather(
    city: City, day: date, unit: Annotated[Unit, "of the temperature"] = Unit.CELSIUS
) -> dict[str, object]:
    """Return the weather of a city.

    Takes a moment.

    Args:
        city: The city,
            with its country.
        day: A day of this week.
        unit: Not this text, but the annotation's.

    Returns:
        Temperature and words.
    """
    return {"city": city.name, "day": day, "unit": unit}


def add(a: int, b: int = 2, *, model_dump: bool = False) -> int:
    """:param a: the first
    :param b: the second
    """
    return a + b + model_dump


async def counts(to: int):
    """A function that cannot be a tool."""
    for number in range(to):
        yield number


def letters(text: str):
    yield from text


def calls(*wanted):
    """An answer that calls functions, each given as its name and its arguments."""
    made = tuple(
        ToolCall(f"c{place}", name, given if isinstance(given, str) else json.dumps(given))
        for place, (name, given) in enumerate(wanted)
    )
    choice = Choice(finish_reason="tool_calls", tool_calls=made)
    return Completion("", "simulated", (choice,), usage=Usage(10, 5, 15), cost_usd=0.25)


OPEN = [
    {
        "role": "assistant",
        "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"a": 1}'}}],
    }
]


@pytest.fixture
async def make(vendor, clock):
    made = []

    def make_gateway(*names, **settings):
        configs = scripted_configs(*(names or ("a",)))
        settings = {"retry_rounds": 0} | settings
        made.append(AsyncGateway(configs, clock=clock, vendor=vendor, **settings))
        return made[-1]

    yield make_gateway
    for gateway in made:
        await gateway.aclose()


def sent(vendor, place=-1):
    return vendor.calls[place][1]


class TestSchema:
    async def test_what_a_model_is_shown(self, make, vendor):
        await make().run_tools("hi", tools=[weather, add])
        first, second = (tool["function"] for tool in sent(vendor).params["tools"])
        assert first["name"] == "weather"
        assert first["description"] == "Return the weather of a city.\n\nTakes a moment."
        properties = first["parameters"]["properties"]
        assert properties["city"]["description"] == "The city, with its country."
        assert properties["day"] == {
            "description": "A day of this week.",
            "format": "date",
            "type": "string",
        }
        assert properties["unit"]["description"] == "of the temperature"
        assert first["parameters"]["required"] == ["city", "day"]
        assert second["parameters"] == {
            "additionalProperties": False,
            "properties": {
                "a": {"description": "the first", "type": "integer"},
                "b": {"default": 2, "description": "the second", "type": "integer"},
                "model_dump": {"default": False, "type": "boolean"},
            },
            "required": ["a"],
            "type": "object",
        }

    @pytest.mark.parametrize(
        ("tools", "words"),
        [
            ([], "at least one function"),
            (["weather"], r"tools\[0\] must be a function, not str"),
            ([lambda x: x], r"tools\[0\] must have a name"),
            ([add, add], "two functions are named add"),
            ([print], r"\*args"),
            ([partial(add, 1), add], "two functions are named add"),
            (add, "tools must be a list of functions, not function"),
            (None, "tools must be a list of functions, not NoneType"),
            ([counts], r"tools\[0\] \(counts\) yields"),
            ([partial(letters)], r"tools\[0\] \(letters\) yields"),
        ],
    )
    async def test_what_cannot_be_a_tool_is_refused_before_a_call(self, make, vendor, tools, words):
        with pytest.raises(RequestRejectedError, match=words):
            await make().run_tools("hi", tools=tools)
        assert vendor.called() == 0

    @pytest.mark.parametrize(
        "options",
        [{"max_rounds": 0}, {"timeout": 0}, {"on_error": "ignore"}, {"n": 2}, {"nonsense": 1}],
        ids=str,
    )
    async def test_options_are_checked(self, make, vendor, options):
        with pytest.raises(RequestRejectedError, match=next(iter(options))):
            await make().run_tools("hi", tools=[add], **options)
        assert vendor.called() == 0

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (3, "must be a text or a list of messages, not int"),
            ({"a": 1}, "must be a text or a list of messages, not dict"),
            (["x"], r"messages\[0\] is str"),
            ([], "at least one message"),
            ([{"role": "assistant", "tool_calls": ["a"]}], r"tool_calls\[0\] must be an object"),
            (
                [{"role": "assistant", "tool_calls": [{"id": "1", "function": "x"}]}],
                r"tool_calls\[0\]\.function",
            ),
            ([{"role": "user"}, *OPEN], r'messages\[0\] must have "content"'),
        ],
        ids=str,
    )
    async def test_a_conversation_is_checked_before_a_function_is_called(self, make, given, words):
        called = []

        def add(a: int) -> None:
            called.append(a)

        with pytest.raises(RequestRejectedError, match=words):
            await make().run_tools(given, tools=[add])
        assert called == []


class TestLoop:
    async def test_results_go_back_until_the_model_answers(self, make, vendor):
        day = {"city": {"name": "Oslo"}, "day": "2026-03-01"}
        first = calls(("weather", day), ("add", {"a": 1}))
        vendor.script("a", first, calls(("add", {"a": 3})), "5")
        run = await make().run_tools("hi", tools=[weather, add], system="Be terse.")
        assert (run.text, run.rounds) == ("5", 3)
        assert [json.loads(result.text) for result in run.results] == [
            {"city": "Oslo", "day": "2026-03-01", "unit": "C"},
            3,
            5,
        ]
        assert [result.round for result in run.results] == [1, 1, 2]
        roles = [message["role"] for message in run.messages]
        assert " ".join(roles) == "system user assistant tool tool assistant tool assistant"
        assert run.messages[3]["tool_call_id"] == "c0"
        assert list(sent(vendor).messages) == list(run.messages[:-1])
        assert run.cost_usd == pytest.approx(0.5 + (run.response.cost_usd or 0))
        assert run.usage == Usage(20, 10, 30) + run.response.usage
        sessions = {request.session for _, request in vendor.calls}
        assert len(sessions) == 1
        assert None not in sessions

    async def test_the_calls_of_a_round_run_at_once_and_synchronous_ones_in_threads(
        self, make, vendor
    ):
        meet, where = threading.Barrier(2, timeout=PATIENCE), []

        def wait(name: str) -> str:
            where.append(threading.current_thread())
            meet.wait()
            return name

        vendor.script("a", calls(("wait", {"name": "x"}), ("wait", {"name": "y"})), "done")
        run = await make().run_tools("hi", tools=[wait])
        assert [result.text for result in run.results] == ["x", "y"]
        assert threading.main_thread() not in where

    async def test_what_the_model_gets_wrong_it_can_correct(self, make, vendor):
        vendor.script(
            "a",
            calls(("add", {"b": "x"}), ("sub", {}), ("add", "{"), ("add", {"a": 1, "c": 1})),
            "sorry",
        )
        run = await make().run_tools("hi", tools=[add], on_error="raise")
        texts = [result.text for result in run.results]
        assert texts[0].startswith("Error: the arguments do not fit. a: Field required; b: ")
        assert texts[1] == "Error: there is no function sub; there are: add."
        assert "Invalid JSON" in texts[2]
        assert "c: Extra inputs" in texts[3]
        assert all(isinstance(result.error, RequestRejectedError) for result in run.results)
        assert run.text == "sorry"

    async def test_an_exception_goes_back_or_ends_the_run(self, make, vendor):
        async def fails(x: int) -> int:
            raise LookupError(f"no {x}")

        vendor.script("a", calls(("fails", {"x": 7})), "I see.", calls(("fails", {"x": 8})))
        gateway = make()
        run = await gateway.run_tools("hi", tools=[fails])
        assert run.results[0].text == "Error: LookupError: no 7"
        with pytest.raises(LookupError, match="no 8"):
            await gateway.run_tools("hi", tools=[fails], on_error="raise")

    async def test_the_bound_raises_and_the_conversation_goes_on_from_it(self, make, vendor):
        vendor.script("a", *[calls(("add", {"a": place})) for place in range(3)], "done")
        gateway = make()
        with pytest.raises(ToolRoundsExceededError, match=r"\(add\) after 2 rounds") as caught:
            await gateway.run_tools("hi", tools=[add], max_rounds=2)
        so_far = caught.value.tool_run
        assert (so_far.rounds, [r.text for r in so_far.results]) == (2, ["2"])
        assert caught.value.http_status == 500
        run = await gateway.run_tools(so_far.messages, tools=[add])
        assert (run.text, [r.text for r in run.results]) == ("done", ["3", "4"])
        assert [r.round for r in run.results] == [0, 1]

    async def test_an_outage_in_the_middle_keeps_what_was_done(self, make, vendor):
        vendor.script("a", calls(("add", {"a": 1})), K.SERVER_ERROR)
        gateway = make(failure_threshold=9)
        with pytest.raises(AllProvidersFailedError) as caught:
            await gateway.run_tools("hi", tools=[add])
        run = await gateway.run_tools(caught.value.tool_run.messages, tools=[add])
        assert [message["role"] for message in run.messages][-2:] == ["tool", "assistant"]
        assert run.results == ()

    async def test_one_deadline_bounds_rounds_and_functions(self, make, vendor, clock):
        async def slow() -> None:
            await clock.sleep(50)

        vendor.script("a", calls(("slow", {})), calls(("slow", {})))
        asking = asyncio.create_task(make().run_tools("hi", tools=[slow], timeout=60))
        await clock.advance(61)
        with pytest.raises(DeadlineExceededError, match="60 s and 2 rounds") as caught:
            await asking
        assert len(caught.value.tool_run.results) == 1

    @pytest.mark.parametrize("end", ["timeout", "cancelled", "interrupted"])
    async def test_a_call_that_has_ended_is_not_made_again(self, make, vendor, clock, end):
        done, hanging = [], asyncio.Event()

        async def quick(name: str) -> str:
            done.append(name)
            return f"sent to {name}"

        async def slow(fails: bool = True) -> str:
            try:
                if fails and end == "interrupted" and not hanging.is_set():
                    await clock.sleep(30)
                    raise InterruptError
                await (hanging.wait() if fails else asyncio.sleep(0))
            finally:
                done.append("slow")
            return "slow"

        round_ = calls(("slow", {}), ("quick", {"name": "Ann"}), ("slow", {"fails": False}))
        vendor.script("a", round_, "done")
        gateway = make()
        timeout = 60 if end == "timeout" else None

        async def ended() -> Any:
            try:
                await gateway.run_tools("hi", tools=[quick, slow], timeout=timeout)
            except BaseException as error:  # noqa: BLE001 - a cancellation, too
                return error

        asking = asyncio.create_task(ended())
        await clock.advance(1)
        assert sorted(done) == ["Ann", "slow"]
        await clock.advance(61) if end != "cancelled" else asking.cancel()
        caught = await asking
        so_far = caught.tool_run
        expected = {"timeout": DeadlineExceededError, "cancelled": asyncio.CancelledError}
        assert type(caught) is expected.get(end, InterruptError)
        assert done.count("slow") == 2
        assert [result.text for result in so_far.results] == ["sent to Ann", "slow"]
        hanging.set()
        run = await gateway.run_tools(so_far.messages, tools=[quick, slow])
        assert done.count("Ann") == 1
        assert [result.call.id for result in run.results] == ["c0"]
        answered = [message["tool_call_id"] for message in run.messages[2:-1]]
        assert answered == ["c1", "c2", "c0"]

    @pytest.mark.parametrize("how", ["async", "thread"])
    @pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError])
    async def test_what_is_no_ordinary_exception_goes_back_too(self, make, vendor, how, error):
        def ends() -> None:
            raise error

        async def ends_async() -> None:
            ends()

        tool = ends if how == "thread" else ends_async
        vendor.script("a", calls((tool.__name__, {}), ("add", {"a": 1})), "I see.")
        run = await asyncio.wait_for(make().run_tools("hi", tools=[tool, add]), PATIENCE)
        assert error.__name__ in run.results[0].text
        assert isinstance(run.results[0].error, Exception)
        assert (run.results[1].text, run.text) == ("3", "I see.")

    async def test_a_call_whose_task_is_cancelled_ends_the_run_without_another_task(
        self, make, vendor
    ):
        async def first() -> None:
            for task in asyncio.all_tasks() - before:
                if task is not asyncio.current_task() and task is not asking:
                    task.cancel()

        before = asyncio.all_tasks()
        vendor.script("a", calls(("first", {}), ("add", {"a": 1})))
        asking = asyncio.create_task(make().run_tools("hi", tools=[first, add]))
        with pytest.raises(GatewayError, match="a call of add was cancelled from outside"):
            await asking
        assert asyncio.all_tasks() <= before

    async def test_half_a_character_in_a_result_is_replaced(self, make, vendor):
        def text() -> str:
            return "a\ud800"

        def files() -> list[str]:
            return ["b\udce4"]

        async def fails() -> None:
            raise LookupError("c\ud800")

        vendor.script("a", calls(("text", {}), ("files", {}), ("fails", {})), "ok")
        run = await make().run_tools("hi", tools=[text, files, fails])
        texts = [result.text for result in run.results]
        assert texts == ["a\ufffd", '["b\\udce4"]', "Error: LookupError: c\ufffd"]

    async def test_a_demand_for_a_call_holds_once_and_nothing_is_cached(self, make, vendor):
        gateway = make()
        for _ in range(2):
            vendor.script("a", calls(("add", {"a": 1})), "ok")
            await gateway.run_tools("hi", tools=[add], tool_choice="required")
        chosen = [request.params.get("tool_choice") for _, request in vendor.calls]
        assert chosen == ["required", None] * 2

    async def test_a_structured_answer_after_tools(self, make, vendor):
        vendor.script("a", calls(("add", {"a": 1})), '{"name": "Oslo"}')
        run = await make().run_tools("hi", tools=[add], response_format=City)
        assert run.parsed == City(name="Oslo")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [("openai", "anthropic"), ("anthropic", "gemini"), ("gemini", "openai")],
)
async def test_another_vendor_goes_on_in_the_middle_of_the_loop(simulator, first, second):
    one, other = simulator.vendor(first), simulator.vendor(second)
    called = []

    async def weather_of(city: str, unit: Literal["C", "F"] = "C") -> str:
        """Return the weather."""
        called.append((city, unit))
        one.behave(Fault.server_error())  # before the result can go back
        return "Rain."

    one.answer(Answer(tool_calls=[SimulatedCall("weather_of", {"city": "Oslo"})]))
    other.answer("Take an umbrella.")
    async with gateway_for(one, other) as gateway:
        run = await gateway.run_tools("What should I wear in Oslo?", tools=[weather_of])
    assert called == [("Oslo", "C")]
    assert [response.provider.split("/")[0] for response in run.responses] == [first, second]
    assert run.text == "Take an umbrella."
    assert "Rain." in json.dumps(other.received[-1].body)
