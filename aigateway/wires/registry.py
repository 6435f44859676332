"""Every wire, by the `provider` of an `LLMConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from aigateway.messages import ProtocolName
from aigateway.settings import LLMConfig, ProviderType
from aigateway.wires.anthropic import ANTHROPIC
from aigateway.wires.gemini import GEMINI
from aigateway.wires.openai import AZURE, OPENAI, OPENAI_COMPATIBLE
from aigateway.wires.wire import AnswerEnd, Wire, end_of

__all__ = ["WIRES", "endings_in", "speaks", "wire_of"]

WIRES: Mapping[ProviderType, Wire] = {
    ProviderType.OPENAI: OPENAI,
    ProviderType.OPENAI_COMPATIBLE: OPENAI_COMPATIBLE,
    ProviderType.AZURE: AZURE,
    ProviderType.ANTHROPIC: ANTHROPIC,
    ProviderType.GEMINI: GEMINI,
    ProviderType.LITELLM: Wire(like_openai=False),
}

_ENDS = tuple(dict.fromkeys(wire.ends for wire in (GEMINI, *WIRES.values()) if wire.ends))
"""Gemini first: its word about a blocked prompt takes precedence."""


def wire_of(config: LLMConfig) -> Wire:
    """Return the wire that a provider speaks."""
    return WIRES[config.provider]


def speaks(config: LLMConfig, protocol: ProtocolName) -> bool | None:
    """Return whether a provider speaks a protocol beside OpenAI's chat; None if it has to be asked.

    Completions of a prompt are spoken where the configuration says so (`operations`).
    """
    wire = wire_of(config)
    if protocol not in wire.native:
        return False
    if protocol == "completions":
        return "completions" in (config.operations or ())
    if config.provider is ProviderType.ANTHROPIC:
        return True
    own = config.api_base is None or urlsplit(config.api_base).netloc == _OPENAIS
    return True if wire.native_is_sure and own else None


_OPENAIS = "api.openai.com"


def endings_in(body: Any) -> dict[int, AnswerEnd] | None:
    """Return why answers ended, by index, from a body or event of any wire; None if unknown.

    Raises:
        BrokenOffError: The vendor says that it failed.
    """
    if not isinstance(body, Mapping):
        return None
    given = next(filter(None, (ends(body) for ends in _ENDS)), None)
    if given is None:
        return None
    found = ((index, end_of(ends, reason, error)) for index, ends, reason, error in given)
    return {index: ending for index, ending in found if ending is not None}
