"""Describe the public face as plain lines: `python -m tests.public_face` prints what is recorded.

Names, arguments, defaults, events, settings, metrics and CLI options. `public_face.txt` is the
record; a line may be added to it, and none may go.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

import aigateway
from aigateway import events, ray, server, settings, simulator, telemetry, testing
from aigateway.cli import app
from aigateway.telemetry.prometheus import Prometheus

RECORD = Path(__file__).with_suffix(".txt")


def described() -> list[str]:
    """Every public name with its signature, every event, setting, metric and CLI option."""
    lines = [f"aigateway.{name}" for name in aigateway.__all__]
    for name in aigateway.__all__:
        lines += _described(name, getattr(aigateway, name))
    for module in (events, ray, server, settings, simulator, telemetry, testing):
        for name in module.__all__:
            lines += _described(f"{module.__name__}.{name}", getattr(module, name))
    lines += _metrics()
    lines += _commands("aigateway", typer.main.get_command(app))
    return sorted(set(lines))


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isfunction(value):
        yield f"{name}{_signature(value)}"
    elif not inspect.isclass(value):
        yield f"{name}: {type(value).__name__}"
    elif issubclass(value, enum.Enum):
        names = value.__members__.items()  # aliases, too
        yield from (f"{name}.{member} = {each.value!r}" for member, each in names)
    else:
        yield from _of_class(name, value)


def _of_class(name: str, cls: type) -> Iterator[str]:
    base: type = object
    if issubclass(cls, BaseModel):
        base = BaseModel
        for field, info in cls.model_fields.items():
            default = "required" if info.is_required() else repr(info.get_default())
            yield f"{name}.{field} = {default}"
    elif issubclass(cls, Exception):
        base = Exception
        yield from (
            f"{name} is a {each.__name__}" for each in cls.__mro__[1:-2] if each.__name__[0] != "_"
        )
    elif dataclasses.is_dataclass(cls) or (
        cls.__init__ is not object.__init__ and not typing.is_typeddict(cls)
    ):
        yield f"{name}{_signature(cls)}"
    elif typing.is_typeddict(cls):
        base = dict
        yield from (f"{name}[{key!r}]" for key in cls.__annotations__)
    for member, value in inspect.getmembers_static(cls):
        if member.startswith(("_", "model_")) or hasattr(base, member):
            continue
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        known = inspect.isfunction(function)
        yield f"{name}.{member}{_signature(function) if known else ''}"


def _signature(function: Any) -> str:
    """Names, kinds and defaults; annotations may grow more exact.

    Options that a TypedDict names are recorded with it; here only where they have a default.
    """
    signature = inspect.signature(function)
    named = getattr(function, "__annotations__", {}) if hasattr(function, "__signature__") else None
    bare = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in signature.parameters.values()
        if named is None or each.name in {"self", *named} or each.default is not None
    ]
    plain = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r"<[\w.]*?(\w+) object at 0x\w+>", r"\1()", plain)


def _metrics() -> Iterator[str]:
    gateway = aigateway.AsyncGateway([aigateway.LLMConfig("openai", "m", name="a", api_key="k")])
    prometheus = Prometheus()
    prometheus.watch(lambda: gateway)
    text = prometheus.render()[1].decode()
    yield from (line.removeprefix("# ") for line in text.splitlines() if line[:7] == "# TYPE ")
    yield from _keys("get_metrics()", gateway.get_metrics())


def _keys(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield f"{path}.{name}"
            yield from _keys(f"{path}.{name}", each)


def _commands(path: str, command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = " ".join([*parameter.opts, *parameter.secondary_opts])
        yield f"{path} {names} = {parameter.default!r}"
    for name, each in getattr(command, "commands", {}).items():
        yield from _commands(f"{path} {name}", each)


if __name__ == "__main__":
    print("\n".join(described()))
