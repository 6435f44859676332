"""What the tests of the service do again and again."""

import contextlib

from aigateway import AsyncGateway
from aigateway.server.service import Service
from aigateway.settings import ServerSettings
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.server.running import running


@contextlib.asynccontextmanager
async def served(*vendors, fields=None, server=None, **settings):
    """A service over simulated vendors, the first one first, and its address."""
    configs = [
        vendor.config(priority=-place, **(fields or {})) for place, vendor in enumerate(vendors)
    ]
    async with AsyncGateway(configs, **({"retry_rounds": 0} | settings)) as gateway:
        await gateway.warmup()
        service = Service(gateway, ServerSettings(**(server or {})))
        async with running(service) as url:
            yield service, url


@contextlib.asynccontextmanager
async def scripted(vendor=None, *, server=None, clock=None, **settings):
    """A service over one scripted provider called `a`, and its address."""
    clocks = {} if clock is None else {"clock": clock}
    configs = scripted_configs("a")
    settings = {"retry_rounds": 0} | settings
    async with AsyncGateway(
        configs, vendor=vendor or ScriptedVendor(), **clocks, **settings
    ) as gateway:
        service = Service(gateway, ServerSettings(**(server or {})), **clocks)
        async with running(service) as url:
            yield service, url
