"""Gemini's wire: `generateContent` and its siblings. The error texts are in `gemini_errors`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from aigateway.simulator.answers import (
    Call,
    ChatCall,
    EmbeddingCall,
    ModelsCall,
    Received,
    Reply,
    embed,
)
from aigateway.simulator.faults import Fault, RefusedError
from aigateway.simulator.wires.gemini_errors import failure
from aigateway.simulator.wires.wire import (
    Event,
    Peek,
    SimulatedFailure,
    fresh_id,
    json_body,
    plain_text,
    signature,
    sse,
    text_tokens,
    texts,
    whole_number,
)

__all__ = ["GeminiWire"]

_METHOD = re.compile(r"/v1(?:beta)?/models/(?P<model>[^/:]+):(?P<what>\w+)")
_FINISH_REASONS = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}
_FIELDS = frozenset(
    {
        "contents",
        "tools",
        "toolConfig",
        "safetySettings",
        "systemInstruction",
        "generationConfig",
        "cachedContent",
        "labels",
        "model",
    }
)


class GeminiWire:
    """`POST /v1beta/models/<model>:<method>`, and the list of models."""

    def __init__(self) -> None:
        self.name = "gemini"
        self.default_model = "gemini-3.5-flash-lite"

    def peek(self, received: Received) -> Peek:
        """Both are in the path."""
        found = _METHOD.fullmatch(received.path)
        if not found:
            return Peek(self.default_model, stream=False)
        return Peek(found["model"], found["what"] == "streamGenerateContent")

    def read(self, received: Received, keys: frozenset[str] | None) -> Call:
        """Check path, key and body."""
        found = _METHOD.fullmatch(received.path)
        lists_models = received.path in {"/v1beta/models", "/v1/models"}
        if received.method != ("GET" if lists_models else "POST"):
            raise RefusedError(Fault("wrong_path"))
        key = received.headers.get("x-goog-api-key") or received.query.get("key")
        if not key:
            raise RefusedError(Fault("missing_key"))
        if keys is not None and key not in keys:
            raise RefusedError(Fault.bad_key())
        if lists_models:
            return ModelsCall()
        if not found:
            raise RefusedError(Fault("wrong_path"))
        return _read(found["model"], found["what"], received)

    def chat(self, call: ChatCall, reply: Reply) -> dict[str, Any]:
        """Return a `GenerateContentResponse`."""
        finish = _FINISH_REASONS.get(reply.finish_reason, reply.finish_reason)
        candidates = [_candidate(index, list(_parts(reply)), finish) for index in range(call.n)]
        return _response(call, reply, candidates, ended=True)

    def events(self, call: ChatCall, reply: Reply) -> Iterator[Event]:
        """Partial responses; the finish reason and the full usage come with the last."""
        chunks = list(self._chunks(call, reply))
        for position, (chunk, content) in enumerate(chunks):
            if not call.json_array:
                yield Event(sse(chunk), content, ending=not content)
                continue
            opening = b"[" if position == 0 else b",\r\n"
            closing = b"]" if position == len(chunks) - 1 else b""
            data = opening + orjson.dumps(chunk) + closing
            yield Event(data, content, ending=not content)

    def embeddings(self, call: EmbeddingCall) -> dict[str, Any]:
        """One embedding, or one for each request of a batch."""
        vectors = [{"values": embed(text, call.dimensions)} for text in call.inputs]
        return {"embeddings": vectors} if call.batch else {"embedding": vectors[0]}

    def models(self, call: ModelsCall) -> dict[str, Any]:
        """Return a list with one model."""
        del call
        methods = ["generateContent", "streamGenerateContent", "embedContent"]
        name = f"models/{self.default_model}"
        return {"models": [{"name": name, "supportedGenerationMethods": methods}]}

    def failure(self, fault: Fault, model: str) -> SimulatedFailure:
        """Return a `google.rpc.Status`; a refused prompt is a 200 without candidates."""
        if fault.name == "content_policy":
            tokens = {"promptTokenCount": 1, "totalTokenCount": 1}
            feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
            return SimulatedFailure(
                200, feedback | {"usageMetadata": tokens, "modelVersion": model}
            )
        return failure(fault, model)

    def error_event(self, call: ChatCall) -> bytes:
        """Return a `google.rpc.Status` where a partial response should be."""
        return sse(self.failure(Fault.overloaded(), call.model).body)

    def headers(self) -> dict[str, str]:
        """Return the headers of Google's front end."""
        return {"server": "scaffolding on HTTPServer2", "x-content-type-options": "nosniff"}

    @staticmethod
    def _chunks(call: ChatCall, reply: Reply) -> Iterator[tuple[dict[str, Any], bool]]:
        pieces = list(_pieces(reply)) if reply.show_choices else []
        response_id = {"responseId": fresh_id("")}  # the same in every part of a stream
        for index in range(call.n):
            for part in pieces:
                candidate = _candidate(index, [part], None)
                yield _response(call, reply, [candidate], ended=False) | response_id, True
        finish = _FINISH_REASONS.get(reply.finish_reason, reply.finish_reason)
        endings = [_candidate(index, [{"text": ""}], finish) for index in range(call.n)]
        yield _response(call, reply, endings, ended=True) | response_id, False


