"""OpenAI's older completions, at providers that only chat, through the official SDK."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from aigateway import AsyncGateway, LLMConfig, RequestRejectedError
from aigateway.errors import FailureKind
from aigateway.messages import Choice, Completion, Usage
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.testing import ScriptedStream, ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.callers import api_key, bearer
from tests.server.running import running
from tests.server.services import scripted, served


@pytest.fixture
async def sdk(simulator):
    """The SDK, in front of a simulated vendor that echoes in its own way."""
    async with (
        served(simulator.openai, server={"pass_params": ["min_p"]}) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


async def test_a_whole_completion(sdk, simulator):
    done = await sdk.completions.create(
        model="auto",
        prompt="Once upon",
        max_tokens=20,
        stop=["\n"],
        n=2,
        temperature=0.5,
        logprobs=1,
        user="u",
        extra_body={"min_p": 0.1},
    )
    (received,) = simulator.openai.received
    assert received.path == "/v1/chat/completions"
    assert received.body["messages"] == [{"role": "user", "content": "Once upon"}]
    wanted = {"max_tokens": 20, "stop": ["\n"], "n": 2, "top_logprobs": 1, "min_p": 0.1}
    assert {**received.body, **wanted} == received.body
    assert (done.object, done.id[:5], len(done.choices)) == ("text_completion", "chatc", 2)
    assert [choice.index for choice in done.choices] == [0, 1]
    first = done.choices[0]
    assert first.text
    assert first.finish_reason == "stop"
    assert "".join(first.logprobs.tokens) == first.text
    assert len(first.logprobs.token_logprobs) == len(first.logprobs.text_offset)
    assert first.logprobs.text_offset[:2] == [0, len(first.logprobs.tokens[0])]
    assert all(len(tops) == 1 for tops in first.logprobs.top_logprobs)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


async def test_a_streamed_completion_is_the_whole_one(sdk):
    options = {"model": "auto", "prompt": "Once upon", "echo": True}
    whole = await sdk.completions.create(**options)
    pieces = [
        piece
        async for piece in await sdk.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    ]
    text = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert text == whole.choices[0].text
    assert text.startswith("Once upon")
    ends = [choice.finish_reason for piece in pieces for choice in piece.choices]
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    assert {piece.object for piece in pieces} == {"text_completion"}
    assert pieces[-1].choices == []
    assert pieces[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(piece.usage is None for piece in pieces[:-1])


def completion(text, **fields):
    choice = Choice(text=text, finish_reason="stop")
    return Completion("", "m", (choice,), Usage(1, 2, 3), **fields)


@pytest.fixture
async def client(vendor):
    server = {"keys": [api_key("web", rpm=5)]}
    async with (
        scripted(vendor, server=server) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers=bearer("web")) as made,
    ):
        yield made


async def test_several_prompts_are_several_requests(client, vendor):
    body = {"prompt": ["a", "b", "c"], "model": "auto"}
    headers = {"x-aigateway-timeout": "30"}
    answer = await client.post("/v1/completions", json=body, headers=headers)
    asked = sorted(request.messages[0]["content"] for _, request in vendor.calls)
    ids = {request.request_id for _, request in vendor.calls}
    done = answer.json()
    assert asked == ["a", "b", "c"]
    assert len(ids) == 3
    assert [choice["index"] for choice in done["choices"]] == [0, 1, 2]
    assert done["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert answer.headers["x-aigateway-attempts"] == "3"
    assert answer.headers["x-aigateway-cost"] == "0.003"
    # Each counts for the rate of the key; where not all fit, none is asked.
    refused = await client.post("/v1/completions", json={**body, "prompt": ["d", "e", "f"]})
    assert refused.status_code == 429
    assert len(vendor.calls) == 3


async def test_several_prompts_get_all_answers_or_an_error(client, vendor):
    vendor.always("a", FailureKind.REJECTED)
    answer = await client.post("/v1/completions", json={"prompt": ["a", "b"]})
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no prompt": ({}, "prompt"),
    "empty": ({"prompt": ""}, "prompt[0]"),
    "empty list": ({"prompt": []}, "prompt"),
    "mixed": ({"prompt": ["a", 1]}, "prompt[1]"),
    "an object": ({"prompt": {"a": 1}}, "prompt"),
    "too many": ({"prompt": ["a"] * 129}, "prompt"),
    "too many token lists": ({"prompt": [[1]] * 129}, "prompt"),
    "a chat": ({"prompt": "a", "messages": []}, "messages"),
    "several streamed": ({"prompt": ["a", "b"], "stream": True}, "prompt"),
    "unknown": ({"prompt": "a", "min_p": 1}, "min_p"),
    "steering": ({"prompt": "a", "api_base": "http://127.0.0.1:9"}, "api_base"),
    "logprobs of a chat": ({"prompt": "a", "logprobs": True}, "logprobs"),
    "negative": ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    "best of fewer": ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
}


async def test_what_makes_no_sense_is_refused(client, vendor):
    for name, (body, param) in REFUSED.items():
        for stream in (False, True):
            answer = await client.post("/v1/completions", json={"stream": stream, **body})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), name
    assert not vendor.calls


async def test_the_library_completes_too():
    vendor = ScriptedVendor()
    vendor.script(
        "a", completion("there was", system_fingerprint="fp"), ScriptedStream("the", "re")
    )
    body = {"prompt": "Once ", "echo": True}
    async with AsyncGateway(scripted_configs("a"), vendor=vendor) as gateway:
        whole = await gateway.completions(body)
        async with gateway.stream_completions(body, cache=False) as events:
            texts = [
                event.data["choices"][0]["text"]
                async for event in events
                if not event.raw.startswith(b"data: [DONE]")
            ]
        for fault in ({"prompt": ["a", "b"]}, {"prompt": "a", "min_p": 1}, {}):
            with pytest.raises(RequestRejectedError):
                await gateway.completions(fault)
    assert whole.body["choices"][0]["text"] == "Once there was"
    assert whole.body["system_fingerprint"] == "fp"
    assert whole.body["id"] == f"cmpl-{whole.response.request_id}"
    assert texts == ["Once the", "re", ""]


# ── a server that only completes ─────────────────────────────────────────────────────────────


class Completer:
    """An OpenAI-compatible server that has `/v1/completions` and nothing else."""

    def __init__(self):
        self.bodies: list[Any] = []
        self.fails = False
        self.base = ""

    async def answer(self, request):
        if self.fails:
            return web.Response(status=500)
        body = await request.json()
        self.bodies.append(body)
        whole = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "base-x"}
        done = {"index": 0, "text": f"<{body['prompt']}>", "finish_reason": "stop", "own": 1}
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        whole |= {"choices": [done], "usage": usage}
        if not body.get("stream"):
            return web.json_response(whole)
        text = f"data: {json.dumps(whole)}\n\ndata: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")


@pytest.fixture
async def completer():
    made, app = Completer(), web.Application()
    app.router.add_post("/v1/completions", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    await runner.cleanup()


async def test_a_server_without_chat_gets_completions_as_they_are(completer, simulator):
    base = LLMConfig(
        provider="openai_compatible",
        model="base-x",
        api_base=completer.base,
        operations={"completions"},
        priority=9,
    )
    configs = [base, simulator.openai.config()]
    async with AsyncGateway(configs, retry_rounds=0, cache_enabled=False) as gateway:
        service = Service(gateway, ServerSettings(pass_params=["min_p"]))
        async with (
            running(service) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk,
        ):
            create: Any = sdk.completions.create
            asked: Any = {"prompt": "a", "suffix": "z", "echo": True, "best_of": 2, "logprobs": 1}
            whole = await create(model="auto", extra_body={"min_p": 0.1}, **asked)
            tokens = await create(model="base-x", prompt=[1, 2, 3], max_tokens=0, echo=True)
            several = await create(model="auto", prompt=["a", "b"])
            pieces = [each async for each in await create(model="auto", prompt="a", stream=True)]
            chat = await sdk.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "hi"}]
            )
            # What a chat can do as well goes to another provider, and what only a server like this
            # can do does not.
            completer.fails = True
            other = await create(model="auto", prompt="one two")
            with pytest.raises(openai.APIStatusError):
                await create(model="auto", prompt=[1, 2, 3])
            with pytest.raises(openai.BadRequestError, match="suffix"):
                await create(model=simulator.openai.config().model, prompt="a", suffix="z")
    sent = completer.bodies
    assert {**sent[0], **asked, "min_p": 0.1, "model": "base-x"} == sent[0]
    assert (whole.choices[0].text, whole.choices[0].own) == ("<a>", 1)
    assert (sent[1]["prompt"], sent[1]["max_tokens"]) == ([1, 2, 3], 0)
    assert tokens.choices[0].text == "<[1, 2, 3]>"
    assert [choice.text for choice in several.choices] == ["<a>", "<b>"]
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.usage.total_tokens == 6
    assert [piece.choices[0].text for piece in pieces] == ["<a>"]
    assert chat.choices[0].message.content  # of the other provider
    assert other.choices[0].text
    assert "<" not in other.choices[0].text
