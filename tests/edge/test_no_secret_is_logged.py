"""Secrets and personal data that pass through a mesh, and all that its processes write down about it."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import grpc
import pytest

from tests.running import RunningMesh, mesh_command, reason_of, running_mesh
from tests.services import eventually, new_key, unknown_token

LOGS = {"mesh", "postgres", "nats", "redis", "customer", "product", "payment", "order", "edge", "audit"}
"""The processes, and the supervisor itself."""
CARD = "4242424242424242"
TRACE = f"00-{uuid4().hex}-00f067aa0ba902b7-01"


def written(text: str) -> set[str]:
    """The ways in which a text could be written into a log, in small letters."""
    raw = text.encode()
    # Of base64, what does not depend on the bytes around it.
    encoded = {encode(raw)[: len(raw) // 3 * 4].decode() for encode in (b64encode, urlsafe_b64encode)}
    return {form.lower() for form in {text, quote(text, safe=""), json.dumps(text)[1:-1], repr(raw)[2:-1]} | encoded}


def found(texts: dict[str, str], secrets: dict[str, str]) -> list[str]:
    """Which of the secrets are in which of the texts."""
    return [
        f"{what} in {where}: {line.strip()[:300]}"
        for where, text in texts.items()
        for what, secret in secrets.items()
        for form in written(secret)
        for line in text.lower().splitlines()
        if form in line
    ]


def logs_of(state: Path) -> dict[str, str]:
    """All that the processes have logged, by the file's name without its endings."""
    texts: dict[str, str] = {}
    for path in sorted((state / "logs").iterdir()):
        name = path.name.partition(".")[0]
        texts[name] = texts.get(name, "") + path.read_text(errors="replace")
    return texts


def command_lines(member: int) -> Iterator[str]:
    """What everybody on the machine sees of the processes of a mesh, of which `member` is one."""
    parents, lines = dict[int, int](), dict[int, str]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(process.name)] = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
    supervisor = parents[member]
    for pid, line in lines.items():
        ancestor = pid
        while ancestor not in (supervisor, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor == supervisor:
            yield line


async def sign_up_and_in(mesh: RunningMesh, given: dict[str, str]) -> dict[str, str]:
    """Sign up, be refused in several ways, sign in; the tokens and ids that this gives."""
    person = {name: given[name] for name in ("email", "name", "phone", "password")}
    traced = {"traceparent": TRACE}
    answer = await mesh.http.post(
        "/v1/customers", json=person, headers={**traced, "idempotency-key": given["idempotency key"]}
    )
    assert answer.status_code == 200
    again = await mesh.http.post("/v1/customers", json={**person, "email": given["email"].upper()}, headers=traced)
    assert reason_of(again) == "EMAIL_TAKEN"
    reused = await mesh.call("POST", "/v1/customers", {**person, "name": "Bob"}, key=given["idempotency key"])
    assert reason_of(reused) == "IDEMPOTENCY_KEY_REUSED"
    bad_key = await mesh.call("POST", "/v1/customers", person, key=f"{given['idempotency key']} {given['email']}")
    assert reason_of(bad_key) == "IDEMPOTENCY_KEY_INVALID"
    for field, value in (("name", f"{given['name']}\0"), ("name", CARD), ("phone", f"{given['phone']}x")):
        assert (await mesh.call("POST", "/v1/customers", {**person, field: value})).status_code == 400
    malformed = await mesh.http.post("/v1/customers", content=json.dumps(person)[:-1])
    assert reason_of(malformed) == "REQUEST_MALFORMED"
    too_large = await mesh.call("POST", "/v1/customers", {**person, "name": given["name"] * 100_000})
    assert too_large.status_code == 413
    wrong = await mesh.call("POST", "/v1/sessions", {"email": person["email"], "password": given["wrong password"]})
    assert reason_of(wrong) == "CREDENTIALS_INVALID"
    session = await mesh.ok("POST", "/v1/sessions", {"email": person["email"], "password": person["password"]})
    return {
        "access token": session["accessToken"],
        "refresh token": session["refreshToken"],
        "secret of the refresh token": session["refreshToken"].partition(".")[2],
    }


async def sign_out(mesh: RunningMesh, tokens: dict[str, str]) -> None:
    """Refresh the session and end it, and then use its access token."""
    for path in ("/v1/sessions:refresh", "/v1/sessions:signOut"):
        await mesh.ok("POST", path, {"refreshToken": tokens["refresh token"]})

    async def refused() -> bool:
        answer = await mesh.call("GET", "/v1/customers/me", token=tokens["access token"])
        return answer.status_code == 401 and reason_of(answer) == "TOKEN_INVALID"

    await eventually(refused)


async def ask_in_wrong_ways(mesh: RunningMesh, given: dict[str, str], tokens: dict[str, str]) -> None:
    """Put secrets where they do not belong."""
    email, token = given["email"], tokens["access token"]
    for path in (
        f"/v1/customers?email={quote(email)}",
        f"/v1/products?query={quote(email)}&pageToken={given['idempotency key']}",
        f"/v1/orders?access_token={token}",
        f"/nowhere?email={quote(email)}",
    ):
        await mesh.call("GET", path, token=mesh.staff_token)
        await mesh.call("GET", path, token=f"{token}x")
        await mesh.call("GET", path, token=given["wrong password"])
    await mesh.http.post(
        "/v1/paymentWebhooks/sandbox", content=email, headers={"webhook-signature": given["signature"]}
    )
    methods = "/v1/customers/me/paymentMethods"
    unknown = await mesh.call("POST", methods, {"token": given["provider token"]}, token=token)
    assert reason_of(unknown) == "PROVIDER_TOKEN_UNKNOWN"
    assert (await mesh.call("POST", methods, {"token": CARD}, token=token)).status_code == 400
    metadata = (("authorization", f"Bearer {token}"), ("idempotency-key", given["idempotency key"]))
    async with grpc.aio.insecure_channel(mesh.edge.removeprefix("http://")) as channel:
        for method in ("CreateCustomer", "GetCustomer", "NoSuchMethod"):
            call: Any = channel.unary_unary(f"/commerce.customer.v1.CustomerService/{method}")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(f"\xff{email}".encode(), metadata=metadata, timeout=20)


async def buy(mesh: RunningMesh, given: dict[str, str], token: str) -> None:
    """Order with tokens of the provider that are charged, declined, and never answered; cancel with a reason."""
    product = await mesh.product(100)
    methods = [
        await mesh.ok("POST", "/v1/customers/me/paymentMethods", {"token": each}, token=token)
        for each in ("tok_visa", "tok_declined", "tok_flaky", "tok_timeout")
    ]
    for method in methods:
        body = {"items": [{"productId": product, "quantity": 1}], "paymentMethodId": method["id"]}
        order = await mesh.ok("POST", "/v1/orders", body, token=token, key=new_key())
        cancel = {"reason": given["reason"]}
        await mesh.call("POST", f"/v1/orders/{order['id']}:cancel", cancel, token=token, key=new_key())
    too_many = {"items": [{"productId": product, "quantity": 1000}]}
    assert reason_of(await mesh.call("POST", "/v1/orders", too_many, token=token)) == "STOCK_INSUFFICIENT"


async def break_things(mesh: RunningMesh, given: dict[str, str], token: str) -> None:
    """Lose each server while it is asked for something, and a service while NATS says nothing."""

    async def use() -> bool:
        """Whether all works again."""
        login = {"email": given["email"], "password": given["password"]}
        answers = [
            await mesh.call("POST", "/v1/sessions", login),
            await mesh.call("POST", "/v1/customers", {**login, "name": given["name"]}),
            await mesh.call("GET", "/v1/customers/me/paymentMethods", token=token),
        ]
        return [answer.status_code for answer in answers] == [200, 409, 200]

    for server in ("postgres", "redis", "nats"):
        os.kill((await mesh.processes())[server]["pid"], SIGKILL)
        await use()
        await eventually(use)
    silent = (await mesh.processes())["nats"]["pid"]
    os.kill(silent, SIGSTOP)
    try:
        await mesh.kill("customer")
        await eventually(use)
    finally:
        os.kill(silent, SIGCONT)


async def leave_controls(mesh: RunningMesh, control: str) -> None:
    """Have servers log what a client says."""
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await mesh.sql("customer_svc", f"SELECT '{control}'::int")
    host, port = (await mesh.processes())["nats"]["address"].removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"user":"%b","pass":"guess"}\r\nPING\r\n' % control.encode())
    assert b"Authorization Violation" in await reader.read()
    writer.close()
    await writer.wait_closed()


