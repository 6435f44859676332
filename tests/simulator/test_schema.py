"""The smallest instances do satisfy their schemas."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from aigateway.simulator.schema import minimal_instance


class Colour(Enum):
    RED = "red"


class Leaf(BaseModel):
    name: Annotated[str, Field(min_length=7, max_length=9)]
    colour: Colour
    kind: Literal["leaf"]


class Tree(BaseModel):
    leaves: Annotated[list[Leaf], Field(min_length=2)]
    child: Tree | None
    age: Annotated[int, Field(ge=18, lt=100)]
    ratio: Annotated[float, Field(gt=0, le=0.5)]
    steps: Annotated[int, Field(multiple_of=5)]
    born: datetime
    key: UUID
    pair: tuple[int, str]
    either: int | str
    note: str = "nothing"
    optional: int | None = None


def test_pydantic_schemas_give_valid_instances():
    tree = Tree.model_validate(minimal_instance(Tree.model_json_schema()))
    assert len(tree.leaves) == 2
    assert tree.note == "nothing"


def test_geminis_dialect():
    schema = {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING", "nullable": True}, "b": {"type": "ARRAY"}},
        "required": ["a", "b"],
    }
    assert minimal_instance(schema) == {"a": "text", "b": []}


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({}, "text"),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"const": None}, None),
        ({"enum": [3, 4]}, 3),
        ({"default": "d", "type": "string"}, "d"),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"properties": {"a": True}, "required": ["a", "b"]}, {"a": "text", "b": "text"}),
        ({"oneOf": [{"$ref": "#"}, {"type": "null"}]}, None),
        (
            {
                "allOf": [{"$ref": "#/$defs/a~1b"}, {"required": ["y"]}],
                "$defs": {"a/b": {"type": "object", "properties": {"y": {"type": "integer"}}}},
            },
            {"y": 1},
        ),
    ],
)
def test_small_schemas(schema, instance):
    assert minimal_instance(schema) == instance


def test_no_finite_instance():
    assert minimal_instance({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}) is None
