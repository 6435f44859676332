"""Names of providers of one vendor and model: `vendor/model`, `vendor/model#2`, ..."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigateway import AsyncGateway, ConfigurationError, LLMConfig
from aigateway.settings import load_providers
from aigateway.settings.provider import with_distinct_names
from aigateway.testing import ScriptedVendor

NAME = "openai/gpt-4o-mini"


def config(key: str, **fields):
    return LLMConfig("openai", "gpt-4o-mini", api_key=f"sk-{key}", **fields)


def names(gateway):
    return [provider.name for provider in gateway.providers]


def test_another_key_or_address_gets_the_next_number():
    gateway = AsyncGateway(
        [config("a"), config("b"), config("a", api_base="https://proxy.example/v1")],
        vendor=ScriptedVendor(),
    )
    assert names(gateway) == [NAME, f"{NAME}#2", f"{NAME}#3"]
    gateway.remove_provider(f"{NAME}#2")
    added = config("d", priority=5)
    assert gateway.add_provider(added) == f"{NAME}#2"
    assert names(gateway) == [f"{NAME}#2", NAME, f"{NAME}#3"]


def test_the_same_once_more_is_an_error_and_so_is_a_given_name_that_is_taken():
    gateway = AsyncGateway([config("a")], vendor=ScriptedVendor())
    with pytest.raises(ConfigurationError, match=f"'{NAME}', with the same model, key") as said:
        gateway.add_provider(config("a", priority=3))
    assert "sk-a" not in str(said.value)
    gateway.add_provider(config("a", name="again"))
    with pytest.raises(ConfigurationError, match="Two providers are named 'again'"):
        gateway.add_provider(config("z", name="again"))
    assert names(gateway) == [NAME, "again"]


def test_a_region_and_an_api_version_tell_providers_apart():
    model = "vertex_ai/gemini-2.0-flash"
    places: list[dict[str, object]] = [{"vertex_location": "us"}, {"vertex_location": "eu"}]
    places.append({"vertex_location": "us", "safety_settings": [{"category": "x"}]})
    found = with_distinct_names([LLMConfig("litellm", model, extra=place) for place in places])
    assert [each.name for each in found] == [model, f"{model}#2", f"{model}#3"]
    with pytest.raises(ConfigurationError, match="same model, key, address and options"):
        with_distinct_names([LLMConfig("litellm", model, extra=places[2]) for _ in range(2)])
    azure = [
        LLMConfig("azure", "m", api_key="k", api_base="https://a.example", api_version=version)
        for version in ("2024-10-21", "2025-01-01")
    ]
    assert [each.name for each in with_distinct_names(azure)] == ["azure/m", "azure/m#2"]
    (kept,) = with_distinct_names(azure[1:], before=with_distinct_names(azure))
    assert kept.name == "azure/m#2"


@given(st.permutations([None, None, NAME, f"{NAME}#2"]))
def test_a_default_name_gives_way_to_a_given_one_in_any_order(order):
    configs = [config(str(place), name=name) for place, name in enumerate(order)]
    found = with_distinct_names(configs)
    assert [each.name for each, name in zip(found, order, strict=True) if name] == [
        name for name in order if name
    ]
    assert {each.name for each in found} == {NAME, *(f"{NAME}#{n}" for n in (2, 3, 4))}
    gateway = AsyncGateway(configs, vendor=ScriptedVendor())
    assert names(gateway) == [each.name for each in found]
    twice = [config("a"), config("a", name=NAME)]
    for pair in (twice, twice[::-1]):
        with pytest.raises(ConfigurationError, match="same model, key"):
            with_distinct_names(pair)


def test_a_file_may_list_a_model_twice():
    tables = [
        f'[[providers]]\nprovider = "openai"\nmodel = "gpt-4o-mini"\napi_key = "sk-{k}"\n'
        for k in "ab"
    ]
    Path("aigateway.toml").write_text("".join(tables))
    assert [found.name for found in load_providers()] == [NAME, f"{NAME}#2"]


async def test_both_serve_the_model_and_the_name_without_a_number(simulator):
    here, dead = simulator.openai.config(), config("b", api_base="http://127.0.0.1:9/v1")
    other = simulator.anthropic.config(priority=9)
    async with AsyncGateway([dead, here, other], retry_rounds=0) as gateway:
        for asked in (NAME, "gpt-4o-mini"):
            assert (await gateway.chat("hi", model=asked, cache=False)).provider == f"{NAME}#2"
        assert (await gateway.chat("hi", model=f"{NAME}#2")).provider == f"{NAME}#2"
        assert gateway.get_metrics()["providers"][NAME]["attempts"] > 0


accounts = st.lists(st.sampled_from("abcdef"), unique=True, max_size=5)


@given(st.lists(accounts, min_size=1, max_size=6))
def test_who_stays_keeps_its_name_whatever_else_comes_and_goes(runs):
    before: tuple[LLMConfig, ...] = ()
    for keys in runs:
        now = with_distinct_names([config(key) for key in keys], before=before)
        assert len({each.name for each in now}) == len(keys)
        old = {each.api_key: each.name for each in before}
        assert all(old.get(each.api_key, each.name) == each.name for each in now)
        assert all(each.name.partition("#")[0] == NAME for each in now)
        before = now


def test_a_gateway_that_takes_over_another_keeps_its_names():
    old = AsyncGateway([config("a"), config("b")], vendor=ScriptedVendor())
    old.force_circuit(f"{NAME}#2", "open")
    new = AsyncGateway([config("b"), config("c")], vendor=ScriptedVendor())
    new.take_over(old)
    assert names(new) == [f"{NAME}#2", NAME]
    assert [provider.forced for provider in new.providers] == [True, False]
