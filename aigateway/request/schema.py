"""The one schema of requests: messages, tools, parameters of a chat, and of embeddings.

The library and the service check requests by it, and the service's OpenAPI document is generated
from it. See https://platform.openai.com/docs/api-reference.

It is as strict as OpenAI where all vendors agree, and open where they differ: an object may have
more fields than are named here (`cache_control`, say), and a part, tool or response format of a
vendor's own kind passes. Top-level names are closed, so that nothing in a request of the service
decides where it goes or with which key.

`checks` reads the table and words the mistakes.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from types import GenericAlias
from typing import Annotated, Any, Literal, NotRequired, TypeGuard

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

__all__ = [
    "CHAT_FIELDS",
    "COMPLETION_FIELDS",
    "EMBEDDING_FIELDS",
    "FORMS",
    "MOST_MESSAGES",
    "PLAIN_FIELDS",
    "RESPONSES_FIELDS",
    "ROLES",
    "ROLE_PROBLEM",
    "TOKENS_END",
    "json_schemas",
    "whole",
]

MOST_MESSAGES = 10_000
"""Messages of a request, and parts of a message."""

_FEW = 1024
"""Tools, calls of one message, words to stop at: several times what any vendor takes."""

TOKENS_END = 2**31
"""No vocabulary has so many tokens."""

_LONGEST_TYPE = 64


# ── the language of the table ────────────────────────────────────────────────────────────────

_typed_dict: Any = TypedDict  # a checker takes no form that is put together while it runs


def _object(
    name: str,
    must: Mapping[str, Any],
    may: Mapping[str, Any] | None = None,
    *,
    closed: bool = False,
    schema: dict[str, Any] | None = None,
) -> Any:
    """Declare a JSON object.

    Args:
        name: In the OpenAPI document.
        must: Fields that have to be there, and their types.
        may: Fields that may be missing or null.
        closed: Whether it may have no other fields.
        schema: More for its JSON schema.
    """
    fields = {**must, **{field: NotRequired[kind | None] for field, kind in (may or {}).items()}}
    made: Any = _typed_dict(name, fields)
    extra: Literal["forbid", "allow"] = "forbid" if closed else "allow"
    made.__pydantic_config__ = ConfigDict(
        extra=extra, strict=True, allow_inf_nan=False, json_schema_extra=schema
    )
    return made


def _choice(kind: Callable[[Any], str | None], problem: str, **forms: Any) -> Any:
    """Declare a choice: `kind` names the form of a value, or returns None for `problem`."""
    tags = {name: f"<{name}>" for name in forms}
    return _tagged(lambda value: tags.get(kind(value) or ""), problem, **forms)


def _tagged(tag_of: Callable[[Any], str | None], problem: str, **forms: Any) -> Any:
    """Declare a choice: the tag of a form is its name in angle brackets."""
    # Tags stand in the location of a mistake, so they must not look like keys of the value.
    tagged = [Annotated[form, Tag(f"<{name}>")] for name, form in forms.items()]
    how = Discriminator(tag_of, custom_error_type="choice", custom_error_message=problem)
    return Annotated[functools.reduce(operator.or_, tagged), how]


def _kind_of(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else "object" if isinstance(value, dict) else None


def _type_in(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


def _is_type(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_TYPE


def whole(value: Any) -> Any:
    """Return 5 for 5.0: to JSON both are integers, and some clients write the latter."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _few_items(value: Any) -> Any:
    """Count first: pydantic looks at every item of a mapping before it counts them."""
    if isinstance(value, dict) and len(value) > _FEW:
        raise PydanticCustomError("choice", f"must have at most {_FEW} items")
    return value


Text = Annotated[str, Field(min_length=1)]


def _few(item: Any) -> Any:
    # The first wrong item ends the check: an error for each of millions takes minutes.
    return Annotated[GenericAlias(list, item), Field(max_length=_FEW, fail_fast=True)]


