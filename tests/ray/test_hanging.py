"""An actor that hangs; with a Ray of its own, beside which no other cluster may run."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from aigateway.batch.ray import open_cluster
from tests.batch.files.desk import Desk
from tests.batch.files.workers import ShardDesk
from tests.gateways import until
from tests.ray.cluster import actors


@pytest.fixture
def desk(tmp_path, simulator):
    return Desk(tmp_path, simulator.openai)


async def test_an_actor_that_hangs_is_killed(desk):
    """SIGSTOP: the process lives, and answers nothing."""
    desk.ask([{"id": f"r{n}", "prompt": f"p{n}"} for n in range(200)])
    desk.vendor.latency = 0.03
    shards = ShardDesk(desk)
    with open_cluster(None, 1) as cluster:
        async with shards.opened(workers=0, concurrency=4) as job:
            job.hang_seconds = 15.0
            await cluster.give_workers(job, replace(shards.work, ledger=None), 1)
            running = asyncio.create_task(job.run())
            await until(lambda: job.totals.done >= 20)
            os.kill(actors(os.getpid())[0], signal.SIGSTOP)
            await running
    assert len(desk.answers()) == 200
    assert desk.vendor.request_count <= 204
