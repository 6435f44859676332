"""Find and mask keys in texts: configured ones, and words that look like one.

A vendor, or a proxy in front of it, may repeat a key anywhere in its answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

__all__ = ["has_a_key", "keep_secret", "masked", "tells_a_key"]

_SHORTEST = 8
"""Characters of a key that is searched for within a text; a shorter one must be the whole text."""

_MOST = 10_000

_SHORT = 128
"""Characters of a text whose result is cached."""

_BEGINNING = re.compile(
    r"(sk|pk|rk)[-_]|(gsk|hf|ghp|gho|r8|glpat|xox[abp])[-_]|(xai|nvapi|pplx|csk|key)-"
    r"|AIza|(AKIA|ASIA)[0-9A-Z]|eyJ[\w-]"
)
"""How the keys of vendors begin, and tokens."""

_RANDOM = re.compile(r"(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{16,}")
"""Letters and digits mixed, at length: most keys without a typical beginning."""

_WORD = re.compile(r"[A-Za-z0-9_*.\-+/=~]{6,}")
"""A word that could be a key. Vendors mask some of a key's characters with asterisks."""

_kept: dict[str, None] = {}


def keep_secret(texts: Iterable[str]) -> None:
    """Add keys of this process; beyond a limit the oldest is dropped."""
    _remembered.cache_clear()
    for text in texts:
        _kept[text] = None
        if len(_kept) > _MOST:
            del _kept[next(iter(_kept))]


def has_a_key(text: str) -> bool:
    """Return whether a text is a configured key or contains one."""
    return text in _kept or any(len(key) >= _SHORTEST and key in text for key in _kept)


def masked(text: str) -> str:
    """Return the text with "***" for each configured key and each word that looks like a key."""
    found = [key for key in _kept if len(key) >= _SHORTEST and key in text]
    for key in sorted(found, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(key, "***")
    return _WORD.sub(lambda word: "***" if _tells_a_key(word[0]) else word[0], text)


def tells_a_key(text: str) -> bool:
    """Return whether a text contains a configured key or looks like a key."""
    return _remembered(text) if len(text) <= _SHORT else _tells_a_key(text)


def _tells_a_key(text: str) -> bool:
    return bool(_BEGINNING.match(text) or _RANDOM.search(text)) or has_a_key(text)


_remembered = functools.lru_cache(maxsize=256)(_tells_a_key)  # the same few models, all the time