def _many(item: Any) -> Any:
    how = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    return Annotated[GenericAlias(list, item), how]


def _whole_from(least: int, most: int = 2**53) -> Any:
    return Annotated[int, Field(ge=least, le=most), BeforeValidator(whole)]


def _number(least: float, most: float) -> Any:
    return Annotated[float, Field(ge=least, le=most)]


def _not_typed(*kinds: str, more: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    known = {"properties": {"type": {"enum": list(kinds)}}, "required": ["type"]}
    return {"not": {"anyOf": [known, *more]}}


# ── messages ─────────────────────────────────────────────────────────────────────────────────

_url = _object("Link", {"url": Text})
_PARTS: dict[str, Any] = {
    "text": _object("TextPart", {"type": Literal["text"], "text": str}),
    "refusal": _object("RefusalPart", {"type": Literal["refusal"], "refusal": str}),
    "image_url": _object(
        "ImagePart",
        {
            "type": Literal["image_url"],
            "image_url": _choice(
                _kind_of,
                "must be an object with a url",
                text=Text,  # litellm's users give the address itself, too
                object=_object("ImageLink", {"url": Text}, {"detail": str}),
            ),
        },
    ),
    "input_audio": _object(
        "AudioPart",
        {
            "type": Literal["input_audio"],
            "input_audio": _object("AudioData", {"data": str, "format": str}),
        },
    ),
    "file": _object("FilePart", {"type": Literal["file"], "file": dict[str, Any]}),
    "video_url": _object("VideoPart", {"type": Literal["video_url"], "video_url": _url}),
}


def _part_kind(part: Any) -> str | None:
    kind = _type_in(part)
    return None if not _is_type(kind) else kind if kind in _PARTS else "other"


_TYPE_NAME = Annotated[str, Field(min_length=1, max_length=_LONGEST_TYPE)]
_parts = _many(
    _choice(
        _part_kind,
        'must be an object with a "type", such as "text"',
        **_PARTS,
        other=_object("OtherPart", {"type": _TYPE_NAME}, schema=_not_typed(*_PARTS)),
    )
)


def _content(text: Any) -> Any:
    problem = "must be a text or a list of parts"
    return _choice(_kind_of, problem, text=text, list=_parts)


_called_function = _object("CalledFunction", {"name": str, "arguments": str})
# A name may be empty: models make such calls, and the conversation has to go on.
_called_tools = _few(
    _choice(
        lambda call: "custom" if _type_in(call) == "custom" else "function",
        "must be a tool call",
        function=_object(
            "FunctionCall",
            {"id": Text, "function": _called_function},
            {"type": Literal["function"]},
        ),
        custom=_object(
            "CustomToolCall",
            {
                "id": Text,
                "type": Literal["custom"],
                "custom": _object("CustomToolInput", {"name": str, "input": str}),
            },
        ),
    )
)

_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")


def _has_content(message: Any) -> Any:
    if (
        isinstance(message, dict)
        and "content" not in message  # null is fine: frameworks keep it of a refusal
        and not any(message.get(name) for name in _INSTEAD_OF_CONTENT)
    ):
        raise PydanticCustomError("missing", 'must have "content"', {"field": "content"})
    return message


_ASSISTANT_HAS = [
    {"required": ["content"]},
    {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array", "minItems": 1}}},
    {"required": ["function_call"], "properties": {"function_call": {"type": "object"}}},
    {"required": ["refusal"], "properties": {"refusal": {"type": "string", "minLength": 1}}},
    {"required": ["audio"], "properties": {"audio": {"type": "object", "minProperties": 1}}},
]

_assistant: Any = Annotated[
    _object(
        "AssistantMessage",
        {"role": Literal["assistant"]},
        {
            "content": _content(str),
            "name": str,
            "refusal": str,
            "tool_calls": _called_tools,
            "function_call": _called_function,
            "audio": dict[str, Any],
        },
        schema={"anyOf": _ASSISTANT_HAS},
    ),
    BeforeValidator(_has_content),
]

_MESSAGES: dict[str, Any] = {
    "instruction": _object(
        "InstructionMessage",
        {"role": Literal["system", "developer"], "content": _content(str)},
        {"name": str},
    ),
    "user": _object(
        "UserMessage", {"role": Literal["user"], "content": _content(Text)}, {"name": str}
    ),
    "assistant": _assistant,
    "tool": _object(
        "ToolMessage", {"role": Literal["tool"], "tool_call_id": Text, "content": _content(str)}
    ),
    "function": _object(
        "FunctionMessage", {"role": Literal["function"], "name": Text, "content": str}
    ),
}
ROLES = {"system": "instruction", "developer": "instruction"}
ROLES |= {role: role for role in ("user", "assistant", "tool", "function")}
ROLE_PROBLEM = f"must have a role: {', '.join(ROLES)}"


def _role_in(message: Any) -> str | None:
    role = message.get("role") if isinstance(message, dict) else None
    return ROLES.get(role) if isinstance(role, str) else None


_message = _choice(_role_in, ROLE_PROBLEM, **_MESSAGES)


# ── tools and parameters ─────────────────────────────────────────────────────────────────────

_declared_function = _object(
    "DeclaredFunction",
    {"name": Text},
    {"description": str, "parameters": dict[str, Any], "strict": bool},
)


def _tool_kind(tool: Any) -> str | None:
    kind = _type_in(tool)
    if kind in ("function", "custom"):
        return str(kind)
    if not tool or not isinstance(tool, dict) or (kind is not None and not _is_type(kind)):
        return None
    return "function" if kind is None and "function" in tool else "other"


_tool = _choice(
    _tool_kind,
    'must be an object with a "type", such as "function"',
    function=_object(
        "FunctionTool", {"function": _declared_function}, {"type": Literal["function"]}
    ),
    custom=_object(
        "CustomTool",
        {"type": Literal["custom"], "custom": _object("DeclaredCustomTool", {"name": Text})},
    ),
    other=_object(  # a vendor's own: {"type": "web_search_20250305", ...}, {"googleSearch": {}}
        "VendorTool",
        {},
        {"type": _TYPE_NAME},
        schema={
            **_not_typed("function", "custom", more=[{"required": ["function"]}]),
            "minProperties": 1,
        },
    ),
)

_response_format = _choice(
    lambda form: (
        None if not _is_type(kind := _type_in(form)) else kind if kind == "json_schema" else "other"
    ),
    'must be an object with a "type", such as "json_object", or a JSON schema whose type is'
    ' "object"; in Python also a pydantic model class',
    json_schema=_object(
        "JsonSchemaFormat",
        {
            "type": Literal["json_schema"],
            "json_schema": _object(
                "JsonSchema",
                {"name": Text},
                {"description": str, "schema": dict[str, Any], "strict": bool},
            ),
        },
    ),
    other=_object("OtherFormat", {"type": _TYPE_NAME}, schema=_not_typed("json_schema")),
)

CHAT_FIELDS: Mapping[str, Any] = {
    "audio": dict[str, Any],
    "cache_control": dict[str, Any],
    "extra_body": dict[str, Any],
    "extra_headers": dict[str, Any],
    "frequency_penalty": _number(-2, 2),
    "function_call": _choice(
        _kind_of,
        "must be a text or an object",
        text=str,
        object=_object("ChosenFunction", {"name": Text}),
    ),
    "functions": _few(_declared_function),
    "logit_bias": Annotated[dict[str, float], BeforeValidator(_few_items)],
    "logprobs": bool,
    "max_completion_tokens": _whole_from(1),
    "max_tokens": _whole_from(1),
    "metadata": dict[str, Any],
    "modalities": _few(str),
    "model": str,
    "n": _whole_from(1, 128),
    "parallel_tool_calls": bool,
    "prediction": dict[str, Any],
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "reasoning_effort": str,
    "response_format": _response_format,
    "safety_identifier": str,
    "safety_settings": _few(dict[str, Any]),
    "seed": _whole_from(1 - 2**63, 2**63 - 1),
    "service_tier": str,
    "stop": _choice(
        _kind_of,
        "must be a text or a list of texts",
        text=str,
        list=_few(str),
    ),
    "store": bool,
    "stream": bool,
    "stream_options": _object("StreamOptions", {}, {"include_usage": bool}),
    "temperature": _number(0, 2),
    "thinking": dict[str, Any],
    "tool_choice": _choice(
        _kind_of,
        "must be a text or an object",
        text=str,
        object=_object("ChosenTool", {"type": Text}),
    ),
    "tools": _few(_tool),
    "top_k": _whole_from(-1, 2**31),  # vLLM: -1 is all
    "top_logprobs": _whole_from(0, 20),
    "top_p": _number(0, 1),
    "user": str,
    "verbosity": str,
    "web_search_options": dict[str, Any],
}
"""The top-level fields of a chat beside its messages, for the library and the service together."""

EMBEDDING_FIELDS: Mapping[str, Any] = {
    "dimensions": _whole_from(1),
    "encoding_format": Literal["float", "base64"],
    "extra_body": dict[str, Any],
    "extra_headers": dict[str, Any],
    "model": str,
    "user": str,
}
"""The top-level fields of an embedding request beside its inputs, likewise."""

COMPLETION_FIELDS: Mapping[str, Any] = {
    **{
        name: CHAT_FIELDS[name]
        for name in (
            *("frequency_penalty", "logit_bias", "model", "n", "presence_penalty", "seed", "stop"),
            *("stream", "stream_options", "temperature", "top_p", "user"),
        )
    },
    "best_of": _whole_from(1, 128),
    "echo": bool,
    "logprobs": _whole_from(0, 20),
    "max_tokens": _whole_from(0),
    "suffix": str,
}
"""The top-level fields of an older completion beside its prompt, likewise."""

_token_list = Annotated[list[Annotated[int, Field(ge=0, lt=TOKENS_END)]], Field(min_length=1)]
_INPUTS = (
    Text
    | Annotated[list[Text], Field(min_length=1)]
    | _token_list
    | Annotated[list[_token_list], Field(min_length=1)]
)
"""For the document; `check_inputs` checks them."""


# ── OpenAI's Responses ───────────────────────────────────────────────────────────────────────

_RESPONSE_PARTS: dict[str, Any] = {
    "input_text": _object("InputText", {"type": Literal["input_text"], "text": str}),
    "output_text": _object("OutputText", {"type": Literal["output_text"], "text": str}),
    "refusal": _PARTS["refusal"],
    "input_image": _object(
        "InputImage",
        {"type": Literal["input_image"]},
        {"image_url": Text, "file_id": Text, "detail": str},
    ),
    "input_file": _object(
        "InputFile",
        {"type": Literal["input_file"]},
        {"file_data": Text, "file_id": Text, "file_url": Text, "filename": str},
    ),
    "input_audio": _PARTS["input_audio"],
}


def _response_part_kind(part: Any) -> str | None:
    kind = _type_in(part)
    return None if not _is_type(kind) else kind if kind in _RESPONSE_PARTS else "other"


_said = _choice(
    _kind_of,
    "must be a text or a list of parts",
    text=str,
    list=_few(
        _choice(
            _response_part_kind,
            'must be an object with a "type", such as "input_text"',
            **_RESPONSE_PARTS,
            other=_object(
                "OtherInputPart", {"type": _TYPE_NAME}, schema=_not_typed(*_RESPONSE_PARTS)
            ),
        )
    ),
)

_response_message = _object(
    "InputMessage",
    {"role": Literal["user", "assistant", "system", "developer"], "content": _said},
    {"type": Literal["message"]},
)


def _item(kind: str, must: Mapping[str, Any], may: Mapping[str, Any] | None = None) -> Any:
    name = "".join(map(str.capitalize, kind.split("_")))
    return _object(f"{name}Item", {"type": Literal[kind], **must}, may)


_ITEMS: dict[str, Any] = {
    "function_call": _item(
        "function_call", {"call_id": Text, "name": str, "arguments": str}, {"namespace": str}
    ),
    "function_call_output": _item("function_call_output", {"call_id": Text, "output": _said}),
    "custom_tool_call": _item(
        "custom_tool_call", {"call_id": Text, "name": str, "input": str}, {"namespace": str}
    ),
    "custom_tool_call_output": _item("custom_tool_call_output", {"call_id": Text, "output": _said}),
    "reasoning": _item(
        "reasoning", {}, {"summary": _few(dict[str, Any]), "encrypted_content": str}
    ),
    "local_shell_call": _item("local_shell_call", {"call_id": Text, "action": dict[str, Any]}),
    "local_shell_call_output": _item(
        "local_shell_call_output", {"output": str}, {"id": Text, "call_id": Text}
    ),
    "shell_call": _item("shell_call", {"call_id": Text, "action": dict[str, Any]}),
    "shell_call_output": _item("shell_call_output", {"call_id": Text, "output": _few(Any)}),
    "apply_patch_call": _item("apply_patch_call", {"call_id": Text, "operation": dict[str, Any]}),
    "apply_patch_call_output": _item(
        "apply_patch_call_output", {"call_id": Text}, {"status": str, "output": str}
    ),
    "tool_search_call": _item("tool_search_call", {}, {"call_id": Text, "arguments": Any}),
    "item_reference": _object("ItemReference", {"id": Text}, {"type": Literal["item_reference"]}),
}


def _item_kind(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind is None or kind == "message":
        return "message" if kind or "role" in item else "item_reference" if "id" in item else None
    return None if not _is_type(kind) else kind if kind in _ITEMS or kind in _ADDING else "other"


_named_function = {"name": Text}
_flat_function = {"description": str, "parameters": dict[str, Any], "strict": bool}
_CALLABLE: dict[str, Any] = {
    "function": _object(
        "ResponseFunction", {"type": Literal["function"], **_named_function}, _flat_function
    ),
    "custom": _object(
        "ResponseCustomTool",
        {"type": Literal["custom"], **_named_function},
        {"description": str, "format": dict[str, Any]},
    ),
}


def _response_tool_kind(tool: Any) -> str | None:
    kind = _type_in(tool)
    return None if not _is_type(kind) else kind if kind in _RESPONSE_TOOLS else "other"


_TOOL_PROBLEM = 'must be an object with a "type", such as "function"'
_within_namespace = _choice(
    lambda tool: kind if (kind := _response_tool_kind(tool)) in _CALLABLE else "other",
    _TOOL_PROBLEM,
    **_CALLABLE,
    other=_object("OtherTool", {"type": _TYPE_NAME}, schema=_not_typed(*_CALLABLE)),
)
_RESPONSE_TOOLS: dict[str, Any] = {
    **_CALLABLE,
    "namespace": _object(
        "ToolNamespace",
        {"type": Literal["namespace"], "name": Text, "tools": _few(_within_namespace)},
        {"description": str},
    ),
    "tool_search": _object(
        "ToolSearch",
        {"type": Literal["tool_search"]},
        {"execution": str, "description": str, "parameters": dict[str, Any]},
    ),
}
_response_tools = _few(
    _choice(
        _response_tool_kind,
        _TOOL_PROBLEM,
        **_RESPONSE_TOOLS,
        other=_object("HostedTool", {"type": _TYPE_NAME}, schema=_not_typed(*_RESPONSE_TOOLS)),
    )
)
_ADDING = {
    "additional_tools": _item("additional_tools", {"tools": _response_tools}),
    "tool_search_output": _item(
        "tool_search_output", {"tools": _response_tools}, {"call_id": Text}
    ),
}
_response_items = _choice(
    _kind_of,
    "must be a text or a list of items",
    text=Text,
    list=_many(
        _choice(
            _item_kind,
            'must be an object with a "type", such as "message"',
            message=_response_message,
            **_ITEMS,
            **_ADDING,
            other=_object(
                "OtherItem",
                {"type": _TYPE_NAME},
                schema=_not_typed("message", *_ITEMS, *_ADDING, more=[{"required": ["role"]}]),
            ),
        )
    ),
)

_text_format = _choice(
    lambda form: (
        None if not _is_type(kind := _type_in(form)) else kind if kind == "json_schema" else "other"
    ),
    'must be an object with a "type", such as "json_schema"',
    json_schema=_object(
        "TextJsonSchema",
        {"type": Literal["json_schema"], "name": Text, "schema": dict[str, Any]},
        {"description": str, "strict": bool},
    ),
    other=_object("OtherTextFormat", {"type": _TYPE_NAME}, schema=_not_typed("json_schema")),
)

RESPONSES_FIELDS: Mapping[str, Any] = {
    "background": bool,
    "conversation": _choice(
        _kind_of, "must be a text or an object", text=str, object=dict[str, Any]
    ),
    "include": _few(str),
    "input": _response_items,
    "instructions": str,
    "max_output_tokens": _whole_from(1),
    "metadata": dict[str, Any],
    "model": str,
    "parallel_tool_calls": bool,
    "previous_response_id": str,
    "prompt": dict[str, Any],
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "reasoning": _object("Reasoning", {}, {"effort": str, "summary": str}),
    "safety_identifier": str,
    "service_tier": str,
    "store": bool,
    "stream": bool,
    "stream_options": dict[str, Any],
    "temperature": _number(0, 2),
    "text": _object("TextConfig", {}, {"format": _text_format, "verbosity": str}),
    "tool_choice": _choice(
        _kind_of,
        "must be a text or an object",
        text=str,
        object=_object(
            "ResponseToolChoice",
            {"type": _TYPE_NAME},
            {"name": Text, "namespace": str, "mode": str, "tools": _few(dict[str, Any])},
        ),
    ),
    "tools": _response_tools,
    "top_logprobs": _whole_from(0, 20),
    "top_p": _number(0, 1),
    "truncation": str,
    "user": str,
}
"""The top-level fields of a request in OpenAI's Responses. It may have others, too."""


_ONLY_LIBRARY = {"extra_body", "extra_headers"}
_CHAT_SERVICE = {n: form for n, form in CHAT_FIELDS.items() if n not in _ONLY_LIBRARY}

PLAIN_FIELDS: Mapping[str, Any] = {
    **{n: form for n, form in _CHAT_SERVICE.items() if n != "stream_options"},
    "n": _whole_from(1, 1),
    "stream": Annotated[bool, WithJsonSchema({"const": False})],
    "agent": Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[ -~]+$")],
    "cache": bool | Literal["refresh"],
    "cache_ttl": Annotated[float, Field(gt=0, le=1e9)],
    "system": str,
    "timeout": Annotated[float, Field(gt=0, le=1e9)],
}
"""The fields of the service's own `/chat` beside its message or messages."""

# ── Anthropic's Messages ─────────────────────────────────────────────────────────────────────
# https://platform.claude.com/docs/en/api/messages


def _kinds(name: str, **forms: Any) -> Any:
    """Declare an object by its "type". Other types pass: they are the vendor's own."""
    other = _object(f"Other{name}", {"type": _TYPE_NAME}, schema=_not_typed(*forms))
    tags = {kind: f"<{kind}>" for kind in forms}

    def tag_of(value: Any) -> str | None:  # one call for each of many blocks
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str):
            return None
        return tags.get(kind) or ("<other>" if _is_type(kind) else None)

    wanted = f'must be an object with a "type", such as "{next(iter(forms))}"'
    return _tagged(tag_of, wanted, **forms, other=other)


def _typed(
    name: str, kind: str, must: Mapping[str, Any], may: Mapping[str, Any] | None = None
) -> Any:
    return _object(name, {"type": Literal[kind], **must}, may)


def _any_number_of(item: Any) -> Any:
    how = Field(max_length=MOST_MESSAGES, fail_fast=True)
    return Annotated[GenericAlias(list, item), how]


def _text_or(blocks: Any) -> Any:
    problem = "must be a text or a list of blocks"
    return _choice(_kind_of, problem, text=str, list=_any_number_of(blocks))


_text_block = _typed("TextBlock", "text", {"text": str})
_base64_source = _typed("Base64Source", "base64", {"media_type": Text, "data": Text})
_url_source = _typed("UrlSource", "url", {"url": Text})
_image_block = _typed(
    "ImageBlock", "image", {"source": _kinds("ImageSource", base64=_base64_source, url=_url_source)}
)
_shown = {"text": _text_block, "image": _image_block}
_document_block = _typed(
    "DocumentBlock",
    "document",
    {
        "source": _kinds(
            "DocumentSource",
            base64=_base64_source,
            url=_url_source,
            text=_typed("TextSource", "text", {"data": str}),
            content=_typed(
                "ContentSource", "content", {"content": _text_or(_kinds("DocumentPart", **_shown))}
            ),
        )
    },
    {"title": str, "context": str},
)
_found = _typed(
    "SearchResultBlock",
    "search_result",
    {"source": str, "title": str, "content": _any_number_of(_text_block)},
)
_shown |= {"document": _document_block, "search_result": _found}
_TOOL_ID = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=65_536)]
_block = _kinds(
    "Block",
    **_shown,
    tool_use=_typed(
        "ToolUseBlock", "tool_use", {"id": _TOOL_ID, "name": Text, "input": dict[str, Any]}
    ),
    tool_result=_typed(
        "ToolResultBlock",
        "tool_result",
        {"tool_use_id": _TOOL_ID},
        {"content": _text_or(_kinds("ResultPart", **_shown)), "is_error": bool},
    ),
    thinking=_typed("ThinkingBlock", "thinking", {"thinking": str}, {"signature": str}),
    redacted_thinking=_typed("RedactedThinkingBlock", "redacted_thinking", {"data": str}),
)
_client_tool = _object(
    "ClientTool",
    {"name": Text, "input_schema": dict[str, Any]},
    {"type": Literal["custom"], "description": str, "strict": bool},
)


