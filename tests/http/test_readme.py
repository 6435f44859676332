"""The README's programs run as they are printed, and its first one with any single key."""

import ast
import asyncio
import re
import textwrap
from typing import Any

import pytest
from pydantic import BaseModel

from aigateway import AsyncGateway, sync
from aigateway.simulator import Simulator
from tests.processes import ROOT

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
KEYS: dict[str, dict[str, str]] = {
    "openai": {"OPENAI_BASE_URL": "{base}"},
    "azure": {"AZURE_OPENAI_ENDPOINT": "{base}", "AZURE_OPENAI_DEPLOYMENT": "gpt-4o-mini"},
    "gemini": {"GEMINI_ENDPOINT": "{base}"},
    "anthropic": {"ANTHROPIC_BASE_URL": "{base}"},
}


def snippet(words):
    """The one that has these words."""
    (found,) = [each for each in SNIPPETS if words in each]
    return found


@pytest.fixture
def simulator():
    with Simulator.in_thread() as running:
        yield running


def set_key(monkeypatch, vendor):
    name = "AZURE_OPENAI" if vendor.name == "azure" else vendor.name.upper()
    monkeypatch.setenv(f"{name}_API_KEY", vendor.key)
    for variable, value in KEYS[vendor.name].items():
        monkeypatch.setenv(variable, value.format(base=vendor.api_base))


@pytest.mark.parametrize("name", KEYS)
def test_five_lines_with_one_key(simulator, monkeypatch, capsys, name):
    vendor = simulator.vendor(name)
    set_key(monkeypatch, vendor)
    vendor.answer("It is 4.")
    exec(snippet("async def main"), {})
    printed = capsys.readouterr().out
    assert printed.startswith(f"It is 4. {name}/")
    assert printed.rstrip().endswith("False")
    assert len(vendor.received) == 1


class City(BaseModel):
    name: str
    population: int


@pytest.mark.parametrize("name", KEYS)
def test_a_default_model_takes_every_parameter_of_the_readme(simulator, monkeypatch, name):
    set_key(monkeypatch, simulator.vendor(name))

    async def ask():
        async with AsyncGateway() as gateway:
            for params in (
                {"system": "You are terse.", "temperature": 0},
                {"response_format": City},
                {"tools": [TOOL], "timeout": 20, "agent": "market", "cache": "refresh"},
            ):
                given: dict[str, Any] = {**params}
                reply = await gateway.chat("Describe Oslo.", **given)
                assert set(reply.attempts[0].dropped) <= {"temperature"}
                async with gateway.stream("Describe Rome.", **given) as stream:
                    assert [chunk async for chunk in stream]

    asyncio.run(ask())


def test_without_a_loop(simulator, monkeypatch, capsys):
    set_key(monkeypatch, simulator.openai)
    sync._reset()
    try:
        exec(snippet("import call_llm"), {})
    finally:
        sync._reset()
    assert "4" in capsys.readouterr().out


async def run(words, configs, **names: Any):
    """Run one that awaits at its top, in front of these providers."""
    program = snippet(words).replace("tools=[...]", f"tools=[{TOOL}]")
    body = textwrap.indent(program, "    ")
    code = compile(ast.parse(f"async def program():\n{body}"), "README.md", "exec")
    async with AsyncGateway(configs) as gateway:
        scope: dict[str, Any] = {"gateway": gateway, "asyncio": asyncio, **names}
        exec(code, scope)
        await scope["program"]()


def test_those_that_ask(simulator, capsys):
    embedder = simulator.azure.config(model="text-embedding-3-small")
    configs = [simulator.openai.config(aliases=("fast",)), embedder]
    messages = [{"role": "user", "content": "hi"}]
    saved: list[Any] = []
    added = simulator.anthropic.config()
    asyncio.run(run("class City", configs, messages=messages, LLMConfig=lambda _: added))
    asyncio.run(run("Tell me a story", configs, clear_the_screen=lambda: None))
    prompts, rows = ["a", "b"], [{"language": "French", "text": "one"}]
    asyncio.run(run("outage_patience", configs, prompts=prompts, rows=rows, save=saved.append))
    assert len(saved) == 2
    assert "mine" in capsys.readouterr().out


def test_those_that_set_up():
    scope: dict[str, Any] = {}
    exec(snippet("my-deployment"), scope)
    assert len(scope["gateway"].providers) == 5
