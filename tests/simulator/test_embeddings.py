"""Vectors: the same for the same text, in input order, on every wire that has them."""

from __future__ import annotations

import base64
import struct

import pytest

from aigateway.simulator import Simulator


def path_of(wire: str) -> str:
    azure = "/openai/deployments/emb/embeddings?api-version=2024-10-21"
    return azure if wire == "azure" else "/v1/embeddings"


@pytest.mark.parametrize("wire", ["openai", "azure"])
async def test_in_order_and_deterministic(sim: Simulator, ask, wire):
    vendor = getattr(sim, wire)
    body = {"model": "emb", "input": ["a", "b", "a"]}
    data = (await ask.post(vendor, path_of(wire), body)).json["data"]
    assert [item["index"] for item in data] == [0, 1, 2]
    assert data[0]["embedding"] == data[2]["embedding"] != data[1]["embedding"]
    assert sum(x * x for x in data[0]["embedding"]) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_dimensions_are_honoured(sim: Simulator, ask, size):
    body = {"model": "emb", "input": "a", "dimensions": size}
    data = (await ask.post(sim.openai, "/v1/embeddings", body)).json["data"]
    assert len(data[0]["embedding"]) == size


async def test_base64_holds_the_same_numbers(sim: Simulator, ask):
    body = {"model": "emb", "input": "a"}
    plain = (await ask.post(sim.openai, "/v1/embeddings", body)).json["data"][0]["embedding"]
    body["encoding_format"] = "base64"
    packed = (await ask.post(sim.openai, "/v1/embeddings", body)).json["data"][0]["embedding"]
    raw = base64.b64decode(packed)
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain)


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2], [3]]])
async def test_token_arrays_are_taken(sim: Simulator, ask, given):
    reply = await ask.post(sim.openai, "/v1/embeddings", {"model": "emb", "input": given})
    assert len(reply.json["data"]) == (1 if given[0] == 1 else 2)


@pytest.mark.parametrize("given", [None, "", [], ["a", ""]])
async def test_no_text_is_refused(sim: Simulator, ask, given):
    reply = await ask.post(sim.openai, "/v1/embeddings", {"model": "emb", "input": given})
    assert reply.status == 400


async def test_gemini_one_and_many(sim: Simulator, ask):
    one = {"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 4}
    single = (await ask.post(sim.gemini, "/v1beta/models/emb:embedContent", one)).json
    body = {"requests": [one | {"model": "models/emb"}] * 2}
    many = (await ask.post(sim.gemini, "/v1beta/models/emb:batchEmbedContents", body)).json
    assert many["embeddings"] == [single["embedding"]] * 2
    assert len(single["embedding"]["values"]) == 4


async def test_gemini_refuses_an_empty_batch(sim: Simulator, ask):
    path = "/v1beta/models/emb:batchEmbedContents"
    assert (await ask.post(sim.gemini, path, {"requests": []})).status == 400
