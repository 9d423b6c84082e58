"""The OpenAPI document of the edge and the page that shows it, as files that Envoy serves from memory.

The page is Swagger UI, whose script and style come with the package `swagger-ui-bundle-v2`. The names of its files
contain a hash of their content, so browsers keep them for ever.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template

from swagger_ui_bundle import swagger_ui_path

FOLDER = "docs"
"""The folder of the files, in that of Envoy's configuration."""

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
}
_CHECKED = "no-cache"
_BRIEFLY = "public, max-age=300"
_FOR_EVER = "public, max-age=31536000, immutable"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # Swagger UI has its icons in its style.
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may load: only files of the edge itself, and no script or style inside the page."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file that the edge serves."""

    path: str
    """Its path in the URL, `/openapi.json`."""
    name: str
    """Its name in `FOLDER`."""
    content: bytes
    cache: str
    """The `cache-control` header."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Other headers of the response."""

    @property
    def content_type(self) -> str:
        """The `content-type` header."""
        return _TYPES[Path(self.name).suffix]

    @property
    def is_compressed(self) -> bool:
        """Whether there is a compressed form as well, with the suffix `.gz`. Images are compressed in themselves."""
        return Path(self.name).suffix != ".png"

    @property
    def tag(self) -> str:
        """The hash of the content."""
        return _hash(self.content)


@cache
def documents() -> Sequence[Document]:
    """The OpenAPI document, the page, and the files that the page loads."""
    own, swagger = files("gateway.docs"), Path(swagger_ui_path)
    assets = {
        "favicon": _asset("favicon.png", (swagger / "favicon-32x32.png").read_bytes()),
        "swagger": _asset("swagger-ui.js", (swagger / "swagger-ui-bundle.js").read_bytes()),
        "swagger_style": _asset("swagger-ui.css", (swagger / "swagger-ui.css").read_bytes()),
        "start": _asset("start.js", (own / "start.js").read_bytes()),
        "style": _asset("style.css", (own / "style.css").read_bytes()),
    }
    names = {key: asset.name for key, asset in assets.items()}
    page = Template((own / "index.html").read_text("utf-8")).substitute(names)
    contracts = json.loads((files("commerce") / "openapi.json").read_bytes())
    text = json.dumps(contracts, ensure_ascii=False, separators=(",", ":"))
    return (
        Document("/openapi.json", "openapi.json", text.encode(), _BRIEFLY),
        Document(
            "/docs",
            "index.html",
            page.encode(),
            _CHECKED,
            {"content-security-policy": CONTENT_SECURITY_POLICY, "referrer-policy": "no-referrer"},
        ),
        *assets.values(),
    )


def write(folder: Path) -> None:
    """Write all files, as they are and compressed, to `FOLDER` in this folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for document in documents():
        (folder / FOLDER / document.name).write_bytes(document.content)
        if document.is_compressed:
            (folder / FOLDER / f"{document.name}.gz").write_bytes(_compressed(document.content))


def _asset(name: str, content: bytes) -> Document:
    stem, suffix = Path(name).stem, Path(name).suffix
    unique = f"{stem}-{_hash(content)}{suffix}"
    return Document(f"/docs/{unique}", unique, content, _FOR_EVER)


@cache
def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]
