"""OpenTelemetry: spans and metrics by the semantic conventions for generative AI.

    AsyncGateway(hooks=[OpenTelemetry()])

One span for each request (`chat {model}`, internal: the work of this gateway), below it one for
each attempt (`chat {model}`, client: a call to a vendor). Tokens stand at the attempts, which are
paid for, so that adding up spans counts them once.

Needs `opentelemetry-api` (extra `[otel]`); the application chooses SDK and exporter.
The conventions: https://github.com/open-telemetry/semantic-conventions-genai.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from opentelemetry import metrics, trace
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import Meter, MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aigateway.errors import FailureKind
from aigateway.events import AttemptEnded, Event, Operation, RequestEnded
from aigateway.messages import ChatRequest, Choice, Completion, EmbeddingRequest
from aigateway.settings.secrets import has_a_key, tells_a_key
from aigateway.telemetry.recorder import TracedAnswer
from aigateway.version import __version__

__all__ = ["OpenTelemetry"]

_PROVIDER_NAMES: Mapping[str, str] = {
    # `ProviderType`, or what litellm puts before the slash: the convention's name.
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}

_PARAMS: Mapping[str, str] = {
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
}
_OUTPUT_TYPES = {"json_object": "json", "json_schema": "json", "text": "text"}

_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
_TOKENS = [float(4**power) for power in range(14)]
"""Buckets of the conventions."""

_NO_ERROR = frozenset({FailureKind.CANCELLED, FailureKind.DEADLINE, FailureKind.HEDGE_LOST})

_UNKNOWN = "aigateway"
"""`gen_ai.provider.name` of a request for which no vendor was asked."""

_carrier = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class _Instruments:
    """The tracer, the histograms and the options."""

    tracer: Tracer
    duration: metrics.Histogram
    first_chunk: metrics.Histogram
    tokens: metrics.Histogram
    requests: metrics.Histogram
    capture_content: bool
    propagate: bool
    names: dict[str, str]
    """The conventions' name of the vendor of each provider seen so far."""


class OpenTelemetry:
    """A hook that writes spans and metrics.

    A request's span is a child of the caller's current span. Where there is none, it continues the
    trace of the request's own `traceparent` header (see `Origin.headers`), if it has one.

    Args:
        tracer_provider: None uses the global one.
        meter_provider: Likewise for metrics.
        capture_content: Write prompts and answers into the requests' spans. They are often personal
            data, so this is off by default.
        propagate: Send each attempt's own `traceparent` to its vendor, in place of the caller's.
    """

    wants: tuple[type[Event], ...] = ()

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        capture_content: bool = False,
        propagate: bool = True,
    ) -> None:
        tracer = trace.get_tracer("aigateway", __version__, tracer_provider)
        meter = metrics.get_meter("aigateway", __version__, meter_provider)
        self._instruments = _instruments(
            tracer, meter, capture_content=capture_content, propagate=propagate
        )

    @staticmethod
    def goes_nowhere() -> bool:
        """Return whether no SDK is set up in this process that spans would go to."""
        return isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

    def on_event(self, event: Event) -> None:
        """Do nothing: traces get the same events."""

    def trace_request(
        self, request: ChatRequest | EmbeddingRequest, *, streamed: bool
    ) -> _RequestSpan:
        """Begin the span of a request."""
        return _RequestSpan(self._instruments, request, streamed=streamed)


