"""The walk: what a customer and a member of staff do, as JSON at the edge, from signing up to signing out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

Json = dict[str, Any]

_REQUEST_S = 10.0
"""The longest time that the client waits for a response."""
_PAUSE_S = 0.05


class WalkFailed(Exception):
    """A step of the walk had another result than it must have."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One walk, with a customer and a product of its own."""

    edge: str
    """Address and port."""
    client: str
    """The address that the client connects from."""
    staff: str
    """An access token."""
    timeout_s: float
    """How long an event may take to arrive."""

    async def __call__(self) -> None:
        """Go. Raises WalkFailed at the first step that fails."""
        transport = httpx.AsyncHTTPTransport(local_address=self.client)
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://{self.edge}", timeout=_REQUEST_S, trust_env=False
        ) as http:
            await self._go(_Steps(http, self.timeout_s))

    async def _go(self, steps: _Steps) -> None:
        login = {"email": f"{uuid4()}@example.com", "password": "correct horse"}
        customer = await steps.ok("POST", "/v1/customers", body={"name": "Ada Lovelace", **login})
        session = await steps.ok("POST", "/v1/sessions", body=login)
        token, me = session["accessToken"], f"/v1/customers/{customer['id']}"
        await steps.ok("POST", f"{me}/paymentMethods", token=token, body={"token": "tok_visa"})
        price = {"currencyCode": "EUR", "units": "9"}
        sold = {"sku": f"TEA-{uuid4()}", "name": "Tea", "price": price, "initialStock": 10}
        product = f"/v1/products/{(await steps.ok('POST', '/v1/products', token=self.staff, body=sold))['id']}"

        items = [{"productId": product.rpartition("/")[2], "quantity": 2}]
        order = f"/v1/orders/{(await steps.ok('POST', '/v1/orders', token=token, body={'items': items}))['id']}"
        await steps.until(order, token, {"status": "ORDER_STATUS_CONFIRMED"})
        await steps.until(f"{product}/stock", self.staff, {"onHand": 8, "reserved": 0})
        await steps.ok("GET", f"{order}/payment", token=token)
        timeline = await steps.ok("GET", f"{order}/timeline", token=token)
        if (parts := {event["service"] for event in timeline["events"]}) != {"order", "payment", "product"}:
            raise WalkFailed(f"the timeline has events of {sorted(parts)}")
        await steps.ok("GET", f"{me}:export", token=token)

        await steps.ok("POST", "/v1/sessions:signOut", body={"refreshToken": session["refreshToken"]})
        for path in (me, product, order, f"{order}/payment"):
            await steps.until_refused(path, token)


class _Steps:
    """Requests whose responses must be as they are said to be."""

    def __init__(self, http: httpx.AsyncClient, timeout_s: float) -> None:
        self._http = http
        self._timeout_s = timeout_s

    async def ok(self, method: str, path: str, *, token: str = "", body: Json | None = None) -> Json:
        """The response, which must be 200."""
        response = await self._send(method, path, token, body)
        if response.status_code != httpx.codes.OK:
            raise WalkFailed(f"{method} {path}: {response.status_code} {_message(response)}")
        found: Json = response.json()
        return found

    async def until(self, path: str, token: str, fields: Json) -> None:
        """Read until the response has these fields."""

        async def read() -> bool:
            return fields.items() <= (await self.ok("GET", path, token=token)).items()

        await self._in_time(read, f"GET {path} does not show {fields}")

    async def until_refused(self, path: str, token: str) -> None:
        """Read until the token is refused."""

        async def read() -> bool:
            return (await self._send("GET", path, token)).status_code == httpx.codes.UNAUTHORIZED

        await self._in_time(read, f"GET {path} accepts the revoked token")

    async def _in_time(self, is_so: Callable[[], Awaitable[bool]], complaint: str) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while not await is_so():  # noqa: ASYNC110 - it is so in another process
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise WalkFailed(f"{complaint} within {self._timeout_s:.1f} s") from None

    async def _send(self, method: str, path: str, token: str, body: Json | None = None) -> httpx.Response:
        headers = {"idempotency-key": str(uuid4())} if body is not None else {}
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            return await self._http.request(method, path, headers=headers, json=body)
        except httpx.TransportError as error:
            raise WalkFailed(f"{method} {path}: {error!r}") from error


def _message(response: httpx.Response) -> str:
    """What the response says about its error."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
