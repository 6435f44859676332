"""The smallest instance of a JSON schema, for answers that must parse as one.

It covers what vendors accept for structured output and tools, which is also what pydantic
writes, including Gemini's own dialect (types in capitals, `nullable`). It does not validate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["minimal_instance"]

_TOO_DEEP = 24  # A schema that has to recurse further than this has no finite instance.

_FORMATS = {
    "date-time": "2030-01-01T00:00:00Z",
    "date": "2030-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class _EndlessError(Exception):
    """This branch recurses without end; another one may not."""


def minimal_instance(schema: Mapping[str, Any]) -> Any:
    """Build a small value that satisfies `schema`.

    Args:
        schema: A JSON schema; `$ref` may point inside it.

    Returns:
        Plain JSON data. A schema without a finite instance gives None.
    """
    try:
        return _instance(schema, schema, 0)
    except _EndlessError:
        return None


def _instance(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if depth > _TOO_DEEP:
        raise _EndlessError
    if not isinstance(schema, Mapping):
        return "text"  # `true`: anything will do
    fixed = [schema[key] for key in ("const", "default") if key in schema]
    if fixed or schema.get("enum"):
        return (fixed or schema["enum"])[0]
    if "$ref" in schema:
        return _instance(_resolve(str(schema["$ref"]), root), root, depth + 1)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return _first_finite(options, root, depth)
    merged = _merged(schema, root) if schema.get("allOf") else schema
    return _typed(merged, root, depth)


def _typed(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    match str(kind).lower():
        case "object":
            return _object(schema, root, depth)
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {"type": "string"})] * int(
                schema.get("minItems", 0)
            )
            return [_instance(item, root, depth + 1) for item in items]
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _string(schema)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    return {
        name: _instance(properties.get(name, True), root, depth + 1)
        for name in schema.get("required") or ()
    }


def _number(schema: Mapping[str, Any]) -> int | float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    value: int | float = 1 if "multipleOf" not in schema else step
    if low is not None and value <= low:
        value = low if "minimum" in schema else low + step
    if high is not None and value > high:
        value = high if "maximum" in schema else high - step
    return value


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    text += "x" * (int(schema.get("minLength", 0)) - len(text))
    return text[: int(schema.get("maxLength", len(text)))]


def _first_finite(options: Any, root: Mapping[str, Any], depth: int) -> Any:
    for option in options:
        try:
            return _instance(option, root, depth + 1)
        except _EndlessError:
            continue
    raise _EndlessError


def _merged(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        resolved = _resolve(str(part["$ref"]), root) if "$ref" in part else part
        for key, value in resolved.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, ()), *value]
            else:
                merged.setdefault(key, value)
    return merged


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    node: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            node = node[step.replace("~1", "/").replace("~0", "~")]
    return node
