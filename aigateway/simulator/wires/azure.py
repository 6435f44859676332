"""Azure OpenAI's wire: OpenAI's bodies, other paths, another key header, other errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aigateway.simulator.answers import Call, ChatCall, ModelsCall, Received, Reply
from aigateway.simulator.faults import Fault, RefusedError
from aigateway.simulator.wires.openai import (
    OpenAIWire,
    check_fields,
    read_chat,
    read_embeddings,
)
from aigateway.simulator.wires.wire import (
    Event,
    Peek,
    SimulatedFailure,
    Words,
    fresh_id,
    json_body,
    retry_headers,
    sse,
    words_for,
)

__all__ = ["AzureWire"]

_DEPLOYMENT = re.compile(
    r"/openai/deployments/(?P<model>[^/]+)/(?P<what>chat/completions|embeddings)"
)
_VERSIONLESS = re.compile(r"/openai/v1/(?P<what>chat/completions|embeddings|models|responses)")
_RESPONSES = "/openai/responses"

_SAFE: dict[str, Any] = {
    category: {"filtered": False, "severity": "safe"}
    for category in ("hate", "self_harm", "sexual", "violence")
}
_SAFE_PROMPT = _SAFE | {"jailbreak": {"filtered": False, "detected": False}}


class AzureWire(OpenAIWire):
    """`/openai/deployments/<name>/...?api-version=` and the newer `/openai/v1/...`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "azure"

    def peek(self, received: Received) -> Peek:
        """The deployment is in the path."""
        found = _DEPLOYMENT.fullmatch(received.path)
        peek = super().peek(received)
        return Peek(found["model"], peek.stream) if found else peek

    def read(self, received: Received, keys: frozenset[str] | None) -> Call:
        """Check key, path, api-version and body."""
        self._check_key(received, keys)
        if received.path == _RESPONSES and received.query.get("api-version"):
            return self._read_response(received)
        deployed = _DEPLOYMENT.fullmatch(received.path)
        found = deployed or _VERSIONLESS.fullmatch(received.path)
        if not found or (deployed and not received.query.get("api-version")):
            raise RefusedError(Fault("wrong_path"))
        if received.method != ("GET" if found["what"] == "models" else "POST"):
            raise RefusedError(Fault("wrong_method"))
        if found["what"] == "models":
            return ModelsCall()
        if found["what"] == "responses":
            return self._read_response(received)
        if found["what"] == "chat/completions":
            check_fields(received.body)
        read = read_chat if found["what"] == "chat/completions" else read_embeddings
        return read(json_body(received), self.peek(received).model)

    def chat(self, call: ChatCall, reply: Reply) -> dict[str, Any]:
        """OpenAI's body with the content filter's results."""
        body = super().chat(call, reply)
        if "choices" not in body:
            return body
        for choice in body["choices"]:
            self._decorated(choice)
        return body | {
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _SAFE_PROMPT}]
        }

    def _chunks(self, call: ChatCall, reply: Reply) -> Iterator[Event]:
        """A chunk without choices comes first: the filter's results for the prompt."""
        results = {"prompt_index": 0, "content_filter_results": _SAFE_PROMPT}
        first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
        yield Event(sse(first | {"prompt_filter_results": [results]}))
        yield from super()._chunks(call, reply)

    def failure(self, fault: Fault, model: str) -> SimulatedFailure:
        """Mostly `{"error": {"code", "message"}}`; errors of the model have OpenAI's form."""
        if fault.name == "content_policy":
            return _filtered(fault)
        if fault.name in _OPENAI_FORM or (fault.name == "bad_request" and fault.message):
            return super().failure(fault, model)
        words = words_for(fault, _ERRORS, _BY_STATUS, model)
        error = {"code": words.code or str(words.status), "message": words.message}
        return SimulatedFailure(words.status, {"error": error}, retry_headers(fault.retry_after))

    def headers(self) -> dict[str, str]:
        """Return the headers of the gateway in front of Azure."""
        return {"apim-request-id": fresh_id(""), "x-ms-region": "Loopback"}

    def _check_key(self, received: Received, keys: frozenset[str] | None) -> None:
        bearer = received.headers.get("authorization", "").removeprefix("Bearer ")
        key = received.headers.get("api-key") or bearer
        if not key:
            raise RefusedError(Fault("missing_key"))
        if keys is not None and key not in keys:
            raise RefusedError(Fault.bad_key())

    def _decorated(self, choice: dict[str, Any]) -> dict[str, Any]:
        choice["content_filter_results"] = _SAFE
        return choice


