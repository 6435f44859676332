"""Spans and metrics over real HTTP, held against the names that OpenTelemetry publishes."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_RESPONSE_STATUS_CODE
from opentelemetry.trace import SpanKind, StatusCode

import aigateway
from aigateway import AsyncGateway, GatewayError, Origin
from aigateway.simulator import Fault
from aigateway.telemetry import OpenTelemetry
from tests.gateways import name_of, until

KNOWN = {value for name, value in vars(names).items() if name.startswith("GEN_AI_")}
VENDORS = {
    "openai": names.GenAiProviderNameValues.OPENAI.value,
    "azure": names.GenAiProviderNameValues.AZURE_AI_OPENAI.value,
    "gemini": names.GenAiProviderNameValues.GCP_GEMINI.value,
    "anthropic": names.GenAiProviderNameValues.ANTHROPIC.value,
}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def _is_ours(span):
    return span.instrumentation_scope.name == "aigateway"


class Observed:
    """An application's OpenTelemetry, kept in memory."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def hook(self, **options):
        return OpenTelemetry(self.tracers, self.meters, **options)

    @property
    def spans(self):
        ours = [s for s in self.exporter.get_finished_spans() if _is_ours(s)]
        return sorted(ours, key=lambda span: span.start_time)

    @property
    def requests(self):
        return [span for span in self.spans if span.kind is SpanKind.INTERNAL]

    @property
    def attempts(self):
        return [span for span in self.spans if span.kind is SpanKind.CLIENT]

    @property
    def points(self):
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric.data.data_points
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def observed():
    return Observed()


@pytest.fixture
async def gateway_for(observed):
    made = []

    def make(*vendors, hook=None, fields=None, **settings):
        settings = {"retry_rounds": 0} | settings
        configs = [v.config(priority=-n, **(fields or {})) for n, v in enumerate(vendors)]
        made.append(AsyncGateway(configs, hooks=[hook or observed.hook()], **settings))
        return made[-1]

    yield make
    for gateway in made:
        await gateway.aclose()
    for span in observed.spans:
        assert {n for n in span.attributes if n.startswith("gen_ai.")} <= KNOWN
    assert {n for n in observed.points if n.startswith("gen_ai.")} <= {
        gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION,
        gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK,
        gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE,
    }


def is_child(span, parent):
    return span.parent is not None and span.parent.span_id == parent.context.span_id


@pytest.mark.parametrize("wire", VENDORS)
async def test_a_failover(simulator, observed, gateway_for, wire):
    good = simulator.vendor(wire)
    bad = simulator.openai if wire != "openai" else simulator.anthropic
    bad.behave(Fault.server_error(503))
    gateway = gateway_for(bad, good, drop_unsupported_params=True)  # newer models: no temperature
    with observed.tracers.get_tracer("app").start_as_current_span("caller") as caller:
        reply = await gateway.chat("hi", temperature=0.5, max_tokens=9, stop=["x"])
    (request,) = observed.requests
    failed, served = observed.attempts
    assert is_child(request, caller)
    assert is_child(failed, request)
    assert is_child(served, request)
    assert request.name == "chat"
    assert served.name == f"chat {good.config().model}"
    assert dict(failed.attributes) == {
        names.GEN_AI_OPERATION_NAME: "chat",
        names.GEN_AI_PROVIDER_NAME: VENDORS[bad.name],
        names.GEN_AI_REQUEST_MODEL: bad.config().model,
        names.GEN_AI_REQUEST_TEMPERATURE: 0.5,
        names.GEN_AI_REQUEST_MAX_TOKENS: 9,
        names.GEN_AI_REQUEST_STOP_SEQUENCES: ("x",),
        ERROR_TYPE: "server_error",
        HTTP_RESPONSE_STATUS_CODE: 503,
        "aigateway.provider": name_of(bad),
        "aigateway.attempt": 1,
    }
    assert failed.status.status_code is StatusCode.ERROR
    assert served.status.status_code is StatusCode.UNSET
    assert ERROR_TYPE not in served.attributes
    told = served.attributes
    assert told[names.GEN_AI_PROVIDER_NAME] == VENDORS[wire]
    assert told[names.GEN_AI_USAGE_INPUT_TOKENS] == reply.usage.prompt_tokens
    assert told[names.GEN_AI_USAGE_OUTPUT_TOKENS] == reply.usage.completion_tokens
    for span in (request, served):
        assert span.attributes[names.GEN_AI_RESPONSE_MODEL] == reply.model
        assert span.attributes[names.GEN_AI_RESPONSE_ID] == reply.completion.id
        assert span.attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == (reply.finish_reason,)
    assert request.attributes[names.GEN_AI_PROVIDER_NAME] == VENDORS[wire]
    assert request.attributes["aigateway.request.id"] == reply.request_id
    assert request.attributes["aigateway.outcome"] == "served"
    assert request.attributes["aigateway.attempts"] == 2
    assert names.GEN_AI_USAGE_INPUT_TOKENS not in request.attributes, "told once"
    assert request.start_time <= failed.start_time <= failed.end_time <= served.start_time
    assert served.end_time <= request.end_time


