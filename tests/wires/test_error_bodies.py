"""What the vendors' own words mean."""
# ruff: noqa: E501 - a table reads best with one line for each body

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import LLMConfig
from aigateway.errors import FailureKind
from aigateway.wires.client import Failure
from aigateway.wires.error_bodies import classify_response, tame_code
from aigateway.wires.limits import LONGEST_RETRY_AFTER, retry_after_from_headers

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


def said(failure):
    """The kind, with "!" where it is certain."""
    return f"{failure.kind}!" if failure.certain else str(failure.kind)


def said_by(body):
    """The message in a body."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, str) else error.get("message", "")


TABLE = [
    # OpenAI and its imitators
    (400, openai("Invalid value"), "rejected"),
    (401, openai("Incorrect API key provided: sk-1", code="invalid_api_key"), "authentication!"),
    (403, openai(type_="request_forbidden", code="unsupported_country_region_territory"), "permission!"),
    (404, openai("The model `x` does not exist", code="model_not_found"), "model_not_found!"),
    (400, openai("The model `x` has been deprecated", code="model_not_found"), "model_not_found!"),
    (400, openai("The model `x` has been decommissioned and is"), "model_not_found!"),
    (400, openai(code="context_length_exceeded"), "context_window"),
    (400, openai("This model's maximum context length is 8192 tokens."), "context_window"),
    (400, openai(code="content_policy_violation"), "content_policy"),
    (400, openai("Invalid prompt: your prompt was flagged", code="invalid_prompt"), "content_policy"),
    (400, openai(code="unsupported_parameter"), "unsupported"),
    (402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), "no_credit!"),
    (429, openai(type_="insufficient_quota", code="insufficient_quota"), "no_credit!"),
    (429, openai("You exceeded your current quota, please check your plan and"), "no_credit!"),
    (429, openai(type_="billing_not_active", code="billing_not_active"), "no_credit!"),
    (400, openai(code="billing_hard_limit_reached"), "no_credit!"),
    (429, openai("Rate limit reached", "tokens", "rate_limit_exceeded"), "rate_limited"),
    (500, openai(type_="server_error"), "server_error"),
    (503, openai("The engine is overloaded", "server_error"), "server_error"),
    (200, openai(type_="server_error"), "server_error"),
    (200, {"error": {"code": 429, "message": "slow down"}}, "rate_limited"),  # OpenRouter
    (200, {"error": {"message": "?"}}, "bad_answer"),
    (200, {"id": "1", "type": "message", "status": "not_found"}, "bad_answer"),
    (400, {"object": "error", "message": "the model's context length is only 9", "code": 400}, "context_window"),
    (200, {"object": "error", "message": "", "type": "InternalServerError"}, "server_error"),
    (404, {"error": "model 'x' not found"}, "model_not_found!"),
    (400, openai("the request exceeds the available context size", "exceed_context_size_error"), "context_window"),
    # Azure
    (401, {"error": {"code": "401", "message": "Access denied due to invalid key"}}, "authentication!"),
    (401, {"statusCode": 401, "message": "Unauthorized."}, "authentication"),
    (404, {"error": {"code": "DeploymentNotFound", "message": ""}}, "model_not_found!"),
    (410, {"error": {"code": "ModelDeprecated", "message": ""}}, "model_not_found!"),
    (429, {"error": {"code": "429", "message": "have exceeded token rate limit"}}, "rate_limited"),
    (400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "content_policy"),
    (400, {"error": {"code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "content_policy"),
    (400, {"error": {"code": "OperationNotSupported", "message": ""}}, "unsupported"),
    (408, {"error": {"code": "Timeout", "message": "The operation was timeout."}}, "timeout"),
    (200, {"error": {"code": "InternalServerError", "message": ""}}, "server_error"),
    # Google
    (400, google(400, "INVALID_ARGUMENT", "API key not valid.", info("API_KEY_INVALID")), "authentication!"),
    (400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass"), "authentication!"),
    (400, google(400, "FAILED_PRECONDITION", "User location is not supported for"), "permission!"),
    (400, google(400, "INVALID_ARGUMENT", "Invalid JSON payload"), "rejected"),
    (400, google(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum"), "context_window"),
    (403, google(403, "PERMISSION_DENIED", "", info("SERVICE_DISABLED")), "permission!"),
    (403, google(403, "PERMISSION_DENIED", "", info("BILLING_DISABLED")), "no_credit!"),
    (403, google(403, "PERMISSION_DENIED", "Your API key was reported as leaked."), "authentication!"),
    (404, google(404, "NOT_FOUND", "models/x is not found for API version"), "model_not_found!"),
    (429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan"), "rate_limited"),
    (429, google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), "no_credit!"),
    (503, google(503, "UNAVAILABLE", "The model is overloaded."), "server_error"),
    (504, google(504, "DEADLINE_EXCEEDED"), "server_error"),
    (None, [google(503, "UNAVAILABLE")], "server_error"),
    # Anthropic
    (400, anthropic("invalid_request_error", "prompt is too long: 9 tokens > 8"), "context_window"),
    (400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 1"), "context_window"),
    (400, anthropic("invalid_request_error", "Your credit balance is too low to access"), "no_credit!"),
    (400, anthropic("invalid_request_error", "You have reached your specified API usage limits."), "no_credit!"),
    (400, anthropic("invalid_request_error", "This organization has been disabled."), "permission!"),
    (400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), "content_policy"),
    (400, anthropic("invalid_request_error", "max_tokens: 9 > 8, which is the maximum"), "rejected"),
    (401, anthropic("authentication_error", "invalid x-api-key"), "authentication!"),
    (402, anthropic("billing_error"), "no_credit!"),
    (403, anthropic("permission_error"), "permission"),
    (404, anthropic("not_found_error", "model: x"), "model_not_found!"),
    (413, anthropic("request_too_large"), "context_window"),
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
    (405, "", "not_offered"),
    (407, "", "connection"),
    (409, "", "server_error"),
    (414, "", "rejected"),
    (415, "", "unsupported"),
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
    assert (said(failure), failure.status) == (kind, status)


CANNOT = [
    # This model or server cannot do this; another may.
    (400, openai("registry.ollama.ai/library/gemma3:4b does not support tools", "api_error")),
    (400, {"error": '"nomic-embed-text" does not support chat'}),
    (400, openai("this model does not support image input (ref: 1)")),
    (400, openai("this model is missing data required for image input")),
    (404, {"error": {"message": "No endpoints found that support tool use. To learn more", "code": 404}}),
    (404, {"error": {"message": "No endpoints found that support image input", "code": 404}}),
    (404, {"error": {"message": "No endpoints found that can handle the requested parameters.", "code": 404}}),
    (200, {"error": {"message": "No endpoints found that support tool use.", "code": 404}}),
    (402, {"error": {"message": "This request requires more credits, or fewer max_tokens. You requested", "code": 402}}),
    (402, {"error": {"message": "Prompt tokens limit exceeded: 5000 > 1234.", "code": 402}}),
    (400, {"error": {"message": "nvidia/llama-nemotron-embed is an embedding model and cannot be used with", "code": 400}}),
    (404, openai("This is not a chat model and thus not supported in the v1/chat/completions endpoint.")),
    (403, openai("You are not allowed to sample from this model")),
    (403, openai("You are not allowed to generate embeddings from this model")),
    (403, openai("You are not allowed to request logprobs from this model")),
    (400, openai("Unsupported parameter: 'temperature' is not supported with this model.", code="unsupported_parameter")),
    (400, openai("Unknown parameter: 'reasoning'.", code="unknown_parameter")),
    (400, openai("Unrecognized request argument supplied: reasoning")),
    (404, openai("File 'file-1' not found.")),
    (404, openai("No such File object: file-1")),
    (400, openai("Files ['file-1'] were not found")),
    (404, openai("Vector store with id ['vs_1'] not found.")),
    (404, anthropic("not_found_error", "File not found: file_011CNha8iCJcU1wXNR6q4V8w")),
    (404, anthropic("not_found_error", "Not found: file file_011CNha8iCJcU1wXNR6q4V8w")),
    (400, anthropic("invalid_request_error", "This model does not support assistant message prefill. The conversation must end")),
    (400, anthropic("invalid_request_error", "Prefilling assistant messages is not supported for this model.")),
    (400, anthropic("invalid_request_error", "messages.34.content.2.image.source.base64.data: Image format image/png not supported")),
    (400, anthropic("invalid_request_error", "top_k: Extra inputs are not permitted")),
    (403, google(403, "PERMISSION_DENIED", "You do not have permission to access the File abc or it may not exist.")),
    (403, google(403, "PERMISSION_DENIED", "CachedContent not found (or permission denied)")),
    (400, google(400, "FAILED_PRECONDITION", "The File abc is not in an ACTIVE state and usage is not allowed.")),
    (400, google(400, "INVALID_ARGUMENT", "Function calling is not enabled for models/gemma-3-27b-it")),
    (400, google(400, "INVALID_ARGUMENT", "Unsupported MIME type: application/json")),
    (400, google(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unknown name \"$defs\" at 'tools[0]'")),
    (404, google(404, "NOT_FOUND", "models/gemini-3.5-flash is not found for API version v1beta, or is not supported for embedContent. Call")),
    (400, {"error": {"code": "OperationNotSupported", "message": "The chatCompletion operation does not work with the specified model"}}),
    (400, {"object": "error", "message": "The model does not support Embeddings API", "type": "BadRequestError", "code": 400}),
    (404, {"object": "error", "message": "The model does not support Chat Completions API", "type": "NotFoundError", "code": 404}),
    (400, {"object": "error", "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser', "code": 400}),
    (400, {"object": "error", "message": "At most 0 image(s) may be provided in one request.", "code": 400}),
    (400, {"object": "error", "message": "llama is not a multimodal model", "code": 400}),
    (400, openai("`tools` is not supported with this model")),
    (400, openai("tool calling is not supported with this model")),
    (400, openai("This response_format type is unavailable now")),
    (400, openai("deepseek-reasoner does not support Function Calling", code="invalid_request_error")),
    (422, {"detail": "messages[0]: unknown variant `image_url`, expected `text`"}),
    (400, {"message": "This model doesn't support tool use in streaming mode."}),
    (400, {"message": "The model is unsupported for streaming."}),
    (405, {"error": {"message": "deepinfra error: Tool calling is not supported for model: x", "code": "405"}}),
    (501, openai("Streaming is not supported")),
    (500, {"error": {"code": 500, "message": "image input is not supported - hint: if this is unexpected", "type": "server_error"}}),
    (415, ""),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), CANNOT)
def test_what_it_cannot_do(status, body):
    failure = read(status, body)
    assert failure.kind is FailureKind.UNSUPPORTED
    assert not failure.certain


SAID = [
    # The whole operation is not offered.
    (405, anthropic("invalid_request_error", "Method Not Allowed"), "not_offered"),
    (405, {"error": "Request method 'POST' is not supported"}, "not_offered"),
    (501, openai("This server does not support embeddings. Start it with `--embeddings`", "not_supported_error"), "not_offered"),
    (501, google(501, "UNIMPLEMENTED", "Operation is not implemented"), "not_offered"),
    (None, google(501, "UNIMPLEMENTED"), "not_offered"),
    # The model's own slip
    (400, openai("Failed to call a function. Please adjust your prompt.", code="tool_use_failed"), "invalid_output"),
    (400, openai("Failed to call a function. Please adjust your prompt."), "invalid_output"),
    (400, openai("tool call validation failed: parameters for tool x did not match"), "invalid_output"),
    (400, openai("Failed to validate JSON", code="json_validate_failed"), "invalid_output"),
    (None, openai(code="tool_use_failed"), "invalid_output"),
    # Too large
    (413, "", "context_window"),
    (413, "<html>413 Request Entity Too Large</html>", "context_window"),
    (413, anthropic("request_too_large", "Request exceeds the maximum size"), "context_window"),
    (400, google(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes."), "context_window"),
    (400, {"message": "Input is too long for requested model."}, "context_window"),
    (413, openai("Limit reached", "tokens", "rate_limit_exceeded"), "rate_limited"),
    (413, openai("Too many tokens per minute"), "rate_limited"),
    (413, openai("Request too large for model `x` in organization `org_1` on tokens per minute (TPM): Limit 6000, Requested 14368, please", "tokens", "rate_limit_exceeded"), "unsupported"),
    (429, openai("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389. The input", "tokens", "rate_limit_exceeded"), "unsupported"),
    (429, openai("Request too large for gpt-4o on tokens per min (TPM)."), "unsupported"),
    (429, openai("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 30000."), "rate_limited"),
    (429, openai("Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, Requested 2000."), "rate_limited"),
    (429, openai("Limit of 'Request too large for gpt-4o on tokens per min (TPM)' reached"), "rate_limited"),
    (429, openai("This model is not supported at this rate"), "rate_limited"),
    (None, anthropic("rate_limit_error", "This model is not supported at this rate"), "rate_limited"),
    # The prompt
    (403, {"error": {"message": 'x/y requires moderation and your input was flagged for "violence"', "code": 403}}, "content_policy"),
    (403, openai("Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_CSAM"), "content_policy"),
    (400, openai("Content Exists Risk"), "content_policy"),
    # The account: its settings refuse the model, but a request's own `provider` preferences bring
    # the same words. So a second request has to meet it.
    (404, {"error": {"message": "No endpoints found matching your data policy (Free model training).", "code": 404}}, "model_not_found"),
    # Key, region, model, deployment, billing
    (401, openai("You didn't provide an API key."), "authentication!"),
    (401, openai("Invalid API Key", code=None), "authentication!"),
    (401, openai("Authentication Fails, Your api key: ****1 is invalid", "authentication_error"), "authentication!"),
    (401, {"error": {"message": "No auth credentials found", "code": 401}}, "authentication!"),
    (401, {"error": {"code": 401, "message": "Unauthorized. Access token is missing, invalid"}}, "authentication!"),
    (401, anthropic("authentication_error", "x-api-key header is required"), "authentication!"),
    (401, anthropic("authentication_error", "OAuth token has expired."), "authentication!"),
    (401, google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."), "authentication!"),
    (403, google(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers"), "authentication!"),
    (400, openai("Incorrect API key provided: xa***1."), "authentication!"),  # xAI
    (403, {"message": "The security token included in the request is invalid."}, "authentication!"),
    (403, {"error": {"code": "403", "message": "Access denied due to Virtual Network/Firewall rules."}}, "permission!"),
    (403, anthropic("permission_error", "Your API key does not have permission to use the specified resource."), "permission!"),
    (403, anthropic("permission_error", "Access to Anthropic models is not allowed from unsupported countries, regions"), "permission!"),
    (403, google(403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.predict' denied on resource"), "permission!"),
    (403, {"message": "You don't have access to the model with the specified model ID."}, "permission!"),
    (403, openai("Project `proj_1` does not have access to model `gpt-5`"), "permission!"),
    (403, {"error": {"message": "Key limit exceeded (total limit).", "code": 403}}, "no_credit!"),
    (402, {"error": {"message": "Insufficient credits. Add more", "code": 402}}, "no_credit!"),
    (402, {"error": {"code": "PaymentRequired", "message": ""}}, "no_credit"),
    (404, {"error": {"message": "No endpoints found for x/y:free.", "code": 404}}, "model_not_found!"),
    (404, {"error": {"code": "404", "message": "The API deployment for this resource does not exist."}}, "model_not_found!"),
    (404, google(404, "NOT_FOUND", "This model models/x is no longer available."), "model_not_found!"),
    (404, google(404, "NOT_FOUND", "models/x is not found for API version v1beta, or is not supported for generateContent."), "model_not_found!"),
    (404, google(404, "NOT_FOUND", "Requested entity was not found."), "model_not_found"),
    (404, openai("Invalid URL (POST /v1/embeddings)"), "model_not_found"),
    (404, {"detail": "Not Found"}, "model_not_found"),
    (404, anthropic("not_found_error", "Not Found"), "model_not_found"),
    (400, openai("Model Not Exist"), "model_not_found!"),  # DeepSeek
    (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"}, "model_not_found!"),
    (400, {"error": {"message": "x/y is not a valid model ID", "code": 400}}, "model_not_found!"),
    (400, {"message": "The provided model identifier is invalid."}, "model_not_found!"),
    (400, openai("Invalid model output: expected an object"), "rejected"),
    (400, openai("The model called 'delete everything' which was not found"), "rejected"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), SAID)
def test_more_words(status, body, kind):
    assert said(read(status, body)) == kind


def test_bedrocks_code_is_in_a_header():
    headers = {"x-amzn-ErrorType": "UnrecognizedClientException:http://internal.amazon.com/"}
    failure = read(403, {"message": ""}, headers)
    assert said(failure) == "authentication!"
    assert failure.code == "UnrecognizedClientException"


@pytest.mark.parametrize(
    "status", [400, 401, 402, 403, 404, 405, 410, 413, 422, 429, 451, 500, 501]
)
def test_a_bare_status_is_never_certain(status):
    assert not read(status, "").certain


OPENINGS = [body for _, body, kind in TABLE + SAID if kind.endswith("!") and said_by(body)]
"""Bodies that take a provider out of service by their words."""
STARTS = [
    "Invalid value: '",
    "messages.0.content: ",
    'Input should be valid: "',
    "Error: ",
    "I was told: ",
]


@given(
    st.sampled_from([400, 401, 402, 403, 404, 405, 422, 429, 501]),
    st.sampled_from(STARTS),
    st.text(max_size=20),
    st.sampled_from(OPENINGS),
    st.text(max_size=20),
)
def test_nothing_is_certain_because_of_what_a_message_goes_on_to_say(
    status, start, before, opening, after
):
    message = f"{start}{before}{said_by(opening)}{after}"
    assert not read(status, openai(message)).certain
    assert not read(status, anthropic("invalid_request_error", message)).certain
    assert not read(status, google(status, "INVALID_ARGUMENT", message)).certain


@pytest.mark.parametrize("body", OPENINGS, ids=said_by)
def test_the_same_words_at_the_beginning_are(body):
    assert read(403, openai(said_by(body))).certain
    assert read(403, openai(f" {said_by(body)}")).certain


@given(
    st.sampled_from([None, 200, 500, 502, 503]), st.text(max_size=60), st.sampled_from(CANNOT[:20])
)
def test_a_prompt_cannot_make_a_sick_vendor_look_well(status, before, cannot):
    message = f"Error: {before}{said_by(cannot[1])}"
    assert read(status, openai(message, "server_error")).kind is FailureKind.SERVER_ERROR


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
