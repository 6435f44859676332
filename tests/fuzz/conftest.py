"""One event loop and one raw server for each file: a fresh gateway for each example is enough."""

import pytest

from tests.fuzz.laboratory import Laboratory


@pytest.fixture(scope="module")
def laboratory():
    lab = Laboratory()
    yield lab
    lab.close()
