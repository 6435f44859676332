"""OpenAI's errors: statuses, types, codes and messages.

OpenAI does not send 402 (but 429 `insufficient_quota`). Compatible servers do, in DeepSeek's words.
"""

from __future__ import annotations

from aigateway.simulator.wires.wire import Words

__all__ = ["BY_STATUS", "COMPATIBLE", "ERRORS"]

_INVALID = "invalid_request_error"

ERRORS = {
    "bad_request": Words(400, _INVALID, "Invalid value for a parameter of the request."),
    "broken_json": Words(
        400,
        _INVALID,
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
        "using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was "
        "sent was not valid JSON.)",
    ),
    "wrong_path": Words(404, _INVALID, "Invalid URL"),
    "wrong_method": Words(405, _INVALID, "Method not allowed.", code="method_not_supported"),
    "missing_key": Words(
        401,
        _INVALID,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
    ),
    "too_large": Words(
        413, _INVALID, "Maximum content size limit (26214400) exceeded (26262582 bytes read)"
    ),
    "unsupported_media": Words(
        415,
        _INVALID,
        "Unsupported content type: 'text/plain'. This API method only accepts "
        "'application/json' requests, but you specified the header 'Content-Type: text/plain'.",
        code="unsupported_content_type",
    ),
    "context_window": Words(
        400,
        _INVALID,
        "This model's maximum context length is 128000 tokens. However, your messages resulted "
        "in 130045 tokens. Please reduce the length of the messages.",
        code="context_length_exceeded",
        param="messages",
    ),
    "content_policy": Words(
        400,
        _INVALID,
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy. "
        "Please try again with a different prompt: "
        "https://platform.openai.com/docs/guides/reasoning#advice-on-prompting",
        code="invalid_prompt",
    ),
    "bad_key": Words(
        401,
        _INVALID,
        "Incorrect API key provided: sk-simul****ated. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    ),
    "forbidden": Words(
        403,
        _INVALID,
        "You have insufficient permissions for this operation. Missing scopes: model.request.",
        code="insufficient_permissions",
    ),
    "region": Words(
        403,
        "request_forbidden",
        "Country, region, or territory not supported",
        code="unsupported_country_region_territory",
    ),
    "retired_model": Words(
        404,
        _INVALID,
        "The model `{model}` has been deprecated, learn more here: "
        "https://platform.openai.com/docs/deprecations",
        code="model_not_found",
    ),
    "model_not_found": Words(
        404,
        _INVALID,
        "The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    "not_a_chat_model": Words(
        404,
        _INVALID,
        "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
        "Did you mean to use v1/completions?",
        param="model",
    ),
    "not_an_embedding_model": Words(
        403, _INVALID, "You are not allowed to generate embeddings from this model"
    ),
    "not_offered": Words(501, "NotImplementedError", "The model does not support this API"),
    "file_not_found": Words(404, _INVALID, "No such File object: file-simulated", param="id"),
    "no_tools": Words(
        400,
        _INVALID,
        "Unsupported parameter: 'tools' is not supported with this model.",
        code="unsupported_parameter",
        param="tools",
    ),
    "no_credit": Words(402, "unknown_error", "Insufficient Balance", code=_INVALID),
    "insufficient_quota": Words(
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors.",
        code="insufficient_quota",
    ),
    "rate_limited": Words(
        429,
        "requests",
        "Rate limit reached for {model} in organization org-simulated on requests per min (RPM): "
        "Limit 500, Used 500, Requested 1.{retry} Visit "
        "https://platform.openai.com/account/rate-limits to learn more.",
        code="rate_limit_exceeded",
    ),
    "server_error": Words(
        500,
        "server_error",
        "The server had an error while processing your request. Sorry about that! You can retry "
        "your request, or contact us through our help center at help.openai.com if the error "
        "persists.",
    ),
    "overloaded": Words(
        503,
        "server_error",
        "That model is currently overloaded with other requests. You can retry your request, or "
        "contact us through our help center at help.openai.com if the error persists.",
    ),
}

COMPATIBLE = ERRORS | {
    "not_a_chat_model": Words(400, "api_error", '"{model}" does not support chat'),  # Ollama
    "not_an_embedding_model": Words(  # vLLM
        400, "BadRequestError", "The model does not support Embeddings API"
    ),
    "no_tools": Words(  # OpenRouter
        404,
        None,
        "No endpoints found that support tool use. To learn more about provider routing, visit: "
        "https://openrouter.ai/docs/provider-routing",
    ),
}
"""Different words of some compatible servers."""

BY_STATUS = {
    400: "bad_request",
    401: "bad_key",
    402: "no_credit",
    403: "forbidden",
    404: "model_not_found",
    405: "wrong_method",
    413: "too_large",
    415: "unsupported_media",
    429: "rate_limited",
    500: "server_error",
    501: "not_offered",
    503: "overloaded",
    529: "overloaded",
}