async def test_the_metrics_of_a_failover(simulator, observed, gateway_for):
    simulator.anthropic.behave(Fault.rate_limited())
    gateway = gateway_for(simulator.anthropic, simulator.openai)
    reply = await gateway.chat("hi")
    points = observed.points
    durations = {
        point.attributes[names.GEN_AI_PROVIDER_NAME]: point
        for point in points[gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION]
    }
    assert {n: p.attributes.get(ERROR_TYPE) for n, p in durations.items()} == {
        "anthropic": "rate_limited",
        "openai": None,
    }
    assert all(point.count == 1 for point in durations.values())
    assert durations["openai"].attributes[names.GEN_AI_RESPONSE_MODEL] == reply.model
    assert durations["openai"].explicit_bounds[:2] == (0.01, 0.02)
    tokens = {
        point.attributes[names.GEN_AI_TOKEN_TYPE]: point.sum
        for point in points[gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE]
    }
    assert tokens == {"input": reply.usage.prompt_tokens, "output": reply.usage.completion_tokens}
    (requests,) = points["aigateway.request.duration"]
    assert (requests.count, requests.attributes["aigateway.outcome"]) == (1, "served")
    assert gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK not in points


@pytest.mark.parametrize("wire", VENDORS)
async def test_a_stream(simulator, observed, gateway_for, wire):
    vendor = simulator.vendor(wire)
    stream = gateway_for(vendor).stream("hi")
    async for _ in stream:
        pass
    (request,), (attempt,) = observed.requests, observed.attempts
    for span in (request, attempt):
        assert span.attributes[names.GEN_AI_REQUEST_STREAM] is True
        assert span.attributes[names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] > 0
        assert span.attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("stop",)
    usage = stream.response.usage
    assert attempt.attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == usage.completion_tokens
    (first,) = observed.points[gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK]
    assert first.sum == attempt.attributes[names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK]
    assert attempt.start_time <= attempt.end_time <= request.end_time


async def test_a_stream_that_is_left_and_one_that_breaks(simulator, observed, gateway_for):
    vendor = simulator.openai
    gateway = gateway_for(vendor, cache_enabled=False)
    async with gateway.stream("hi") as stream:
        await anext(stream)
    vendor.behave(Fault.cut_stream(after=1))
    with pytest.raises(GatewayError):
        _ = [chunk async for chunk in gateway.stream("hi")]
    left, broken = observed.requests
    left_attempt, broken_attempt = observed.attempts
    assert left.attributes[ERROR_TYPE] == left_attempt.attributes[ERROR_TYPE] == "cancelled"
    assert left.status.status_code is left_attempt.status.status_code is StatusCode.UNSET
    assert broken.attributes[ERROR_TYPE] == "StreamInterruptedError"
    assert broken.status.status_code is broken_attempt.status.status_code is StatusCode.ERROR


