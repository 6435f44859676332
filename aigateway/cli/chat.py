"""`aigateway chat`: one question, one answer."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import typer

from aigateway.cli.outcome import explained, note
from aigateway.cli.simulated import simulated_gateway
from aigateway.gateway import AsyncGateway
from aigateway.messages import ChatResponse

__all__ = ["Question", "run_chat"]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt (or "-"), and the keywords of `AsyncGateway.chat`."""

    prompt: str
    options: Mapping[str, Any]


def run_chat(question: Question, *, as_json: bool, simulate: bool) -> None:
    """Ask, print, and exit with a code that says how it went."""
    prompt = _standard_input() if question.prompt == "-" else question.prompt
    with explained():
        reply = asyncio.run(_ask(prompt, question.options, simulate=simulate))
        if as_json:
            typer.echo(json.dumps(_plain(reply), indent=2))
            return
        typer.echo(reply.text)  # as it is: rich would wrap it and read its brackets as markup
        note(_summary(reply))


async def _ask(prompt: str, options: Mapping[str, Any], *, simulate: bool) -> ChatResponse:
    if simulate:
        async with simulated_gateway() as (gateway, _):
            return await gateway.chat(prompt, **options)
    async with AsyncGateway() as gateway:
        return await gateway.chat(prompt, **options)


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is no text in this locale's encoding") from None


def _summary(reply: ChatResponse) -> str:
    usage = reply.usage
    cost = "price unknown" if reply.cost_usd is None else f"${reply.cost_usd:.6f}"
    parts = [
        reply.provider,
        # What the vendors took; `latency_seconds` has the loading of litellm in it.
        f"{sum(attempt.latency_seconds for attempt in reply.attempts):.2f} s",
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        cost,
    ]
    if reply.finish_reason not in {None, "stop"}:
        parts.append(f"ended by {reply.finish_reason}")
    failed = [f"{a.provider}: {a.failure}" for a in reply.attempts if not a.ok]
    if failed:
        parts.append(f"after {', '.join(failed)}")
    return " · ".join(parts)


def _plain(reply: ChatResponse) -> dict[str, Any]:
    return {
        "text": reply.text,
        "provider": reply.provider,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "cost_usd": reply.cost_usd,
        "latency_seconds": round(reply.latency_seconds, 6),
        "cached": reply.cached,
        "attempts": [asdict(attempt) for attempt in reply.attempts],
        "request_id": reply.request_id,
    }