class _RequestSpan:
    __slots__ = ("_attributes", "_context", "_operation", "_span", "_to")

    def __init__(
        self, to: _Instruments, request: ChatRequest | EmbeddingRequest, *, streamed: bool
    ) -> None:
        chat = isinstance(request, ChatRequest)
        self._to = to
        self._operation: Operation = "chat" if chat else "embeddings"
        self._attributes = _asked(self._operation, request, streamed=streamed)
        parent = _parent(request.headers)
        self._span = to.tracer.start_span(
            _name(self._operation, request.model),
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes={
                **self._attributes,
                "gen_ai.provider.name": _UNKNOWN,
                "aigateway.request.id": request.request_id,
                **({"gen_ai.request.model": request.model} if request.model else {}),
            },
        )
        self._context = trace.set_span_in_context(self._span, parent)
        if isinstance(request, ChatRequest) and to.capture_content and self._span.is_recording():
            self._span.set_attribute("gen_ai.input.messages", _input_messages(request.messages))

    def attempt(self, provider: str, vendor: str, model: str, number: int) -> _AttemptSpan:
        name = self._to.names[provider] = _provider_name(vendor, model)
        span = self._to.tracer.start_span(
            _name(self._operation, model),
            context=self._context,
            kind=SpanKind.CLIENT,
            attributes={
                **self._attributes,
                "gen_ai.provider.name": name,
                "gen_ai.request.model": model,
                "aigateway.provider": provider,
                "aigateway.attempt": number,
            },
        )
        return _AttemptSpan(self._to, span, name)

    def ended(self, event: RequestEnded, answer: TracedAnswer | None) -> None:
        span = self._span
        attributes: dict[str, Any] = {
            "aigateway.outcome": event.outcome,
            "aigateway.attempts": event.attempts,
            "aigateway.overhead_seconds": event.overhead_seconds,
        }
        if event.provider is not None:
            attributes["aigateway.provider"] = event.provider
            attributes["gen_ai.provider.name"] = self._to.names.get(event.provider, _UNKNOWN)
        if event.first_content_seconds is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = event.first_content_seconds
        if answer is not None:
            attributes |= _answered(answer)
        if event.error:
            cancelled = event.outcome == "cancelled"
            attributes["error.type"] = FailureKind.CANCELLED.value if cancelled else event.error
            if not cancelled:
                span.set_status(Status(StatusCode.ERROR))
        if isinstance(answer, Completion) and self._to.capture_content and span.is_recording():
            attributes["gen_ai.output.messages"] = _output_messages(answer.choices)
        span.set_attributes(attributes)
        span.end()
        self._to.requests.record(
            event.latency_seconds,
            {"gen_ai.operation.name": event.operation, "aigateway.outcome": event.outcome},
        )


class _AttemptSpan:
    __slots__ = ("_name", "_span", "_to", "headers")

    def __init__(self, to: _Instruments, span: Span, name: str) -> None:
        self._to = to
        self._span = span
        self._name = name
        self.headers: dict[str, str] = {}
        if to.propagate:
            _carrier.inject(self.headers, trace.set_span_in_context(span, Context()))

    def ended(self, event: AttemptEnded, answer: TracedAnswer | None) -> None:
        span, usage = self._span, event.usage
        attributes: dict[str, Any] = {} if answer is None else _answered(answer)
        if usage.total_tokens:
            attributes |= {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
            }
            if usage.cached_tokens:
                attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
            if usage.reasoning_tokens:
                attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
        if event.cost_usd is not None:
            attributes["aigateway.cost_usd"] = event.cost_usd
        if event.first_content_seconds is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = event.first_content_seconds
        if event.failure is not None:
            attributes["error.type"] = event.failure.value
            if event.failure not in _NO_ERROR:
                span.set_status(Status(StatusCode.ERROR))
        if event.status is not None:
            attributes["http.response.status_code"] = event.status
        span.set_attributes(attributes)
        span.end()
        self._measure(event, answer)

    def _measure(self, event: AttemptEnded, answer: TracedAnswer | None) -> None:
        to, usage = self._to, event.usage
        about: dict[str, Any] = {
            "gen_ai.operation.name": event.operation,
            "gen_ai.provider.name": self._name,
            "gen_ai.request.model": event.model,
        }
        if answer is not None and answer.model and not tells_a_key(answer.model):
            about["gen_ai.response.model"] = answer.model
        context = trace.set_span_in_context(self._span, Context())  # for exemplars
        if usage.total_tokens:
            to.tokens.record(usage.prompt_tokens, {**about, "gen_ai.token.type": "input"}, context)
            if event.operation == "chat":
                output = {**about, "gen_ai.token.type": "output"}
                to.tokens.record(usage.completion_tokens, output, context)
        if event.first_content_seconds is not None:
            to.first_chunk.record(event.first_content_seconds, about, context)
        if event.failure is not None:
            about["error.type"] = event.failure.value
        to.duration.record(event.latency_seconds, about, context)


def _instruments(
    tracer: Tracer, meter: Meter, *, capture_content: bool, propagate: bool
) -> _Instruments:
    def seconds(name: str, description: str) -> metrics.Histogram:
        return meter.create_histogram(
            name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
        )

    return _Instruments(
        tracer,
        duration=seconds("gen_ai.client.operation.duration", "GenAI operation duration."),
        first_chunk=seconds(
            "gen_ai.client.operation.time_to_first_chunk", "Time to receive the first chunk."
        ),
        tokens=meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        ),
        requests=seconds(
            "aigateway.request.duration",
            "Requests to the gateway, however many attempts each took.",
        ),
        capture_content=capture_content,
        propagate=propagate,
        names={},
    )


