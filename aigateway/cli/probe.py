"""Ask providers for a few words, each alone, to see whether they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError, FailureKind, GatewayError, ProviderFailure
from aigateway.gateway import AsyncGateway
from aigateway.settings import LLMConfig

__all__ = ["ProbeResult", "probe_all"]

_PROMPT = "Reply with the word ok."
_MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one provider did.

    Attributes:
        problem: None if it answered.
        latency_seconds: Until then.
        kind: The kind of failure, if it was asked.
        hint: Whether `problem` says what to do.
    """

    problem: str | None
    latency_seconds: float
    kind: FailureKind | None = None
    hint: bool = False


async def probe_all(configs: Sequence[LLMConfig], seconds: float) -> list[ProbeResult]:
    """Ask all at once; each may take so many seconds."""
    return list(await asyncio.gather(*(_probe(config, seconds) for config in configs)))


async def _probe(config: LLMConfig, seconds: float) -> ProbeResult:
    """Ask this provider alone: another one may serve the same model or alias."""
    try:
        async with AsyncGateway(
            [config],
            cache_enabled=False,
            retry_rounds=0,
            attempt_timeout=seconds,
            middleware=[],
            redis_url=None,
        ) as gateway:
            await gateway.warmup()  # so that the latency does not include loading litellm
            began = SYSTEM_CLOCK.now()
            failure = await _failure(gateway, config, seconds)
            took = SYSTEM_CLOCK.now() - began
    except ConfigurationError as error:
        return ProbeResult(str(error), 0.0, hint=True)
    if isinstance(failure, ProviderFailure):
        status = f" (HTTP {failure.status})" if failure.status is not None else ""
        missing = failure.code == "missing_package"
        problem = f"needs {failure.param}" if missing else f"{failure.kind}{status}"
        return ProbeResult(problem, took, failure.kind, missing)
    return ProbeResult(None if failure is None else str(failure), took, hint=True)


async def _failure(
    gateway: AsyncGateway, config: LLMConfig, seconds: float
) -> ProviderFailure | GatewayError | None:
    # A second more than the attempt may take, so that its timeout is reported as one.
    embeds = config.operations is not None and "chat" not in config.operations
    try:
        if embeds and "embeddings" in (config.operations or ()):
            await gateway.embed(["ok"], timeout=seconds + 1)
        else:
            await gateway.chat(_PROMPT, max_tokens=_MAX_TOKENS, timeout=seconds + 1)
    except GatewayError as error:
        causes: Sequence[ProviderFailure] = getattr(error, "causes", ())
        return causes[0] if causes else error
    return None
