"""Classify a vendor's HTTP response: status, headers and body to a `Failure`.

All lanes share this; it knows no HTTP library and no litellm. It reads the error bodies of OpenAI
(and the servers that imitate it), Azure OpenAI, Google, Anthropic and Bedrock. The first that says
something decides:

1. `_CODES`: a code that says what is wrong, whatever the status is.
2. `_OPENINGS`: how a message begins that speaks about key, region, model, deployment or billing.
3. `_PHRASES`: words near the beginning that say what this one request asks too much of.
4. `_STATUSES`, then `_GENERIC_CODES` where there is no status, as in a stream.

Only 1 and 2 make a failure `certain`, and so take a provider out of service at once. Words do that
only at the very beginning of a message, where vendors write their own sentence: what comes after
may quote the prompt, and a prompt must not be able to disable a provider. `_PHRASES` lead to kinds
that harm no provider.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aigateway.errors import FailureKind
from aigateway.messages import CHAT_PARAMS
from aigateway.settings.secrets import masked, tells_a_key
from aigateway.wires.client import Failure
from aigateway.wires.json_bodies import whole_characters
from aigateway.wires.limits import retry_after_from_headers, seconds_from_google_delay

__all__ = ["PARAM_NAMES", "classify_response", "kind_of_status", "snake_case", "tame_code"]

_LARGEST_BODY = 1_000_000
"""Bytes or characters. A longer body is cut, so it will not parse and the status decides."""

_BEGINNING = 400
"""Characters of a message that are read."""

_LONGEST_DETAIL = 2000
"""Characters of a message that are handed to the caller."""

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[.\[][A-Za-z0-9_]+\]?){0,8}", re.ASCII)
"""How vendors name a parameter: `temperature`, `messages.0.content`, `tools[0].function`."""

_NAMED_PARAM = re.compile(
    r"""
    ^[`'"]?(?P<path>[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)[`'"]?
      (?::\s|\s(is|does|cannot|can\ not|must|may|and)\b)
    | (?:invalid|parameters?|argument|argument\ supplied|name|value|field|property
        |supports?(?:\ the)?)
      :?\s+[`'"](?P<quoted>[A-Za-z][A-Za-z0-9_.]*)[`'"]
    | argument\ supplied:\ (?P<bare>[a-z_]+)
    | [`'"](?P<called>[a-z][a-z0-9_]*)[`'"]
      \s(?:parameter|is\ (?:not\ supported|unsupported|deprecated))
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Where the beginning of a message names the parameter that it is about."""

_TAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")

PARAM_NAMES = CHAT_PARAMS | {
    "budget_tokens",
    "candidate_count",
    "dimensions",
    "encoding_format",
    "input",
    "max_output_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "response_mime_type",
    "response_schema",
    "stop_sequences",
    "stream",
    "stream_options",
    "system",
    "thinking_budget",
    "thinking_config",
    "thinking_level",
}
"""Parameters as OpenAI, Anthropic and Gemini name them."""


def _key(code: str) -> str:
    """Return one spelling for "InternalServerError" and "internal_server_error"."""
    return code.lower().replace("_", "")


_SET_UP_WRONG = frozenset(
    {
        FailureKind.AUTHENTICATION,
        FailureKind.PERMISSION,
        FailureKind.NO_CREDIT,
        FailureKind.MODEL_NOT_FOUND,
    }
)
"""Kinds that disable a provider; only these can be certain."""

_CODES: Mapping[str, FailureKind] = {
    _key(code): kind
    for kind, codes in {
        FailureKind.CONTEXT_WINDOW: (
            "context_length_exceeded",
            "context_window_exceeded",
            "exceed_context_size_error",  # llama.cpp
            "model_context_window_exceeded",
        ),
        FailureKind.CONTENT_POLICY: (
            "content_filter",
            "content_policy_violation",
            "data_inspection_failed",  # Alibaba
            "invalid_prompt",  # OpenAI: "your prompt was flagged"
            "moderation_blocked",
            "responsibleaipolicyviolation",
        ),
        FailureKind.AUTHENTICATION: (
            "account_deactivated",
            "api_key_invalid",
            "expiredtokenexception",  # Bedrock
            "invalid_api_key",
            "invalid_authentication",
            "invalid_organization",
            "unrecognizedclientexception",  # Bedrock
        ),
        FailureKind.PERMISSION: (
            "access_terminated",
            "account_suspended",
            "api_key_android_app_blocked",
            "api_key_http_referrer_blocked",
            "api_key_ip_address_blocked",
            "api_key_service_blocked",
            "consumer_suspended",
            "insufficient_permissions",
            "ip_not_authorized",
            "model_permission_blocked_org",  # Groq
            "model_permission_blocked_project",
            "model_terms_required",
            "service_disabled",
            "unsupported_country_region_territory",
        ),
        FailureKind.NO_CREDIT: (
            "billing_disabled",
            "billing_error",
            "billing_hard_limit_reached",
            "billing_not_active",
            "insufficient_balance",
            "insufficient_quota",
            "organization_quota_exceeded",
            "spend_limit_reached",
            "spending_limit_exceeded",
        ),
        FailureKind.MODEL_NOT_FOUND: (
            "deploymentnotfound",
            "invalid_model",  # Mistral
            "model_decommissioned",  # Groq
            "model_deprecated",
            "model_not_available",
            "model_not_found",
            "model_not_supported",  # a router has no provider for it
            "model_retired",
            "modeldeprecated",
            "modelnotfound",
        ),
        FailureKind.UNSUPPORTED: (
            # This model cannot do it; another one may.
            "operationnotsupported",
            "unknown_parameter",
            "unsupported_parameter",
            "unsupported_value",
        ),
        FailureKind.INVALID_OUTPUT: (
            # Groq: the model's own slip, which its server refuses to hand on.
            "json_validate_failed",
            "output_parse_failed",
            "tool_use_failed",
            # Gemini: likewise, as the reason why an answer ended.
            "malformed_function_call",
            "too_many_tool_calls",
            "unexpected_tool_call",
        ),
    }.items()
    for code in codes
}
"""Codes that decide whatever the status says."""

_GENERIC_CODES: Mapping[str, FailureKind] = {
    _key(code): kind
    for kind, codes in {
        FailureKind.AUTHENTICATION: ("authentication_error", "unauthenticated"),
        FailureKind.PERMISSION: (
            "accessdeniedexception",
            "permission_denied",
            "permission_error",
            "request_forbidden",
        ),
        FailureKind.NO_CREDIT: ("payment_required",),
        FailureKind.SERVER_ERROR: (
            "api_error",
            "deadline_exceeded",
            "internal",
            "internal_error",
            "internal_server_error",
            "overloaded_error",
            "server_error",
            "service_unavailable",
            "timeout_error",
            "unavailable",
            "aborted",
            "engine_overloaded_error",
            "overloaded",
            "unavailable_error",
        ),
        FailureKind.RATE_LIMITED: (
            "rate_limit_error",
            "rate_limit_exceeded",
            "resource_exhausted",
            "throttlingexception",
            "too_many_requests",
        ),
        FailureKind.MODEL_NOT_FOUND: ("not_found", "not_found_error"),
        FailureKind.NOT_OFFERED: ("unimplemented",),
        FailureKind.REJECTED: (
            "invalid_argument",
            "invalid_request_error",
            "bad_request",
            "bad_request_error",
            "failed_precondition",
            "validationexception",
        ),
        FailureKind.CONTEXT_WINDOW: ("request_too_large",),
    }.items()
    for code in codes
}
"""Codes that only repeat the status: they decide where there is none, as in a 200 or a stream."""

_NAME = r"[`'\"]?[\w./:@~+-]{1,200}[`'\"]?"
"""A model's name: no spaces, so a quoted prompt is none."""

_THE_MODEL = (
    rf"((the|this|requested|publisher) )*(model|deployment)s?[ :/]\s*{_NAME}( of this deployment)?"
)
_GONE = (
    r"(does not exist|is not found|was not found|not found|not exist|could not be found"
    r"|(has been|is|was) (deprecated|retired|decommissioned|discontinued|shut down|removed)"
    r"|is no longer (available|supported))"
)

_OPENINGS: Mapping[FailureKind, re.Pattern[str]] = {
    kind: re.compile("|".join(words), re.IGNORECASE)
    for kind, words in {
        FailureKind.AUTHENTICATION: (
            r"(incorrect|invalid|missing|unknown|expired) (x-)?api[ -]?key",
            r"((the|this|your) )?(x-)?api[ -]?key( (you )?provided| header)? (is|was|has|not)\b",
            r"api key (expired|required)\b",
            r"you didn't provide an api key",
            # Azure
            r"access denied due to (missing|invalid) (subscription )?key",
            r"unauthorized\. access token is missing",
            # Google
            r"request (had invalid|is missing required) authentication credential",
            r"method doesn't allow unregistered callers",
            # Anthropic, OpenRouter, DeepSeek, Bedrock
            r"(invalid|expired) (bearer token|authentication|auth credentials)",
            r"oauth (token has (expired|been revoked)|authentication is)",
            r"no (cookie )?auth credentials found",
            r"authentication fails",
            r"the security token included in the request is (invalid|expired)",
        ),
        FailureKind.PERMISSION: (
            # The region
            r"user location is not supported",
            r"gemini api free tier is not available in your country",
            r"country, region, or territory not supported",
            r"access to anthropic models is not allowed from",
            # The key, or the account behind it
            r"this organization has been disabled",
            r"your api key does not have permission",
            r"you have insufficient permissions for this operation",
            r"your project has been denied access",
            r"permission denied: consumer",
            rf"permission {_NAME} denied on resource",
            r"access denied due to virtual network",
            r"a virtual network is configured for this resource",
            r"public access is disabled",
            rf"user: {_NAME} is not authorized to perform",
            # The model
            r"you (don't|do not) have access to (the|this) model",
            r"model access is denied",
            rf"((the|your) )?(project|organization|account|team) {_NAME} does not have access to",
            rf"the model {_NAME} is blocked at the (organization|project) level",
        ),
        FailureKind.NO_CREDIT: (
            r"your credit balance is too low",
            r"you have reached your specified api usage limits",
            r"there is an issue with your billing",
            r"your prepayment credits are depleted",
            r"your project has exceeded its",  # "... monthly spending cap"
            r"billing is not enabled",
            r"you exceeded your current quota, please check your plan",
            r"your account is not active",
            r"insufficient (account )?(balance|credits|funds)",
            r"the subscription has no remaining credit",
            r"(credit|key) limit exceeded",
            r"you have exceeded your monthly included credits",
            rf"your team {_NAME} has either used all available credits",
            rf"account {_NAME} is suspended",
        ),
        FailureKind.MODEL_NOT_FOUND: (
            # Gemini's sentence ends "... or is not supported for embedContent", where a chat model
            # is asked to embed; that is no word about the model.
            rf"{_THE_MODEL} {_GONE}(?!.{{0,60}} supported for \w*embed)",
            rf"((the|this|requested) )?model {_GONE}",
            r"the api deployment for this resource does not exist",
            rf"model: {_NAME}\s*$",  # Anthropic
            r"(invalid|unknown) model( name| id)?(:| [`'\"]| passed in)",
            rf"{_NAME} is not a valid model id",
            rf"no endpoints found for {_NAME}\s*$",  # OpenRouter
            r"unable to access model",
            r"the provided model identifier is invalid",
            r"could not resolve the foundation model",
            rf"invocation of model id {_NAME} with on-demand throughput",
        ),
    }.items()
}
"""How a message begins that takes the provider out of service."""

_PHRASES: Mapping[FailureKind, re.Pattern[str]] = {
    kind: re.compile("|".join(words), re.IGNORECASE | re.DOTALL)
    for kind, words in {
        FailureKind.CONTEXT_WINDOW: (
            r"prompt is too long",
            r"input is too long for requested model",
            r"exceed context limit",
            r"maximum (context|prompt) length",
            r"model's context length is",
            r"input token count.{0,60}exceeds the maximum",
            r"exceeds the (available )?context (size|length)",
            r"request payload size exceeds the limit",
        ),
        FailureKind.CONTENT_POLICY: (
            r"content management policy",
            r"content filtering policy",
            r"flagged as potentially violating",
            r"your input was flagged",
            r"content (violates usage guidelines|exists risk)",
            r"rejected as a result of our safety system",
        ),
        FailureKind.INVALID_OUTPUT: (
            r"failed to call a function",
            r"tool call validation failed",
            r"failed to (generate|validate) json",
        ),
    }.items()
}
"""Words near the beginning; what they lead to harms no provider."""

_CANNOT = re.compile(
    r"""
    (does|do|can|could)(\ not|n't|not)\ support
    | not\ (currently\ |yet\ )?(supported|enabled|permitted)
    | unsupported
    | \bis\ deprecated\ for\ this\ model
    | cannot\ both\ be\ (specified|set)
    | extra\ inputs\ are\ not\ permitted
    | type\ is\ unavailable\ now
    | (is\ not|is|not)\ an?\ (chat|completion|embeddings?|multimodal|vision)\ model
    | does\ not\ work\ with\ the\ specified\ model
    | you\ are\ not\ allowed\ to\ [\w ]{1,60}\ (from|with|on)\ this\ model
    | missing\ data\ required\ for\ image
    | at\ most\ 0\ \w+\(s\)
    | must\ provide\ a\ chat\ template
    | requires\ --
    | un(known\ (name|parameter|variant)|recognized\ request\ argument)
    | no\ endpoints\ found\ that\ (support|can\ handle)
    | requires\ more\ credits,\ or\ fewer\ max_tokens | prompt\ tokens\ limit\ exceeded
    | \b(file|vector\ store|container|conversation|response|cached?\ ?content|document|image)s?\b
      .{0,150}(not\ found|not\ exist|no\ longer\ exist|is\ not\ in\ an\ active\ state)
    | (no\ such|not\ find|not\ found:)\ (the\ )?(file|vector\ store|container|document)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""Words near the beginning by which a model or a server says that it cannot do this, where another
may: a tool, an image, a schema, a parameter, a file that it does not have, an operation."""

_CANNOT_UNDER = frozenset({None, 400, 402, 403, 404, 405, 415, 422, 501})
"""Statuses under which vendors say so. A rate limit that is "not supported" is still one."""

_FEATURE = re.compile(
    r"tool|function|image|vision|audio|video|file|json|schema|stream|logprobs|param|prefill"
    r"|thinking|reasoning",
    re.IGNORECASE,
)
"""Under 405 and 501, what is said not to be supported is the whole operation, unless it is one of
these (DeepInfra: 405 "Tool calling is not supported for model")."""

_CANNOT_UNDER_500 = re.compile(
    r"(image|audio|video) input is not supported|tools param requires --jinja"
    r"|failed to parse messages: unsupported content part type",
    re.IGNORECASE,
)
"""Words with which llama.cpp says so under 500. They count only at the beginning, or a prompt could
keep a sick provider's circuit closed."""

_LARGER_THAN_THE_LIMIT = re.compile(
    r"request too large\b.{0,300}?\btokens per (min|day)", re.IGNORECASE | re.DOTALL
)
_LIMIT = re.compile(r"limit:? (\d{1,12}),.{0,40}?requested:? (\d{1,12})", re.IGNORECASE)
_PER_MINUTE = re.compile(r"(tokens|requests) per (min|day)|rate limit", re.IGNORECASE)

_STATUSES: Mapping[int, FailureKind] = {
    401: FailureKind.AUTHENTICATION,
    402: FailureKind.NO_CREDIT,
    403: FailureKind.PERMISSION,
    451: FailureKind.PERMISSION,  # for legal reasons: the region
    404: FailureKind.MODEL_NOT_FOUND,
    410: FailureKind.MODEL_NOT_FOUND,
    405: FailureKind.NOT_OFFERED,
    501: FailureKind.NOT_OFFERED,
    400: FailureKind.REJECTED,
    414: FailureKind.REJECTED,
    422: FailureKind.REJECTED,
    431: FailureKind.REJECTED,
    413: FailureKind.CONTEXT_WINDOW,
    415: FailureKind.UNSUPPORTED,
    407: FailureKind.CONNECTION,  # a proxy between us and the vendor
    408: FailureKind.TIMEOUT,
    429: FailureKind.RATE_LIMITED,
    # The vendor's own trouble under a client's number: a lock, a dependency, a replay, a hang-up.
    409: FailureKind.SERVER_ERROR,
    424: FailureKind.SERVER_ERROR,
    425: FailureKind.SERVER_ERROR,
    499: FailureKind.SERVER_ERROR,
}


def classify_response(
    status: int | None,
    headers: Mapping[str, str],
    body: bytes | str | object,
    *,
    now_wall: float,
) -> Failure:
    """Classify an HTTP response that is no answer.

    A `status` of 2xx, or None for an error event in a stream, means that the body was no answer:
    then an error inside it decides, and without one it is a `BAD_ANSWER`. `body` is as received, or
    parsed from JSON. `now_wall` (seconds since the Unix epoch) is for `Retry-After` dates.
    """
    error = _error_object(_parsed(body), succeeded=status is not None and status < 300)
    lowered = {str(name).lower(): str(value) for name, value in headers.items()}
    codes = (*_codes(error), *_text(lowered.get("x-amzn-errortype", "").partition(":")[0]))
    retry_after = retry_after_from_headers(lowered, now_wall=now_wall)
    if retry_after is None:
        retry_after = _google_retry_delay(error)
    keys = tuple(map(_key, codes))
    message = _message(error).strip()
    said = message[:_BEGINNING]
    known = next(filter(None, map(_CODES.get, keys)), None) or _kind_of_opening(status, keys, said)
    kind = known or _kind(status, keys, said, _inner_status(error))
    return Failure(
        kind=kind,
        status=status,
        retry_after=retry_after,
        code=next((code for code in codes if tame_code(code)), None),
        param=_param(error, said),
        detail=masked(whole_characters(message[:_LONGEST_DETAIL])) or None,
        certain=known in _SET_UP_WRONG,
    )


def kind_of_status(status: int) -> FailureKind:
    """Return what a bare HTTP status means.

    A redirect is never followed: a POST that is sent elsewhere points at a wrong base URL or a
    login page, so it is a `BAD_ANSWER` like an HTML page. So is a success that is no answer.
    """
    known = _STATUSES.get(status)
    if known is not None:
        return known
    if 500 <= status < 600:
        return FailureKind.SERVER_ERROR
    return FailureKind.BAD_ANSWER if 100 <= status < 400 else FailureKind.UNKNOWN


def tame_code(code: object) -> str | None:
    """Return the code if it is short and plain enough for logs and labels, and holds no key."""
    if not isinstance(code, str) or not _TAME.fullmatch(code) or tells_a_key(code):
        return None
    return code


def _kind_of_opening(status: int | None, keys: tuple[str, ...], said: str) -> FailureKind | None:
    if status is not None and status >= 500:
        return None
    for kind, words in _OPENINGS.items():
        if words.match(said):
            # Google words an ordinary rate limit like OpenAI words an empty account.
            throttled = "resourceexhausted" in keys and said.startswith("You exceeded")
            return None if throttled else kind
    return None


def _kind(
    status: int | None, keys: tuple[str, ...], said: str, inner_status: int | None
) -> FailureKind:
    number = inner_status if status is None or status < 300 else status
    generic = next((_GENERIC_CODES[key] for key in keys if key in _GENERIC_CODES), None)
    # Without a number the code is all that tells a sick vendor, whatever its words quote.
    if number is not None or generic not in {FailureKind.SERVER_ERROR, FailureKind.RATE_LIMITED}:
        from_words = _kind_of_words(number, said)
        if from_words is not None:
            return from_words
    if status == 413 and (generic is FailureKind.RATE_LIMITED or _PER_MINUTE.search(said)):
        return FailureKind.RATE_LIMITED
    if status is not None and status >= 300:
        return kind_of_status(status)
    if generic is not None:
        return generic
    if number is not None and number >= 400:
        return kind_of_status(number)
    return FailureKind.BAD_ANSWER


def _kind_of_words(number: int | None, said: str) -> FailureKind | None:
    """Return what the beginning of a message says, where that harms no provider."""
    if number in {413, 429} and _is_larger_than_the_limit(said):
        return FailureKind.UNSUPPORTED
    if number == 500:
        return FailureKind.UNSUPPORTED if _CANNOT_UNDER_500.match(said) else None
    if number is None or number < 500:
        for kind, words in _PHRASES.items():
            if words.search(said):
                return kind
    if number in _CANNOT_UNDER and _CANNOT.search(said):
        whole = number in {405, 501} and not _FEATURE.search(said)
        return FailureKind.NOT_OFFERED if whole else FailureKind.UNSUPPORTED
    return None


def _is_larger_than_the_limit(said: str) -> bool:
    """Return whether one request alone exceeds the rate limit.

    It can never be served here, so waiting is no help. Nor has the limit been used up: a cooldown
    would keep other callers' requests from a provider that could serve them.
    """
    if not _LARGER_THAN_THE_LIMIT.match(said):
        return False
    numbers = _LIMIT.search(said)
    return numbers is None or int(numbers[2]) > int(numbers[1])


def _parsed(body: object) -> object:
    if isinstance(body, bytes | bytearray):
        body = bytes(body[:_LARGEST_BODY]).decode("utf-8", "replace")
    if not isinstance(body, str):
        return body
    try:
        parsed: object = json.loads(body[:_LARGEST_BODY])
    except (ValueError, RecursionError):
        return None
    return parsed


def _error_object(parsed: object, *, succeeded: bool) -> Mapping[str, Any]:
    """Return the object that holds code and message, wherever this vendor puts it."""
    if isinstance(parsed, list):  # Google wraps errors of streams in a list
        parsed = parsed[0] if parsed else None
    if not isinstance(parsed, Mapping):
        return {}
    inner = parsed.get("error")
    if isinstance(inner, Mapping):
        return _unwrapped(inner)
    if isinstance(inner, str):  # Ollama
        return {"message": inner}
    if succeeded and parsed.get("object") != "error":
        return {}  # an answer of some kind, and what it says is the model's
    # vLLM, Azure's front door, and bodies that an SDK has already unwrapped
    return _unwrapped(parsed)


def _unwrapped(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """Move the words of an error out of an inner object."""
    for name in ("message", "detail"):  # Mistral, DeepInfra
        inner = error.get(name)
        if isinstance(inner, Mapping):
            said = next((inner[n] for n in ("message", "error") if n in inner), None)
            return {**error, "message": said, "detail": inner.get("detail")}
    return error


def _codes(error: Mapping[str, Any]) -> Iterator[str]:
    """Yield every code in the body, the most specific first."""
    for detail in _details(error):
        yield from _text(detail.get("reason"))
    inner = error.get("innererror")
    code = error.get("code")
    if isinstance(code, str) and not code.isdecimal():
        yield code
    if isinstance(inner, Mapping):
        yield from _text(inner.get("code"))
    yield from _text(error.get("type"))
    yield from _text(error.get("error_type"))
    yield from _text(error.get("status"))


def _text(value: object) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    if isinstance(details, list):
        yield from (detail for detail in details[:16] if isinstance(detail, Mapping))


def _message(error: Mapping[str, Any]) -> str:
    given = (error.get(name) for name in ("message", "Message", "detail"))  # Bedrock, FastAPI
    said = next((text for text in given if isinstance(text, str)), None)
    places = error.get("detail")
    if said is None and isinstance(places, list) and places and isinstance(places[0], Mapping):
        said = next(_text(places[0].get("msg")), None)
    return said or ""


def _param(error: Mapping[str, Any], said: str) -> str | None:
    """Return the parameter that an error is about: from a field, or from its first words.

    Words may quote a prompt, so what they name has to be one of the API's own parameters.
    """
    given = [error.get("param")]
    for detail in _details(error):  # Google
        violations = detail.get("fieldViolations")
        if isinstance(violations, list):
            given += [v.get("field") for v in violations[:4] if isinstance(v, Mapping)]
    places = error.get("detail")
    if isinstance(places, list) and places and isinstance(places[0], Mapping):  # FastAPI
        location = places[0].get("loc")
        if isinstance(location, list):
            given.append(".".join(str(part) for part in location if part != "body"))
    for name in given:
        if isinstance(name, str) and len(name) <= 128 and _PATH.fullmatch(name):
            return None if tells_a_key(name) else name
    for named in _NAMED_PARAM.finditer(said):
        name = next(found for found in named.groupdict().values() if found)
        ends = {snake_case(name.rpartition(".")[2]), snake_case(name.partition(".")[0])}
        if not ends.isdisjoint(PARAM_NAMES):
            return name
    return None


def snake_case(name: str) -> str:
    """Return `topP` as `top_p`."""
    return _HUMP.sub(r"_\g<0>", name).lower()


def _inner_status(error: Mapping[str, Any]) -> int | None:
    code = error.get("code")
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        return int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _google_retry_delay(error: Mapping[str, Any]) -> float | None:
    delays = (seconds_from_google_delay(detail.get("retryDelay")) for detail in _details(error))
    return next((delay for delay in delays if delay is not None), None)
