"""What a body must look like, once: requests are checked by it and the OpenAPI document shows it.

https://platform.openai.com/docs/api-reference. What a message or a tool holds beyond what is named
here goes through (`cache_control`, say); at the top of a body only what is named here may stand,
so that nothing in a request says where it goes, or with which key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
)
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from aigateway.request.messages import MOST_MESSAGES

__all__ = [
    "CHAT_NAMES",
    "COMPLETION",
    "COMPLETION_NAMES",
    "EMBEDDING",
    "EMBEDDING_NAMES",
    "MESSAGES",
    "PROMPT",
]

Text = Annotated[str, StringConstraints(min_length=1)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[ -~]+$")]


def _whole(value: Any) -> Any:
    """To JSON 5.0 is an integer, and some clients write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: Any) -> Any:
    """To Python 0 is False; to JSON it is a number."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - pydantic catches this one
    return value


def _brief_type(value: Any) -> Any:
    """Pydantic repeats the type in its error, whatever its length."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and len(kind) > _LONGEST_TYPE:
        raise ValueError(f"type must have at most {_LONGEST_TYPE} characters")
    return value


def _few(value: Any) -> Any:
    """Pydantic looks at every item of a mapping before it counts them."""
    if isinstance(value, dict) and len(value) > _FEW:
        raise ValueError(f"must have at most {_FEW} items")
    return value


_LONGEST_TYPE = 64
_FEW = 1024
"""Tools, calls of one message, words to stop at: several times what any vendor takes."""

_Item = TypeVar("_Item")
# The first item that is wrong ends the check: an error for each of millions takes minutes.
Few = Annotated[list[_Item], Field(max_length=_FEW, fail_fast=True)]
Many = Annotated[list[_Item], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]

Count = Annotated[int, Field(ge=1, le=2**53), BeforeValidator(_whole)]


def _all_whole(value: Any) -> Any:
    if isinstance(value, list) and float in set(map(type, value)):
        return [_whole(each) for each in value]
    return value


Tokens = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]],
    Field(min_length=1, max_length=131_072, fail_fast=True),
    BeforeValidator(_all_whole),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]

_OPEN = ConfigDict(extra="allow", strict=True)
_CLOSED = ConfigDict(extra="forbid", strict=True)


# ── messages ─────────────────────────────────────────────────────────────────────────────────


class TextPart(TypedDict):
    """Words."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["text"]
    text: str


class RefusalPart(TypedDict):
    """Words of an assistant who refused."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["refusal"]
    refusal: str


class Picture(TypedDict):
    """Where a picture is: an address, or the picture itself as `data:`."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    url: Text
    detail: NotRequired[str | None]


class PicturePart(TypedDict):
    """A picture."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["image_url"]
    image_url: Picture


class Sound(TypedDict):
    """A recording, in base64."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    data: str
    format: str


class SoundPart(TypedDict):
    """A recording."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["input_audio"]
    input_audio: Sound


class FilePart(TypedDict):
    """A file."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["file"]
    file: dict[str, Any]


class Linked(TypedDict):
    """Where something is."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    url: Text


class FilmPart(TypedDict):
    """A film, for servers that take some."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["video_url"]
    video_url: Linked


Part = Annotated[
    TextPart | RefusalPart | PicturePart | SoundPart | FilePart | FilmPart,
    Field(discriminator="type"),
    BeforeValidator(_brief_type),
]
Parts = Many[Part]


class CalledFunction(TypedDict):
    """What a model wanted called; `arguments` is JSON text."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Text
    arguments: str


class CustomInput(TypedDict):
    """What a model wrote for a custom tool: free text."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Text
    input: str


class CalledCustomTool(TypedDict):
    """A call of a custom tool that a model asked for."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    id: Text
    type: Literal["custom"]
    custom: CustomInput


class CalledFunctionTool(TypedDict):
    """A call of a function that a model asked for."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    id: Text
    type: NotRequired[Literal["function"]]
    function: CalledFunction


def _type_of_call(call: Any) -> str:
    return "custom" if isinstance(call, dict) and call.get("type") == "custom" else "function"


CalledTool = Annotated[
    Annotated[CalledFunctionTool, Tag("function")] | Annotated[CalledCustomTool, Tag("custom")],
    Discriminator(_type_of_call),
]


class InstructionMessage(TypedDict):
    """How to answer."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["system", "developer"]
    content: str | Parts
    name: NotRequired[str | None]


