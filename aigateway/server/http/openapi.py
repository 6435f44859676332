"""The OpenAPI document: what the endpoints that are written by hand take and give."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from aigateway.server.http import schema as shapes
from aigateway.server.http.headers import LABEL, SECONDS

__all__ = ["completed"]

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_NUMBER: Json = {"type": "number"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_FLAG: Json = {"type": "boolean"}


def completed(document: Json) -> Json:
    """Add the endpoints that FastAPI does not know by itself."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update({**_bodies(), **_ANSWERS})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in _paths().items():
        document.setdefault("paths", {}).setdefault(path, {}).update(methods)
    for name, operation in document["paths"].items():
        if name.startswith("/admin/"):
            operation["post"]["security"] = [{"key": []}, {}]
            operation["post"]["responses"].pop("422", None)  # FastAPI's own form, never given
    return document


# ── schemas ──────────────────────────────────────────────────────────────────────────────────


def _object(properties: Json, required: tuple[str, ...] | None = None) -> Json:
    """An object; without `required` all of it is there."""
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": names}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


@cache
def _bodies() -> Json:
    """The forms that bodies are checked by."""
    schemas: Json = {}
    forms: tuple[tuple[str, TypeAdapter[Any]], ...] = (
        ("CompletionRequest", shapes.COMPLETION),
        ("PromptRequest", shapes.PROMPT),
        ("MessagesRequest", shapes.MESSAGES),
        ("EmbeddingRequest", shapes.EMBEDDING),
    )
    for name, form in forms:
        schema = form.json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    return schemas


_USAGE = {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
_CALL = _object(
    {
        "id": _TEXT,
        "type": {"enum": ["function", "custom"]},
        "function": _object({"name": _TEXT, "arguments": _TEXT}),
        "custom": _object({"name": _TEXT, "input": _TEXT}),
    },
    ("id", "type"),
)
_MEDIA = {
    "images": _list(
        _object(
            {"index": _COUNT, "type": {"const": "image_url"}, "image_url": _object({"url": _TEXT})}
        )
    ),
    "audio": _object(
        {"id": _TEXT, "data": _TEXT, "transcript": _TEXT, "expires_at": _COUNT},
        ("data", "transcript", "expires_at"),
    ),
    "annotations": _list({"type": "object"}),
}
_BESIDE = {"system_fingerprint": _TEXT, "service_tier": _TEXT}
_MODEL = _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT})

_ANSWERS: Json = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _or_null(_TEXT),
                    "code": _or_null(_TEXT),
                    "detail": _TEXT,
                },
                ("message", "type", "param", "code"),
            )
        }
    ),
    "ChatAnswer": _object(
        {
            "response": _TEXT,
            "provider": _TEXT,
            "model": _TEXT,
            "cached": _FLAG,
            "stale": _FLAG,
            "coalesced": _FLAG,
            "usage": _object(
                {
                    **_USAGE,
                    "cached_tokens": _COUNT,
                    "reasoning_tokens": _COUNT,
                    "cache_write_tokens": _COUNT,
                }
            ),
            "cost_usd": _or_null(_NUMBER),
            "latency_seconds": _NUMBER,
            "attempts": _list(
                _object(
                    {
                        "provider": _TEXT,
                        "model": _TEXT,
                        "failure": _or_null(_TEXT),
                        "status": _or_null({"type": "integer"}),
                        "latency_seconds": _NUMBER,
                        "cost_usd": _or_null(_NUMBER),
                    }
                )
            ),
            "request_id": _TEXT,
            "finish_reason": _or_null(_TEXT),
            "refusal": _or_null(_TEXT),
            "tool_calls": _list(_CALL),
            **_MEDIA,
            **_BESIDE,
        },
        (
            "response",
            "provider",
            "model",
            "cached",
            "stale",
            "coalesced",
            "usage",
            "cost_usd",
            "latency_seconds",
            "attempts",
            "request_id",
            "finish_reason",
            "refusal",
            "tool_calls",
        ),
    ),
    "Completion": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "finish_reason": _or_null(_TEXT),
                        "logprobs": _or_null({"type": "object"}),
                        "message": _object(
                            {
                                "role": {"const": "assistant"},
                                "content": _or_null(_TEXT),
                                "refusal": _or_null(_TEXT),
                                "reasoning_content": _TEXT,
                                "tool_calls": _list(_CALL),
                                **_MEDIA,
                            },
                            ("role", "content", "refusal"),
                        ),
                    }
                )
            ),
            "usage": _object(_USAGE),
            **_BESIDE,
        },
        ("id", "object", "created", "model", "choices", "usage"),
    ),
    "Event": {
        **_object({"data": _TEXT}),
        "description": "A chat.completion.chunk in JSON, an error, or [DONE].",
    },
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_list(_NUMBER), _TEXT]},
                    }
                )
            ),
            "model": _TEXT,
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Ready": _object({"status": {"const": "ready"}}),
    "NotReady": _object({"status": {"const": "unavailable"}, "reason": _TEXT}),
    "Health": _object({"status": {"const": "ok"}}),
    "Metrics": {"type": "object"},
}