def _anthropic_tool_kind(tool: Any) -> str | None:
    kind = _type_in(tool)
    if kind is None or kind == "custom":
        return "client" if isinstance(tool, dict) else None
    return "other" if _is_type(kind) else None


_NONE = {"properties": {"type": {"type": "null"}}}
_schema_format = _typed("SchemaFormat", "json_schema", {"schema": dict[str, Any]})
_output_format = _kinds("OutputFormat", json_schema=_schema_format)

_COUNTED: Mapping[str, Any] = {
    "cache_control": dict[str, Any],
    "context_management": dict[str, Any],
    "mcp_servers": _few(dict[str, Any]),
    "model": str,
    "output_config": _object("OutputConfig", {}, {"effort": str, "format": _output_format}),
    "output_format": _output_format,
    "system": _text_or(_text_block),
    "thinking": _kinds(
        "Thinking",
        enabled=_typed("EnabledThinking", "enabled", {"budget_tokens": _whole_from(1)}),
    ),
    "tool_choice": _kinds(
        "ToolChoice",
        auto=_typed("AutoChoice", "auto", {}, {"disable_parallel_tool_use": bool}),
        any=_typed("AnyChoice", "any", {}, {"disable_parallel_tool_use": bool}),
        tool=_typed("NamedChoice", "tool", {"name": Text}, {"disable_parallel_tool_use": bool}),
        none=_typed("NoChoice", "none", {}),
    ),
    "tools": _few(
        _choice(
            _anthropic_tool_kind,
            'must be an object with "name" and "input_schema"',
            client=_client_tool,
            other=_object(
                "AnthropicTool", {"type": _TYPE_NAME}, schema=_not_typed("custom", more=[_NONE])
            ),
        )
    ),
}
_ANTHROPIC_MESSAGES = {
    "messages": _many(
        _object(
            "AnthropicMessage",
            {"role": Literal["user", "assistant", "system"], "content": _text_or(_block)},
        )
    )
}
_ANSWERED: Mapping[str, Any] = {
    **_COUNTED,
    "metadata": _object("AnthropicMetadata", {}, {"user_id": str}),
    "service_tier": str,
    "stop_sequences": _few(str),
    "stream": bool,
    "temperature": _number(0, 1),
    "top_k": _whole_from(0, 2**31),
    "top_p": _number(0, 1),
}
_ANTHROPIC: Mapping[str, Any] = {
    # Open: Anthropic adds fields, and its own providers get them as they are.
    "anthropic_messages": _object(
        "AnthropicMessagesRequest",
        {**_ANTHROPIC_MESSAGES, "max_tokens": _whole_from(1)},
        _ANSWERED,
    ),
    "anthropic_count": _object("AnthropicCountRequest", _ANTHROPIC_MESSAGES, _COUNTED),
}