def _parent(headers: Mapping[str, str]) -> Context:
    """Return the caller's current span, or what the request's own `traceparent` names."""
    context = get_current()
    if not headers or trace.get_current_span(context).get_span_context().is_valid:
        return context
    return _carrier.extract({name.lower(): value for name, value in headers.items()}, context)


def _name(operation: Operation, model: str | None) -> str:
    return f"{operation} {model}" if model else operation


def _provider_name(vendor: str, model: str) -> str:
    if vendor == "litellm":
        vendor = model.partition("/")[0] if "/" in model else vendor
    return _PROVIDER_NAMES.get(vendor, vendor)


def _asked(
    operation: Operation, request: ChatRequest | EmbeddingRequest, *, streamed: bool
) -> dict[str, Any]:
    """Return the attributes that requests and attempts share."""
    params = request.params
    attributes: dict[str, Any] = {"gen_ai.operation.name": operation}
    attributes |= {name: params[param] for param, name in _PARAMS.items() if param in params}
    if streamed:
        attributes["gen_ai.request.stream"] = True
    if params.get("n", 1) != 1:
        attributes["gen_ai.request.choice.count"] = params["n"]
    stop = params.get("stop")
    if stop:
        attributes["gen_ai.request.stop_sequences"] = (
            [stop] if isinstance(stop, str) else list(stop)
        )
    if params.get("dimensions"):
        attributes["gen_ai.embeddings.dimension.count"] = params["dimensions"]
    wanted = params.get("response_format")
    kind = _OUTPUT_TYPES.get(wanted.get("type", "")) if isinstance(wanted, Mapping) else None
    if kind is not None:
        attributes["gen_ai.output.type"] = kind
    return attributes


def _answered(answer: TracedAnswer) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if answer.model and not tells_a_key(answer.model):
        attributes["gen_ai.response.model"] = answer.model
    if isinstance(answer, Completion):
        if answer.id and not has_a_key(answer.id):  # an id is as random as a key
            attributes["gen_ai.response.id"] = answer.id
        reasons = [
            choice.finish_reason
            for choice in answer.choices
            if choice.finish_reason and not tells_a_key(choice.finish_reason)
        ]
        if reasons:
            attributes["gen_ai.response.finish_reasons"] = reasons
    return attributes


# ── prompts and answers ──────────────────────────────────────────────────────────────────────────
#
# Only with `capture_content`: `gen_ai.input.messages` and `gen_ai.output.messages` of the
# conventions are messages of parts, as JSON text.


def _input_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """OpenAI's chat messages as `gen_ai.input.messages`."""
    return _json([_input(message) for message in messages])


def _output_messages(choices: Sequence[Choice]) -> str:
    """All answers as `gen_ai.output.messages`."""
    return _json(
        [
            {
                "role": "assistant",
                "parts": _answer_parts(choice),
                "finish_reason": choice.finish_reason or "",
            }
            for choice in choices
        ]
    )


def _input(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        answer = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        return {"role": role, "parts": [{**answer, "response": content}]}
    parts = [{"type": "text", "content": content}] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [_content_part(part) for part in content]
    for call in message.get("tool_calls") or ():
        called = call.get("custom") or call.get("function") or {}
        given = called.get("input") or called.get("arguments") or ""
        parts.append(_tool_call(call.get("id"), called.get("name"), given))
    return {"role": role, "parts": parts}


def _content_part(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return {"type": "text", "content": part.get("text")}
    if isinstance(part, Mapping):
        return dict(part)  # the conventions have no form for images and audio yet
    return {"type": "text", "content": str(part)}


def _answer_parts(choice: Choice) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if choice.reasoning:
        parts.append({"type": "reasoning", "content": choice.reasoning})
    if choice.text or choice.refusal:
        parts.append({"type": "text", "content": choice.text or choice.refusal})
    parts.extend(_tool_call(call.id, call.name, call.arguments) for call in choice.tool_calls)
    return parts


def _tool_call(call_id: object, name: object, arguments: str) -> dict[str, Any]:
    try:
        read = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        read = arguments  # as the model wrote it
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": read}


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
