"""The faults of a vendor. Each wire answers a `Fault` in its vendor's own words."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["Fault", "RefusedError", "fault_from"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. Build it with the class methods.

    `retry_after` is seconds as a number, or text sent unchanged, for example an HTTP date. Text
    that ends in "ms" ("1500ms") goes out as `retry-after-ms`, as OpenAI and Azure do.

    Stream faults (`error_event`, `cut_stream`, `stall_stream`) count pieces of content: `after=0`
    stops right behind the response headers. They do not affect other requests.
    """

    name: str
    code: int | None = None
    message: str | None = None
    code_name: str | None = None
    param: str | None = None
    retry_after: float | str | None = None
    seconds: float = 0.0
    after: int = 0
    clean: bool = True
    location: str | None = None
    inner: Fault | None = None
    marker: str | None = None
    probability: float = 1.0
    _dice: random.Random | None = field(default=None, compare=False, repr=False)

    def roll(self, body: Any = None) -> Fault | None:
        """Return the fault for one request, if any.

        Args:
            body: The request's body, for faults that depend on it (`bad_prompt`, `no_tools`).
        """
        if self.name == "no_tools":
            return self if isinstance(body, Mapping) and body.get("tools") else None
        if self.inner is None:
            return self
        if self._dice is not None and self._dice.random() >= self.probability:
            return None
        if self.marker is not None and not _holds(body, self.marker):
            return None
        return self.inner.roll(body)

    @property
    def is_error(self) -> bool:
        """Whether it is just an error answer of the vendor."""
        return self.name not in _BLIND | _IN_ANSWER

    @property
    def is_blind(self) -> bool:
        """Whether it applies to any request."""
        return self.name in _BLIND

    # Error answers of the vendor.

    @classmethod
    def status(
        cls,
        code: int,
        *,
        retry_after: float | str | None = None,
        code_name: str | None = None,
        message: str | None = None,
    ) -> Self:
        """This HTTP status, with the body that the vendor sends.

        A message of your own comes without the vendor's usual code for that status.
        """
        return cls(
            "status", code=code, retry_after=retry_after, code_name=code_name, message=message
        )

    @classmethod
    def bad_request(cls, message: str | None = None) -> Self:
        """400: a parameter is wrong."""
        return cls("bad_request", message=message)

    @classmethod
    def too_large(cls) -> Self:
        """413: the body is too big."""
        return cls("too_large")

    @classmethod
    def unsupported_media(cls) -> Self:
        """415: not JSON."""
        return cls("unsupported_media")

    @classmethod
    def context_window(cls) -> Self:
        """400: the prompt is longer than the model takes."""
        return cls("context_window")

    @classmethod
    def content_policy(cls) -> Self:
        """The prompt was refused: 400, or on Gemini 200 with a block reason and no candidates."""
        return cls("content_policy")

    @classmethod
    def bad_key(cls) -> Self:
        """401 (Gemini: 400 API_KEY_INVALID): no such key."""
        return cls("bad_key")

    @classmethod
    def forbidden(cls) -> Self:
        """403: the key may not do this."""
        return cls("forbidden")

    @classmethod
    def region(cls) -> Self:
        """403 (Gemini: 400): the vendor does not serve this country."""
        return cls("region")

    @classmethod
    def retired_model(cls) -> Self:
        """404 or 410: the model was shut down."""
        return cls("retired_model")

    @classmethod
    def model_not_found(cls) -> Self:
        """404: no such model or deployment."""
        return cls("model_not_found")

    @classmethod
    def not_a_chat_model(cls) -> Self:
        """A refused chat: the model only embeds. Models with "embed" in their name do so anyway.

        OpenAI 404, Azure 400. Gemini (404) and Anthropic (404) have the same words for a model
        that does not exist.
        """
        return cls("not_a_chat_model")

    @classmethod
    def not_an_embedding_model(cls) -> Self:
        """A refused embedding: the model only chats. Those of OpenAI and Google do so anyway.

        OpenAI 403, Azure 400, Gemini 404.
        """
        return cls("not_an_embedding_model")

    @classmethod
    def not_offered(cls, code: int = 405) -> Self:
        """405 or 501: the server does not have this operation."""
        return cls("status", code=code)

    @classmethod
    def file_not_found(cls) -> Self:
        """404 (Gemini: 403): the prompt names an unknown file.

        Requests for a file that is not in `SimulatedVendor.files` get it anyway.
        """
        return cls("file_not_found")

    @classmethod
    def no_tools(cls) -> Self:
        """400 (compatible servers: OpenRouter's 404): the model has no tools.

        It affects only requests that declare tools.
        """
        return cls("no_tools")

    @classmethod
    def no_credit(cls) -> Self:
        """The prepaid balance is used up: 402, Anthropic 400, Gemini 429."""
        return cls("no_credit")

    @classmethod
    def insufficient_quota(cls) -> Self:
        """The spending limit is reached: 429 (Anthropic: 400)."""
        return cls("insufficient_quota")

    @classmethod
    def rate_limited(cls, retry_after: float | str | None = None) -> Self:
        """429: too many requests or tokens per minute."""
        return cls("rate_limited", retry_after=retry_after)

    @classmethod
    def server_error(cls, code: int = 500) -> Self:
        """A 5xx with the vendor's error body."""
        return cls("status", code=code)

    @classmethod
    def overloaded(cls, retry_after: float | str | None = None) -> Self:
        """503 (Anthropic: 529): the vendor is too busy."""
        return cls("overloaded", retry_after=retry_after)

    # Faults of the connection.

    @classmethod
    def hang(cls) -> Self:
        """The request is read but never answered."""
        return cls("hang")

    @classmethod
    def slow(cls, seconds: float) -> Self:
        """A healthy answer, this many seconds late."""
        return cls("slow", seconds=seconds)

    @classmethod
    def refuse(cls) -> Self:
        """The server is down: open connections are dropped, new ones refused.

        A client that takes a pooled connection in the same moment finds it closed instead.
        """
        return cls("refuse")

    @classmethod
    def reset(cls) -> Self:
        """The connection is reset (RST) before any answer."""
        return cls("reset")

    @classmethod
    def reset_in_body(cls) -> Self:
        """The connection is reset (RST) halfway through the body."""
        return cls("reset_in_body")

    @classmethod
    def cut_body(cls) -> Self:
        """Less body than `Content-Length` promised, then a clean close."""
        return cls("cut_body")

    # Faults of an answer with status 200.

    @classmethod
    def html(cls, code: int = 200) -> Self:
        """A proxy's HTML page."""
        return cls("html", code=code)

    @classmethod
    def empty(cls, code: int = 200) -> Self:
        """No body at all."""
        return cls("empty", code=code)

    @classmethod
    def malformed(cls) -> Self:
        """JSON that stops in the middle."""
        return cls("malformed")

    @classmethod
    def no_choices(cls) -> Self:
        """An answer without choices, candidates or content."""
        return cls("no_choices")

    @classmethod
    def no_usage(cls) -> Self:
        """An answer without token counts."""
        return cls("no_usage")

    @classmethod
    def error_in_200(cls, message: str | None = None) -> Self:
        """The vendor's server error body under a success status."""
        return cls("error_in_200", message=message)

    @classmethod
    def redirect(cls, location: str | None = None, code: int = 307) -> Self:
        """A redirect, by default to another path of the same server."""
        return cls("redirect", location=location, code=code)

    # Faults of a stream.

    @classmethod
    def error_event(cls, after: int = 0) -> Self:
        """The vendor's error event after `after` pieces of content."""
        return cls("error_event", after=after)

    @classmethod
    def cut_stream(cls, after: int = 0, *, clean: bool = True) -> Self:
        """The stream ends after `after` pieces, without a finish reason.

        Args:
            after: Pieces of content that still arrive.
            clean: End the HTTP body properly; else close the socket in the middle of it.
        """
        return cls("cut_stream", after=after, clean=clean)

    @classmethod
    def stall_stream(cls, after: int = 0) -> Self:
        """The stream stays open and silent after `after` pieces."""
        return cls("stall_stream", after=after)

    @classmethod
    def random(cls, probability: float, fault: Fault, seed: int | None = None) -> Self:
        """A brownout: `fault` for this share of the requests, the others healthy.

        Args:
            probability: From 0 to 1.
            fault: Anything but `refuse`.
            seed: Makes the sequence repeatable.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, not {probability}")
        if fault.name == "refuse":
            raise ValueError("a listener cannot refuse at random; use reset() instead")
        dice = random.Random(seed)
        return cls("random", probability=probability, inner=fault, _dice=dice)

    @classmethod
    def bad_prompt(cls, marker: str, fault: Fault | None = None) -> Self:
        """`fault` for the requests whose texts contain a marker, the others healthy.

        Args:
            marker: Looked for in every text of the body.
            fault: Anything but `refuse`: a `hang`, `reset`, `empty`, ... None is HTTP 500.
        """
        if not marker:
            raise ValueError("bad_prompt needs a marker; without one every prompt is bad")
        if fault is not None and fault.name == "refuse":
            raise ValueError("a listener cannot refuse some prompts; use reset() instead")
        return cls("bad_prompt", marker=marker, inner=fault or cls.server_error())


def _holds(body: Any, marker: str) -> bool:
    """Return whether any text in a body contains the marker."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if marker in value:
                return True
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


