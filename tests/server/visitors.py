"""A client that knows exactly what became of a request on a kept connection."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable
from typing import Any


class NotAnswered(Exception):  # noqa: N818
    """The connection was closed before a byte of an answer came: to be sent again."""


class Cut(Exception):  # noqa: N818
    """It was closed in the middle of an answer."""


async def eventually(what: Callable[[], Any]) -> Any:
    """Wait until something, which may have to be awaited, is true; returns it."""
    while True:
        found = what()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.01)


async def once(port: int, path: str) -> tuple[int, dict[str, str], Any]:
    """Ask over a connection of its own."""
    connection = Connection(port)
    try:
        return await connection.get(path)
    finally:
        await connection.close()


class Connection:
    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, path: str) -> tuple[int, dict[str, str], Any]:
        """Ask; connects if need be. Returns status, headers and the JSON of the body."""
        status, headers, body = await self._exchange(path)
        return status, headers, json.loads(body)

    async def close(self) -> None:
        if self._writer is not None:
            writer, self._reader, self._writer = self._writer, None, None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        started = b""
        try:
            self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            started = await self._reader.read(1)
            head = started + await self._reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        except (asyncio.IncompleteReadError, OSError) as error:
            await self.close()
            raise (Cut if started else NotAnswered)(path) from error
        if headers.get("connection") == "close":
            await self.close()
        return int(lines[0].split()[1]), headers, body
