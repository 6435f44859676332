"""A run logs hundreds of warnings, and keeping them takes longer than the run."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL + 1, logger="aigateway")
