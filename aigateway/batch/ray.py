"""Batches on Ray: the workers of a `ShardedJob` are actors of a cluster. Needs the extra `[ray]`.

Ray starts processes and carries calls. It keeps no answer, and a resumed job asks it nothing: what
is done stands in the parts and in the output.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from aigateway.batch.files.input import Shard
from aigateway.batch.files.job import JobOptions
from aigateway.batch.files.shards import (
    RunnerStatus,
    ShardedJob,
    ShardEnd,
    ShardRunner,
    ShardWork,
    Worker,
    WorkerLostError,
)
from aigateway.clock import SYSTEM_CLOCK
from aigateway.errors import ConfigurationError, GatewayError
from aigateway.fleet.ledger import (
    Claim,
    FleetUnavailableError,
    LedgerAnswer,
    MemoryLedger,
    Spent,
)
from aigateway.settings import LLMConfig
from aigateway.version import __version__

__all__ = ["RayCluster", "RayLedger", "end_process_if_stuck", "open_cluster", "pickled"]

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 20.0
"""For an address that is open: without a bound Ray tries for two minutes, and ends the process."""

_LEAVE_SECONDS = 10.0
"""For leaving a cluster, or killing an actor: without a bound Ray waits for ever for a cluster that
does not answer any more. Usually it takes 3."""

_LEDGER_SECONDS = 1.0
_AGAIN_SECONDS = 0.3
_OBJECT_STORE_BYTES = 100_000_000
_PER_ACTOR = 16
"""Requests in flight for which one more actor is worthwhile."""

_PROBE = """
import sys
try:
    from ray._raylet import GcsClient
except ImportError:
    sys.exit()
