"""Each recipe of `aigateway vendors` works, with what is odd at its vendor."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from aigateway import AsyncGateway, LLMConfig, errors
from aigateway.cli.vendors import RECIPES, recipe_of
from aigateway.errors import FailureKind
from tests.docs.pages import blocks
from tests.processes import PATIENCE
from tests.wires.vendor_stub import (
    DONE,
    VendorStub,
    always,
    answer,
    data,
    event,
    lead_to_loopback,
    pieces,
)

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
STREAMED = [
    event({"role": "assistant", "content": ""}),
    event({"content": "4"}),
    event({}, "stop"),
    data(
        {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": []}
        | {"usage": USAGE}
    ),
    DONE,
]


@pytest.fixture
async def stub(monkeypatch):
    lead_to_loopback(monkeypatch)
    async with VendorStub() as running:
        yield running


async def chat(config: LLMConfig, prompt: Any = "What is 2+2?", **options: Any) -> Any:
    async with AsyncGateway([config], retry_rounds=0, timeout=PATIENCE, cache_enabled=False) as g:
        return await g.chat(prompt, **options)


async def streamed(config: LLMConfig) -> Any:
    async with AsyncGateway([config], retry_rounds=0, timeout=PATIENCE) as gateway:
        async with gateway.stream("What is 2+2?") as stream:
            async for _ in stream:
                pass
        return stream.response


async def kind_of(config: LLMConfig, **options: Any) -> tuple[FailureKind, float | None]:
    with pytest.raises(errors.GatewayError) as caught:
        await chat(config, **options)
    (cause,) = caught.value.causes  # type: ignore[attr-defined]
    return cause.kind, cause.retry_after_seconds


COMPATIBLE = [r.name for r in RECIPES if r.table["provider"] == "openai_compatible"]


@pytest.mark.parametrize("name", COMPATIBLE)
async def test_a_recipe_answers_and_streams(stub, name):
    stub.reply = always(answer())
    reply = await chat(stub.config(name))
    path, headers, body = stub.asked[0]
    assert (reply.text, reply.provider) == ("4", recipe_of(name).table["name"])
    assert path.endswith("/v1/chat/completions")
    assert headers["Authorization"] == f"Bearer key-of-{name}"
    assert body.keys() == {"model", "messages"}  # nothing of `extra`
    assert (reply.cost_usd is None) == (name in {"openrouter", "vllm"})
    stub.reply = pieces(*STREAMED)
    reply = await streamed(stub.config(name))
    assert (reply.text, reply.usage.total_tokens) == ("4", 5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_guide_shows_the_recipe(recipe):
    if recipe.name not in {"openai", "azure", "gemini", "anthropic"}:
        assert recipe.toml() in {block.text for block in blocks("toml")}


# ── Mistral ──────────────────────────────────────────────────────────────────────────────────────


async def as_mistral(request, body):
    """Refuse what Mistral refuses, in its words."""
    words = {"object": "error", "param": None, "code": "3230", "type": "invalid_request_error"}
    messages = body["messages"]
    unknown = [f for m in messages for f in m if f in {"reasoning_content", "refusal"}]
    unknown += [name for name in body if name in {"seed", "stream_options", "user"}]
    if unknown:
        detail = [
            {"type": "extra_forbidden", "loc": ["body", f], "msg": "Extra inputs are not permitted"}
            for f in unknown
        ]
        return await always({**words, "message": {"detail": detail}, "code": None}, 422)(
            request, body
        )
    for call in (call for m in messages for call in m.get("tool_calls") or ()):
        if not re.fullmatch("[a-zA-Z0-9]{9}", call["id"]):
            text = f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9."
            return await always({**words, "message": text, "code": "3280"}, 400)(request, body)
    if messages[-1]["role"] == "assistant" and not messages[-1].get("prefix"):
        text = "Expected last role User or Tool (or Assistant with prefix True) for serving"
        return await always({**words, "message": text}, 400)(request, body)
    return await always(answer())(request, body)


async def test_mistral_gets_conversations_of_other_vendors_as_it_takes_them(stub):
    stub.reply = as_mistral
    call = {
        "id": "call_abcdefghij",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        | {"reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_abcdefghij", "content": "4"},
    ]
    assert (await chat(stub.config("mistral"), talk, tools=TOOLS, seed=1, user="u")).text == "4"
    result = stub.body["messages"][2]
    assert result["tool_call_id"] == stub.body["messages"][1]["tool_calls"][0]["id"]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer"}]
    assert (await chat(stub.config("mistral"), talk)).text == "4"
    assert stub.body["messages"][-1] == {**talk[-1], "prefix": True}


async def test_thoughts_of_mistral_are_no_text(stub):
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    stub.reply = pieces(event({"content": thought}), event({"content": "4"}, "stop", usage=USAGE))
    reply = await streamed(stub.config("mistral"))
    assert (reply.text, reply.reasoning) == ("4", "hm")


# ── Groq ─────────────────────────────────────────────────────────────────────────────────────────


async def test_groq_counts_in_a_field_of_its_own(stub):
    counted = {"x_groq": {"id": "req", "usage": USAGE | {"queue_time": 0.1}}}
    began = event({"role": "assistant", "content": ""}, x_groq={"id": "req"})
    stub.reply = pieces(began, event({"content": "4"}), event({}, "stop", **counted), DONE)
    reply = await streamed(stub.config("groq"))
    assert (reply.text, reply.usage.total_tokens) == ("4", 5)


async def test_groq_says_when_to_come_back(stub):
    text = "Rate limit reached on tokens per minute (TPM): Limit 8000. Please try again in 7.66s."
    error = {"error": {"message": text, "type": "tokens", "code": "rate_limit_exceeded"}}
    stub.reply = always(error, 429, retry_after="8", x_ratelimit_reset_requests="2m59.56s")
    assert await kind_of(stub.config("groq")) == (FailureKind.RATE_LIMITED, 8.0)
    error = {"error": {"message": "Failed to call a function.", "code": "tool_use_failed"}}
    stub.reply = always(error, 400)
    kind, _ = await kind_of(stub.config("groq"), tools=TOOLS)
    assert kind == FailureKind.INVALID_OUTPUT


# ── OpenRouter ───────────────────────────────────────────────────────────────────────────────────

PROCESSING = ": OPENROUTER PROCESSING\n\n"


async def test_openrouter_states_its_price_after_comments(stub):
    priced = event({"content": ""}, None, usage=USAGE | {"cost": 0.00014}, provider="Mistral")
    parts = (PROCESSING, PROCESSING, event({"content": "4"}), event({}, "stop"), priced, DONE)
    stub.reply = pieces(*parts)
    reply = await streamed(stub.config("openrouter"))
    assert (reply.text, reply.cost_usd) == ("4", 0.00014)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"error": {"message": "Provider returned error", "code": 502}}, 200, "server_error"),
        (answer("hal", "error"), 200, "server_error"),
        ({"error": {"message": "Insufficient credits. Add more", "code": 402}}, 402, "no_credit"),
        (
            {
                "error": {
                    "message": "Your input was flagged",
                    "code": 403,
                    "metadata": {"reasons": ["violence"]},
                }
            },
            403,
            "content_policy",
        ),
    ],
)
async def test_openrouter_fails_within_answers(stub, body, status, kind):
    if "choices" in body:
        body["choices"][0]["error"] = {"code": 502, "message": "Upstream error"}
    stub.reply = always(body, status)
    assert (await kind_of(stub.config("openrouter")))[0] == kind


async def test_openrouter_fails_within_streams(stub):
    broken = event({"content": ""}, "error", error={"code": "server_error", "message": "gone"})
    stub.reply = pieces(PROCESSING, broken, DONE)
    with pytest.raises(errors.AllProvidersFailedError):
        await streamed(stub.config("openrouter"))
    stub.reply = pieces(event({"content": "hal"}), broken, DONE)
    with pytest.raises(errors.StreamInterruptedError) as caught:
        await streamed(stub.config("openrouter"))
    assert caught.value.text == "hal"


# ── DeepSeek ─────────────────────────────────────────────────────────────────────────────────────


async def test_deepseek_keeps_a_request_waiting(stub):
    message = {"role": "assistant", "content": "4", "reasoning_content": "hm"}
    whole = json.dumps(answer(message, usage=USAGE | {"prompt_cache_hit_tokens": 2}))
    stub.reply = pieces("\n", "\n", whole, kind="application/json", pause=0.01)
    reply = await chat(stub.config("deepseek"))
    assert (reply.text, reply.reasoning, reply.usage.cached_tokens) == ("4", "hm", 2)
    thought = event({"role": "assistant", "content": None, "reasoning_content": "hm"})
    said = event({"content": "4", "reasoning_content": None})
    stub.reply = pieces(": keep-alive\n\n", thought, said, event({}, "stop", usage=USAGE), DONE)
    reply = await streamed(stub.config("deepseek"))
    assert (reply.text, reply.reasoning) == ("4", "hm")


async def test_deepseek_thinks_unless_it_is_told_not_to(stub):
    stub.reply = always(answer())
    config = stub.config("deepseek")
    reply = await chat(config)
    assert reply.cost_usd == pytest.approx((3 * 0.30 + 2 * 1.20) / 1e6)  # of the peak hours
    off = {"thinking": {"type": "disabled"}}
    await chat(stub.config("deepseek", extra={**config.extra, "extra_body": off}))
    await chat(config, extra_body=off)
    assert [body.get("thinking") for _, _, body in stub.asked] == [
        None,
        *off.values(),
        *off.values(),
    ]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (
            {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}},
            402,
            "no_credit",
        ),
        (answer("hal", "insufficient_system_resource"), 200, "bad_answer"),
        (
            {"error": {"message": "Service is too busy", "type": "service_unavailable_error"}},
            503,
            "server_error",
        ),
    ],
)
async def test_deepseek_fails(stub, body, status, kind):
    stub.reply = always(body, status)
    assert (await kind_of(stub.config("deepseek")))[0] == kind


# ── Ollama and vLLM ──────────────────────────────────────────────────────────────────────────────


def of_ollama(text: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": "api_error", "param": None, "code": None}}


def of_vllm(text: str, code: int = 400) -> dict[str, Any]:
    return {"object": "error", "message": text, "type": "BadRequestError", "code": code}


@pytest.mark.parametrize(
    ("name", "body", "status", "kind"),
    [
        (
            "ollama",
            of_ollama('model "llama3.1" not found, try pulling it first'),
            404,
            "model_not_found",
        ),
        ("ollama", of_ollama("library/gemma:2b does not support tools"), 400, "unsupported"),
        ("vllm", of_vllm("The model `Qwen/Qwen3-8B` does not exist.", 404), 404, "model_not_found"),
        (
            "vllm",
            of_vllm(
                "This model's maximum context length is 6048 tokens. However, you requested 6616"
                " tokens (568 in the messages, 6048 in the completion)."
            ),
            400,
            "context_window",
        ),
        (
            "vllm",
            of_vllm('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'),
            400,
            "unsupported",
        ),
    ],
)
async def test_local_servers_fail(stub, name, body, status, kind):
    stub.reply = always(body, status)
    assert (await kind_of(stub.config(name), tools=TOOLS))[0] == kind


async def test_a_model_that_has_to_be_loaded_first_gets_its_time():
    recipe = recipe_of("ollama")
    async with AsyncGateway([LLMConfig(**recipe.table)], **recipe.gateway) as gateway:
        settings = gateway.settings
        assert recipe.table["timeout"] == settings.first_token_timeout == 300
        assert settings.timeout > 300


async def test_vllm_says_more_than_openai(stub):
    message = {"role": "assistant", "content": "4", "reasoning_content": "hm", "tool_calls": []}
    body = answer(message, prompt_logprobs=None, kv_transfer_params=None)
    body["choices"][0] |= {"stop_reason": None, "token_ids": None, "logprobs": None}
    stub.reply = always(body)
    reply = await chat(stub.config("vllm", api_key=None))
    assert (reply.text, reply.reasoning) == ("4", "hm")
    parts = (
        event({"content": "<thi"}),
        event({"content": "nk>hm</think>"}),
        event({"content": "4"}),
    )
    stub.reply = pieces(*parts, event({}, "stop", usage=USAGE), DONE)
    reply = await streamed(stub.config("vllm"))
    assert (reply.text, reply.reasoning) == ("4", "hm")


# ── clouds: tests/clients/test_clouds.py has the packages ────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("bedrock", "boto3", 'boto3; pip install "aigateway[bedrock]"'),
        (
            "vertex_ai",
            "google.auth",
            'google-auth; pip install "aigateway[vertex]"',
        ),
    ],
)
async def test_a_missing_package_is_named(stub, monkeypatch, name, module, words):
    for each in (module, "botocore", *(m for m in sys.modules if m.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, each, None)
    config = stub.config(name, api_key=None, api_base=f"http://127.0.0.1:{stub.port}")
    with pytest.raises(errors.AllProvidersFailedError) as caught:
        await chat(config)
    assert f"(missing_package: {words})" in str(caught.value)
    assert stub.asked == []
