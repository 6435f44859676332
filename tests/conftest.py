"""What every test gets: no settings from the outside, and the shipped simulator fixture."""

import os

import pytest

pytest_plugins = ["aigateway.testing"]

VENDOR_PREFIXES = ("OPENAI_", "AZURE_", "GEMINI_", "GOOGLE_", "ANTHROPIC_", "AIGATEWAY_")


@pytest.fixture(autouse=True)
def no_outside_settings(monkeypatch, tmp_path_factory):
    """Neither the developer's keys nor a file in the current directory reach a test."""
    for name in list(os.environ):
        if name.startswith(VENDOR_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
