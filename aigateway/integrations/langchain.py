"""LangChain's chat model and embeddings, answered by a gateway in this process.

Needs the extra `[langchain]`.
"""

from __future__ import annotations

from typing import Any

import openai

from aigateway.gateway import AsyncGateway
from aigateway.integrations.in_process import (
    ADDRESS,
    KEY,
    async_client,
    blocking_client,
    missing,
)

try:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
except ImportError:
    raise missing("aigateway.integrations.langchain", "langchain") from None

__all__ = ["AIGatewayEmbeddings", "ChatAIGateway"]


class ChatAIGateway(ChatOpenAI):
    """A chat model of LangChain over a gateway: `ChatAIGateway(gateway=gateway, model="auto")`.

    Takes what `ChatOpenAI` takes. No key is needed; `max_retries` is 0 by default, and streams have
    their usage. `invoke` and `stream` use a gateway that is not in use on an event loop on a hidden
    thread, to which it then belongs: make another one for `ainvoke` and `astream`.
    """

    def __init__(self, *, gateway: AsyncGateway, model: str = "auto", **options: Any) -> None:
        defaults = {"model": model, "stream_usage": True}
        super().__init__(**_options(gateway, {**defaults, **options}))

    @property
    def _llm_type(self) -> str:
        return "aigateway"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """A gateway is no text."""
        return False


class AIGatewayEmbeddings(OpenAIEmbeddings):
    """Embeddings of LangChain over a gateway: `AIGatewayEmbeddings(gateway=gateway, model="...")`.

    Takes what `OpenAIEmbeddings` takes. Texts go to the vendor as texts, whatever its tokens are.
    """

    def __init__(self, *, gateway: AsyncGateway, model: str, **options: Any) -> None:
        defaults = {"model": model, "check_embedding_ctx_length": False}
        super().__init__(**_options(gateway, {**defaults, **options}))


def _options(gateway: AsyncGateway, options: dict[str, Any]) -> dict[str, Any]:
    defaults = {
        "base_url": f"{ADDRESS}/v1",
        "api_key": KEY,
        "max_retries": 0,
        "http_client": blocking_client(gateway, openai.DefaultHttpxClient),
        "http_async_client": async_client(gateway, openai.DefaultAsyncHttpxClient),
    }
    return {**defaults, **options}
