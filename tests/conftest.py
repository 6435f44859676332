"""What every test gets: no settings from the outside, and the shipped simulator fixture."""

import os

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is no failure.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

pytest_plugins = ["aigateway.testing"]

VENDOR_PREFIXES = ("OPENAI_", "AZURE_", "GEMINI_", "GOOGLE_", "ANTHROPIC_", "AIGATEWAY_")


@pytest.fixture(autouse=True)
def no_outside_settings(monkeypatch, tmp_path_factory):
    """Neither the developer's keys nor a file in the current directory reach a test."""
    for name in list(os.environ):
        if name.startswith(VENDOR_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
