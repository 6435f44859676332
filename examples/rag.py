"""Retrieval: embed documents, find the nearest ones, and answer from them. No vector database.

Vectors of different models cannot be compared. So the vectors come from ONE model that two vendors
host, under one alias: failover stays within it. The answer may come from any vendor.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aigateway import AsyncGateway, LLMConfig, ProviderType

DOCUMENTS = (
    "Lamps can be returned within 60 days, in their box.",
    "Delivery takes two days within Norway, and a week elsewhere.",
    "The guarantee lasts five years. It covers the lamp, not the bulb.",
)
MODEL = "text-embedding-3-small"


def hosts() -> Iterator[LLMConfig]:
    """Yield the hosts of the model, in the order in which they are asked."""
    env = os.environ
    yield LLMConfig(
        ProviderType.OPENAI,
        MODEL,
        api_key=env["OPENAI_API_KEY"],
        api_base=env.get("OPENAI_BASE_URL"),
        aliases=("vectors",),
        priority=2,
    )
    yield LLMConfig(
        ProviderType.AZURE,  # a deployment of the same model, of the same name
        MODEL,
        api_key=env["AZURE_OPENAI_API_KEY"],
        api_base=env["AZURE_OPENAI_ENDPOINT"],
        aliases=("vectors",),
        priority=1,
    )


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return how near two vectors are, from -1 to 1."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@dataclass(frozen=True)
class Index:
    """Texts with their vectors: enough for some ten thousand, which is most manuals."""

    texts: Sequence[str]
    vectors: Sequence[Sequence[float]]

    @classmethod
    async def build(cls, gateway: AsyncGateway, texts: Sequence[str]) -> Index:
        """Embed the texts in one request. Keep the vectors: they are good until the model ends."""
        return cls(texts, (await gateway.embed(list(texts), model="vectors")).vectors)

    async def nearest(self, gateway: AsyncGateway, question: str, count: int = 2) -> list[str]:
        """Return the texts that are nearest to a question."""
        (vector,) = (await gateway.embed([question], model="vectors")).vectors
        near = [cosine(vector, other) for other in self.vectors]
        ranked = sorted(zip(near, self.texts, strict=True), reverse=True)
        return [text for _, text in ranked[:count]]


async def main() -> None:
    """Answer a question from the documents, with the providers of the environment."""
    async with AsyncGateway() as gateway:
        for provider in hosts():
            gateway.add_provider(provider)
        index = await Index.build(gateway, DOCUMENTS)
        question = "How long is the guarantee?"
        found = await index.nearest(gateway, question)
        print("\n".join(f"- {text}" for text in found))
        system = "Answer from these texts only. Say so if they do not have the answer.\n\n"
        reply = await gateway.chat(question, system=system + "\n".join(found), timeout=30)
        print(f"{reply.provider}: {reply.text}")


if __name__ == "__main__":
    asyncio.run(main())