class UserMessage(TypedDict):
    """What is asked."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["user"]
    content: Text | Parts
    name: NotRequired[str | None]


class AnswerMessage(TypedDict):
    """What was answered before."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["assistant"]
    content: str | Parts
    name: NotRequired[str | None]
    refusal: NotRequired[str | None]
    tool_calls: NotRequired[Few[CalledTool] | None]


class CallingMessage(TypedDict):
    """What was answered before, when it was nothing but calls."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[None]
    name: NotRequired[str | None]
    refusal: NotRequired[str | None]
    tool_calls: Annotated[Few[CalledTool], Field(min_length=1)]


class OldCallingMessage(TypedDict):
    """The same, in the form that came before tools, or a refusal without content."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[None]
    name: NotRequired[str | None]
    function_call: CalledFunction


class RefusedMessage(TypedDict):
    """What was answered before, when it was a refusal."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[None]
    name: NotRequired[str | None]
    refusal: Text


class SpokenMessage(TypedDict):
    """What was answered before, when it was speech."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["assistant"]
    content: NotRequired[None]
    name: NotRequired[str | None]
    refusal: NotRequired[str | None]
    audio: Annotated[dict[str, Any], Field(min_length=1)]


class SilentMessage(TypedDict):
    """What was answered before, when nothing was kept of it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["assistant"]
    content: None
    name: NotRequired[str | None]
    refusal: NotRequired[str | None]
    tool_calls: NotRequired[Few[CalledTool] | None]


class ToolMessage(TypedDict):
    """What a called tool gave."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["tool"]
    content: str | Parts
    tool_call_id: Text


class FunctionMessage(TypedDict):
    """The same, in the form that came before tools."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    role: Literal["function"]
    content: str
    name: Text


def _kind(message: Any) -> str | None:
    """Which of the forms a message has."""
    if not isinstance(message, dict):
        return None
    role = message.get("role")
    if role != "assistant":
        return "instruction" if role in ("system", "developer") else _text(role)
    if message.get("content") is not None:
        return "assistant"
    instead = "silent" if "content" in message else "assistant"
    return next((kind for name, kind in _INSTEAD_OF_CONTENT if message.get(name)), instead)


_INSTEAD_OF_CONTENT = (
    ("tool_calls", "calling"),
    ("function_call", "old"),
    ("refusal", "refused"),
    ("audio", "spoken"),
)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


Message = Annotated[
    Annotated[InstructionMessage, Tag("instruction")]
    | Annotated[UserMessage, Tag("user")]
    | Annotated[AnswerMessage, Tag("assistant")]
    | Annotated[CallingMessage, Tag("calling")]
    | Annotated[OldCallingMessage, Tag("old")]
    | Annotated[RefusedMessage, Tag("refused")]
    | Annotated[SpokenMessage, Tag("spoken")]
    | Annotated[SilentMessage, Tag("silent")]
    | Annotated[ToolMessage, Tag("tool")]
    | Annotated[FunctionMessage, Tag("function")],
    Discriminator(
        _kind,
        custom_error_type="message",
        custom_error_message=(
            "must be a message: an object with a role (system, developer, user, assistant, tool"
            " or function) and its content"
        ),
    ),
]
Messages = Many[Message]


# ── parameters ───────────────────────────────────────────────────────────────────────────────


class DeclaredFunction(TypedDict):
    """A function that the model may call."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Text
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class FunctionTool(TypedDict):
    """A tool that the model may call."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["function"]
    function: DeclaredFunction


class CustomFormat(TypedDict):
    """A tool whose input is text."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Text


class CustomTool(TypedDict):
    """A tool that the model may call with text."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["custom"]
    custom: CustomFormat


Tool = Annotated[
    FunctionTool | CustomTool, Field(discriminator="type"), BeforeValidator(_brief_type)
]


class JsonSchema(TypedDict):
    """What the answer must look like."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Text
    description: NotRequired[str | None]
    schema: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class SchemaFormat(TypedDict):
    """JSON of a given form."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["json_schema"]
    json_schema: JsonSchema


class TextFormat(TypedDict):
    """Text, as without a format."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["text"]


class ObjectFormat(TypedDict):
    """Some JSON object."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["json_object"]


class StreamOptions(TypedDict):
    """What a stream tells beside the answer."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    include_usage: NotRequired[bool | None]


class Choosing(TypedDict):
    """Which tool to call."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Text


class Named(TypedDict):
    """Which function to call."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Text


