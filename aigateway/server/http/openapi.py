"""The OpenAPI document: what its operations share. FastAPI generates it from the endpoints.

The forms of bodies come from `aigateway.request.schema`, those of answers from the endpoints.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.request.schema import json_schemas
from aigateway.server.http.admission import Admission
from aigateway.server.http.call import REQUEST_HEADERS

__all__ = ["DocumentedApp", "body_of", "documented_call", "documented_read", "refusals"]

_REFS = "#/components/schemas/{model}"

_REFUSALS = {
    400: "The request is at fault; the message says what to change.",
    401: "A key is needed, or is not known.",
    403: "Without keys: the request is for another host, or from another origin's page. With keys:"
    " the key may not do this.",
    404: "There is no such model or provider.",
    408: "The request was too slow to arrive.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    429: "Too many requests, or too expensive ones: here, or at every provider.",
    500: "The service failed.",
    503: "No provider could answer.",
    504: "The request's time was over.",
}

_ANTHROPICS_REFUSALS = {
    **_REFUSALS,
    402: "The key's budget is used up.",
    529: "No provider could answer, or too many requests are waiting.",
}
del _ANTHROPICS_REFUSALS[503]

_ANSWER_HEADERS = {
    "x-request-id": "The request's id in logs.",
    "x-aigateway-provider": "The provider that answered.",
    "x-aigateway-cache": "hit, miss, stale, coalesced or off.",
    "x-aigateway-attempts": "Calls that it took.",
    "x-aigateway-cost": "US dollars, where that is known; not with streams.",
}

_TEXT = {"type": "string"}
_KEY: dict[str, Any] = {"security": [{"key": []}, {}]}

_LOOK_SECONDS = 1.0
"""Until a provider of OpenTelemetry that is set while the service runs is noticed."""

Documented = dict[str, Any]
"""Keywords of FastAPI's decorators."""


class _ErrorFields(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None
    detail: NotRequired[str]


class ErrorBody(TypedDict):
    """OpenAI's form of an error."""

    error: _ErrorFields


def refusals(*statuses: int, form: Any = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """Document refusals, in OpenAI's form or another one."""
    texts = _REFUSALS | _ANTHROPICS_REFUSALS
    return {status: {"description": texts[status], "model": form} for status in statuses}


def body_of(schema: Mapping[str, Any]) -> Documented:
    """Document a body by its JSON schema; for `openapi_extra`."""
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, **_KEY}


def documented_call(
    form: str, answer: Any, texts: Mapping[str, str] | None = None, *, anthropic: Any = None
) -> Documented:
    """Document an endpoint that asks providers.

    Args:
        form: The form of its body.
        answer: The type of its answer.
        texts: Further content types of the answer, and what they hold.
        anthropic: Anthropic's form of an error, where errors have that one.
    """
    parameters = [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in REQUEST_HEADERS.items()
    ]
    # Without a type: of a stream some readers see a text, others its events.
    content = {kind: {"schema": {"description": text}} for kind, text in (texts or {}).items()}
    headers = {
        name: {"description": text, "schema": _TEXT} for name, text in _ANSWER_HEADERS.items()
    }
    answered = {"description": "The answer.", "headers": headers, "content": content}
    refused = refusals(*_REFUSALS)
    if anthropic is not None:
        refused = refusals(*_ANTHROPICS_REFUSALS, form=anthropic)
    return {
        "response_model": answer,
        "responses": {200: answered, **refused},
        "openapi_extra": {"parameters": parameters, **body_of({"$ref": _REFS.format(model=form)})},
    }


def documented_read(
    answer: Any,
    *statuses: int,
    texts: Sequence[str] = (),
    with_key: bool = True,
    not_ready: Any = None,
) -> Documented:
    """Document an endpoint that only reads.

    Args:
        answer: The type of its answer.
        statuses: Of refusals, beside those that all have.
        texts: Further content types of the answer.
        with_key: Whether it needs a key.
        not_ready: The type of its answer with 503.
    """
    content = {kind: {"schema": _TEXT} for kind in texts}
    responses = refusals(*(401,) * with_key, 403, 500, *statuses)
    responses[200] = {"description": "The answer.", "content": content}
    if not_ready is not None:
        responses[503] = {"description": "No provider could take a request.", "model": not_ready}
    return {
        "response_model": answer,
        "responses": responses,
        "openapi_extra": _KEY if with_key else None,
    }


class DocumentedApp(FastAPI):
    """FastAPI, with the forms of the bodies in its document.

    Attributes:
        documented: Routers whose endpoints it serves as plain routes; the document has them first.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.documented: list[APIRouter] = []
        self._observed = False  # by FastAPI's own telemetry
        self._look_at = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. FastAPI's own telemetry takes part only where it has a use."""
        stack = self.middleware_stack
        if (
            scope["type"] != "http"
            or stack is None
            or self.root_path
            or ("opentelemetry.sdk" in sys.modules and self._is_observed())
        ):
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await stack(scope, receive, send)

    def _is_observed(self) -> bool:
        """Return whether FastAPI's telemetry has a use. It takes long to say so: ask it seldom."""
        now = asyncio.get_running_loop().time()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            telemetry = getattr(self, "_native_telemetry", None)  # FastAPI has no public name
            self._observed = telemetry is None or telemetry.enabled()
        return self._observed

    def build_middleware_stack(self) -> ASGIApp:
        """Return the layers around the endpoints: `Admission` alone if there are no others.

        FastAPI's outer layers would see nothing: `Admission` answers every error.
        """
        stack: Any = super().build_middleware_stack()
        if len(self.user_middleware) == 1:
            while not isinstance(stack, Admission):
                stack = stack.app
        whole: ASGIApp = stack
        return whole

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        whole = FastAPI(title=self.title, version=self.version, summary=self.summary)
        for router in self.documented:
            whole.include_router(router)
        whole.router.routes += self.router.routes
        document = self.openapi_schema = whole.openapi()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(json_schemas(_REFS))
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # FastAPI's own, which never occurs
        return document
