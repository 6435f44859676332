"""How many tokens a prompt has, counted by litellm as the model's vendor would."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from aigateway.wires.loading import loaded_litellm

__all__ = ["count_prompt_tokens"]


def count_prompt_tokens(model: str, messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Count them.

    The first call loads litellm's tokenizer, which takes about 100 MB. For models of vendors that
    do not publish theirs, litellm counts with OpenAI's, which is near.

    Args:
        model: As the vendor calls it.
        messages: OpenAI chat messages.

    Returns:
        Tokens; None if litellm has not been loaded yet or cannot count this.
    """
    litellm = loaded_litellm()
    if litellm is None:
        return None
    with contextlib.suppress(Exception):  # what litellm makes of odd messages is its own affair
        return int(litellm.token_counter(model=model, messages=[dict(m) for m in messages]))
    return None