def _read(model: str, what: str, received: Received) -> Call:
    body = {_camel(name): value for name, value in json_body(received).items()}
    match what:
        case "generateContent" | "streamGenerateContent":
            stream = what == "streamGenerateContent"
            sse_wanted = received.query.get("alt") == "sse"
            return _read_chat(model, body, stream=stream, json_array=stream and not sse_wanted)
        case "embedContent":
            return _read_embeddings(model, [body], batch=False)
        case "batchEmbedContents":
            return _read_embeddings(model, body.get("requests") or [], batch=True)
        case _:
            raise RefusedError(Fault("wrong_path"))


def _read_chat(model: str, body: Mapping[str, Any], *, stream: bool, json_array: bool) -> ChatCall:
    for name in body.keys() - _FIELDS:
        text = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
        raise RefusedError(Fault.bad_request(text))
    contents = body.get("contents")
    _check_contents(model, contents)
    assert isinstance(contents, list)  # noqa: S101 - checked above
    config = {_camel(k): v for k, v in (body.get("generationConfig") or {}).items()}
    said = [plain_text(c["parts"]) for c in contents if c.get("role", "user") == "user"]
    said = [text for text in said if text]
    system = (body.get("systemInstruction") or {}).get("parts")
    return ChatCall(
        model=model,
        prompt=said[-1] if said else "",
        prompt_tokens=text_tokens([system, *(c["parts"] for c in contents)]),
        stream=stream,
        json_array=json_array,
        n=whole_number(config.get("candidateCount")) or 1,
        max_tokens=whole_number(config.get("maxOutputTokens")),
        stop=texts(config.get("stopSequences")),
        schema=config.get("responseSchema") or config.get("responseJsonSchema"),
        json_mode=config.get("responseMimeType") == "application/json",
        forced_tool=_forced_tool(body),
    )


_SIGNS = re.compile(r"gemini-[3-9]")
_STAND_IN = "skip_thought_signature_validator"


def _check_contents(model: str, contents: Any) -> None:
    if not isinstance(contents, list) or not contents:
        text = "* GenerateContentRequest.contents: contents is not specified\n"
        raise RefusedError(Fault.bad_request(text))
    for content in contents:
        if content.get("role", "user") not in {"user", "model", "function"}:
            raise RefusedError(Fault.bad_request("Please use a valid role: user, model."))
        if not content.get("parts"):
            text = "* GenerateContentRequest.contents: contents.parts must not be empty.\n"
            raise RefusedError(Fault.bad_request(text))
        if content.get("role") == "model":
            _check_signatures(model, content["parts"])


def _check_signatures(model: str, parts: list[Mapping[str, Any]]) -> None:
    calls = [part for part in parts if part.get("functionCall") or part.get("function_call")]
    signatures = [part.get("thoughtSignature") or part.get("thought_signature") for part in parts]
    known = {signature("gemini", _called(part)) for part in calls}
    known |= {signature("gemini", str(part.get("text"))) for part in parts}
    known |= {_STAND_IN, base64.b64encode(_STAND_IN.encode()).decode()}
    if not known.issuperset(filter(None, signatures)):
        raise RefusedError(Fault.bad_request("Thought signature is not valid."))
    first = calls[0] if calls else {"thoughtSignature": "-"}
    if _SIGNS.search(model) and not (
        first.get("thoughtSignature") or first.get("thought_signature")
    ):
        text = (
            "Function call is missing a thought_signature in functionCall parts. This is "
            "required for tools to work correctly, and missing thought_signature may lead to "
            f"degraded model performance. Function call `{_called(first)}`."
        )
        raise RefusedError(Fault.bad_request(text))


