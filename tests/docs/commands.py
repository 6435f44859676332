"""The tables of docs/reference/commands.md: `python -m tests.docs.commands` writes them anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from aigateway.cli import app
from tests.processes import ROOT

PAGE = ROOT / "docs" / "reference" / "commands.md"
MARK = "<!-- written by: python -m tests.docs.commands -->\n"


def tables() -> str:
    """Return what each command is for, and its arguments and options."""
    group: Any = get_command(app)
    return "\n".join(_section(name, command) for name, command in sorted(group.commands.items()))


def _section(name: str, command: Any) -> str:
    text = " ".join((command.help or "").replace("\n\n", "\n").split("\n"))
    lines = [f"## `aigateway {name}`", "", *text.replace(". ", ".\n").splitlines(), ""]
    lines += ["| option | default | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *map(_row, _parameters(command))]) + "\n"


def _parameters(command: Any) -> Iterator[Any]:
    return (each for each in command.params if each.name != "help" and not each.hidden)


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    shown = (parameter.metavar or parameter.name.upper()) if argument else ", ".join(parameter.opts)
    default = parameter.default
    if parameter.required:
        text = "needed"
    elif default is None or default is False:
        text = "none" if default is None else "off"
    else:
        text = f"`{getattr(default, 'value', default)}`"
    return f"| `{shown}` | {text} | {(parameter.help or '').replace('|', '/')} |"


if __name__ == "__main__":
    head = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n{tables()}")
