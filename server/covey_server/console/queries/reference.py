"""The API's OpenAPI document as a page shows it: operations by subject, with their parameters and the fields of their bodies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_METHODS = ("get", "post", "patch", "put", "delete")


@dataclass(frozen=True, slots=True)
class FieldLine:
    """One parameter, or one field of a body."""

    name: str
    where: str  # path, query, header, body, form
    kind: str
    is_required: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One call."""

    method: str
    path: str
    summary: str
    meaning: str
    fields: tuple[FieldLine, ...]
    answers: tuple[str, ...]  # HTTP statuses


@dataclass(frozen=True, slots=True)
class Subject:
    """Calls that belong together."""

    name: str
    operations: tuple[Operation, ...]


def read_reference(document: Mapping[str, Any]) -> list[Subject]:
    """All operations of an OpenAPI document, in its own order."""
    by_subject: dict[str, list[Operation]] = {}
    for path, calls in document["paths"].items():
        for method in _METHODS:
            if method in calls:
                subject = (calls[method].get("tags") or ["other"])[0]
                by_subject.setdefault(subject, []).append(_operation(document, method, path, calls[method]))
    return [Subject(name, tuple(operations)) for name, operations in by_subject.items()]


def _operation(document: Mapping[str, Any], method: str, path: str, call: Mapping[str, Any]) -> Operation:
    fields = [
        FieldLine(
            parameter["name"],
            parameter["in"],
            _kind(parameter.get("schema", {})),
            bool(parameter.get("required")),
            parameter.get("description", ""),
        )
        for parameter in call.get("parameters", [])
    ]
    return Operation(
        method=method.upper(),
        path=path,
        summary=call.get("summary", ""),
        meaning=call.get("description", ""),
        fields=(*fields, *_body(document, call)),
        answers=tuple(call.get("responses", {})),
    )


def _body(document: Mapping[str, Any], call: Mapping[str, Any]) -> list[FieldLine]:
    found = []
    for media, content in call.get("requestBody", {}).get("content", {}).items():
        schema = _resolve(document, content.get("schema", {}))
        where = "body" if "json" in media else "form"
        required = set(schema.get("required", []))
        for name, field in schema.get("properties", {}).items():
            found.append(FieldLine(name, where, _kind(field), name in required, field.get("description", "")))
    return found


def _resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    return found


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(choice) for choice in choices))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    return str(schema.get("format") or schema.get("type") or "any")
