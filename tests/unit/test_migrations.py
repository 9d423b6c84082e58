"""The migrations of each service are one chain, numbered without gaps."""

from __future__ import annotations

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.processes import ROOT


@pytest.mark.parametrize("service", ["customer", "order", "payment", "product"])
def test_migrations_of_a_service_are_one_chain(service: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / f"{service}_svc" / "migrations"))
    files = sorted((ROOT / f"{service}_svc" / "migrations" / "versions").glob("[0-9]*.py"))
    chain = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    assert [each.revision for each in chain] == [path.name[:4] for path in files]
    assert [each.down_revision for each in chain] == [None, *(each.revision for each in chain[:-1])]
