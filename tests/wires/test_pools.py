"""A pool's connections end with its event loop, encrypted ones too."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading

import pytest

from aigateway.wires.http import ConnectionPool
from tests.descriptors import sockets_to

CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgXFpTqveotBqizgc/
m4MHBW4SbJHr1CUjTPCsFbOAm7ihRANCAAQo6hMTzokdHZlJa7jT3iFArYJsbD4/
amwhMV+EnkoDzsOSuCg/j/Ze2gFnvRmy09nhCAnV2efXiDzsy24N7scu
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIUGsoRkJG4BzjWV0yj0HRzGpSZdpIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEzMDA4NDY0N1oYDzIxMjYxMTA2
MDg0NjQ3WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQo6hMTzokdHZlJa7jT3iFArYJsbD4/amwhMV+EnkoDzsOSuCg/j/Ze
2gFnvRmy09nhCAnV2efXiDzsy24N7scuo2QwYjAdBgNVHQ4EFgQUY/g9SRd4mSfR
x8SgwyCuufvAb1IwHwYDVR0jBBgwFoAUY/g9SRd4mSfRx8SgwyCuufvAb1IwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
IBS2CqnhiGLmgsC952Cib4kb1rMdM7ggsb6jwE31rPq9AiEAwSHCUt0lxrBQ+2Mm
ORGMUMK4lvD1+/Mk8e5CEW6pqKM=
-----END CERTIFICATE-----
"""


@pytest.fixture
def server(tmp_path):
    """The port of a server that speaks TLS, and never ends a connection."""
    pem = tmp_path / "certificate.pem"
    pem.write_text(CERTIFICATE)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    loop = asyncio.new_event_loop()

    async def answer(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    listening = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield listening.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    listening.close()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


def test_a_loop_closed_by_hand_leaves_nothing_once_another_pool_is_made(server, recwarn):
    before = sockets_to(server)
    held = []

    async def ask():
        pool = ConnectionPool()
        held.append(pool)
        async with pool.session.get(f"https://127.0.0.1:{server}/", ssl=False) as response:
            assert await response.text() == "ok"

    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask())
        loop.close()
        assert sockets_to(server) - before == 1
    asyncio.run(ask())
    assert sockets_to(server) - before == 0
    assert all(pool.session.closed for pool in held)
    assert [str(warning.message) for warning in recwarn] == []


def test_closing_twice_and_while_the_loop_ends(server):
    async def ask():
        pool = ConnectionPool()
        async with pool.session.get(f"https://127.0.0.1:{server}/", ssl=False) as response:
            await response.read()
        await pool.aclose()
        await pool.aclose()
        assert pool.session.closed
        assert len(asyncio.all_tasks()) == 1

    before = sockets_to(server)
    asyncio.run(ask())
    assert sockets_to(server) == before
