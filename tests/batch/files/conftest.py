"""What every test of a job starts from."""

import pytest

from tests.batch.files.desk import Desk


@pytest.fixture
def desk(tmp_path, simulator):
    """A job's files, and the simulated vendor that is asked."""
    return Desk(tmp_path, simulator.openai)