def _called(part: Mapping[str, Any]) -> str:
    return str((part.get("functionCall") or part["function_call"])["name"])


def _forced_tool(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    declared: dict[str, Mapping[str, Any]] = {}
    for tool in body.get("tools") or ():
        for name in ("functionDeclarations", "function_declarations"):
            declared |= {function["name"]: function for function in tool.get(name) or ()}
    config = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if str(config.get("mode", "")).upper() != "ANY":
        return None
    if not declared:
        text = "Function calling config is set without function_declarations."
        raise RefusedError(Fault.bad_request(text))
    name = (config.get("allowedFunctionNames") or list(declared))[0]
    function = declared.get(name, {})
    return name, function.get("parameters") or function.get("parametersJsonSchema") or {}


def _read_embeddings(model: str, requests: list[Any], *, batch: bool) -> EmbeddingCall:
    if not requests:
        text = "* BatchEmbedContentsRequest.requests: requests is not specified\n"
        raise RefusedError(Fault.bad_request(text))
    inputs = [plain_text((request.get("content") or {}).get("parts")) for request in requests]
    if not all(inputs):
        text = "* EmbedContentRequest.content: contents is not specified\n"
        raise RefusedError(Fault.bad_request(text))
    size = requests[0].get("outputDimensionality", requests[0].get("output_dimensionality"))
    return EmbeddingCall(model, tuple(inputs), dimensions=whole_number(size), batch=batch)


def _camel(name: str) -> str:
    """Return a field in either spelling."""
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), name)


def _parts(reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning is not None:
        yield {"text": reply.reasoning, "thought": True}
    if reply.text or not reply.tool_calls:
        # It may sign a text, too.
        signed = {"thoughtSignature": signature("gemini", reply.text)} if reply.reasoning else {}
        yield {"text": reply.text, **signed}
    for place, tool in enumerate(reply.tool_calls):
        # It signs the first call of a turn.
        signed = {} if place else {"thoughtSignature": signature("gemini", tool.name)}
        yield {"functionCall": {"name": tool.name, "args": tool.as_object()}, **signed}


def _pieces(reply: Reply) -> Iterator[dict[str, Any]]:
    """Yield the parts of a stream: text in pieces, function calls whole."""
    for part in _parts(reply):
        if "text" in part and not part.get("thought"):
            yield from ({"text": piece} for piece in reply.pieces)
            if "thoughtSignature" in part:
                yield part | {"text": ""}
        else:
            yield part


def _candidate(index: int, parts: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": index}
    if finish is not None:
        candidate["finishReason"] = finish
    if finish == "SAFETY":
        del candidate["content"]
    return candidate


def _response(
    call: ChatCall, reply: Reply, candidates: list[dict[str, Any]], *, ended: bool
) -> dict[str, Any]:
    response: dict[str, Any] = {"modelVersion": call.model, "responseId": fresh_id("")}
    if reply.show_choices:
        response["candidates"] = candidates
    if reply.show_usage:
        response["usageMetadata"] = _usage(reply, ended=ended)
    return response


def _usage(reply: Reply, *, ended: bool) -> dict[str, Any]:
    # Here thoughts are not counted among the candidates' tokens.
    usage: dict[str, Any] = {"promptTokenCount": reply.prompt_tokens}
    if ended:
        usage["candidatesTokenCount"] = reply.completion_tokens - reply.reasoning_tokens
        usage["thoughtsTokenCount"] = reply.reasoning_tokens
        usage["cachedContentTokenCount"] = reply.cached_tokens
    usage["totalTokenCount"] = reply.total_tokens if ended else reply.prompt_tokens
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": reply.prompt_tokens}]
    return {name: value for name, value in usage.items() if value}
