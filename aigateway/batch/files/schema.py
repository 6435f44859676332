"""The schema of structured answers: read from a file or a pydantic class, sent, and checked.

A type of a column is "string", "int64", "float64" or "bool", a list with the type of its items, or
a mapping of fields. What has no such type is text: the value as JSON.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from aigateway.batch.files.output import Record
from aigateway.errors import ConfigurationError, RequestRejectedError
from aigateway.structured import schema_format, strict_format

__all__ = ["AnswerSchema", "ColumnType"]

ColumnType = str | list[Any] | dict[str, Any]
"""See above."""

_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}


@dataclass(frozen=True)
class AnswerSchema:
    """The schema that answers must fit.

    Attributes:
        response_format: As `chat` takes it.
        model: The pydantic class that checks answers; None checks them by the schema.
    """

    response_format: Mapping[str, Any]
    model: type[BaseModel] | None = None

    @classmethod
    def of(cls, named: str) -> AnswerSchema:
        """Read a JSON schema from a file, or from a class that `package.module:Class` names.

        Raises:
            ConfigurationError: There is no such schema.
        """
        if Path(named).is_file():
            return cls(_from_file(Path(named)))
        module, separator, name = named.partition(":")
        if not separator or not all(part.isidentifier() for part in (*module.split("."), name)):
            raise ConfigurationError(
                f"--schema {named}: there is no such file. Name a file with a JSON schema, or a"
                " pydantic class as package.module:Class."
            )
        model = _class(named, module, name)
        try:
            return cls(orjson.loads(strict_format(model)), model)
        except RequestRejectedError as error:
            raise ConfigurationError(f"--schema {named}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return AnswerSchema, (self.response_format, self.model)  # the validator cannot be pickled

    @property
    def columns(self) -> dict[str, ColumnType]:
        """The fields of an answer, and their types."""
        schema = self._schema
        fields = _resolved(schema, schema).get("properties", {})
        return {name: _type_of(part, schema, ()) for name, part in fields.items()}

    def applied(self, record: Record) -> Record:
        """Return the record of an answer with its fields; an error if it does not fit.

        The error keeps the whole answer. It is final: the answer is paid, and the same request
        would likely get the same one.
        """
        body, about = record["response"]["body"], record["aigateway"]
        choice = body["choices"][0]
        parsed, problem = self._parsed(choice["message"].get("content"))
        if problem is None:
            return record | {"aigateway": about | {"parsed": parsed}}
        ended = choice["finish_reason"]
        if ended not in {None, "stop"}:
            problem += f" (it ended by {ended})"
        error = {"code": "invalid_answer", "message": f"The answer {problem}."}
        about |= {"final": True, "body": body}
        return record | {"response": None, "error": error, "aigateway": about}

    @property
    def _schema(self) -> Mapping[str, Any]:
        schema: Mapping[str, Any] = self.response_format["json_schema"]["schema"]
        return schema

    def _parsed(self, text: object) -> tuple[Any, str | None]:
        """Return the parsed answer, and what is wrong with it. The words do not quote it."""
        if not isinstance(text, str) or not text.strip():
            return None, "has no text"
        try:
            if self.model is None:
                parsed = orjson.loads(text)
                return parsed, self._misfit(parsed)
            return self.model.model_validate_json(text).model_dump(mode="json", by_alias=True), None
        except orjson.JSONDecodeError:
            problem = "is not JSON"
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            problem = f"does not fit the class ({place or 'as a whole'}: {first['type']})"
        except Exception as error:  # noqa: BLE001 - validators are the application's own code
            problem = f"does not fit the class ({type(error).__name__})"
        return None, problem

    def _misfit(self, parsed: object) -> str | None:
        error = next(self._validator.iter_errors(parsed), None)
        if error is None:
            return None
        return f"does not fit the schema ({error.json_path}: {error.validator})"

    @functools.cached_property
    def _validator(self) -> Any:
        from jsonschema import validators  # noqa: PLC0415 - only here

        return validators.validator_for(self._schema)(self._schema)


def _from_file(path: Path) -> dict[str, Any]:
    """Read a schema, bare or as `response_format` has it."""
    from jsonschema import SchemaError, validators  # noqa: PLC0415 - only here

    try:
        given = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise ConfigurationError(f"--schema {path} cannot be read: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"--schema {path} is not JSON ({error.msg}).") from None
    name = path.name.partition(".")[0]
    for _ in range(2):  # {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}
        if isinstance(given, dict) and isinstance(given.get("name"), str):
            name = given["name"]
        for inner in ("json_schema", "schema"):
            if isinstance(given, dict) and isinstance(given.get(inner), dict):
                given = given[inner]
    if not isinstance(given, dict) or _resolved(given, given).get("type") != "object":
        raise ConfigurationError(
            f'--schema {path} does not describe an object: its "type" at the top must be "object".'
        )
    try:
        validators.validator_for(given).check_schema(given)
    except SchemaError as error:
        raise ConfigurationError(f"--schema {path}: {error.json_path}: {error.message}.") from None
    return schema_format(name, given)


def _class(named: str, module: str, name: str) -> type[BaseModel]:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as with `python -m`
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - the module is the application's own code
        raise ConfigurationError(
            f"--schema {named} cannot be imported ({type(error).__name__}: {error})."
        ) from None
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ConfigurationError(f"--schema {named} is not a pydantic class.")
    return found


# ── types of columns ─────────────────────────────────────────────────────────────────────────────


def _resolved(node: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references inside the schema, and leave out null as an alternative."""
    for _ in range(16):
        if not isinstance(node, Mapping):
            return {}
        choices = node.get("anyOf") or node.get("oneOf") or ()
        others = [each for each in choices if each != {"type": "null"}]
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            found: Any = root
            for part in filter(None, reference[1:].split("/")):
                found = found.get(part, {}) if isinstance(found, Mapping) else {}
            node = found
        elif len(others) == 1:
            node = others[0]
        else:
            return node
    return {}


def _type_of(node: Any, root: Mapping[str, Any], above: tuple[int, ...]) -> ColumnType:
    node = _resolved(node, root)
    kind = node.get("type")
    if isinstance(kind, list):
        kinds = [each for each in kind if each != "null"]
        mixed = "number" if set(kinds) == {"integer", "number"} else None
        kind = kinds[0] if len(kinds) == 1 else mixed
    if id(node) in above:  # it refers to itself
        return "string"
    above = (*above, id(node))
    if kind == "array" and isinstance(node.get("items"), Mapping):
        return [_type_of(node["items"], root, above)]
    if kind == "object" and node.get("properties"):
        return {name: _type_of(part, root, above) for name, part in node["properties"].items()}
    return _TYPES.get(str(kind), "string")
