"""A server that writes whatever bytes it is told to, and calls that an answer."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET
from typing import Literal

__all__ = ["End", "RawServer", "Reply"]

End = Literal["close", "reset", "hold"]

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes over the wire.

    Attributes:
        pieces: Written one by one.
        end: What becomes of the connection then; "hold" leaves it to the client.
    """

    pieces: tuple[bytes, ...]
    end: End = "close"

    def __repr__(self) -> str:
        shown = [piece if len(piece) < 2000 else piece[:2000] + b"..." for piece in self.pieces]
        return f"Reply({shown!r}, {self.end!r})"


class RawServer:
    """Gives every request the same reply.

    Attributes:
        reply: The one.
        port: On 127.0.0.1.
        connections: How many were ever made.
    """

    def __init__(self) -> None:
        self.reply = Reply(())
        self.port = 0
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def is_left(self) -> None:
        """Wait until no client holds a connection any more."""
        while self._answering:
            await asyncio.wait(self._answering)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._answering.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        await reader.readexactly(int(length[1]) if length else 0)
        for piece in self.reply.pieces:
            writer.write(piece)
            await writer.drain()
            if len(self.reply.pieces) > 1:
                await asyncio.sleep(0)
        if self.reply.end == "reset":
            socket = writer.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            return
        if self.reply.end == "close":
            writer.write_eof()
        await reader.read()  # until the client has left
