"""A chat over FastAPI: whole answers, and streams to a browser as server-sent events.

A vendor that fails before its first word is replaced unseen. In an outage the caller gets 503, and
no stream that begins with 200 and then breaks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from aigateway import AsyncGateway, GatewayError

SYSTEM = "You help the customers of a lamp shop. Answer in one paragraph."


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one gateway for the whole process: circuits, cache and connections are shared."""
    async with AsyncGateway(timeout=30) as gateway:
        await gateway.warmup()  # the first request does not wait for imports
        app.state.gateway = gateway
        yield


app = FastAPI(lifespan=lifespan)


def gateway_of(request: Request) -> AsyncGateway:
    """Return the process's gateway."""
    gateway: AsyncGateway = request.app.state.gateway
    return gateway


Gateway = Annotated[AsyncGateway, Depends(gateway_of)]


class Question(BaseModel):
    """What a user asks."""

    prompt: str = Field(min_length=1, max_length=20_000)


@app.exception_handler(GatewayError)
async def report(request: Request, error: GatewayError) -> JSONResponse:
    """Answer 400 if the request is at fault, 503 or 504 if the vendors are."""
    del request
    return JSONResponse(error.to_openai(), error.http_status, error.http_headers)


@app.post("/chat")
async def chat(question: Question, gateway: Gateway) -> dict[str, str]:
    """Answer a question."""
    reply = await gateway.chat(question.prompt, system=SYSTEM)
    return {"text": reply.text, "provider": reply.provider}


@app.post("/stream")
async def stream(question: Question, gateway: Gateway) -> StreamingResponse:
    """Stream an answer. A browser that leaves ends the call to the vendor, too."""
    answer = await gateway.stream(question.prompt, system=SYSTEM).start()  # raises in an outage
    # The headers keep caches and proxies such as nginx from collecting the events.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(answer.sse(), media_type="text/event-stream", headers=headers)
