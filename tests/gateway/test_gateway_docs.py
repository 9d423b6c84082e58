"""The OpenAPI document and its page, as Envoy serves them."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from gateway.config import EdgeConfig
from tests.gateway.envoy import running

TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "png": "image/png"}


class Links(HTMLParser):
    """The addresses that a page names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        """What the browser loads with the page."""
        self.inline = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        named = dict(attrs)
        assert not {name for name in named if name.startswith("on") or name == "style"}
        if tag in {"link", "script", "img", "iframe"}:
            self.loaded.append(named.get("src") or named.get("href") or "")

    def handle_data(self, data: str) -> None:
        if self._tag in {"script", "style"}:
            self.inline += data.strip()


async def sent(client: httpx.AsyncClient, path: str, accepted: str) -> tuple[httpx.Response, bytes]:
    """A response with its body as it was sent."""
    async with client.stream("GET", path, headers={"accept-encoding": accepted}) as answer:
        return answer, b"".join([part async for part in answer.aiter_raw()])


async def test_the_document_of_the_contracts_is_served(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == json.loads((files("commerce") / "openapi.json").read_bytes())
    assert answer.headers["cache-control"] == "public, max-age=300"


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, gzip;q=0.8", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip;q=0.0, br", None),
        ("xgzip", None),
    ],
)
async def test_it_is_compressed_for_clients_that_accept_gzip(
    accepted: str, encoding: str | None, anyone: httpx.AsyncClient
) -> None:
    answer, body = await sent(anyone, "/openapi.json", accepted)
    _, plain = await sent(anyone, "/openapi.json", "identity")
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "accept-encoding, origin"
    assert (gzip.decompress(body) if encoding else body) == plain
    if encoding:
        assert len(body) < len(plain) / 5


async def test_a_client_that_has_it_gets_no_body_again(anyone: httpx.AsyncClient) -> None:
    for path in ("/openapi.json", "/docs"):
        tag = (await anyone.get(path)).headers["etag"]
        again = await anyone.get(path, headers={"if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = await anyone.get(path, headers={"if-none-match": 'W/"0123456789abcdef"'})
        assert other.status_code == 200


async def test_the_page_loads_only_files_of_the_edge_and_all_are_served(anyone: httpx.AsyncClient) -> None:
    page = await anyone.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["cache-control"] == "no-cache"
    links = Links(page.text)
    assert links.inline == ""
    assert {name.rpartition(".")[2] for name in links.loaded} == {"js", "css", "png"}
    for name in links.loaded:
        assert re.fullmatch(r"docs/[a-z-]+-[0-9a-f]{16}\.(js|css|png)", name)
        asset = await anyone.get(f"/{name}")
        assert (asset.status_code, asset.headers["content-type"]) == (200, TYPES[name.rpartition(".")[2]])
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert asset.headers["x-content-type-options"] == "nosniff"
        assert asset.content


async def test_the_page_may_reach_no_other_host(anyone: httpx.AsyncClient) -> None:
    policy = (await anyone.get("/docs")).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert {rules.pop(name) for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert rules.pop("img-src") == "'self' data:"
    assert set(rules) == {"script-src", "style-src", "connect-src"}
    assert set(rules.values()) == {"'self'"}


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_other_verbs_are_refused(path: str, anyone: httpx.AsyncClient) -> None:
    answer = await anyone.post(path, json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (await anyone.options(path)).status_code == 204


class TestWithoutDocs:
    """An edge whose document is off."""

    @pytest.fixture
    async def client(self, config: EdgeConfig, short_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
        async with (
            running(replace(config, docs=False), short_folder) as edge,
            httpx.AsyncClient(base_url=edge.url) as client,
        ):
            yield client

    async def test_neither_the_document_nor_the_page_is_served(self, client: httpx.AsyncClient) -> None:
        for path in ("/openapi.json", "/docs"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/healthz")).status_code == 200
