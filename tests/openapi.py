"""The OpenAPI document for tests: its operations, and validators of its schemas."""

from __future__ import annotations

import json
from typing import Any

from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource

from ops import contracts

Json = dict[str, Any]

DOCUMENT: Json = json.loads((contracts.ROOT / "gen" / contracts.OPENAPI).read_text("utf-8"))
OPERATIONS: dict[str, tuple[str, str, Json]] = {
    operation["operationId"]: (verb.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for verb, operation in operations.items()
}
"""Verb, path and operation by the name of the method."""
_REGISTRY = Registry().with_resource("urn:openapi", Resource.opaque(DOCUMENT))


def validator(schema: Json) -> OAS31Validator:
    """A validator of a schema of the document."""
    absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:openapi#/'))
    return OAS31Validator(absolute, registry=_REGISTRY, format_checker=OAS31Validator.FORMAT_CHECKER)


def follow(value: Json) -> Json:
    """What a reference refers to."""
    while "$ref" in value:
        found: Json = DOCUMENT
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value
