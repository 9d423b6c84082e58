"""What the edge serves itself, from memory: its health, the public keys, the OpenAPI document and its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway import docs
from gateway.config import EdgeConfig
from gateway.errors import allow_origin
from gateway.filters import NO_COMPRESSION, NO_RATE_LIMIT

MAX_OWN_BODY_BYTES = 4 * 1024 * 1024
"""The largest body of such a response; that of the script of the page has 1.5 MB. Envoy's default is 4 KiB."""

_GET_OR_HEAD = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
_ACCEPTS_GZIP = {
    "name": "accept-encoding",
    # Not with the weight 0, which means "not acceptable".
    "string_match": {"safe_regex": {"regex": r"(.*,)?\s*gzip\s*(;\s*q=(1(\.0*)?|0\.\d*[1-9]\d*)\s*)?(,.*)?"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnResponse:
    """A response of the edge itself to GET and HEAD."""

    path: str
    body: Mapping[str, Any]
    """Envoy's data source of the body."""
    compressed: Mapping[str, str] | None = None
    """That of the body compressed by gzip; None if there is none."""
    content_type: str = "application/json"
    cache: str
    """The `cache-control` header."""
    origins: Sequence[str]
    """The web origins whose scripts may read it. The CORS filter ignores direct responses."""
    tag: str = ""
    """A hash of the body; a client that has it is answered without the body. Empty if the body can change."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Other headers."""
    is_limited: bool = True
    """Whether the response counts in the rate limit of the client."""

    def routes(self) -> Iterator[dict[str, Any]]:
        """The routes, in the order in which Envoy matches them."""
        if self.tag:
            known = {"name": "if-none-match", "string_match": {"contains": self.tag}}
            yield self._route([known], {"status": 304})
        if self.compressed is not None:
            response = {"status": 200, "body": self.compressed}
            yield self._route([_ACCEPTS_GZIP], response, {"content-encoding": "gzip"})
        yield self._route([], {"status": 200, "body": self.body})

    def _route(
        self, when: list[dict[str, Any]], response: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        vary = "origin" if self.compressed is None else "accept-encoding, origin"
        told = {"content-type": self.content_type, "cache-control": self.cache, "vary": vary, **self.headers}
        if self.tag:
            # Weak: the compressed body and the other one have the same tag.
            told["etag"] = f'W/"{self.tag}"'
        return {
            "match": {"path": self.path, "headers": [_GET_OR_HEAD, *when]},
            "direct_response": response,
            "typed_per_filter_config": {**NO_COMPRESSION, **({} if self.is_limited else NO_RATE_LIMIT)},
            "response_headers_to_add": [
                *(set_header(name, value) for name, value in (told | dict(headers or {})).items()),
                *allow_origin(self.origins),
            ],
        }


def own_responses(config: EdgeConfig) -> Sequence[OwnResponse]:
    """The responses that are served whatever the load."""
    origins = config.allowed_origins
    health = OwnResponse(
        path="/healthz",
        body={"inline_string": '{"status":"up"}'},
        cache="no-store",
        origins=origins,
        is_limited=False,
    )
    keys = OwnResponse(
        path="/.well-known/jwks.json",
        # Read again when something is moved into the folder.
        body={"filename": str(config.jwks), "watched_directory": {"path": str(config.jwks.parent)}},
        cache="public, max-age=300",
        origins=origins,
        is_limited=False,
    )
    return [health, keys]


def document_responses(config: EdgeConfig, folder: Path) -> Sequence[OwnResponse]:
    """The OpenAPI document, its page and the files of the page, which Envoy will find in `folder`."""
    return [_document(each, folder, config.allowed_origins) for each in docs.documents() if config.docs]


def _document(document: docs.Document, folder: Path, origins: Sequence[str]) -> OwnResponse:
    file = str(folder / docs.FOLDER / document.name)
    return OwnResponse(
        path=document.path,
        body={"filename": file},
        compressed={"filename": f"{file}.gz"} if document.is_compressed else None,
        content_type=document.content_type,
        cache=document.cache,
        origins=origins,
        tag=document.tag,
        headers=document.headers,
    )


def set_header(name: str, value: str) -> dict[str, Any]:
    """A header of a request or a response, in place of one with the same name."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
