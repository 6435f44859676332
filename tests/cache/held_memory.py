"""Print what entries of the cache take and are said to take, each in bytes; see `test_size`."""

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import orjson

from aigateway.cache.memory import AnswerCache
from aigateway.messages import Audio, Choice, Completion, Embeddings, ToolCall, Usage
from aigateway.wires.anthropic.native import MessagesReading
from aigateway.wires.native import NativeReading
from aigateway.wires.openai.native import ResponsesReading
from aigateway.wires.stream_reading import EventParser

PIECES = 4000


def text(number: int, length: int, words: str = "word ") -> str:
    """Return a text of its own."""
    return (f"{number:06d}" + words * (length // len(words) + 1))[:length]


def answer(number: int, said: str, **fields: Any) -> Completion:
    choices = fields.pop("choices", None) or (Choice(said, "stop", **fields),)
    return Completion(
        text(number, 38),
        text(number, 22),
        choices,
        Usage(number + 300, number + 400, 2 * number + 700),
        cost_usd=0.00012 * number,
        created=1_700_000_000 + number,
        system_fingerprint=text(number, 13),
    )


def calling(number: int) -> Completion:
    calls = [ToolCall(text(n, 28), text(n, 12), text(n, 200)) for n in range(number, number + 3)]
    return answer(number, "", choices=(Choice("", "tool_calls", tuple(calls)),))


def event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def messages(number: int, pieces: int) -> Iterator[bytes]:
    message = {"id": text(number, 28), "type": "message", "role": "assistant", "content": []}
    yield event("message_start", message={**message, "model": text(number, 20), "usage": {}})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for piece in range(pieces):
        delta = {"type": "text_delta", "text": text(piece, 40)}
        yield event("content_block_delta", index=0, delta=delta)
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
    yield event("message_stop")


def responses(number: int, pieces: int) -> Iterator[bytes]:
    item = {"type": "message", "id": text(number, 50), "role": "assistant", "content": []}
    response = {"id": text(number, 50), "object": "response", "status": "completed"}
    yield event("response.created", response=response)
    yield event("response.output_item.added", output_index=0, item=item)
    said = ""
    for piece in range(pieces):
        said += text(piece, 40)
        yield event("response.output_text.delta", output_index=0, delta=text(piece, 40))
    yield event("response.output_text.done", output_index=0, text=said)
    whole = {**item, "content": [{"type": "output_text", "text": said}]}
    usage = {"input_tokens": 5, "output_tokens": 7}
    yield event("response.completed", response={**response, "output": [whole], "usage": usage})


def streamed(reading: NativeReading, events: Iterator[bytes]) -> Completion:
    parser = EventParser()
    for each in events:
        reading.take(parser.feed(each))
    reading.count()
    return replace(reading.assembly.completion(), native=reading.native)


def vectors(number: int, count: int) -> Embeddings:
    made = [[(number + n + v) * 0.0001 + 0.00001 for n in range(3072)] for v in range(count)]
    return Embeddings(text(number, 22), tuple(map(tuple, made)), Usage(number, 0, number), 0.1)


SHAPES: dict[str, tuple[int, Callable[[int], Completion | Embeddings]]] = {
    "ten characters": (900, lambda n: answer(n, text(n, 10))),
    "short": (900, lambda n: answer(n, text(n, 200))),
    "100 kB": (9, lambda n: answer(n, text(n, 100_000))),
    "German": (9, lambda n: answer(n, text(n, 100_000, "größer "))),
    "with dashes": (9, lambda n: answer(n, text(n, 100_000, "the word — is "))),
    "Russian": (9, lambda n: answer(n, text(n, 100_000, "слово "))),
    "Chinese": (9, lambda n: answer(n, text(n, 100_000, "漢字"))),
    "with an emoji": (9, lambda n: answer(n, text(n, 100_000) + "😀")),
    "tool calls": (900, calling),
    "four choices": (
        900,
        lambda n: answer(n, "", choices=tuple(Choice(text(n + c, 300), "stop") for c in range(4))),
    ),
    "reasoning": (
        90,
        lambda n: answer(n, text(n, 9000), reasoning=text(n, 5000), thinking_json=text(n, 6000)),
    ),
    "a picture": (9, lambda n: answer(n, "", images=(text(n, 1_000_000),))),
    "speech": (90, lambda n: answer(n, "", audio=Audio(text(n, 20), text(n, 50_000)))),
    "a short message": (900, lambda n: streamed(MessagesReading("m"), messages(n, 5))),
    "a short response": (900, lambda n: streamed(ResponsesReading("m"), responses(n, 5))),
    "a message": (9, lambda n: streamed(MessagesReading("m"), messages(n, PIECES))),
    "a response": (9, lambda n: streamed(ResponsesReading("m"), responses(n, PIECES))),
    "a vector": (20, lambda n: vectors(n, 1)),
    "vectors": (5, lambda n: vectors(n, 8)),
}


def fill(cache: AnswerCache, make: Callable[[int], Completion | Embeddings], count: int) -> None:
    for number in range(1, count + 1):
        made, key = make(number), f"{number:064x}"
        if isinstance(made, Embeddings):
            cache.remember_vectors(key, made, "p", 60.0, made_by="")
            continue
        cache.remember(key, made, "p")
        found = cache.lookup(key)
        assert found is not None
        orjson.dumps([choice.text for choice in found.completion.choices])  # as a service answers


def main() -> None:
    for name, (count, make) in SHAPES.items():
        fill(AnswerCache(), make, 1)  # what is made once
        cache = AnswerCache()
        gc.collect()
        tracemalloc.start()
        fill(cache, make, count)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(name, held // count, cache.stats()["bytes"] // count, sep=",")


if __name__ == "__main__":
    main()
