"""What the headers of a request say: how it is answered, and on whose behalf."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aigateway.messages import CacheMode, Origin
from aigateway.server.http.errors import Refusal

__all__ = ["LABEL", "SECONDS", "Terms", "name_of_request", "origin", "terms"]

SECONDS = r"0\.0{0,8}[1-9][0-9]{0,8}|[1-9][0-9]{0,9}(\.[0-9]{1,9})?"
"""A number above 0, for a header. Nothing that `float` takes beside numbers."""

LABEL = r"[!-~]([ -~]{0,126}[!-~])?"
"""Whose request it is, for a header."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_NUMBER = re.compile(SECONDS)
_LABEL = re.compile(LABEL)
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_STATE = re.compile(r"[ -~]{1,512}")
_RESUME = frozenset({"continue", "restart", "none"})
_CACHE: Mapping[str, CacheMode] = {"true": True, "false": False, "refresh": "refresh"}


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is answered.

    Attributes:
        cache: See `CacheMode`; None says nothing.
        cache_ttl: Seconds; None says nothing.
        timeout: Seconds; None says nothing.
        agent: Whose request it is; None says nothing.
        resume: What becomes of a stream that breaks; None says nothing, "none" that it ends.
    """

    cache: CacheMode | None = None
    cache_ttl: float | None = None
    timeout: float | None = None
    agent: str | None = None
    resume: str | None = None

    def options(self) -> dict[str, Any]:
        """As keywords of `chat`."""
        options: dict[str, Any] = {}
        if self.cache is not None:
            options["cache"] = self.cache
        if self.cache_ttl is not None:
            options["cache_ttl"] = self.cache_ttl
        if self.timeout is not None:
            options["timeout"] = self.timeout
        if self.agent is not None:
            options["agent"] = self.agent
        return options


_NOTHING = Terms()


def terms(headers: Mapping[str, str]) -> Terms:
    """Read the headers that begin with `x-aigateway-`.

    Raises:
        Refusal: 400, one of them makes no sense.
    """
    given = {name: text for name, text in headers.items() if name.startswith("x-aigateway-")}
    if not given:
        return _NOTHING
    cache = given.get("x-aigateway-cache")
    if cache is not None and cache.lower() not in _CACHE:
        raise _refused("x-aigateway-cache", "true, false or refresh")
    agent = given.get("x-aigateway-agent")
    if agent is not None and not _LABEL.fullmatch(agent):
        raise _refused("x-aigateway-agent", "1 to 128 printable ASCII characters")
    resume = given.get("x-aigateway-resume")
    if resume is not None and resume.lower() not in _RESUME:
        raise _refused("x-aigateway-resume", "continue, restart or none")
    return Terms(
        None if cache is None else _CACHE[cache.lower()],
        _seconds(given, "x-aigateway-cache-ttl"),
        _seconds(given, "x-aigateway-timeout"),
        agent,
        None if resume is None else resume.lower(),
    )


def name_of_request(given: str | None) -> str:
    """The caller's id for a request if it is fit for logs and headers, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


def origin(headers: Mapping[str, str], request_id: str, partition: str, tenant: str = "") -> Origin:
    """On whose behalf, with what goes on to the vendor: the request's id and place in a trace."""
    carried = {"X-Request-ID": request_id}
    parent = headers.get("traceparent")
    if parent is not None and _TRACE_PARENT.fullmatch(parent):
        carried["traceparent"] = parent
        state = headers.get("tracestate")
        if state is not None and _TRACE_STATE.fullmatch(state):
            carried["tracestate"] = state
    return Origin(request_id, partition, carried, tenant=tenant)


def _seconds(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise _refused(name, "a number of seconds above 0, such as 30 or 2.5")
    return float(text)


def _refused(name: str, what: str) -> Refusal:
    return Refusal(400, f"The header {name} must be {what}.", param=name)
