"""Loopback servers that speak the vendors' protocols, and break on command.

The demo, the tests and the benchmarks run against this package, and so can yours::

    async with Simulator() as sim:
        sim.openai.behave(Fault.status(500), times=3)
        gateway = AsyncGateway([sim.openai.config(priority=2), sim.gemini.config()])

Everything binds to 127.0.0.1 only. Nothing here knows litellm or the gateway, apart from the
`LLMConfig` that `SimulatedVendor.config` builds.
"""

from aigateway.simulator.answers import Received
from aigateway.simulator.answers import SimulatedAnswer as Answer
from aigateway.simulator.answers import SimulatedToolCall as ToolCall
from aigateway.simulator.faults import Fault
from aigateway.simulator.server import Simulator
from aigateway.simulator.vendor import SimulatedVendor

__all__ = ["Answer", "Fault", "Received", "SimulatedVendor", "Simulator", "ToolCall"]
