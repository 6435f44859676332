"""Classify the rows of a CSV file: the columns of the input stay, and those of the answer join.

This is for code that goes on with the answers. From a file to a file there is `aigateway batch`,
which continues where it was killed, and can take the form of the answer from this module:
`--schema examples.batch_csv.classify:Review`.
"""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from aigateway import AsyncGateway, BatchItem

HERE = Path(__file__).parent


class Review(BaseModel):
    """What is wanted of each row."""

    sentiment: Literal["positive", "neutral", "negative"]
    topic: Literal["delivery", "quality", "price", "other"]


def columns(item: BatchItem[Review]) -> Mapping[str, object]:
    """Return the new columns of a row; one without an answer says why."""
    if item.error is not None:
        return {"error": item.error}
    return {**item.response.parsed.model_dump(), "provider": item.response.provider}


async def classify(rows: Sequence[Mapping[str, str]], output: Path) -> int:
    """Ask about each row, write what came back, and return how many rows have no answer.

    Equal rows are asked once. During an outage the batch waits, here for up to ten minutes.
    """
    async with AsyncGateway() as gateway:
        result = await gateway.map(
            "Classify this review of a lamp: {review}",
            rows,
            response_format=Review,
            temperature=0,
            concurrency="auto",
            outage_patience=600,
        )
    with output.open("w", newline="", encoding="utf-8") as file:
        names = [*rows[0], *Review.model_fields, "provider", "error"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**rows[item.index], **columns(item)} for item in result.items)
    failed = len(result.failed)
    print(
        f"{len(result.responses)} answered, {failed} failed, {result.cost_usd or 0:.6f} US dollars"
    )
    return failed


if __name__ == "__main__":
    with (HERE / "reviews.csv").open(newline="", encoding="utf-8") as source:
        given = list(csv.DictReader(source))
    sys.exit(bool(asyncio.run(classify(given, Path("classified.csv")))))
