"""What is remembered, whether it is worth it, and for how long. Pure policy, no storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aigateway.messages import Choice, Completion

__all__ = ["Remembered", "ttl_for", "worth_keeping", "written_by_hand"]

_WHOLE = frozenset({"stop", "tool_calls", "function_call"})


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer, and the name of the provider that gave it."""

    completion: Completion
    provider: str


def worth_keeping(completion: Completion) -> bool:
    """Whether asking again could not plausibly do better.

    Every choice must have ended by itself (`stop`, `tool_calls`) and say something. Not worth
    keeping are answers that a content filter cut, refusals and blanks (sampling may well give
    another next time), and those that do not say how they ended (what is there may be half).
    One that reached its limit (`length`) is kept if it is text, because the limit is part of the
    key; with tool calls it is not, since their arguments are broken off.
    """
    return bool(completion.choices) and all(map(_is_whole, completion.choices))


def _is_whole(choice: Choice) -> bool:
    if choice.refusal is not None:
        return False
    if choice.finish_reason == "length":
        return bool(choice.text) and not choice.tool_calls
    said = choice.text or choice.tool_calls or choice.images or choice.audio
    return choice.finish_reason in _WHOLE and bool(said)


def ttl_for(
    agent: str | None, cache_ttl: float | None, agent_ttls: Mapping[str, float], default: float
) -> float:
    """How many seconds an answer stays fresh: the call's word, else the agent's, else the default.

    Args:
        agent: Who asked, if the call says.
        cache_ttl: What the call says, if anything.
        agent_ttls: Seconds by agent.
        default: Seconds for everybody else.
    """
    if cache_ttl is not None:
        return cache_ttl
    return default if agent is None else agent_ttls.get(agent, default)


def written_by_hand(text: str, model: str | None, key: str, created: int) -> Completion:
    """A text that no vendor gave, as an answer that cost nothing."""
    return Completion(
        id=f"cache-{key[:16]}",
        model=model or "",
        choices=(Choice(text, "stop"),),
        cost_usd=0.0,
        created=created,
    )
