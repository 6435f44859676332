"""A vendor under test on each of the four wires, and a healthy one of another wire."""

import pytest


@pytest.fixture(params=("openai", "azure", "gemini", "anthropic"))
def pair(request, simulator):
    """The vendor under test, and a healthy one of another wire."""
    name = request.param
    return simulator.vendor(name), simulator.vendor("openai" if name != "openai" else "anthropic")
