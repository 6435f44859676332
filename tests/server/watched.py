"""A service whose status page can be watched: two scripted providers, and keys if wanted."""

import hashlib
from contextlib import asynccontextmanager

import httpx

from aigateway import AsyncGateway
from aigateway.clock import SYSTEM_CLOCK
from aigateway.server.service import Service
from aigateway.server.status.recent_events import RecentEvents
from aigateway.settings import ApiKey, ServerSettings
from aigateway.telemetry.prometheus import Prometheus
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.processes import PATIENCE
from tests.server.running import running

ADMIN, USER = "the-admins-key", "a-users-key"


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = ServerSettings(keys=(ApiKey(name="team", sha256=digest(USER)),), admin_sha256=digest(ADMIN))


@asynccontextmanager
async def serving(settings=None, vendor=None, clock=SYSTEM_CLOCK):
    recent_events, prometheus = RecentEvents(clock), Prometheus()
    async with AsyncGateway(
        scripted_configs("a/1", "b/2"),
        vendor=vendor or ScriptedVendor(),
        hooks=[recent_events, prometheus],
        retry_rounds=0,
        clock=clock,
    ) as gateway:
        service = Service(
            gateway,
            settings or ServerSettings(),
            clock,
            recent_events=recent_events,
            prometheus=prometheus,
        )
        async with (
            running(service) as url,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        ):
            yield service, client
            service.draining = True
