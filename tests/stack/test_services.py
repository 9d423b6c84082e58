"""What the services are run with on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack import pki
from stack.servers import Servers
from stack.services import NAMES, Services
from stack.supervisor import Supervisor


@pytest.mark.parametrize(
    ("workers", "given", "cores"), [(1, {}, "1.0"), (2, {}, "0.5"), (2, {"MESH_PASSWORD_CORES": "1.5"}, "1.5")]
)
def test_all_customer_workers_together_hash_passwords_on_one_core(
    tmp_path: Path, workers: int, given: dict[str, str], cores: str
) -> None:
    services = Services(
        ports={name: range(1, 1 + workers) for name in NAMES},
        servers=Servers.under(tmp_path, tmp_path, Supervisor(logs=tmp_path)),
        credentials=pki.issue(tmp_path / "tls", (*NAMES, "operator")),
        signing_key=pki.make_signing_key(tmp_path / "jwt"),
        page_secret="",
        environment=given,
    )
    programs = services.programs("customer")
    assert [program.environment["MESH_PASSWORD_CORES"] for program in programs] == [cores] * workers
