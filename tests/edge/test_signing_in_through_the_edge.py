"""Signing in from several addresses of this machine, through a real edge."""

from __future__ import annotations

from uuid import uuid4

import grpc
import httpx

from commerce.customer.v1 import session_pb2, session_pb2_grpc
from tests.running import RunningMesh, reason_of

PASSWORD = "correct horse"


async def sign_in(mesh: RunningMesh, address: str, email: str, password: str) -> str:
    """What comes of signing in as JSON from an address: the reason of a refusal, or nothing."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    async with httpx.AsyncClient(base_url=mesh.edge, transport=transport, timeout=30) as client:
        # Whatever it says of itself.
        forged = {"x-forwarded-for": "127.0.0.77", "x-mesh-client-address": "127.0.0.77"}
        answer = await client.post("/v1/sessions", json={"email": email, "password": password}, headers=forged)
    return reason_of(answer)


async def sign_in_by_grpc(mesh: RunningMesh, email: str, password: str) -> grpc.StatusCode:
    """The same as gRPC, from the address that this machine takes by itself."""
    async with grpc.aio.insecure_channel(mesh.edge.removeprefix("http://")) as channel:
        call = session_pb2_grpc.SessionServiceStub(channel).CreateSession(
            session_pb2.CreateSessionRequest(email=email, password=password),
            metadata=(("x-mesh-client-address", "127.0.0.77"),),
            timeout=20,
        )
        return await call.code()


async def test_a_stranger_locks_out_their_own_address_and_nobody_else(mesh: RunningMesh) -> None:
    email = f"{uuid4()}@example.com"
    await mesh.ok("POST", "/v1/customers", {"email": email, "name": "Ada", "password": PASSWORD})
    guesses = [await sign_in(mesh, "127.0.0.2", email, f"guess {number}") for number in range(12)]
    assert guesses == ["CREDENTIALS_INVALID"] * 10 + ["RATE_LIMITED"] * 2
    assert await sign_in(mesh, "127.0.0.2", email, PASSWORD) == "RATE_LIMITED"
    assert await sign_in(mesh, "127.0.0.3", email, PASSWORD) == ""
    assert await sign_in_by_grpc(mesh, email, PASSWORD) is grpc.StatusCode.OK
    codes = [await sign_in_by_grpc(mesh, email, f"guess {number}") for number in range(11)]
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 10 + [grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert await sign_in(mesh, "127.0.0.3", email, PASSWORD) == ""
