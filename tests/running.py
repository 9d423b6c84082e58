"""A whole mesh as `mesh up` runs it, and the people who use it from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx

import ops.running_mesh
from ops.audit import Activity, Audit
from stack import pki
from stack.ports import free_ports
from stack.servers import Servers
from stack.state import State
from stack.supervisor import Supervisor
from tests.services import eventually, new_key

Json = dict[str, Any]

FINAL = {"ORDER_STATUS_CONFIRMED", "ORDER_STATUS_CANCELLED"}
BUSY = {429, 500, 502, 503, 504}
"""Answers that a client tries again, under the same key."""


async def mesh_command(*arguments: str, state: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run `mesh` to its end and give what it printed; the test fails when it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ops.cli", *arguments, "--state", str(state)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that is up."""

    state: Path
    edge: str
    http: httpx.AsyncClient
    staff_token: str

    async def processes(self) -> dict[str, Json]:
        """The pid and the address of each process that runs, by name, also while some of them are not ready."""
        return {
            process.name: {"pid": process.identity.pid, "address": process.address}
            for process in State(self.state).running().processes
            if process.identity
        }

    async def kill(self, name: str) -> None:
        """kill -9 a process."""
        os.kill((await self.processes())[name]["pid"], signal.SIGKILL)

    async def call(
        self, method: str, path: str, body: Json | None = None, *, token: str = "", key: str = ""
    ) -> httpx.Response:
        """Send one request."""
        headers = {}
        if token:
            headers["authorization"] = f"Bearer {token}"
        if key:
            headers["idempotency-key"] = key
        return await self.http.request(method, path, json=body, headers=headers)

    async def insist(self, method: str, path: str, body: Json | None = None, *, token: str, key: str) -> httpx.Response:
        """Send a request until it is answered for good, always under the same key, as a good client does."""

        async def answered() -> httpx.Response | None:
            try:
                answer = await self.call(method, path, body, token=token, key=key)
            except httpx.TransportError:
                return None
            return None if answer.status_code in BUSY else answer

        return await eventually(answered)

    async def ok(self, method: str, path: str, body: Json | None = None, *, token: str = "", key: str = "") -> Json:
        """Send one request; its answer, which must be good."""
        answer = await self.call(method, path, body, token=token, key=key)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        told: Json = answer.json()
        return told

    async def shopper(self, *tokens: str) -> Shopper:
        """Somebody who signed up and in, with these payment tokens, the first of them the default."""
        email = f"{uuid4()}@example.com"
        made = await self.ok(
            "POST", "/v1/customers", {"email": email, "name": "Ada Lovelace", "password": "correct horse"}
        )
        session = await self.ok("POST", "/v1/sessions", {"email": email, "password": "correct horse"})
        shopper = Shopper(self, made["id"], session["accessToken"], {})
        for token in tokens:
            method = await self.ok(
                "POST", f"/v1/customers/{made['id']}/paymentMethods", {"token": token}, token=shopper.token
            )
            shopper.methods[token] = method["id"]
        return shopper

    async def product(self, stock: int, units: int = 10) -> str:
        """The id of a new product with this much stock."""
        price = {"currencyCode": "EUR", "units": str(units)}
        body = {"sku": f"SKU-{uuid4()}", "name": "A thing", "price": price, "initialStock": stock}
        made = await self.ok("POST", "/v1/products", body, token=self.staff_token, key=new_key())
        product_id: str = made["id"]
        return product_id

    async def stock(self, product_id: str) -> Json:
        """The stock of a product."""
        return await self.ok("GET", f"/v1/products/{product_id}/stock", token=self.staff_token)

    async def stock_is(self, product_id: str, *, on_hand: int) -> None:
        """Wait until so much is there and nothing is held."""

        async def so() -> bool:
            stock = await self.stock(product_id)
            return (stock["onHand"], stock["reserved"]) == (on_hand, 0)

        await eventually(so)

    async def audit(self) -> list[str]:
        """The violations of the invariants, once the mesh is ready and at rest."""

        async def ready() -> bool:
            return State(self.state).running().ready

        await eventually(ready)
        mesh = ops.running_mesh.RunningMesh.find(self.state, {})
        async with Activity.of(mesh) as activity:
            assert await activity.wait() == []
        return (await Audit(mesh, margin=timedelta()).run()).violations

    async def sql(self, role: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """What the database of a service holds."""
        async with self.database(role) as connection:
            return await connection.fetch(query, *arguments)

    @asynccontextmanager
    async def database(self, role: str) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the database of a service."""
        state = State(self.state)
        servers = Servers.under(state.folder, state.running().sockets, Supervisor(logs=state.logs), given=os.environ)
        connection = await asyncpg.connect(servers.postgres.url_for(role))
        try:
            yield connection
        finally:
            await connection.close()


@dataclass(frozen=True, slots=True)
class Shopper:
    """A customer with an access token."""

    mesh: RunningMesh
    id: str
    token: str
    methods: dict[str, str]

    def order_body(self, wanted: Mapping[str, int], method: str = "") -> Json:
        """The body of an order."""
        body: Json = {"items": [{"productId": each, "quantity": quantity} for each, quantity in wanted.items()]}
        if method:
            body["paymentMethodId"] = self.methods[method]
        return body

    async def order(self, wanted: Mapping[str, int], *, method: str = "", key: str = "") -> httpx.Response:
        """Ask for an order once."""
        return await self.mesh.call(
            "POST", "/v1/orders", self.order_body(wanted, method), token=self.token, key=key or new_key()
        )

    async def decided(self, order_id: str) -> Json:
        """An order once it has come to rest, however often something is in the way."""

        async def at_rest() -> Json | None:
            try:
                answer = await self.mesh.call("GET", f"/v1/orders/{order_id}", token=self.token)
            except httpx.TransportError:
                return None
            if answer.status_code in BUSY:
                return None
            assert answer.status_code == 200, answer.text
            order: Json = answer.json()
            return order if order["status"] in FINAL else None

        return await eventually(at_rest, within=90)


@asynccontextmanager
async def running_mesh(
    state: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[RunningMesh]:
    """`mesh up` in `state` on a free port; `mesh down` at the end. Shoppers all come from one address, at any rate."""
    environment = {"MESH_SIGN_IN_RATE_PER_ADDRESS": "0", **(environment or {})}
    (port,) = free_ports(1)
    await mesh_command("up", "--detach", "--edge-port", str(port), *arguments, state=state, environment=environment)
    try:
        edge = f"http://127.0.0.1:{port}"
        key = pki.make_signing_key(State(state).pki)
        token = pki.access_token(key.private, role="staff", subject=pki.LOCAL_STAFF, lifetime=timedelta(hours=12))
        limits = httpx.Limits(max_connections=300, max_keepalive_connections=300)
        async with httpx.AsyncClient(base_url=edge, limits=limits, timeout=30) as http:
            yield RunningMesh(state, edge, http, token)
    finally:
        await mesh_command("down", state=state)


def reason_of(answer: httpx.Response) -> str:
    """The reason of an error answer; empty when it has none."""
    details: Sequence[Json] = answer.json().get("details", [])
    return next((str(each["reason"]) for each in details if each["@type"].endswith("ErrorInfo")), "")
