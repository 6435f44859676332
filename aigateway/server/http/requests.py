"""From the body of a request to what the gateway is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aigateway.gateway import AsyncGateway
from aigateway.server.http.bodies import checked
from aigateway.server.http.errors import Refusal
from aigateway.server.http.schema import (
    CHAT_NAMES,
    COMPLETION,
    COMPLETION_NAMES,
    EMBEDDING,
    EMBEDDING_NAMES,
    MESSAGES,
    PROMPT,
)

__all__ = [
    "AUTO",
    "EmbeddingQuestion",
    "Question",
    "chat_question",
    "completion_question",
    "embedding_question",
    "model_for",
]

AUTO = "auto"
"""The model of a client that has to name one and means any."""

_NOT_SENT = ("messages", "metadata", "model", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        prompt: A text, or messages.
        model: As the caller named it.
        options: Keywords of `chat`.
        stream: Whether it is to come piece by piece.
        with_usage: Whether such a stream tells usage.
    """

    prompt: Any
    model: str | None
    options: dict[str, Any]
    stream: bool = False
    with_usage: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingQuestion:
    """What is to be embedded.

    Attributes:
        inputs: A text, or several, or tokens in their place.
        model: As the caller named it.
        options: Keywords of `embed`.
        in_base64: Whether vectors go out packed.
    """

    inputs: Any
    model: str | None
    options: dict[str, Any]
    in_base64: bool


def completion_question(body: dict[str, Any]) -> Question:
    """Read the body of `/v1/chat/completions`.

    Raises:
        Refusal: 400 that names what is wrong.
    """
    body = checked(body, COMPLETION, COMPLETION_NAMES)
    stream = bool(body.get("stream"))
    told = body.get("stream_options")  # which means nothing without a stream
    return Question(
        body["messages"],
        body.get("model"),
        _without(body, _NOT_SENT),
        stream,
        bool(told and told.get("include_usage")),
    )


def chat_question(body: dict[str, Any]) -> Question:
    """Read the body of `/chat`.

    Raises:
        Refusal: 400 that names what is wrong.
    """
    if body.get("stream"):
        raise Refusal(400, "/chat answers whole: use /v1/chat/completions.", param="stream")
    if ("message" in body) == ("messages" in body):
        raise Refusal(400, "Give either message, a text, or messages, a list.", param="message")
    body = checked(body, PROMPT if "message" in body else MESSAGES, CHAT_NAMES)
    prompt = body["message"] if "message" in body else body["messages"]
    return Question(prompt, body.get("model"), _without(body, ("message", *_NOT_SENT)))


def embedding_question(body: dict[str, Any]) -> EmbeddingQuestion:
    """Read the body of `/v1/embeddings`.

    Raises:
        Refusal: 400 that names what is wrong.
    """
    body = checked(body, EMBEDDING, EMBEDDING_NAMES)
    return EmbeddingQuestion(
        body["input"],
        body.get("model"),
        _without(body, ("encoding_format", "input", "model")),
        body.get("encoding_format") == "base64",
    )


def model_for(name: str | None, gateway: AsyncGateway) -> str | None:
    """The gateway's model for the one a caller named: `auto`, and none, leave it the choice.

    A provider that is called `auto` stands over that.
    """
    if not name:
        return None
    if name == AUTO and not any(
        AUTO in (provider.name, provider.model, *provider.aliases) for provider in gateway.providers
    ):
        return None
    return name


def _without(body: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None and name not in names}
