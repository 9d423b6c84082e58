"""What the services are run with on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from stack import pki
from stack.servers import Servers
from stack.services import NAMES, Services
from stack.supervisor import Supervisor


def environments(folder: Path, workers: int, given: Mapping[str, str]) -> list[Mapping[str, str]]:
    """What each worker of the customer service is started with, when a person has set this."""
    services = Services(
        ports={name: range(1, 1 + workers) for name in NAMES},
        servers=Servers.under(folder, folder, Supervisor(logs=folder)),
        credentials=pki.issue(folder / "tls", (*NAMES, "operator")),
        signing_key=pki.make_signing_key(folder / "jwt"),
        page_secret="",
        webhook_secret="",
        edge_url="",
        environment=given,
    )
    return [program.environment for program in services.programs("customer")]


@pytest.mark.parametrize(
    ("workers", "given", "cores"), [(1, {}, "1.0"), (2, {}, "0.5"), (2, {"MESH_PASSWORD_CORES": "1.5"}, "1.5")]
)
def test_all_customer_workers_together_hash_passwords_on_one_core(
    tmp_path: Path, workers: int, given: dict[str, str], cores: str
) -> None:
    shares = [environment["MESH_PASSWORD_CORES"] for environment in environments(tmp_path, workers, given)]
    assert shares == [cores] * workers


@pytest.mark.parametrize(
    ("edge", "given", "rate"), [("", None, None), ("200", None, None), ("0", None, "0"), ("0", "5", "5")]
)
def test_an_edge_without_limits_leaves_signing_in_without_a_rate_unless_one_is_set(
    tmp_path: Path, edge: str, given: str | None, rate: str | None
) -> None:
    settings = {"MESH_EDGE_RATE_PER_CLIENT": edge}
    if given is not None:
        settings["MESH_SIGN_IN_RATE_PER_ADDRESS"] = given
    [environment] = environments(tmp_path, 1, settings)
    assert environment.get("MESH_SIGN_IN_RATE_PER_ADDRESS") == rate
