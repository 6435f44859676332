"""Parameters that the schema does not know, and the operator lets through."""

import httpx
import pytest

from aigateway.settings import ServerSettings
from tests.processes import PATIENCE
from tests.server.services import served

HI = {"messages": [{"role": "user", "content": "Hi."}]}
LOCAL = {"min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}}
PASS = {"pass_params": (*LOCAL, "temperature")}
PATHS = ("/v1/chat/completions", "/chat/completions", "/chat")


@pytest.mark.parametrize("first", ["openai", "gemini"])
async def test_they_reach_the_provider_that_knows_them(simulator, first):
    """Gemini refuses names that it does not know, and the next provider is asked."""
    asked = simulator.openai
    vendors = (asked,) if first == "openai" else (simulator.gemini, asked)
    async with (
        served(*vendors, server=PASS) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        for number, path in enumerate(PATHS):
            body = {**HI, **LOCAL, "top_p": 0.5 + number / 10, "temperature": None}
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            sent = asked.received[-1].body
            assert {name: sent[name] for name in LOCAL} == LOCAL
        streamed = await client.post(PATHS[0], json={**HI, "min_p": 0.7, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert asked.received[-1].body["min_p"] == 0.7
        left_out = await client.post(PATHS[0], json={**HI, "min_p": None})
        assert left_out.status_code == 200
        assert "min_p" not in vendors[0].received[-1].body


async def test_different_values_share_no_answer(simulator):
    async with (
        served(simulator.openai, server=PASS) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        words = [
            (await client.post(PATHS[0], json={**HI, "min_p": p})).headers["x-aigateway-cache"]
            for p in (0.1, 0.2, 0.1)
        ]
    assert words == ["miss", "miss", "hit"]


async def test_what_is_not_listed_is_refused_and_a_reload_lists_it(simulator):
    async with (
        served(simulator.openai, server=PASS) as (service, url),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
    ):
        for path in PATHS:
            refused = await client.post(path, json={**HI, "repetition_penalty": 1.1})
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (400, "unknown_parameter")
            assert "pass_params" in error["message"]
            steering = await client.post(path, json={**HI, "api_base": "http://127.0.0.1:9"})
            assert "pass_params" not in steering.json()["error"]["message"]
        known = await client.post(PATHS[0], json={**HI, "temperature": "hot"})
        assert known.status_code == 400  # a name that the schema knows is checked by it
        service.settings = ServerSettings(pass_params=("repetition_penalty",))
        passed = await client.post(PATHS[0], json={**HI, "repetition_penalty": 1.1})
        assert passed.status_code == 200
        assert simulator.openai.received[-1].body["repetition_penalty"] == 1.1
        assert (await client.post(PATHS[0], json={**HI, **LOCAL})).status_code == 400
