"""The edge as a program: it runs, drains and exits as an orchestrator expects, and takes renewed certificates."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message

from commerce.order.v1 import order_pb2
from gateway.config import EdgeConfig
from gateway.settings import EdgeProgramSettings
from stack import pki
from stack.ports import free_ports
from tests.gateway.conftest import SUBJECT
from tests.gateway.upstreams import Context, Upstream
from tests.processes import ROOT, WITHOUT_SETTINGS
from tests.services import eventually


@dataclass(frozen=True)
class Program:
    """`python -m gateway`, while it runs."""

    process: asyncio.subprocess.Process
    url: str
    admin: Path

    async def ready(self) -> int | None:
        """The status of /readyz; nothing while no connection is taken."""
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{self.url}/readyz")).status_code
        except httpx.TransportError:
            return None

    async def answers(self, status: int | None) -> None:
        async def so() -> bool:
            return await self.ready() == status

        await eventually(so)


@pytest.fixture
def variables(config: EdgeConfig, short_folder: Path) -> dict[str, str]:
    """The settings of an edge in front of the four services."""
    [port] = free_ports(1)
    targets = {f"MESH_{name.upper()}_TARGET": f"127.0.0.1:{each[0].port}" for name, each in config.upstreams.items()}
    return {
        **WITHOUT_SETTINGS,
        **targets,
        "MESH_EDGE_PORT": str(port),
        "MESH_EDGE_FOLDER": str(short_folder),
        "MESH_TLS_CA": str(config.tls.ca),
        "MESH_TLS_CERT": str(config.tls.cert),
        "MESH_TLS_KEY": str(config.tls.key),
        "MESH_JWKS": str(config.jwks),
    }


def spawn(variables: dict[str, str], *arguments: str, **more: Any) -> Any:
    return asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments), cwd=ROOT, env=variables, **more
    )


@asynccontextmanager
async def running(variables: dict[str, str]) -> AsyncIterator[Program]:
    process = await spawn(variables)
    program = Program(
        process, f"http://127.0.0.1:{variables['MESH_EDGE_PORT']}", Path(variables["MESH_EDGE_FOLDER"]) / "admin.sock"
    )
    try:
        await program.answers(200)
        yield program
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            await process.wait()


async def ended(variables: dict[str, str], *arguments: str) -> tuple[int | None, str, str]:
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await spawn(variables, *arguments, **pipes)
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


async def test_sigterm_fails_readiness_and_a_second_one_drains_without_further_notice(
    variables: dict[str, str], token: str, upstreams: dict[str, Upstream]
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: Message, _context: Context) -> Message:
        begun.set()
        await go_on.wait()
        return order_pb2.CreateOrderResponse()

    upstreams["order"].answers["CreateOrder"] = slow
    headers = {"authorization": f"Bearer {token}"}
    variables |= {"MESH_EDGE_DRAIN_NOTICE_SECONDS": "3600", "MESH_EDGE_DRAIN_SECONDS": "60"}
    async with running(variables) as program, httpx.AsyncClient(base_url=program.url, timeout=60) as client:
        call = asyncio.create_task(client.post("/v1/orders", json={}, headers=headers))
        await begun.wait()
        program.process.send_signal(SIGTERM)
        await program.answers(503)
        program.process.send_signal(SIGTERM)
        await program.answers(None)
        assert program.process.returncode is None
        go_on.set()
        assert (await call).status_code == 200
        async with asyncio.timeout(60):
            assert await program.process.wait() == 0


async def test_program_ends_with_1_when_envoy_ends_by_itself(
    variables: dict[str, str], upstreams: dict[str, Upstream]
) -> None:
    assert upstreams
    async with running(variables) as program:
        transport = httpx.AsyncHTTPTransport(uds=str(program.admin))
        async with httpx.AsyncClient(transport=transport) as admin:
            await admin.post("http://envoy/quitquitquit")
        async with asyncio.timeout(60):
            assert await program.process.wait() == 1


async def test_renewed_certificate_is_read_without_a_restart(
    variables: dict[str, str],
    upstreams: dict[str, Upstream],
    tmp_path: Path,
    credentials: Mapping[str, pki.Credentials],
) -> None:
    assert upstreams
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    names = {"MESH_TLS_CERT": "tls.crt", "MESH_TLS_KEY": "tls.key", "MESH_TLS_CA": "ca.crt"}
    for variable, name in names.items():
        shutil.copy(variables[variable], mounted / name)
        variables[variable] = str(mounted / name)

    async with running(variables) as program:
        transport = httpx.AsyncHTTPTransport(uds=str(program.admin))
        async with httpx.AsyncClient(transport=transport) as admin:

            async def serials() -> set[str]:
                certificates = (await admin.get("http://envoy/certs")).json()["certificates"]
                return {chain["serial_number"] for each in certificates for chain in each["cert_chain"]}

            [before] = await serials()
            renewed = reissued(credentials["gateway"], tmp_path / "pki")
            for source, name in ((renewed.cert, "tls.crt"), (renewed.key, "tls.key")):
                shutil.copy(source, tmp_path / name)
                (tmp_path / name).replace(mounted / name)

            async def has_changed() -> bool:
                return before not in await serials()

            await eventually(has_changed)
        assert await program.ready() == 200


async def test_a_new_signing_key_is_accepted_beside_the_old_one_without_a_restart(
    variables: dict[str, str], token: str, signing_key: pki.SigningKey, upstreams: dict[str, Upstream], tmp_path: Path
) -> None:
    del upstreams  # they answer
    shutil.copytree(signing_key.private.parent, tmp_path / "keys")
    keys = pki.make_signing_key(tmp_path / "keys")
    variables["MESH_JWKS"] = str(keys.jwks)
    async with running(variables) as program, httpx.AsyncClient(base_url=program.url) as client:

        async def status_with(token: str) -> int:
            return (await client.get("/v1/customers", headers={"authorization": f"Bearer {token}"})).status_code

        new = pki.access_token(pki.make_next_signing_key(tmp_path / "keys"), role="staff", subject=SUBJECT)

        async def is_accepted() -> bool:
            assert await status_with(token) == 200
            return await status_with(new) == 200

        async def are_published() -> bool:
            return len((await client.get("/.well-known/jwks.json")).json()["keys"]) == 2

        await eventually(is_accepted)
        await eventually(are_published)


def reissued(old: pki.Credentials, folder: Path) -> pki.Credentials:
    """Another certificate of the edge, by the same authority."""
    shutil.copytree(old.cert.parent, folder)
    (folder / old.cert.name).unlink()
    return pki.issue(folder, ["gateway"])["gateway"]


async def test_check_renders_the_configuration_without_a_network(variables: dict[str, str], short_folder: Path) -> None:
    code, out, errors = await ended(variables, "--check")
    assert (code, errors) == (0, "")
    assert out == f"edge: the settings are valid, and the configuration is in {short_folder / 'envoy.yaml'}\n"
    assert (short_folder / "envoy.yaml").exists()


@pytest.mark.parametrize(("arguments", "expected"), [(["--check"], 1), ([], 2)], ids=["check", "start"])
async def test_settings_that_are_not_valid_are_all_named(
    variables: dict[str, str], arguments: list[str], expected: int
) -> None:
    del variables["MESH_ORDER_TARGET"]
    variables |= {"MESH_CUSTOMER_TARGET": "customer-svc", "MESH_EDGE_PORT": "0", "MESH_JWKS": "/no/file"}
    code, out, errors = await ended(variables, *arguments)
    assert (code, out) == (expected, "")
    first, *faults = errors.splitlines()
    assert first == "edge: the settings are not valid"
    names = {"MESH_ORDER_TARGET", "MESH_CUSTOMER_TARGET", "MESH_EDGE_PORT", "MESH_JWKS"}
    assert {fault.partition(":")[0] for fault in faults} == names


async def test_help_lists_every_setting() -> None:
    code, out, _ = await ended(WITHOUT_SETTINGS, "--help")
    assert code == 0
    for name in EdgeProgramSettings.model_fields:
        assert f"  MESH_{name.upper()} (" in out
