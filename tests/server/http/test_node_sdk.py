"""The official SDK for Node takes the service for OpenAI, too: `node/check.mjs` says what of it.

Needs Node.js and `npm ci` in that folder, which `.ci/run` sees to; with `--need-node` it is a
failure if they are missing.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from aigateway.simulator import Fault
from tests.gateways import until
from tests.server.services import served

FOLDER = Path(__file__).parents[1] / "node"


@pytest.fixture
def node(request):
    """The path of Node.js."""
    found = shutil.which("node")
    missing = "Node.js" if found is None else "node_modules (npm ci)"
    if found is None or not (FOLDER / "node_modules" / "openai").is_dir():
        why = f"{missing} is missing: see CONTRIBUTING.md, Node"
        if request.config.getoption("--need-node"):
            pytest.fail(why)
        pytest.skip(why)
    return found


async def test_the_sdk_for_node(node, simulator):
    special = {
        "broken": Fault.server_error(),
        "throttled": Fault.rate_limited(1),
        "cut": Fault.cut_stream(after=1),
        "hanging": Fault.hang(),
    }
    async with served(simulator.openai) as (service, url):
        gateway = service.gateway
        gateway.add_provider(
            simulator.openai.config(model="text-embedding-3-small", name="vectors", priority=-1)
        )
        for name, fault in special.items():
            vendor = await simulator.add("openai", name)
            vendor.behave(fault)
            gateway.add_provider(vendor.config(model=f"{name}-model", priority=-2))
        process = await asyncio.create_subprocess_exec(
            node,
            str(FOLDER / "check.mjs"),
            url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, output.decode()
        assert output.decode().split("\n")[-2] == "ok leaving"
        await until(lambda: simulator.vendor("hanging").open_connections == 0)
