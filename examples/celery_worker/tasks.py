"""A Celery worker. Each of its processes has one gateway and one event loop, for all its tasks.

`asyncio.run` in a task would work, too, but every task would connect to the vendors anew. And a
gateway that is made before the worker forks would share its sockets with all of them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown

from aigateway import AllProvidersFailedError, AsyncGateway, OverloadedError

FOLDER = Path(tempfile.gettempdir()) / "aigateway-example"
BROKER = os.environ.get("CELERY_BROKER_URL", "filesystem://")  # in production "redis://..."
app = Celery("answers", broker=BROKER, backend=os.environ.get("CELERY_RESULT_BACKEND"))
if BROKER == "filesystem://":  # to try it without a broker
    for name in ("queue", "control", "results"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    app.conf.update(
        result_backend=f"file://{FOLDER}/results",
        broker_transport_options={
            "data_folder_in": FOLDER / "queue",
            "data_folder_out": FOLDER / "queue",
            "control_folder": FOLDER / "control",
        },
    )


@functools.cache
def loop() -> asyncio.Runner:
    """Return the event loop of this process. It runs while a task waits for it."""
    return asyncio.Runner()


@functools.cache
def gateway() -> AsyncGateway:
    """Return the gateway of this process, made at its first task: after the fork."""
    return AsyncGateway()


@worker_process_shutdown.connect
def close(**_: Any) -> None:
    """Close connections when Celery ends this process."""
    if gateway.cache_info().currsize:
        loop().run(gateway().aclose())
        loop().close()


@app.task(
    autoretry_for=(AllProvidersFailedError, OverloadedError),  # not what is wrong with a request
    retry_backoff=True,
    max_retries=5,
    acks_late=True,  # a task of a killed worker is run again
)
def answer(prompt: str) -> dict[str, Any]:
    """Answer a prompt. The gateway's `timeout` ends it; that of Celery is the last resort."""
    reply = loop().run(gateway().chat(prompt, timeout=60))
    return {"text": reply.text, "provider": reply.provider, "process": os.getpid()}
