"""What calls take by keyword: the names, their types, and what they do at run time."""

import copy
import dataclasses
import inspect
import pickle
import types
import typing
from functools import partial

import openai
import pytest

import aigateway
from aigateway import (
    AnsweredItem,
    AsyncGateway,
    BatchItem,
    BatchOptions,
    CallOptions,
    ChatOptions,
    ChatResponse,
    EmbedOptions,
    FailedItem,
    GatewaySettings,
    LLMConfig,
    ModelParams,
    RequestRejectedError,
    SettingsOverrides,
    StreamOptions,
    UnknownModelError,
    call_llm,
    events,
    settings,
)
from aigateway.messages import CHAT_PARAMS, Completion
from aigateway.request.schema import EMBEDDING_FIELDS
from aigateway.request.validate import _CHAT_NAMES, _CHAT_OPTIONS
from aigateway.testing import ScriptedVendor, scripted_configs

SDKS = {
    "openai": openai,
    "anthropic": types.SimpleNamespace(AsyncAnthropic=object),
    "ServerSettings": settings.ServerSettings,
}
BATCH_ONLY = {"concurrency", "on_progress", "outage_patience", "progress"}
FOR_TESTS_AND_THE_SERVICE = {"Clock", "Fleet", "ReadRequest", "VendorClient"}


@pytest.fixture
async def gateway(vendor, clock):
    configs, ttls = scripted_configs("a"), {"market": 60}
    async with AsyncGateway(configs, vendor=vendor, clock=clock, agent_ttls=ttls) as made:
        yield made


def names(options):
    return set(typing.get_type_hints(options))  # each annotation is one that can be resolved


def test_the_options_are_those_that_run_time_takes():
    assert names(ModelParams) | {"response_format"} == CHAT_PARAMS | {"metadata"} == _CHAT_NAMES
    own = {*_CHAT_OPTIONS, "hedge", "origin"}
    assert names(ChatOptions) == names(ModelParams) | own
    assert names(StreamOptions) == names(ChatOptions) | {"resume"}
    assert names(BatchOptions) == names(ChatOptions) | BATCH_ONLY
    assert names(CallOptions) == names(ChatOptions) - {"system", "temperature", "user"}
    assert names(SettingsOverrides) == GatewaySettings.model_fields.keys() - {"middleware"}
    embedding = {"agent", "cache", "cache_ttl", "model", "origin", "timeout"}
    assert names(EmbedOptions) == EMBEDDING_FIELDS.keys() | embedding


def test_notebooks_see_every_option_and_its_default():
    chat = inspect.signature(AsyncGateway.chat).parameters
    assert {"self", "prompt", "messages", "response_format", *names(ChatOptions)} <= chat.keys()
    assert chat["cache"].default is True
    assert chat["temperature"].annotation == "float | None"
    batch = inspect.signature(AsyncGateway.batch).parameters
    assert (batch["concurrency"].default, batch["outage_patience"].default) == (16, 300.0)
    assert inspect.signature(AsyncGateway.embed).parameters["cache"].default is False


async def test_a_prompt_has_three_names(gateway):
    messages = [{"role": "user", "content": "Hi."}]
    first = await gateway.chat("Hi.")
    ask = gateway.bind(agent="market")
    for again in (
        gateway.chat(prompt="Hi."),
        gateway.chat(messages=messages),
        gateway.chat(prompt_or_messages=messages),
        ask(prompt="Hi."),
        ask(messages=messages),
    ):
        answer = await again
        assert answer.cached
        assert answer.text == first.text
    async with gateway.stream(messages=messages) as stream:
        assert "".join([chunk.text async for chunk in stream]) == first.text
    assert gateway.check(prompt="Hi.").messages == gateway.check(messages=messages).messages


@pytest.mark.parametrize(
    "given", [{}, {"prompt": "a", "messages": []}, {"prompt_or_messages": "a", "prompt": "b"}]
)
async def test_only_one_prompt_is_one_too_many_or_too_few(gateway, given):
    for call in (gateway.stream, gateway.check):
        with pytest.raises(RequestRejectedError, match="Give one prompt, or messages"):
            call(**given)
    for call in (gateway.chat, gateway.bind()):
        with pytest.raises(RequestRejectedError, match="Give one prompt, or messages"):
            await call(**given)


async def test_call_llm_has_one_set_of_names(gateway, vendor):
    for arguments in (
        {"system_prompt": "Be terse.", "user_prompt": "Hi."},
        {"system": "Be terse.", "user": "Hi."},
        {"system": "Be terse.", "user_prompt": "Hi.", "user": "customer-1"},
    ):
        await gateway.call_llm(**arguments, cache="refresh", max_tokens=5)
        request = vendor.calls[-1][1]
        assert [each["content"] for each in request.messages] == ["Be terse.", "Hi."]
        assert request.params["max_tokens"] == 5
    assert request.params["user"] == "customer-1"  # beside the prompt, it is OpenAI's parameter
    assert await gateway.call_llm("Be terse.", "Hi.", 0.5)
    for wrong in ({}, {"system": "a", "system_prompt": "b", "user": "c"}):
        with pytest.raises(RequestRejectedError):
            await gateway.call_llm(**wrong)
    assert [*inspect.signature(call_llm).parameters] == [
        *inspect.signature(AsyncGateway.call_llm).parameters
    ][1:]