@pytest.mark.timeout(240)
async def test_no_secret_and_nothing_about_a_person_is_logged_by_any_process(tmp_path: Path) -> None:
    given = {
        "email": f"Ada.{uuid4()}@example.com",
        "name": f"Ada {uuid4()}",
        "phone": f"+49{uuid4().int % 10**12:012}",
        "password": f"correct {uuid4()}",
        "wrong password": f"wrong {uuid4()}",
        "provider token": unknown_token(),
        "signature": f"v1,{uuid4()}",
        "idempotency key": f"key-{uuid4()}",
        "reason": f"I moved to {uuid4()}",
    }
    control = f"control-{uuid4().hex}"
    async with running_mesh(tmp_path, environment={"MESH_LOG_LEVEL": "debug"}) as mesh:
        tokens = await sign_up_and_in(mesh, given)
        await ask_in_wrong_ways(mesh, given, tokens)
        await buy(mesh, given, tokens["access token"])
        await break_things(mesh, given, tokens["access token"])
        await sign_out(mesh, tokens)
        await leave_controls(mesh, control)
        seen = {
            "the list of processes": "\n".join(command_lines((await mesh.processes())["edge"]["pid"])),
            "mesh status": await mesh_command("status", state=tmp_path),
            "mesh status --json": await mesh_command("status", "--json", state=tmp_path),
        }
        secrets = {
            **given,
            **tokens,
            **{f"password of {name}": value for name, value in json.loads(_passwords(tmp_path)).items()},
            "token of staff": mesh.staff_token,
            "signature of the token of staff": mesh.staff_token.rpartition(".")[2],
            "card number": CARD,
            "token of the sandbox": "tok_",
        }
    texts = logs_of(tmp_path)
    assert texts.keys() == LOGS
    assert all(texts.values())
    # What is there is found: in the logs of those who log what a client says.
    assert {hit.split()[2] for hit in found(texts, {"trace": TRACE.split("-")[1]})} >= {"customer:", "edge:"}
    assert {hit.split()[2] for hit in found(texts, {"control": control})} == {"postgres:", "nats:"}
    assert found(seen, {"folder": str(tmp_path)})
    assert {
        name for name in ("customer_svc", "nats-server", "envoy") if name not in seen["the list of processes"]
    } == set()
    assert found(texts | seen, secrets) == []


def _passwords(state: Path) -> str:
    return (state / "secrets" / "passwords.json").read_text()
