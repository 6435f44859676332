"""The programs of the guide to clients, and frameworks that block, at the service's address."""

from __future__ import annotations

import asyncio
import sys

import dspy
import pytest
from smolagents import OpenAIModel

from tests.docs.pages import blocks
from tests.processes import ROOT

PROGRAMS = blocks("python", "docs/guides/clients.md")


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
async def test_a_recipe(sim, program, block):
    printed = await program(
        sys.executable,
        "-c",
        block.text,
        PYTHONPATH=str(ROOT),
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        OPENAI_API_KEY=sim.openai.key,
        OPENAI_BASE_URL=sim.openai.api_base,
    )
    assert printed.splitlines()[-1] == "4"


async def test_dspy(url):
    lm = dspy.LM("openai/auto", api_base=f"{url}/v1", api_key="any", num_retries=0, cache=False)
    assert await asyncio.to_thread(lm, "one two") == ["one two"]


async def test_smolagents(url):
    model = OpenAIModel(model_id="auto", api_base=f"{url}/v1", api_key="any")
    said = [{"role": "user", "content": "one two"}]
    assert (await asyncio.to_thread(model.generate, said)).content == "one two"
