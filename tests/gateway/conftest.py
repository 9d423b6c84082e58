"""A live edge in front of four small services, shared by the tests of a run."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from gateway.config import EdgeConfig, Limits, TlsFiles
from stack import pki
from tests.gateway.envoy import Envoy, running
from tests.gateway.upstreams import Upstream
from tests.services import TEST_TIMEOUT_S

SERVICES = ("customer", "product", "order", "payment")
SUBJECT = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, pki.Credentials]:
    """Certificates of all peers."""
    return pki.issue(tmp_path_factory.mktemp("pki"), (*SERVICES, "gateway"))


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> pki.SigningKey:
    """The key of access tokens."""
    return pki.make_signing_key(tmp_path_factory.mktemp("signing"))


@pytest.fixture(scope="session")
def token(signing_key: pki.SigningKey) -> str:
    """An access token of staff."""
    return pki.access_token(signing_key.private, role="staff", subject=SUBJECT)


@pytest.fixture(scope="session")
async def running_upstreams(credentials: Mapping[str, pki.Credentials]) -> AsyncIterator[dict[str, Upstream]]:
    """The four services."""
    upstreams = {name: Upstream(credentials[name]) for name in SERVICES}
    for upstream in upstreams.values():
        await upstream.start()
    yield upstreams
    for upstream in upstreams.values():
        await upstream.stop()


@pytest.fixture
def upstreams(running_upstreams: dict[str, Upstream]) -> Iterator[dict[str, Upstream]]:
    """The four services, by name, with nothing told and nothing received."""
    yield running_upstreams
    for upstream in running_upstreams.values():
        upstream.forget()


@pytest.fixture(scope="session")
def config(
    running_upstreams: dict[str, Upstream], credentials: Mapping[str, pki.Credentials], signing_key: pki.SigningKey
) -> EdgeConfig:
    """An edge that limits no rate, and waits for a service that is slow because the machine is busy."""
    gateway = credentials["gateway"]
    return EdgeConfig(
        port=0,
        upstream_seconds=TEST_TIMEOUT_S,
        upstreams={name: [upstream.address] for name, upstream in running_upstreams.items()},
        tls=TlsFiles(ca=gateway.ca, cert=gateway.cert, key=gateway.key),
        jwks=signing_key.jwks,
        limits=Limits(requests_per_second=0, requests_per_second_of_address=0),
        allowed_origins=["https://shop.example", "https://admin.example:8443"],
    )


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
async def edge(config: EdgeConfig) -> AsyncIterator[Envoy]:
    """The edge."""
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        async with running(config, Path(folder)) as envoy:
            yield envoy


@pytest.fixture
async def anyone(edge: Envoy, upstreams: dict[str, Upstream]) -> AsyncIterator[httpx.AsyncClient]:
    """A JSON client without a token."""
    del upstreams  # as new, for each client
    async with httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client:
        yield client


@pytest.fixture
async def staff(edge: Envoy, token: str, upstreams: dict[str, Upstream]) -> AsyncIterator[httpx.AsyncClient]:
    """A JSON client with a good token."""
    del upstreams  # as new, for each client
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S, headers=headers) as client:
        yield client
