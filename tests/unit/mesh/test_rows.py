"""The mapping between rows and aggregates: by name, complete, and the same for all statements of a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from mesh.db.rows import MappingBroken, Rows, Values


class Size(StrEnum):
    """A field that the database stores as text."""

    SMALL = "SMALL"
    LARGE = "LARGE"


@dataclass(frozen=True)
class Parcel:
    """An aggregate with a field of another table, and one that may be missing."""

    id: int
    items: tuple[str, ...]
    size: Size
    previous_size: Size | None
    note: str


class Label(NamedTuple):
    """An aggregate of one field."""

    text: str


PARCELS = sa.Table(
    "parcels",
    sa.MetaData(),
    sa.Column("note", sa.String),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("secret", sa.String),
    sa.Column("previous_size", sa.String),
    sa.Column("size", sa.String),
)
ROWS = Rows(Parcel, PARCELS, elsewhere=("items",), apart=("secret",))
PARCEL = Parcel(7, ("a", "b"), Size.LARGE, None, "fragile")


def test_row_is_read_by_the_names_of_its_columns() -> None:
    row = {"size": "LARGE", "id": 7, "note": "fragile", "previous_size": None, "secret": "x"}
    read = ROWS.read(row, items=("a", "b"))
    assert read == PARCEL
    assert read.size is Size.LARGE


def test_value_of_an_enum_that_may_be_missing_is_converted_if_it_is_there() -> None:
    row = {"id": 7, "items": ("a",), "size": "SMALL", "previous_size": "LARGE", "note": ""}
    assert Values(Parcel).read(row).previous_size is Size.LARGE


def test_unknown_value_of_an_enum_is_refused() -> None:
    with pytest.raises(ValueError, match="HUGE"):
        ROWS.read({"id": 7, "size": "HUGE", "previous_size": None, "note": ""}, items=())


def test_aggregate_of_one_field_is_read_and_written_as_one_column() -> None:
    rows = Rows(Label, sa.Table("labels", sa.MetaData(), sa.Column("text", sa.String)))
    assert rows.read({"text": "hello"}) == Label("hello")
    assert rows.values(Label("hello")) == ("hello",)


def test_values_of_an_aggregate_are_in_the_order_of_the_columns_of_its_statements() -> None:
    assert [column.name for column in ROWS.columns] == ["id", "size", "previous_size", "note"]
    assert ROWS.values(PARCEL) == (7, Size.LARGE, None, "fragile")
    assert "INSERT INTO parcels (id, size, previous_size, note)" in ROWS.insertion().sql


@pytest.mark.parametrize(
    ("elsewhere", "apart", "missing"),
    [((), ("secret",), "items"), (("items",), (), "secret"), (("items", "note"), ("secret",), "note")],
)
def test_field_without_a_column_and_column_without_a_field_are_refused_by_name(
    elsewhere: tuple[str, ...], apart: tuple[str, ...], missing: str
) -> None:
    with pytest.raises(MappingBroken, match=rf"Parcel and parcels differ in \['{missing}'\]"):
        Rows(Parcel, PARCELS, elsewhere=elsewhere, apart=apart)


def test_rows_are_locked_in_the_order_of_the_primary_key() -> None:
    assert ROWS.by(PARCELS.c.note, locked=True).sql.endswith("ORDER BY parcels.id FOR UPDATE /* lock parcels */")
    assert "FOR UPDATE" not in ROWS.by(PARCELS.c.note).sql