GcsClient(address=sys.argv[1])
"""
"""Connects to a cluster, in a process that can be killed."""

_stuck: list[threading.Thread] = []
"""Calls of Ray that have not returned."""


class RayCluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        cpus: The processors of all its machines.
    """

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self.cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._ledger: Any = None

    async def give_workers(self, job: ShardedJob, work: ShardWork, actors: int | None) -> None:
        """Start actors, and let the job use them.

        Args:
            job: Not running yet.
            work: What each of them needs to know. The number of requests in flight is for all.
            actors: How many; None takes one for each processor, as far as worthwhile.

        Raises:
            ConfigurationError: The providers cannot be sent to other processes.
        """
        work = replace(work, shared=job.shared_limits())
        has_rates = any(config.rpm or config.tpm for config in work.configs)
        if work.settings.redis_url is None and (work.shared or has_rates):
            name = f"aigateway-limits-{secrets.token_hex(8)}"
            await self._start_ledger(name, job, work)
            work = replace(work, ledger=functools.partial(RayLedger, name))
        shares = _shares(work.options, actors, self.cpus)
        blobs = [
            pickled(replace(work, options=replace(work.options, concurrency=share)))
            for share in shares
        ]
        actor = self._ray.remote(_ShardActor).options(
            num_cpus=1, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        job.use([_RayWorker(self._ray, actor.remote, n, blob) for n, blob in enumerate(blobs, 1)])

    async def _start_ledger(self, name: str, job: ShardedJob, work: ShardWork) -> None:
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        actor = self._ray.remote(_LedgerActor)
        self._ledger = actor.options(
            num_cpus=0, max_restarts=-1, name=name, scheduling_strategy=here
        ).remote()
        # What an earlier run has begun in its last minute is not known: it may be all.
        seconds = job.seconds_since_last_run
        rates = [] if seconds is None or work.shared is None else work.shared.rates
        used = [Claim(limit, [Spent(limit.amount, seconds or 0.0)]) for limit in rates]
        await self._ledger.exchange.remote("earlier run", used, 1)


@contextlib.contextmanager
def open_cluster(address: str | None, actors: int | None) -> Iterator[RayCluster]:
    """Connect to a Ray cluster, or start one on this machine, and leave it at the end.

    Args:
        address: "auto", or "host:port"; None takes `RAY_ADDRESS`, or starts one.
        actors: For how many actors one that is started has room; None: for each processor.

    Raises:
        ConfigurationError: Ray is not installed, or cannot be reached, or has another version.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before it is imported
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigurationError(
            '--engine ray needs Ray, which is not installed: pip install "aigateway[ray]".'
        ) from None
    if ray.is_initialized():
        raise ConfigurationError("This process is connected to a Ray cluster already.")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    local: dict[str, Any] = {}
    if address == "local":
        local = {
            "num_cpus": actors or os.cpu_count() or 1,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    # Ray reports dead workers on stdout. The job does so itself.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        try:
            _connect(ray, address, local)
            yield RayCluster(ray)
        finally:
            _bounded(ray.shutdown)


def end_process_if_stuck(code: int) -> None:
    """End this process at once if Ray does not answer; its own end would wait for Ray."""
    if any(thread.is_alive() for thread in _stuck):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _bounded(function: Callable[[], object]) -> None:
    """Call Ray, and return after `_LEAVE_SECONDS` at the latest."""
    calling = threading.Thread(target=function, daemon=True)
    calling.start()
    calling.join(_LEAVE_SECONDS)
    if calling.is_alive():
        _stuck.append(calling)


def _connect(ray: ModuleType, address: str, local: dict[str, Any]) -> None:
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
    except ConnectionError:
        problem = f"No Ray cluster was found at {address}. Start one with `ray start --head`."
    except (RuntimeError, ValueError) as error:
        # Its first lines name both versions.
        words = " ".join(str(error).split())
        problem = f"The Ray cluster at {address} cannot be used: {words[:500]}"
    except SystemExit:  # how Ray gives up
        problem = f"The Ray cluster at {address} does not answer."
    else:
        return
    raise ConfigurationError(problem)


def _check_address(address: str) -> None:
    """Check quickly that there is a cluster."""
    if address in {"auto", "local"}:
        return
    if "://" in address:
        raise ConfigurationError(
            f"--address {address} is not supported: run the command on a machine of the cluster"
            " with --address auto, or give HOST:PORT (the port of `ray start --head`, 6379)."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError(f'--address must be "auto" or HOST:PORT, not {address}.')
    import socket  # noqa: PLC0415 - only here

    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        words = getattr(error, "strerror", None) or "no answer"
        raise ConfigurationError(f"No Ray cluster is reachable at {address}: {words}.") from None
    probe = [sys.executable, "-c", _PROBE, address]
    try:
        code = subprocess.run(  # noqa: S603 - its own text
            probe, check=False, capture_output=True, timeout=_ANSWER_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        code = 1
    if code:
        raise ConfigurationError(
            f"No Ray cluster answers at {address}. Give the port of `ray start --head`, which is"
            " 6379 by default; not those of the dashboard or of the Ray client."
        )


def _shares(options: JobOptions, actors: int | None, cpus: int) -> list[Any]:
    """Return how many requests each actor may have in flight; "auto" is for each by itself."""
    most = options.concurrency
    if not isinstance(most, int):
        return [most] * (actors or cpus)
    count = min(actors or min(cpus, -(-most // _PER_ACTOR)), most)
    return [most // count + (place < most % count) for place in range(count)]


def pickled(work: ShardWork) -> bytes:
    """Return the work as bytes. Raises `ConfigurationError` if it cannot be sent."""
    cloudpickle = importlib.import_module("ray.cloudpickle")
    try:
        return bytes(cloudpickle.dumps(work))
    except Exception as error:  # noqa: BLE001 - objects of the caller raise anything
        problem = type(error).__name__
    wrong = next((c.name for c in work.configs if not _can_be_sent(cloudpickle, c)), None)
    whose = "The settings" if wrong is None else f"The provider {wrong}"
    raise ConfigurationError(
        f"{whose} cannot be sent to other machines ({problem}). A function that gives"
        " the key must be one that can be pickled, e.g. of a module that is installed everywhere."
    )


def _can_be_sent(cloudpickle: ModuleType, config: LLMConfig) -> bool:
    try:
        cloudpickle.dumps(config)
    except Exception:  # noqa: BLE001 - see above
        return False
    return True


# ── actors ───────────────────────────────────────────────────────────────────────────────────────


class _LedgerActor(MemoryLedger):
    """The ledger of a job, in a process of the cluster."""

    def __init__(self) -> None:
        super().__init__(SYSTEM_CLOCK)


class _ShardActor:
    """A `ShardRunner` in a process of the cluster."""

    def __init__(self) -> None:
        self._runner = ShardRunner()

    async def version(self) -> str:
        return __version__

    async def run(self, work: bytes, shard: Shard) -> ShardEnd:
        # Keys come with the calls: what an actor is made with, Ray keeps for its restarts.
        cloudpickle = importlib.import_module("ray.cloudpickle")
        return await self._runner.run(cloudpickle.loads(work), shard)

    async def all_begun(self, number: int) -> None:
        await self._runner.all_begun(number)

    async def status(self) -> RunnerStatus:
        return await self._runner.status()

    async def stop(self, why: str) -> None:
        await self._runner.stop(why)

    async def aclose(self) -> None:
        await self._runner.aclose()


class _RayWorker(Worker):
    """An actor, as a job sees it."""

    def __init__(self, ray: ModuleType, start: Callable[[], Any], number: int, work: bytes) -> None:
        self.name = f"actor {number}"
        self._ray = ray
        self._actor = start()
        self._work = work

    async def ready(self) -> None:
        while True:
            try:
                version = await self._actor.version.remote()
                break
            except self._ray.exceptions.ActorDiedError as error:
                problem = " ".join(str(error).split())[-300:]
            except self._ray.exceptions.RayError:
                await SYSTEM_CLOCK.sleep(_AGAIN_SECONDS)
                continue
            raise ConfigurationError(
                f"{self.name} cannot be started. Ray says: {problem} Every machine of the cluster"
                f" needs aigateway {__version__} with its extra [ray]."
            )
        if version != __version__:
            raise ConfigurationError(
                f"A machine of the cluster has aigateway {version}, and this one {__version__}."
                " Install the same everywhere."
            )

    async def run(self, shard: Shard) -> ShardEnd:
        found: ShardEnd = await self._call("run", self._work, shard)
        return found

    async def all_begun(self, number: int) -> None:
        await self._call("all_begun", number)

    async def status(self) -> RunnerStatus:
        found: RunnerStatus = await self._call("status")
        return found

    async def stop(self, why: str) -> None:
        await self._call("stop", why)

    async def aclose(self) -> None:
        await self._call("aclose")

    async def kill(self) -> None:
        kill = functools.partial(self._ray.kill, self._actor, no_restart=False)
        await asyncio.to_thread(_bounded, kill)

    async def _call(self, name: str, *args: object) -> Any:
        try:
            return await getattr(self._actor, name).remote(*args)
        except self._ray.exceptions.RayTaskError as error:
            cause = type(error.cause).__name__
        except self._ray.exceptions.RayError:
            raise WorkerLostError(f"{self.name} has died, or its machine is lost.") from None
        raise GatewayError(f"{self.name} failed with {cause}. Ray's logs on its machine say more.")


class RayLedger:
    """The ledger of a job, in an actor of its own.

    Args:
        name: The actor's.
    """

    def __init__(self, name: str) -> None:
        self._ray = importlib.import_module("ray")
        self._name = name
        self._actor: Any = None

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        """See `Ledger`."""
        try:
            if self._actor is None:
                self._actor = self._ray.get_actor(self._name)
            async with SYSTEM_CLOCK.timeout(_LEDGER_SECONDS):
                answer: LedgerAnswer = await self._actor.exchange.remote(member, claims, serial)
                return answer
        except (self._ray.exceptions.RayError, ValueError, TimeoutError):
            raise FleetUnavailableError("The actor that keeps the limits is not there.") from None