def test_an_item_is_answered_or_failed():
    response = ChatResponse(Completion("", "m", ()), "a")
    make: typing.Any = BatchItem  # to checkers it is a union of two
    answered, failed = make(0, "0", "Hi.", response), make(1, "1", "Hi.", error=ValueError("x"))
    assert (type(answered), type(failed)) == (AnsweredItem, FailedItem)
    assert (answered.ok, failed.ok) == (True, False)
    for item in (answered, failed):
        assert isinstance(item, BatchItem)
        assert "Hi." not in repr(item)
        assert type(copy.copy(item)) is type(item)
    assert pickle.loads(pickle.dumps(answered)) == answered
    assert isinstance(dataclasses.replace(answered, response=None, error=OSError()), FailedItem)


async def test_vectors_are_cached_if_asked_for(gateway, vendor, clock):
    first = await gateway.embed(["one", "two"])
    assert not (await gateway.embed(["one", "two"])).cached
    assert vendor.called() == 2

    kept = await gateway.embed(["one", "two"], cache=True, agent="market")
    again = await gateway.embed(["one", "two"], cache=True, agent="market")
    assert (kept.cached, again.cached, again.attempts, again.cost_usd) == (False, True, (), 0.0)
    assert again.vectors == first.vectors
    assert again.provider == "a"
    assert gateway.get_metrics()["cache_hits"] == 1
    assert not (await gateway.embed(["two", "one"], cache=True)).cached
    assert not (await gateway.embed(["one", "two"], cache=True, dimensions=2)).cached
    assert not (await gateway.embed(["one", "two"], cache="refresh")).cached
    await clock.advance(61)
    assert (await gateway.embed(["one", "two"], cache=True)).cached  # an hour, by the refresh
    await gateway.cache.clear()
    assert not (await gateway.embed(["one", "two"], cache=True, cache_ttl=5)).cached
    for wrong in ({"cache": "always"}, {"cache_ttl": 0}, {"agent": 3}):
        with pytest.raises(RequestRejectedError, match=next(iter(wrong))):
            await gateway.embed("a", **wrong)


async def test_cached_vectors_are_of_a_model_that_still_serves():
    vendor = ScriptedVendor()

    def serving(model, **extra):
        embedder = LLMConfig(
            "openai_compatible",
            model,
            name="e",
            aliases=("embedder",),
            api_base="http://127.0.0.1:9/v1",
            api_key="k",
            extra=extra,
        )
        return AsyncGateway([embedder], vendor=vendor)

    async def embedded(gateway):
        found = await gateway.embed(["a"], model="embedder", cache=True)
        return found.model, found.cached

    old = serving("old-model")
    assert await embedded(old) == ("old-model", False)
    same = serving("old-model")
    same.take_over(old)
    assert await embedded(same) == ("old-model", True)
    new = serving("new-model")
    new.take_over(same)
    assert await embedded(new) == ("new-model", False)
    shorter = serving("new-model", dimensions=2)
    shorter.take_over(new)
    assert await embedded(shorter) == ("new-model", False)
    shorter.add_provider(LLMConfig("openai", "third", aliases=("embedder",), api_key="k"))
    shorter.remove_provider("e")
    assert await embedded(shorter) == ("third", False)
    await shorter.aclose()


def test_public_signatures_name_public_types():
    rooms = (aigateway, events, settings)
    public = {id(getattr(room, name)) for room in rooms for name in room.__all__}
    hidden = set()
    for name in aigateway.__all__:
        thing = getattr(aigateway, name)
        members = [thing]
        if inspect.isclass(thing):
            own = [m for n, m in vars(thing).items() if n[0] != "_"]
            members += [getattr(m, "fget", None) or m for m in own]
        for member in members:
            if inspect.isclass(member) or inspect.isfunction(member):
                # What the clients of SDKs name is imported when it is used.
                for hint in typing.get_type_hints(member, localns=SDKS).values():
                    hidden |= {c.__name__ for c in classes(hint) if id(c) not in public}
    assert hidden <= FOR_TESTS_AND_THE_SERVICE


def classes(hint):
    """Classes of the package that a type names."""
    if inspect.isclass(hint) and hint.__module__.startswith("aigateway"):
        yield hint
    for part in typing.get_args(hint):
        yield from classes(part)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"temprature": 3}, 'no parameter "temprature"; did you mean "temperature"'),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"timeout": -1}, "timeout must be a finite number"),
        ({"response_format": list[int]}, "response_format must be a pydantic model class, or"),
        ({"response_format": int}, "response_format must be a pydantic model class, or"),
        ({"tools": [print]}, r"gateway\.run_tools\(prompt, tools=\[...\]\) calls functions"),
    ],
)
async def test_wrong_options_are_refused_by_a_call_and_when_they_are_bound(
    gateway, options, problem
):
    for refuse in (gateway.bind, partial(gateway.check, "hi")):
        with pytest.raises(RequestRejectedError, match=problem):
            refuse(**options)


async def test_a_bound_call_shows_its_options_and_finds_its_model_later(gateway):
    ask = gateway.bind(model="added-later", system="Be terse.")
    assert "bind(model, system)" in repr(ask)
    assert "terse" not in repr(ask)
    with pytest.raises(UnknownModelError):
        await ask("hi")
