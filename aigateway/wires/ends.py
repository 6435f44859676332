"""How an answer ends: the words of each wire (`ends.py` in its folder) in those of OpenAI.

Only what stands in their tables ends a whole answer. Any other reason (`error`, `network_error`,
`insufficient_system_resource`), and none at all, means that the answer broke off. litellm turns
every reason that it does not know into "stop", so its word is not taken where the vendor's own
can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BrokenOffError", "Ending", "Given", "end_of", "listed"]


_NO_REASONS = frozenset({"null", "none"})
"""Texts that stand for no reason on every chunk but the last (DashScope)."""


class BrokenOffError(Exception):
    """The vendor says that an answer broke off. `body` is what it says, in the form of an error."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body


@dataclass(frozen=True, slots=True)
class Ending:
    """Why one of the answers ended.

    Attributes:
        reason: In the vendor's words.
        end: In OpenAI's; None if the answer broke off.
    """

    reason: str
    end: str | None

    @property
    def body(self) -> Mapping[str, Any]:
        """The reason in the form of a vendor's error."""
        return {"error": {"code": self.reason}}


def end_of(ends: Mapping[str, str], reason: Any, error: Any = None) -> Ending | None:
    """Judge the reason that a vendor gives for the end of an answer.

    Args:
        ends: Of the wire.
        reason: As it came; anything but a text is none.
        error: What the vendor says beside it went wrong.

    Returns:
        None if it gives none.

    Raises:
        BrokenOffError: It says that it failed.
    """
    given = reason if isinstance(reason, str) else ""
    word = given.lower()
    if error or word == "error":
        raise BrokenOffError({"error": error} if error else {"error": {"code": given}})
    if not word or word in _NO_REASONS:
        return None
    return Ending(given, ends.get(word))


Given = Iterator[tuple[int, Mapping[str, str], Any, Any]]
"""Of each answer in a body: its index, the wire's table, the reason given, an error beside it."""


def listed(answers: list[Any], ends: Mapping[str, str], name: str) -> Given:
    """Give what a list of answers says of their ends, in the field of that name."""
    for place, answer in enumerate(answers):
        if isinstance(answer, Mapping):
            index = answer.get("index")
            where = index if type(index) is int else place
            yield where, ends, answer.get(name), answer.get("error")
