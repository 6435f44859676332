"""Refusals are counted, and logged without flooding the log."""

import asyncio
import logging
from urllib.parse import urlsplit

import httpx

from aigateway.errors import FailureKind
from aigateway.server.http.errors import Refusal, RefusalLog
from tests.processes import PATIENCE
from tests.server.services import scripted


def refusal(code=None, caller=None, status=429):
    made = Refusal(status, "words", code=code)
    made.caller = caller
    return made


def logged(caplog):
    return [record.getMessage() for record in caplog.records]


async def test_the_same_is_told_once_a_minute_with_how_often(clock, caplog):
    caplog.set_level(logging.WARNING)
    log = RefusalLog(clock)
    for _ in range(5):
        log.note(refusal("rate_limit_exceeded", "web"))
    log.note(refusal("rate_limit_exceeded", "ops"))
    for peer in ("192.0.2.7", "192.0.2.8", "192.0.2.7"):
        log.note(refusal("invalid_api_key", status=401), peer)
    log.note(refusal(status=404))
    assert logged(caplog) == [
        "service.refused: the key 'web' got HTTP 429 (rate_limit_exceeded).",
        "service.refused: the key 'ops' got HTTP 429 (rate_limit_exceeded).",
        "service.refused: 192.0.2.7 got HTTP 401 (invalid_api_key).",
        "service.refused: 192.0.2.8 got HTTP 401 (invalid_api_key).",
        "service.refused: an unknown caller got HTTP 404.",
    ]
    await clock.advance(60)
    log.note(refusal("rate_limit_exceeded", "web"))
    assert logged(caplog)[-1].endswith(
        "HTTP 429 (rate_limit_exceeded), and 4 times since the last such line."
    )
    log.note(refusal("invalid_api_key", status=401), "192.0.2.7")
    assert logged(caplog)[-1].endswith("(invalid_api_key), and once since the last such line.")
    assert log.counts == {"rate_limit_exceeded": 7, "invalid_api_key": 4, "404": 1}


def test_it_remembers_only_so_many(clock, caplog):
    log = RefusalLog(clock)
    for number in range(5000):
        log.note(refusal(f"code {number % 2000}"))
    assert len(log._of_peers) <= 1000
    assert len(caplog.records) == 1000


def test_a_flood_of_addresses_hides_no_key(clock, caplog):
    log = RefusalLog(clock)
    for number in range(3000):
        log.note(refusal("invalid_api_key"), f"peer {number}")
    log.note(refusal("rate_limit_exceeded", "web"))
    assert logged(caplog)[-1].startswith("service.refused: the key 'web' got")


async def test_a_flood_of_addresses_is_told_of_again_later(clock, caplog):
    log = RefusalLog(clock)
    for number in range(3000):
        log.note(refusal("invalid_api_key"), f"peer {number}")
    await clock.advance(60)
    log.note(refusal("invalid_api_key"), "peer 5000")
    assert logged(caplog)[-1].startswith("service.refused: peer 5000 got")
    assert log.counts == {"invalid_api_key": 3001}


async def in_pieces():
    """Send a body whose length is not known beforehand: it is refused while it arrives."""
    for _ in range(4):
        yield b" " * 500


async def test_every_refusal_is_counted_wherever_it_is_made(caplog):
    """By an endpoint, by the router, by the limits of a request, and by those of a connection."""
    async with (
        scripted(server={"max_body_bytes": 1024}) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        await client.post("/chat", json={"message": "Hi.", "temprature": 1})
        await client.get("/nothing")
        await client.delete("/health")
        await client.post("/chat", json={"message": "x" * 2000})
        await client.post(
            "/chat", content=in_pieces(), headers={"content-type": "application/json"}
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"no HTTP\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()
        refused = (await client.get("/metrics")).json()["refused"]
    assert refused == {
        "unknown_parameter": 1,
        "404": 1,
        "405": 1,
        "request_too_large": 2,
        "400": 1,
    }
    lines = [line for line in logged(caplog) if line.startswith("service.refused: 127.0.0.1 got")]
    assert len(lines) == 5


async def test_an_error_of_the_gateway_is_not_counted_as_the_services(vendor):
    vendor.always("a", FailureKind.SERVER_ERROR)
    async with (
        scripted(vendor) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        assert (await client.post("/chat", json={"message": "Hi."})).status_code == 503
        figures = (await client.get("/metrics")).json()
    assert figures["refused"] == {}
    assert figures["failures"] == 1
