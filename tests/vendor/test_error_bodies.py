"""What the vendors' own words mean."""
# ruff: noqa: E501 - a table reads best with one line for each body

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import LLMConfig
from aigateway.errors import FailureKind
from aigateway.vendor.client import Failure
from aigateway.vendor.error_bodies import classify_response, tame_code
from aigateway.vendor.retry_after import LONGEST_RETRY_AFTER, retry_after_from_headers

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


def openai(message="", type_="invalid_request_error", code=None):
    return {"error": {"message": message, "type": type_, "param": None, "code": code}}


def google(code, status, message="", *details):
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def info(reason):
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "x"}


def delay(text):
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": text}


def anthropic(type_, message=""):
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_1"}


def read(status, body, headers=None):
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return classify_response(status, headers or {}, text, now_wall=NOW)


TABLE = [
    # OpenAI and its imitators
    (400, openai("Invalid value"), "rejected"),
    (401, openai("Incorrect API key provided: sk-1", code="invalid_api_key"), "authentication"),
    (403, openai(type_="request_forbidden", code="unsupported_country_region_territory"), "permission"),
    (404, openai("The model `x` does not exist", code="model_not_found"), "model_not_found"),
    (400, openai("The model `x` has been deprecated", code="model_not_found"), "model_not_found"),
    (400, openai("The model `x` has been decommissioned and is"), "model_not_found"),
    (400, openai(code="context_length_exceeded"), "context_window"),
    (400, openai("This model's maximum context length is 8192 tokens."), "context_window"),
    (400, openai(code="content_policy_violation"), "content_policy"),
    (400, openai("Invalid prompt: your prompt was flagged", code="invalid_prompt"), "content_policy"),
    (400, openai(code="unsupported_parameter"), "unsupported"),
    (402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), "no_credit"),
    (429, openai(type_="insufficient_quota", code="insufficient_quota"), "no_credit"),
    (429, openai("You exceeded your current quota, please check your plan and"), "no_credit"),
    (429, openai(type_="billing_not_active", code="billing_not_active"), "no_credit"),
    (400, openai(code="billing_hard_limit_reached"), "no_credit"),
    (429, openai("Rate limit reached", "tokens", "rate_limit_exceeded"), "rate_limited"),
    (500, openai(type_="server_error"), "server_error"),
    (503, openai("The engine is overloaded", "server_error"), "server_error"),
    (200, openai(type_="server_error"), "server_error"),
    (200, {"error": {"code": 429, "message": "slow down"}}, "rate_limited"),  # OpenRouter
    (200, {"error": {"message": "?"}}, "bad_answer"),
    (200, {"id": "1", "type": "message", "status": "not_found"}, "bad_answer"),
    (400, {"object": "error", "message": "the model's context length is only 9", "code": 400}, "context_window"),
    (200, {"object": "error", "message": "", "type": "InternalServerError"}, "server_error"),
    (404, {"error": "model 'x' not found"}, "model_not_found"),
    (400, openai("the request exceeds the available context size", "exceed_context_size_error"), "context_window"),
    # Azure
    (401, {"error": {"code": "401", "message": "Access denied due to invalid key"}}, "authentication"),
    (401, {"statusCode": 401, "message": "Unauthorized."}, "authentication"),
    (404, {"error": {"code": "DeploymentNotFound", "message": ""}}, "model_not_found"),
    (410, {"error": {"code": "ModelDeprecated", "message": ""}}, "model_not_found"),
    (429, {"error": {"code": "429", "message": "have exceeded token rate limit"}}, "rate_limited"),
    (400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "content_policy"),
    (400, {"error": {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "content_policy"),
    (400, {"error": {"code": "OperationNotSupported", "message": ""}}, "unsupported"),
    (408, {"error": {"code": "Timeout", "message": "The operation was timeout."}}, "timeout"),
    (200, {"error": {"code": "InternalServerError", "message": ""}}, "server_error"),
    # Google
    (400, google(400, "INVALID_ARGUMENT", "API key not valid.", info("API_KEY_INVALID")), "authentication"),
    (400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass"), "authentication"),
    (400, google(400, "FAILED_PRECONDITION", "User location is not supported for"), "permission"),
    (400, google(400, "INVALID_ARGUMENT", "Invalid JSON payload"), "rejected"),
    (400, google(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum"), "context_window"),
    (403, google(403, "PERMISSION_DENIED", "", info("SERVICE_DISABLED")), "permission"),
    (403, google(403, "PERMISSION_DENIED", "", info("BILLING_DISABLED")), "no_credit"),
    (403, google(403, "PERMISSION_DENIED", "Your API key was reported as leaked."), "authentication"),
    (404, google(404, "NOT_FOUND", "models/x is not found for API version"), "model_not_found"),
    (429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan"), "rate_limited"),
    (429, google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), "no_credit"),
    (503, google(503, "UNAVAILABLE", "The model is overloaded."), "server_error"),
    (504, google(504, "DEADLINE_EXCEEDED"), "server_error"),
    (None, [google(503, "UNAVAILABLE")], "server_error"),
    # Anthropic
    (400, anthropic("invalid_request_error", "prompt is too long: 9 tokens > 8"), "context_window"),
    (400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 1"), "context_window"),
    (400, anthropic("invalid_request_error", "Your credit balance is too low to access"), "no_credit"),
    (400, anthropic("invalid_request_error", "You have reached your specified API usage limits."), "no_credit"),
    (400, anthropic("invalid_request_error", "This organization has been disabled."), "permission"),
    (400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), "content_policy"),
    (400, anthropic("invalid_request_error", "max_tokens: 9 > 8, which is the maximum"), "rejected"),
    (401, anthropic("authentication_error", "invalid x-api-key"), "authentication"),
    (402, anthropic("billing_error"), "no_credit"),
    (403, anthropic("permission_error"), "permission"),
    (404, anthropic("not_found_error", "model: x"), "model_not_found"),
    (413, anthropic("request_too_large"), "rejected"),
    (429, anthropic("rate_limit_error"), "rate_limited"),
    (529, anthropic("overloaded_error"), "server_error"),
    (None, anthropic("overloaded_error"), "server_error"),
    (200, anthropic("api_error"), "server_error"),
    # No body that says anything
    (200, "<html>Bad Gateway</html>", "bad_answer"),
    (200, "", "bad_answer"),
    (200, b"\xff\xfe", "bad_answer"),
    (200, '{"choices": [', "bad_answer"),
    (204, "", "bad_answer"),
    (301, "", "bad_answer"),
    (307, "", "bad_answer"),
    (400, "<html>", "rejected"),
    (402, "", "no_credit"),
    (405, "", "model_not_found"),
    (407, "", "connection"),
    (409, "", "server_error"),
    (414, "", "rejected"),
    (415, "", "unknown"),
    (418, "", "unknown"),
    (422, "", "rejected"),
    (424, "", "server_error"),
    (425, "", "server_error"),
    (431, "", "rejected"),
    (451, "", "permission"),
    (499, "", "server_error"),
    (500, "[" * 100_000, "server_error"),
    (502, "<html>Bad Gateway</html>", "server_error"),
    (520, "", "server_error"),
    (None, "", "bad_answer"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), TABLE)
def test_words(status, body, kind):
    failure = read(status, body)
    assert (failure.kind, failure.status) == (kind, status)


@pytest.mark.parametrize(
    "words",
    ["Your credit balance is too low", "API key not valid", "The model `x` does not exist"],
)
def test_a_quoted_prompt_cannot_disable_a_provider(words):
    body = openai(f"Invalid value: 'please say: {words}'")
    assert read(400, body).kind is FailureKind.REJECTED


def test_codes_stand_over_statuses_but_words_not_over_5xx():
    assert read(500, openai(code="context_length_exceeded")).kind is FailureKind.CONTEXT_WINDOW
    assert read(500, openai("prompt is too long")).kind is FailureKind.SERVER_ERROR


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (openai(code="insufficient_quota"), "insufficient_quota"),
        (openai(type_="tokens"), "tokens"),
        (google(400, "INVALID_ARGUMENT", "", info("API_KEY_INVALID")), "API_KEY_INVALID"),
        (google(503, "UNAVAILABLE"), "UNAVAILABLE"),
        ({"error": {"code": "429"}}, None),
        (openai(code="two words", type_="tame"), "tame"),
        (openai(code="x" * 65, type_=None), None),
        (openai(code="line\nbreak", type_=None), None),
        (openai(code="kéy", type_=None), None),
        ("no JSON", None),
    ],
)
def test_only_tame_codes_are_kept(body, code):
    assert read(429, body).code == code


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2"}, 2.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT"}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07 -0000"}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST_RETRY_AFTER),
        ({"retry-after": "999999999"}, LONGEST_RETRY_AFTER),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "1_0"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert read(429, "", headers) == Failure(FailureKind.RATE_LIMITED, 429, seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("34s", 34.0), ("0.5s", 0.5), ("34", None), ("-1s", None), ("nans", None), (3, None)],
)
def test_googles_retry_delay(text, seconds):
    body = google(429, "RESOURCE_EXHAUSTED", "", info("RATE_LIMIT_EXCEEDED"), delay(text))
    assert read(429, body).retry_after == seconds


