"""What tests on Ray start from; all on loopback, and ended with the test."""

import os

import pytest

from aigateway.simulator import Simulator
from tests.ray.cluster import Cluster, Office, ray_folder


@pytest.fixture(scope="session", autouse=True)
def ray_stays_here():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with ray_folder() as folder:
        os.environ["RAY_TMPDIR"] = str(folder)
        yield folder


@pytest.fixture
def simulator():
    with Simulator.in_thread() as running:  # the tests themselves wait for processes
        yield running


@pytest.fixture
def office(tmp_path, simulator):
    office = Office(tmp_path, simulator.openai)
    yield office
    office.close()


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()
