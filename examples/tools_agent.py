"""An agent with tools: each round may be answered by another vendor, and no tool runs twice.

When a vendor breaks between two rounds, the next one goes on with the same conversation.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from typing import Annotated

from aigateway import AsyncGateway, GatewayError

City = Annotated[str, "The name of the city, in English"]


async def weather(city: City, day: date | None = None) -> str:
    """Return the weather of a city; without a day, that of today. A real one asks a service."""
    return f"{city}, {day or 'today'}: 4 degrees, rain"


async def local_time(city: City) -> str:
    """Return the time in a city. A real one knows time zones."""
    return f"{city}: {datetime.now(UTC):%H:%M} UTC"


async def answer(gateway: AsyncGateway, question: str) -> str:
    """Answer a question, with at most eight rounds and within two minutes.

    What a tool raises goes back to the model, which may correct its call.

    Raises:
        GatewayError: No provider answered a round, or the model called tools without an end. Its
            `tool_run` has the conversation so far, to go on from.
    """
    run = await gateway.run_tools(
        question, tools=[weather, local_time], system="Be brief.", max_rounds=8, timeout=120
    )
    for number, response in enumerate(run.responses, 1):
        called = [result.call.name for result in run.results if result.round == number]
        print(f"round {number}: {response.provider}", *called)
    return run.text


async def main() -> None:
    """Ask one question with the providers of the environment."""
    async with AsyncGateway() as gateway:
        try:
            print(await answer(gateway, "Do I need a coat in Oslo?"))
        except GatewayError as error:
            done = error.tool_run.results if error.tool_run else ()
            print(f"{error} ({len(done)} calls of tools were made)")
            raise SystemExit(1) from None


if __name__ == "__main__":
    asyncio.run(main())