def test_a_header_stands_over_the_body():
    body = google(429, "RESOURCE_EXHAUSTED", "", delay("34s"))
    assert read(429, body, {"Retry-After": "1"}).retry_after == 1.0


KEYS = [
    "error",
    "code",
    "type",
    "status",
    "message",
    "details",
    "reason",
    "innererror",
    "retryDelay",
    "object",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("field", ["type", "code", "status"])
@pytest.mark.parametrize(
    "key",
    [
        "a-key-of-ours",
        "with-a-key-of-ours-within",
        "sk-proj-abc",
        "AIzaSyAbc",
        "gsk_abcdef",
        "0123456789abcdef0123456789abcdef",
        "org.T3stT0k3nT3stT0k3n",
        "header-token",
    ],
)
def test_a_key_is_no_code(field, key):
    LLMConfig("openai", "m", api_key="a-key-of-ours", headers={"X": "Bearer header-token"})
    failure = classify_response(401, {}, {"error": {field: key}}, now_wall=0)
    assert failure.kind is FailureKind.AUTHENTICATION
    assert failure.code is None


@pytest.mark.parametrize("code", ["invalid_api_key", "DeploymentNotFound", "E429", "1302", "key"])
def test_a_code_is_no_key(code):
    assert tame_code(code) == code


@given(
    st.none() | st.integers(-5, 1000),
    st.dictionaries(st.sampled_from(["retry-after", "Retry-After-Ms", "x"]), st.text(max_size=40)),
    JSON | st.binary() | st.text() | JSON.map(json.dumps),
    st.floats(-1e12, 1e12),
)
def test_any_response_is_a_failure(status, headers, body, now_wall):
    failure = classify_response(status, headers, body, now_wall=now_wall)
    assert isinstance(failure.kind, FailureKind)
    assert failure.retry_after is None or 0 <= failure.retry_after <= LONGEST_RETRY_AFTER


@given(st.text(max_size=40), st.floats(allow_nan=True, allow_infinity=True))
def test_any_header_can_be_read(value, now_wall):
    seconds = retry_after_from_headers({"retry-after": value}, now_wall=now_wall)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER
