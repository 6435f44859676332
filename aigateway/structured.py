"""Structured answers: a pydantic model's JSON schema, and parsing answers as that model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import orjson
from pydantic import BaseModel

from aigateway.errors import RequestRejectedError, refuse
from aigateway.messages import Completion

__all__ = ["fields_of", "fits", "is_schema", "parse", "schema_format", "strict_format"]

M = TypeVar("M", bound=BaseModel)

_OTHER_TYPES = ("array", "boolean", "integer", "null", "number", "string")


def parse(model: type[M] | None, completion: Completion) -> M | None:
    """Return the first answer as a new instance of `model`.

    None without a model, and for a refusal or tool calls instead of text.

    Raises:
        RequestRejectedError: The text does not parse; after `fits`, only if the model's validators
            are not deterministic.
    """
    if model is None:
        return None
    choice = completion.choices[0]
    if choice.refusal is not None or (choice.tool_calls and not choice.text):
        return None
    try:
        return model.model_validate_json(choice.text)
    except Exception as error:  # noqa: BLE001 - validators are the application's own code
        problem = type(error).__name__
    # Not in the handler: pydantic's message would be the context, and it quotes the answer.
    raise RequestRejectedError(f"response_format: {model.__name__} refused the answer ({problem}).")


def fits(model: type[BaseModel] | None, completion: Completion) -> bool:
    """Return whether `parse` succeeds; always without a model."""
    if model is None:
        return True
    try:
        parse(model, completion)
    except RequestRejectedError:
        return False
    return True


_FORMATS: WeakKeyDictionary[type[BaseModel], bytes] = WeakKeyDictionary()


def strict_format(model: type[BaseModel]) -> bytes:
    """Return a class in OpenAI's `json_schema` form as JSON, made once for each class."""
    if model not in _FORMATS:
        schema = _strict_schema(model)
        if schema.get("type") != "object":
            refuse(
                f"response_format: {model.__name__} is not an object at its top; "
                "make it a field of another model."
            )
        _FORMATS[model] = orjson.dumps(_json_schema(model.__name__, schema, strict=True))
    return _FORMATS[model]


def schema_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema in OpenAI's `json_schema` form; strict if it is already as that requires."""
    try:
        strict = _strict(dict(schema)) == schema
    except (AttributeError, TypeError):  # `true` in the place of a schema
        strict = False
    return _json_schema(name, schema, strict=strict)


def is_schema(response_format: Mapping[str, Any]) -> bool:
    """Return whether it is a bare JSON schema, and no vendor's `response_format`.

    Raises:
        RequestRejectedError: It is a schema, but not of an object.
    """
    kind = response_format.get("type")
    if kind in _OTHER_TYPES:
        refuse(
            f'response_format: a JSON schema must describe an object at its top, not "{kind}"; make'
            " this one a field of an object."
        )
    return kind == "object"


def fields_of(response_format: object) -> tuple[str, ...]:
    """Return the fields at the top of a JSON schema, bare or in OpenAI's form; else none."""
    schema: Any = response_format
    for name in ("json_schema", "schema"):
        if isinstance(schema, Mapping) and isinstance(schema.get(name), Mapping):
            schema = schema[name]
    if not isinstance(schema, Mapping):
        return ()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        schema = schema.get("$defs", {}).get(reference.rpartition("/")[2], {})
    fields = schema.get("properties")
    return tuple(fields) if isinstance(fields, Mapping) else ()


def _json_schema(name: str, schema: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    # Vendors reject an open mapping (dict[str, ...]) in a strict schema.
    closed = re.search(rb'"additionalProperties":[^f]', orjson.dumps(schema)) is None
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
    form = {"name": name, "strict": strict and closed, "schema": schema}
    return {"type": "json_schema", "json_schema": form}


def _strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    strict: dict[str, Any] = {}
    problem = None
    try:
        schema = model.model_json_schema()
        reference = schema.pop("$ref", None)
        if reference is not None:  # a class that refers to itself; the top must be an object
            schema |= schema["$defs"][reference.rpartition("/")[2]]
        strict = _strict(schema)
    except Exception as error:  # noqa: BLE001  # a field's own schema code may raise anything
        problem = type(error).__name__
    if problem is not None:  # not in the handler, so that the other error is not its context
        refuse(f"response_format: {model.__name__} has no JSON schema ({problem}).")
    return strict


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Make a schema strict, see https://platform.openai.com/docs/guides/structured-outputs.

    Every property is required, so defaults are dropped; alternatives are `anyOf`, and a reference
    stands alone.
    """
    node = {name: part for name, part in schema.items() if name not in {"default", "discriminator"}}
    if "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")
    if "$ref" in node and len(node) > 1:
        node["anyOf"] = [{"$ref": node.pop("$ref")}]
    if node.get("type") == "object":
        node.setdefault("additionalProperties", False)
        node["required"] = list(node.setdefault("properties", {}))
    for name in ("properties", "$defs"):
        if name in node:
            node[name] = {key: _strict(part) for key, part in node[name].items()}
    for name in ("anyOf", "allOf", "prefixItems"):
        if name in node:
            node[name] = [_strict(part) for part in node[name]]
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            node[name] = _strict(node[name])
    return node
