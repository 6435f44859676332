"""Endpoints that let a test see what a service does with its requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from aigateway.server.service import Service


def with_endpoints(make: Callable[[Service], FastAPI]) -> Callable[[Service], FastAPI]:
    def make_app(service: Service) -> FastAPI:
        if "BROKEN" in os.environ:
            raise RuntimeError("as it was told")
        app = make(service)
        _add(app, service)
        _add_workers(app, service)
        return app

    return make_app


def _add(app: FastAPI, service: Service) -> None:
    accepted = os.open("accepted", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @app.get("/t/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({}, 503 if service.draining else 200)

    @app.get("/t/work")
    async def work(id: str, seconds: float = 0.0, length: int = 10) -> dict[str, object]:  # noqa: A002
        os.write(accepted, f"{id}\n".encode())
        await asyncio.sleep(seconds)
        while Path(f"hold-{id}").exists():  # noqa: ASYNC110, ASYNC240 - another process ends it
            await asyncio.sleep(0.01)
        return {"id": id, "pid": os.getpid(), "text": "x" * length}

    @app.get("/t/chat")
    async def chat(prompt: str, cache: bool = True) -> dict[str, object]:
        with service.in_use() as gateway:
            reply = await gateway.chat(prompt, cache=cache)
        return {"text": reply.text, "provider": reply.provider, "cached": reply.cached}

    @app.get("/t/stream")
    async def stream(polite: bool) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            while not (polite and service.stopping.is_set()):
                yield b"data: {}\n\n"
                await asyncio.sleep(0.01)
            yield b'data: {"error": "stopping"}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")


def _add_workers(app: FastAPI, service: Service) -> None:
    service.shared.report("pid", lambda: str(os.getpid()).encode())
    obeyed: dict[str, str] = {}
    service.shared.subscribe(lambda subject, order: obeyed.update({subject: order.decode()}))

    @app.get("/t/pids")
    async def pids() -> dict[str, object]:
        collected = service.shared.collect("pid")
        return {
            "pid": os.getpid(),
            "running": [int(pid) for pid in collected.running],
            "exited": [int(pid) for pid in collected.exited],
        }

    @app.get("/t/order")
    async def order(subject: str, content: str) -> dict[str, object]:
        service.shared.order(subject, content.encode())
        return {"obeyed": obeyed}

    @app.get("/t/obeyed")
    async def what_was_obeyed() -> dict[str, object]:
        return {"obeyed": obeyed, "pid": os.getpid()}
