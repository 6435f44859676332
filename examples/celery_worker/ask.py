"""Send prompts to the workers, and wait for the answers."""

from __future__ import annotations

from celery import group
from tasks import answer

PROMPTS = [f"What is 2+2? ({number})" for number in range(16)]

if __name__ == "__main__":
    for result in group(answer.s(prompt) for prompt in PROMPTS)().get(timeout=120):
        print(f"process {result['process']}: {result['provider']}: {result['text']}")
