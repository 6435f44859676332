"""A client of the service with a key of its own: OpenAI's SDK, and what it does at a limit."""

from __future__ import annotations

import os
import sys

import openai

CLIENT = openai.OpenAI(
    base_url=os.environ.get("AIGATEWAY_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ["AIGATEWAY_KEY"],
    max_retries=0,  # the service has tried each vendor already
)


def ask(prompt: str) -> str:
    """Ask any model of the service.

    Raises:
        openai.RateLimitError: The key's budget or rate is used up.
    """
    completion = CLIENT.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": prompt}]
    )
    return completion.choices[0].message.content or ""


def main() -> int:
    """Ask, and return an exit code: 75 if the same command may work later."""
    try:
        for prompt in ("What is 2+2?", "Name a colour."):
            print(ask(prompt))
    except openai.RateLimitError as error:
        later = error.response.headers.get("retry-after", "?")
        if error.code == "insufficient_quota":  # the budget: until midnight UTC
            print(f"The key's budget is used up; again in {later} s.", file=sys.stderr)
        else:  # the rate: a moment
            print(f"Too fast; again in {later} s.", file=sys.stderr)
        return os.EX_TEMPFAIL
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
