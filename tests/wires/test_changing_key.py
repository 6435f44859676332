"""A key that comes from a function: asked when it is due, and after the vendor has refused it."""

import asyncio
import base64
import json
import threading

import pytest

from aigateway import AsyncGateway, ConfigurationError, FailureKind, LLMConfig
from aigateway.errors import AllProvidersFailedError
from aigateway.messages import ChatRequest
from aigateway.simulator import Fault
from aigateway.testing import FakeClock
from aigateway.wires.client import ASK_AGAIN, ChangingKeyClient, VendorCallError
from aigateway.wires.direct_lane import DirectClient
from aigateway.wires.litellm.lane import LiteLLMClient
from tests.processes import PATIENCE

HEADERS = {
    "openai": "authorization",
    "azure": "api-key",
    "gemini": "x-goog-api-key",
    "anthropic": "x-api-key",
}


class Keys:
    """Gives one key after the other, and the last one again and again."""

    def __init__(self, *keys):
        self.keys = list(keys)
        self.asked = 0

    def __call__(self):
        self.asked += 1
        key = self.keys.pop(0) if len(self.keys) > 1 else self.keys[0]
        if isinstance(key, Exception):
            raise key
        return key


def sent(vendor, header=None):
    name = header or HEADERS[vendor.wire]
    found = [{n.lower(): v for n, v in r.headers.items()}.get(name, "") for r in vendor.received]
    return [value.removeprefix("Bearer ") for value in found]


@pytest.fixture
async def make():
    made = []

    def gateway(*configs, **settings):
        settings = {"cache_enabled": False, "retry_rounds": 0} | settings
        made.append(AsyncGateway(configs, **settings))
        return made[-1]

    yield gateway
    for each in made:
        await each.aclose()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_its_key_goes_to_every_vendor(vendor, make, asynchronous):
    keys = Keys("key-one")

    async def later():
        await asyncio.sleep(0)
        return keys()

    gateway = make(vendor.config(api_key=later if asynchronous else keys))
    await gateway.warmup()
    assert keys.asked == 0, "it is part of the first call"
    await gateway.chat("hi")
    async with gateway.stream("hi") as stream:
        assert [chunk async for chunk in stream]
    assert sent(vendor) == ["key-one", "key-one"]
    assert keys.asked == 1


@pytest.mark.parametrize("operation", ["chat", "stream", "embed"])
async def test_it_is_asked_again_after_a_401(simulator, make, operation):
    vendor, keys = simulator.openai, Keys("old-key", "new-key")
    vendor.behave(Fault.status(401), times=1)
    embeds = {"model": vendor.embedding_model} if operation == "embed" else {}
    gateway = make(vendor.config(api_key=keys, **embeds))
    if operation == "chat":
        await gateway.chat("hi")
    elif operation == "embed":
        await gateway.embed("hi")
    else:
        async with gateway.stream("hi") as stream:
            assert [chunk async for chunk in stream]
    assert sent(vendor) == ["old-key", "new-key"]
    assert keys.asked == 2


async def test_many_that_are_refused_at_once_ask_once(simulator, make):
    vendor, keys = simulator.openai, Keys("old-key", "new-key")
    gateway = make(vendor.config(api_key=keys))
    await gateway.chat("hi")
    vendor.behave(Fault.status(401), times=5)
    replies = await asyncio.gather(*(gateway.chat(f"hi {n}") for n in range(5)))
    assert len(replies) == 5
    assert keys.asked == 2


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_what_was_learned_of_the_provider_outlives_the_key(simulator, lane):
    vendor, clock, keys = simulator.openai, FakeClock(), Keys("key-one", "key-two")
    refusal = "Unrecognized request argument supplied: seed"
    vendor.behave(Fault.status(400, message=refusal), times=1)
    client = ChangingKeyClient(vendor.config(api_key=keys), clock, lane)
    await client.prepare()
    asked = ChatRequest(({"role": "user", "content": "hi"},), params={"seed": 1})
    with pytest.raises(VendorCallError):
        await client.chat(asked)
    used_up = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
    vendor.headers = used_up
    await client.chat(asked)
    # As after a 401; the headers of the next call would be the latest.
    await client._with_key(instead_of=client._client)
    assert client.pause() == pytest.approx(30)
    await client.chat(asked)
    assert sent(vendor) == ["key-one", "key-one", "key-two"]
    assert ["seed" in request.body for request in vendor.received] == [True, False, False]
    await client.aclose()


async def test_a_key_that_stays_refused_is_a_failure(simulator, make):
    vendor, keys = simulator.openai, Keys("the-key")
    vendor.behave(Fault.status(401))
    with pytest.raises(AllProvidersFailedError) as caught:
        await make(vendor.config(api_key=keys)).chat("hi")
    assert [cause.kind for cause in caught.value.causes] == [FailureKind.AUTHENTICATION]
    assert sent(vendor) == ["the-key"], "the same key is not sent twice"