FORMS: Mapping[str, Any] = {
    "message": _message,
    "chat": _object("ChatFields", {}, CHAT_FIELDS, closed=True),
    "plain": _object("PlainFields", {}, PLAIN_FIELDS, closed=True),
    "embedding": _object("EmbeddingFields", {}, EMBEDDING_FIELDS, closed=True),
    "completion": _object("CompletionFields", {}, COMPLETION_FIELDS, closed=True),
    **_ANTHROPIC,
    "responses": _object("ResponsesFields", {}, RESPONSES_FIELDS),
}
"""What is checked at once: a message, all fields of a request beside messages or inputs, or the
whole body of another protocol."""


# ── the OpenAPI document ─────────────────────────────────────────────────────────────────────


_OPEN = {"ResponsesRequest"}


def json_schemas(ref_template: str) -> dict[str, Any]:
    """Return the JSON schemas of the service's bodies, by name, with all that they refer to.

    Args:
        ref_template: Where a reference points, such as "#/components/schemas/{model}".
    """
    return copy.deepcopy(_json_schemas(ref_template))


@functools.cache
def _json_schemas(ref_template: str) -> dict[str, Any]:
    messages = {"messages": _many(_message)}
    message = {"message": Annotated[str, Field(pattern=r"\S")]}
    dialogue = {n: form for n, form in PLAIN_FIELDS.items() if n != "system"}
    embedding = {n: form for n, form in EMBEDDING_FIELDS.items() if n not in _ONLY_LIBRARY}
    bodies = {
        "ChatCompletionRequest": (messages, _CHAT_SERVICE),
        "PromptRequest": (message, PLAIN_FIELDS),
        "MessagesRequest": (messages, dialogue),
        "EmbeddingRequest": ({"input": _INPUTS}, embedding),
        "CompletionRequest": ({"prompt": _INPUTS}, COMPLETION_FIELDS),
        "ResponsesRequest": ({}, RESPONSES_FIELDS),
    }
    adapters: list[Any] = [
        (name, "validation", TypeAdapter(_object(name, *fields, closed=name not in _OPEN)))
        for name, fields in bodies.items()
    ]
    adapters += [(name, "validation", TypeAdapter(form)) for name, form in _ANTHROPIC.items()]
    schemas: dict[str, Any] = TypeAdapter.json_schemas(adapters, ref_template=ref_template)[1][
        "$defs"
    ]
    either = [{"$ref": ref_template.format(model=n)} for n in ("PromptRequest", "MessagesRequest")]
    return {**schemas, "ChatRequest": {"oneOf": either}}
