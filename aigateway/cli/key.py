"""`aigateway key`: a key for the service, shown once, and what stands for it in the settings."""

from __future__ import annotations

import hashlib
import json
import secrets

import typer
from pydantic import ValidationError

from aigateway.cli.outcome import note
from aigateway.settings import ApiKey

__all__ = ["run_key"]

_PREFIX = "sk-aigw-"
"""So that whoever scans for secrets that leaked knows one."""

_RANDOM_BYTES = 32


def run_key(name: str, *, admin: bool) -> None:
    """Print a new key, and the lines for `aigateway.toml`."""
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    _check(name, digest)
    note("The key. It is shown this once; whoever asks sends it as Authorization: Bearer KEY.")
    typer.echo(key)
    note("For aigateway.toml, which never sees the key itself:")
    typer.echo(f"\n{_admin(digest) if admin else _key(name, digest)}")


def _check(name: str, digest: str) -> None:
    """Refuse a name that the settings would refuse."""
    try:
        ApiKey(name=name, sha256=digest)
    except ValidationError:
        problem = 'must be visible text with no whitespace at its ends, and not "admin"'
    else:
        return
    raise typer.BadParameter(problem, param_hint="--name")


def _key(name: str, digest: str) -> str:
    # A string of JSON is one of TOML.
    quoted = json.dumps(name, ensure_ascii=False)
    return f'[[server.keys]]\nname = {quoted}\nsha256 = "{digest}"'


def _admin(digest: str) -> str:
    return f'[server]\nadmin_sha256 = "{digest}"'
