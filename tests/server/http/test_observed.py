"""FastAPI's own telemetry takes part in requests as soon as a provider of OpenTelemetry is set."""

from __future__ import annotations

import asyncio
import sys

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aigateway import AsyncGateway
from aigateway.server import create_app
from aigateway.server.http import openapi
from aigateway.settings import ServerSettings
from aigateway.testing import ScriptedVendor, scripted_configs
from tests.server.callers import api_key, asked

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


async def test_a_provider_that_is_set_while_the_service_runs_gets_spans(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(openapi, "_LOOK_SECONDS", 0.02)
    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        app = create_app(gateway, ServerSettings(keys=(api_key("web"),)))
        assert await asked(app, PATH, BODY) == 200
        assert await asked(app, PATH, BODY) == 200
        assert not exporter.get_finished_spans()
        monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
        await asyncio.sleep(0.03)
        assert await asked(app, PATH, BODY) == 200
    assert [span.name for span in exporter.get_finished_spans()] == [f"POST {PATH}"]


async def test_without_a_provider_few_requests_look_for_one():
    looked = 0

    def note(frame, event, _):
        nonlocal looked
        looked += event == "call" and "/opentelemetry/" in frame.f_code.co_filename

    async with AsyncGateway(scripted_configs("a"), vendor=ScriptedVendor()) as gateway:
        app = create_app(gateway, ServerSettings(keys=(api_key("web"),)))
        sys.setprofile(note)
        try:
            for _ in range(20):
                await asked(app, PATH, BODY)
        finally:
            sys.setprofile(None)
    assert looked < 20
