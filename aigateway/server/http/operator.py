"""What an operator does: a provider's circuit forced open or closed, with the admin key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from aigateway.errors import ConfigurationError
from aigateway.routing.guards import CircuitOrder
from aigateway.server.auth.keys import Caller
from aigateway.server.http.bodies import json_body
from aigateway.server.http.errors import Refusal
from aigateway.server.service import Service

__all__ = ["router"]

router = APIRouter()

_ORDERS: dict[object, CircuitOrder] = {"open": "open", "closed": "closed", "auto": "auto"}

_DOCUMENTED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["state"],
                    "additionalProperties": False,
                    "properties": {"state": {"type": "string", "enum": list(_ORDERS)}},
                }
            }
        },
    }
}

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is not what it must be."},
    401: {"description": "A key is needed, or it is not known."},
    403: {"description": "Only the admin key may do this, and no other site's page."},
    404: {"description": "There is no such provider."},
    415: {"description": "The body is not sent as application/json."},
}


@router.post("/admin/providers/{name:path}/circuit", openapi_extra=_DOCUMENTED, responses=_REFUSALS)
async def force_circuit(name: str, request: Request) -> JSONResponse:
    """Force a provider's circuit open or closed, or leave it to itself again ("auto")."""
    service: Service = request.app.state.service
    caller = _admin(service, request)
    # JSON is a type that another site's page may not send unasked.
    state = await json_body(request, _order)
    try:
        await service.force_circuit(name, state, caller.name)
    except ConfigurationError as error:
        raise Refusal(404, str(error), code="provider_not_found", param="name") from None
    return JSONResponse({"provider": name, "state": state})


def _admin(service: Service, request: Request) -> Caller:
    caller = service.access.admit(request.headers)
    if not caller.is_admin:
        raise Refusal(
            403, "Only the admin key may do this.", "permission_error", "admin_key_required"
        )
    # Where no key is needed, a page from elsewhere could do it with a browser of this machine.
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Refusal(403, "No other site's page may do this.", "permission_error", "other_site")
    return caller


def _order(body: dict[str, Any]) -> CircuitOrder:
    state = body.get("state")
    if not isinstance(state, str) or state not in _ORDERS or len(body) > 1:
        raise Refusal(400, 'The body must be {"state": "open"}, "closed" or "auto".', param="state")
    return _ORDERS[state]
