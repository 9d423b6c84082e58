"""`mesh keys rotate` while customers call through the edge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from joserfc import jws

from mesh import tasks
from tests.running import RunningMesh, mesh_command
from tests.services import eventually

PATHS = ("/v1/customers/me", "/v1/orders", f"/v1/payments/{uuid4()}", "/v1/products?pageSize=1")
"""A request to each service."""
CUSTOMERS = 4


def key_of(token: str) -> str:
    return str(jws.extract_compact(token.encode()).headers()["kid"])


class Visitor:
    """A customer who calls every service without a pause: with the token of their sign-in, and with a new one."""

    def __init__(self, mesh: RunningMesh, session: dict[str, str]) -> None:
        self._mesh = mesh
        self._session = session
        self._first = session["accessToken"]
        self.refused: list[str] = []
        """The answers by which they were signed out."""
        self.rounds: dict[str, int] = {}
        """The rounds of calls, by the key of the newer token."""

    @classmethod
    async def signed_in(cls, mesh: RunningMesh) -> Visitor:
        person = {"email": f"{uuid4()}@example.com", "password": "correct horse"}
        await mesh.ok("POST", "/v1/customers", {**person, "name": "Ada"})
        return cls(mesh, await mesh.ok("POST", "/v1/sessions", person))

    async def call(self) -> None:
        while True:
            refreshed = await self._mesh.call(
                "POST", "/v1/sessions:refresh", {"refreshToken": self._session["refreshToken"]}
            )
            if refreshed.status_code == 200:
                self._session = refreshed.json()
            elif refreshed.status_code == 401:
                self.refused.append(refreshed.text)
            token = self._session["accessToken"]
            for path in PATHS:
                for each in (self._first, token):
                    answer = await self._mesh.call("GET", path, token=each)
                    if answer.status_code == 401:
                        self.refused.append(f"{path}: {answer.text}")
            self.rounds[key_of(token)] = self.rounds.get(key_of(token), 0) + 1


@asynccontextmanager
async def calling(visitors: list[Visitor]) -> AsyncIterator[None]:
    calls = [asyncio.create_task(each.call()) for each in visitors]
    try:
        yield
        assert not any(each.done() for each in calls), "a visitor has failed"
    finally:
        await tasks.end(*calls)


async def test_a_new_signing_key_under_load_signs_nobody_out(mesh: RunningMesh) -> None:
    visitors = [await Visitor.signed_in(mesh) for _ in range(CUSTOMERS)]
    old = key_of(mesh.staff_token)

    async def keys() -> list[str]:
        return [key["kid"] for key in (await mesh.ok("GET", "/.well-known/jwks.json"))["keys"]]

    async with calling(visitors):

        async def each_calls_with(key: str) -> None:
            async def so() -> bool:
                return all(each.rounds.get(key, 0) >= 5 for each in visitors)

            await eventually(so, within=60)

        await each_calls_with(old)
        await mesh_command("keys", "rotate", state=mesh.state)
        new = key_of((await mesh_command("token", "--role", "staff", state=mesh.state)).strip())
        assert new != old
        await each_calls_with(new)
        # And once more: now three keys are good.
        await mesh_command("keys", "rotate", state=mesh.state)
        newest = key_of((await mesh_command("token", "--role", "staff", state=mesh.state)).strip())
        await each_calls_with(newest)

        async def published() -> bool:
            return (await keys())[:3] == [newest, old, new]

        await eventually(published)
    assert [each.refused for each in visitors] == [[]] * CUSTOMERS
    staff = (await mesh_command("token", "--role", "staff", state=mesh.state)).strip()
    for token in (mesh.staff_token, staff):
        await mesh.ok("GET", "/v1/orders?pageSize=1", token=token)