async def test_it_is_asked_again_after_a_minute_and_a_failure_keeps_the_key(simulator):
    vendor = simulator.openai
    keys = Keys("key-one", RuntimeError("secret words"), "key-two")
    clock = FakeClock()
    async with AsyncGateway(
        [vendor.config(api_key=keys)], clock=clock, cache_enabled=False
    ) as gateway:
        for seconds in (0, ASK_AGAIN - 1, 1, ASK_AGAIN):
            clock.tick(seconds)
            await gateway.chat("hi")
    assert sent(vendor) == ["key-one", "key-one", "key-one", "key-two"]
    assert keys.asked == 3


@pytest.mark.parametrize(
    "key", [RuntimeError("secret words"), "", "two words", "line\n", None, 7, b"bytes"]
)
async def test_without_a_key_the_next_provider_is_asked(simulator, make, caplog, key):
    keys = Keys(key, "a-good-key")
    gateway = make(
        simulator.openai.config(api_key=keys, priority=2), simulator.anthropic.config(priority=1)
    )
    reply = await gateway.chat("hi")
    first, second = reply.attempts
    assert (first.failure, second.failure) == (FailureKind.UNKNOWN, None)
    assert sent(simulator.openai) == []
    assert "api_key function of provider" in caplog.text
    assert "secret words" not in caplog.text
    await gateway.chat("hi")
    assert sent(simulator.openai) == ["a-good-key"]


async def test_a_call_that_waits_for_a_key_ends_in_its_time(simulator, make):
    async def never():
        await asyncio.Event().wait()

    gateway = make(
        simulator.openai.config(api_key=never, priority=2, timeout=0.2),
        simulator.anthropic.config(priority=1),
    )
    reply = await gateway.chat("hi")
    assert [a.failure for a in reply.attempts] == [FailureKind.TIMEOUT, None]


def token(name):
    parts = ({"alg": "RS256"}, {"aud": name}, {"signature": name})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
    return ".".join(part.decode().rstrip("=") for part in encoded)


@pytest.mark.parametrize("lane", [DirectClient, LiteLLMClient])
async def test_a_token_of_entra_id_is_a_bearer_token(simulator, lane):
    vendor, keys = simulator.azure, Keys(token("one"), token("two"))
    vendor.behave(None, Fault.status(401), None)

    def connect(config, clock):
        return ChangingKeyClient(config, clock, lane)

    async with AsyncGateway(
        [vendor.config(api_key=keys)], vendor=connect, cache_enabled=False
    ) as gateway:
        await gateway.chat("hi")
        await gateway.chat("hi")
    assert sent(vendor, "authorization") == [token("one"), token("one"), token("two")]
    assert sent(vendor, "api-key") == [""] * 3


def test_litellms_own_way_is_refused_with_ours():
    with pytest.raises(ConfigurationError, match="give the function as api_key"):
        LLMConfig(
            "azure",
            "d",
            api_key="k",
            api_base="https://x.openai.azure.com",
            extra={"azure_ad_token_provider": lambda: "t"},
        )


def test_a_function_is_neither_shown_nor_written():
    config = LLMConfig("openai", "m", api_key=Keys("secret-key"))
    assert "api_key='<function>'" in repr(config)
    assert json.loads(config.model_dump_json())["api_key"] == "**********"
    assert LLMConfig(**config.model_dump()) == config


async def test_a_function_that_is_not_async_holds_up_nobody(simulator, make):
    """It may ask a vault over the network."""
    asked = threading.Event()

    def slow():
        asked.wait(PATIENCE)
        return "k"

    config = simulator.openai.config(api_key=slow)
    gateway = make(config)
    await gateway.warmup()
    reply = asyncio.create_task(gateway.chat("hi"))
    await asyncio.sleep(0.05)  # comes back while the function waits
    asked.set()
    assert (await reply).text


async def test_a_function_that_fails_is_named(simulator, make):
    def broken():
        raise LookupError("sk-secret")

    with pytest.raises(AllProvidersFailedError) as caught:
        await make(simulator.openai.config(api_key=broken)).chat("hi")
    (cause,) = caught.value.causes
    assert cause.code == "api_key_function_failed"
    assert cause.detail == "The function given as api_key gave no key: LookupError."


async def test_a_function_that_raises_stop_iteration_is_a_failure(make, simulator):
    keys = iter(())
    gateway = make(simulator.openai.config(api_key=lambda: next(keys)))
    with pytest.raises(AllProvidersFailedError) as caught:
        await asyncio.wait_for(gateway.chat("hi"), PATIENCE)
    assert caught.value.causes[0].code == "api_key_function_failed"
