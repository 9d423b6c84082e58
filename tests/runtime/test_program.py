"""A service as a program: the output of `--check` and `--help`, and the errors of invalid files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from customer_svc.app import Settings as CustomerSettings
from mesh.settings import ServiceSettings, describe
from order_svc.app import Settings as OrderSettings
from payment_svc.app import Settings as PaymentSettings
from product_svc.app import Settings as ProductSettings
from tests.processes import WITHOUT_SETTINGS, environment, spawned
from tests.services import TEST_TIMEOUT_S, Keys

SETTINGS: dict[str, type[ServiceSettings]] = {
    "customer": CustomerSettings,
    "order": OrderSettings,
    "payment": PaymentSettings,
    "product": ProductSettings,
}
every_service = pytest.mark.parametrize("service", SETTINGS)


async def ended(service: str, variables: dict[str, str], *arguments: str) -> tuple[int | None, str, str]:
    """The exit code, the output and the error output of a service."""
    async with spawned(service, variables, *arguments) as process, asyncio.timeout(TEST_TIMEOUT_S):
        out, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
    return process.returncode, out.decode(), errors.decode()


@every_service
async def test_check_of_valid_settings_prints_one_line_without_a_network(keys: Keys, service: str) -> None:
    connections = 0

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        address = f"127.0.0.1:{port}"
        variables = environment(
            service, None, keys, port,
            MESH_HEALTH_LISTEN=address, MESH_DATABASE_URL=f"postgresql://{address}/d", MESH_NATS_URL=f"nats://{address}",
            MESH_REDIS_URL=f"redis://{address}", MESH_CUSTOMER_TARGET=address, MESH_ORDER_TARGET=address,
            MESH_PAYMENT_TARGET=address, MESH_PRODUCT_TARGET=address,
        )  # fmt: skip
        code, out, errors = await ended(service, variables, "--check")
    assert (code, errors) == (0, "")
    assert out == f"{service}: the settings are valid, and the service can be built\n"
    assert connections == 0


@every_service
async def test_check_names_every_fault_of_the_settings_and_exits_with_1(keys: Keys, service: str) -> None:
    variables = environment(service, None, keys, MESH_LOG_LEVEL="loud", MESH_MAX_IN_FLIGHT="0", MESH_JWKS="/no/file")
    del variables["MESH_DATABASE_URL"]
    code, out, errors = await ended(service, variables, "--check")
    assert (code, out) == (1, "")
    first, *faults = errors.splitlines()
    assert first == f"{service}: the settings are not valid"
    assert {fault.partition(":")[0] for fault in faults} == {
        "MESH_LOG_LEVEL", "MESH_MAX_IN_FLIGHT", "MESH_JWKS", "MESH_DATABASE_URL",
    }  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), [(["--check"], 1), ([], 2)], ids=["check", "start"])
async def test_files_that_hold_no_keys_are_all_named(
    keys: Keys, folder: Path, arguments: list[str], expected: int
) -> None:
    garbage = folder / "garbage"
    garbage.write_text("garbage")
    variables = environment("order", None, keys, MESH_TLS_CA=str(garbage), MESH_JWKS=str(garbage))
    variables["MESH_TLS_KEY"] = str(keys.peers["product"].key)
    code, _, errors = await ended("order", variables, *arguments)
    assert code == expected
    assert errors.splitlines() == [
        "order: the settings are not valid",
        "MESH_TLS_CA: holds no certificate, PEM",
        "MESH_TLS_KEY: is not the key of the certificate in MESH_TLS_CERT",
        "MESH_JWKS: holds no JSON Web Key Set",
    ]


async def test_check_names_what_keeps_a_service_from_being_built(keys: Keys) -> None:
    variables = environment("customer", None, keys, MESH_SIGNING_KEY=str(keys.signing.jwks))
    code, out, errors = await ended("customer", variables, "--check")
    assert (code, out) == (1, "")
    assert errors.startswith("customer: it cannot be built: ")


@every_service
async def test_help_lists_every_setting_without_needing_one(service: str) -> None:
    code, out, errors = await ended(service, WITHOUT_SETTINGS, "--help")
    assert (code, errors) == (0, "")
    assert f"Run the {service} service" in out
    assert "--check" in out
    for name in SETTINGS[service].model_fields:
        assert f"  MESH_{name.upper()} (" in out


@every_service
def test_every_setting_says_what_it_means(service: str) -> None:
    missing = [name for name, field in SETTINGS[service].model_fields.items() if not field.description]
    assert missing == []


def test_description_of_a_setting_has_its_variable_default_and_meaning() -> None:
    class Some(ServiceSettings):
        """Settings of a test."""

        answer: int = 42
        """The answer."""
        question: str
        """The question."""

    described = describe(Some)
    assert "  MESH_ANSWER (default: 42)\n      The answer." in described
    assert "  MESH_QUESTION (required)\n      The question." in described
    assert "  MESH_NATS_URL (default: nats://127.0.0.1:4222)\n" in described
    assert "  MESH_REFLECTION (default: true)\n" in described


async def test_option_that_is_unknown_is_refused_with_code_2() -> None:
    code, _, errors = await ended("order", WITHOUT_SETTINGS, "--chek")
    assert code == 2
    assert "unrecognized arguments: --chek" in errors
