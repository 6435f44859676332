"""The draft: what stands in the file, and a remark for each option that was not taken over."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from aigateway.cli.from_litellm.deployments import (
    Deployment,
    DeploymentReader,
    NotTakenError,
    check_provider,
)
from aigateway.cli.from_litellm.routing import (
    Routing,
    add_aliases,
    add_fallbacks,
    named_providers,
)
from aigateway.cli.from_litellm.settings import (
    SECTIONS,
    GivenGatewaySettings,
    GivenServerSettings,
    LitellmSettings,
    load_problem,
)
from aigateway.cli.from_litellm.values import Remark, as_mapping, as_whole, shown
from aigateway.cli.from_litellm.yaml_files import read_yaml
from aigateway.cli.init import Draft, rendered, write_config
from aigateway.cli.output import errors_as_exit_codes
from aigateway.errors import ConfigurationError

__all__ = ["LitellmDraft", "draft_from_litellm", "run_from_litellm"]

_MOST_DEPLOYMENTS = 500
_MOST_REMARKS = 50
"""For one provider or table of the file; the rest is counted."""
_SERVICE_SECONDS = 120.0
"""The default of `request_timeout` of the service, which must not end a request earlier."""


@dataclass(frozen=True, slots=True)
class LitellmDraft:
    """A draft, and what differs in it from the configuration of litellm.

    Attributes:
        draft: The file.
        remarks: Each option that was not taken over as it was, and why.
    """

    draft: Draft
    remarks: Sequence[Remark]


def run_from_litellm(source: str, output: str, *, force: bool) -> None:
    """Write a file for a configuration of litellm's proxy; print what it does not hold."""
    with errors_as_exit_codes():
        taken = draft_from_litellm(Path(source))
        for option, reason in taken.remarks:
            typer.echo(f"{option}: {reason}", err=True)
        count = len(taken.remarks)
        typer.echo(f"Remarks: {count}, also at their places in the file.", err=True)
        write_config(taken.draft, output, force=force)


def draft_from_litellm(path: Path) -> LitellmDraft:
    """Return the draft for a configuration of litellm's proxy.

    Raises:
        ConfigurationError: The file cannot be read, or no deployment of it can be taken over.
    """
    content = read_yaml(path)
    refused, deployments = _deployments(path, content)
    settings = LitellmSettings(content)
    settings.read()
    most = as_whole(settings.get("default_max_parallel_requests"))
    for each in deployments:
        if most is not None and most > 0:
            each.table.setdefault("max_concurrency", most)
    routing = Routing(deployments)
    add_aliases(routing, settings)
    add_fallbacks(routing, settings)
    pairs = routing.tables()
    providers = named_providers(pairs)
    for (table, deployment), provider in zip(pairs, providers, strict=True):
        also = routing.groups.keys() & {provider["model"], provider.get("name")}
        deployment.remarks += [
            (shown(group), "the provider answers for it, too: its model has that name")
            for group in sorted(also - set(table["aliases"]))
        ]
    remarks: dict[int | str, Sequence[Remark]] = {"providers": refused}
    remarks |= {index: each.remarks for index, (_, each) in enumerate(pairs)}
    remarks["gateway"] = [*settings.remarks, *_other_sections(content)]
    remarks["server"] = settings.server_remarks
    return _checked(path, providers, settings, {k: _bounded(k, v) for k, v in remarks.items()})


def _bounded(place: int | str, remarks: Sequence[Remark]) -> Sequence[Remark]:
    """Return the first remarks of a place, and how many more there are."""
    found = list(dict.fromkeys(remarks))
    most = _MOST_DEPLOYMENTS if place == "providers" else _MOST_REMARKS
    if len(found) <= most:
        return found
    last = found[most - 1][0].partition(": ")[0]
    return [*found[:most], (f"and {len(found) - most} more", f"they come after {last}")]


def _deployments(path: Path, content: Mapping[str, Any]) -> tuple[list[Remark], list[Deployment]]:
    """Return why entries of `model_list` are not taken over, and those that are."""
    given = content.get("model_list")
    listed = given if isinstance(given, list) else []
    if len(listed) > _MOST_DEPLOYMENTS:
        raise ConfigurationError(
            f"{shown(path)}: model_list has more than {_MOST_DEPLOYMENTS} entries; split it"
        )
    entries = DeploymentReader(content)
    made = [entries.read(index, entry) for index, entry in enumerate(listed)]
    deployments = [each for each in made if each is not None]
    if not deployments:
        reasons = "; ".join(f"{place}: {reason}" for place, reason in entries.refused[:5])
        raise ConfigurationError(
            f"{shown(path)}: no entry of model_list can be taken over ({reasons or 'it has none'})"
        )
    return entries.refused, deployments


def _other_sections(content: Mapping[str, Any]) -> Iterator[Remark]:
    for name, value in content.items():
        if name == "environment_variables":
            for variable in as_mapping(value):
                yield f"{name}.{shown(variable)}", "set it where aigateway runs, or in .env"
        elif name not in SECTIONS:
            yield shown(name), "nothing here reads this section"


def _checked(
    path: Path,
    providers: Sequence[Mapping[str, Any]],
    settings: LitellmSettings,
    remarks: Mapping[int | str, Sequence[Remark]],
) -> LitellmDraft:
    """Return the draft, once the text of its file is known to load."""
    total = settings.gateway.get("timeout", 0)
    draft = Draft(
        providers=providers,
        gateway=settings.gateway,
        server={"request_timeout": total} if total > _SERVICE_SECONDS else {},
        notes=[f"Made from litellm's {shown(path.name)}. What differs stands at its place."],
        comments={
            place: [f"{option}: {reason}" for option, reason in each]
            for place, each in remarks.items()
        },
    )
    try:
        made = tomllib.loads(rendered(draft))
        for table in made["providers"]:
            check_provider(table)
        problem = load_problem(GivenGatewaySettings, made.get("gateway", {})) or load_problem(
            GivenServerSettings, made.get("server", {})
        )
    except (tomllib.TOMLDecodeError, NotTakenError) as error:
        problem = str(error)
    if problem is not None:
        raise ConfigurationError(f"{shown(path)}: the result would not load: {problem}")
    return LitellmDraft(draft, list(dict.fromkeys(itertools.chain.from_iterable(remarks.values()))))
