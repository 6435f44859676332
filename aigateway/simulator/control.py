"""The control endpoint: break and repair a running simulator over HTTP.

- `GET /_simulator`: every vendor's state and counts.
- `POST /_simulator/fault`: `{"vendor": "openai", "fault": "status", "args": {"code": 503},
  "times": 3}`. Without `vendor` all of them; `fault` may also be "status:503".
- `POST /_simulator/recover`: `{"vendor": "openai"}`, or `{}` for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import orjson
from aiohttp import web

from aigateway.simulator.faults import fault_from
from aigateway.simulator.vendor import SimulatedVendor

__all__ = ["ControlPanel"]


class _House(Protocol):
    @property
    def vendors(self) -> tuple[SimulatedVendor, ...]: ...


class _AskedWrongError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ControlPanel:
    """Serves `/_simulator` for the vendors of one simulator."""

    def __init__(self, house: _House) -> None:
        self._house = house

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request with the state after it, or `{"error": ...}`."""
        try:
            await self._act(request)
            status, body = 200, self._state()
        except _AskedWrongError as wrong:
            status, body = wrong.status, {"error": str(wrong)}
        return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")

    async def _act(self, request: web.BaseRequest) -> None:
        match request.method, request.path.rstrip("/"):
            case "GET", "/_simulator":
                return
            case "POST", "/_simulator/fault":
                self._break(await _order(request))
            case "POST", "/_simulator/recover":
                for vendor in self._chosen(await _order(request)):
                    vendor.recover()
            case method, path:
                raise _AskedWrongError(404, f"no {method} {path}; see GET /_simulator")

    def _break(self, order: Mapping[str, Any]) -> None:
        args = order.get("args") or {}
        if not isinstance(args, Mapping):
            raise _AskedWrongError(400, "args must be an object")
        try:
            for vendor in self._chosen(order):
                # One per vendor: a random fault has its own random numbers.
                fault = fault_from(str(order.get("fault", "")), args)
                if fault is None:
                    vendor.recover()
                else:
                    vendor.behave(fault, times=order.get("times"))
        except (ValueError, TypeError) as error:
            raise _AskedWrongError(400, str(error)) from None

    def _chosen(self, order: Mapping[str, Any]) -> tuple[SimulatedVendor, ...]:
        name = order.get("vendor")
        vendors = self._house.vendors
        chosen = tuple(vendor for vendor in vendors if name in {None, vendor.name})
        if not chosen:
            known = ", ".join(vendor.name for vendor in vendors)
            raise _AskedWrongError(404, f"no vendor {name!r}; there are {known}")
        return chosen

    def _state(self) -> dict[str, Any]:
        return {
            "vendors": [
                {
                    "name": vendor.name,
                    "wire": vendor.wire,
                    "url": vendor.url,
                    "fault": vendor.fault.name if vendor.fault else None,
                    "requests": vendor.request_count,
                    "open_connections": vendor.open_connections,
                }
                for vendor in self._house.vendors
            ]
        }


async def _order(request: web.BaseRequest) -> Mapping[str, Any]:
    # A web page cannot send this type without a preflight, so it cannot break anything.
    if request.content_type != "application/json":
        raise _AskedWrongError(415, "send application/json")
    try:
        order = orjson.loads(await request.read() or b"{}")
    except orjson.JSONDecodeError:
        raise _AskedWrongError(400, "the body is not valid JSON") from None
    if not isinstance(order, Mapping):
        raise _AskedWrongError(400, "the body must be an object")
    return order