# ── paths ────────────────────────────────────────────────────────────────────────────────────

_REFUSALS = {
    400: "The request is at fault; the message says what to change.",
    401: "A key is needed, or not known.",
    403: "Without keys: the request is of another host, or of another origin's page.",
    404: "There is no such model.",
    408: "The request was too slow to arrive.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    429: "Too many requests, or too expensive ones: here, or at every provider.",
    500: "Something is broken here.",
    503: "Nobody could answer.",
    504: "The request's time was over.",
}
_WATCHED = (401, 403, 500)
_OPEN = (403, 500)


def _asked(name: str, what: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "description": what, "schema": schema}


_SECONDS = {"type": "string", "pattern": f"^({SECONDS})$"}
_ASKED = [
    _asked(
        "x-aigateway-cache",
        "Whether a remembered answer will do; refresh only fills the cache.",
        {"enum": ["true", "false", "refresh"]},
    ),
    _asked("x-aigateway-cache-ttl", "Seconds to remember the answer.", _SECONDS),
    _asked(
        "x-aigateway-timeout",
        "Seconds for the whole request; of a stream, until its first content.",
        _SECONDS,
    ),
    _asked(
        "x-aigateway-resume",
        "What becomes of a stream that breaks after its first content.",
        {"enum": ["continue", "restart", "none"]},
    ),
    _asked(
        "x-aigateway-agent",
        "Whose request it is.",
        {"type": "string", "pattern": f"^{LABEL}$"},
    ),
]
_TOLD = {
    "x-request-id": "Names the request in logs.",
    "x-aigateway-provider": "Who answered.",
    "x-aigateway-cache": "hit, miss, stale, coalesced or off.",
    "x-aigateway-attempts": "Calls that it took.",
    "x-aigateway-cost": "US dollars, where that is known; not with streams.",
}


def _content(name: str, kind: str = "application/json") -> Json:
    return {kind: {"schema": _ref(name)}}


def _refusals(statuses: Mapping[int, str]) -> Json:
    return {
        str(status): {"description": what, "content": _content("Error")}
        for status, what in statuses.items()
    }


def _asking(summary: str, body: Json, answer: Json) -> Json:
    """An endpoint that asks providers."""
    told = {name: {"description": what, "schema": _TEXT} for name, what in _TOLD.items()}
    return {
        "post": {
            "summary": summary,
            "security": [{"key": []}, {}],
            "parameters": _ASKED,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": {"description": "The answer.", "content": answer, "headers": told},
                **_refusals(_REFUSALS),
            },
        }
    }


def _watching(
    summary: str,
    answer: Json,
    more: Json | None = None,
    parameters: list[Json] | None = None,
    *,
    with_key: bool = True,
) -> Json:
    """An endpoint that only looks."""
    refused = _WATCHED if with_key else _OPEN
    refusals = _refusals({status: _REFUSALS[status] for status in refused})
    responses = {"200": {"description": "The answer.", "content": answer}, **refusals}
    get: Json = {"summary": summary, "responses": {**responses, **(more or {})}}
    if with_key:
        get["security"] = [{"key": []}, {}]
    if parameters:
        get["parameters"] = parameters
    return {"get": get}


def _paths() -> Json:
    model = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    text = {"schema": _TEXT}
    return {
        "/chat": _asking(
            "Answer a message",
            {"oneOf": [_ref("PromptRequest"), _ref("MessagesRequest")]},
            _content("ChatAnswer"),
        ),
        "/health": _watching("Whether the process is alive", _content("Health"), with_key=False),
        "/ready": _watching(
            "Whether a request would find a provider",
            _content("Ready"),
            {"503": {"description": "It would not.", "content": _content("NotReady")}},
            with_key=False,
        ),
        "/metrics": _watching(
            "What happened so far",
            {
                **_content("Metrics"),
                "text/plain": text,
                "application/openmetrics-text": text,
            },
        ),
        "/v1/chat/completions": _asking(
            "Answer a chat, whole or piece by piece",
            _ref("CompletionRequest"),
            {**_content("Completion"), **_content("Event", "text/event-stream")},
        ),
        "/v1/embeddings": _asking(
            "Turn texts into vectors", _ref("EmbeddingRequest"), _content("Embeddings")
        ),
        "/v1/models": _watching("The models that may be asked for", _content("Models")),
        "/v1/models/{model}": _watching(
            "One of them",
            _content("Model"),
            _refusals({404: _REFUSALS[404]}),
            [model],
        ),
    }
