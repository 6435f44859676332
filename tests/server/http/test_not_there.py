"""Paths that are not there: 404 in each API's own form, and what is there."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.processes import PATIENCE
from tests.server.services import scripted

OPENAIS = (
    ("POST", "/v1/audio/speech", "audio"),
    ("POST", "/v1/audio/transcriptions", "audio"),
    ("POST", "/v1/images/generations", "images"),
    ("GET", "/v1/files", "files"),
    ("POST", "/v1/batches", "batches"),
    ("GET", "/v1/assistants", "assistants"),
    ("POST", "/v1/threads/t/runs", "threads"),
    ("POST", "/v1/moderations", "moderations"),
    ("POST", "/moderations", "moderations"),
    ("GET", "/v1/realtime", "realtime"),
    ("GET", "/v1/chat/completions/c/messages", "stored chats"),
    ("POST", "/v1/engines/davinci/completions", "engines"),
    ("POST", "/v1/rerank", "rerank"),
)
ANTHROPICS = (
    ("POST", "/v1/messages/batches", "batches of messages"),
    ("GET", "/v1/messages/batches/b/results", "batches of messages"),
    ("POST", "/v1/complete", "older completions"),
)
GEMINIS = (
    "/v1beta/models/gemini-3.5-flash-lite:generateContent",
    "/v1beta/models/gemini-3.5-flash-lite:streamGenerateContent",
    "/v1/models/gemini-3.5-flash-lite:countTokens",
)


@pytest.fixture
async def client():
    async with (
        scripted() as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as made,
    ):
        yield made


async def test_apis_of_openai_that_are_not_offered(client):
    for method, path, name in OPENAIS:
        answer = await client.request(method, path, json={})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (404, "invalid_request_error"), path
        assert f"does not offer {name}" in error["message"], path
        assert "POST /v1/chat/completions" in error["message"]
        assert "GET /v1/models" in error["message"]


async def test_unknown_paths_and_methods(client):
    unknown = await client.post("/v1/nothing/at-all", json={})
    assert unknown.status_code == 404
    assert "POST /v1/messages" in unknown.json()["error"]["message"]
    assert "nothing" not in unknown.json()["error"]["message"].replace("There is nothing here", "")
    twice = await client.post("/v1/v1/chat/completions", json={})
    assert "base URL" in twice.json()["error"]["message"]
    method = await client.get("/v1/chat/completions")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


async def test_apis_of_gemini_and_ollama(client):
    for path in GEMINIS:
        answer = await client.post(path, json={"contents": []})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["status"]) == (404, 404, "NOT_FOUND")
        assert "does not offer Gemini's API" in error["message"]
    for method, path in (("POST", "/api/chat"), ("GET", "/api/tags"), ("POST", "/api/generate")):
        answer = await client.request(method, path)
        assert answer.status_code == 404
        assert "does not offer Ollama's API" in answer.json()["error"]
        assert "POST /v1/chat/completions" in answer.json()["error"]


async def test_a_model_with_a_colon_is_no_api(client):
    answer = await client.get("/v1/models/llama3:8b")
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_apis_of_anthropic_that_are_not_offered(client):
    for method, path, name in ANTHROPICS:
        headers = {"anthropic-version": "2023-06-01"}
        answer = await client.request(method, path, json={}, headers=headers)
        body = answer.json()
        assert (answer.status_code, body["type"]) == (404, "error"), path
        assert body["error"]["type"] == "not_found_error"
        assert name in body["error"]["message"]
        assert "POST /v1/messages" in body["error"]["message"]


async def test_openais_sdk_lists_and_names_models(client):
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="any") as sdk:
        assert [model.id async for model in sdk.models.list()] == ["auto", "simulated", "a"]
        assert (await sdk.models.retrieve("simulated")).id == "simulated"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("nothing")
        with pytest.raises(openai.NotFoundError, match="does not offer moderations"):
            await sdk.moderations.create(input="a")


async def test_models_in_anthropics_form(client):
    client.headers["anthropic-version"] = "2023-06-01"
    listed = (await client.get("/v1/models?limit=20")).json()
    assert listed.keys() == {"data", "has_more", "first_id", "last_id"}
    assert [model["id"] for model in listed["data"]] == ["auto", "simulated", "a"]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("auto", "a", False)
    one = (await client.get("/v1/models/simulated")).json()
    assert one == listed["data"][1]
    assert (one["type"], one["display_name"]) == ("model", "simulated")
    assert one["created_at"].endswith("Z")
    assert (await client.get("/v1/models/nothing")).status_code == 404
