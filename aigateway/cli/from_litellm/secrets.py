"""Find what may be a secret in values that are about to be written into a file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

__all__ = ["HARMLESS_HEADERS", "is_secret_name", "is_secret_text", "secret_place"]

HARMLESS_HEADERS: Final = frozenset(
    "accept accept-language anthropic-beta anthropic-version content-language http-referer"  # noqa: SIM905
    " openai-beta openai-organization openai-project referer user-agent x-app x-app-name"
    " x-client-name x-client-version x-environment x-goog-user-project x-project x-region x-service"
    " x-team x-title".split()
)
"""Headers that describe the caller or the request and never authorise it; in lower case."""

_NAME = re.compile(
    r"keys?(_?id)?$|(^|_)(key|pass|pwd|pat|pin|jwt|sas|sig|dsn|otp)(_|$)|(^|_)session(_id)?$|apikey|access_?key"
    r"|secret|passw|passphrase|token|credential|auth|bearer|cookie|signature|subscription"
)
_COUNT = re.compile(r"tokens$|per_[a-z_]*token|token_(count|limit)")
"""Names of counts. They look like names of secrets, but their values are numbers."""

_TEXT = re.compile(
    r"\bbearer\s+\S{6,}|^\s*(bearer|basic|token|digest|apikey)\s+\S+\s*$"
    r"|(?<![a-z0-9])(sk-\S|(sk|pk|rk|csk|gsk|pplx|nvapi|xai|fw|hf|r8|glpat)[-_][a-z0-9]{16,}|xox[a-z]-"
    r"|gh[a-z]_|github_pat_|ya29\.|(akia|asia)[0-9a-z]{8,}|aiza[\w-]{16,}|eyj[\w-]{8,})"
    r"|-----begin|://[^/?#\s]{0,2000}@"
    r"|[?&;][\w.-]{0,40}(key|token|secret|sig|signature|pass|password|pwd|code|auth)="
    r"|hooks\.slack\.com/|(?<![0-9a-z])(?=[a-z]{0,64}[0-9])(?=[0-9]{0,64}[a-z])[0-9a-z]{32,}",
    re.IGNORECASE,
)
"""Patterns of keys of known vendors, tokens, signed addresses and hashes."""

_NUMBER = re.compile(r"[-+.\de]{1,24}", re.IGNORECASE)
_MOST_TEXT: Final = 20_000


def is_secret_name(name: str) -> bool:
    """Return whether the value under a name is a secret, whatever it looks like."""
    plain = unicodedata.normalize("NFKC", name)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", plain).lower().strip("_")
    return _NAME.search(words) is not None


def is_secret_text(text: str) -> bool:
    """Return whether a text looks like a secret, whatever its name."""
    return len(text) > _MOST_TEXT or _TEXT.search(text) is not None


def secret_place(name: str, value: object) -> str | None:
    """Return where in a value there may be a secret, as `name.inner[0]`; None if nowhere."""
    return next(_places(name, name, value), None)


def _places(place: str, name: str, value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            if is_secret_text(key):
                yield place
            yield from _places(f"{place}.{key}", key, each)
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _places(f"{place}[{index}]", name, each)
    elif isinstance(value, str) and is_secret_text(value):
        yield place
    is_number = _COUNT.search(name.lower()) and _NUMBER.fullmatch(str(value))
    if value and value is not True and is_secret_name(name) and not is_number:
        yield place
