"""Every statement of a service has a name, which is sent to PostgreSQL."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict

import pytest
import sqlalchemy as sa

import mesh
from mesh.db.database import BulkInsert, Statement, names, together
from mesh.db.rows import Versions

ORDERS = sa.table("orders", sa.column("id"))
ITEMS = sa.table("items", sa.column("id"))


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (Statement(sa.select(ORDERS)), "read orders"),
        (Statement(sa.select(ORDERS).with_for_update()), "lock orders"),
        (Statement(sa.select(ORDERS).join(ITEMS, ORDERS.c.id == ITEMS.c.id)), "read orders"),
        (Statement(sa.update(ORDERS).values(id=1)), "write orders"),
        (Statement(sa.delete(ORDERS)), "delete orders"),
        (BulkInsert(sa.Table("orders", sa.MetaData(), sa.Column("id", sa.Uuid)).c.id), "add orders"),
        (Statement(sa.select(ORDERS), name="list orders"), "list orders"),
    ],
)
def test_statement_is_named_by_operation_and_table_by_default(statement: Statement, name: str) -> None:
    assert statement.name == name
    assert names(statement.sql) == [name]


def test_statements_that_are_sent_together_keep_their_names() -> None:
    sent = together((Statement(sa.delete(ORDERS)), Statement(sa.delete(ITEMS)), Statement(sa.select(ORDERS))))
    assert names(sent) == ["delete orders", "delete items", "read orders"]


@pytest.mark.parametrize("service", ["customer_svc", "order_svc", "payment_svc", "product_svc"])
def test_statements_of_a_service_have_different_names(service: str) -> None:
    statements = defaultdict(set)
    for package in (importlib.import_module(service), mesh):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in module.name and not module.name.endswith("__main__"):
                for value in vars(importlib.import_module(module.name)).values():
                    statement = value.statement if isinstance(value, Versions) else value
                    if isinstance(statement, Statement):
                        statements[statement.name].add(statement)
    assert len(statements) > 10
    assert {name: len(same) for name, same in statements.items() if len(same) > 1} == {}
