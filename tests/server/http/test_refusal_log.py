"""What is refused is counted, and told without flooding the log."""

import logging

from aigateway.server.http.errors import Refusal, RefusalLog


def refusal(code=None, caller=None, status=429):
    made = Refusal(status, "words", code=code)
    made.caller = caller
    return made


def told(caplog):
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
    assert told(caplog) == [
        "service.refused: the key 'web' got HTTP 429 (rate_limit_exceeded).",
        "service.refused: the key 'ops' got HTTP 429 (rate_limit_exceeded).",
        "service.refused: 192.0.2.7 got HTTP 401 (invalid_api_key).",
        "service.refused: 192.0.2.8 got HTTP 401 (invalid_api_key).",
        "service.refused: an unknown caller got HTTP 404 (404).",
    ]
    await clock.advance(60)
    log.note(refusal("rate_limit_exceeded", "web"))
    assert told(caplog)[-1].endswith(
        "HTTP 429 (rate_limit_exceeded), and 4 times since the last such line."
    )
    assert log.counts == {"rate_limit_exceeded": 7, "invalid_api_key": 3, "404": 1}


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
    assert told(caplog)[-1].startswith("service.refused: the key 'web' got")


async def test_a_flood_of_addresses_is_told_of_again_later(clock, caplog):
    log = RefusalLog(clock)
    for number in range(3000):
        log.note(refusal("invalid_api_key"), f"peer {number}")
    await clock.advance(60)
    log.note(refusal("invalid_api_key"), "peer 5000")
    assert told(caplog)[-1].startswith("service.refused: peer 5000 got")
    assert log.counts == {"invalid_api_key": 3001}
