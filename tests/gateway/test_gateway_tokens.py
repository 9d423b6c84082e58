"""Which access tokens the edge takes, and what a client may not say of itself."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from gateway.config import EdgeConfig
from stack import pki
from tests.gateway.clients import failure
from tests.gateway.conftest import SUBJECT
from tests.gateway.contract import BY_NAME, path
from tests.gateway.envoy import Envoy, running
from tests.gateway.upstreams import Upstream
from tests.services import TEST_TIMEOUT_S

GOOD = {"iss": "commerce-mesh", "aud": "commerce-mesh", "sub": str(SUBJECT), "role": "staff"}


def signed(key: ECKey, *, algorithm: str = "ES256", lifetime: float = 900, **claims: Any) -> str:
    now = int(time.time())
    return jwt.encode({"alg": algorithm, "kid": key.kid}, {**GOOD, "iat": now, "exp": now + lifetime, **claims}, key)


@pytest.fixture
def key(signing_key: pki.SigningKey) -> ECKey:
    return ECKey.import_key(json.loads(signing_key.private.read_text()))


async def status_with(client: httpx.AsyncClient, token: str) -> tuple[int, str]:
    answer = await client.get("/v1/customers", headers={"authorization": f"Bearer {token}"})
    return answer.status_code, "" if answer.status_code == 200 else failure(answer).reason


async def test_a_token_of_the_mesh_is_taken(anyone: httpx.AsyncClient, key: ECKey) -> None:
    assert await status_with(anyone, signed(key)) == (200, "")


async def test_the_scheme_may_be_written_small(anyone: httpx.AsyncClient, key: ECKey) -> None:
    answer = await anyone.get("/v1/customers", headers={"authorization": f"bearer {signed(key)}"})
    assert answer.status_code == 200


async def test_the_service_gets_the_token_as_well(
    anyone: httpx.AsyncClient, key: ECKey, upstreams: dict[str, Upstream]
) -> None:
    token = signed(key)
    await status_with(anyone, token)
    [call] = upstreams["customer"].received
    assert call.metadata["authorization"] == f"Bearer {token}"


@pytest.mark.parametrize(
    "claims",
    [
        {"lifetime": -120},
        {"iss": "someone-else"},
        {"aud": "another-mesh"},
        {"nbf": int(time.time()) + 3600},
    ],
    ids=["expired", "other issuer", "other audience", "not yet valid"],
)
async def test_a_token_with_the_wrong_claims_is_refused(
    anyone: httpx.AsyncClient, key: ECKey, claims: dict[str, Any]
) -> None:
    assert await status_with(anyone, signed(key, **claims)) == (401, "TOKEN_INVALID")


async def test_a_token_that_never_expires_is_refused(anyone: httpx.AsyncClient, key: ECKey) -> None:
    token = jwt.encode({"alg": "ES256", "kid": key.kid}, GOOD, key)
    assert await status_with(anyone, token) == (401, "TOKEN_INVALID")


async def test_a_token_of_another_key_is_refused(anyone: httpx.AsyncClient, key: ECKey) -> None:
    other = ECKey.generate_key("P-256", {"kid": str(key.kid)}, private=True)
    assert await status_with(anyone, signed(other)) == (401, "TOKEN_INVALID")


async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(
    anyone: httpx.AsyncClient, key: ECKey, signing_key: pki.SigningKey
) -> None:
    secret = OctKey.import_key(signing_key.jwks.read_bytes())
    now = int(time.time())
    token = jwt.encode({"alg": "HS256", "kid": key.kid}, {**GOOD, "exp": now + 900}, secret)
    assert await status_with(anyone, token) == (401, "TOKEN_INVALID")


async def test_an_unsigned_token_is_refused(anyone: httpx.AsyncClient, key: ECKey) -> None:
    header, payload, _ = signed(key).split(".")
    assert await status_with(anyone, f"{header}.{payload}.") == (401, "TOKEN_INVALID")


async def test_a_token_in_the_query_is_none(anyone: httpx.AsyncClient, key: ECKey) -> None:
    answer = await anyone.get("/v1/customers", params={"access_token": signed(key)})
    assert answer.status_code in (400, 401)


async def test_another_scheme_of_authorization_is_no_token(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get("/v1/customers", headers={"authorization": "Basic YWRhOmFkYQ=="})
    assert failure(answer).reason == "TOKEN_MISSING"


async def test_what_a_client_says_of_itself_does_not_reach_a_service(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    forged = {
        "x-forwarded-for": "203.0.113.9",
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "forwarded": "for=203.0.113.9",
        "x-real-ip": "203.0.113.9",
        "x-request-id": "forged",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-original-path": "/forged",
        "x-envoy-internal": "true",
        "x-mesh-subject": "forged",
        "x-mesh-content-type": "forged",
        "x-mesh-client-address": "203.0.113.9",
    }
    answer = await staff.get("/v1/orders", headers=forged)
    assert answer.status_code == 200
    [call] = upstreams["order"].received
    assert (
        not {"x-mesh-subject", "x-mesh-content-type", "x-envoy-internal", "forwarded", "x-real-ip"}
        & call.metadata.keys()
    )
    assert not {"203.0.113.9", "evil.example", "https", "forged", "/forged"} & set(call.metadata.values())


async def test_a_service_learns_the_address_that_a_client_comes_from_and_none_that_it_names(
    edge: Envoy, upstreams: dict[str, Upstream]
) -> None:
    forged = {"x-mesh-client-address": "203.0.113.9", "x-forwarded-for": "203.0.113.9"}
    from_there = httpx.AsyncHTTPTransport(local_address="127.0.0.9")
    async with (
        httpx.AsyncClient(base_url=edge.url, transport=from_there, timeout=TEST_TIMEOUT_S) as client,
        grpc.aio.insecure_channel(edge.target) as channel,
    ):
        assert (await client.post("/v1/sessions", json={}, headers=forged)).status_code == 200
        ask: Any = channel.unary_unary(path(BY_NAME["CreateSession"]))
        await ask(b"", metadata=tuple(forged.items()), timeout=TEST_TIMEOUT_S)
    by_json, by_grpc = (call.metadata for call in upstreams["customer"].received)
    assert by_json["x-mesh-client-address"] == "127.0.0.9"
    assert by_grpc["x-mesh-client-address"] == "127.0.0.1"
    assert "x-forwarded-for" not in by_json.keys() | by_grpc.keys()


async def test_behind_a_proxy_that_is_trusted_a_client_has_the_address_that_the_proxy_names(
    config: EdgeConfig, short_folder: Path, upstreams: dict[str, Upstream]
) -> None:
    async with (
        running(replace(config, trusted_proxies=1), short_folder) as edge,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as proxy,
    ):
        # What comes first is the word of the client.
        await proxy.post("/v1/sessions", json={}, headers={"x-forwarded-for": "203.0.113.9, 2001:db8::7"})
    [call] = upstreams["customer"].received
    assert call.metadata["x-mesh-client-address"] == "2001:db8::7"


async def test_what_a_service_needs_of_a_client_reaches_it(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await staff.post("/v1/orders", json={}, headers={"Idempotency-Key": "k-1", "traceparent": trace})
    await staff.post("/v1/paymentWebhooks/sandbox", content=b"\0raw\xff", headers={"Webhook-Signature": "v1,abc"})
    [order], [webhook] = upstreams["order"].received, upstreams["payment"].received
    assert order.metadata["idempotency-key"] == "k-1"
    assert order.metadata["traceparent"] == trace
    assert webhook.metadata["webhook-signature"] == "v1,abc"
    assert webhook.request.payload.data == b"\0raw\xff"  # type: ignore[attr-defined]
