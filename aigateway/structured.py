"""Structured answers: a pydantic model's JSON schema, and parsing answers as that model."""

from __future__ import annotations

import re
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import orjson
from pydantic import BaseModel

from aigateway.errors import RequestRejectedError, refuse
from aigateway.messages import Completion

__all__ = ["fits", "parse", "strict_format"]

M = TypeVar("M", bound=BaseModel)


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
        # Vendors reject an open mapping (dict[str, ...]) in a strict schema.
        closed = re.search(rb'"additionalProperties":[^f]', orjson.dumps(schema)) is None
        name = re.sub(r"[^A-Za-z0-9_-]", "_", model.__name__)[:64]
        form = {"name": name, "strict": closed, "schema": schema}
        _FORMATS[model] = orjson.dumps({"type": "json_schema", "json_schema": form})
    return _FORMATS[model]


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