class Parameters(TypedDict):
    """OpenAI's parameters of a chat."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    audio: NotRequired[dict[str, Any] | None]
    cache_control: NotRequired[dict[str, Any] | None]
    frequency_penalty: NotRequired[Penalty | None]
    function_call: NotRequired[str | Named | None]
    functions: NotRequired[Few[DeclaredFunction] | None]
    logit_bias: NotRequired[Annotated[dict[str, float], BeforeValidator(_few)] | None]
    logprobs: NotRequired[bool | None]
    max_completion_tokens: NotRequired[Count | None]
    max_tokens: NotRequired[Count | None]
    metadata: NotRequired[dict[str, Any] | None]
    modalities: NotRequired[Few[str] | None]
    parallel_tool_calls: NotRequired[bool | None]
    prediction: NotRequired[dict[str, Any] | None]
    presence_penalty: NotRequired[Penalty | None]
    prompt_cache_key: NotRequired[str | None]
    prompt_cache_retention: NotRequired[str | None]
    reasoning_effort: NotRequired[str | None]
    response_format: NotRequired[
        Annotated[
            TextFormat | ObjectFormat | SchemaFormat,
            Field(discriminator="type"),
            BeforeValidator(_brief_type),
        ]
        | None
    ]
    safety_identifier: NotRequired[str | None]
    safety_settings: NotRequired[Few[dict[str, Any]] | None]
    seed: NotRequired[Annotated[int, Field(ge=-(2**53), le=2**53), BeforeValidator(_whole)] | None]
    service_tier: NotRequired[str | None]
    stop: NotRequired[str | Few[str] | None]
    store: NotRequired[bool | None]
    temperature: NotRequired[Annotated[float, Field(ge=0, le=2)] | None]
    thinking: NotRequired[dict[str, Any] | None]
    tool_choice: NotRequired[str | Choosing | None]
    tools: NotRequired[Few[Tool] | None]
    top_k: NotRequired[Annotated[int, Field(ge=0, le=2**31), BeforeValidator(_whole)] | None]
    top_logprobs: NotRequired[Annotated[int, Field(ge=0, le=20), BeforeValidator(_whole)] | None]
    top_p: NotRequired[Annotated[float, Field(ge=0, le=1)] | None]
    user: NotRequired[str | None]
    verbosity: NotRequired[str | None]
    web_search_options: NotRequired[dict[str, Any] | None]


class CompletionRequest(Parameters):
    """OpenAI's request for a chat completion."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    messages: Messages
    model: NotRequired[str | None]
    n: NotRequired[Annotated[int, Field(ge=1, le=128), BeforeValidator(_whole)] | None]
    stream: NotRequired[bool | None]
    stream_options: NotRequired[StreamOptions | None]


class _ChatOptions(Parameters):
    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    model: NotRequired[str | None]
    n: NotRequired[Annotated[int, Field(ge=1, le=1), BeforeValidator(_whole)] | None]
    stream: NotRequired[Annotated[Literal[False], BeforeValidator(_flag)] | None]
    agent: NotRequired[Label | None]
    cache: NotRequired[bool | Literal["refresh"] | None]
    cache_ttl: NotRequired[Seconds | None]
    timeout: NotRequired[Seconds | None]


class PromptRequest(_ChatOptions):
    """A chat of one message."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    message: Annotated[str, StringConstraints(pattern=r"\S")]
    system: NotRequired[str | None]


class MessagesRequest(_ChatOptions):
    """A chat of several messages."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    messages: Messages


class EmbeddingRequest(TypedDict):
    """OpenAI's request for embeddings."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    input: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=2048, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True)],
        Field(union_mode="left_to_right"),
    ]
    model: NotRequired[str | None]
    dimensions: NotRequired[Count | None]
    encoding_format: NotRequired[Literal["float", "base64"] | None]
    user: NotRequired[str | None]


COMPLETION: TypeAdapter[Any] = TypeAdapter(CompletionRequest)
PROMPT: TypeAdapter[Any] = TypeAdapter(PromptRequest)
MESSAGES: TypeAdapter[Any] = TypeAdapter(MessagesRequest)
EMBEDDING: TypeAdapter[Any] = TypeAdapter(EmbeddingRequest)

COMPLETION_NAMES = frozenset(CompletionRequest.__annotations__)
CHAT_NAMES = frozenset((*PromptRequest.__annotations__, *MessagesRequest.__annotations__))
EMBEDDING_NAMES = frozenset(EmbeddingRequest.__annotations__)
