"""What tests of whole gateways do again and again."""

import asyncio

from aigateway import AsyncGateway
from tests.processes import PATIENCE


def gateway_for(*vendors, fields=None, **settings):
    """A gateway over simulated vendors, the first one first; it does not wait and try again."""
    settings = {"retry_rounds": 0} | settings
    configs = [
        vendor.config(priority=-place, **(fields or {})) for place, vendor in enumerate(vendors)
    ]
    return AsyncGateway(configs, **settings)


def name_of(vendor):
    return vendor.config().name


def state_of(gateway, name):
    """What the gateway says of the provider of that name."""
    return next(p for p in gateway.providers if p.name == name)


def status_of(gateway, vendor):
    return state_of(gateway, name_of(vendor))


def metrics_of(gateway, vendor):
    return gateway.get_metrics()["providers"][name_of(vendor)]


async def until(condition):
    """Wait for something that another party does."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the server is another party
            await asyncio.sleep(0.005)
