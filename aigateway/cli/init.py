"""`aigateway init`: write a commented `aigateway.toml`.

A `Draft` is the content of the file; `rendered` adds every other setting as a comment with its
default. Lines that begin with "# " explain; lines that begin with "#" and a name are settings.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aigateway.cli.output import errors_as_exit_codes, note
from aigateway.cli.toml import assignments, toml_value
from aigateway.cli.vendors import RECIPES
from aigateway.errors import ConfigurationError
from aigateway.settings import (
    FoundProvider,
    GatewaySettings,
    LLMConfig,
    ServerSettings,
    environment_providers,
    place_of_variable,
)
from aigateway.settings.provider import VENDORS

__all__ = ["Draft", "environment_draft", "rendered", "run_init", "write_config"]

_WIDTH = 100

_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "gateway": {
        "cache_url": "sqlite:///cache.db",
        "default_prices": {"input": 0.5, "output": 1.5},
        "redis_url": "redis://localhost:6379/0",
    },
    "server": {"admin_sha256": "0" * 64, "state_dir": "/var/lib/aigateway"},
    "providers": {
        "operations": ["chat"],
        "timeout": 30.0,
        "max_concurrency": 50,
        "rpm": 500,
        "tpm": 200_000,
        "failure_threshold": 5,
        "reset_timeout_seconds": 60.0,
    },
}
"""Values to show for settings whose default is that they are not set."""

_NOT_SHOWN = ("provider", "model", "api_key", "name", "api_base", "api_version")
"""Fields of a provider that a draft gives where they are needed."""

_HEAD = """\
# The configuration of aigateway. Each commented setting shows its default; durations are seconds.
# Environment variables (AIGATEWAY_TIMEOUT) take precedence over this file. No key belongs here:
# api_key_env names the variable that holds it.
#
# `aigateway check` says what this file does. The reference: docs/reference/settings.md
"""

_NO_PROVIDERS = """\
# No key of a vendor is set. A provider looks like this; `aigateway vendors` has more of them.
#
#     [[providers]]
#     provider = "openai"
#     model = "gpt-4o-mini"
#     api_key_env = "OPENAI_API_KEY"
#     priority = 40
"""


@dataclass(frozen=True, slots=True)
class Draft:
    """The content of a new file.

    Attributes:
        providers: The `[[providers]]`, as they stand in the file (`api_key_env`, never a key).
        gateway: Settings of `[gateway]` that differ from their defaults.
        server: Settings of `[server]` that differ from their defaults.
        notes: Remarks for the head of the file, without "#".
        comments: Remarks before a table: the index of a provider, "providers" for the first of
            them, "gateway" or "server".
    """

    providers: Sequence[Mapping[str, Any]] = ()
    gateway: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    comments: Mapping[int | str, Sequence[str]] = field(default_factory=dict)


def run_init(output: str, *, force: bool) -> None:
    """Write a file for the keys that are set, or print it if `output` is "-"."""
    with errors_as_exit_codes():
        write_config(environment_draft(), output, force=force)


def environment_draft() -> Draft:
    """Return a draft with one provider for each vendor whose key is set.

    Raises:
        ConfigurationError: A variable of a vendor, or `.env`, is wrong.
    """
    tables = [_provider_table(found) for found in environment_providers()]
    for recipe in RECIPES:
        key = recipe.table.get("api_key_env")
        if recipe.table["provider"] not in VENDORS and key and place_of_variable(key):
            tables.append(dict(recipe.table))
    return Draft(tables)


def _provider_table(found: FoundProvider) -> dict[str, Any]:
    config = found.config
    table: dict[str, Any] = {"provider": str(config.provider), "model": config.model}
    if found.key_place is not None:
        table["api_key_env"] = found.key_place.partition(" ")[0]
    optional = {
        "api_base": config.api_base,
        "api_version": config.api_version,
        "aliases": list(config.aliases),
        "extra": dict(config.extra),
    }
    table |= {name: value for name, value in optional.items() if value}
    return table | {"priority": config.priority}


def write_config(draft: Draft, output: str, *, force: bool) -> None:
    """Write the draft to a file, or to stdout if `output` is "-".

    Raises:
        ConfigurationError: The file exists and `force` is false, or it cannot be written.
    """
    text = rendered(draft)
    if output == "-":
        sys.stdout.write(text)
        return
    path = Path(output)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(
            f"{path} exists; --force replaces it, --output names another file"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror})") from None
    names = ", ".join(t.get("name") or f"{t['provider']}/{t['model']}" for t in draft.providers)
    option = "" if path == Path("aigateway.toml") else f" --config {path}"
    note(f"Wrote {path}; providers: {names or 'none, because no key is set'}.")
    note(f"Next: aigateway check{option}")


def rendered(draft: Draft) -> str:
    """Return the text of the file: the draft, and every other setting as a comment."""
    parts = [_HEAD]
    if draft.notes:
        parts.append("".join(f"{_wrapped(remark)}\n" for remark in draft.notes))
    if not draft.providers:
        parts.append(_NO_PROVIDERS)
    for place, table in enumerate(draft.providers):
        first = draft.comments.get("providers", ()) if place == 0 else ()
        remarks = map(_wrapped, (*first, *draft.comments.get(place, ())))
        lines = [*remarks, "[[providers]]", *assignments(table)]
        if place == 0:
            lines.append("# Each provider may have these, too:")
            lines += _comments(LLMConfig, "providers", (*_NOT_SHOWN, *table))
        parts.append("\n".join(lines) + "\n")
    kinds: tuple[tuple[type[BaseModel], str, Mapping[str, Any]], ...] = (
        (GatewaySettings, "gateway", draft.gateway),
        (ServerSettings, "server", draft.server),
    )
    for kind, name, given in kinds:
        remarks = map(_wrapped, draft.comments.get(name, ()))
        lines = [*remarks, f"[{name}]", *assignments(given), *_comments(kind, name, given)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _comments(kind: type[BaseModel], table: str, given: Iterable[str]) -> Iterator[str]:
    """Yield every field that is not given: what it is, and its default."""
    for name, about in kind.model_fields.items():
        if name in given:
            continue
        default = about.get_default(call_default_factory=True)
        example = _EXAMPLES[table].get(name)
        if default is None and example is None:
            continue
        first = (about.description or "").replace("\n", " ").replace("`", "").split(". ")[0]
        meaning = first.partition("; None ")[0].removesuffix(".")
        unset = " Not set; for example:" if default is None else ""
        yield ""
        yield _wrapped(f"{meaning}.{unset}")
        yield f"#{name} = {toml_value(example if default is None else default)}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")