def _filtered(fault: Fault) -> SimulatedFailure:
    results: Mapping[str, Any] = _SAFE_PROMPT | {"hate": {"filtered": True, "severity": "high"}}
    error = {
        "message": fault.message
        or "The response was filtered due to the prompt triggering Azure OpenAI's content "
        "management policy. Please modify your prompt and retry. To learn more about our content "
        "filtering policies please read our documentation: "
        "https://go.microsoft.com/fwlink/?linkid=2198766",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": results},
    }
    return SimulatedFailure(400, {"error": error})


_OPENAI_FORM = frozenset(
    {"broken_json", "context_window", "file_not_found", "insufficient_quota", "no_tools"}
)


def _wrong_operation(operation: str) -> Words:
    return Words(
        400,
        None,
        f"The {operation} operation does not work with the specified model, {{model}}. Please "
        "choose different model and try again. You can learn more about which models can be used "
        "with each operation here: https://go.microsoft.com/fwlink/?linkid=2197993.",
        code="OperationNotSupported",
    )


_ERRORS = {
    "bad_request": Words(400, None, "The request is invalid.", code="BadRequest"),
    "wrong_path": Words(404, None, "Resource not found"),
    "wrong_method": Words(405, None, "Method not allowed"),
    "missing_key": Words(
        401,
        None,
        "Unauthorized. Access token is missing, invalid, audience is incorrect "
        "(https://cognitiveservices.azure.com), or have expired.",
    ),
    "bad_key": Words(
        401,
        None,
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to "
        "provide a valid key for an active subscription and use a correct regional API endpoint "
        "for your resource.",
    ),
    "forbidden": Words(403, None, "Access denied due to Virtual Network/Firewall rules."),
    "region": Words(
        403,
        None,
        "Country, region, or territory not supported",
        code="unsupported_country_region_territory",
    ),
    "too_large": Words(413, None, "The request body is too large.", code="RequestEntityTooLarge"),
    "unsupported_media": Words(415, None, "Unsupported Media Type", code="UnsupportedMediaType"),
    "retired_model": Words(
        410,
        None,
        "The model {model} of this deployment has been deprecated and is no longer available. "
        "Please deploy a newer model.",
        code="ModelDeprecated",
    ),
    "model_not_found": Words(
        404,
        None,
        "The API deployment for this resource does not exist. If you created the deployment "
        "within the last 5 minutes, please wait a moment and try again.",
        code="DeploymentNotFound",
    ),
    "not_a_chat_model": _wrong_operation("chatCompletion"),
    "not_an_embedding_model": _wrong_operation("embeddings"),
    "no_credit": Words(
        402, None, "The subscription has no remaining credit.", code="PaymentRequired"
    ),
    "rate_limited": Words(
        429,
        None,
        "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version "
        "2024-10-21 have exceeded call rate limit of your current OpenAI S0 pricing tier.{retry} "
        "Please go here: https://aka.ms/oai/quotaincrease if you would like to further increase "
        "the default rate limit.",
    ),
    "server_error": Words(
        500,
        None,
        "The server had an error processing your request. Sorry about that! You can retry your "
        "request, or contact us through an Azure support request if the error persists.",
        code="InternalServerError",
    ),
    "overloaded": Words(
        503,
        None,
        "The service is temporarily unable to process your request. Please try again later.",
        code="ServiceUnavailable",
    ),
}

_BY_STATUS = {
    400: "bad_request",
    401: "bad_key",
    402: "no_credit",
    403: "forbidden",
    404: "model_not_found",
    405: "wrong_method",
    410: "retired_model",
    413: "too_large",
    415: "unsupported_media",
    429: "rate_limited",
    500: "server_error",
    503: "overloaded",
}
