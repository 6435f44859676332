"""Structured extraction: a text goes in, a checked pydantic model comes out, from any vendor."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field

from aigateway import AsyncGateway

TEXT = """
Invoice 2026-117. Nordlys AS, Tromsø.
Ten lamps at 99.24, delivery 248.10. To be paid within 30 days: NOK 1,240.50.
"""


class Invoice(BaseModel):
    """What the accounts need to know of an invoice. Descriptions are part of the prompt."""

    number: str
    supplier: str = Field(description="The company that sent the invoice, without its address")
    total: float = Field(gt=0, description="The amount to be paid, delivery and taxes included")
    currency: str = Field(min_length=3, max_length=3, description="ISO 4217")


async def extract(gateway: AsyncGateway, text: str) -> Invoice:
    """Read an invoice.

    An answer that is no valid invoice counts as a failure of the provider that gave it: the next
    one is asked. What comes back has been checked.

    Raises:
        GatewayError: No provider gave a valid answer.
    """
    reply = await gateway.chat(
        text,
        system="You read invoices. Copy what they say; do not compute or guess.",
        response_format=Invoice,
        temperature=0,
        timeout=30,
    )
    print(f"answered by {reply.provider}, {reply.usage.total_tokens} tokens")
    return reply.parsed


async def main() -> None:
    """Extract one invoice with the providers of the environment."""
    async with AsyncGateway() as gateway:
        await gateway.warmup()  # so that loading takes nothing of the 30 seconds
        print(await extract(gateway, TEXT))


if __name__ == "__main__":
    asyncio.run(main())
