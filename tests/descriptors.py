"""Descriptors of this process: none left for anything new, or how many lead to a server."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """No file and no socket can be opened inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sockets_to(*server_ports: int) -> int:
    """How many sockets of this process are clients of servers on these ports."""
    ports = [_peer_port(int(descriptor.name)) for descriptor in Path("/dev/fd").iterdir()]
    return sum(port in server_ports for port in ports)


def _peer_port(descriptor: int) -> int | None:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family in {socket.AF_INET, socket.AF_INET6}:
                    return int(copy.getpeername()[1])
    return None
