"""One adapter per library: a context that gives `ask(prompt) -> text`.

Single clients speak to one server, for what a call costs; pairs have a primary and a backup, for
what failover costs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import aiohttp
import litellm
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from aigateway import AsyncGateway, LLMConfig
from benchmarks.listeners import litellm_put_back, nobody_listens

Ask = Callable[[str], Awaitable[str]]
Client = AbstractAsyncContextManager[Ask]

KEY = "sk-loopback"
MODEL = "gpt-4o-mini"
MODELS = {"openai": MODEL, "anthropic": "claude-haiku-4-5", "gemini": "gemini-3.5-flash-lite"}
MANY = 1000
"""Room for every caller that a benchmark has, so that no figure is that of a queue."""


def messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


# ── one server ───────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def raw_aiohttp(root: str, wire: str = "openai") -> AsyncIterator[Ask]:
    """The floor: one pooled session, a dict to JSON, JSON to a dict."""
    path, headers, body, text = _RAW[wire]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(prompt: str) -> str:
            payload = json.dumps(body(prompt)).encode()
            async with session.post(root + path, data=payload) as answer:
                answer.raise_for_status()
                return text(json.loads(await answer.read()))

        yield ask


_JSON = {"Content-Type": "application/json"}
_RAW: Mapping[str, tuple[str, dict[str, str], Callable[[str], Any], Callable[[Any], str]]] = {
    "openai": (
        "/v1/chat/completions",
        {**_JSON, "Authorization": f"Bearer {KEY}"},
        lambda prompt: {"model": MODEL, "messages": messages(prompt)},
        lambda answer: answer["choices"][0]["message"]["content"],
    ),
    "anthropic": (
        "/v1/messages",
        {**_JSON, "x-api-key": KEY, "anthropic-version": "2023-06-01"},
        lambda prompt: {
            "model": MODELS["anthropic"],
            "max_tokens": 4096,
            "messages": messages(prompt),
        },
        lambda answer: answer["content"][0]["text"],
    ),
    "gemini": (
        f"/v1beta/models/{MODELS['gemini']}:generateContent",
        {**_JSON, "x-goog-api-key": KEY},
        lambda prompt: {"contents": [{"role": "user", "parts": [{"text": prompt}]}]},
        lambda answer: answer["candidates"][0]["content"]["parts"][0]["text"],
    ),
}


@contextlib.asynccontextmanager
async def aigateway(root: str, wire: str = "openai", **settings: Any) -> AsyncIterator[Ask]:
    """Everything on, as by default, unless settings say else: cache, circuit, metrics, limiter."""
    nobody_listens()
    base = root + ("/v1" if wire == "openai" else "")
    config = LLMConfig(wire, MODELS[wire], api_key=KEY, api_base=base)
    async with AsyncGateway([config], max_concurrency=MANY, **settings) as gateway:
        await gateway.warmup()

        async def ask(prompt: str) -> str:
            return (await gateway.chat(prompt)).text

        yield ask


@contextlib.asynccontextmanager
async def openai_sdk(root: str) -> AsyncIterator[Ask]:
    async with AsyncOpenAI(api_key=KEY, base_url=f"{root}/v1", max_retries=0) as client:

        async def ask(prompt: str) -> str:
            answer = await client.chat.completions.create(model=MODEL, messages=messages(prompt))
            return answer.choices[0].message.content

        yield ask


@contextlib.asynccontextmanager
async def litellm_call(root: str, **options: Any) -> AsyncIterator[Ask]:
    async def ask(prompt: str) -> str:
        answer = await litellm.acompletion(
            model=f"openai/{MODEL}",
            messages=messages(prompt),
            api_key=KEY,
            api_base=f"{root}/v1",
            num_retries=0,
            max_retries=0,
            **options,
        )
        return answer.choices[0].message.content

    yield ask


@contextlib.asynccontextmanager
async def litellm_router(root: str) -> AsyncIterator[Ask]:
    with litellm_put_back():
        router = litellm.Router(model_list=[_deployment("llm", root)], num_retries=0)
        yield _routed(router, "llm")


# ── a primary and a backup ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pair:
    """Where the two are, and what each library is set to where it can be."""

    primary: str
    backup: str
    attempt_timeout: float = 1.0
    reset_seconds: float = 1.0


@contextlib.asynccontextmanager
async def aigateway_pair(pair: Pair, **options: Any) -> AsyncIterator[Ask]:
    nobody_listens()
    roots = {"primary": (pair.primary, 2), "backup": (pair.backup, 1)}
    configs = [
        LLMConfig("openai", MODEL, api_key=KEY, api_base=f"{root}/v1", priority=rank, name=name)
        for name, (root, rank) in roots.items()
    ]
    settings = {
        "attempt_timeout": pair.attempt_timeout,
        "reset_timeout_seconds": pair.reset_seconds,
        "max_open_seconds": pair.reset_seconds,  # the others do not double it either
        **options,
    }
    async with AsyncGateway(configs, **settings) as gateway:
        await gateway.warmup()

        async def ask(prompt: str) -> str:
            return (await gateway.chat(prompt)).text

        yield ask


@contextlib.asynccontextmanager
async def litellm_router_best(pair: Pair, **options: Any) -> AsyncIterator[Ask]:
    """`order` and a cooldown at the first failure, retries off."""
    with litellm_put_back():
        router = litellm.Router(
            model_list=[
                _deployment("llm", pair.primary, order=1, timeout=pair.attempt_timeout),
                _deployment("llm", pair.backup, order=2, timeout=pair.attempt_timeout),
            ],
            num_retries=0,
            allowed_fails=0,
            cooldown_time=pair.reset_seconds,
            **options,
        )
        yield _routed(router, "llm")


@contextlib.asynccontextmanager
async def litellm_router_defaults(pair: Pair) -> AsyncIterator[Ask]:
    """`fallbacks`, and everything else as it comes."""
    with litellm_put_back():
        router = litellm.Router(
            model_list=[
                _deployment(
                    "primary", pair.primary, max_retries=None, timeout=pair.attempt_timeout
                ),
                _deployment("backup", pair.backup, max_retries=None, timeout=pair.attempt_timeout),
            ],
            fallbacks=[{"primary": ["backup"]}],
        )
        yield _routed(router, "primary")


@contextlib.asynccontextmanager
async def langchain_fallbacks(pair: Pair) -> AsyncIterator[Ask]:
    primary, backup = (
        ChatOpenAI(
            model=MODEL,
            api_key=KEY,
            base_url=f"{root}/v1",
            timeout=pair.attempt_timeout,
            max_retries=0,
        )
        for root in (pair.primary, pair.backup)
    )
    chain = primary.with_fallbacks([backup])

    async def ask(prompt: str) -> str:
        return (await chain.ainvoke(prompt)).content

    yield ask


@contextlib.asynccontextmanager
async def pydantic_ai_fallback(pair: Pair) -> AsyncIterator[Ask]:
    async with contextlib.AsyncExitStack() as stack:
        models = []
        for root in (pair.primary, pair.backup):
            client = AsyncOpenAI(
                api_key=KEY, base_url=f"{root}/v1", max_retries=0, timeout=pair.attempt_timeout
            )
            await stack.enter_async_context(client)
            models.append(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)))
        model = FallbackModel(*models)

        async def ask(prompt: str) -> str:
            answer = await model_request(model, [ModelRequest.user_text_prompt(prompt)])
            return answer.parts[0].content

        yield ask


def _deployment(name: str, root: str, **options: Any) -> dict[str, Any]:
    base = {"model": f"openai/{MODEL}", "api_key": KEY, "api_base": f"{root}/v1", "max_retries": 0}
    given = {key: value for key, value in {**base, **options}.items() if value is not None}
    return {"model_name": name, "litellm_params": given}


def _routed(router: Any, name: str) -> Ask:
    async def ask(prompt: str) -> str:
        answer = await router.acompletion(model=name, messages=messages(prompt))
        return answer.choices[0].message.content

    return ask


OURS = "aigateway"
HEDGED = "aigateway, hedging"
FLOOR = "raw aiohttp + json"
SINGLES: Mapping[str, Callable[[str], Client]] = {
    FLOOR: raw_aiohttp,
    OURS: aigateway,
    "openai SDK": openai_sdk,
    "litellm.acompletion": litellm_call,
    "litellm.Router": litellm_router,
}
ROUTER_DEFAULTS = "litellm Router, fallbacks, defaults"
LANGCHAIN = "LangChain with_fallbacks, retries off"
ROUTER_BEST = "litellm Router, order + cooldown, retries off"
PAIRS: Mapping[str, Callable[[Pair], Client]] = {
    OURS: aigateway_pair,
    ROUTER_BEST: litellm_router_best,
    LANGCHAIN: langchain_fallbacks,
    "pydantic-ai FallbackModel, retries off": pydantic_ai_fallback,
    ROUTER_DEFAULTS: litellm_router_defaults,
}