_BLIND = frozenset({"hang", "refuse", "reset", "html", "empty", "redirect"})
_IN_ANSWER = frozenset(
    {
        "slow",
        "reset_in_body",
        "cut_body",
        "malformed",
        "no_choices",
        "no_usage",
        "error_in_200",
        "error_event",
        "cut_stream",
        "stall_stream",
    }
)


class RefusedError(Exception):
    """Raised by a wire for a request that the vendor rejects."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


_CONSTRUCTORS = tuple(
    name
    for name, member in vars(Fault).items()
    if isinstance(member, classmethod) and not name.startswith("_")
)


def fault_from(text: str, args: Mapping[str, Any] | None = None) -> Fault | None:
    """Build a fault from text, for the command line and the control endpoint.

    Args:
        text: A constructor's name and its arguments after colons, in order or by name:
            "hang", "status:503", "status:429:retry_after=2", "random:0.3:status:500",
            "bad_prompt:BAD:reset". "ok" (or "healthy") gives None.
        args: More arguments, by name. `random` and `bad_prompt` take their inner fault as `fault`,
            a text.

    Raises:
        ValueError: Unknown fault or arguments.
    """
    name, *given = [part.strip() for part in text.strip().split(":")]
    if name in {"ok", "healthy"}:
        return None
    if name not in _CONSTRUCTORS:
        raise ValueError(f"unknown fault {name!r}; known: ok, {', '.join(_CONSTRUCTORS)}")
    named = dict(args or {})
    if name in _AROUND_ANOTHER:
        return _around_another(name, given, named)
    positional = [_value(part) for part in given if "=" not in part]
    for part in given:
        key, equals, value = part.partition("=")
        if equals:
            named[key] = _value(value)
    return _build(name, positional, named)


_AROUND_ANOTHER = {"random": ("probability", "0.3"), "bad_prompt": ("marker", "BAD")}
"""Faults that contain another one: their other arguments, and an example."""


def _around_another(name: str, given: list[str], named: dict[str, Any]) -> Fault:
    first, example = _AROUND_ANOTHER[name]
    if given:
        named.setdefault(first, _value(given[0]) if name == "random" else given[0])
    inner = ":".join(given[1:]) or str(named.pop("fault", "status:500" * (name == "bad_prompt")))
    named["fault"] = fault_from(inner, named.pop("args", None))
    if named["fault"] is None:
        raise ValueError(f"{name} needs a fault that happens, as in {name}:{example}:status:500")
    return _build(name, [], named)


def _build(name: str, positional: list[Any], named: dict[str, Any]) -> Fault:
    constructor = getattr(Fault, name)
    signature = inspect.signature(constructor)
    keywords = dict(zip(signature.parameters, positional, strict=False)) | named
    try:
        if len(positional) > len(signature.parameters):
            raise TypeError("too many arguments")  # noqa: TRY301 - the same answer as for the rest
        signature.bind(**keywords)
        fault = constructor(**keywords)
    except TypeError as error:
        raise ValueError(f"fault {name}{signature}: {error}") from None
    assert isinstance(fault, Fault)  # noqa: S101 - narrows what getattr gave
    return fault


def _value(text: str) -> float | str | bool:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
