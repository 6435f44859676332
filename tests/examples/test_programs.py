"""The small examples, as processes, with the first vendor down; the others have their session."""

from __future__ import annotations

import pytest

from aigateway.simulator import Simulator
from aigateway.simulator.serve import environment
from examples.simulated import prepare
from tests.processes import ROOT


@pytest.fixture
def simulator():
    with Simulator.in_thread() as running:
        prepare(running, ["openai"])
        yield running


@pytest.mark.parametrize(
    ("name", "printed", "asked"),
    [
        ("extract.py", "supplier='Nordlys AS' total=1240.5 currency='NOK'", (1, 1, 0)),
        ("tools_agent.py", "round 2: gemini/gemini-3.5-flash-lite\nTake a coat", (2, 2, 1)),
        ("rag.py", "azure/gpt-4o-mini: Five years", (3, 3, 0)),
    ],
)
def test_an_example_goes_on_without_its_first_vendor(
    run_script, simulator, tmp_path, name, printed, asked
):
    text = (ROOT / "examples" / name).read_text()
    process = run_script(tmp_path, text, env=dict(environment(simulator)))
    assert process.code == 0, process.log
    assert printed in process.read("out")
    vendors = simulator.openai, simulator.azure, simulator.gemini
    assert tuple(vendor.request_count for vendor in vendors) == asked
