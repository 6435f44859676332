"""A running simulator, and a way to ask any wire the same thing."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from aigateway.simulator import SimulatedVendor, Simulator
from tests.processes import PATIENCE

WIRES = ("openai", "azure", "gemini", "anthropic")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def data(self) -> list[Any]:
        """The data of every server-sent event; `[DONE]` stays text."""
        lines = [line[6:] for line in self.raw.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def events(self) -> list[str]:
        lines = self.raw.decode().splitlines()
        return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


@dataclass(frozen=True)
class Asker:
    """Speaks each wire by hand, without any SDK."""

    session: aiohttp.ClientSession

    async def post(
        self,
        vendor: SimulatedVendor,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        url = vendor.url + path
        chosen = key_headers(vendor) if headers is None else headers
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(
            url,
            data=io.BytesIO(raw),  # aiohttp warns of plain bytes when they are many
            headers={"content-type": "application/json", **chosen},
            allow_redirects=False,
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, vendor: SimulatedVendor, path: str) -> Reply:
        async with self.session.get(vendor.url + path, headers=key_headers(vendor)) as response:
            return Reply(response.status, response.headers, await response.read())

    def open_stream(self, vendor: SimulatedVendor, prompt: str) -> Any:
        """A context manager that gives the response before its body."""
        path, body = chat_request(vendor, prompt, stream=True)
        return self.session.post(vendor.url + path, json=body, headers=key_headers(vendor))

    async def chat(
        self,
        vendor: SimulatedVendor,
        prompt: str = "Hello there",
        *,
        stream: bool = False,
        **more: Any,
    ) -> Reply:
        path, body = chat_request(vendor, prompt, stream=stream)
        return await self.post(vendor, path, body | more)


def key_headers(vendor: SimulatedVendor) -> dict[str, str]:
    match vendor.wire:
        case "azure":
            return {"api-key": "any"}
        case "gemini":
            return {"x-goog-api-key": "any"}
        case "anthropic":
            return {"x-api-key": "any", "anthropic-version": "2023-06-01"}
        case _:
            return {"authorization": "Bearer any"}


def chat_request(
    vendor: SimulatedVendor, prompt: str, *, stream: bool = False
) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": prompt}]
    match vendor.wire:
        case "azure":
            path = "/openai/deployments/dep/chat/completions?api-version=2024-10-21"
            return path, {"messages": messages, "stream": stream}
        case "gemini":
            method = "streamGenerateContent?alt=sse" if stream else "generateContent"
            contents = [{"role": "user", "parts": [{"text": prompt}]}]
            return f"/v1beta/models/gemini-x:{method}", {"contents": contents}
        case "anthropic":
            body = {"model": "claude-x", "max_tokens": 64, "messages": messages, "stream": stream}
            return "/v1/messages", body
        case _:
            body = {"model": "gpt-x", "messages": messages, "stream": stream}
            return "/v1/chat/completions", body


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator() as running:
        yield running


@pytest.fixture
async def ask() -> AsyncIterator[Asker]:
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Asker(session)


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait for something that sockets do in their own time."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - nobody sets an event for it
                await asyncio.sleep(0.002)

    return wait


@pytest.fixture(params=WIRES)
def vendor(request: pytest.FixtureRequest, sim: Simulator) -> SimulatedVendor:
    """Each of the four in turn."""
    chosen = getattr(sim, request.param)
    assert isinstance(chosen, SimulatedVendor)
    return chosen
