"""The parts of the OpenAPI document that hold for all methods, and the paths that the edge serves itself."""

from __future__ import annotations

from typing import Any

from gateway.openapi.rules import Schema

DESCRIPTION = """\
The JSON interface of Commerce Mesh. The same methods are served as gRPC and gRPC-Web on the same port; each operation
names its gRPC method. This document is made from the contracts in `proto/`.

**Access.** Send the access token of a session as `Authorization: Bearer …`. A token that is sent must be valid, also
where none is needed. A resource of another customer is reported as `NOT_FOUND`. `me` stands for the id of the caller
wherever a path contains the id of a customer.

**Idempotency.** Send `Idempotency-Key` with every request that changes something. A second request of the same caller
with the same key changes nothing and gets the reply of the first one, within 24 hours. A failed request leaves no reply
behind. Replies that contain secrets are never stored: for sessions the key has no effect.

**Lists.** A list returns at most `pageSize` items (50 unless set, at most 500) and a `nextPageToken`. Send it as
`pageToken`, with the same filters, to get the next page. It is empty on the last page.

**Updates.** `updateMask` names the fields that `PATCH` changes. `etag` is the version of a resource: a change that is
sent with an older one is refused with `ETAG_MISMATCH`.

**Streams.** A path that ends with `:watch` returns a line of JSON for each message, until the client leaves or the
resource is final.

**Errors.** Every error is a `Status` with an `ErrorInfo`. Its `reason` is stable and has one cause. `BadRequest` names
each rejected field, query parameters included; `RetryInfo` and the header `Retry-After` contain the delay before the
next attempt. `HEAD` is served wherever `GET` is. A known path with another verb is refused with 405 /
`METHOD_NOT_ALLOWED` and an `Allow` header, an unknown path with 404 / `ROUTE_NOT_FOUND`.

**Values.** Ids are UUIDs. Times are RFC 3339 in UTC. Enums are sent by name, 64-bit integers as text. No text contains
the character NUL. A response contains all fields except messages that are not set.
"""

SECURITY_SCHEMES = {
    "accessToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `accessToken` of a session (`POST /v1/sessions`), or a token of staff.",
    }
}

IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A new name for each intent, such as a UUID: 1 to 255 visible ASCII characters. Repeated requests"
    " with the same key have one effect and one reply.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

HEADERS: dict[str, Schema] = {
    "Idempotency-Replayed": {
        "description": "`true` if this is the stored reply of an earlier request with the same key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {
        "description": "Seconds after which the request may be sent again. The edge sets it; `RetryInfo` has the delay"
        " of all errors.",
        "schema": {"type": "integer", "minimum": 0},
    },
}

TAG_OF_THE_EDGE = {"name": "Edge", "description": "What the edge serves itself."}


def _own(name: str, summary: str, schema: Schema, example: Any) -> Schema:
    content = {"application/json": {"schema": schema, "example": example}}
    return {
        "get": {
            "operationId": name,
            "tags": [TAG_OF_THE_EDGE["name"]],
            "summary": summary,
            "security": [{}],
            "responses": {"200": {"description": f"{summary}.", "content": content}},
        }
    }


_KEY = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": "…", "y": "…"}

OWN_PATHS: dict[str, Schema] = {
    "/healthz": _own(
        "GetEdgeHealth",
        "Tells that the edge takes requests",
        {"type": "object", "required": ["status"], "properties": {"status": {"const": "up"}}},
        {"status": "up"},
    ),
    "/.well-known/jwks.json": _own(
        "GetKeys",
        "Gets the public keys of access tokens, as a JSON Web Key Set",
        {
            "type": "object",
            "required": ["keys"],
            "properties": {"keys": {"type": "array", "items": {"type": "object"}}},
        },
        {"keys": [_KEY]},
    ),
}