async def test_a_hit_and_a_shared_answer_make_no_attempt(simulator, observed, gateway_for):
    simulator.openai.latency = 0.05
    gateway = gateway_for(simulator.openai)
    await asyncio.gather(*(gateway.chat("hi") for _ in range(3)))
    await gateway.chat("hi")
    outcomes = [span.attributes["aigateway.outcome"] for span in observed.requests]
    assert sorted(outcomes) == ["coalesced", "coalesced", "hit", "served"]
    (attempt,) = observed.attempts
    (served,) = [s for s in observed.requests if s.attributes["aigateway.outcome"] == "served"]
    assert is_child(attempt, served)
    for span in observed.requests:
        assert span.attributes[names.GEN_AI_PROVIDER_NAME] == "openai"
        assert span.attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("stop",)


async def test_a_cancelled_request(simulator, observed, gateway_for):
    simulator.openai.behave(Fault.hang())
    asking = asyncio.create_task(gateway_for(simulator.openai).chat("hi"))
    await until(lambda: simulator.openai.received)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (request,), (attempt,) = observed.requests, observed.attempts
    assert request.attributes["aigateway.outcome"] == "cancelled"
    assert request.attributes[ERROR_TYPE] == attempt.attributes[ERROR_TYPE] == "cancelled"


async def test_a_failed_request(simulator, observed, gateway_for):
    simulator.openai.behave(Fault.server_error())
    with pytest.raises(GatewayError):
        await gateway_for(simulator.openai).chat("hi", model=simulator.openai.config().model)
    (request,) = observed.requests
    assert request.name == f"chat {simulator.openai.config().model}"
    assert request.attributes[ERROR_TYPE] == "AllProvidersFailedError"
    assert request.status.status_code is StatusCode.ERROR


async def test_hedged_attempts_overlap(simulator, observed, gateway_for):
    slow, quick = simulator.openai, simulator.anthropic
    slow.behave(Fault.hang())
    quick.latency = 0.05
    gateway = gateway_for(slow, quick, hedge=True, hedge_delay_seconds=0.05)
    await gateway.warmup()
    await gateway.chat("hi")
    (request,) = observed.requests
    outrun, won = observed.attempts
    assert outrun.attributes[ERROR_TYPE] == "outrun"
    assert outrun.status.status_code is StatusCode.UNSET
    assert outrun.start_time < won.start_time < outrun.end_time
    assert is_child(outrun, request)
    assert is_child(won, request)


async def test_embeddings(simulator, observed, gateway_for):
    gateway = gateway_for(simulator.openai, fields={"model": "text-embedding-3-small"})
    reply = await gateway.embed(["a", "b"], dimensions=2)
    (request,), (attempt,) = observed.requests, observed.attempts
    assert request.name == "embeddings"
    assert attempt.attributes[names.GEN_AI_OPERATION_NAME] == "embeddings"
    assert attempt.attributes[names.GEN_AI_EMBEDDINGS_DIMENSION_COUNT] == 2
    (tokens,) = observed.points[gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE]
    assert (tokens.attributes[names.GEN_AI_TOKEN_TYPE], tokens.sum) == (
        "input",
        reply.usage.prompt_tokens,
    )


