"""Tests of connections run on uvloop, as `aigateway serve` does, and on the loop of asyncio."""

import asyncio

import uvloop

_ON_BOTH = {"test_connections.py", "test_framing.py", "test_unread.py"}


def pytest_asyncio_loop_factories(config, item):
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return loops if item.path.name in _ON_BOTH else {"asyncio": asyncio.new_event_loop}
