"""A model class as `response_format`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, RootModel

from tests.request.helpers import chat, refused


class City(BaseModel):
    name: str
    population: int | None = None
    default: str = "a property may have this name"


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Tree(BaseModel):
    left: Tree | None = None
    root: City = Field(description="why it is here")
    pets: list[Cat | Dog] = []
    pet: Cat | Dog = Field(discriminator="kind")
    pair: tuple[City, int]


class Open(BaseModel):
    counts: dict[str, City]


class Broken(BaseModel):
    call: Callable[[], None]


def schema_of(model: Any) -> Any:
    form = chat(response_format=model).params["response_format"]
    assert form["type"] == "json_schema"
    return form["json_schema"]


def test_a_model_class_becomes_a_strict_schema() -> None:
    request = chat(response_format=City)
    assert request.response_model is City
    assert request.params["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "City",
            "strict": True,
            "schema": {
                "title": "City",
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "population", "default"],
                "properties": {
                    "name": {"title": "Name", "type": "string"},
                    "population": {
                        "title": "Population",
                        "anyOf": [{"type": "integer"}, {"type": "null"}],
                    },
                    "default": {"title": "Default", "type": "string"},
                },
            },
        },
    }


def test_every_level_is_strict() -> None:
    form = schema_of(Tree)
    assert form["strict"] is True

    def check(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                check(item)
        elif isinstance(node, dict):
            assert "oneOf" not in node
            assert not ("$ref" in node and len(node) > 1)
            if node.get("type") == "object":
                assert node["additionalProperties"] is False
                assert node["required"] == list(node["properties"])
            for item in node.values():
                check(item)

    check(form["schema"])
    assert form["schema"]["type"] == "object", "although it refers to itself"
    assert form["schema"]["properties"]["root"] == {
        "description": "why it is here",
        "anyOf": [{"$ref": "#/$defs/City"}],
    }


def test_an_open_mapping_is_not_promised() -> None:
    form = schema_of(Open)
    assert form["strict"] is False
    assert form["schema"]["properties"]["counts"]["additionalProperties"] == {
        "$ref": "#/$defs/City"
    }


def test_schemas_are_made_once_and_never_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(BaseModel):
        a: int

    first = schema_of(Once)
    monkeypatch.setattr(Once, "model_json_schema", None)
    second = schema_of(Once)
    assert first == second
    assert first is not second


def test_names_fit_the_vendors_pattern() -> None:
    class Generic(BaseModel):
        a: int

    Generic.__name__ = "Page[int]" + "x" * 100
    assert schema_of(Generic)["name"] == "Page_int_" + "x" * 55


@pytest.mark.parametrize("model", [Broken, RootModel[list[int]]])
def test_refused_models(model: Any) -> None:
    assert "response_format" in refused(lambda: chat(response_format=model))


def test_a_bare_json_schema_is_sent_in_the_form_of_openai() -> None:
    given = {"type": "object", "title": "A city", "properties": {"name": {"type": "string"}}}
    request = chat(response_format=given)
    form = request.params["response_format"]
    assert form["json_schema"] == {"name": "A_city", "strict": False, "schema": given}
    assert request.response_model is None
    closed = {**given, "additionalProperties": False, "required": ["name"]}
    assert schema_of(closed)["strict"] is True
    assert chat(response_format=form).params["response_format"] == form
    assert schema_of({"type": "object", "title": 3, "properties": 5})["name"] == "answer"


@pytest.mark.parametrize("kind", ["array", "string"])
def test_a_schema_that_is_no_object_is_refused(kind: str) -> None:
    said = refused(lambda: chat(response_format={"type": kind}))
    assert "response_format" in said
    assert "object at its top" in said