class TestPropagation:
    @pytest.mark.parametrize("how", ["chat", "stream", "embed"])
    async def test_each_attempts_own_goes_to_its_vendor(
        self, simulator, observed, gateway_for, how
    ):
        simulator.anthropic.behave(Fault.server_error())
        vendors = [simulator.openai] if how == "embed" else [simulator.anthropic, simulator.openai]
        fields = {"model": simulator.openai.embedding_model} if how == "embed" else {}
        gateway = gateway_for(*vendors, fields=fields)
        headers = {"TraceParent": TRACEPARENT, "tracestate": "a=b", "X-Request-ID": "r-1"}
        origin = Origin(headers=headers)
        if how == "stream":
            async for _ in gateway.stream("hi", origin=origin):
                pass
        else:
            await (gateway.chat if how == "chat" else gateway.embed)("hi", origin=origin)
        assert len(observed.attempts) == len(vendors)
        for vendor, span in zip(vendors, observed.attempts, strict=True):
            (received,) = vendor.received
            assert (
                received.headers["traceparent"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
            )
            assert len(received.headers.getall("traceparent")) == 1
            assert received.headers["tracestate"] == "a=b"
            assert received.headers["x-request-id"] == "r-1"

    async def test_the_current_span_stands_over_the_header(self, simulator, observed, gateway_for):
        origin = Origin(headers={"traceparent": TRACEPARENT})
        with observed.tracers.get_tracer("app").start_as_current_span("caller") as caller:
            await gateway_for(simulator.openai).chat("hi", origin=origin)
        (request,) = observed.requests
        assert is_child(request, caller)

    async def test_not_if_unwanted(self, simulator, observed, gateway_for):
        gateway = gateway_for(simulator.openai, hook=observed.hook(propagate=False))
        await gateway.chat("hi")
        await gateway.chat("ho", origin=Origin(headers={"traceparent": TRACEPARENT}))
        first, second = simulator.openai.received
        assert "traceparent" not in first.headers
        assert second.headers["traceparent"] == TRACEPARENT

    async def test_without_an_sdk_nothing_changes(self, simulator, gateway_for):
        gateway = gateway_for(simulator.openai, hook=OpenTelemetry(trace.NoOpTracerProvider()))
        await gateway.chat("hi")
        await gateway.chat("ho", origin=Origin(headers={"traceparent": "nonsense"}))
        first, second = simulator.openai.received
        assert "traceparent" not in first.headers
        assert second.headers["traceparent"] == "nonsense"


class TestContent:
    async def test_none_unless_asked(self, simulator, observed, gateway_for):
        simulator.openai.answer("a secret answer")
        await gateway_for(simulator.openai).chat("a secret prompt", system="a secret system")
        assert "secret" not in "".join(span.to_json() for span in observed.spans)

    async def test_in_the_requests_span_if_asked(self, simulator, observed, gateway_for):
        simulator.openai.answer("Four.")
        gateway = gateway_for(simulator.openai, hook=observed.hook(capture_content=True))
        messages = [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"a": 2}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ]
        await gateway.chat(messages)
        (request,), (attempt,) = observed.requests, observed.attempts
        assert json.loads(request.attributes[names.GEN_AI_INPUT_MESSAGES]) == [
            {"role": "system", "parts": [{"type": "text", "content": "Be terse."}]},
            {"role": "user", "parts": [{"type": "text", "content": "2+2?"}]},
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "c", "name": "add", "arguments": {"a": 2}}],
            },
            {
                "role": "tool",
                "parts": [{"type": "tool_call_response", "id": "c", "response": "4"}],
            },
        ]
        assert json.loads(request.attributes[names.GEN_AI_OUTPUT_MESSAGES]) == [
            {
                "role": "assistant",
                "parts": [{"type": "text", "content": "Four."}],
                "finish_reason": "stop",
            }
        ]
        assert names.GEN_AI_INPUT_MESSAGES not in attempt.attributes


async def test_a_tracer_that_raises_harms_nobody(simulator, gateway_for):
    class Broken(OpenTelemetry):
        def trace_request(self, request, *, streamed):
            raise LookupError

    assert (await gateway_for(simulator.openai, hook=Broken()).chat("hi")).text


def printed_by(code):
    """What a Python of its own prints, with this package."""
    here = Path(aigateway.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here
    )
    return ran.stdout.splitlines()


def test_nobody_gets_it_unasked():
    code = (
        "import sys, aigateway.gateway, aigateway.telemetry.recorder\n"
        "heavy = {'opentelemetry', 'prometheus_client', 'fastapi', 'uvicorn'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert printed_by(code) == ["[]"]


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = sys.modules['prometheus_client'] = None\n"
        "import aigateway.telemetry as telemetry\n"
        "for name in ('OpenTelemetry', 'Prometheus'):\n"
        "    try: getattr(telemetry, name)\n"
        "    except ModuleNotFoundError as error: print(error)\n"
    )
    otel, prometheus = printed_by(code)
    assert 'pip install "aigateway[otel]"' in otel
    assert 'pip install "aigateway[server]"' in prometheus
