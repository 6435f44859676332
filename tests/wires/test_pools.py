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
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRLyfQQ0l5PqyqqUe
gVT+GrRmwW4tirGaxw9C7YvppIWhRANCAATOfGl3u846cSuq/hlm+no3zs0M49n8
8UZ/XygVMAQvEXiVVoA4rYPxm36FOwewaIlMWLoJRVCzUvY7RLBM6MlR
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUL8i1EkfqE6dTQYHqiLVCNKkaaFcwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyOTEwMjA0NloYDzIxMjYxMTA1
MTAyMDQ2WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATOfGl3u846cSuq/hlm+no3zs0M49n88UZ/XygVMAQvEXiVVoA4rYPx
m36FOwewaIlMWLoJRVCzUvY7RLBM6MlRo1MwUTAdBgNVHQ4EFgQUtdFIeWcFH9Nv
p8meN9l7t1nmYxAwHwYDVR0jBBgwFoAUtdFIeWcFH9Nvp8meN9l7t1nmYxAwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAkFQydvYLcUTikZYgBG6w
zwbAmMBXCCzR/pSYbyVj7NQCIQDvM2DKowi93FtCpnVjf01q3V2qwcNiwRNR66Px
FotF2Q==
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
